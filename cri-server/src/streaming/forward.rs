//! Port-forward: pairs of streams on the client's side, TCP connections inside the sandbox on the other.
//!
//! Guarantees: each direction is closed by itself; a broken pair breaks no other.
//! Caveat: TCP only, as Kubernetes has it.

use std::collections::HashMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinSet;

use super::Backend;
use super::pipe::{Sink, Source};
use super::spdy::{Connection, Stream};
use super::websocket::Channels;

/// How long one stream of a pair waits for the other.
const PAIRING: Duration = Duration::from_secs(30);

/// Serves a SPDY connection until the client is gone.
pub async fn over_spdy(mut connection: Connection, backend: Arc<dyn Backend>, sandbox: String) {
    let gone = connection.gone();
    let mut pairs = JoinSet::new();
    // Streams whose partner has not come, by request.
    let mut waiting: HashMap<String, (Stream, tokio::time::Instant)> = HashMap::new();
    let mut tick = tokio::time::interval(PAIRING / 3);
    loop {
        // Cancel-safe: `accept`, `tick` and `join_next` lose nothing when dropped.
        let stream = tokio::select! {
            stream = connection.accept() => match stream {
                Some(stream) => stream,
                None => break,
            },
            now = tick.tick() => {
                waiting.retain(|_, (_, since)| now.duration_since(*since) < PAIRING);
                continue;
            }
            Some(_) = pairs.join_next() => continue,
        };
        let Some(request) = request_of(&stream) else {
            stream.sink.cancel().await;
            continue;
        };
        match waiting.remove(&request) {
            None => {
                waiting.insert(request, (stream, tokio::time::Instant::now()));
            }
            Some((first, _)) if is_error(&first) == is_error(&stream) => {
                // Two of a kind: neither can be right.
                first.sink.cancel().await;
                stream.sink.cancel().await;
            }
            Some((first, _)) => {
                let (error, data) = if is_error(&first) { (first, stream) } else { (stream, first) };
                pairs.spawn(forward_pair(error, data, backend.clone(), sandbox.clone()));
            }
        }
    }
    gone.cancel();
}

/// What pairs a stream with another. Old clients give no number: their error stream comes first, the data
/// stream directly after it.
fn request_of(stream: &Stream) -> Option<String> {
    match (stream.header("requestid"), stream.header("streamtype")?) {
        (Some(request), "error" | "data") => Some(request.to_owned()),
        (None, "error") => Some(stream.id.to_string()),
        (None, "data") => Some(stream.id.checked_sub(2)?.to_string()),
        _ => None,
    }
}

fn is_error(stream: &Stream) -> bool {
    stream.header("streamtype") == Some("error")
}

async fn forward_pair(mut error: Stream, data: Stream, backend: Arc<dyn Backend>, sandbox: String) {
    let port = data.header("port").and_then(|port| port.parse::<u16>().ok()).filter(|port| *port > 0);
    let Stream { source, mut sink, reset, .. } = data;
    let outcome = match port {
        None => Err("the data stream names no port from 1 to 65535".to_owned()),
        Some(port) => {
            let work = connect_and_copy(&*backend, &sandbox, port, source, &mut sink);
            // Cancel-safe: a stream that was reset needs no rest; dropping the work closes the socket.
            tokio::select! {
                outcome = work => outcome,
                () = reset.cancelled() => Ok(()),
            }
        }
    };
    // From here on: a client that is gone needs no reason and no end.
    if let Err(why) = outcome {
        let _ = error.sink.send(Bytes::from(why)).await;
    }
    let _ = sink.finish().await;
    let _ = error.sink.finish().await;
}

async fn connect_and_copy(
    backend: &dyn Backend,
    sandbox: &str,
    port: u16,
    source: Source,
    sink: &mut dyn Sink,
) -> Result<(), String> {
    let socket = backend
        .dial(sandbox, port)
        .await
        .map_err(|error| format!("connect to port {port} inside the pod's network: {error}"))?;
    let (read, write) = socket.into_split();
    let (up, down) = tokio::join!(copy_up(source, write), copy_down(read, sink));
    up.and(down).map_err(|error| format!("forward port {port}: {error}"))
}

