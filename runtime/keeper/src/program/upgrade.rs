//! Re-executing the keeper: the state goes through a memfd, the descriptors stay open.
//!
//! Guarantees: no container notices and no byte is lost: pipes, partial lines, the daemon's
//! connection and the children themselves survive exec. If the new program cannot be executed the
//! old one goes on.

use std::ffi::CString;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use rustix::io::FdFlags;
use serde::{Deserialize, Serialize};
use sys::Errno;
use sys::process::{Strings, exec_fd, inherited};

use super::connection::Connection;
use super::container::{Attached, Container, Output};
use super::log::{Lines, LogFile, Stream};
use super::requests::{done, os};
use super::server::{Exec, Server};
use super::{ProgramError, step};
use crate::plan::Stdio;
use crate::protocol::{Exit, ProcessId, UnixNanos};

/// The format of [`Saved`]. A change of the structs below needs a new number, and a reader of the
/// old one as long as such keepers may run.
const FORMAT: u32 = 1;

/// Descriptors are numbers here: they stay open over the exec.
#[derive(Debug, Serialize, Deserialize)]
struct Saved {
    listener: RawFd,
    daemon: Option<SavedDaemon>,
    containers: Vec<(u32, SavedContainer)>,
    execs: Vec<(u32, SavedExec)>,
    next_key: u32,
    descriptor_limit: (u64, u64),
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedDaemon {
    socket: RawFd,
    serial: u32,
    greeted: bool,
    /// The request for the upgrade, answered by the new program.
    number: u64,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedContainer {
    id: String,
    init: bool,
    process: ProcessId,
    started_at: UnixNanos,
    pidfd: Option<RawFd>,
    child: bool,
    exit: Option<Exit>,
    stdio: Stdio,
    stdin_once: bool,
    stdin: Option<RawFd>,
    stdout: Option<(RawFd, Lines)>,
    stderr: Option<(RawFd, Lines)>,
    log: Option<(RawFd, u64)>,
    cgroup: Option<RawFd>,
    attached: Vec<(RawFd, Stream)>,
}

#[derive(Debug, Serialize, Deserialize)]
struct SavedExec {
    container: String,
    id: String,
    pidfd: RawFd,
}

/// Where the keeper listens; empty if the kernel doesn't tell.
fn socket_path(listener: &OwnedFd) -> CString {
    let name = rustix::net::getsockname(listener).ok();
    let unix = name.and_then(|name| rustix::net::SocketAddrUnix::try_from(name).ok());
    unix.and_then(|unix| unix.path().map(CString::from)).unwrap_or_default()
}

impl Server {
    /// Replaces this program; on failure tells the daemon and goes on.
    pub(super) fn re_execute(&mut self, number: u64, binary: OwnedFd) {
        // What is queued for the daemon would be lost: wait for the next round.
        if self.daemon.as_mut().is_some_and(|daemon| daemon.flush() && daemon.is_waiting()) {
            self.upgrade = Some((number, binary));
            return;
        }
        // The new program makes one of its own kind.
        self.dismiss_usher();
        let errno = match self.save(number) {
            Ok((memfd, numbers)) => {
                let set = |flags: FdFlags| {
                    numbers.iter().try_for_each(|number| {
                        // SAFETY: the numbers were just taken from owners in `self` and `memfd`.
                        let fd = unsafe { std::os::fd::BorrowedFd::borrow_raw(*number) };
                        rustix::io::fcntl_setfd(fd, flags)
                    })
                };
                let resume = CString::new(memfd.as_raw_fd().to_string()).expect("digits hold no NUL");
                let socket = socket_path(&self.listener);
                let words = vec![
                    c"orlop-keeper".to_owned(),
                    c"--resume".to_owned(),
                    resume,
                    c"--socket".to_owned(),
                    socket,
                ];
                let args = Strings::new(words);
                let errno = match set(FdFlags::empty()) {
                    Ok(()) => exec_fd(&binary, &args, &Strings::new(Vec::new())),
                    Err(errno) => errno,
                };
                // Still here: everything as before.
                let _ = set(FdFlags::CLOEXEC);
                errno
            }
            Err(errno) => errno,
        };
        self.reply(number, Err(os("execute the new keeper", errno)));
    }

    /// The state in a memfd, and the numbers of all descriptors that must stay open.
    fn save(&self, number: u64) -> sys::Result<(OwnedFd, Vec<RawFd>)> {
        let mut numbers = Vec::new();
        let mut keep = |fd: &OwnedFd| {
            numbers.push(fd.as_raw_fd());
            fd.as_raw_fd()
        };
        let daemon = self.daemon.as_ref().map(|daemon| SavedDaemon {
            socket: keep(&daemon.socket),
            serial: daemon.serial,
            greeted: daemon.greeted,
            number,
        });
        let containers = self.containers.iter().map(|(key, c)| {
            let saved = SavedContainer {
                id: c.id.clone(),
                init: c.init,
                process: c.process,
                started_at: c.started_at,
                pidfd: c.pidfd.as_ref().map(&mut keep),
                child: c.child,
                exit: c.exit,
                stdio: c.stdio,
                stdin_once: c.stdin_once,
                stdin: c.stdin.as_ref().map(&mut keep),
                stdout: c.stdout.as_ref().map(|o| (keep(&o.fd), o.lines.clone())),
                stderr: c.stderr.as_ref().map(|o| (keep(&o.fd), o.lines.clone())),
                log: c.log.as_ref().map(|log| (keep(log.fd()), log.lost)),
                cgroup: c.cgroup.as_ref().map(|group| group.fd().as_raw_fd()),
                attached: c.attached.iter().map(|a| (keep(&a.fd), a.stream)).collect(),
            };
            (*key, saved)
        });
        let containers: Vec<(u32, SavedContainer)> = containers.collect();
        let exec =
            |exec: &Exec, pidfd| SavedExec { container: exec.container.clone(), id: exec.id.clone(), pidfd };
        let execs = self.execs.iter().map(|(key, e)| (*key, exec(e, keep(&e.pidfd)))).collect();
        let listener = keep(&self.listener);
        numbers.extend(containers.iter().filter_map(|(_, c)| c.cgroup));
        let (next_key, descriptor_limit) = (self.next_key, self.descriptor_limit);
        let saved = Saved { listener, daemon, containers, execs, next_key, descriptor_limit };
        let bytes = postcard::to_extend(&(FORMAT, saved), Vec::new()).map_err(|_| Errno::INVAL)?;
        let memfd = sys::memfd::sealed(c"orlop-keeper-state", &bytes)?;
        numbers.push(memfd.as_raw_fd());
        Ok((memfd, numbers))
    }
}

/// Goes on with the state that the program before the upgrade left in descriptor `number`.
///
/// # Errors
/// When the state is missing or of another format, or a kernel call fails.
pub fn resume(number: RawFd) -> Result<Server, ProgramError> {
    let fd = |number: RawFd| {
        // SAFETY: called once for each number of the saved state, at the start of the program,
        // before anything else owns a descriptor above 2.
        step("take over a descriptor", unsafe { inherited(number) })
    };
    let memfd = fd(number)?;
    let bytes = step("read the state", sys::memfd::read(&memfd))?;
    let (format, rest): (u32, _) = postcard::take_from_bytes(&bytes).map_err(ProgramError::Resume)?;
    if format != FORMAT {
        return Err(ProgramError::Resume(postcard::Error::DeserializeBadEncoding));
    }
    let saved: Saved = postcard::from_bytes(rest).map_err(ProgramError::Resume)?;
    let mut taken = Vec::new();
    for (key, from) in saved.containers {
        taken.push((key, restore(from, &fd)?));
    }
    let mut execs = Vec::new();
    for (key, from) in saved.execs {
        execs.push((key, Exec { container: from.container, id: from.id, pidfd: fd(from.pidfd)? }));
    }
    let listener = fd(saved.listener)?;
    let daemon = saved.daemon.map(|daemon| fd(daemon.socket).map(|socket| (socket, daemon))).transpose()?;

    // Only now: the server opens descriptors of its own.
    let mut server = Server::new(listener)?;
    server.next_key = saved.next_key;
    server.descriptor_limit = saved.descriptor_limit;
    for (key, container) in taken {
        step("watch a container", server.watch_container(key, &container))?;
        server.containers.insert(key, container);
    }
    for (key, exec) in execs {
        step("watch an exec", server.watch_exec(key, &exec.pidfd))?;
        server.execs.insert(key, exec);
    }
    if let Some((socket, daemon)) = daemon {
        server.daemon = Some(Connection::new(socket, daemon.serial, daemon.greeted));
        server.watch_daemon();
        server.reply(daemon.number, done());
    }
    Ok(server)
}

fn restore(
    from: SavedContainer,
    fd: &impl Fn(RawFd) -> Result<OwnedFd, ProgramError>,
) -> Result<Container, ProgramError> {
    let take = |number: Option<RawFd>| number.map(fd).transpose();
    let output = |saved: Option<(RawFd, Lines)>| {
        saved.map(|(number, lines)| fd(number).map(|fd| Output { fd, lines })).transpose()
    };
    let mut attached = Vec::new();
    for (number, stream) in from.attached {
        attached.push(Attached { fd: fd(number)?, stream });
    }
    Ok(Container {
        id: from.id,
        init: from.init,
        process: from.process,
        started_at: from.started_at,
        pidfd: take(from.pidfd)?,
        child: from.child,
        exit: from.exit,
        stdio: from.stdio,
        stdin_once: from.stdin_once,
        stdin: take(from.stdin)?,
        stdout: output(from.stdout)?,
        stderr: output(from.stderr)?,
        log: from.log.map(|(number, lost)| fd(number).map(|fd| LogFile::new(fd, lost))).transpose()?,
        cgroup: take(from.cgroup)?.map(sys::cgroup::Group::from_fd),
        attached,
    })
}
