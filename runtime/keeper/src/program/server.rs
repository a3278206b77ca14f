//! The event loop: who became ready, and what follows.

use std::collections::BTreeMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};

use rustix::event::epoll::{self, EventData, EventFlags};
use sys::Errno;
use sys::process::ExitStatus;
use sys::sysctl::Procfs;

use super::connection::Connection;
use super::container::{CHUNK, Container};
use super::launch::Pending;
use super::leaving::Leaving;
use super::log::Stream;
use super::orders::Usher;
use super::{ProgramError, step};
use crate::protocol::{Event, Exit, ExitHow, ToDaemon, UnixNanos};
use crate::wire;

/// Most bytes of output taken up when the main process has ended, before its end is told. A pipe
/// holds less; the limit is for processes that outlive it and go on writing.
const LAST_WORDS: usize = 1024 * 1024;

/// What a descriptor in the epoll set is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// The listening socket.
    Listener,
    /// The daemon.
    Daemon,
    /// The report of a child that is starting.
    Report(u32),
    /// A container's main process.
    Process(u32),
    /// A container's output.
    Output(u32, Stream),
    /// An exec's process.
    Exec(u32),
    /// A reader of a container's live output: that it has gone.
    Attached(u32),
    /// Signals of children's ends, for those that were not started here.
    Children,
    /// A process that ends.
    Leaving(u32),
}

impl Source {
    fn token(self) -> u64 {
        let (kind, key) = match self {
            Source::Listener => (0, 0),
            Source::Daemon => (1, 0),
            Source::Report(key) => (2, key),
            Source::Process(key) => (3, key),
            Source::Output(key, Stream::Stdout) => (4, key),
            Source::Output(key, Stream::Stderr) => (5, key),
            Source::Exec(key) => (6, key),
            Source::Children => (7, 0),
            Source::Leaving(key) => (8, key),
            Source::Attached(key) => (9, key),
        };
        kind << 32 | u64::from(key)
    }

    fn from_token(token: u64) -> Option<Source> {
        let key = token as u32;
        Some(match token >> 32 {
            0 => Source::Listener,
            1 => Source::Daemon,
            2 => Source::Report(key),
            3 => Source::Process(key),
            4 => Source::Output(key, Stream::Stdout),
            5 => Source::Output(key, Stream::Stderr),
            6 => Source::Exec(key),
            7 => Source::Children,
            8 => Source::Leaving(key),
            9 => Source::Attached(key),
            _ => return None,
        })
    }
}

/// A running exec.
#[derive(Debug)]
pub struct Exec {
    /// The container.
    pub container: String,
    /// Its id.
    pub id: String,
    /// Its process.
    pub pidfd: OwnedFd,
}

/// The keeper's whole state. Keys are never used twice, so a late event finds nothing.
#[derive(Debug)]
pub struct Server {
    epoll: OwnedFd,
    pub(super) listener: OwnedFd,
    pub(super) daemon: Option<Connection>,
    pub(super) containers: BTreeMap<u32, Container>,
    pub(super) execs: BTreeMap<u32, Exec>,
    pub(super) pending: BTreeMap<u32, Pending>,
    pub(super) leaving: BTreeMap<u32, Leaving>,
    /// Leads processes into containers; made when it is needed.
    pub(super) usher: Option<Usher>,
    /// The request and the binary of an upgrade that waits for starting children.
    pub(super) upgrade: Option<(u64, OwnedFd)>,
    pub(super) next_key: u32,
    pub(super) proc: Procfs,
    pub(super) program: OwnedFd,
    pub(super) quit: bool,
    /// Signals of children's ends; only once something was delegated.
    pub(super) signals: Option<OwnedFd>,
    /// Soft and hard limit of open files that the keeper was started with: what children get.
    pub(super) descriptor_limit: (u64, u64),
    packet: Vec<u8>,
    chunk: Vec<u8>,
    records: Vec<u8>,
}

