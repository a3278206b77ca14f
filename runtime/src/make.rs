//! What a container is made of: writable layer, root file system, user, draft of its plan, cgroup.
//!
//! Guarantees: the image's files are read beneath its root only, regular files only, up to a size.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use keeper::plan::ProcessPlan;
use rustix::fs::OFlags;
use sys::cgroup::Group;

use crate::core::{Inner, Ready, chain};
use crate::error::RuntimeError;
use crate::id::ContainerId;
use crate::oci::{self, Surroundings};
use crate::overlay::{self, Look, Writable};
use crate::plan::{self, Draft};
use crate::record::SandboxRecord;
use crate::spec::{ContainerSpec, NamespaceMode, ResolvedUser, UserNamespace};
use crate::{devices, idmap, limits, pins, signal, user};

/// Largest `/etc/passwd` or `/etc/group` that is read, in bytes.
const USERS_LIMIT: usize = 1 << 20;

impl Inner {
    /// Makes all of a container but its record.
    pub fn make_container(
        &self,
        spec: &ContainerSpec,
        sandbox: &SandboxRecord,
    ) -> Result<(ResolvedUser, String, Vec<String>, Ready), RuntimeError> {
        if let Some(name) = &spec.stop_signal {
            signal::parse(name)?;
        }
        let rootfs = self.mount_root(spec, sandbox)?;
        RuntimeError::fault("container: read its users")?;
        let (passwd, group) = (users(&rootfs, "etc/passwd")?, users(&rootfs, "etc/group")?);
        let user = user::resolve(&spec.user, &passwd, &group)?;
        let cgroup = self.cgroups.container_path(&sandbox.cgroup, spec.id.as_str());
        let draft = self.draft(spec, &user, &cgroup, sandbox)?;
        // Refuses a bad profile now, and has the filter ready.
        self.filter(spec, sandbox)?;
        RuntimeError::fault("container: make its cgroup")?;
        let mut unenforced = if self.cgroups.is_late() {
            let mut unenforced = self.cgroups.unenforced(&spec.resources)?;
            unenforced.extend(self.cannot(spec));
            unenforced
        } else {
            self.container_cgroup(spec, &cgroup)?.1
        };
        RuntimeError::fault("container: plan its process")?;
        let confinement = self.confinement(spec, sandbox)?;
        self.relabel_volumes(spec, confinement.mount_label.as_deref())?;
        let process = oci::process(spec, &user, "", self.available_in(sandbox), &confinement)?;
        let mut process = plan::process_plan(&process)?;
        unenforced.extend(self.limit(&mut process));
        Ok((user, cgroup, unenforced, Ready { rootfs, draft }))
    }

