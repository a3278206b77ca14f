//! Registries: manifests and blobs over HTTP, by the distribution specification.
//!
//! Guarantees: credentials go to the host they are for and to the token server it names, never to the
//! target of a redirect; answers are bounded; link-local addresses are never contacted.
//! Caveat: the names of hosts behind a proxy are resolved by the proxy.

mod challenge;
mod config;
mod hosts;
mod http;
mod proxy;
mod session;

pub use config::{ConfigError, RegistryConfig};
pub use hosts::HostsError;
pub use proxy::Proxy;
pub(crate) use session::{Blob, Registries, Session};

use std::io;

/// For fuzzing: reads what a registry says about logging in.
pub(crate) fn fuzz_challenge(header: &str) {
    std::hint::black_box(challenge::parse(header));
}

/// Why a registry did not give us what we asked for. Messages name the host.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// No such repository, tag or digest; or we may not know.
    #[error("{what} not found in registry {host}{}", own_words(.detail))]
    NotFound {
        /// What was asked for.
        what: String,
        /// The registry.
        host: String,
        /// The registry's own words, empty if none.
        detail: String,
    },
    /// The credentials are missing, wrong or not enough.
    #[error("registry {host} denies access to {what}{}; check the credentials (imagePullSecrets of the pod, or --creds)", own_words(.detail))]
    Unauthorized {
        /// What was asked for.
        what: String,
        /// The registry.
        host: String,
        /// The registry's own words, empty if none.
        detail: String,
    },
    /// The registry asks us to come back later.
    #[error("registry {host} limits its rate{}; try again later, or with credentials", own_words(.detail))]
    RateLimit {
        /// The registry.
        host: String,
        /// The registry's own words, empty if none.
        detail: String,
    },
    /// Another answer that is no success.
    #[error("registry {host} answers {status} for {what}{}", own_words(.detail))]
    Status {
        /// What was asked for.
        what: String,
        /// The registry.
        host: String,
        /// The HTTP status.
        status: u16,
        /// The registry's own words, empty if none.
        detail: String,
    },
    /// The host cannot be reached, or does not speak TLS as expected.
    #[error("connect to registry {host}")]
    Connect {
        /// The host.
        host: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No answer, or no data for a while.
    #[error("registry {host} sends nothing for {seconds} s")]
    Timeout {
        /// The host.
        host: String,
        /// How long we waited.
        seconds: u64,
    },
    /// The connection broke off.
    #[error("read from registry {host}: the connection broke off")]
    Broken {
        /// The host.
        host: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A redirect that we do not follow.
    #[error("registry {host} redirects to `{target}`: refused, {reason}")]
    Redirect {
        /// The registry.
        host: String,
        /// Where to.
        target: String,
        /// Why not.
        reason: &'static str,
    },
    /// The token server's answer makes no sense, or we do not trust it with credentials.
    #[error("token server `{realm}` of registry {host}: {reason}")]
    Token {
        /// The registry.
        host: String,
        /// The token server.
        realm: String,
        /// What is wrong.
        reason: String,
    },
    /// An answer that violates the protocol.
    #[error("registry {host} answers nonsense: {reason}")]
    Protocol {
        /// The registry.
        host: String,
        /// What is wrong.
        reason: String,
    },
    /// Fewer bytes than promised.
    #[error("registry sends {got} of {expected} bytes")]
    Truncated {
        /// What came.
        got: u64,
        /// What was promised.
        expected: u64,
    },
    /// More bytes than promised or allowed.
    #[error("registry sends more than the expected {expected} bytes")]
    TooLong {
        /// The bound.
        expected: u64,
    },
    /// Content that is not what its digest says.
    #[error(
        "{what} from registry {host} has the wrong digest: expected {expected}, the data hashes to {actual}"
    )]
    WrongDigest {
        /// What was asked for.
        what: String,
        /// The registry.
        host: String,
        /// What was asked for or announced.
        expected: crate::digest::Digest,
        /// What came.
        actual: crate::digest::Digest,
    },
    /// A layer that the registry does not have, only other places.
    #[error(
        "{digest} is not in registry {host}, only at {places}: such foreign layers are not fetched; push the layer to the registry, or allow them (foreignLayers: Fetch)"
    )]
    Foreign {
        /// The layer.
        digest: crate::digest::Digest,
        /// The registry.
        host: String,
        /// The other places.
        places: String,
    },
    /// The mirror configuration cannot be used.
    #[error("use the mirror configuration")]
    Hosts(#[source] HostsError),
    /// Client certificates or CAs cannot be used.
    #[error("set up TLS for {host}")]
    Tls {
        /// The registry.
        host: String,
        /// Why.
        source: io::Error,
    },
}

/// The registry's own words in a message.
fn own_words(text: &str) -> String {
    if text.is_empty() { String::new() } else { format!(": {text}") }
}

impl RegistryError {
    /// Whether trying again can help.
    pub fn is_transient(&self) -> bool {
        match self {
            RegistryError::Timeout { .. }
            | RegistryError::Broken { .. }
            | RegistryError::Connect { .. }
            | RegistryError::RateLimit { .. }
            | RegistryError::Truncated { .. } => true,
            RegistryError::Status { status, .. } => *status >= 500,
            _ => false,
        }
    }
}
