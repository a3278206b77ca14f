//! Clients that send anything at all. For fuzzing only.

use std::time::Duration;

use bytes::BytesMut;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::spdy::Connection;
use super::spdy::fuzz::control_frame;
use super::websocket::{self, Channels};

/// A connection must end within this once its client is gone; beyond it, it hangs.
const END: Duration = Duration::from_secs(10);

/// Lets a SPDY client send these bytes and go away; then reads them as single control frames, too.
///
/// # Panics
/// The connection doesn't end, or a frame is another one when it was written and read again.
pub async fn spdy(bytes: &[u8]) {
    control_frame(bytes);
    let (near, far) = tokio::io::duplex(16 << 10);
    let mut connection = Connection::new(near);
    let gone = connection.gone();
    let server = async {
        while let Some(mut stream) = connection.accept().await {
            let _header = stream.header("streamtype");
            tokio::spawn(async move {
                while stream.source.next().await.is_some() {}
                let _gone_or_finished = super::pipe::Sink::finish(&mut stream.sink).await;
            });
        }
        gone.cancelled().await;
    };
    ends(server, client(far, bytes)).await;
}

/// Lets a WebSocket client send these bytes after the handshake and go away.
///
/// # Panics
/// The connection doesn't end.
pub async fn websocket(bytes: &[u8]) {
    for (base64, close) in [(false, true), (true, false)] {
        let (near, far) = tokio::io::duplex(16 << 10);
        let server = async {
            let (channels, sources) = Channels::new(websocket::server(near).await, &[0, 4], base64, close);
            for (_, mut source) in sources {
                tokio::spawn(async move { while source.next().await.is_some() {} });
            }
            channels.greet(1).await;
            channels.gone().cancelled().await;
        };
        ends(server, client(far, bytes)).await;
    }
    let (near, far) = tokio::io::duplex(16 << 10);
    let server = async {
        let mut pipe = websocket::byte_pipe(websocket::server(near).await);
        let mut buffer = vec![0; 4096];
        while let Ok(1..) = pipe.read(&mut buffer).await {}
    };
    ends(server, client(far, bytes)).await;
}

/// Sends everything, and reads what comes back.
async fn client(far: tokio::io::DuplexStream, bytes: &[u8]) {
    let (mut read, mut write) = tokio::io::split(far);
    let answers = tokio::spawn(async move {
        let mut answers = BytesMut::new();
        while let Ok(1..) = read.read_buf(&mut answers).await {
            answers.clear();
        }
    });
    // A server that has enough of it closes.
    let _sent_or_closed = write.write_all(bytes).await;
    let _closed = write.shutdown().await;
    drop(write);
    let _ended = answers.await;
}

async fn ends(server: impl Future<Output = ()>, client: impl Future<Output = ()>) {
    let both = async { tokio::join!(server, client) };
    tokio::time::timeout(END, both).await.expect("a connection ends with its client");
}
