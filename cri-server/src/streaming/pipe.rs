//! One direction of one stream between a client and us, whatever the protocol beneath.

use bytes::Bytes;
use tokio::sync::mpsc;

/// How many pieces of at most 32 KiB wait between a connection's reader and a stream's user.
pub const PIECES: usize = 16;

/// The client is gone, or wants no more of this stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gone;

/// Bytes from the client.
pub struct Source {
    pieces: mpsc::Receiver<Bytes>,
    /// Told how many bytes were taken, for protocols that let the sender wait.
    taken: Option<Box<dyn FnMut(usize) + Send>>,
}

impl Source {
    /// A source and where the connection's reader puts its pieces.
    pub fn new(taken: Option<Box<dyn FnMut(usize) + Send>>) -> (mpsc::Sender<Bytes>, Source) {
        let (sender, pieces) = mpsc::channel(PIECES);
        (sender, Source { pieces, taken })
    }

    /// The next bytes; `None` at the end, also when the client is gone. Cancel-safe.
    pub async fn next(&mut self) -> Option<Bytes> {
        let piece = self.pieces.recv().await?;
        if let Some(taken) = &mut self.taken {
            taken(piece.len());
        }
        Some(piece)
    }
}

/// Bytes to the client. Dropping it without `finish` says that the stream broke off, where the protocol can.
#[async_trait::async_trait]
pub trait Sink: Send {
    /// Sends all of `data`; waits while the client takes nothing.
    async fn send(&mut self, data: Bytes) -> Result<(), Gone>;
    /// Says that nothing more comes.
    async fn finish(&mut self) -> Result<(), Gone>;
}