impl Server {
    /// A keeper without containers.
    ///
    /// # Errors
    /// Those of the kernel calls.
    pub fn new(listener: OwnedFd) -> Result<Server, ProgramError> {
        use rustix::fs::{Mode, OFlags};

        let proc = step("mount a private procfs", Procfs::open())?;
        let open = |path, flags| rustix::fs::openat(proc.fd(), path, flags | OFlags::CLOEXEC, Mode::empty());
        let program = step("open the own program", open(c"self/exe", OFlags::PATH))?;
        let mut server = Server {
            epoll: step("create an epoll", epoll::create(epoll::CreateFlags::CLOEXEC))?,
            listener,
            daemon: None,
            containers: BTreeMap::new(),
            execs: BTreeMap::new(),
            pending: BTreeMap::new(),
            leaving: BTreeMap::new(),
            usher: None,
            upgrade: None,
            next_key: 1,
            proc,
            program,
            quit: false,
            signals: None,
            descriptor_limit: raise_descriptor_limit(),
            packet: vec![0; wire::BUFFER],
            chunk: vec![0; CHUNK],
            records: Vec::new(),
        };
        step("watch the listening socket", server.watch(&server.listener, Source::Listener, EventFlags::IN))?;
        if step("ask whose parent this is", sys::children::is_subreaper())? {
            // A keeper before an upgrade was.
            step("become the parent of orphans", server.adopt_orphans())?;
        }
        Ok(server)
    }

    /// Runs until a daemon asks to quit.
    ///
    /// # Errors
    /// When epoll itself fails.
    pub fn run(mut self) -> Result<(), ProgramError> {
        let mut space = [MaybeUninit::<epoll::Event>::uninit(); 64];
        while !self.quit {
            let limit = self.next_deadline().and_then(|limit| limit.try_into().ok());
            let ready: Vec<(u64, EventFlags)> = match epoll::wait(&self.epoll, &mut space[..], limit.as_ref())
            {
                Ok((events, _)) => events.iter().map(|event| (event.data.u64(), event.flags)).collect(),
                Err(Errno::INTR) => continue,
                Err(source) => return Err(ProgramError::Os { step: "wait for events", source }),
            };
            for (token, flags) in ready {
                if let Some(source) = Source::from_token(token) {
                    self.handle(source, flags);
                }
            }
            self.end_overdue();
            if self.pending.is_empty()
                && let Some((number, binary)) = self.upgrade.take()
            {
                self.re_execute(number, binary);
            }
        }
        Ok(())
    }

    fn handle(&mut self, source: Source, flags: EventFlags) {
        match source {
            Source::Listener => self.accept(),
            Source::Daemon => self.talk(flags),
            Source::Report(key) => self.read_report(key),
            Source::Process(key) => self.process_ready(key, flags),
            Source::Output(key, stream) => self.output_ready(key, stream),
            Source::Exec(key) => self.exec_ready(key),
            Source::Attached(key) => {
                if let Some(container) = self.containers.get_mut(&key) {
                    container.drop_gone();
                }
            }
            Source::Children => self.children_ended(),
            Source::Leaving(key) => self.left(key),
        }
    }

    /// Adds a descriptor to the epoll set. It leaves the set when it is closed.
    pub(super) fn watch(&self, fd: impl AsFd, source: Source, flags: EventFlags) -> sys::Result<()> {
        epoll::add(&self.epoll, fd, EventData::new_u64(source.token()), flags)
    }

    /// Takes a descriptor out of the epoll set. A pidfd that the daemon has a copy of would stay, and be ready for ever.
    pub(super) fn unwatch(&self, fd: impl AsFd) {
        // One that is not in the set is fine.
        let _ = epoll::delete(&self.epoll, fd);
    }

    /// A key that was never used.
    pub(super) fn new_key(&mut self) -> u32 {
        let key = self.next_key;
        self.next_key += 1;
        key
    }

    /// The container of an id.
    pub(super) fn find(&mut self, id: &str) -> Option<(u32, &mut Container)> {
        self.containers.iter_mut().find(|(_, c)| c.id == id).map(|(key, c)| (*key, c))
    }

    /// Takes in a new daemon; an old connection ends.
    fn accept(&mut self) {
        let Ok(socket) = sys::socket::accept(&self.listener) else { return };
        if !sys::socket::peer(&socket).is_ok_and(|peer| peer.uid == 0) {
            return;
        }
        let key = self.new_key();
        self.daemon = Some(Connection::new(socket, key, false));
        self.watch_daemon();
    }

