//! The init of a shared pid namespace, between clone and exec.
//!
//! Guarantees: nobody else is in its pid namespace before it has become nobody. Its mount namespace shows nothing but
//! a procfs, which the pod's containers take over: see [`super::procfs`].

use std::os::fd::BorrowedFd;

use rustix::io::FdFlags;
use sys::process::{Strings, ns};

use super::super::report::{self, At, Op, Severity, Stage, Trouble};
use super::{procfs, users};

/// What the child needs, made by the parent before the clone.
#[derive(Debug)]
pub struct Birth<'a> {
    /// The user namespace, if it is not the node's.
    pub user_namespace: Option<BorrowedFd<'a>>,
    /// Namespaces that it joins.
    pub joins: Vec<BorrowedFd<'a>>,
    /// Arguments.
    pub args: Strings,
    /// Environment.
    pub env: Strings,
    /// The program.
    pub program: BorrowedFd<'a>,
    /// Where to report; the program closes it when it has become nobody.
    pub report: BorrowedFd<'a>,
}

impl Birth<'_> {
    /// Carries it out. Returns when it failed, which was reported.
    pub fn run(&self) {
        if let Err(trouble) = self.carry_out() {
            // If nobody listens any more, nobody waits.
            let _ = sys::socket::send(self.report, &report::encode(Severity::Failure, trouble), &[]);
        }
    }

    fn carry_out(&self) -> Result<(), Trouble> {
        sys::process::reset_signals();
        sys::keyring::own_session().at(Stage::Keyring, Op::Keyctl)?;
        let (place, inner) = match self.user_namespace {
            Some(user) => {
                users::show_kernel_filesystems()?;
                sys::namespace::join(user).at(Stage::Users, Op::Setns)?;
                users::be_born(ns::PID | ns::MOUNT, |trouble, pidfd| {
                    let bytes = report::encode(Severity::Born, trouble);
                    sys::socket::send(self.report, &bytes, &[pidfd]).is_ok()
                })?;
                users::become_root()?;
                (users::STAGE, c"/rootfs/root/proc")
            }
            None => (super::super::isolate::ROOTFS, c"/rootfs/proc"),
        };
        procfs::show_own(place, inner).at(Stage::Procfs, Op::Fsmount)?;
        self.joins.iter().try_for_each(sys::namespace::join).at(Stage::Namespace, Op::Setns)?;
        rustix::process::setsid().at(Stage::Session, Op::Setsid)?;
        // Standard error may be the daemon's log; the init says nothing.
        for number in [1, 2] {
            // SAFETY: this process is about to exec and owns none of the numbers 0 to 2.
            unsafe { sys::process::place_fd(rustix::stdio::stdin(), number) }.at(Stage::Stdio, Op::Dup)?;
        }
        rustix::io::fcntl_setfd(self.report, FdFlags::empty()).at(Stage::Descriptors, Op::Dup)?;
        Err(sys::process::exec_fd(self.program, &self.args, &self.env)).at(Stage::Exec, Op::Execve)
    }
}
