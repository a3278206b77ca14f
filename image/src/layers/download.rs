//! Brings one layer in: the download goes to a file, and is unpacked from there while it grows.
//!
//! A broken connection is resumed where it broke; so is a download that an earlier run of the daemon left.

use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::incoming::{Incoming, Level, Writer};
use super::{Arrived, Content, Landing, LayerError, Phase, Staging};
use crate::digest::Digest;
use crate::manifest::Descriptor;
use crate::progress::LayerProgress;
use crate::registry::{Blob, RegistryError, Session};
use crate::state::{LayerRecord, Origin};
use crate::store::{ForeignLayers, Store, remove_file};
use crate::unpack::{HashingReader, SOURCE, UnpackError, unpack};

/// Tries in a row that bring nothing, before we give up.
const BARREN_TRIES: u32 = 4;
/// Tries in all.
const TRIES: u32 = 30;
/// Data is handed to the disk in pieces of about this many bytes.
const PIECE: usize = 512 << 10;
/// A slow download hands over what it has at least this often.
const PATIENCE: Duration = Duration::from_secs(1);

/// Downloads a layer and unpacks it, or a blob. If data from an earlier run turns out wrong, starts again once.
pub(super) async fn bring_in(mut job: Job<'_>) -> Result<Arrived, LayerError> {
    match job.run().await {
        Err(LayerError::WrongDigest { .. }) if job.found > 0 => {
            warn!(digest = %job.layer.digest, "an interrupted download was damaged on disk; start again");
            job.run().await
        }
        other => other,
    }
}

pub(super) struct Job<'a> {
    pub(super) store: &'a Store,
    pub(super) session: &'a Session,
    pub(super) layer: &'a Descriptor,
    pub(super) content: &'a Content,
    pub(super) phase: &'a watch::Sender<Phase>,
    pub(super) token: &'a CancellationToken,
    pub(super) moved: &'a Arc<AtomicU64>,
    /// Bytes that an earlier run left.
    pub(super) found: u64,
}

/// What the unpacking thread found out.
struct Outcome {
    staging: Staging,
    /// `None` for a blob that stays as it is.
    unpacked: Option<Result<LayerRecord, UnpackError>>,
    /// Digest and size of the compressed data; `None` if it was not read to its end.
    data: Option<(Digest, u64)>,
}

