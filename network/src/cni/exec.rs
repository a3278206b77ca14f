//! Runs one CNI plugin.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::{Child, Command};

use super::conf::Plugin;
use super::{Attachment, CniError, IFNAME};
use crate::netns;

/// How long a plugin may take; the kubelet gives up on the pod's start at twice that.
const TIMEOUT: Duration = Duration::from_secs(120);
/// The codes that mean an interrupted `STATUS` or a missing error object.
const NO_CODE: u64 = 999;

/// What a plugin is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verb {
    Add,
    Del,
    Check,
    Gc,
    Status,
    Version,
}

impl Verb {
    fn as_str(self) -> &'static str {
        match self {
            Verb::Add => "ADD",
            Verb::Del => "DEL",
            Verb::Check => "CHECK",
            Verb::Gc => "GC",
            Verb::Status => "STATUS",
            Verb::Version => "VERSION",
        }
    }

    fn has_result(self) -> bool {
        matches!(self, Verb::Add | Verb::Version)
    }
}

/// Where plugins are and where they run.
pub(super) struct Plugins {
    pub(super) netns: Arc<OwnedFd>,
    pub(super) directories: Vec<PathBuf>,
}

impl Plugins {
    /// Runs the plugin with `conf` on its stdin; returns its result, for a verb that has one.
    pub(super) async fn run(
        &self,
        verb: Verb,
        plugin: &Plugin,
        conf: &Value,
        attachment: Option<&Attachment>,
    ) -> Result<Option<Value>, CniError> {
        let command = verb.as_str();
        let kind = || plugin.kind.clone();
        let program = self.find(&plugin.kind)?;
        let mut process = Command::new(program);
        process
            .env("CNI_COMMAND", command)
            .env("CNI_PATH", std::env::join_paths(&self.directories).unwrap_or_default())
            .current_dir("/")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if let Some(attachment) = attachment {
            process
                .env("CNI_CONTAINERID", &attachment.id)
                .env("CNI_NETNS", &attachment.netns)
                .env("CNI_IFNAME", IFNAME)
                .env("CNI_ARGS", &attachment.args);
        }
        let output = async {
            let mut child = self.spawn(process).await?;
            let mut stdin = child.stdin.take().expect("stdin is piped");
            let text = conf.to_string();
            let (written, output) = tokio::join!(
                async move {
                    let written = stdin.write_all(text.as_bytes()).await;
                    drop(stdin);
                    written
                },
                child.wait_with_output(),
            );
            match written {
                // It did not want to read: what it says counts.
                Err(err) if err.kind() != io::ErrorKind::BrokenPipe => Err(err),
                _ => output,
            }
        };
        let output = tokio::time::timeout(TIMEOUT, output)
            .await
            .unwrap_or_else(|_| {
                Err(io::Error::new(io::ErrorKind::TimedOut, "it did not end in time; killed"))
            })
            .map_err(|source| CniError::Run { plugin: kind(), command, source })?;
        if !output.status.success() {
            let (code, message) = failure(&output);
            return Err(CniError::Plugin { plugin: kind(), command, code, message });
        }
        if !verb.has_result() {
            return Ok(None);
        }
        serde_json::from_slice(&output.stdout).map(Some).map_err(|source| CniError::Result {
            plugin: kind(),
            command,
            source,
        })
    }

    /// Starts the program from a thread in the node's namespace, so that it begins there.
    async fn spawn(&self, mut process: Command) -> io::Result<Child> {
        let netns = Arc::clone(&self.netns);
        let runtime = tokio::runtime::Handle::current();
        let spawned = tokio::task::spawn_blocking(move || {
            netns::within(netns.as_fd(), || {
                let _entered = runtime.enter();
                process.spawn()
            })
        });
        spawned.await.map_err(io::Error::other)?
    }

    fn find(&self, kind: &str) -> Result<PathBuf, CniError> {
        let mut programs = self.directories.iter().map(|directory| directory.join(kind));
        programs.find(|program| program.is_file()).ok_or_else(|| CniError::NoPlugin {
            plugin: kind.to_owned(),
            directories: self.directories.clone(),
        })
    }
}

/// What a failed plugin said: its error object, else its stderr.
fn failure(output: &Output) -> (u64, String) {
    let error: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    if let Some(message) = error["msg"].as_str() {
        let code = error["code"].as_u64().unwrap_or(NO_CODE);
        return match error["details"].as_str() {
            Some(details) if !details.is_empty() => (code, format!("{message} ({details})")),
            _ => (code, message.to_owned()),
        };
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    (NO_CODE, format!("{}: {}", output.status, stderr.trim()))
}
