//! The daemon's connection to the keeper.
//!
//! Guarantees: calls may be made from many tasks at once; a call that is dropped leaves nothing
//! behind but a reply that nobody reads. After the keeper has gone every call fails with
//! [`ClientError::Disconnected`] and the event receiver ends.
//! Assumes: a tokio runtime with I/O enabled.

use std::collections::HashMap;
use std::ffi::{CString, OsStr};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sys::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};

use crate::delegate::DelegatePlan;
use crate::plan::{ExecPlan, Fds, InitPlan, LaunchPlan};
use crate::protocol::{
    Answer, Event, Failure, HandoverContainer, Hello, Launched, Op, Request, SignalTarget, State, Streams,
    ToDaemon, VERSION,
};
use crate::wire::{self, Packet, WireError};

/// Why a call did not succeed.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens at the socket (any more), or it is not there.
    #[error("connect to the keeper at {path}")]
    Connect {
        /// The socket.
        path: std::path::PathBuf,
        /// Why.
        source: Errno,
    },
    /// The connection was lost before an answer came: the keeper ended, or another daemon took over.
    #[error("the connection to the keeper is closed")]
    Disconnected,
    /// The message could not be carried.
    #[error("talk to the keeper")]
    Wire(#[from] WireError),
    /// The keeper refused or failed.
    #[error(transparent)]
    Keeper(#[from] Failure),
    /// The keeper answered something else than was asked.
    #[error("the keeper's answer does not fit the request: {0}")]
    UnexpectedAnswer(String),
    /// The socket could not be registered with the async runtime.
    #[error("register the keeper's socket")]
    Register(#[source] std::io::Error),
}

type Outcome = Result<(Answer, Vec<OwnedFd>), Failure>;
type Waiting = HashMap<u64, oneshot::Sender<Outcome>>;

/// A connection to the keeper. Clones share it.
#[derive(Debug, Clone)]
pub struct Keeper {
    shared: Arc<Shared>,
    // Ends the reading task, and with it the connection, when the last clone is dropped.
    _reader: Arc<AbortOnDrop>,
}

#[derive(Debug)]
struct Shared {
    socket: AsyncFd<OwnedFd>,
    next: AtomicU64,
    // `None` once the connection is lost.
    waiting: Mutex<Option<Waiting>>,
}

#[derive(Debug)]
struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// A started container with the duplicates that came with it. The daemon keeps them for a
/// handover and must not read from them.
#[derive(Debug)]
pub struct LaunchReply {
    /// What the keeper says.
    pub launched: Launched,
    /// The main process (readable when it has ended).
    pub pidfd: OwnedFd,
    /// The keeper's ends of the streams.
    pub streams: StreamFds,
}

/// A started exec.
#[derive(Debug)]
pub struct ExecReply {
    /// Process id in the node's pid namespace.
    pub pid: i32,
    /// The process.
    pub pidfd: OwnedFd,
    /// Master of its terminal, if one was asked for; non-blocking.
    pub terminal: Option<OwnedFd>,
    /// What did not go as asked.
    pub warnings: Vec<String>,
}

/// Descriptors of a container's streams, on the keeper's side of each.
#[derive(Debug, Default)]
pub struct StreamFds {
    /// Writing end of standard input.
    pub stdin: Option<OwnedFd>,
    /// Reading end of standard output.
    pub stdout: Option<OwnedFd>,
    /// Reading end of standard error.
    pub stderr: Option<OwnedFd>,
    /// Master of the terminal.
    pub terminal: Option<OwnedFd>,
}

impl StreamFds {
    fn take(streams: Streams, fds: &mut impl Iterator<Item = OwnedFd>) -> StreamFds {
        let mut next = |wanted: bool| if wanted { fds.next() } else { None };
        StreamFds {
            stdin: next(streams.stdin),
            stdout: next(streams.stdout),
            stderr: next(streams.stderr),
            terminal: next(streams.terminal),
        }
    }
}

impl Keeper {
    /// Connects and says hello. Another daemon's connection, if there is one, is closed by the
    /// keeper. Events from now on arrive at the receiver, which ends with the connection.
    ///
    /// # Errors
    /// See [`ClientError`]; `Connect` means that no keeper runs there.
    pub async fn connect(
        path: &Path,
    ) -> Result<(Keeper, Hello, mpsc::UnboundedReceiver<Event>), ClientError> {
        let socket = sys::socket::connect(path)
            .map_err(|source| ClientError::Connect { path: path.to_owned(), source })?;
        let socket = async_fd(socket, Interest::READABLE).map_err(ClientError::Register)?;
        let shared =
            Arc::new(Shared { socket, next: AtomicU64::new(1), waiting: Mutex::new(Some(HashMap::new())) });
        let (events_in, events) = mpsc::unbounded_channel();
        let reader = tokio::spawn(read_all(Arc::clone(&shared), events_in));
        let keeper = Keeper { shared, _reader: Arc::new(AbortOnDrop(reader)) };
        match keeper.call(Op::Hello { version: VERSION, build: crate::build_id().to_owned() }, &[]).await? {
            (Answer::Hello(hello), _) => Ok((keeper, hello, events)),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Connects, trying again until the socket is there and answers, at most for `patience`.
    ///
    /// # Errors
    /// The last error of [`Keeper::connect`].
    pub async fn connect_patiently(
        path: &Path,
        patience: Duration,
    ) -> Result<(Keeper, Hello, mpsc::UnboundedReceiver<Event>), ClientError> {
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            match Keeper::connect(path).await {
                Err(ClientError::Connect { .. } | ClientError::Disconnected)
                    if tokio::time::Instant::now() < deadline =>
                {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                other => return other,
            }
        }
    }

    /// Starts a container. Returns once its program runs (or could not be run).
    ///
    /// # Errors
    /// [`ClientError::Keeper`] with the step that failed, in words.
    pub async fn launch(&self, plan: LaunchPlan, fds: Fds) -> Result<LaunchReply, ClientError> {
        self.launched(Op::Launch(Box::new(plan)), fds).await
    }

    /// Starts the init of a shared pid namespace. Its namespace is reached by its pidfd.
    ///
    /// # Errors
    /// As [`Keeper::launch`].
    pub async fn launch_init(&self, plan: InitPlan, fds: Fds) -> Result<LaunchReply, ClientError> {
        self.launched(Op::LaunchInit(plan), fds).await
    }

    async fn launched(&self, op: Op, fds: Fds) -> Result<LaunchReply, ClientError> {
        match self.call_with(op, fds).await? {
            (Answer::Launched(launched), fds) => {
                let mut fds = fds.into_iter();
                let missing = || ClientError::UnexpectedAnswer("launched without a pidfd".to_owned());
                let pidfd = fds.next().ok_or_else(missing)?;
                let streams = StreamFds::take(launched.streams, &mut fds);
                Ok(LaunchReply { launched, pidfd, streams })
            }
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Starts a process in a container. Its end is announced by [`Event::ExecExited`].
    ///
    /// # Errors
    /// As [`Keeper::launch`].
    pub async fn exec(&self, plan: ExecPlan, fds: Fds) -> Result<ExecReply, ClientError> {
        self.exec_started(Op::Exec(Box::new(plan)), fds).await
    }

    async fn exec_started(&self, op: Op, fds: Fds) -> Result<ExecReply, ClientError> {
        match self.call_with(op, fds).await? {
            (Answer::ExecStarted { pid, warnings }, fds) => {
                let missing = || ClientError::UnexpectedAnswer("exec without a pidfd".to_owned());
                let mut fds = fds.into_iter();
                let pidfd = fds.next().ok_or_else(missing)?;
                Ok(ExecReply { pid, pidfd, terminal: fds.next(), warnings })
            }
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Lets another runtime start a container.
    ///
    /// # Errors
    /// [`ClientError::Keeper`]; of the kind `Command` when the runtime itself failed.
    pub async fn delegate_launch(&self, plan: DelegatePlan, fds: Fds) -> Result<LaunchReply, ClientError> {
        self.launched(Op::Delegate(Box::new(plan)), fds).await
    }

    /// Lets another runtime start a process in a container.
    ///
    /// # Errors
    /// As [`Keeper::delegate_launch`].
    pub async fn delegate_exec(&self, plan: DelegatePlan, fds: Fds) -> Result<ExecReply, ClientError> {
        self.exec_started(Op::Delegate(Box::new(plan)), fds).await
    }

    /// Runs another runtime's command to its end.
    ///
    /// # Errors
    /// As [`Keeper::delegate_launch`].
    pub async fn delegate_command(&self, plan: DelegatePlan, fds: Fds) -> Result<(), ClientError> {
        match self.call_with(Op::Delegate(Box::new(plan)), fds).await? {
            (Answer::Done, _) => Ok(()),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Sends a signal to a container.
    ///
    /// # Errors
    /// `NotFound` for an unknown id, `WrongState` when it has exited.
    pub async fn signal(&self, id: &str, signal: i32, target: SignalTarget) -> Result<(), ClientError> {
        self.done(Op::Signal { id: id.to_owned(), signal, target }, &[]).await
    }

    /// Writes a container's log to another file (open for appending) from now on.
    ///
    /// # Errors
    /// `NotFound` for an unknown id.
    pub async fn reopen_log(&self, id: &str, file: BorrowedFd<'_>) -> Result<(), ClientError> {
        self.done(Op::ReopenLog { id: id.to_owned() }, &[file]).await
    }

    /// Asks for live copies of the output and for the way to standard input. With a terminal,
    /// `terminal` is the master for writing input (do not read from it) and `stdout` is a copy of
    /// the output. An attached reader that stops reading is cut off, the container never waits for it.
    ///
    /// # Errors
    /// `NotFound` for an unknown id, `WrongState` when it has exited.
    pub async fn attach(
        &self,
        id: &str,
        stdin: bool,
        stdout: bool,
        stderr: bool,
    ) -> Result<StreamFds, ClientError> {
        match self.call(Op::Attach { id: id.to_owned(), stdin, stdout, stderr }, &[]).await? {
            (Answer::Attached(streams), fds) => Ok(StreamFds::take(streams, &mut fds.into_iter())),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Changes the size of a container's terminal.
    ///
    /// # Errors
    /// `WrongState` when it has none.
    pub async fn resize(&self, id: &str, columns: u16, rows: u16) -> Result<(), ClientError> {
        self.done(Op::Resize { id: id.to_owned(), columns, rows }, &[]).await
    }

    /// Closes the keeper's end of a container's standard input. Duplicates that the daemon holds
    /// (from launch or attach) must be closed by the daemon.
    ///
    /// # Errors
    /// `NotFound` for an unknown id.
    pub async fn close_stdin(&self, id: &str) -> Result<(), ClientError> {
        self.done(Op::CloseStdin { id: id.to_owned() }, &[]).await
    }

    /// Drops what is remembered of a container that has exited. An unknown id is fine.
    ///
    /// # Errors
    /// `WrongState` while it runs.
    pub async fn forget(&self, id: &str) -> Result<(), ClientError> {
        self.done(Op::Forget { id: id.to_owned() }, &[]).await
    }

    /// All that the keeper knows.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn state(&self) -> Result<State, ClientError> {
        match self.call(Op::State, &[]).await? {
            (Answer::State(state), _) => Ok(state),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Lets the keeper re-execute itself from `binary`. The connection stays.
    ///
    /// # Errors
    /// As the kernel says; the old keeper goes on then.
    pub async fn upgrade(&self, binary: &[u8]) -> Result<(), ClientError> {
        let memfd = sys::memfd::sealed(c"orlop-keeper", binary).map_err(WireError::Memfd)?;
        self.done(Op::Upgrade, &[memfd.as_fd()]).await
    }

    /// Gives containers of a dead keeper to this one. The results are in the order asked.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub async fn handover(
        &self,
        containers: Vec<HandoverContainer>,
        fds: Fds,
    ) -> Result<Vec<Result<(), Failure>>, ClientError> {
        match self.call_with(Op::Handover(containers), fds).await? {
            (Answer::TakenOver(results), _) => Ok(results),
            (other, _) => Err(unexpected(&other)),
        }
    }

    /// Ends the keeper.
    ///
    /// # Errors
    /// `WrongState` while containers run.
    pub async fn quit(&self) -> Result<(), ClientError> {
        self.done(Op::Quit, &[]).await
    }

    async fn done(&self, op: Op, fds: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        match self.call(op, fds).await? {
            (Answer::Done, _) => Ok(()),
            (other, _) => Err(unexpected(&other)),
        }
    }

    async fn call_with(&self, op: Op, fds: Fds) -> Result<(Answer, Vec<OwnedFd>), ClientError> {
        let fds = fds.into_vec();
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        self.call(op, &borrowed).await
    }

    async fn call(&self, op: Op, fds: &[BorrowedFd<'_>]) -> Result<(Answer, Vec<OwnedFd>), ClientError> {
        let number = self.shared.next.fetch_add(1, Ordering::Relaxed);
        let packet = Packet::new(&Request { number, op })?;
        let (tell, told) = oneshot::channel();
        self.shared.waiting().as_mut().ok_or(ClientError::Disconnected)?.insert(number, tell);
        if let Err(e) = self.send(&packet, fds).await {
            if let Some(waiting) = self.shared.waiting().as_mut() {
                waiting.remove(&number);
            }
            return Err(e);
        }
        Ok(told.await.map_err(|_| ClientError::Disconnected)??)
    }

    async fn send(&self, packet: &Packet, fds: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        loop {
            match packet.send(self.shared.socket.get_ref(), fds) {
                Err(WireError::Send(Errno::AGAIN)) => self.room().await.map_err(ClientError::Register)?,
                Err(WireError::Send(Errno::PIPE | Errno::CONNRESET)) => {
                    return Err(ClientError::Disconnected);
                }
                other => return Ok(other?),
            }
        }
    }

    /// Waits until the socket takes more. Nobody else asks for that: it would wake a thread whenever the keeper has
    /// taken a message.
    async fn room(&self) -> std::io::Result<()> {
        let socket = async_fd(self.shared.socket.get_ref().try_clone()?, Interest::WRITABLE)?;
        socket.writable().await.map(drop)
    }
}

impl Shared {
    fn waiting(&self) -> MutexGuard<'_, Option<Waiting>> {
        // The map is consistent between any two statements, so a panic elsewhere does no harm.
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn unexpected(answer: &Answer) -> ClientError {
    ClientError::UnexpectedAnswer(format!("{answer:?}"))
}

/// Reads until the connection ends, handing replies and events to whom they belong.
async fn read_all(shared: Arc<Shared>, events: mpsc::UnboundedSender<Event>) {
    let mut buffer = vec![0; wire::BUFFER];
    while let Ok(mut ready) = shared.socket.readable().await {
        match wire::receive::<ToDaemon>(shared.socket.get_ref(), &mut buffer) {
            Ok(Some((ToDaemon::Reply { number, result }, fds))) => {
                let waiting = shared.waiting().as_mut().and_then(|waiting| waiting.remove(&number));
                if let Some(tell) = waiting {
                    // Nobody waits any more when the call was dropped; the descriptors close.
                    let _ = tell.send(result.map(|answer| (answer, fds)));
                }
            }
            // Nobody listens when the daemon dropped the receiver; the state still has it all.
            Ok(Some((ToDaemon::Event(event), _))) => drop(events.send(event)),
            Err(WireError::Receive(Errno::AGAIN)) => ready.clear_ready(),
            Ok(None) | Err(_) => break,
        }
    }
    // Dropping the senders wakes every waiting call.
    *shared.waiting() = None;
}

/// Registers an owned, non-blocking descriptor with the async runtime, for what is of interest.
///
/// # Errors
/// Those of epoll_ctl(2); `EPERM` for regular files.
///
/// # Panics
/// Outside of a tokio runtime.
pub fn async_fd(fd: OwnedFd, interest: Interest) -> std::io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` keeps its descriptor open, and the same, until it is dropped, which
    // `AsyncFd` does after deregistering it.
    unsafe { AsyncFd::register_with_interest(fd, interest) }.map_err(std::io::Error::from)
}

/// Starts a keeper from its binary, detached from the caller: in a session of its own, with
/// `/dev/null` as standard streams (`log`, if given, as standard error), with no other
/// descriptors and an empty environment. It listens on `socket` a moment later: connect with
/// [`Keeper::connect_patiently`].
///
/// # Errors
/// Those of memfd_create(2), clone3(2) and execveat(2).
pub fn spawn(binary: &[u8], socket: &Path, log: Option<BorrowedFd<'_>>) -> sys::Result<OwnedFd> {
    spawn_in(binary, socket, log, None)
}

/// As [`spawn`], in a cgroup of its own (a directory descriptor), so that nothing that ends the
/// daemon's cgroup ends the keeper.
///
/// # Errors
/// As [`spawn`].
pub fn spawn_in(
    binary: &[u8],
    socket: &Path,
    log: Option<BorrowedFd<'_>>,
    cgroup: Option<BorrowedFd<'_>>,
) -> sys::Result<OwnedFd> {
    let program = sys::memfd::sealed(c"orlop-keeper", binary)?;
    let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
    let null = rustix::fs::open(c"/dev/null", flags, rustix::fs::Mode::empty())?;
    let text = |s: &OsStr| CString::new(s.as_encoded_bytes()).map_err(|_| Errno::INVAL);
    let args = vec![c"orlop-keeper".to_owned(), c"--socket".to_owned(), text(socket.as_os_str())?];
    sys::process::spawn(sys::process::Command {
        program: program.as_fd(),
        args,
        env: Vec::new(),
        fds: vec![null.as_fd(), null.as_fd(), log.unwrap_or(null.as_fd())],
        new_session: true,
        cgroup,
        detached: true,
    })
}

#[cfg(test)]
mod tests {
    use rustix::event::{PollFd, PollFlags, poll};

    use super::*;

    /// Answers all requests until there were `calls` of them besides those with the number 0.
    fn answer(socket: &OwnedFd, calls: usize) {
        let wait = |flags| poll(&mut [PollFd::new(socket, flags)], None).unwrap();
        let (mut buffer, mut left) = (vec![0; wire::BUFFER], calls);
        while left > 0 {
            wait(PollFlags::IN);
            let (request, _) = wire::receive::<Request>(socket, &mut buffer).unwrap().unwrap();
            let reply = ToDaemon::Reply { number: request.number, result: Ok(Answer::Done) };
            let packet = Packet::new(&reply).unwrap();
            while matches!(packet.send(socket, &[]), Err(WireError::Send(Errno::AGAIN))) {
                wait(PollFlags::OUT);
            }
            left -= usize::from(request.number != 0);
        }
    }

    #[tokio::test]
    async fn calls_wait_for_room_and_none_is_lost() {
        let (ours, theirs) = sys::socket::pair().unwrap();
        let full = || {
            let packet = Packet::new(&Request { number: 0, op: Op::State }).unwrap();
            packet.send(&ours, &[]).is_err_and(|error| matches!(error, WireError::Send(Errno::AGAIN)))
        };
        while !full() {}
        let shared = Arc::new(Shared {
            socket: async_fd(ours, Interest::READABLE).unwrap(),
            next: AtomicU64::new(1),
            waiting: Mutex::new(Some(HashMap::new())),
        });
        let (events, _) = mpsc::unbounded_channel();
        let reader = tokio::spawn(read_all(Arc::clone(&shared), events));
        let keeper = Keeper { shared, _reader: Arc::new(AbortOnDrop(reader)) };
        let calls: Vec<_> = (0..300)
            .map(|number| {
                let keeper = keeper.clone();
                tokio::spawn(async move { keeper.forget(&number.to_string()).await })
            })
            .collect();
        // On this one thread, each of them has found the socket full by then.
        tokio::task::yield_now().await;
        let count = calls.len();
        let peer = tokio::task::spawn_blocking(move || answer(&theirs, count));
        for call in calls {
            call.await.unwrap().unwrap();
        }
        peer.await.unwrap();
    }
}
