//! What a probe is, and what came of running it.

use std::time::Duration;

/// Which of a container's probes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// Decides when the others begin; its failure kills the container.
    Startup,
    /// Decides whether the container is ready. Its failure kills nothing.
    Readiness,
    /// Its failure kills the container.
    Liveness,
}

impl Kind {
    /// As events spell it ("Readiness probe failed: ...").
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::Startup => "Startup",
            Kind::Readiness => "Readiness",
            Kind::Liveness => "Liveness",
        }
    }
}

/// HTTP or HTTPS; the latter without verifying the certificate, as Kubernetes promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Scheme {
    /// Plain HTTP/1.1.
    #[default]
    Http,
    /// HTTP/1.1 over TLS; any certificate will do.
    Https,
}

impl Scheme {
    /// As in a URL.
    pub fn as_str(self) -> &'static str {
        match self {
            Scheme::Http => "http",
            Scheme::Https => "https",
        }
    }
}

/// What to ask. Ports are numbers here: the kubelet resolves named ones.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Run a command in the container; exit code 0 is success.
    Exec {
        /// The command and its arguments.
        command: Vec<String>,
    },
    /// GET; a status of 200-399 is success.
    Http {
        /// HTTP or HTTPS.
        scheme: Scheme,
        /// Whom to connect to; `None` is the pod's address.
        host: Option<String>,
        /// The port.
        port: u16,
        /// Path and query; an empty one is `/`.
        path: String,
        /// Headers in their order; `Host`, `User-Agent` and `Accept` replace the defaults, an empty
        /// value of the latter two leaves the header out.
        headers: Vec<(String, String)>,
    },
    /// Open a TCP connection.
    Tcp {
        /// Whom to connect to; `None` is the pod's address.
        host: Option<String>,
        /// The port.
        port: u16,
    },
    /// Ask `grpc.health.v1.Health/Check` without TLS; SERVING is success.
    Grpc {
        /// The port; always on the pod's address.
        port: u16,
        /// The service name in the request; empty is the server as a whole.
        service: String,
    },
}

/// When to ask, and how many answers in a row count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Thresholds {
    /// How long after the container's start the first probe runs.
    pub initial_delay: Duration,
    /// The time between probes.
    pub period: Duration,
    /// How long one probe may take.
    pub timeout: Duration,
    /// Successes in a row that turn a failed state; 1 for startup and liveness, whatever is written here.
    pub success: u32,
    /// Failures in a row that turn a good state.
    pub failure: u32,
}

impl Default for Thresholds {
    /// Kubernetes' defaults: no delay, every 10 s, 1 s each, 1 success, 3 failures.
    fn default() -> Thresholds {
        Thresholds {
            initial_delay: Duration::ZERO,
            period: Duration::from_secs(10),
            timeout: Duration::from_secs(1),
            success: 1,
            failure: 3,
        }
    }
}

/// One probe of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Probe {
    /// What to ask.
    pub action: Action,
    /// When, and how often.
    pub thresholds: Thresholds,
}

/// What came of running a probe once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// As wanted.
    Success {
        /// The output, for the log.
        message: String,
    },
    /// As wanted, but worth an event (`ProbeWarning`): an HTTP redirect to another host. Counts as success.
    Warning {
        /// What was odd.
        message: String,
    },
    /// Not as wanted.
    Failure {
        /// What is wrong, in the kubelet's words: the text after "Readiness probe failed: ".
        message: String,
    },
    /// The probe itself could not be run. Counts for nothing: the state stays, and it is tried again.
    Unknown {
        /// Why: the text after "Readiness probe errored: ".
        message: String,
    },
}

impl Outcome {
    /// The text.
    pub fn message(&self) -> &str {
        match self {
            Outcome::Success { message }
            | Outcome::Warning { message }
            | Outcome::Failure { message }
            | Outcome::Unknown { message } => message,
        }
    }

    /// Whether it counts as success.
    pub fn is_success(&self) -> bool {
        matches!(self, Outcome::Success { .. } | Outcome::Warning { .. })
    }
}
