//! More processes in running containers, and the streams of all of them.
//!
//! Guarantees: a session's end is told once its process is reaped; `exec_sync` never keeps more than its limit of
//! output in memory, and never waits for a process that its command left behind.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use keeper::client::ClientError;
use keeper::plan::{ExecPlan, ExecStdio, Fds, ProcessPlan, Seccomp};
use keeper::protocol::{self, FailureKind};
use rustix::fs::OFlags;
use rustix::pipe::PipeFlags;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::watch;

use crate::containers::word;
use crate::core::{Inner, blocking, keeper_error, status};
use crate::error::{ExecError, RuntimeError};
use crate::id::ContainerId;
use crate::make::users;
use crate::oci;
use crate::plan::{self, text};
use crate::prepare;
use crate::record::ContainerRecord;
use crate::session::{AttachSession, ExecOutput, ExecSession};
use crate::spec::ExecSpec;
use crate::state::{ContainerState, ExitStatus};
use crate::user;

/// Most output of one stream that `exec_sync` keeps.
const OUTPUT_LIMIT: usize = 16 << 20;
/// How long output is awaited after the command itself has ended.
const DRAIN: Duration = Duration::from_millis(250);

impl Inner {
    /// Runs one more process in a container.
    pub async fn exec(self: &Arc<Self>, id: &ContainerId, exec: ExecSpec) -> Result<ExecSession, ExecError> {
        self.exec_within(id, exec, None).await
    }

    /// As [`Inner::exec`], but gives up when the program does not run within `patience`.
    async fn exec_within(
        self: &Arc<Self>,
        id: &ContainerId,
        exec: ExecSpec,
        patience: Option<Duration>,
    ) -> Result<ExecSession, ExecError> {
        let (record, pattern) = self.running(id)?;
        let pattern = match pattern {
            Some(pattern) => pattern,
            None => {
                let (inner, record) = (self.clone(), record.clone());
                blocking(move || inner.pattern(&record)).await?
            }
        };
        let mut process = (*pattern).clone();
        self.adapt(&mut process, &record, &exec).await?;
        let stream_owner = self.stream_owner(&record, &process.user)?;
        let mut fds = Fds::default();
        let (stdio, ours) = streams(&exec, &mut fds)?;
        let exec_id = uuid::Uuid::new_v4().simple().to_string();
        let exit = watch::Sender::new(None);
        let exited = exit.subscribe();
        self.execs.lock().insert(exec_id.clone(), exit);
        let plan = ExecPlan {
            container: id.to_string(),
            id: exec_id.clone(),
            process,
            stdio,
            cgroup: None,
            oom_score_adj: record.spec.resources.oom_score_adj,
            stream_owner,
            patience,
        };
        let started = match self.execs_by_runtime(&record) {
            true => self.delegate_exec(&record, plan, fds).await,
            false => {
                let keeper = self.keeper().await?;
                keeper.exec(plan, fds).await.map_err(|error| refused(id, &exec, error))
            }
        };
        let reply = match started {
            Ok(reply) => reply,
            Err(error) => {
                self.execs.lock().remove(&exec_id);
                return Err(error);
            }
        };
        Ok(ExecSession {
            stdin: ours.stdin,
            stdout: ours.stdout,
            stderr: ours.stderr,
            terminal: reply.terminal,
            pid: reply.pid.unsigned_abs(),
            pidfd: reply.pidfd,
            exit: exited,
        })
    }

    /// The node's id of a process's user, in a pod with users of its own.
    fn stream_owner(
        &self,
        record: &ContainerRecord,
        user: &keeper::plan::User,
    ) -> Result<Option<u32>, RuntimeError> {
        let Some(ids) = self.sandbox_record(&record.spec.sandbox)?.spec.user_namespace else {
            return Ok(None);
        };
        plan::check_ids(user, &ids)?;
        Ok(ids.users.to_host(user.uid))
    }

    /// A running container and its pattern of execs, if that is made already.
    fn running(&self, id: &ContainerId) -> Result<(ContainerRecord, Option<Arc<ProcessPlan>>), RuntimeError> {
        let objects = self.objects.lock();
        let entry = objects.containers.get(id).ok_or_else(|| RuntimeError::NoContainer { id: id.clone() })?;
        match &entry.record.state {
            ContainerState::Running { .. } => Ok((entry.record.clone(), entry.process.clone())),
            other => Err(RuntimeError::WrongState { id: id.clone(), is: word(other), wanted: "running" }),
        }
    }

    /// Makes the pattern of a container's execs: its own process, with the same confinement.
    fn pattern(&self, record: &ContainerRecord) -> Result<Arc<ProcessPlan>, RuntimeError> {
        let sandbox = self.sandbox_record(&record.spec.sandbox)?;
        let available = self.available_in(&sandbox);
        let confinement = self.confinement(&record.spec, &sandbox)?;
        let process =
            oci::process(&record.spec, &record.user, &sandbox.spec.hostname, available, &confinement)?;
        let mut process = plan::process_plan(&process)?;
        self.limit(&mut process);
        process.seccomp = self
            .filter(&record.spec, &sandbox)?
            .map(|filter| Seccomp { program: prepare::bytes(&filter), flags: 0 });
        let process = Arc::new(process);
        if let Some(entry) = self.objects.lock().containers.get_mut(&record.spec.id) {
            entry.process = Some(process.clone());
        }
        Ok(process)
    }

