//! What the store knows, in memory: images, layers, leases. Pure; the disk is `store`'s business.
//!
//! Guarantees: a layer that an image, a lease or a running pull needs is never listed as unused.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, is_hex64};
use crate::image::Image;
use crate::reference::Reference;

/// One image, as recorded on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ImageRecord {
    pub(crate) id: Digest,
    pub(crate) manifest: Digest,
    /// The configuration, if it is not the id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) config: Option<Digest>,
    /// Completed names with tags.
    pub(crate) tags: BTreeSet<String>,
    /// Completed names with digests.
    pub(crate) digests: BTreeSet<String>,
    /// Diff ids, lowest first.
    pub(crate) layers: Vec<Digest>,
    /// A layer of ours on top that corrects directories which the image's layers only imply.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) correction: Option<Digest>,
    /// Its type, if it is an OCI artifact: content without a root file system to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) artifact: Option<String>,
    /// Bytes of the configuration.
    pub(crate) config_bytes: u64,
    pub(crate) pulled: Timestamp,
    #[serde(default)]
    pub(crate) pinned: bool,
    /// Its last name was removed while it was in use: it goes with its last lease.
    #[serde(default)]
    pub(crate) doomed: bool,
}

impl ImageRecord {
    /// The configuration.
    pub(crate) fn config(&self) -> &Digest {
        self.config.as_ref().unwrap_or(&self.id)
    }

    pub(crate) fn all_layers(&self) -> impl Iterator<Item = &Digest> {
        self.layers.iter().chain(&self.correction)
    }
}

/// One unpacked layer, as recorded beside its tree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LayerRecord {
    pub(crate) diff_id: Digest,
    /// Bytes of disk.
    pub(crate) bytes: u64,
    pub(crate) inodes: u64,
    /// Directories that no entry described: made only because something lies in them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) implied: Vec<String>,
    /// Bytes of its archive, uncompressed; 0 if that is not known.
    #[serde(default)]
    pub(crate) tar_bytes: u64,
    #[serde(default)]
    pub(crate) origin: Origin,
}

/// What a layer's content can be verified with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Origin {
    /// Nothing was kept: it comes from an earlier version.
    #[default]
    Unknown,
    /// Its archive can be made again from its tree.
    Recipe,
    /// Its archive was kept.
    Source,
    /// Made by us: its id is told by its directories.
    Correction,
    /// Blobs of an artifact, named by their digests in the manifest.
    Artifact,
}

/// One owner's leases, as recorded on disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(crate) struct LeaseRecord {
    /// Image id to the layers of it, as they were then.
    pub(crate) images: BTreeMap<Digest, Vec<Digest>>,
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) record: ImageRecord,
    pub(crate) config: Arc<ImageConfiguration>,
}

#[derive(Debug, Clone)]
pub(crate) struct Layer {
    pub(crate) number: u32,
    pub(crate) record: Arc<LayerRecord>,
}

#[derive(Debug, Default)]
pub(crate) struct State {
    pub(crate) images: BTreeMap<Digest, Entry>,
    pub(crate) layers: HashMap<Digest, Layer>,
    pub(crate) leases: BTreeMap<String, LeaseRecord>,
    /// Layers that running pulls and imports rely on, and how many do.
    pub(crate) holds: HashMap<Digest, usize>,
    pub(crate) next_layer: u32,
}

/// How a user named an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Named {
    /// By a tag: the canonical text.
    Tag(String),
    /// By a repository digest: the canonical text.
    Digest(String),
    /// By the id or the start of it.
    Id,
}

impl State {
    /// Finds an image by id (whole, or a start of at least four digits that fits only one), by tag, or
    /// by repository digest.
    pub(crate) fn find(&self, name: &str) -> Option<(Digest, Named)> {
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        if is_hex64(hex) {
            return self.images.keys().find(|id| id.hex() == hex).map(|id| (id.clone(), Named::Id));
        }
        if let Ok(reference) = name.parse::<Reference>() {
            let found = match reference.digest() {
                Some(digest) => {
                    let text = format!("{}@{digest}", reference.name());
                    self.with(|r| r.digests.contains(&text)).map(|id| (id, Named::Digest(text)))
                }
                None => {
                    let text = reference.to_string();
                    self.with(|r| r.tags.contains(&text)).map(|id| (id, Named::Tag(text)))
                }
            };
            if found.is_some() {
                return found;
            }
        }
        if hex.len() < 4 {
            return None;
        }
        let mut fits = self.images.keys().filter(|id| id.hex().starts_with(hex));
        match (fits.next(), fits.next()) {
            (Some(id), None) => Some((id.clone(), Named::Id)),
            _ => None,
        }
    }

    fn with(&self, test: impl Fn(&ImageRecord) -> bool) -> Option<Digest> {
        self.images.values().find(|e| test(&e.record)).map(|e| e.record.id.clone())
    }

