//! Namespaces and `/dev/shm` of sandboxes, kept alive by mounts below `<run>/ns`.
//!
//! `<run>/ns` is a tmpfs of its own with private propagation: one unmount of it drops them all, and no other mount
//! namespace ever sees them.
//!
//! Guarantees: all of a sandbox's pins are in `<run>/ns/<id>/`.

use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use rustix::fs::Mode;
use sys::mount::{FsOption, Propagation, UnmountFlags, attr};
use sys::namespace::{Kind, NamespaceError};

use crate::error::RuntimeError;
use crate::spec::{NamespaceMode, SandboxSpec};

/// The directory of all pins.
#[derive(Debug, Clone)]
pub struct Pins {
    dir: PathBuf,
}

/// Names of the pinned kinds.
const KINDS: [(Kind, &str); 3] = [(Kind::Net, "net"), (Kind::Ipc, "ipc"), (Kind::Uts, "uts")];

/// Name of the pinned user namespace.
pub const USER: &str = "user";

const SHM_SIZE: u64 = 64 << 20;

impl Pins {
    /// Opens the directory; mounts its tmpfs when that is not there.
    pub fn open(dir: PathBuf) -> std::io::Result<Pins> {
        std::fs::create_dir_all(&dir)?;
        let dir = dir.canonicalize()?;
        if !mounted(&dir)? {
            let options = [FsOption::Value(c"mode", c"711"), FsOption::Value(c"size", c"16m")];
            let set = attr::NOSUID | attr::NODEV | attr::NOEXEC;
            let tmpfs = sys::mount::create(c"tmpfs", Some(c"orlop"), &options, set)?;
            sys::mount::attach_at(&tmpfs, dir.as_path())?;
            sys::mount::set_attributes(&tmpfs, false, 0, 0, Some(Propagation::Private))?;
        }
        Ok(Pins { dir })
    }

    /// Where a sandbox's pins are.
    pub fn of(&self, id: &str) -> PathBuf {
        self.dir.join(id)
    }

    /// A directory for mounts that live for a moment.
    pub fn scratch(&self) -> &Path {
        &self.dir
    }