    async fn adapt(
        &self,
        process: &mut ProcessPlan,
        record: &ContainerRecord,
        exec: &ExecSpec,
    ) -> Result<(), RuntimeError> {
        if exec.args.first().is_none_or(String::is_empty) {
            return Err(RuntimeError::invalid("there is no command to run: give at least one argument"));
        }
        process.args = exec.args.iter().map(|arg| text(arg.as_bytes())).collect::<Result<_, _>>()?;
        if let Some(cwd) = exec.cwd.as_deref().filter(|cwd| !cwd.is_empty()) {
            if !cwd.starts_with('/') {
                return Err(RuntimeError::invalid(format!("working directory {cwd:?} is not absolute")));
            }
            process.cwd = text(cwd.as_bytes())?;
        }
        for one in &exec.env {
            set(&mut process.env, one)?;
        }
        let has_term = process.env.iter().any(|one| one.as_bytes().starts_with(b"TERM="));
        if exec.tty && !has_term {
            process.env.push(c"TERM=xterm".to_owned());
        }
        if let Some(wanted) = exec.user.clone() {
            let ContainerState::Running { pid, .. } = record.state else { return Ok(()) };
            let found = blocking(move || {
                let step = RuntimeError::io("open the container's root");
                let root = rustix::fs::open(
                    format!("/proc/{pid}/root"),
                    OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                    rustix::fs::Mode::empty(),
                )
                .map_err(|errno| step(errno.into()))?;
                user::resolve(&wanted, &users(&root, "etc/passwd")?, &users(&root, "etc/group")?)
            })
            .await?;
            process.user.uid = found.uid;
            process.user.gid = found.gid;
            process.user.groups = found.groups;
            set(&mut process.env, &format!("HOME={}", found.home))?;
        }
        Ok(())
    }

    /// Runs one more process and collects its output.
    pub async fn exec_sync(
        self: &Arc<Self>,
        id: &ContainerId,
        args: Vec<String>,
        timeout: Option<Duration>,
    ) -> Result<ExecOutput, ExecError> {
        let exec = ExecSpec { args, stdout: true, stderr: true, ..ExecSpec::default() };
        let timeout = timeout.filter(|timeout| !timeout.is_zero());
        let mut session = match self.exec_within(id, exec, timeout).await {
            Err(ExecError::TimedOut { .. }) => {
                let (stdout, stderr) = (Vec::new(), Vec::new());
                return Ok(ExecOutput { stdout, stderr, status: ExitStatus::Unknown, timed_out: true });
            }
            other => other?,
        };
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let mut timed_out = false;
        let status = {
            let out = collect(session.stdout.take(), &mut stdout);
            let err = collect(session.stderr.take(), &mut stderr);
            let both = async { tokio::join!(out, err) };
            tokio::pin!(both);
            let deadline = async {
                match timeout {
                    Some(timeout) => tokio::time::sleep(timeout).await,
                    None => std::future::pending().await,
                }
            };
            tokio::pin!(deadline);
            let ended = session.wait();
            tokio::pin!(ended);
            let mut read = false;
            let status = loop {
                tokio::select! {
                    // Cancel-safe: all are pinned outside of the loop and polled again.
                    status = &mut ended => break status,
                    _ = &mut both, if !read => read = true,
                    () = &mut deadline, if !timed_out => {
                        timed_out = true;
                        session.kill()?;
                    }
                }
            };
            if !read {
                // What is in the pipes is read at once; what a left-behind process may write is not awaited.
                let _ = tokio::time::timeout(DRAIN, &mut both).await;
            }
            status
        };
        Ok(ExecOutput { stdout, stderr, status, timed_out })
    }

    /// The end of an exec.
    pub fn exec_exited(&self, exec: &str, exit: protocol::Exit) {
        if let Some(waiting) = self.execs.lock().remove(exec) {
            waiting.send_replace(Some(status(exit.how)));
        }
    }

    /// Ends all waiting for execs: the keeper that knew them is gone.
    pub fn execs_lost(&self) {
        for (_, waiting) in self.execs.lock().drain() {
            waiting.send_replace(Some(ExitStatus::Unknown));
        }
    }

    /// Opens the streams of a container's own process.
    pub async fn attach(&self, id: &ContainerId) -> Result<AttachSession, RuntimeError> {
        let (record, _) = self.running(id)?;
        let spec = &record.spec;
        let step = keeper_error(format!("attach to container {id}"));
        let streams = self
            .keeper()
            .await?
            .attach(id.as_str(), spec.stdin || spec.tty, true, !spec.tty)
            .await
            .map_err(step)?;
        Ok(AttachSession {
            stdin: streams.stdin,
            stdout: streams.stdout,
            stderr: streams.stderr,
            terminal: streams.terminal,
            tty: spec.tty,
            stdin_once: spec.stdin_once,
        })
    }

