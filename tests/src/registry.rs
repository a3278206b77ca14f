//! A real registry (Debian's docker-registry) in a node's network namespace.

use std::path::Path;

use anyhow::Context;
use tokio::process::Child;

use crate::clients::{self, command};
use crate::{Node, eventually};

/// A registry on 127.0.0.1; gone when dropped.
#[derive(Debug)]
pub struct Registry {
    /// `127.0.0.1:<port>`.
    pub address: String,
    netns: String,
    _child: Child,
    _dir: tempfile::TempDir,
}

impl Registry {
    /// Starts a registry beside the node, on a port that only its namespace sees.
    ///
    /// # Errors
    /// It is not installed, or does not answer.
    pub async fn start(node: &Node, port: u16) -> anyhow::Result<Registry> {
        let dir = tempfile::tempdir()?;
        let storage = dir.path().join("data");
        Registry::serve(node, port, &storage, dir).await
    }

    /// The same with what `storage` holds.
    ///
    /// # Errors
    /// As for [`Registry::start`].
    pub async fn of(node: &Node, port: u16, storage: &Path) -> anyhow::Result<Registry> {
        Registry::serve(node, port, storage, tempfile::tempdir()?).await
    }

    async fn serve(
        node: &Node,
        port: u16,
        storage: &Path,
        dir: tempfile::TempDir,
    ) -> anyhow::Result<Registry> {
        let address = format!("127.0.0.1:{port}");
        let config = format!(
            "version: 0.1\nlog: {{level: error}}\nstorage: {{filesystem: {{rootdirectory: {}}}}}\nhttp: {{addr: '{address}'}}\n",
            storage.display()
        );
        let file = dir.path().join("config.yml");
        std::fs::write(&file, config)?;
        let mut registry = command(&node.netns, "docker-registry");
        registry
            .arg("serve")
            .arg(&file)
            .stdout(std::process::Stdio::null())
            .stderr(std::process::Stdio::null());
        let child = registry.spawn().context("start docker-registry (`make test` installs it)")?;
        let registry = Registry { address, netns: node.netns.clone(), _child: child, _dir: dir };
        let url = format!("http://{}/v2/", registry.address);
        eventually("the registry to answer", || async {
            let mut curl = command(&registry.netns, "curl");
            curl.args(["-fsS", &url]);
            clients::run(curl, None).await?.ok()
        })
        .await?;
        Ok(registry)
    }

    /// Pushes an image archive as `name` (`repo:tag`), and returns its whole reference.
    ///
    /// # Errors
    /// What the push said.
    pub async fn push(&self, archive: &Path, name: &str) -> anyhow::Result<String> {
        let reference = format!("{}/{name}", self.address);
        let mut push = command(&self.netns, concat!(env!("CARGO_MANIFEST_DIR"), "/images/push.sh"));
        push.arg(archive).arg(&reference);
        clients::run(push, None).await?.ok()?;
        Ok(reference)
    }
}