    /// Names of all sandboxes that have pins.
    pub fn all(&self) -> std::io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.dir)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }

    /// Makes a sandbox's namespaces with host name and sysctls (as paths below `/proc/sys`) set, and its shm.
    pub fn make(
        &self,
        spec: &SandboxSpec,
        sysctls: &[(String, String)],
        label: Option<&str>,
    ) -> Result<(), RuntimeError> {
        let dir = self.of(spec.id.as_str());
        std::fs::create_dir(&dir).map_err(RuntimeError::io(format!("make {}", dir.display())))?;
        RuntimeError::fault("pins: make namespaces")?;
        let modes = [&spec.namespaces.net, &spec.namespaces.ipc, &spec.namespaces.uts];
        let wanted: Vec<(Kind, &str)> = KINDS
            .into_iter()
            .zip(modes)
            .filter(|(_, mode)| **mode != NamespaceMode::Node)
            .map(|(kind, _)| kind)
            .collect();
        let kinds: Vec<Kind> = wanted.iter().map(|(kind, _)| *kind).collect();
        let own_uts = spec.namespaces.uts != NamespaceMode::Node;
        let setup = || -> Result<(), RuntimeError> {
            if own_uts {
                rustix::system::sethostname(spec.hostname.as_bytes()).map_err(|errno| {
                    RuntimeError::io(format!("set host name {:?}", spec.hostname))(errno.into())
                })?;
            }
            if sysctls.is_empty() {
                return Ok(());
            }
            let procfs = sys::sysctl::Procfs::open()
                .map_err(|errno| RuntimeError::io("open a procfs for sysctls")(errno.into()))?;
            for (path, value) in sysctls {
                let file = format!("sys/{path}");
                let mut written = procfs.write(file.as_str(), value.as_bytes());
                if let (Err(sys::Errno::ACCESS | sys::Errno::PERM), Some(ids)) =
                    (written, &spec.user_namespace)
                {
                    // Some belong to the root of the user namespace alone. This thread ends with the work.
                    written = sys::process::become_keeping_rights(ids.users.host, ids.groups.host)
                        .and_then(|()| procfs.write(file.as_str(), value.as_bytes()));
                }
                written.map_err(|errno| {
                    RuntimeError::io(format!("set sysctl {path} to {value:?}"))(errno.into())
                })?;
            }
            Ok(())
        };
        if let Some(ids) = &spec.user_namespace {
            let (user, others) = sys::namespace::create_user(ids.users.into(), ids.groups.into(), &kinds)
                .map_err(namespace_error)?;
            let borrowed: Vec<_> = others.iter().map(AsFd::as_fd).collect();
            sys::namespace::in_namespaces(&borrowed, setup)
                .map_err(RuntimeError::io("enter the new namespaces"))??;
            sys::namespace::pin(&user, &dir.join(USER)).map_err(namespace_error)?;
            for ((_, name), descriptor) in wanted.iter().zip(&others) {
                sys::namespace::pin(descriptor, &dir.join(name)).map_err(namespace_error)?;
            }
        } else if !kinds.is_empty() {
            let (descriptors, outcome) = sys::namespace::create(&kinds, setup).map_err(namespace_error)?;
            outcome?;
            for ((_, name), descriptor) in wanted.iter().zip(&descriptors) {
                RuntimeError::fault("pins: pin a namespace")?;
                sys::namespace::pin(descriptor, &dir.join(name)).map_err(namespace_error)?;
            }
        }
        if spec.namespaces.ipc != NamespaceMode::Node {
            RuntimeError::fault("pins: mount shared memory")?;
            let owner = spec.user_namespace.map_or((0, 0), |ids| (ids.users.host, ids.groups.host));
            self.make_shm(&dir, spec.shm_size.unwrap_or(SHM_SIZE), owner, label)?;
        }
        Ok(())
    }

    /// Whether all that [`Pins::make`] pinned is there.
    pub fn stand(&self, spec: &SandboxSpec) -> bool {
        let dir = self.of(spec.id.as_str());
        let modes = [&spec.namespaces.net, &spec.namespaces.ipc, &spec.namespaces.uts];
        let own = |mode: &NamespaceMode| *mode != NamespaceMode::Node;
        KINDS.iter().zip(modes).all(|((_, name), mode)| !own(mode) || dir.join(name).exists())
            && (spec.user_namespace.is_none() || dir.join(USER).exists())
    }

    fn make_shm(
        &self,
        dir: &Path,
        size: u64,
        owner: (u32, u32),
        label: Option<&str>,
    ) -> Result<(), RuntimeError> {
        let path = dir.join("shm");
        let step = || format!("mount {}", path.display());
        let size = crate::plan::text(size.to_string().as_bytes())?;
        let (uid, gid) = (
            crate::plan::text(owner.0.to_string().as_bytes())?,
            crate::plan::text(owner.1.to_string().as_bytes())?,
        );
        let context = label.map(|label| crate::plan::text(label.as_bytes())).transpose()?;
        let mut options = vec![
            FsOption::Value(c"mode", c"1777"),
            FsOption::Value(c"size", &size),
            FsOption::Value(c"uid", &uid),
            FsOption::Value(c"gid", &gid),
        ];
        options.extend(context.as_deref().map(|context| FsOption::Value(c"context", context)));
        let set = attr::NOSUID | attr::NODEV | attr::NOEXEC;
        rustix::fs::mkdir(&path, Mode::from_raw_mode(0o700))
            .and_then(|()| sys::mount::create(c"tmpfs", Some(c"shm"), &options, set))
            .and_then(|tmpfs| sys::mount::attach_at(&tmpfs, path.as_path()))
            .map_err(|errno| RuntimeError::io(step())(errno.into()))
    }

    /// Gives a sandbox's pins another name, so that they can be dropped later and the id is free at once. Gives
    /// nothing when there are none.
    pub fn set_aside(&self, id: &str) -> Result<Option<String>, RuntimeError> {
        // No id has a dot in it, so `all` tells it from a sandbox's.
        let aside = format!(".{id}-{}", uuid::Uuid::new_v4().simple());
        RuntimeError::fault("pins: set them aside")?;
        match std::fs::rename(self.of(id), self.of(&aside)) {
            Ok(()) => Ok(Some(aside)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(RuntimeError::io(format!("set the namespaces of {id} aside"))(error)),
        }
    }

    /// Drops a sandbox's pins. Missing ones are fine.
    pub fn drop(&self, id: &str) -> Result<(), RuntimeError> {
        let dir = self.of(id);
        for name in KINDS.iter().map(|(_, name)| *name).chain([USER]) {
            RuntimeError::fault("pins: drop a namespace")?;
            sys::namespace::unpin(&dir.join(name)).map_err(namespace_error)?;
        }
        let step = || format!("remove {}", dir.display());
        match sys::mount::unmount(dir.join("shm").as_path(), UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) | Err(sys::Errno::INVAL | sys::Errno::NOENT) => {}
            Err(errno) => return Err(RuntimeError::io(step())(errno.into())),
        }
        RuntimeError::fault("pins: remove their directory")?;
        match std::fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(RuntimeError::io(step())(error))
            }
            _ => Ok(()),
        }
    }

    /// Drops everything, with the tmpfs itself.
    pub fn destroy(&self) -> std::io::Result<()> {
        if mounted(&self.dir)? {
            sys::mount::unmount(self.dir.as_path(), UnmountFlags::DETACH)?;
        }
        match std::fs::remove_dir(&self.dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn mounted(dir: &Path) -> std::io::Result<bool> {
    Ok(sys::mountinfo::read()?.iter().any(|entry| entry.target == dir))
}

fn namespace_error(error: NamespaceError) -> RuntimeError {
    let source = match &error {
        NamespaceError::Thread(source) => std::io::Error::from(source.kind()),
        NamespaceError::Create { source, .. }
        | NamespaceError::Map { source, .. }
        | NamespaceError::Open { source, .. }
        | NamespaceError::Pin { source, .. } => (*source).into(),
    };
    RuntimeError::io(error.to_string())(source)
}