    /// Puts the daemon's socket into the epoll set.
    pub(super) fn watch_daemon(&mut self) {
        let Some(daemon) = &self.daemon else { return };
        if epoll::add(&self.epoll, &daemon.socket, EventData::new_u64(Source::Daemon.token()), EventFlags::IN)
            .is_err()
        {
            self.daemon = None;
        }
    }

    fn talk(&mut self, flags: EventFlags) {
        if flags.contains(EventFlags::OUT) {
            let stands = self.daemon.as_mut().is_none_or(Connection::flush);
            self.after_send(stands);
        }
        let Some(daemon) = &self.daemon else { return };
        let mut packet = std::mem::take(&mut self.packet);
        let received = wire::receive(&daemon.socket, &mut packet);
        self.packet = packet;
        match received {
            Ok(Some((request, fds))) => self.handle_request(request, fds),
            Err(wire::WireError::Receive(Errno::AGAIN | Errno::INTR)) => {}
            // It has gone, or speaks another language: it may connect again.
            Ok(None) | Err(_) => self.daemon = None,
        }
    }

    /// Sends something to the daemon that is connected.
    pub(super) fn send(&mut self, message: &ToDaemon, fds: Vec<OwnedFd>) {
        if let Some(daemon) = &mut self.daemon {
            let stands = daemon.send(message, fds);
            self.after_send(stands);
        }
    }

    fn after_send(&mut self, stands: bool) {
        let Some(daemon) = &mut self.daemon else { return };
        let waits = daemon.is_waiting();
        let flags = if waits { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
        let data = EventData::new_u64(Source::Daemon.token());
        let watched = || epoll::modify(&self.epoll, &daemon.socket, data, flags).is_ok();
        if !stands || (waits != daemon.watched_for_room && !watched()) {
            self.daemon = None;
            return;
        }
        daemon.watched_for_room = waits;
    }

    /// Tells the daemon, if one listens. If not, the state tells it later.
    pub(super) fn tell(&mut self, event: Event) {
        if self.daemon.as_ref().is_some_and(|daemon| daemon.greeted) {
            self.send(&ToDaemon::Event(event), Vec::new());
        }
    }

    fn output_ready(&mut self, key: u32, stream: Stream) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        let (_, failed) = container.pump(stream, now(), &mut self.chunk, &mut self.records);
        if let Some(errno) = failed {
            let id = container.id.clone();
            self.tell(Event::LogFailed {
                id,
                message: format!("write the log: {}", super::report::words(errno)),
            });
        }
    }

    pub(super) fn process_ready(&mut self, key: u32, flags: EventFlags) {
        let Some(container) = self.containers.get(&key) else { return };
        let Some(pidfd) = &container.pidfd else { return };
        let mut held = false;
        let how = if container.child {
            match sys::process::reap(pidfd) {
                Ok(Some(status)) => exit_how(status),
                Err(Errno::INTR) => return,
                Ok(None) => match self.held_status(pidfd) {
                    Some(status) => {
                        held = true;
                        exit_how(status)
                    }
                    None => return,
                },
                Err(_) => ExitHow::Unknown,
            }
        } else {
            match sys::process::exit_info(pidfd) {
                Ok(Some(status)) => exit_how(status),
                // It has ended but is not reaped yet: the kernel tells once it is, with a hang-up.
                Ok(None) if !flags.contains(EventFlags::HUP) => {
                    let data = EventData::new_u64(Source::Process(key).token());
                    if epoll::modify(&self.epoll, pidfd, data, EventFlags::empty()).is_ok() {
                        return;
                    }
                    ExitHow::Unknown
                }
                Ok(None) | Err(_) => ExitHow::Unknown,
            }
        };
        let pidfd = self.containers.get_mut(&key).and_then(|container| container.pidfd.take());
        match pidfd {
            Some(pidfd) if held => self.leave(pidfd, None),
            Some(pidfd) => self.unwatch(pidfd),
            None => {}
        }
        self.ended(key, how);
    }

