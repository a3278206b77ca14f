//! What this kernel can do beyond Linux 5.15, probed once.

use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use crate::Errno;

/// Kernel features. Probed by trying, never by version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Features {
    /// Release as `uname -r` says, for messages only.
    pub release: String,
    /// The exit code of a process that is no child can be asked for (Linux 6.15).
    pub pidfd_exit_info: bool,
    /// `cgroup.kill` exists (Linux 5.14).
    pub cgroup_kill: bool,
    /// The mount API (`fsopen` and friends) works for us.
    pub mount_api: bool,
    /// `mount_setattr(2)` exists (Linux 5.12).
    pub mount_setattr: bool,
    /// A detached mount can be the target of a mount (Linux 6.15).
    pub mount_on_detached: bool,
    /// overlayfs takes its lower directories one by one, `lowerdir+` (Linux 6.7).
    pub overlay_lowerdir_append: bool,
    /// Controllers of the cgroup2 hierarchy.
    pub cgroup_controllers: Vec<String>,
    /// Where the cgroup2 hierarchy was found; `None` when there is none.
    pub cgroup2: Option<crate::cgroup::Found>,
}

/// The features of the running kernel.
pub fn get() -> &'static Features {
    static FEATURES: OnceLock<Features> = OnceLock::new();
    FEATURES.get_or_init(probe)
}

/// Whether a tmpfs can be mounted with mapped ids (Linux 6.3). Probed once, when first asked.
pub fn mapped_tmpfs() -> bool {
    static MAPPED: OnceLock<bool> = OnceLock::new();
    *MAPPED.get_or_init(|| {
        let range = crate::namespace::IdRange { host: 65_536, length: 65_536 };
        let Ok((user, _)) = crate::namespace::create_user(range, range, &[]) else { return false };
        let tmpfs = crate::mount::create(c"tmpfs", None, &[], 0);
        tmpfs.is_ok_and(|tmpfs| crate::mount::map_ids(&tmpfs, false, &user).is_ok())
    })
}

fn probe() -> Features {
    let tmpfs = crate::mount::create(c"tmpfs", None, &[], 0);
    let cgroup = crate::cgroup::root().ok();
    let in_child = |name: &str| {
        // The root group has no cgroup.kill, so look at any child, or make one.
        let (root, _) = cgroup.as_ref()?;
        if let Some(child) = root.children().ok()?.first() {
            return root.open(child).ok().map(|group| has_file(&group, name));
        }
        let probe = format!("orlop-probe-{}", std::process::id());
        let group = root.create(&probe).ok()?;
        let found = has_file(&group, name);
        let _ = root.remove(&probe);
        Some(found)
    };
    Features {
        release: rustix::system::uname().release().to_string_lossy().into_owned(),
        pidfd_exit_info: pidfd_exit_info(),
        cgroup_kill: in_child("cgroup.kill").unwrap_or(false),
        mount_api: tmpfs.is_ok(),
        mount_setattr: tmpfs.as_ref().is_ok_and(|fd| {
            crate::mount::set_attributes(fd, false, crate::mount::attr::NODEV, 0, None).is_ok()
        }),
        mount_on_detached: tmpfs.as_ref().is_ok_and(mounts_on_detached),
        overlay_lowerdir_append: overlay_lowerdir_append(),
        cgroup_controllers: cgroup.as_ref().and_then(|(root, _)| root.controllers().ok()).unwrap_or_default(),
        cgroup2: cgroup.map(|(_, found)| found),
    }
}

fn has_file(group: &crate::cgroup::Group, name: &str) -> bool {
    rustix::fs::accessat(group.fd(), name, rustix::fs::Access::EXISTS, rustix::fs::AtFlags::empty()).is_ok()
}

fn mounts_on_detached(tmpfs: &OwnedFd) -> bool {
    let other = crate::mount::create(c"tmpfs", None, &[], 0);
    other.is_ok_and(|other| crate::mount::attach(&other, tmpfs).is_ok())
}

fn overlay_lowerdir_append() -> bool {
    // Before 6.5 overlayfs collects any key, and refuses the unknown ones only when it is mounted. From then on an
    // unknown key is refused at once; the directory of a known one is only looked up.
    crate::mount::open_context(c"overlay").is_ok_and(|context| {
        let refused = |key| rustix::mount::fsconfig_set_string(&context, key, c"/") == Err(Errno::INVAL);
        refused(c"no-such-option") && !refused(c"lowerdir+")
    })
}

fn pidfd_exit_info() -> bool {
    let own = crate::process::pidfd_open(std::process::id() as i32);
    // A living process has no exit information; a kernel that lacks the request refuses it.
    // 6.13 and 6.14 have the request without the exit code, so reap a child and ask then.
    if !own.is_ok_and(|fd| crate::process::exit_info(&fd).is_ok()) {
        return false;
    }
    // SAFETY: the child makes one system call and is gone.
    match unsafe { crate::process::clone3(0, None, false) } {
        Ok(crate::process::Cloned::Child) => crate::process::exit_now(7),
        Ok(crate::process::Cloned::Parent { pidfd, .. }) => {
            crate::process::wait(&pidfd).is_ok()
                && crate::process::exit_info(&pidfd) == Ok(Some(crate::process::ExitStatus::Code(7)))
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_probe_runs_and_leaves_nothing() {
        println!("{:?}", super::get());
    }
}
