//! SPDY/3.1, the server's side: one connection, many streams, all opened by the client.
//!
//! Guarantees: memory per stream and connection is bounded; a reader that waits for a slow stream stops
//! reading the connection, so the client is slowed down.
//! Caveats: no priorities; streams are never opened by us.

mod frame;
pub(super) mod fuzz;
mod headers;
mod window;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::pipe::{Gone, Sink, Source};
use frame::{Frame, Head};
use headers::{Expander, Headers, Packer};
use window::{Enforced, Window};

/// Streams that may be open at a time in one connection.
const MAX_STREAMS: usize = 1000;
/// Frames that wait for the writer.
const WAITING_FRAMES: usize = 16;
/// How long a client may take to close after everything was sent.
const LINGER: Duration = Duration::from_secs(5);

/// What the writer is given: frames whose header blocks it has to pack.
enum Outgoing {
    Reply {
        id: u32,
    },
    Plain(Frame),
    /// Flush, then close the sending side.
    End,
}

/// A stream that the client opened and that was accepted.
pub struct Stream {
    /// Its number, odd.
    pub id: u32,
    headers: Headers,
    /// What the client sends.
    pub source: Source,
    /// What it receives.
    pub sink: StreamSink,
    /// Fires when the client resets the stream or is gone.
    pub reset: CancellationToken,
}

impl Stream {
    /// The value of a header; `name` in lower case.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// What reader, writer and streams know together.
struct Shared {
    out: mpsc::Sender<Outgoing>,
    open: Mutex<HashMap<u32, Entry>>,
    initial_window: Mutex<i64>,
    enforced: Enforced,
    gone: CancellationToken,
}

/// The connection's side of a stream.
struct Entry {
    /// `None` after the client's FIN.
    pieces: Option<mpsc::Sender<Bytes>>,
    window: Arc<Window>,
    reset: CancellationToken,
    /// We sent FIN or RST.
    finished: bool,
}

/// A connection. Dropping it ends it; `close` lets the client read what was sent.
pub struct Connection {
    shared: Arc<Shared>,
    streams: mpsc::Receiver<Stream>,
    writer: tokio::task::JoinHandle<()>,
}

impl Connection {
    /// Speaks SPDY over `io`.
    pub fn new<T: AsyncRead + AsyncWrite + Send + 'static>(io: T) -> Connection {
        let (out, frames) = mpsc::channel(WAITING_FRAMES);
        let (opened, streams) = mpsc::channel(16);
        let shared = Arc::new(Shared {
            out,
            open: Mutex::default(),
            initial_window: Mutex::new(window::INITIAL),
            enforced: Enforced::default(),
            gone: CancellationToken::new(),
        });
        let (read, write) = tokio::io::split(io);
        let gone = shared.gone.clone();
        let writer = tokio::spawn(async move {
            // Cancel-safe: a connection that is gone needs no rest of a frame.
            tokio::select! {
                result = write_frames(write, frames) => if result.is_err() { gone.cancel() },
                () = gone.cancelled() => {}
            }
        });
        let ours = shared.clone();
        tokio::spawn(async move {
            let gone = ours.gone.clone();
            tokio::select! {
                result = read_frames(read, &ours, opened) => {
                    if let Err(error) = result {
                        tracing::debug!(error = %error, "SPDY connection ends");
                    }
                }
                () = gone.cancelled() => {}
            }
            ours.end();
        });
        Connection { shared, streams, writer }
    }

    /// The next stream that the client opens; `None` when it is gone. Cancel-safe.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.streams.recv().await
    }

    /// Fires when the client is gone.
    pub fn gone(&self) -> CancellationToken {
        self.shared.gone.clone()
    }

    /// Sends what waits, closes our side, and waits a little for the client to close its own.
    pub async fn close(mut self) {
        // A client that is gone, or that doesn't close in time, has had its chance.
        let _ = self.shared.out.send(Outgoing::End).await;
        let gone = self.shared.gone.clone();
        let lingered = tokio::time::timeout(LINGER, async {
            // Streams opened now are not looked at any more; taking them keeps the reader going.
            while self.streams.recv().await.is_some() {}
        });
        let _ = lingered.await;
        gone.cancel();
        // How it ended was logged by itself.
        let _ = (&mut self.writer).await;
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.shared.gone.cancel();
    }
}

impl Shared {
    /// Ends all streams.
    fn end(&self) {
        self.gone.cancel();
        for (_, entry) in self.open.lock().drain() {
            entry.reset.cancel();
        }
    }

    async fn send(&self, frame: Frame) -> Result<(), Gone> {
        self.out.send(Outgoing::Plain(frame)).await.map_err(|_| Gone)
    }

