//! The keeper's side of the usher: see [`super::usher`].

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::FdFlags;
use sys::process::Strings;
use sys::{Errno, Result};

use super::server::Server;
use super::usher::{self, Order, Plan};
use crate::plan::{ExecPlan, LaunchPlan};

/// The running usher.
#[derive(Debug)]
pub struct Usher {
    orders: OwnedFd,
    pidfd: OwnedFd,
}

/// What an order is carried out with, and what comes back.
#[derive(Debug)]
pub struct Ordered {
    /// Tells the numbers of the processes.
    pub note: OwnedFd,
    /// Where they report to.
    pub report: OwnedFd,
}

impl Server {
    /// Has the usher make a process for a plan, directly in a cgroup.
    pub(super) fn order(
        &mut self,
        plan: Plan<&ExecPlan, &LaunchPlan>,
        cgroup: Option<BorrowedFd<'_>>,
        fds: &[BorrowedFd<'_>],
    ) -> Result<Ordered> {
        let order = Order { descriptor_limit: self.descriptor_limit, plan };
        let bytes = postcard::to_extend(&order, Vec::new()).map_err(|_| Errno::INVAL)?;
        let note = sys::entry::note(&bytes)?;
        let (ours, report) = sys::socket::pair()?;
        let mut sent = usher::send_order(self.usher()?, &note, &report, cgroup, fds);
        if matches!(sent, Err(Errno::PIPE | Errno::CONNRESET)) {
            // It was killed: another one does as well.
            self.dismiss_usher();
            sent = usher::send_order(self.usher()?, &note, &report, cgroup, fds);
        }
        sent.map(|()| Ordered { note, report: ours })
    }

    /// The usher's socket. It is started when there is none.
    fn usher(&mut self) -> Result<&OwnedFd> {
        let usher = match self.usher.take() {
            Some(usher) => usher,
            None => self.start_usher()?,
        };
        Ok(&self.usher.insert(usher).orders)
    }

    fn start_usher(&self) -> Result<Usher> {
        let (orders, theirs) = sys::socket::pair()?;
        let number = CString::new(theirs.as_raw_fd().to_string()).map_err(|_| Errno::INVAL)?;
        let args = Strings::new(vec![c"orlop-usher".to_owned(), c"usher".to_owned(), number]);
        let env = Strings::new(Vec::new());
        let child = || {
            sys::process::reset_signals();
            if rustix::io::fcntl_setfd(&theirs, FdFlags::empty()).is_ok() {
                // Whoever waits for an order sees that nobody carries it out.
                sys::process::exec_fd(self.program.as_fd(), &args, &env);
            }
        };
        let (_, pidfd) = self.clone_child(0, None, child)?;
        Ok(Usher { orders, pidfd })
    }

    /// Ends the usher, if there is one. It never waits for a container, so this does not take long.
    pub(super) fn dismiss_usher(&mut self) {
        if let Some(Usher { orders, pidfd }) = self.usher.take() {
            drop(orders);
            // It ends by itself, too; one that has ended is fine.
            let _ = sys::process::pidfd_signal(&pidfd, libc::SIGKILL);
            let _ = sys::process::wait(&pidfd);
        }
    }
}
