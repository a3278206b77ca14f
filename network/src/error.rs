//! What can go wrong, one type per operation.

use std::fmt;
use std::io;
use std::path::PathBuf;

use ipnet::IpNet;

use crate::model::PortMapping;

/// Why the pod network could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// The configuration contradicts itself.
    #[error("pod network configuration: {0}")]
    Config(String),
    /// A file or directory of ours.
    #[error("{step} {path}")]
    File {
        /// What was tried.
        step: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel refused a change of the network.
    #[error("{step}")]
    Kernel {
        /// What was tried.
        step: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The bridge is somebody else's.
    #[error(
        "interface {bridge} exists and is not this node's ({found}); choose another bridge name or delete it with `ip link del {bridge}`"
    )]
    ForeignBridge {
        /// Its name.
        bridge: String,
        /// What stands there.
        found: String,
    },
}

/// Why a pod was not connected. Nothing of it is left then, unless the message says so.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AddError {
    /// Not a sandbox id of ours.
    #[error("sandbox id {0:?} is not 1-64 characters of a-z, 0-9 and -")]
    BadId(String),
    /// Every address is taken.
    #[error("no free address in {cidr}: all {size} are in use; remove pods or configure a larger pod CIDR")]
    Exhausted {
        /// The range.
        cidr: IpNet,
        /// How many pods it can hold.
        size: u128,
    },
    /// A host port belongs to another pod.
    #[error("host port {port} is already used by sandbox {owner}")]
    PortConflict {
        /// The wanted port.
        port: PortMapping,
        /// Who has it.
        owner: String,
    },
    /// A host port belongs to a process of the node.
    #[error("host port {port} is in use by a process on the node")]
    PortInUse {
        /// The wanted port.
        port: PortMapping,
        /// What bind(2) said.
        source: io::Error,
    },
    /// A host port that cannot be.
    #[error("host port {port}: {why}")]
    BadPort {
        /// The wanted port.
        port: PortMapping,
        /// What is wrong with it.
        why: &'static str,
    },
    /// The pod's namespace could not be opened.
    #[error("open network namespace {path}")]
    OpenNetns {
        /// Where it is pinned.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// A lease could not be kept.
    #[error("{step} lease of sandbox {id}")]
    Lease {
        /// What was tried.
        step: &'static str,
        /// Whose.
        id: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel refused a change of the network.
    #[error("{step}")]
    Kernel {
        /// What was tried.
        step: String,
        /// Why it failed.
        source: io::Error,
    },
    /// The ruleset could not be written.
    #[error("open host ports of sandbox {id}")]
    Nft {
        /// Whose.
        id: String,
        /// Why it failed.
        source: crate::nft::NftError,
    },
    /// A CNI plugin failed.
    #[error("connect sandbox {id} by CNI")]
    Cni {
        /// Whose.
        id: String,
        /// Why it failed.
        source: crate::cni::CniError,
    },
    /// The bridge could not be made.
    #[error("prepare the node's bridge")]
    Open(#[source] Box<OpenError>),
    /// The network is being closed.
    #[error("the pod network is closed")]
    Closed,
}

/// One step of a teardown that failed; it is retried by the next `remove` or `reconcile`.
#[derive(Debug, thiserror::Error)]
#[error("{step}")]
pub struct TeardownError {
    /// What was tried, on what.
    pub step: String,
    /// Why it failed.
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// All that failed while a network was taken down. Every step that could run did.
#[derive(Debug, Default)]
pub struct TeardownErrors(pub Vec<TeardownError>);

impl TeardownErrors {
    /// Notes the outcome of one step; says whether it succeeded.
    pub(crate) fn note<E>(&mut self, step: impl Into<String>, outcome: Result<(), E>) -> bool
    where
        E: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        match outcome {
            Ok(()) => true,
            Err(err) => {
                self.0.push(TeardownError { step: step.into(), source: err.into() });
                false
            }
        }
    }

    /// Takes over the failures of a part.
    pub(crate) fn merge(&mut self, part: Result<(), TeardownErrors>) {
        if let Err(errors) = part {
            self.0.extend(errors.0);
        }
    }

    /// `Ok` if nothing failed.
    pub(crate) fn into_result(self) -> Result<(), TeardownErrors> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }
}

impl fmt::Display for TeardownErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} steps of the network's teardown failed", self.0.len())?;
        for error in self.0.iter().skip(1) {
            write!(f, "; {error} ({})", error.source)?;
        }
        Ok(())
    }
}

impl std::error::Error for TeardownErrors {
    /// The first failure; the others stand in the message.
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.first().map(|error| error as &(dyn std::error::Error + 'static))
    }
}

/// Why the counters could not be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StatsError {
    /// The pod's namespace could not be opened.
    #[error("open network namespace {path}")]
    OpenNetns {
        /// Where it is pinned.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel did not answer.
    #[error("read interface counters")]
    Kernel(#[source] io::Error),
}
