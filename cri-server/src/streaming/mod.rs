//! The streaming server: what the URLs answered by Exec, Attach and PortForward lead to.
//!
//! A URL's token is used up by the request that names it; then client and server upgrade to SPDY/3.1 or
//! WebSocket, and the kubelet and apiserver in between pass bytes on.
//!
//! Guarantees: a URL works once, within a minute; whatever a client does, its connection costs bounded memory,
//! and its descriptors are closed when it goes away.
//! Assumes: without TLS, the address is reached by the node's own processes only (loopback): the token is the only
//! secret.

mod command;
mod forward;
pub(crate) mod fuzz;
mod pipe;
mod protocol;
mod spdy;
mod status;
#[cfg(test)]
mod tests;
mod tls;
mod tokens;
mod websocket;

use std::collections::HashMap;
use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use cri_api::v1::{AttachRequest, ExecRequest, PortForwardRequest};
use http::{Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_util::sync::CancellationToken;

pub use command::{Control, Process};
pub use forward::dial_local;
pub use status::Ending;
pub use tls::{Tls, TlsError, TlsFiles};
pub use tokens::Full as TokensFull;

use command::ClientStreams;
use pipe::Sink;
use protocol::{Answer, Purpose, Spoken};
use spdy::{Connection, Stream};
use tokens::Tokens;
use websocket::Channels;

/// How long a SPDY client may take to open the streams of a command.
const STREAMS_IN: Duration = Duration::from_secs(30);
/// How long a TLS handshake may take.
const HANDSHAKE_IN: Duration = Duration::from_secs(10);

/// What the streams are connected to. Errors are sentences for the client.
#[async_trait::async_trait]
pub trait Backend: Send + Sync + 'static {
    /// Starts a command.
    async fn exec(&self, request: &ExecRequest) -> Result<Process, String>;
    /// Joins a running container's own streams.
    async fn attach(&self, request: &AttachRequest) -> Result<Process, String>;
    /// Connects to a port on a sandbox's loopback.
    async fn dial(&self, sandbox: &str, port: u16) -> io::Result<TcpStream>;
}

/// What a token stands for.
#[derive(Debug, Clone)]
pub enum Work {
    /// A command to start.
    Exec(ExecRequest),
    /// A container to join.
    Attach(AttachRequest),
    /// Ports to forward.
    Forward(PortForwardRequest),
}

impl Work {
    fn path(&self) -> &'static str {
        match self {
            Work::Exec(_) => "exec",
            Work::Attach(_) => "attach",
            Work::Forward(_) => "portforward",
        }
    }

    fn purpose(&self) -> Purpose {
        match self {
            Work::Exec(_) | Work::Attach(_) => Purpose::Command,
            Work::Forward(_) => Purpose::Forward,
        }
    }

    /// Which streams a command has; stderr is part of stdout with a terminal.
    fn wants(&self) -> Wants {
        match self {
            Work::Exec(r) => {
                Wants { stdin: r.stdin, stdout: r.stdout, stderr: r.stderr && !r.tty, tty: r.tty }
            }
            Work::Attach(r) => {
                Wants { stdin: r.stdin, stdout: r.stdout, stderr: r.stderr && !r.tty, tty: r.tty }
            }
            Work::Forward(_) => Wants { stdin: false, stdout: false, stderr: false, tty: false },
        }
    }
}

