//! A file that one side appends to while the other reads it: the download and the unpacking.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Condvar, Mutex};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Open,
    Complete,
    Broken,
}

/// How much there is, shared by both sides.
#[derive(Debug)]
pub(super) struct Level {
    state: Mutex<(u64, End)>,
    changed: Condvar,
}

impl Level {
    pub(super) fn new(bytes: u64) -> Arc<Level> {
        Arc::new(Level { state: Mutex::new((bytes, End::Open)), changed: Condvar::new() })
    }

    /// Tells the reader that there are `bytes` in all.
    pub(super) fn raise(&self, bytes: u64) {
        self.state.lock().0 = bytes;
        self.changed.notify_all();
    }

    /// Tells the reader that nothing more comes.
    pub(super) fn complete(&self) {
        self.end(End::Complete);
    }

    fn end(&self, end: End) {
        let mut state = self.state.lock();
        if state.1 == End::Open {
            state.1 = end;
        }
        drop(state);
        self.changed.notify_all();
    }
}

/// Breaks the reader's wait when the writer goes away, however it does.
pub(super) struct Writer(pub(super) Arc<Level>);

impl Drop for Writer {
    fn drop(&mut self) {
        self.0.end(End::Broken);
    }
}

/// Reads the file from its start, waiting for the writer. Blocks: for threads that may.
pub(super) struct Incoming {
    file: File,
    level: Arc<Level>,
    at: u64,
    /// Counts what is read, for others.
    moved: Arc<AtomicU64>,
}

impl Incoming {
    pub(super) fn new(file: File, level: Arc<Level>, moved: Arc<AtomicU64>) -> Incoming {
        Incoming { file, level, at: 0, moved }
    }
}

impl Read for Incoming {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let available = {
            let mut state = self.level.state.lock();
            loop {
                match *state {
                    (bytes, _) if bytes > self.at => break bytes - self.at,
                    (_, End::Complete) => return Ok(0),
                    (_, End::Broken) => return Err(io::ErrorKind::ConnectionAborted.into()),
                    (_, End::Open) => self.level.changed.wait(&mut state),
                }
            }
        };
        let most = buf.len().min(usize::try_from(available).unwrap_or(usize::MAX));
        let n = self.file.read_at(&mut buf[..most], self.at)?;
        if n == 0 && most > 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += n as u64;
        self.moved.fetch_add(n as u64, Ordering::Relaxed);
        Ok(n)
    }
}
