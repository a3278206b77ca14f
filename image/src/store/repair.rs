//! Gets rid of what is broken: images are pulled again, or dropped if that fails. What is in use stays.

use std::collections::BTreeSet;

use tracing::{info, warn};

use super::verify::{Report, What};
use super::{RemoveError, Store};
use crate::auth::Auth;
use crate::digest::Digest;
use crate::pull::PullOptions;
use crate::reference::Reference;
use crate::state::ImageRecord;

/// What became of a broken image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repaired {
    /// The image.
    pub id: Digest,
    /// The names it had.
    pub names: Vec<String>,
    /// What was done.
    pub fate: Fate,
}

/// What was done about a broken image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fate {
    /// It was pulled again and is whole.
    Pulled,
    /// It was removed, because it could not be pulled.
    Dropped {
        /// Why it could not.
        reason: String,
    },
    /// It, or an image that shares what is broken, is in use: nothing was done.
    InUse {
        /// Who uses it.
        owners: Vec<String>,
    },
}

impl Store {
    /// Repairs what [`Store::verify`] found: each broken image is removed and pulled again by its digest,
    /// with the credentials that `auth` gives; it keeps its names. Records that cannot be read are removed.
    ///
    /// # Errors
    /// The store cannot be written.
    pub async fn repair(
        &self,
        report: &Report,
        auth: impl Fn(&Reference) -> Option<Auth>,
    ) -> Result<Vec<Repaired>, RemoveError> {
        let trash: Vec<_> = report.problems.iter().filter(|p| p.images.is_empty()).collect();
        let records = trash.iter().filter_map(|p| match &p.what {
            What::Record(path) => Some(path.clone()),
            _ => None,
        });
        self.discard(records.collect());
        let bad_layers = report.problems.iter().filter_map(|p| match &p.what {
            What::Layer(digest) => Some(digest),
            _ => None,
        });
        let bad_layers: BTreeSet<&Digest> = bad_layers.collect();
        // What is whole need not come again.
        let mut holds = Vec::new();
        let broken: BTreeSet<Digest> = report.problems.iter().flat_map(|p| p.images.clone()).collect();
        let mut repaired = Vec::new();
        let mut removed: Vec<ImageRecord> = Vec::new();
        for id in broken {
            let owners: BTreeSet<String> = {
                let state = self.0.state.lock();
                let sharing = report.problems.iter().filter(|p| p.images.contains(&id));
                sharing.flat_map(|p| &p.images).flat_map(|other| state.owners(other)).collect()
            };
            let record = self.0.state.lock().images.get(&id).map(|entry| entry.record.clone());
            let Some(record) = record else { continue };
            if !owners.is_empty() {
                let owners = owners.into_iter().collect();
                repaired.push(Repaired { id, names: names(&record), fate: Fate::InUse { owners } });
                continue;
            }
            let whole: Vec<Digest> =
                record.layers.iter().filter(|l| !bad_layers.contains(l)).cloned().collect();
            holds.push(self.hold(&whole));
            let doomed = id.clone();
            let deleted = self.write(move |store| store.delete(&doomed)).await;
            deleted.unwrap_or(Err(RemoveError::Abandoned))?;
            removed.push(record);
        }
        for record in removed {
            let fate = self.pull_again(&record, &auth).await;
            repaired.push(Repaired { id: record.id.clone(), names: names(&record), fate });
        }
        Ok(repaired)
    }

    /// Pulls an image by the digests that it had, and gives it back its names.
    async fn pull_again(&self, record: &ImageRecord, auth: &impl Fn(&Reference) -> Option<Auth>) -> Fate {
        let mut reason = "it has no name by which a registry knows it".to_owned();
        for name in &record.digests {
            let Ok(reference) = name.parse::<Reference>() else { continue };
            let options = PullOptions { auth: auth(&reference), ..PullOptions::default() };
            match self.pull_as(&reference, options, true).await {
                Ok(image) => {
                    let (tags, digests) = (record.tags.clone(), record.digests.clone());
                    let named = self.add_names(&image.id, tags, digests).await;
                    let pinned = if record.pinned { self.pin(image.id.as_str(), true).await } else { Ok(()) };
                    if let Err(err) = named {
                        warn!(%err, image = name, "cannot give a repaired image its names");
                    }
                    if let Err(err) = pinned {
                        warn!(%err, image = name, "cannot pin a repaired image");
                    }
                    info!(image = name, "a broken image was pulled again");
                    return Fate::Pulled;
                }
                Err(err) => reason = chain(&err),
            }
        }
        warn!(id = %record.id, reason, "a broken image was removed");
        Fate::Dropped { reason }
    }
}

fn names(record: &ImageRecord) -> Vec<String> {
    record.tags.iter().chain(&record.digests).cloned().collect()
}

/// An error with its causes.
fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(err) = source {
        text.push_str(": ");
        text.push_str(&err.to_string());
        source = err.source();
    }
    text
}