    /// Removes what a failed create left. Errors are logged: the caller has a better one.
    pub fn unmake_container(&self, id: &ContainerId, cgroup: &str) {
        if let Err(error) = self.cgroups.destroy(cgroup) {
            tracing::warn!(container = %id, error = %chain(&error), "undo a container's cgroup");
        }
        let layer = self.paths.layers.join(id.as_str());
        match std::fs::remove_dir_all(&layer) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(container = %id, %error, "undo a container's writable layer");
            }
            _ => {}
        }
    }

    /// Mounts a container's root file system; makes its writable layer when missing.
    pub fn mount_root(&self, spec: &ContainerSpec, sandbox: &SandboxRecord) -> Result<OwnedFd, RuntimeError> {
        let layer = self.paths.layers.join(spec.id.as_str());
        let writable = Writable { upper: layer.join("upper"), work: layer.join("work") };
        let step = |path: &Path| RuntimeError::io(format!("make {}", path.display()));
        for dir in [&layer, &writable.upper, &writable.work] {
            RuntimeError::fault("container: make a directory of its layer")?;
            match std::fs::create_dir(dir) {
                Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
                    return Err(step(dir)(error));
                }
                _ => {}
            }
        }
        let ids = sandbox.spec.user_namespace;
        if let Some(top) = spec.rootfs.first() {
            like(top, &writable.upper, ids).map_err(step(&writable.upper))?;
        }
        let user = match ids {
            Some(_) => Some(idmap::open(&self.pins.of(sandbox.spec.id.as_str()).join(pins::USER))?),
            None => None,
        };
        let user = user.as_ref().map(AsFd::as_fd);
        let label = self.confinement(spec, sandbox)?.mount_label;
        let context = label.map(|label| plan::text(label.as_bytes())).transpose()?;
        if context.is_some() {
            self.label_layers(&spec.rootfs)?;
        }
        let look = Look { ids: user, context: context.as_deref() };
        RuntimeError::fault("container: mount its root")?;
        overlay::mount(&spec.rootfs, Some(&writable), look, self.pins.scratch())
    }

    /// Capabilities that a container of this sandbox can have: a user namespace has all of its own.
    pub fn available_in(&self, sandbox: &SandboxRecord) -> u64 {
        if sandbox.spec.user_namespace.is_some() { crate::caps::ALL } else { self.available }
    }

    /// Makes the draft of a container's launch plan.
    pub fn draft(
        &self,
        spec: &ContainerSpec,
        user: &ResolvedUser,
        cgroup: &str,
        sandbox: &SandboxRecord,
    ) -> Result<Draft, RuntimeError> {
        let mut draft = plan::draft(&self.oci_spec(spec, user, cgroup, sandbox)?)?;
        self.limit(&mut draft.process);
        Ok(draft)
    }

    /// Makes the OCI spec of a container, which every launcher starts from.
    pub fn oci_spec(
        &self,
        spec: &ContainerSpec,
        user: &ResolvedUser,
        cgroup: &str,
        sandbox: &SandboxRecord,
    ) -> Result<oci_spec::runtime::Spec, RuntimeError> {
        let pins = self.pins.of(sandbox.spec.id.as_str());
        let own = |mode: &NamespaceMode, name: &str| (*mode != NamespaceMode::Node).then(|| pins.join(name));
        let of_pod = &sandbox.spec.namespaces;
        let pid = match oci::check_namespaces(spec, &sandbox.spec)? {
            NamespaceMode::Node => None,
            NamespaceMode::Container => Some(None),
            // Whose process it is shows only when the container is started.
            NamespaceMode::Pod | NamespaceMode::Target(_) => Some(Some(PathBuf::new())),
        };
        let around = Surroundings {
            hostname: &sandbox.spec.hostname,
            net: own(&of_pod.net, "net"),
            ipc: own(&of_pod.ipc, "ipc"),
            uts: own(&of_pod.uts, "uts"),
            user: sandbox.spec.user_namespace.map(|ids| (pins.join(pins::USER), ids)),
            pid,
            shm: own(&of_pod.ipc, "shm").unwrap_or_else(|| "/dev/shm".into()),
            cgroup,
            rootfs: self.paths.layers.join(spec.id.as_str()).join("upper"),
            available: self.available_in(sandbox),
            devices: devices::find(spec)?,
            confinement: self.confinement(spec, sandbox)?,
        };
        oci::spec(spec, user, &around)
    }

    /// Lowers POSIX limits to what this process can give. Tells which.
    pub fn limit(&self, process: &mut ProcessPlan) -> Vec<String> {
        if self.capabilities.sys_resource { Vec::new() } else { limits::lower(&mut process.rlimits) }
    }

    /// The filter of a container.
    pub fn filter(
        &self,
        spec: &ContainerSpec,
        sandbox: &SandboxRecord,
    ) -> Result<Option<crate::seccomp::Filter>, RuntimeError> {
        if spec.privileged || !self.capabilities.seccomp {
            return Ok(None);
        }
        let sets = crate::caps::sets(&spec.capabilities, false, self.available_in(sandbox))?;
        self.filters.filter(&spec.seccomp, &self.options.seccomp_profiles, sets.effective)
    }

    /// Makes a container's cgroup with its limits and its devices. Tells what is not enforced.
    pub fn container_cgroup(
        &self,
        spec: &ContainerSpec,
        path: &str,
    ) -> Result<(Group, Vec<String>), RuntimeError> {
        let (group, mut unenforced) = self.cgroups.make_container(path, &spec.resources)?;
        // For containers of other runtimes it is settled when they are started, with whom the rules go to.
        if self
            .sandbox_record(&spec.sandbox)
            .is_ok_and(|sandbox| matches!(self.delegate_of(&sandbox), Ok(None)))
        {
            RuntimeError::fault("container: confine its devices")?;
            self.confine_devices(&group, spec)?;
        }
        unenforced.extend(self.cannot(spec));
        Ok((group, unenforced))
    }

    /// The cgroup that a container is started in.
    pub fn cgroup_at_start(&self, spec: &ContainerSpec, path: &str) -> Result<Group, RuntimeError> {
        match self.cgroups.open_path(path) {
            Ok(group) if !self.cgroups.is_late() => return Ok(group),
            // Left by a daemon that died right here.
            Ok(_) => self.cgroups.destroy(path)?,
            Err(_) => {}
        }
        Ok(self.container_cgroup(spec, path)?.0)
    }

    /// Lets the processes of a cgroup use a container's devices only.
    pub fn confine_devices(&self, group: &Group, spec: &ContainerSpec) -> Result<(), RuntimeError> {
        if spec.privileged || !self.capabilities.device_filter {
            return Ok(());
        }
        self.devices.attach(group.fd(), devices::rules(&devices::find(spec)?)).map_err(|errno| {
            RuntimeError::io(format!("confine the devices of container {}", spec.id))(errno.into())
        })
    }

    /// What a container asks for and this node cannot give, beside cgroup limits.
    fn cannot(&self, spec: &ContainerSpec) -> Vec<String> {
        let mut sentences = Vec::new();
        if !self.capabilities.sys_resource
            && let Some(score) = spec.resources.oom_score_adj.filter(|score| *score < 0)
        {
            sentences.push(format!("oom_score_adj = {score} is not enforced: CAP_SYS_RESOURCE is missing"));
        }
        if !self.capabilities.device_filter && !spec.privileged {
            sentences.push("device access is not confined: there are no cgroup programs here".into());
        }
        if !self.capabilities.seccomp && !spec.privileged {
            sentences.push("the seccomp profile is not enforced: this kernel has no seccomp filters".into());
        }
        sentences.extend(self.modules.apparmor.missing(spec));
        sentences
    }
}

