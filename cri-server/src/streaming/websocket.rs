//! WebSocket: channels in messages for commands, and a plain byte pipe for SPDY frames.
//!
//! Guarantees: pings are answered while the client's input is taken; messages beyond 1 MiB end the connection.

use std::collections::HashMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::{BufMut, Bytes, BytesMut};
use futures::{SinkExt, StreamExt};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, DuplexStream};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_util::sync::CancellationToken;

use super::pipe::{Gone, Sink, Source};

/// Channel on which a version 5 client closes others.
const CLOSE: u8 = 255;
/// The longest message that we take, and (less its first byte) send.
const MAX_MESSAGE: usize = 1 << 20;
const MAX_SENT: usize = 32 << 10;

/// Takes over a connection after the handshake.
pub async fn server<T: AsyncRead + AsyncWrite + Unpin>(io: T) -> WebSocketStream<T> {
    let config =
        WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    WebSocketStream::from_raw_socket(io, Role::Server, Some(config)).await
}

/// A connection whose messages name channels.
pub struct Channels {
    out: mpsc::Sender<Message>,
    base64: bool,
    gone: CancellationToken,
    writer: tokio::task::JoinHandle<()>,
}

impl Channels {
    /// Serves `socket`; gives a source for each channel of `inputs`.
    pub fn new<T>(
        socket: WebSocketStream<T>,
        inputs: &[u8],
        base64: bool,
        close: bool,
    ) -> (Channels, HashMap<u8, Source>)
    where
        T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let (mut write, mut read) = socket.split();
        let (out, mut messages) = mpsc::channel::<Message>(16);
        let gone = CancellationToken::new();
        let (mut takers, mut sources) = (HashMap::new(), HashMap::new());
        for channel in inputs {
            let (taker, source) = Source::new(None);
            takers.insert(*channel, taker);
            sources.insert(*channel, source);
        }
        let reader_gone = gone.clone();
        tokio::spawn(async move {
            // Cancel-safe: a connection that is gone needs no more input.
            tokio::select! {
                () = async {
                    while let Some(Ok(message)) = read.next().await {
                        let Some((channel, data)) = open_message(message, base64) else { break };
                        if close && channel == CLOSE {
                            data.first().map(|closed| takers.remove(closed));
                        } else if let Some(taker) = takers.get(&channel)
                            && !data.is_empty()
                            && taker.send(data).await.is_err()
                        {
                            takers.remove(&channel);
                        }
                    }
                } => {}
                () = reader_gone.cancelled() => {}
            }
            reader_gone.cancel();
        });
        let writer_gone = gone.clone();
        let writer = tokio::spawn(async move {
            tokio::select! {
                () = async {
                    while let Some(message) = messages.recv().await {
                        let last = matches!(message, Message::Close(_));
                        if write.send(message).await.is_err() || last {
                            break;
                        }
                    }
                } => {}
                () = writer_gone.cancelled() => {}
            }
        });
        (Channels { out, base64, gone, writer }, sources)
    }

    /// Fires when the client is gone.
    pub fn gone(&self) -> CancellationToken {
        self.gone.clone()
    }

    /// A sink for one channel.
    pub fn sink(&self, channel: u8) -> Box<dyn Sink> {
        Box::new(ChannelSink { channel, base64: self.base64, out: self.out.clone(), gone: self.gone.clone() })
    }

    /// Sends an empty message on a channel: tells old browsers' clients that the connection stands.
    pub async fn greet(&self, channel: u8) {
        // A client that is gone needs no greeting.
        let _ = self.out.send(close_message(channel, &[], self.base64)).await;
    }

    /// Sends what waits and a normal close; waits a little for the client to close.
    pub async fn close(mut self) {
        let goodbye = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        // A client that is gone, or that doesn't answer in time, has had its chance.
        let _ = self.out.send(Message::Close(Some(goodbye))).await;
        let _ = tokio::time::timeout(std::time::Duration::from_secs(5), async {
            let _ = (&mut self.writer).await;
            self.gone.cancelled().await;
        })
        .await;
        self.gone.cancel();
    }
}