    /// The main process has ended: takes up its last words, then tells.
    pub(super) fn ended(&mut self, key: u32, how: ExitHow) {
        let Some(container) = self.containers.get_mut(&key) else { return };
        for stream in [Stream::Stdout, Stream::Stderr] {
            container.drain(stream, now(), &mut self.chunk, &mut self.records, LAST_WORDS);
        }
        let exit = Exit { how, oom_killed: container.oom_killed(), at: now() };
        container.exit = Some(exit);
        container.pidfd = None;
        container.stdin = None;
        let id = container.id.clone();
        self.tell(Event::Exited { id, exit });
    }

    pub(super) fn exec_ready(&mut self, key: u32) {
        let Some(exec) = self.execs.get(&key) else { return };
        let (how, held) = match sys::process::reap(&exec.pidfd) {
            Ok(Some(status)) => (exit_how(status), false),
            Err(Errno::INTR) => return,
            Ok(None) => match self.held_status(&exec.pidfd) {
                Some(status) => (exit_how(status), true),
                None => return,
            },
            Err(_) => (ExitHow::Unknown, false),
        };
        if let Some(exec) = self.execs.remove(&key) {
            let oom_killed = how == ExitHow::Signal(libc::SIGKILL)
                && self.find(&exec.container).is_some_and(|(_, container)| container.oom_killed());
            let exit = Exit { how, oom_killed, at: now() };
            // First of all: somebody waits for it.
            self.tell(Event::ExecExited { container: exec.container, id: exec.id, exit });
            match held {
                true => self.leave(exec.pidfd, None),
                false => self.unwatch(exec.pidfd),
            }
        }
    }

    /// Watches all that a container has.
    pub(super) fn watch_container(&self, key: u32, container: &Container) -> sys::Result<()> {
        if let Some(pidfd) = &container.pidfd {
            self.watch(pidfd, Source::Process(key), EventFlags::IN)?;
        }
        let outputs = [(Stream::Stdout, &container.stdout), (Stream::Stderr, &container.stderr)];
        for (stream, output) in outputs {
            if let Some(output) = output {
                self.watch(&output.fd, Source::Output(key, stream), EventFlags::IN)?;
            }
        }
        for attached in &container.attached {
            self.watch_attached(key, &attached.fd)?;
        }
        Ok(())
    }

    /// Watches for a reader's going: a container that writes nothing would hold its pipe for ever. No flag asks for
    /// an error, it is always told.
    pub(super) fn watch_attached(&self, key: u32, fd: impl AsFd) -> sys::Result<()> {
        self.watch(fd, Source::Attached(key), EventFlags::empty())
    }

    /// Ends a container's streams and forgets it.
    pub(super) fn remove(&mut self, key: u32) {
        if let Some(mut container) = self.containers.remove(&key) {
            for stream in [Stream::Stdout, Stream::Stderr] {
                // What is in the pipe belongs to the log; a writer that goes on is cut off.
                container.drain(stream, now(), &mut self.chunk, &mut self.records, LAST_WORDS);
                container.finish(stream, now(), &mut self.records);
            }
        }
    }
}

/// The time.
pub(super) fn now() -> UnixNanos {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    UnixNanos(time.tv_sec * 1_000_000_000 + time.tv_nsec)
}

pub(super) fn exit_how(status: ExitStatus) -> ExitHow {
    match status {
        ExitStatus::Code(code) => ExitHow::Code(code),
        ExitStatus::Signal(signal) => ExitHow::Signal(signal),
    }
}

/// A container needs up to eight descriptors, so the keeper takes what it may have. Returns what
/// it had.
fn raise_descriptor_limit() -> (u64, u64) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let limit = getrlimit(Resource::Nofile);
    // Raising to what is allowed cannot fail.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    (limit.current.unwrap_or(u64::MAX), limit.maximum.unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_tell_sources_apart() {
        let sources = [
            Source::Listener,
            Source::Daemon,
            Source::Report(7),
            Source::Process(7),
            Source::Output(7, Stream::Stdout),
            Source::Output(7, Stream::Stderr),
            Source::Exec(u32::MAX),
            Source::Attached(7),
            Source::Children,
            Source::Leaving(7),
        ];
        for source in sources {
            assert_eq!(Source::from_token(source.token()), Some(source));
        }
        assert_eq!(Source::from_token(99 << 32), None);
    }
}
