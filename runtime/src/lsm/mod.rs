//! Security modules of the kernel: what a container's programs are confined as.
//!
//! Guarantees: a profile that the kernel doesn't have is refused before anything runs; where a kernel has no such
//! module, only what asks for it by name is refused.

pub mod apparmor;

use crate::core::Inner;
use crate::error::RuntimeError;
use crate::spec::ContainerSpec;

/// The security modules of this node.
#[derive(Debug)]
pub struct Modules {
    /// AppArmor.
    pub apparmor: apparmor::AppArmor,
}

/// What a container's programs run as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Confinement {
    /// Name of an AppArmor profile.
    pub apparmor: Option<String>,
}

impl Inner {
    /// What confines a container. Blocks: the default profile may be loading.
    pub fn confinement(&self, spec: &ContainerSpec) -> Result<Confinement, RuntimeError> {
        Ok(Confinement { apparmor: self.modules.apparmor.profile(spec)? })
    }
}