    /// Ends a container's standard input.
    pub async fn close_stdin(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        self.running(id)?;
        if let Some(held) = self.objects.lock().containers.get_mut(id).and_then(|entry| entry.held.as_mut()) {
            held.streams.stdin = None;
        }
        let step = keeper_error(format!("close the input of container {id}"));
        self.keeper().await?.close_stdin(id.as_str()).await.map_err(step)
    }

    /// Sets the size of a container's terminal.
    pub async fn resize(&self, id: &ContainerId, columns: u16, rows: u16) -> Result<(), RuntimeError> {
        self.running(id)?;
        let step = keeper_error(format!("resize the terminal of container {id}"));
        self.keeper().await?.resize(id.as_str(), columns, rows).await.map_err(step)
    }

    /// Opens the log file anew.
    pub async fn reopen_log(&self, id: &ContainerId) -> Result<(), RuntimeError> {
        let (record, _) = self.running(id)?;
        let Some(path) = record.spec.log_path.clone() else {
            return Err(RuntimeError::invalid(format!("container {id} has no log file")));
        };
        let file = blocking(move || prepare::open_log(&path)).await?;
        let step = keeper_error(format!("reopen the log of container {id}"));
        self.keeper().await?.reopen_log(id.as_str(), file.as_fd()).await.map_err(step)
    }
}

/// The caller's ends of an exec's streams.
#[derive(Default)]
struct Ours {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

fn streams(exec: &ExecSpec, fds: &mut Fds) -> Result<(ExecStdio, Ours), RuntimeError> {
    let failed = |errno: rustix::io::Errno| RuntimeError::io("make the streams of an exec")(errno.into());
    if exec.tty {
        return Ok((ExecStdio::Terminal { columns: 80, rows: 24 }, Ours::default()));
    }
    let mut pair = |wanted: bool, input: bool| -> Result<_, RuntimeError> {
        if !wanted {
            return Ok((None, None));
        }
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).map_err(failed)?;
        let (mine, theirs) = if input { (write, read) } else { (read, write) };
        nonblocking(&mine).map_err(failed)?;
        Ok((Some(mine), Some(fds.add(theirs))))
    };
    let (stdin, child_stdin) = pair(exec.stdin, true)?;
    let (stdout, child_stdout) = pair(exec.stdout, false)?;
    let (stderr, child_stderr) = pair(exec.stderr, false)?;
    let ours = Ours { stdin, stdout, stderr };
    Ok((ExecStdio::Streams { stdin: child_stdin, stdout: child_stdout, stderr: child_stderr }, ours))
}

fn nonblocking(fd: &OwnedFd) -> rustix::io::Result<()> {
    let flags = rustix::fs::fcntl_getfl(fd)?;
    rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK)
}

/// Reads a pipe to its end; keeps the first part and drops the rest, so that the writer never blocks.
async fn collect(fd: Option<OwnedFd>, into: &mut Vec<u8>) {
    let Some(mut reader) = fd.and_then(|fd| pipe::Receiver::from_owned_fd(fd).ok()) else { return };
    let mut buffer = vec![0; 16 << 10];
    while let Ok(len @ 1..) = reader.read(&mut buffer).await {
        let room = OUTPUT_LIMIT.saturating_sub(into.len());
        into.extend_from_slice(&buffer[..len.min(room)]);
    }
}

/// Sets a variable, replacing one of the same name.
fn set(env: &mut Vec<std::ffi::CString>, variable: &str) -> Result<(), RuntimeError> {
    let name = variable.split_once('=').map_or(variable, |(name, _)| name);
    let same = |one: &std::ffi::CString| one.as_bytes().split(|b| *b == b'=').next() == Some(name.as_bytes());
    env.retain(|one| !same(one));
    env.push(text(variable.as_bytes())?);
    Ok(())
}

fn refused(id: &ContainerId, exec: &ExecSpec, error: ClientError) -> ExecError {
    let program = exec.args.first().cloned().unwrap_or_default();
    match error {
        ClientError::Keeper(failure) => match failure.kind {
            FailureKind::CommandNotFound | FailureKind::CommandNotExecutable => {
                ExecError::NotFound { program, source: std::io::Error::other(failure.message) }
            }
            FailureKind::TimedOut => ExecError::TimedOut { id: id.clone(), why: failure.message },
            FailureKind::Os(errno) => ExecError::Child {
                id: id.clone(),
                step: failure.message,
                source: std::io::Error::from_raw_os_error(errno),
            },
            _ => keeper_error(format!("exec in container {id}"))(ClientError::Keeper(failure)).into(),
        },
        other => keeper_error(format!("exec in container {id}"))(other).into(),
    }
}