impl Drop for Channels {
    fn drop(&mut self) {
        self.gone.cancel();
    }
}

/// Channel and bytes of a message; `None` for what cannot be one. Control frames count as empty input.
fn open_message(message: Message, base64: bool) -> Option<(u8, Bytes)> {
    let all = match message {
        Message::Binary(all) => all,
        Message::Text(text) => Bytes::from(text),
        Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => return Some((0, Bytes::new())),
        Message::Close(_) => return None,
    };
    let Some(channel) = all.first().copied() else { return Some((0, Bytes::new())) };
    let data = all.slice(1..);
    if !base64 {
        return Some((channel, data));
    }
    let channel = channel.checked_sub(b'0').filter(|digit| *digit < 10)?;
    Some((channel, STANDARD.decode(data).ok()?.into()))
}

fn close_message(channel: u8, data: &[u8], base64: bool) -> Message {
    if base64 {
        return Message::text(format!("{}{}", char::from(b'0' + channel), STANDARD.encode(data)));
    }
    let mut message = BytesMut::with_capacity(1 + data.len());
    message.put_u8(channel);
    message.put_slice(data);
    Message::Binary(message.freeze())
}

struct ChannelSink {
    channel: u8,
    base64: bool,
    out: mpsc::Sender<Message>,
    gone: CancellationToken,
}

#[async_trait::async_trait]
impl Sink for ChannelSink {
    async fn send(&mut self, mut data: Bytes) -> Result<(), Gone> {
        while !data.is_empty() {
            let piece = data.split_to(data.len().min(MAX_SENT));
            // Cancel-safe: nothing reaches a client that is gone.
            tokio::select! {
                sent = self.out.send(close_message(self.channel, &piece, self.base64)) => sent.map_err(|_| Gone)?,
                () = self.gone.cancelled() => return Err(Gone),
            }
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), Gone> {
        // No version lets the server close a channel: the connection's end closes all.
        Ok(())
    }
}

/// The bytes in a connection's binary messages, as one pipe.
pub fn byte_pipe<T>(socket: WebSocketStream<T>) -> DuplexStream
where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let (near, far) = tokio::io::duplex(128 << 10);
    let (mut far_read, mut far_write) = tokio::io::split(far);
    let (mut write, mut read) = socket.split();
    tokio::spawn(async move {
        while let Some(Ok(message)) = read.next().await {
            match message {
                Message::Binary(data) => {
                    if far_write.write_all(&data).await.is_err() {
                        break;
                    }
                }
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
                Message::Text(_) | Message::Close(_) => break,
            }
        }
        // A user that is gone needs no end.
        let _ = far_write.shutdown().await;
    });
    tokio::spawn(async move {
        loop {
            let mut piece = BytesMut::with_capacity(MAX_SENT);
            match far_read.read_buf(&mut piece).await {
                Ok(0) | Err(_) => break,
                Ok(_) if write.send(Message::Binary(piece.freeze())).await.is_err() => break,
                Ok(_) => {}
            }
        }
        let goodbye = CloseFrame { code: CloseCode::Normal, reason: "".into() };
        // A client that is gone needs no goodbye.
        let _ = write.send(Message::Close(Some(goodbye))).await;
    });
    near
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_their_channel() {
        let check = |channel, data: &[u8], base64, message: Message| {
            assert_eq!(close_message(channel, data, base64), message);
            assert_eq!(open_message(message, base64), Some((channel, Bytes::copy_from_slice(data))));
        };
        check(1, b"hi\0", false, Message::Binary(Bytes::from_static(b"\x01hi\0")));
        check(3, b"", false, Message::Binary(Bytes::from_static(b"\x03")));
        check(2, b"hi", true, Message::text("2aGk="));
        assert_eq!(open_message(Message::text("x"), true), None);
        assert_eq!(open_message(Message::text("0!"), true), None);
        assert_eq!(open_message(Message::Binary(Bytes::new()), false), Some((0, Bytes::new())));
    }
}
