//! Who the program is and what it may do: the last things before its exec.
//!
//! Without `no_new_privileges` the filter needs CAP_SYS_ADMIN, so it is installed before the last
//! capset; with it, last of all. Either way a filter sees as few of our own calls as possible.

use std::os::fd::BorrowedFd;

use rustix::fs::{Mode, OFlags};
use rustix::process::{DumpableBehavior, Gid, Uid};
use rustix::thread as thread_calls;
use sys::Errno;
use sys::caps;

use super::super::report::{At, Op, Severity, Stage, Trouble};
use super::{Job, close_all_but, paths};
use crate::plan::{ProcessPlan, TargetKind};

/// What [`Job::restrict`] still has to do.
#[derive(Debug)]
pub struct Restrictions {
    /// The capability sets the program runs with.
    last: caps::Sets,
    /// What this process may have until then.
    available: u64,
}

impl Job<'_> {
    /// Limits, user and working directory.
    pub(super) fn become_user(&self, root: BorrowedFd<'_>) -> Result<Restrictions, Trouble> {
        let process = self.process();
        self.set_label()?;
        set_limits(process, self.descriptor_limit)?;
        let available = caps::get().at(Stage::Capabilities, Op::Capset)?.permitted;
        let wanted = process.capabilities;
        self.warn_of_missing(wanted.permitted | wanted.effective | wanted.ambient, available);

        caps::limit_bounding(wanted.bounding).at(Stage::Capabilities, Op::Prctl)?;
        caps::keep_over_setuid(true).at(Stage::Capabilities, Op::Prctl)?;
        let entered = enter_directory(root, process);
        change_user(process)?;
        // Changing the user made it what the system's setting says.
        rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable).at(Stage::User, Op::Prctl)?;
        match entered {
            // Root may be squashed on a network filesystem where the user is not.
            Err(Errno::ACCESS | Errno::PERM) => {
                let effective = wanted.effective & available;
                let limited = caps::Sets { effective, permitted: available, inheritable: 0 };
                caps::set(limited).at(Stage::Capabilities, Op::Capset)?;
                enter_directory(root, process).at(Stage::Cwd, Op::Chdir)?;
            }
            other => other.at(Stage::Cwd, Op::Chdir)?,
        }
        rustix::process::umask(Mode::from_raw_mode(process.user.umask.unwrap_or(0o022)));
        let last = caps::Sets {
            effective: wanted.effective & available,
            permitted: wanted.permitted & available,
            inheritable: wanted.ambient & available,
        };
        Ok(Restrictions { last, available })
    }

    /// Closes all descriptors, then limits capabilities and system calls for good. No owner of a
    /// descriptor may live in this process but those of the parent's frames, which never run again.
    pub(super) fn restrict(&self, Restrictions { last, available }: Restrictions) -> Result<(), Trouble> {
        // From here on failures are reported on the only descriptor left above 2.
        self.report.set(close_all_but(self.report.get())?);
        let process = self.process();
        let ambient = process.capabilities.ambient & last.permitted;
        let install = || match (&process.seccomp, &self.entry) {
            (Some(filter), None) => {
                sys::seccomp::install(&filter.program, filter.flags).at(Stage::Seccomp, Op::Seccomp)
            }
            (Some(filter), Some(entry)) => {
                let program = sys::seccomp::with_passage(&filter.program, entry.key);
                sys::seccomp::install(&program, filter.flags).at(Stage::Seccomp, Op::Seccomp)
            }
            (None, _) => Ok(()),
        };
        if process.no_new_privileges {
            caps::set(last).at(Stage::Capabilities, Op::Capset)?;
            caps::set_ambient(ambient).at(Stage::Capabilities, Op::Prctl)?;
            thread_calls::set_no_new_privs(true).at(Stage::Capabilities, Op::Prctl)?;
            return install();
        }
        if process.seccomp.is_some() {
            let admin = available & (1 << caps::number::SYS_ADMIN);
            let able =
                caps::Sets { effective: last.effective | admin, permitted: last.permitted | admin, ..last };
            caps::set(able).at(Stage::Capabilities, Op::Capset)?;
            caps::set_ambient(ambient).at(Stage::Capabilities, Op::Prctl)?;
            install()?;
            return caps::set(last).at(Stage::Capabilities, Op::Capset);
        }
        caps::set(last).at(Stage::Capabilities, Op::Capset)?;
        caps::set_ambient(ambient).at(Stage::Capabilities, Op::Prctl)
    }

    fn warn_of_missing(&self, wanted: u64, available: u64) {
        let missing = wanted & !available;
        for number in (0..64).filter(|n| missing >> n & 1 == 1) {
            let trouble =
                Trouble { stage: Stage::Capabilities, op: Op::Check, index: number, errno: Errno::PERM };
            self.send(Severity::Warning, trouble, None);
        }
    }
}

fn set_limits(process: &ProcessPlan, (soft, hard): (u64, u64)) -> Result<(), Trouble> {
    // The keeper raised its own soft limit; lowering it again is always allowed.
    let _ = sys::process::set_limit(libc::RLIMIT_NOFILE, soft, hard);
    for (index, limit) in process.rlimits.iter().enumerate() {
        sys::process::set_limit(limit.resource, limit.soft, limit.hard).map_err(|errno| Trouble {
            stage: Stage::Rlimit,
            op: Op::Setrlimit,
            index: index as u32,
            errno,
        })?;
    }
    Ok(())
}

fn change_user(process: &ProcessPlan) -> Result<(), Trouble> {
    let user = &process.user;
    sys::process::set_groups(&user.groups).at(Stage::User, Op::Setgroups)?;
    let gid = Gid::from_raw(user.gid);
    thread_calls::set_thread_res_gid(gid, gid, gid).at(Stage::User, Op::Setgid)?;
    let uid = Uid::from_raw(user.uid);
    thread_calls::set_thread_res_uid(uid, uid, uid).at(Stage::User, Op::Setuid)
}

/// Enters the working directory, making it when it is missing. The walk cannot leave the root,
/// not even through `/proc/self/fd`.
fn enter_directory(root: BorrowedFd<'_>, process: &ProcessPlan) -> sys::Result<()> {
    let dir = match paths::open(root, &process.cwd, OFlags::PATH | OFlags::DIRECTORY, false) {
        Err(Errno::NOENT) => paths::ensure(root, &process.cwd, TargetKind::Directory, false)?,
        other => other?,
    };
    rustix::process::fchdir(dir)
}