    /// Notes that we send no more on a stream; forgets it if the client does not either.
    fn finished(&self, id: u32) {
        let mut open = self.open.lock();
        if let Some(entry) = open.get_mut(&id) {
            entry.finished = true;
            if entry.pieces.is_none() {
                open.remove(&id);
            }
        }
    }

    /// Notes the client's FIN.
    fn half_closed(&self, id: u32) {
        let mut open = self.open.lock();
        if let Some(entry) = open.get_mut(&id) {
            entry.pieces = None;
            if entry.finished {
                open.remove(&id);
            }
        }
    }
}

async fn write_frames(
    mut io: impl AsyncWrite + Unpin,
    mut frames: mpsc::Receiver<Outgoing>,
) -> std::io::Result<()> {
    let mut packer = Packer::default();
    let mut bytes = BytesMut::with_capacity(2 * frame::MAX_DATA);
    while let Some(first) = frames.recv().await {
        let mut next = Some(first);
        while let Some(outgoing) = next {
            match outgoing {
                Outgoing::Reply { id } => {
                    Frame::SynReply { id, fin: false, block: packer.write(&[]) }.write(&mut bytes);
                }
                Outgoing::Plain(frame) => frame.write(&mut bytes),
                Outgoing::End => {
                    io.write_all(&bytes).await?;
                    return io.shutdown().await;
                }
            }
            next = if bytes.len() < 2 * frame::MAX_DATA { frames.try_recv().ok() } else { None };
        }
        io.write_all(&bytes).await?;
        io.flush().await?;
        bytes.clear();
    }
    Ok(())
}

async fn read_frames(
    mut io: impl AsyncRead + Unpin,
    shared: &Arc<Shared>,
    opened: mpsc::Sender<Stream>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let mut expander = Expander::default();
    let mut last_id = 0;
    let mut head = [0; frame::HEAD];
    loop {
        match io.read_exact(&mut head).await {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            result => result?,
        };
        match Head::parse(head)? {
            Head::Data { id, fin, length } => read_data(&mut io, shared, id, fin, length).await?,
            Head::Control { kind, flags, length } => {
                if length > frame::MAX_CONTROL {
                    return Err(format!("SPDY control frame of {length} bytes").into());
                }
                let mut payload = BytesMut::zeroed(length);
                io.read_exact(&mut payload).await?;
                let Some(frame) = Frame::parse_control(kind, flags, payload.freeze())? else { continue };
                if let Frame::SynStream { id, fin, unidirectional, block, .. } = frame {
                    // Every block is read, or the state of the compression would be lost.
                    let headers = expander.read(&block)?;
                    if id % 2 == 0 || id <= last_id {
                        // Answers to a client that is gone are nobody's loss; the next read tells.
                        let _ = shared.send(Frame::Reset { id, status: frame::PROTOCOL_ERROR }).await;
                        continue;
                    }
                    last_id = id;
                    open_stream(shared, &opened, id, fin, unidirectional, headers).await;
                } else if let Frame::Headers { block, .. } | Frame::SynReply { block, .. } = &frame {
                    expander.read(block)?;
                } else {
                    control(shared, frame).await;
                }
            }
        }
    }
}

/// Passes a data frame on in pieces, so that its declared length costs no memory.
async fn read_data(
    io: &mut (impl AsyncRead + Unpin),
    shared: &Arc<Shared>,
    id: u32,
    fin: bool,
    mut length: usize,
) -> std::io::Result<()> {
    let (mut pieces, reset) = match shared.open.lock().get(&id) {
        Some(entry) => (entry.pieces.clone(), entry.reset.clone()),
        None => (None, CancellationToken::new()),
    };
    while length > 0 {
        let mut piece = BytesMut::zeroed(length.min(frame::MAX_DATA));
        let read = io.read(&mut piece).await?;
        if read == 0 {
            return Err(std::io::ErrorKind::UnexpectedEof.into());
        }
        length -= read;
        piece.truncate(read);
        if let Some(taker) = &pieces {
            // Cancel-safe: nobody wants the piece of a stream that was reset.
            let taken = tokio::select! {
                sent = taker.send(piece.freeze()) => sent.is_ok(),
                () = reset.cancelled() => false,
            };
            if !taken {
                // Its user is done with it: the rest is read and thrown away.
                pieces = None;
            }
        }
    }
    if fin {
        shared.half_closed(id);
    }
    Ok(())
}

