//! ExecSync, Exec, Attach, PortForward, and the processes behind the streaming server.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use cri_api::v1::*;
use runtime::{AttachSession, ContainerId, ContainerState, Event, ExecSession, ExecSpec, Runtime};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use tokio::net::{TcpSocket, TcpStream};
use tonic::Status;

use crate::container::container_id;
use crate::descriptor::Descriptor;
use crate::error::{chain, invalid, status};
use crate::sandbox::sandbox_id;
use crate::server::Inner;
use crate::streaming::{Backend, Control, Ending, Process, Work, dial_local};

impl Inner {
    pub(crate) async fn exec_sync(&self, request: ExecSyncRequest) -> Result<ExecSyncResponse, Status> {
        let id = container_id(&self.index.container_id(&request.container_id)?)?;
        if request.cmd.is_empty() {
            return Err(invalid("no command is given"));
        }
        let timeout = u64::try_from(request.timeout).ok().filter(|s| *s > 0).map(Duration::from_secs);
        let output = self.runtime.exec_sync(&id, request.cmd, timeout).await.map_err(status)?;
        if output.timed_out {
            return Err(Status::deadline_exceeded(format!(
                "the command took longer than {} s",
                request.timeout
            )));
        }
        Ok(ExecSyncResponse { stdout: output.stdout, stderr: output.stderr, exit_code: output.status.code() })
    }

    pub(crate) fn exec(&self, mut request: ExecRequest) -> Result<ExecResponse, Status> {
        request.container_id = self.running(&request.container_id)?;
        if request.cmd.is_empty() {
            return Err(invalid("no command is given"));
        }
        check_streams(request.tty, request.stdin, request.stdout, request.stderr)?;
        Ok(ExecResponse { url: self.url(Work::Exec(request))? })
    }

    pub(crate) fn attach(&self, mut request: AttachRequest) -> Result<AttachResponse, Status> {
        request.container_id = self.running(&request.container_id)?;
        check_streams(request.tty, request.stdin, request.stdout, request.stderr)?;
        Ok(AttachResponse { url: self.url(Work::Attach(request))? })
    }

    pub(crate) fn port_forward(
        &self,
        mut request: PortForwardRequest,
    ) -> Result<PortForwardResponse, Status> {
        request.pod_sandbox_id = self.index.sandbox_id(&request.pod_sandbox_id)?;
        if !self.index.sandbox(&request.pod_sandbox_id).is_some_and(|meta| meta.connected) {
            return Err(Status::failed_precondition(format!(
                "sandbox {} is not ready",
                request.pod_sandbox_id
            )));
        }
        Ok(PortForwardResponse { url: self.url(Work::Forward(request))? })
    }

    fn url(&self, work: Work) -> Result<String, Status> {
        self.streaming.url(work).map_err(|full| Status::resource_exhausted(full.to_string()))
    }

    fn running(&self, given: &str) -> Result<String, Status> {
        let id = self.index.container_id(given)?;
        match self.runtime.container(&container_id(&id)?).map(|container| container.state) {
            Some(ContainerState::Running { .. }) => Ok(id),
            _ => Err(Status::failed_precondition(format!("container {id} is not running"))),
        }
    }
}

fn check_streams(tty: bool, stdin: bool, stdout: bool, stderr: bool) -> Result<(), Status> {
    if tty && stderr {
        return Err(invalid(
            "with a terminal there is no stderr of its own: ask for tty or stderr, not both",
        ));
    }
    if !(stdin || stdout || stderr) {
        return Err(invalid("at least one of stdin, stdout and stderr is needed"));
    }
    Ok(())
}

/// What the streaming server reaches containers through.
pub(crate) struct StreamBackend {
    runtime: Runtime,
}

impl StreamBackend {
    pub fn new(runtime: Runtime) -> StreamBackend {
        StreamBackend { runtime }
    }
}

#[async_trait::async_trait]
impl Backend for StreamBackend {
    async fn exec(&self, request: &ExecRequest) -> Result<Process, String> {
        let id: ContainerId = request.container_id.parse().map_err(|error| chain(&error))?;
        let spec = ExecSpec {
            args: request.cmd.clone(),
            tty: request.tty,
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr && !request.tty,
            ..ExecSpec::default()
        };
        let failed = |error: &(dyn std::error::Error + 'static)| {
            format!("error executing command in container: {}", chain(error))
        };
        let mut session = self.runtime.exec(&id, spec).await.map_err(|error| failed(&error))?;
        let streams = match &session.terminal {
            Some(master) => terminal_streams(master, None, request.stdin, request.stdout),
            None => pipe_streams(session.stdin.take(), session.stdout.take(), session.stderr.take()),
        };
        let (stdin, stdout, stderr) = streams.map_err(|error| failed(&error))?;
        Ok(Process { stdin, stdout, stderr, control: Arc::new(ExecControl(session)) })
    }

