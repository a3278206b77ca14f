//! What goes into an archive, in which order. Reads small blobs only.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::{Chosen, ExportError, Form};
use crate::digest::Digest;
use crate::manifest::{Document, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, parse};
use crate::reference::Reference;
use crate::state::LayerRecord;
use crate::store::Store;

/// Where an entry's content comes from.
pub(super) enum Source {
    Bytes(Vec<u8>),
    File { path: PathBuf, digest: Digest, size: u64 },
    Layer { directory: PathBuf, record: LayerRecord },
}

/// The entries of an archive.
pub(super) struct Plan {
    pub(super) entries: Vec<(String, Source)>,
    names: BTreeSet<String>,
}

impl Plan {
    pub(super) fn make(store: &Store, chosen: &[Chosen], form: Form) -> Result<Plan, ExportError> {
        let mut plan = Plan { entries: Vec::new(), names: BTreeSet::new() };
        match form {
            Form::Oci => plan.oci(store, chosen)?,
            Form::Docker => plan.docker(store, chosen)?,
        }
        Ok(plan)
    }

    /// Adds an entry; content that several images share is there once.
    fn add(&mut self, name: impl Into<String>, source: Source) {
        let name = name.into();
        if self.names.insert(name.clone()) {
            self.entries.push((name, source));
        }
    }

    fn json(&mut self, name: &str, value: &Value) {
        self.add(name, Source::Bytes(serde_json::to_vec(value).expect("plain data")));
    }

    fn oci(&mut self, store: &Store, chosen: &[Chosen]) -> Result<(), ExportError> {
        let mut manifests = Vec::new();
        let mut lines = Vec::new();
        for one in chosen {
            let (media_type, bytes) = match &one.record.artifact {
                Some(_) => self.artifact(store, one)?,
                None => {
                    let (bytes, line) = self.image(store, one)?;
                    lines.push(line);
                    (OCI_MANIFEST.to_owned(), bytes)
                }
            };
            let digest = Digest::of(&bytes);
            let descriptor = json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() });
            self.add(blob(&digest), Source::Bytes(bytes));
            // An entry for each name; one without any for a nameless image.
            let mut entries: Vec<Value> = one.tags.iter().map(|tag| named(&descriptor, tag)).collect();
            if entries.is_empty() {
                entries.push(descriptor);
            }
            manifests.extend(entries);
        }
        self.json("oci-layout", &json!({ "imageLayoutVersion": "1.0.0" }));
        let index = "application/vnd.oci.image.index.v1+json";
        self.json("index.json", &json!({ "schemaVersion": 2, "mediaType": index, "manifests": manifests }));
        if lines.len() == chosen.len() {
            self.json("manifest.json", &Value::Array(lines));
        }
        Ok(())
    }

    /// Adds an image's blobs; returns its manifest, and its line for `docker load`.
    fn image(&mut self, store: &Store, one: &Chosen) -> Result<(Vec<u8>, Value), ExportError> {
        let config = read(store, one.record.config())?;
        let mut layers = Vec::new();
        let mut names = Vec::new();
        for diff_id in &one.record.layers {
            let (directory, record) = store.find_layer(diff_id)?;
            layers.push(json!({ "mediaType": OCI_LAYER, "digest": diff_id, "size": record.tar_bytes }));
            names.push(blob(diff_id));
            self.add(blob(diff_id), Source::Layer { directory, record });
        }
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": OCI_MANIFEST,
            "config": { "mediaType": OCI_CONFIG, "digest": one.record.config(), "size": config.len() },
            "layers": layers,
        });
        let line =
            json!({ "Config": blob(one.record.config()), "RepoTags": short(&one.tags), "Layers": names });
        self.add(blob(one.record.config()), Source::Bytes(config));
        Ok((serde_json::to_vec(&manifest).expect("plain data"), line))
    }

    /// Adds an artifact's blobs as they are; returns its manifest, as it is.
    fn artifact(&mut self, store: &Store, one: &Chosen) -> Result<(String, Vec<u8>), ExportError> {
        let manifest = read(store, &one.record.manifest)?;
        let Ok(Document::Artifact(artifact)) = parse(&manifest, "", &store.0.limits) else {
            let actual = Digest::of(&manifest);
            return Err(ExportError::Damaged { what: one.record.manifest.clone(), actual });
        };
        let (directory, _) = store.find_layer(&artifact.directory_id())?;
        for found in artifact.blobs {
            let (digest, size) = (found.descriptor.digest, found.descriptor.size);
            let path = directory.join("d").join(&found.name);
            self.add(blob(&digest), Source::File { path, digest, size });
        }
        let config = read(store, one.record.config())?;
        self.add(blob(one.record.config()), Source::Bytes(config));
        Ok((OCI_MANIFEST.to_owned(), manifest))
    }

    fn docker(&mut self, store: &Store, chosen: &[Chosen]) -> Result<(), ExportError> {
        let mut lines = Vec::new();
        let mut repositories: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for one in chosen {
            let mut names = Vec::new();
            for diff_id in &one.record.layers {
                let (directory, record) = store.find_layer(diff_id)?;
                let name = format!("{}/layer.tar", diff_id.hex());
                names.push(name.clone());
                self.add(name, Source::Layer { directory, record });
            }
            let config = format!("{}.json", one.record.config().hex());
            self.add(config.clone(), Source::Bytes(read(store, one.record.config())?));
            let top = one.record.layers.last().map(|l| l.hex().to_owned()).unwrap_or_default();
            for tag in short(&one.tags) {
                if let Some((name, tag)) = tag.rsplit_once(':') {
                    repositories.entry(name.to_owned()).or_default().insert(tag.to_owned(), top.clone());
                }
            }
            lines.push(json!({ "Config": config, "RepoTags": short(&one.tags), "Layers": names }));
        }
        self.json("manifest.json", &Value::Array(lines));
        self.json("repositories", &json!(repositories));
        Ok(())
    }
}

fn blob(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

/// A small blob, verified.
fn read(store: &Store, digest: &Digest) -> Result<Vec<u8>, ExportError> {
    let bytes = fs::read(store.0.layout.blob(digest))
        .map_err(|source| ExportError::Read { what: digest.clone(), source })?;
    let actual = Digest::of(&bytes);
    if actual != *digest {
        return Err(ExportError::Damaged { what: digest.clone(), actual });
    }
    Ok(bytes)
}

/// A descriptor with an image's name: whole for containerd, its tag for the rest.
fn named(descriptor: &Value, tag: &str) -> Value {
    let mut entry = descriptor.clone();
    let short = tag.parse::<Reference>().ok().and_then(|r| r.tag().map(str::to_owned));
    entry["annotations"] = json!({
        "io.containerd.image.name": tag,
        "org.opencontainers.image.ref.name": short.unwrap_or_else(|| tag.to_owned()),
    });
    entry
}

/// Names as docker writes them: without its own registry.
fn short(tags: &BTreeSet<String>) -> Vec<String> {
    let shorten = |tag: &String| {
        let tag = tag.strip_prefix("docker.io/").unwrap_or(tag);
        tag.strip_prefix("library/").unwrap_or(tag).to_owned()
    };
    tags.iter().map(shorten).collect()
}
