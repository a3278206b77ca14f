//! What handlers are and can do, asked of them once.

use std::os::fd::AsFd;
use std::sync::Arc;

use keeper::delegate::Task;
use rustix::fs::MemfdFlags;

use super::Commands;
use crate::core::{Inner, blocking, chain, keeper_error};
use crate::error::RuntimeError;
use crate::handler::{Devices, Features, Handler};

/// What is known of a handler.
#[derive(Debug, Clone)]
pub struct Known {
    /// Its name.
    pub name: String,
    /// What it can do.
    pub features: Features,
    /// Who confines the devices of its containers.
    pub devices: Devices,
}

impl Inner {
    /// The handlers, the native one first. A runtime that doesn't answer can do nothing special. Each is asked once:
    /// one that is replaced is asked again by the next daemon.
    pub async fn handlers(self: &Arc<Self>) -> &[Known] {
        self.handler_features.get_or_init(|| self.ask_handlers()).await
    }

    /// Who confines the devices of a handler's containers.
    pub(super) async fn devices_of(self: &Arc<Self>, name: &str) -> Devices {
        let known = self.handlers().await.iter().find(|known| known.name == name);
        known.map(|known| known.devices).unwrap_or_default()
    }

    async fn ask_handlers(self: &Arc<Self>) -> Vec<Known> {
        let mut all = Vec::new();
        for name in self.options.handlers.names() {
            let (features, devices) = match self.options.handlers.get(name) {
                Ok((_, Handler::Native)) => (
                    Features {
                        recursive_read_only_mounts: true,
                        user_namespaces: self.capabilities.user_namespaces.is_none(),
                    },
                    Devices::ByUs,
                ),
                Ok((_, Handler::Libcontainer(_))) => (self.features(name).await, Devices::ByUs),
                _ => (self.features(name).await, self.version(name).await),
            };
            all.push(Known { name: name.to_owned(), features, devices });
        }
        all
    }

    async fn features(self: &Arc<Self>, name: &str) -> Features {
        match self.ask(name, "features").await {
            Ok(text) => Features::parse(&text).unwrap_or_default(),
            Err(error) => {
                // Runtimes that know no such command are in use.
                tracing::info!(handler = name, error = %chain(&error), "ask a runtime for its features");
                Features::default()
            }
        }
    }

    async fn version(self: &Arc<Self>, name: &str) -> Devices {
        match self.ask(name, "--version").await {
            Ok(text) => Devices::of(&text),
            Err(error) => {
                tracing::warn!(handler = name, error = %chain(&error), "ask a runtime for its version");
                Devices::default()
            }
        }
    }

    async fn ask(self: &Arc<Self>, name: &str, word: &'static str) -> Result<String, RuntimeError> {
        let step = format!("ask the runtime {name} for its {}", word.trim_start_matches('-'));
        let io = |step: &str| RuntimeError::io(step.to_owned());
        let answer = rustix::fs::memfd_create(c"answer", MemfdFlags::CLOEXEC)
            .map_err(|errno| io(&step)(errno.into()))?;
        let output = answer.as_fd().try_clone_to_owned().map_err(io(&step))?;
        let (inner, name, what) = (self.clone(), name.to_owned(), step.clone());
        let Commands { plan, fds, .. } = blocking(move || {
            let (_, handler) = inner.options.handlers.get(&name)?;
            let Some(runtime) = handler.oci() else {
                return Err(RuntimeError::invalid(format!("{name} is the native handler")));
            };
            let logs = inner.paths.bundles.join("asked");
            super::make_private(&logs)?;
            let mut commands = inner.commands(&name, runtime, &logs, Task::Command { what, output: None })?;
            if let Task::Command { output: wanted, .. } = &mut commands.plan.task {
                *wanted = Some(commands.fds.add(output));
            }
            commands.plan.commands[0].extend(super::words([word])?);
            Ok(commands)
        })
        .await?;
        self.keeper().await?.delegate_command(plan, fds).await.map_err(keeper_error(step.clone()))?;
        let text = sys::memfd::read(&answer).map_err(|errno| io(&step)(errno.into()))?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}
