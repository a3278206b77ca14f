//! Exec and attach: a process's descriptors on one side, a client's streams on the other.
//!
//! Guarantees: all output that came before the end reaches the client before the status does; a slow client
//! slows the process down, nothing is buffered without bound; when the client goes away every descriptor is
//! closed at once (a terminal's process then gets SIGHUP from the kernel).
//! Caveat: processes left behind by a command that ended are not waited for: their output is sent until there
//! is none for half a second.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::pipe::{Sink, Source};
use super::protocol::StatusForm;
use super::status::{Ending, status_bytes};

/// How long silence lasts after a process ended before its output counts as complete.
const SILENCE: Duration = Duration::from_millis(500);

/// A running process as the streams see it.
pub struct Process {
    /// Where its input goes.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    /// Its output; with a terminal all of it.
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Its errors.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// Everything else that can be done with it.
    pub control: Arc<dyn Control>,
}

/// What can be done with a process besides its streams.
#[async_trait::async_trait]
pub trait Control: Send + Sync {
    /// Waits for its end.
    async fn wait(&self) -> Ending;
    /// Sets the size of its terminal.
    fn resize(&self, columns: u16, rows: u16);
    /// The client sends no more input, and our end was dropped.
    async fn input_ended(&self);
}

/// A client's streams, whatever the protocol beneath.
pub struct ClientStreams {
    /// Input.
    pub stdin: Option<Source>,
    /// Output.
    pub stdout: Option<Box<dyn Sink>>,
    /// Errors.
    pub stderr: Option<Box<dyn Sink>>,
    /// Where the status goes.
    pub error: Box<dyn Sink>,
    /// Sizes of the terminal as JSON objects, one after the other.
    pub resize: Option<Source>,
    /// How the status is told.
    pub status: StatusForm,
    /// Fires when the client is gone.
    pub gone: CancellationToken,
}

/// Connects a process to its client until one of them ends. Afterwards the connection should be closed.
pub async fn run(mut client: ClientStreams, process: Result<Process, String>) {
    let ending = match process {
        Ok(process) => {
            let gone = client.gone.clone();
            // Cancel-safe: dropping the work closes the process's descriptors, which is all we want then.
            tokio::select! {
                ending = work(&mut client, process) => ending,
                () = gone.cancelled() => return,
            }
        }
        Err(why) => Ending::Failed(why),
    };
    for sink in [&mut client.stdout, &mut client.stderr].into_iter().flatten() {
        // Here and below: a client that is gone needs no end.
        let _ = sink.finish().await;
    }
    let _ = client.error.send(status_bytes(&ending, client.status)).await;
    let _ = client.error.finish().await;
}

async fn work(client: &mut ClientStreams, process: Process) -> Ending {
    let Process { stdin, stdout, stderr, control } = process;
    let mut inputs = JoinSet::new();
    match (client.stdin.take(), stdin) {
        (Some(source), Some(stdin)) => {
            inputs.spawn(copy_in(source, stdin, control.clone()));
        }
        // Taken and thrown away, so that the connection's reader goes on.
        (Some(source), None) => {
            inputs.spawn(discard(source));
        }
        (None, _) => {}
    }
    if let Some(sizes) = client.resize.take() {
        inputs.spawn(copy_sizes(sizes, control.clone()));
    }
    let ended = CancellationToken::new();
    let outputs = async {
        tokio::join!(
            copy_out(stdout, &mut client.stdout, &ended),
            copy_out(stderr, &mut client.stderr, &ended)
        )
    };
    let end = async {
        let ending = control.wait().await;
        ended.cancel();
        ending
    };
    let (_, ending) = tokio::join!(outputs, end);
    ending
}

async fn copy_in(
    mut source: Source,
    mut stdin: Box<dyn AsyncWrite + Send + Unpin>,
    control: Arc<dyn Control>,
) {
    while let Some(data) = source.next().await {
        if stdin.write_all(&data).await.is_err() {
            break;
        }
    }
    // A process that closed its input has its end already.
    let _ = stdin.shutdown().await;
    drop(stdin);
    control.input_ended().await;
    discard(source).await;
}

async fn discard(mut source: Source) {
    while source.next().await.is_some() {}
}

async fn copy_out(
    from: Option<Box<dyn AsyncRead + Send + Unpin>>,
    to: &mut Option<Box<dyn Sink>>,
    ended: &CancellationToken,
) {
    let (Some(mut from), Some(to)) = (from, to) else { return };
    loop {
        let mut data = BytesMut::with_capacity(32 << 10);
        // Cancel-safe: a read that did not happen took nothing.
        let read = tokio::select! {
            biased;
            read = from.read_buf(&mut data) => read,
            () = async { ended.cancelled().await; tokio::time::sleep(SILENCE).await } => return,
        };
        // The master of a terminal whose last process ended answers EIO.
        if !matches!(read, Ok(1..)) || to.send(data.freeze()).await.is_err() {
            return;
        }
    }
}

#[derive(serde::Deserialize)]
struct Size {
    #[serde(rename = "Width", alias = "width")]
    width: u16,
    #[serde(rename = "Height", alias = "height")]
    height: u16,
}

async fn copy_sizes(mut source: Source, control: Arc<dyn Control>) {
    let mut text = BytesMut::new();
    while let Some(data) = source.next().await {
        text.extend_from_slice(&data);
        if text.len() > 64 << 10 {
            break;
        }
        // Only the last size matters.
        if let Some(Size { width, height }) = take_sizes(&mut text)
            && width > 0
            && height > 0
        {
            control.resize(width, height);
        }
    }
    discard(source).await;
}

/// Takes all complete objects; gives the last. Text that can never be one is dropped.
fn take_sizes(text: &mut BytesMut) -> Option<Size> {
    let mut last = None;
    let mut objects = serde_json::Deserializer::from_slice(text).into_iter::<Size>();
    let mut used = 0;
    let mut broken = false;
    loop {
        match objects.next() {
            Some(Ok(size)) => {
                last = Some(size);
                used = objects.byte_offset();
            }
            Some(Err(error)) => {
                broken = !error.is_eof();
                break;
            }
            None => break,
        }
    }
    if broken {
        text.clear();
    } else {
        text.advance(used);
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_may_come_in_pieces() {
        let mut text = BytesMut::from(&br#"{"Width":80,"Height":24}{"width":100,"hei"#[..]);
        assert!(matches!(take_sizes(&mut text), Some(Size { width: 80, height: 24 })));
        text.extend_from_slice(br#"ght":30}"#);
        assert!(matches!(take_sizes(&mut text), Some(Size { width: 100, height: 30 })));
        assert!(text.is_empty());
        text.extend_from_slice(b"nonsense");
        assert!(take_sizes(&mut text).is_none());
        assert!(text.is_empty());
    }
}
