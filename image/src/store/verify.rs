//! Compares what is stored with its digests: blobs, and layers down to each file's attributes.
//!
//! Guarantees: nothing that is verified is removed meanwhile; nothing is changed.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::Store;
use crate::correct;
use crate::digest::Digest;
use crate::layers::Staging;
use crate::manifest::{Document, parse};
use crate::progress::{Event, Progress};
use crate::state::{ImageRecord, Layer, LayerRecord, Origin};
use crate::unpack::{HashingReader, examine};

/// What a verification found.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    /// Manifests and configurations that were read.
    pub blobs: usize,
    /// Layers and artifacts that were compared.
    pub layers: usize,
    /// What is broken.
    pub problems: Vec<Problem>,
}

/// One thing that is broken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// What it is.
    pub what: What,
    /// Ids of the images that need it.
    pub images: Vec<Digest>,
    /// What is wrong, a sentence each.
    pub details: Vec<String>,
}

/// A thing in the store.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A manifest or a configuration.
    Blob(Digest),
    /// An unpacked layer, by its diff id.
    Layer(Digest),
    /// A record that cannot be read.
    Record(PathBuf),
}

impl std::fmt::Display for What {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            What::Blob(digest) => write!(f, "blob {digest}"),
            What::Layer(digest) => write!(f, "layer {digest}"),
            What::Record(path) => write!(f, "record {}", path.display()),
        }
    }
}

impl Store {
    /// Verifies all that is stored. A layer's archive is made again from its tree and compared with the diff
    /// id; then names, types, owners, modes, times and attributes of its files. This reads every file.
    ///
    /// # Errors
    /// The store's disk fails, or is too full to unpack the largest layer's names.
    pub async fn verify(&self, progress: Option<Progress>) -> io::Result<Report> {
        let progress = progress.unwrap_or_else(Progress::none);
        let layers: Vec<Digest> = self.0.state.lock().layers.keys().cloned().collect();
        let hold = self.hold(&layers);
        let store = self.clone();
        let work = move || {
            let report = store.verify_now(&progress);
            drop(hold);
            report
        };
        tokio::task::spawn_blocking(work).await.map_err(io::Error::other)?
    }

    fn verify_now(&self, progress: &Progress) -> io::Result<Report> {
        let (images, layers): (Vec<ImageRecord>, Vec<Layer>) = {
            let state = self.0.state.lock();
            let images = state.images.values().map(|entry| entry.record.clone()).collect();
            (images, state.layers.values().cloned().collect())
        };
        let blobs: BTreeSet<&Digest> = images.iter().flat_map(|r| [r.config(), &r.manifest]).collect();
        let total = blobs.len() + layers.len();
        let mut report = Report { blobs: blobs.len(), layers: layers.len(), problems: Vec::new() };
        let mut done = 0;
        let mut next = |digest: &Digest| {
            progress.send(Event::Verifying { digest: digest.clone(), done, total });
            done += 1;
        };
        for digest in blobs {
            next(digest);
            let details = self.verify_blob(digest)?;
            let needs = |r: &&ImageRecord| r.config() == digest || r.manifest == *digest;
            self.note(&mut report, What::Blob(digest.clone()), images.iter().filter(needs), details);
        }
        for Layer { number, record } in &layers {
            next(&record.diff_id);
            let needs = |r: &&ImageRecord| r.all_layers().any(|l| *l == record.diff_id);
            let needing: Vec<&ImageRecord> = images.iter().filter(needs).collect();
            let details = self.verify_layer(*number, record, &needing)?;
            let what = What::Layer(record.diff_id.clone());
            self.note(&mut report, what, needing.into_iter(), details);
        }
        for record in &images {
            let written = fs::read(self.0.layout.image(&record.id)).ok();
            let same = written.and_then(|bytes| serde_json::from_slice::<ImageRecord>(&bytes).ok());
            // Somebody may just have given it another name.
            if same.is_none_or(|written| written.id != record.id || written.layers != record.layers) {
                let what = What::Record(self.0.layout.image(&record.id));
                let details = vec!["it is gone from the disk, or is not what it was".into()];
                self.note(&mut report, what, [record].into_iter(), details);
            }
        }
        for damaged in self.damaged().iter().filter(|damaged| damaged.path.exists()) {
            let what = What::Record(damaged.path.clone());
            let details = vec![damaged.reason.clone()];
            report.problems.push(Problem { what, images: Vec::new(), details });
        }
        Ok(report)
    }