    async fn attach(&self, request: &AttachRequest) -> Result<Process, String> {
        let id: ContainerId = request.container_id.parse().map_err(|error| chain(&error))?;
        let events = self.runtime.subscribe();
        let failed = |error: &(dyn std::error::Error + 'static)| {
            format!("error attaching to container: {}", chain(error))
        };
        let mut session = self.runtime.attach(&id).await.map_err(|error| failed(&error))?;
        let streams = match &session.terminal {
            Some(master) => terminal_streams(master, session.stdout.take(), request.stdin, request.stdout),
            None => pipe_streams(
                session.stdin.take().filter(|_| request.stdin),
                session.stdout.take().filter(|_| request.stdout),
                session.stderr.take().filter(|_| request.stderr),
            ),
        };
        let (stdin, stdout, stderr) = streams.map_err(|error| failed(&error))?;
        let ends_input = session.stdin_once && request.stdin && !session.tty;
        let control = AttachControl {
            runtime: self.runtime.clone(),
            id,
            session,
            ends_input,
            events: tokio::sync::Mutex::new(events),
        };
        Ok(Process { stdin, stdout, stderr, control: Arc::new(control) })
    }

    async fn dial(&self, sandbox: &str, port: u16) -> io::Result<TcpStream> {
        let id = sandbox_id(sandbox).map_err(|error| io::Error::other(error.message().to_owned()))?;
        let sandbox = self.runtime.sandbox(&id).ok_or_else(|| io::Error::other("the sandbox is gone"))?;
        let sockets = match sandbox.netns {
            None => [TcpSocket::new_v4(), TcpSocket::new_v6()],
            Some(netns) => {
                let made = tokio::task::spawn_blocking(move || sockets_in(&netns)).await;
                made.map_err(io::Error::other)??.map(|socket| socket.map(into_tokio))
            }
        };
        dial_local(port, sockets).await
    }
}

/// A socket belongs to the namespace of the thread that makes it; the thread ends with its errand.
fn sockets_in(netns: &std::path::Path) -> io::Result<[io::Result<OwnedFd>; 2]> {
    let netns = std::fs::File::open(netns)?;
    let worker = std::thread::Builder::new().name("netns".to_owned()).spawn(move || -> io::Result<_> {
        let kind = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(std::os::fd::AsFd::as_fd(&netns), kind)?;
        let make = |family| {
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            socket_with(family, SocketType::STREAM, flags, None).map_err(io::Error::from)
        };
        Ok([make(AddressFamily::INET), make(AddressFamily::INET6)])
    })?;
    worker.join().unwrap_or_else(|_| Err(io::Error::other("making a socket in the sandbox failed")))
}

fn into_tokio(socket: OwnedFd) -> TcpSocket {
    TcpSocket::from_std_stream(std::net::TcpStream::from(socket))
}

type Writer = Box<dyn tokio::io::AsyncWrite + Send + Unpin>;
type Reader = Box<dyn tokio::io::AsyncRead + Send + Unpin>;
type Streams = (Option<Writer>, Option<Reader>, Option<Reader>);

/// A terminal is one descriptor; an attachment reads a copy of its output from elsewhere.
fn terminal_streams(
    master: &OwnedFd,
    output: Option<OwnedFd>,
    stdin: bool,
    stdout: bool,
) -> io::Result<Streams> {
    let shared = Descriptor::new(master.try_clone()?)?;
    let reader: Reader = match output {
        Some(output) => Box::new(Descriptor::new(output)?),
        None => Box::new(shared.clone()),
    };
    Ok((stdin.then(|| Box::new(shared) as Writer), stdout.then_some(reader), None))
}

fn pipe_streams(
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
) -> io::Result<Streams> {
    let reader = |fd: Option<OwnedFd>| -> io::Result<Option<Reader>> {
        fd.map(|fd| Ok(Box::new(Descriptor::new(fd)?) as Reader)).transpose()
    };
    let stdin = stdin.map(|fd| io::Result::Ok(Box::new(Descriptor::new(fd)?) as Writer)).transpose()?;
    Ok((stdin, reader(stdout)?, reader(stderr)?))
}

struct ExecControl(ExecSession);

#[async_trait::async_trait]
impl Control for ExecControl {
    async fn wait(&self) -> Ending {
        Ending::Exited(self.0.wait().await.code())
    }

    fn resize(&self, columns: u16, rows: u16) {
        if let Err(error) = self.0.resize(columns, rows) {
            tracing::debug!(error = %chain(&error), "resize the terminal of an exec");
        }
    }

    async fn input_ended(&self) {}
}

struct AttachControl {
    runtime: Runtime,
    id: ContainerId,
    session: AttachSession,
    ends_input: bool,
    events: tokio::sync::Mutex<tokio::sync::broadcast::Receiver<Event>>,
}

#[async_trait::async_trait]
impl Control for AttachControl {
    async fn wait(&self) -> Ending {
        let mut events = self.events.lock().await;
        // Looked at anew after each event, so a missed one does no harm.
        while self
            .runtime
            .container(&self.id)
            .is_some_and(|c| matches!(c.state, ContainerState::Running { .. }))
        {
            if let Err(tokio::sync::broadcast::error::RecvError::Closed) = events.recv().await {
                break;
            }
        }
        Ending::Exited(0)
    }

    fn resize(&self, columns: u16, rows: u16) {
        if let Err(error) = self.session.resize(columns, rows) {
            tracing::debug!(container = %self.id, error = %chain(&error), "resize a terminal");
        }
    }

    async fn input_ended(&self) {
        if self.ends_input
            && let Err(error) = self.runtime.close_stdin(&self.id).await
        {
            tracing::debug!(container = %self.id, error = %chain(&error), "end a container's input");
        }
    }
}