async fn open_stream(
    shared: &Arc<Shared>,
    opened: &mpsc::Sender<Stream>,
    id: u32,
    fin: bool,
    unidirectional: bool,
    headers: Headers,
) {
    if shared.open.lock().len() >= MAX_STREAMS {
        // As all answers here: a client that is gone needs none.
        let _ = shared.send(Frame::Reset { id, status: frame::REFUSED_STREAM }).await;
        return;
    }
    let window = Arc::new(Window::new(*shared.initial_window.lock()));
    let reset = shared.gone.child_token();
    let (pieces, source) = Source::new(Some(window_updates(shared.out.clone(), id)));
    shared.open.lock().insert(
        id,
        Entry {
            pieces: (!fin).then_some(pieces),
            window: window.clone(),
            reset: reset.clone(),
            finished: unidirectional,
        },
    );
    let sink =
        StreamSink { id, shared: shared.clone(), window, reset: reset.clone(), finished: unidirectional };
    // A client that is gone needs no reply; a user that is done takes no more streams.
    let _ = shared.out.send(Outgoing::Reply { id }).await;
    let _ = opened.send(Stream { id, headers, source, sink, reset }).await;
}

/// Gives the client its window back, in halves. When the writer is too busy, a later call catches up.
fn window_updates(out: mpsc::Sender<Outgoing>, id: u32) -> Box<dyn FnMut(usize) + Send> {
    let mut taken: usize = 0;
    Box::new(move |bytes| {
        taken += bytes;
        if taken >= window::INITIAL as usize / 2 {
            let update = Frame::WindowUpdate { id, delta: taken as u32 };
            if out.try_send(Outgoing::Plain(update)).is_ok() {
                taken = 0;
            }
        }
    })
}

async fn control(shared: &Arc<Shared>, frame: Frame) {
    match frame {
        Frame::Reset { id, .. } => {
            if let Some(entry) = shared.open.lock().remove(&id) {
                entry.reset.cancel();
            }
        }
        // Even numbers would be answers to pings of ours, which we do not send.
        Frame::Ping(number) if number % 2 == 1 => {
            // Here and below: a client that is gone needs no answer.
            let _ = shared.send(Frame::Ping(number)).await;
        }
        Frame::WindowUpdate { id, delta } => {
            shared.enforced.begin();
            let window = shared.open.lock().get(&id).map(|entry| entry.window.clone());
            if let Some(window) = window
                && window.open(i64::from(delta)).is_err()
            {
                let _ = shared.send(Frame::Reset { id, status: frame::PROTOCOL_ERROR }).await;
            }
        }
        Frame::Settings(entries) => {
            for (setting, value) in entries {
                if setting == frame::SETTING_INITIAL_WINDOW {
                    shared.enforced.begin();
                    let value = i64::from(value & 0x7fff_ffff);
                    let change = value - std::mem::replace(&mut *shared.initial_window.lock(), value);
                    for entry in shared.open.lock().values() {
                        // A window that would overflow stays as it was: less is sent, never more.
                        let _ = entry.window.open(change);
                    }
                }
            }
        }
        // After GOAWAY the client opens nothing more; what is open goes on until it closes.
        _ => {}
    }
}

/// The sending side of a stream.
pub struct StreamSink {
    id: u32,
    shared: Arc<Shared>,
    window: Arc<Window>,
    reset: CancellationToken,
    finished: bool,
}

impl StreamSink {
    /// Breaks the stream off.
    pub async fn cancel(mut self) {
        self.finished = true;
        // A client that is gone needs no word.
        let _ = self.shared.send(Frame::Reset { id: self.id, status: frame::CANCEL }).await;
        self.shared.open.lock().remove(&self.id);
    }
}

#[async_trait::async_trait]
impl Sink for StreamSink {
    async fn send(&mut self, mut data: Bytes) -> Result<(), Gone> {
        while !data.is_empty() {
            if self.finished || self.reset.is_cancelled() {
                return Err(Gone);
            }
            let wanted = data.len().min(frame::MAX_DATA);
            // Cancel-safe: a stream that was reset sends nothing more, so its window does not matter.
            let granted = tokio::select! {
                granted = self.window.take(wanted, &self.shared.enforced) => granted,
                () = self.reset.cancelled() => return Err(Gone),
            };
            let frame = Frame::Data { id: self.id, fin: false, data: data.split_to(granted) };
            tokio::select! {
                sent = self.shared.send(frame) => sent?,
                () = self.reset.cancelled() => return Err(Gone),
            }
        }
        Ok(())
    }

    async fn finish(&mut self) -> Result<(), Gone> {
        if std::mem::replace(&mut self.finished, true) {
            return Ok(());
        }
        if !self.reset.is_cancelled() {
            self.shared.send(Frame::Data { id: self.id, fin: true, data: Bytes::new() }).await?;
        }
        self.shared.finished(self.id);
        Ok(())
    }
}

impl Drop for StreamSink {
    fn drop(&mut self) {
        if !self.finished {
            let reset = Frame::Reset { id: self.id, status: frame::CANCEL };
            // A queue that is full or closed: the connection's end tells as much.
            let _ = self.shared.out.try_send(Outgoing::Plain(reset));
            self.shared.open.lock().remove(&self.id);
        }
    }
}

#[cfg(test)]
pub mod tests;
