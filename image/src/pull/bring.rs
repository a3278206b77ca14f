//! Brings in what a manifest lists: all of it at the same time, as far as the queue lets us.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use tokio::task::JoinSet;

use super::PullError;
use super::run::Pull;
use super::watch::Watch;
use crate::digest::Digest;
use crate::layers::{Arrived, Content, Errand, Flight, LayerError, Source};
use crate::manifest::Descriptor;
use crate::progress::{Event, LayerProgress, Progress};
use crate::registry::Session;
use crate::store::Store;
use crate::unpack::UnpackError;

/// Something in staging, and the download it came from: kept until it is in the store.
pub(super) struct Landed {
    _flight: Arc<Flight>,
    /// Its digest.
    pub(super) digest: Digest,
    pub(super) arrived: Arrived,
}

/// The downloads of one pull, for who watches over them.
pub(super) type Flown = Arc<Mutex<Vec<Weak<Flight>>>>;

impl Pull<'_> {
    /// Brings in what is missing.
    pub(super) async fn bring_all(
        &self,
        session: &Session,
        mut wanted: Vec<(Descriptor, Content)>,
        manifest: Digest,
    ) -> Result<Vec<Landed>, PullError> {
        let bytes = wanted.iter().map(|(d, _)| d.size).sum();
        self.progress.send(Event::Resolved {
            manifest: manifest.clone(),
            layers: wanted.iter().map(|(d, _)| (d.digest.clone(), d.size)).collect(),
            bytes,
        });
        // The first ones find free slots, the others wait for their turn in the queue.
        wanted.sort_by_key(|(descriptor, _)| Reverse(descriptor.size));
        let flown = Flown::default();
        // Dropping the set, as an error or a lost caller does, ends all of it.
        let mut running = JoinSet::new();
        let mut seen = BTreeSet::new();
        for (descriptor, content) in wanted {
            let key = match &content {
                Content::Layer(diff_id) => diff_id,
                Content::Blob => &descriptor.digest,
            };
            if seen.insert(key.clone()) {
                let job = Bring {
                    store: self.store.clone(),
                    session: session.clone(),
                    progress: self.progress.clone(),
                    errand: self.errand,
                    flown: flown.clone(),
                    descriptor,
                    content,
                };
                running.spawn(job.run());
            }
        }
        let mut watch = Watch::new(self.store.0.stall, self.reference, bytes);
        let mut landed = Vec::new();
        loop {
            tokio::select! {
                // Cancel-safe: a task that ended stays in the set.
                done = running.join_next() => match done {
                    None => return Ok(landed),
                    Some(done) => {
                        let abandoned = || Arc::new(LayerError::Abandoned(manifest.clone()));
                        let one = done.unwrap_or_else(|_| Err(abandoned()));
                        landed.extend(one.map_err(|source| self.failed(source))?);
                    }
                },
                // Cancel-safe: a dropped timer is forgotten.
                () = watch.tick() => {
                    if let Some(stalled) = watch.look(&flown) {
                        let reference = self.reference.to_string();
                        return Err(PullError::Stalled { reference, seconds: stalled.as_secs() });
                    }
                }
            }
        }
    }
}

struct Bring {
    store: Store,
    session: Session,
    progress: Progress,
    errand: Errand,
    flown: Flown,
    descriptor: Descriptor,
    content: Content,
}

impl Bring {
    /// Gets one layer or blob: out of the store, by joining a download, or by starting one. `None` if it is
    /// there.
    async fn run(self) -> Result<Option<Landed>, Arc<LayerError>> {
        let digest = &self.descriptor.digest;
        let tell = |state| self.progress.send(Event::Layer { digest: digest.clone(), state });
        loop {
            let source = self.store.fly(&self.session, &self.descriptor, &self.content, self.errand);
            let (flight, ours) = match source {
                Source::There => {
                    tell(LayerProgress::Exists);
                    return Ok(None);
                }
                Source::Joined(flight) => (flight, false),
                Source::Started(flight) => (flight, true),
            };
            self.flown.lock().push(Arc::downgrade(&flight));
            match flight.landed(digest, tell).await {
                Ok(arrived) => {
                    if let (Arrived::Layer(staged), Content::Layer(expected)) = (&arrived, &self.content)
                        && staged.record.diff_id != *expected
                    {
                        let actual = staged.record.diff_id.clone();
                        let source = UnpackError::DiffId { expected: expected.clone(), actual };
                        return Err(Arc::new(LayerError::Unpack { digest: digest.clone(), source }));
                    }
                    tell(LayerProgress::Done);
                    return Ok(Some(Landed { _flight: flight, digest: digest.clone(), arrived }));
                }
                // Somebody else's credentials or patience failed: try with our own.
                Err(_) if !ours => (),
                Err(err) => return Err(err),
            }
        }
    }
}