async fn copy_up(mut source: Source, mut socket: OwnedWriteHalf) -> io::Result<()> {
    while let Some(data) = source.next().await {
        if let Err(error) = socket.write_all(&data).await {
            // The pod's process closed first: what the client still sends goes nowhere.
            while source.next().await.is_some() {}
            return if is_hang_up(&error) { Ok(()) } else { Err(error) };
        }
    }
    match socket.shutdown().await {
        Err(error) if is_hang_up(&error) => Ok(()),
        result => result,
    }
}

async fn copy_down(mut socket: OwnedReadHalf, sink: &mut dyn Sink) -> io::Result<()> {
    loop {
        let mut data = BytesMut::with_capacity(32 << 10);
        match socket.read_buf(&mut data).await {
            Ok(0) => break,
            Err(error) if is_hang_up(&error) => break,
            Err(error) => return Err(error),
            Ok(_) if sink.send(data.freeze()).await.is_err() => return Ok(()),
            Ok(_) => {}
        }
    }
    // Told at once, while the client may still be sending; one that is gone needs no end.
    let _ = sink.finish().await;
    Ok(())
}

fn is_hang_up(error: &io::Error) -> bool {
    use io::ErrorKind::{BrokenPipe, ConnectionReset, NotConnected};
    matches!(error.kind(), BrokenPipe | ConnectionReset | NotConnected)
}

/// The channels of `ports` forwarded over WebSocket: data on 2i, errors on 2i+1.
pub fn channels_of(ports: &[u16]) -> Vec<u8> {
    (0..ports.len() as u8 * 2).collect()
}

/// Serves a WebSocket connection with channels: one TCP connection for each port, made at once. Each channel
/// first tells its port as two bytes, the lower one first.
pub async fn over_channels(
    channels: Channels,
    mut sources: HashMap<u8, Source>,
    ports: Vec<u16>,
    backend: Arc<dyn Backend>,
    sandbox: String,
) {
    let gone = channels.gone();
    let mut pairs = JoinSet::new();
    for (index, port) in ports.into_iter().enumerate() {
        let channel = index as u8 * 2;
        let (Some(source), Some(mut unused)) = (sources.remove(&channel), sources.remove(&(channel + 1)))
        else {
            continue;
        };
        let (mut data, mut error) = (channels.sink(channel), channels.sink(channel + 1));
        let (backend, sandbox) = (backend.clone(), sandbox.clone());
        pairs.spawn(async move {
            let head = Bytes::copy_from_slice(&port.to_le_bytes());
            // Here and below: a client that is gone also ends the work, by `gone`.
            let _ = data.send(head.clone()).await;
            let _ = error.send(head).await;
            let ignore = async { while unused.next().await.is_some() {} };
            let work = connect_and_copy(&*backend, &sandbox, port, source, &mut *data);
            let (outcome, ()) = tokio::join!(work, ignore);
            if let Err(why) = outcome {
                let _ = error.send(Bytes::from(why)).await;
            }
        });
    }
    // Cancel-safe: dropping the set ends what is left.
    tokio::select! {
        () = async { while pairs.join_next().await.is_some() {} } => channels.close().await,
        () = gone.cancelled() => {}
    }
}

/// Dials a port as `localhost` means it: IPv4 first, then IPv6.
pub async fn dial_local(port: u16, sockets: [io::Result<tokio::net::TcpSocket>; 2]) -> io::Result<TcpStream> {
    let [v4, v6] = sockets;
    let refused = match v4 {
        Ok(socket) => match socket.connect((std::net::Ipv4Addr::LOCALHOST, port).into()).await {
            Ok(stream) => return Ok(stream),
            Err(error) => error,
        },
        Err(error) => error,
    };
    match v6 {
        Ok(socket) => socket.connect((std::net::Ipv6Addr::LOCALHOST, port).into()).await.map_err(|_| refused),
        Err(_) => Err(refused),
    }
}
