//! Runs one probe once.

use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::time::Duration;

use crate::model::{Action, Outcome, Probe};
use crate::url::Url;
use crate::{grpc, http, tcp, words};

/// Whom to probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// The pod's primary address (the node's, for a pod in the node's network).
    pub pod_ip: IpAddr,
}

/// What a command in the container came to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ExecOutput {
    /// Its exit code.
    pub exit_code: i32,
    /// What it wrote on stdout and stderr; only the first 10 KiB are used.
    pub output: Vec<u8>,
}

/// Why a command did not come to an exit code.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ExecError {
    /// It ran longer than the timeout: a failure.
    #[error("command timed out")]
    TimedOut,
    /// It could not be run: no verdict.
    #[error("{0}")]
    CannotRun(String),
}

/// Runs a command in the probed container: the kubelet passes CRI's ExecSync.
pub trait Exec: Send + Sync {
    /// Runs `command` for at most `timeout`, and ends it then.
    fn exec<'a>(
        &'a self,
        command: &'a [String],
        timeout: Duration,
    ) -> Pin<Box<dyn Future<Output = Result<ExecOutput, ExecError>> + Send + 'a>>;
}

/// How often a probe that could not be run is tried before the outcome is [`Outcome::Unknown`].
const ATTEMPTS: u32 = 3;
/// How much of a command's output is used.
const MAX_OUTPUT: usize = 10 * 1024;

/// Runs the probe once, within its timeout. Where it could not be run at all, it is tried twice more.
///
/// Cancel-safe: dropping it abandons the attempt.
pub async fn run(probe: &Probe, target: Target, exec: &dyn Exec) -> Outcome {
    let mut outcome = once(probe, target, exec).await;
    for _ in 1..ATTEMPTS {
        if !matches!(outcome, Outcome::Unknown { .. }) {
            break;
        }
        outcome = once(probe, target, exec).await;
    }
    outcome
}

async fn once(probe: &Probe, target: Target, exec: &dyn Exec) -> Outcome {
    let timeout = probe.thresholds.timeout;
    let pod = target.pod_ip.to_string();
    let host = |host: &Option<String>| match host {
        Some(host) if !host.is_empty() => host.clone(),
        _ => pod.clone(),
    };
    match &probe.action {
        Action::Exec { command } => judge(command, exec.exec(command, timeout).await),
        Action::Http { scheme, host: to, port, path, headers } => {
            let url = Url::new(*scheme, &host(to), *port, path);
            let answer = tokio::time::timeout(timeout, http::probe(&url, headers)).await;
            answer.unwrap_or_else(|_| http::timed_out(&url))
        }
        Action::Tcp { host: to, port } => {
            let to = host(to);
            let answer = tokio::time::timeout(timeout, tcp::probe(&to, *port)).await;
            answer.unwrap_or_else(|_| tcp::timed_out(&to, *port))
        }
        Action::Grpc { port, service } => grpc::probe(&pod, *port, service, timeout).await,
    }
}

fn judge(command: &[String], outcome: Result<ExecOutput, ExecError>) -> Outcome {
    match outcome {
        Ok(ExecOutput { exit_code, output }) => {
            let message = words::clip(&output, MAX_OUTPUT);
            if exit_code == 0 { Outcome::Success { message } } else { Outcome::Failure { message } }
        }
        Err(ExecError::TimedOut) => {
            Outcome::Failure { message: format!("command {:?} timed out", command.join(" ")) }
        }
        Err(ExecError::CannotRun(message)) => Outcome::Unknown { message },
    }
}