impl Job<'_> {
    async fn run(&mut self) -> Result<Arrived, LayerError> {
        let digest = &self.layer.digest;
        let partial = match self.content {
            Content::Layer(_) => self.store.0.layout.partial(digest),
            Content::Blob => self.store.0.layout.partial_blob(digest),
        };
        let failed = |source| LayerError::Store { digest: digest.clone(), source };
        sys::fault::point("layer: open the file of its download").map_err(failed)?;
        let file =
            File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(&partial);
        let file = Arc::new(file.map_err(failed)?);
        let mut have = file.metadata().map_err(failed)?.len();
        if have > self.layer.size {
            file.set_len(0).map_err(failed)?;
            have = 0;
        }
        self.found = have;
        let level = Level::new(have);
        let writer = Writer(level.clone());
        let reading = Incoming::new(file.try_clone().map_err(failed)?, level, self.moved.clone());
        let staging = Staging::new(self.store.0.layout.temporary());
        let mut unpacking = {
            let (store, content) = (self.store.clone(), self.content.clone());
            let size = self.layer.size;
            tokio::task::spawn_blocking(move || {
                let mut reader = HashingReader::new(reading);
                let limits = &store.0.limits;
                let unpacked = match &content {
                    Content::Layer(id) => Some(unpack(&mut reader, size, staging.path(), Some(id), limits)),
                    Content::Blob => None,
                };
                // A refused layer is read on only if it could be damaged instead of hostile.
                let data = match &unpacked {
                    Some(Err(err)) if !err.may_be_damage() => None,
                    _ => reader.finish().ok(),
                };
                Outcome { staging, unpacked, data }
            })
        };
        let outcome = tokio::select! {
            // Cancel-safe: a failed unpacking ends the download; what came stays on disk.
            outcome = &mut unpacking => outcome,
            downloaded = self.download(&file, have, &writer) => match downloaded {
                Ok(()) => {
                    writer.0.complete();
                    self.tell(LayerProgress::Unpacking);
                    (&mut unpacking).await
                }
                Err(err) => {
                    if matches!(err, LayerError::Store { .. }) {
                        // The disk is full, most likely: what cannot be completed gives its space back.
                        let _ = remove_file(&partial);
                    }
                    return Err(err);
                }
            },
        };
        let outcome = outcome.map_err(|_| LayerError::Abandoned(digest.clone()))?;
        sys::fault::point("layer: judge it").map_err(failed)?;
        self.judge(outcome, &partial)
    }

    /// Verifies digest and size first: damaged data explains any other error.
    fn judge(&self, outcome: Outcome, partial: &Path) -> Result<Arrived, LayerError> {
        let Outcome { staging, unpacked, data } = outcome;
        let digest = &self.layer.digest;
        let good = data.as_ref().is_some_and(|(actual, size)| actual == digest && *size == self.layer.size);
        let result = match (data, unpacked) {
            (Some((actual, _)), _) if !good => {
                Err(LayerError::WrongDigest { expected: digest.clone(), actual })
            }
            (_, Some(Ok(record))) => self.keep(staging, record, partial),
            (_, Some(Err(source))) => Err(LayerError::Unpack { digest: digest.clone(), source }),
            (Some(_), None) => match std::fs::rename(partial, staging.path()) {
                Ok(()) => Ok(Arrived::Blob(Arc::new(Landing(staging)))),
                Err(source) => Err(LayerError::Store { digest: digest.clone(), source }),
            },
            (None, None) => Err(LayerError::Abandoned(digest.clone())),
        };
        let result = result.and_then(|arrived| {
            let failed = |source| LayerError::Store { digest: digest.clone(), source };
            sys::fault::point("layer: remove its download").map(|()| arrived).map_err(failed)
        });
        // A full disk is no reason to download again; it is one to give the space back, though.
        if let Err(err) = remove_file(partial) {
            warn!(path = %partial.display(), %err, "cannot remove a finished download");
        }
        result
    }

    /// Keeps an unpacked layer; with it the download, if the tree does not tell all of it.
    fn keep(&self, staging: Staging, record: LayerRecord, partial: &Path) -> Result<Arrived, LayerError> {
        if record.origin == Origin::Source {
            let kept = std::fs::rename(partial, staging.path().join(SOURCE));
            kept.map_err(|source| LayerError::Store { digest: self.layer.digest.clone(), source })?;
        }
        Ok(Arrived::Layer(Arc::new(staging.keep(record))))
    }

    fn tell(&self, progress: LayerProgress) {
        self.phase.send_replace(Phase::Running(progress));
    }

    /// Gets the rest of the data, resuming when it breaks off.
    async fn download(&self, file: &Arc<File>, mut have: u64, writer: &Writer) -> Result<(), LayerError> {
        let total = self.layer.size;
        let mut barren = 0;
        for attempt in 1..=TRIES {
            if have == total {
                return Ok(());
            }
            self.tell(LayerProgress::Downloading { done: have, total });
            let before = have;
            let err = match self.stream(file, &mut have, writer).await {
                Ok(()) if have == total => return Ok(()),
                Ok(()) => RegistryError::Truncated { got: have, expected: total },
                Err(Failure::Registry(err)) => err,
                Err(Failure::Disk(source)) => {
                    return Err(LayerError::Store { digest: self.layer.digest.clone(), source });
                }
            };
            barren = if have > before { 0 } else { barren + 1 };
            if !err.is_transient() || barren >= BARREN_TRIES || attempt == TRIES {
                return Err(LayerError::Download { digest: self.layer.digest.clone(), source: err });
            }
            let pause = Duration::from_millis(100u64 << barren.min(6));
            debug!(digest = %self.layer.digest, have, total, %err, ?pause, "download broke off; resume");
            tokio::select! {
                // Cancel-safe: a dropped timer is forgotten.
                () = tokio::time::sleep(pause) => (),
                () = self.token.cancelled() => {
                    return Err(LayerError::Abandoned(self.layer.digest.clone()));
                }
            }
        }
        Ok(())
    }

    /// Asks the registry; for a foreign layer that it does not have, other places if that is allowed.
    async fn open(&self, have: u64) -> Result<Blob, RegistryError> {
        let Descriptor { digest, urls, .. } = self.layer;
        match self.session.blob(digest, have).await {
            Err(RegistryError::NotFound { .. }) if !urls.is_empty() => match self.store.0.foreign {
                ForeignLayers::Fetch => self.session.foreign(urls, digest, have).await,
                ForeignLayers::Refuse => Err(RegistryError::Foreign {
                    digest: digest.clone(),
                    host: self.session.domain().to_owned(),
                    places: urls.join(", ").chars().filter(|c| !c.is_control()).take(300).collect(),
                }),
            },
            other => other,
        }
    }

    /// One request: appends what it brings, and counts it in `have`.
    async fn stream(&self, file: &Arc<File>, have: &mut u64, writer: &Writer) -> Result<(), Failure> {
        let total = self.layer.size;
        sys::fault::point("layer: ask for it").map_err(Failure::Disk)?;
        let mut blob = self.open(*have).await.map_err(Failure::Registry)?;
        // A server that knows no ranges starts over: what we have is skipped.
        let mut skip = *have - blob.start.min(*have);
        let mut piece = Vec::with_capacity(PIECE);
        let mut handed_over = Instant::now();
        loop {
            let frame = match blob.frame().await {
                Ok(frame) => frame,
                Err(err) => {
                    // What came before the break is good.
                    write_piece(file, have, &mut piece, writer).await?;
                    return Err(Failure::Registry(err));
                }
            };
            let Some(data) = frame else { break };
            let skipped = usize::try_from(skip).unwrap_or(usize::MAX).min(data.len());
            skip -= skipped as u64;
            piece.extend_from_slice(&data[skipped..]);
            self.moved.fetch_add(data.len() as u64, Ordering::Relaxed);
            if *have + piece.len() as u64 > total {
                return Err(Failure::Registry(RegistryError::TooLong { expected: total }));
            }
            if piece.len() >= PIECE || handed_over.elapsed() >= PATIENCE {
                write_piece(file, have, &mut piece, writer).await?;
                handed_over = Instant::now();
                self.tell(LayerProgress::Downloading { done: *have, total });
            }
        }
        write_piece(file, have, &mut piece, writer).await
    }
}

enum Failure {
    Registry(RegistryError),
    Disk(io::Error),
}

async fn write_piece(
    file: &Arc<File>,
    have: &mut u64,
    piece: &mut Vec<u8>,
    writer: &Writer,
) -> Result<(), Failure> {
    if piece.is_empty() {
        return Ok(());
    }
    sys::fault::point("layer: write what came").map_err(Failure::Disk)?;
    let (file, at, data) = (file.clone(), *have, std::mem::take(piece));
    let written = tokio::task::spawn_blocking(move || file.write_all_at(&data, at).map(|()| data)).await;
    let mut data = written.map_err(|err| Failure::Disk(io::Error::other(err)))?.map_err(Failure::Disk)?;
    *have += data.len() as u64;
    writer.0.raise(*have);
    data.clear();
    *piece = data;
    Ok(())
}