#[derive(Clone, Copy)]
struct Wants {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

/// The server. Dropping it stops listening and ends all its connections.
pub struct StreamingServer {
    address: SocketAddr,
    scheme: &'static str,
    tokens: Arc<Mutex<Tokens<Work>>>,
    stop: CancellationToken,
}

/// What every connection is served with.
#[derive(Clone)]
struct Serving {
    tokens: Arc<Mutex<Tokens<Work>>>,
    backend: Arc<dyn Backend>,
    stop: CancellationToken,
}

impl StreamingServer {
    /// Listens on `address` (port 0: any free one), with TLS if given.
    pub async fn bind(
        address: SocketAddr,
        tls: Option<Tls>,
        backend: Arc<dyn Backend>,
    ) -> io::Result<StreamingServer> {
        let listener = TcpListener::bind(address).await?;
        let server = StreamingServer {
            address: listener.local_addr()?,
            scheme: if tls.is_some() { "https" } else { "http" },
            tokens: Arc::default(),
            stop: CancellationToken::new(),
        };
        let serving = Serving { tokens: server.tokens.clone(), backend, stop: server.stop.clone() };
        let stop = server.stop.clone();
        tokio::spawn(async move {
            // Cancel-safe: a connection that was not accepted is refused when the listener closes.
            tokio::select! {
                () = accept(listener, tls, serving) => {}
                () = stop.cancelled() => {}
            }
        });
        Ok(server)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// A URL that leads to `work` once, within a minute.
    pub fn url(&self, work: Work) -> Result<String, TokensFull> {
        let path = work.path();
        let token = self.tokens.lock().put(work, Instant::now())?;
        Ok(format!("{}://{}/{path}/{token}", self.scheme, self.address))
    }
}

impl Drop for StreamingServer {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn accept(listener: TcpListener, tls: Option<Tls>, serving: Serving) {
    loop {
        let socket = match listener.accept().await {
            Ok((socket, _)) => socket,
            Err(error) => {
                tracing::warn!(error = %error, "accept a streaming connection");
                // Out of descriptors, most likely: give others the time to close theirs.
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        // Only a matter of speed: small writes would wait for each other.
        let _ = socket.set_nodelay(true);
        let (acceptor, serving) = (tls.as_ref().map(Tls::acceptor), serving.clone());
        tokio::spawn(async move {
            let Some(acceptor) = acceptor else { return connection(socket, serving).await };
            match tokio::time::timeout(HANDSHAKE_IN, acceptor.accept(socket)).await {
                Ok(Ok(stream)) => connection(tls::Polite::new(stream), serving).await,
                Ok(Err(error)) => tracing::debug!(error = %error, "TLS handshake of a streaming connection"),
                Err(_elapsed) => tracing::debug!("a client did not finish its TLS handshake"),
            }
        });
    }
}

async fn connection(socket: impl AsyncRead + AsyncWrite + Send + Unpin + 'static, serving: Serving) {
    let stop = serving.stop.clone();
    let service = hyper::service::service_fn(move |request| {
        let answer = answer(request, &serving.tokens, &serving.backend, &serving.stop);
        async move { Ok::<_, Infallible>(answer) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(30))
        .serve_connection(TokioIo::new(socket), service)
        .with_upgrades();
    tokio::select! {
        result = connection => if let Err(error) = result {
            tracing::debug!(error = %error, "streaming connection");
        },
        () = stop.cancelled() => {}
    }
}

type Reply = Response<Full<Bytes>>;

fn plain(status: StatusCode, text: impl Into<Bytes>) -> Reply {
    let mut reply = Response::new(Full::new(text.into()));
    *reply.status_mut() = status;
    reply
}

fn answer(
    mut request: Request<Incoming>,
    tokens: &Mutex<Tokens<Work>>,
    backend: &Arc<dyn Backend>,
    stop: &CancellationToken,
) -> Reply {
    let work = match request.uri().path().trim_start_matches('/').split_once('/') {
        Some((path, token)) => tokens.lock().take(token, Instant::now()).filter(|work| work.path() == path),
        None => None,
    };
    let Some(work) = work else {
        return plain(StatusCode::NOT_FOUND, "no such stream: a URL works once, within a minute\n");
    };
    let negotiated = protocol::negotiate(work.purpose(), request.headers());
    let upgrade = hyper::upgrade::on(&mut request);
    let mut reply = plain(StatusCode::SWITCHING_PROTOCOLS, "");
    let headers = reply.headers_mut();
    headers.insert(header::CONNECTION, header::HeaderValue::from_static("Upgrade"));
    let spoken = match negotiated {
        Answer::NoUpgrade => {
            return plain(StatusCode::BAD_REQUEST, "an upgrade to SPDY/3.1 or websocket is needed\n");
        }
        Answer::NoCommon { spoken } => {
            let mut reply = plain(StatusCode::FORBIDDEN, "none of the offered protocols is spoken here\n");
            for name in spoken {
                let name = header::HeaderValue::from_static(name);
                reply.headers_mut().append(protocol::ACCEPTED_PROTOCOLS, name);
            }
            return reply;
        }
        Answer::Spdy { name, spoken } => {
            headers.insert(header::UPGRADE, header::HeaderValue::from_static("SPDY/3.1"));
            if !name.is_empty() {
                headers.insert(protocol::STREAM_PROTOCOL, header::HeaderValue::from_static(name));
            }
            spoken
        }
        Answer::WebSocket { name, spoken, key } => {
            headers.insert(header::UPGRADE, header::HeaderValue::from_static("websocket"));
            if !name.is_empty() {
                headers.insert(header::SEC_WEBSOCKET_PROTOCOL, header::HeaderValue::from_static(name));
            }
            let accept = derive_accept_key(key.as_bytes());
            if let Ok(accept) = header::HeaderValue::from_str(&accept) {
                headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
            }
            spoken
        }
    };
    let (backend, stop) = (backend.clone(), stop.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = upgraded(upgrade, spoken, work, backend) => {}
            () = stop.cancelled() => {}
        }
    });
    reply
}

async fn upgraded(upgrade: OnUpgrade, spoken: Spoken, work: Work, backend: Arc<dyn Backend>) {
    let io = match upgrade.await {
        Ok(io) => TokioIo::new(io),
        Err(error) => {
            tracing::debug!(error = %error, "upgrade a streaming connection");
            return;
        }
    };
    match (spoken, work) {
        (Spoken::Spdy { .. }, Work::Forward(request)) => {
            forward::over_spdy(Connection::new(io), backend, request.pod_sandbox_id).await;
        }
        (Spoken::SpdyInWebSocket, Work::Forward(request)) => {
            let bytes = websocket::byte_pipe(websocket::server(io).await);
            forward::over_spdy(Connection::new(bytes), backend, request.pod_sandbox_id).await;
        }
        (Spoken::Channels { base64, close, .. }, Work::Forward(request)) => {
            let ports: Vec<u16> =
                request.port.iter().filter_map(|port| u16::try_from(*port).ok()).take(100).collect();
            let inputs = forward::channels_of(&ports);
            let (channels, sources) = Channels::new(websocket::server(io).await, &inputs, base64, close);
            forward::over_channels(channels, sources, ports, backend, request.pod_sandbox_id).await;
        }
        (Spoken::Spdy { .. }, work) => command_over_spdy(io, spoken, work, backend).await,
        (Spoken::Channels { .. }, work) => command_over_channels(io, spoken, work, backend).await,
        // Never negotiated for commands.
        (Spoken::SpdyInWebSocket, _) => {}
    }
}

async fn start(work: &Work, backend: &dyn Backend) -> Result<Process, String> {
    match work {
        Work::Exec(request) => backend.exec(request).await,
        Work::Attach(request) => backend.attach(request).await,
        Work::Forward(_) => Err("a forwarding URL runs no command".to_owned()),
    }
}

async fn command_over_spdy(io: TokioIo<Upgraded>, spoken: Spoken, work: Work, backend: Arc<dyn Backend>) {
    let Spoken::Spdy { status, resize } = spoken else { return };
    let mut connection = Connection::new(io);
    let wants = work.wants();
    let kinds: Vec<&str> = [
        ("error", true),
        ("stdin", wants.stdin),
        ("stdout", wants.stdout),
        ("stderr", wants.stderr),
        ("resize", wants.tty && resize),
    ]
    .into_iter()
    .filter_map(|(kind, wanted)| wanted.then_some(kind))
    .collect();
    let collected = tokio::time::timeout(STREAMS_IN, collect_streams(&mut connection, &kinds)).await;
    let Ok(Some(mut streams)) = collected else {
        tracing::debug!("a client did not open the streams of its command");
        return;
    };
    let gone = connection.gone();
    let mut split = |kind: &str| streams.remove(kind).map(|stream| (stream.source, stream.sink));
    let Some((_, error)) = split("error") else { return };
    // The directions that a kind of stream does not have are dropped without a word: they stay unused.
    let output = |pair: Option<(pipe::Source, spdy::StreamSink)>| {
        pair.map(|(_, sink)| Box::new(sink) as Box<dyn Sink>)
    };
    let (stdin, stdin_back) = split("stdin").unzip();
    let (resize, resize_back) = split("resize").unzip();
    let client = ClientStreams {
        stdin,
        stdout: output(split("stdout")),
        stderr: output(split("stderr")),
        error: Box::new(error),
        resize,
        status,
        gone,
    };
    // Started while the streams stand, so that its failure can be told on them.
    let process = start(&work, &*backend).await;
    command::run(client, process).await;
    for mut sink in [stdin_back, resize_back].into_iter().flatten() {
        // A client that is gone needs no end.
        let _ = sink.finish().await;
    }
    connection.close().await;
}

async fn collect_streams(connection: &mut Connection, kinds: &[&str]) -> Option<HashMap<String, Stream>> {
    let mut streams = HashMap::new();
    while streams.len() < kinds.len() {
        let stream = connection.accept().await?;
        let kind = stream.header("streamtype").unwrap_or_default().to_owned();
        if kinds.contains(&kind.as_str()) && !streams.contains_key(&kind) {
            streams.insert(kind, stream);
        } else {
            stream.sink.cancel().await;
        }
    }
    Some(streams)
}

async fn command_over_channels(io: TokioIo<Upgraded>, spoken: Spoken, work: Work, backend: Arc<dyn Backend>) {
    const STDIN: u8 = 0;
    const STDOUT: u8 = 1;
    const STDERR: u8 = 2;
    const ERROR: u8 = 3;
    const RESIZE: u8 = 4;
    let Spoken::Channels { status, base64, close } = spoken else { return };
    let wants = work.wants();
    let inputs: Vec<u8> =
        [(STDIN, wants.stdin), (RESIZE, wants.tty)].into_iter().filter_map(|(c, w)| w.then_some(c)).collect();
    let (channels, mut sources) = Channels::new(websocket::server(io).await, &inputs, base64, close);
    let client = ClientStreams {
        stdin: sources.remove(&STDIN),
        stdout: wants.stdout.then(|| channels.sink(STDOUT)),
        stderr: wants.stderr.then(|| channels.sink(STDERR)),
        error: channels.sink(ERROR),
        resize: sources.remove(&RESIZE),
        status,
        gone: channels.gone(),
    };
    let lowest = if wants.stdout {
        STDOUT
    } else if wants.stderr {
        STDERR
    } else {
        ERROR
    };
    channels.greet(lowest).await;
    let process = start(&work, &*backend).await;
    command::run(client, process).await;
    channels.close().await;
}