/// A file of the image, empty when it is not there.
pub fn users(root: &OwnedFd, path: &str) -> Result<String, RuntimeError> {
    use std::io::Read;
    let step = || format!("read /{path} of the image");
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
    let fd = match sys::fs::open_in_root(root, path, flags) {
        Ok(fd) => fd,
        Err(sys::Errno::NOENT | sys::Errno::NOTDIR | sys::Errno::LOOP) => return Ok(String::new()),
        Err(errno) => return Err(RuntimeError::io(step())(errno.into())),
    };
    let stat = rustix::fs::fstat(&fd).map_err(|errno| RuntimeError::io(step())(errno.into()))?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::RegularFile {
        return Ok(String::new());
    }
    let mut bytes = Vec::new();
    let limit = USERS_LIMIT as u64 + 1;
    std::fs::File::from(fd).take(limit).read_to_end(&mut bytes).map_err(RuntimeError::io(step()))?;
    if bytes.len() > USERS_LIMIT {
        return Err(RuntimeError::invalid(format!(
            "/{path} of the image is larger than {USERS_LIMIT} bytes: give the user as a number in an image without it"
        )));
    }
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Gives a directory the owner and permissions of another: the root of an overlay is its upper directory.
fn like(model: &Path, dir: &Path, ids: Option<UserNamespace>) -> std::io::Result<()> {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let model = std::fs::metadata(model)?;
    let (uid, gid) = match ids {
        // The layers are shown with the pod's ids.
        Some(ids) => (ids.users.to_host(model.uid()), ids.groups.to_host(model.gid())),
        None => (Some(model.uid()), Some(model.gid())),
    };
    std::os::unix::fs::chown(dir, uid, gid)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(model.mode() & 0o7777))
}