    /// Adds a problem, unless its images were removed meanwhile.
    fn note<'a>(
        &self,
        report: &mut Report,
        what: What,
        images: impl Iterator<Item = &'a ImageRecord>,
        details: Vec<String>,
    ) {
        if details.is_empty() {
            return;
        }
        let needing: Vec<Digest> = images.map(|r| r.id.clone()).collect();
        let state = self.0.state.lock();
        let left: Vec<Digest> = needing.iter().filter(|id| state.images.contains_key(id)).cloned().collect();
        if needing.is_empty() || !left.is_empty() {
            report.problems.push(Problem { what, images: left, details });
        }
    }

    fn verify_blob(&self, digest: &Digest) -> io::Result<Vec<String>> {
        match hash(&self.0.layout.blob(digest)) {
            Ok(actual) if actual == *digest => Ok(Vec::new()),
            Ok(actual) => Ok(vec![format!("its content hashes to {actual}")]),
            Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(vec!["it is missing".into()]),
            Err(err) => Err(err),
        }
    }

    fn verify_layer(
        &self,
        number: u32,
        record: &LayerRecord,
        needing: &[&ImageRecord],
    ) -> io::Result<Vec<String>> {
        let directory = self.0.layout.layer(number);
        let written = fs::read(directory.join("meta")).ok();
        let written = written.and_then(|bytes| serde_json::from_slice::<LayerRecord>(&bytes).ok());
        if written.as_ref() != Some(record) {
            return Ok(vec!["its record is gone, or is not what it was".into()]);
        }
        let tree = directory.join("d");
        let found = match record.origin {
            Origin::Correction => correct::examine(&tree, &record.diff_id),
            Origin::Artifact => self.examine_artifact(&tree, needing),
            Origin::Unknown | Origin::Recipe | Origin::Source => {
                let staging = Staging::new(self.0.layout.temporary());
                examine(&directory, record, staging.path(), &self.0.limits)
            }
        };
        match found {
            Err(err) if err.kind() == io::ErrorKind::NotFound => {
                Ok(vec![format!("part of it is gone: {err}")])
            }
            other => other,
        }
    }

    /// Compares the files of an artifact with the digests in its manifest.
    fn examine_artifact(&self, tree: &Path, needing: &[&ImageRecord]) -> io::Result<Vec<String>> {
        let Some(image) = needing.first() else { return Ok(Vec::new()) };
        let bytes = fs::read(self.0.layout.blob(&image.manifest))?;
        let Ok(Document::Artifact(artifact)) = parse(&bytes, "", &self.0.limits) else {
            return Ok(vec!["its manifest does not tell its blobs".into()]);
        };
        let mut details = Vec::new();
        let mut files = 0;
        for blob in &artifact.blobs {
            match hash(&tree.join(&blob.name)) {
                Ok(actual) if actual == blob.descriptor.digest => files += 1,
                Ok(actual) => details.push(format!("`{}` hashes to {actual}", blob.name)),
                Err(err) => details.push(format!("`{}`: {err}", blob.name)),
            }
        }
        if details.is_empty() && count_files(tree)? != files {
            details.push("it has files that do not belong there".into());
        }
        Ok(details)
    }
}

fn hash(path: &Path) -> io::Result<Digest> {
    Ok(HashingReader::new(File::open(path)?).finish()?.0)
}

fn count_files(directory: &Path) -> io::Result<usize> {
    let mut files = 0;
    let mut left = vec![directory.to_owned()];
    while let Some(directory) = left.pop() {
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                left.push(entry.path());
            } else {
                files += 1;
            }
        }
    }
    Ok(files)
}
