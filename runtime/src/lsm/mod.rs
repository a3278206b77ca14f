//! Security modules of the kernel: what a container's programs are confined as, and its files are shown as.
//!
//! Guarantees: a profile or context that the kernel doesn't have is refused before anything runs; where a kernel has no
//! such module, only what asks for it by name is refused.

pub mod apparmor;
mod relabel;
mod selinux;

use std::collections::HashSet;
use std::path::PathBuf;

use crate::core::Inner;
use crate::error::RuntimeError;
use crate::record::SandboxRecord;
use crate::spec::{ContainerSpec, MountSource, SelinuxOptions};

pub use selinux::Selinux;

/// The security modules of this node.
#[derive(Debug)]
pub struct Modules {
    /// AppArmor.
    pub apparmor: apparmor::AppArmor,
    /// SELinux; `None` where it isn't on.
    pub selinux: Option<Selinux>,
}

/// What a container's programs run as, and its files are shown as.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Confinement {
    /// Name of an AppArmor profile.
    pub apparmor: Option<String>,
    /// SELinux context of its processes.
    pub process_label: Option<String>,
    /// SELinux context of its files.
    pub mount_label: Option<String>,
}

impl Inner {
    /// What confines a container. Blocks: the default profile may be loading.
    pub fn confinement(
        &self,
        spec: &ContainerSpec,
        sandbox: &SandboxRecord,
    ) -> Result<Confinement, RuntimeError> {
        let asked = spec.selinux.as_ref().or(sandbox.spec.selinux.as_ref());
        let labels = self.labels(asked, sandbox.level.as_deref(), spec.privileged)?;
        let (process_label, mount_label) = labels.unzip();
        Ok(Confinement { apparmor: self.modules.apparmor.profile(spec)?, process_label, mount_label })
    }

    /// The SELinux context of what a pod's containers share. A privileged pod may have containers that are not.
    pub fn pod_label(&self, sandbox: &SandboxRecord) -> Result<Option<String>, RuntimeError> {
        let labels = self.labels(sandbox.spec.selinux.as_ref(), sandbox.level.as_deref(), false)?;
        Ok(labels.map(|(_, files)| files))
    }

    /// Gives an image's layers the context that all containers may read. A store of many layers takes its time, once.
    pub fn label_layers(&self, layers: &[PathBuf]) -> Result<(), RuntimeError> {
        let Some(selinux) = &self.modules.selinux else { return Ok(()) };
        for layer in layers {
            if let Some(label) = selinux.of_layer(relabel::label(layer).as_deref()) {
                relabel::relabel(layer, &label)?;
            }
        }
        Ok(())
    }

    /// A level of SELinux for a new pod, which none of `others` has.
    pub fn level(&self, asked: Option<&SelinuxOptions>, others: &HashSet<&str>) -> Option<String> {
        self.modules.selinux.as_ref()?.level(asked, others)
    }

    fn labels(
        &self,
        asked: Option<&SelinuxOptions>,
        level: Option<&str>,
        privileged: bool,
    ) -> Result<Option<(String, String)>, RuntimeError> {
        match &self.modules.selinux {
            // It keeps the daemon's own context, as the CRI has it.
            _ if privileged => Ok(None),
            Some(selinux) => selinux.labels(asked, level),
            None if asked.is_some_and(|asked| !asked.is_empty()) => Err(RuntimeError::invalid(
                "SELinux labels cannot be applied on this node, whose kernel runs without SELinux: leave seLinuxOptions out",
            )),
            None => Ok(None),
        }
    }

    /// Gives a container's volumes its context, where the caller asked for it, and images' layers theirs.
    pub fn relabel_volumes(&self, spec: &ContainerSpec, label: Option<&str>) -> Result<(), RuntimeError> {
        let Some(label) = label else { return Ok(()) };
        for mount in &spec.mounts {
            match &mount.source {
                MountSource::Path(source) if mount.relabel => relabel::relabel(source, label)?,
                MountSource::Image { lower, .. } => self.label_layers(lower)?,
                MountSource::Path(_) | MountSource::Tmpfs { .. } => {}
            }
        }
        Ok(())
    }
}
