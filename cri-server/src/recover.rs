//! Taking over after a start: names from the runtime's records, and an end to what belongs to nobody.
//!
//! Guarantees: level-triggered; it looks only at what is there, never at how it came about.

use std::collections::HashSet;

use crate::error::chain;
use crate::meta::{ContainerMeta, SandboxMeta};
use crate::server::Inner;

impl Inner {
    pub(crate) async fn recover(&self) {
        let mut live = Vec::new();
        for sandbox in self.runtime.sandboxes() {
            match serde_json::from_value::<SandboxMeta>((*sandbox.meta).clone()) {
                // Nobody was ever told of it.
                Ok(meta) if meta.making => self.unmake(sandbox.id().as_str()).await,
                Ok(meta) => {
                    if meta.connected && sandbox.netns.is_some() {
                        live.push(sandbox.id().to_string());
                    }
                    self.index.put_sandbox(sandbox.id().as_str(), meta);
                }
                Err(error) => {
                    tracing::warn!(sandbox = %sandbox.id(), error = %error, "a sandbox's record cannot be read");
                }
            }
        }
        let mut owners = HashSet::new();
        for container in self.runtime.containers() {
            owners.insert(container.id().to_string());
            match serde_json::from_value::<ContainerMeta>((*container.meta).clone()) {
                Ok(meta) => {
                    self.index.put_container(container.id().as_str(), container.spec.sandbox.as_str(), meta);
                }
                Err(error) => {
                    tracing::warn!(container = %container.id(), error = %error, "a container's record cannot be read");
                }
            }
        }
        for lease in self.images.leases() {
            if !owners.contains(&lease.owner) {
                self.images.release(&lease.owner);
            }
        }
        self.drop_strange_files();
        // What can't be taken down now (a CNI plugin that fails, say) is tried again at the next start; it
        // must not keep the node's pods from being served.
        if let Err(error) = self.network.reconcile(&live).await {
            tracing::warn!(error = %chain(&error), "take down the networks of sandboxes that are gone");
        }
    }

    /// Removes the files of sandboxes that are gone.
    fn drop_strange_files(&self) {
        let Ok(entries) = std::fs::read_dir(&self.config.state_dir) else { return };
        for entry in entries.flatten() {
            let known = entry.file_name().to_str().is_some_and(|id| self.index.sandbox(id).is_some());
            if !known && let Err(error) = std::fs::remove_dir_all(entry.path()) {
                tracing::warn!(path = %entry.path().display(), error = %error, "remove files of a sandbox that is gone");
            }
        }
    }
}