    /// The image as its users see it.
    pub(crate) fn image(&self, id: &Digest) -> Option<Image> {
        let Entry { record, config } = self.images.get(id)?;
        let layers: u64 =
            record.all_layers().filter_map(|l| self.layers.get(l)).map(|l| l.record.bytes).sum();
        Some(Image {
            id: record.id.clone(),
            manifest: record.manifest.clone(),
            repo_tags: record.tags.iter().cloned().collect(),
            repo_digests: record.digests.iter().cloned().collect(),
            size: layers + record.config_bytes,
            config: config.clone(),
            layers: record.layers.clone(),
            pinned: record.pinned,
            artifact: record.artifact.clone(),
            created: config.created().as_ref().and_then(|text| text.parse().ok()),
            pulled: record.pulled,
        })
    }

    /// Who holds the image.
    pub(crate) fn owners(&self, id: &Digest) -> Vec<String> {
        let holds = |(_, lease): &(&String, &LeaseRecord)| lease.images.contains_key(id);
        self.leases.iter().filter(holds).map(|(owner, _)| owner.clone()).collect()
    }

    /// Layers that nobody needs any more.
    pub(crate) fn unused_layers(&self) -> Vec<Digest> {
        let mut needed: HashSet<&Digest> = self.holds.keys().collect();
        needed.extend(self.images.values().flat_map(|e| e.record.all_layers()));
        needed.extend(self.leases.values().flat_map(|l| l.images.values().flatten()));
        self.layers.keys().filter(|l| !needed.contains(l)).cloned().collect()
    }

    /// Manifests and configurations that an image needs.
    pub(crate) fn needed_blobs(&self) -> HashSet<Digest> {
        self.images.values().flat_map(|e| [e.record.config().clone(), e.record.manifest.clone()]).collect()
    }

    /// Images that nobody names any more and nobody holds; with `all`, also those with names.
    pub(crate) fn prunable(&self, all: bool) -> Vec<Digest> {
        self.images
            .values()
            .filter(|e| !e.record.pinned && (all || e.record.tags.is_empty()))
            .filter(|e| self.owners(&e.record.id).is_empty())
            .map(|e| e.record.id.clone())
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(id: &str, tags: &[&str], layers: &[&str]) -> (Digest, Entry) {
        let id = Digest::of(id.as_bytes());
        let record = ImageRecord {
            id: id.clone(),
            manifest: Digest::of(b"m"),
            config: None,
            tags: tags.iter().map(|t| t.to_string()).collect(),
            digests: BTreeSet::new(),
            layers: layers.iter().map(|l| Digest::of(l.as_bytes())).collect(),
            correction: None,
            artifact: None,
            config_bytes: 2,
            pulled: Timestamp::UNIX_EPOCH,
            pinned: false,
            doomed: false,
        };
        (id, Entry { record, config: Arc::default() })
    }

    fn no_layer(diff_id: &Digest) -> LayerRecord {
        LayerRecord {
            diff_id: diff_id.clone(),
            bytes: 0,
            inodes: 0,
            implied: vec![],
            tar_bytes: 0,
            origin: Origin::Recipe,
        }
    }

    fn state() -> State {
        let mut state = State::default();
        state.images.extend([
            entry("one", &["docker.io/library/one:latest"], &["a", "b"]),
            entry("two", &[], &["b", "c"]),
        ]);
        for (number, name) in ["a", "b", "c", "d", "e"].iter().enumerate() {
            let diff_id = Digest::of(name.as_bytes());
            let record = LayerRecord { diff_id: diff_id.clone(), bytes: 10, inodes: 1, ..no_layer(&diff_id) };
            state.layers.insert(diff_id, Layer { number: number as u32, record: Arc::new(record) });
        }
        state
    }

    #[test]
    fn finds_by_every_name() {
        let state = state();
        let one = Digest::of(b"one");
        for name in ["one", "one:latest", one.as_str(), one.hex(), &one.hex()[..8]] {
            assert_eq!(state.find(name).map(|f| f.0), Some(one.clone()), "{name}");
        }
        assert_eq!(state.find("one:2"), None);
        assert_eq!(state.find(&one.hex()[..3]), None);
        assert_eq!(state.find(""), None);
    }

    #[test]
    fn unused_is_what_nobody_needs() {
        let mut state = state();
        let digest = |s: &str| Digest::of(s.as_bytes());
        state.holds.insert(digest("d"), 1);
        assert_eq!(state.unused_layers(), [digest("e")]);
        state.images.clear();
        state.leases.insert("c1".into(), LeaseRecord { images: [(digest("one"), vec![digest("a")])].into() });
        let mut unused = state.unused_layers();
        unused.sort();
        let mut expected = vec![digest("b"), digest("c"), digest("e")];
        expected.sort();
        assert_eq!(unused, expected);
    }

    #[test]
    fn prunes_the_nameless() {
        let mut state = state();
        assert_eq!(state.prunable(false), [Digest::of(b"two")]);
        assert_eq!(state.prunable(true).len(), 2);
        state.leases.insert("c1".into(), LeaseRecord { images: [(Digest::of(b"two"), vec![])].into() });
        assert!(state.prunable(false).is_empty());
    }

    #[test]
    fn sizes_add_up() {
        let image = state().image(&Digest::of(b"one")).expect("there");
        assert_eq!(image.size, 22);
    }
}
