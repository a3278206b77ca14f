//! OCI artifacts: manifests of content that is no container image. Pure.

use std::collections::BTreeSet;

use super::{Descriptor, ManifestError, RawDescriptor};
use crate::digest::Digest;

/// The annotation that names a blob.
const TITLE: &str = "org.opencontainers.image.title";
/// Of the two bytes that all empty configurations have.
const EMPTY: &str = "sha256:44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a";
/// Directories within directories: no more than this.
const DEPTH: usize = 32;

/// Content that is no container image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Artifact {
    /// `artifactType`, or the media type of its configuration.
    pub(crate) kind: String,
    pub(crate) config: Descriptor,
    pub(crate) blobs: Vec<Blob>,
}

/// A blob of an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Blob {
    /// A relative path, without `.` and `..`.
    pub(crate) name: String,
    pub(crate) descriptor: Descriptor,
}

impl Artifact {
    /// Judges the names: no two blobs may want the same place.
    pub(super) fn new(kind: String, config: Descriptor, blobs: Vec<Blob>) -> Result<Artifact, ManifestError> {
        let mut taken: BTreeSet<&str> = BTreeSet::new();
        let mut directories: BTreeSet<&str> = BTreeSet::new();
        for blob in &blobs {
            let name = blob.name.as_str();
            let parents: Vec<&str> = name.match_indices('/').map(|(at, _)| &name[..at]).collect();
            let clash = directories.contains(name) || parents.iter().any(|p| taken.contains(p));
            if clash || !taken.insert(name) {
                return Err(bad_name(name));
            }
            directories.extend(parents);
        }
        Ok(Artifact { kind, config, blobs })
    }

    /// What names the directory that its blobs are put into: their names and digests.
    pub(crate) fn directory_id(&self) -> Digest {
        let blobs: Vec<_> = self.blobs.iter().map(|b| (&b.name, &b.descriptor.digest)).collect();
        let text = serde_json::to_vec(&blobs).expect("plain data");
        Digest::of(&[b"orlop artifact ".as_slice(), &text].concat())
    }

    /// The configuration's bytes, if it is the empty one.
    pub(crate) fn empty_config(&self) -> Option<&'static [u8]> {
        (self.config.digest.as_str() == EMPTY).then_some(b"{}")
    }
}

/// A blob as the manifest has it: named by its title, else by its digest.
pub(super) fn blob(raw: RawDescriptor) -> Result<Blob, ManifestError> {
    let title = raw.annotations.as_ref().and_then(|a| a.get(TITLE)).filter(|t| !t.is_empty()).cloned();
    let descriptor = raw.believe()?;
    let name = match title {
        None => descriptor.digest.hex().to_owned(),
        Some(title) => {
            let part = |part: &str| {
                !matches!(part, "" | "." | "..") && part.len() <= 255 && !part.contains(char::is_control)
            };
            if !title.split('/').all(part) || title.split('/').count() > DEPTH {
                return Err(bad_name(&title));
            }
            title
        }
    };
    Ok(Blob { name, descriptor })
}

fn bad_name(name: &str) -> ManifestError {
    ManifestError::BlobName(name.chars().flat_map(char::escape_debug).take(200).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn artifact(names: &[&str]) -> Result<Artifact, ManifestError> {
        let descriptor = Descriptor {
            media_type: String::new(),
            digest: EMPTY.parse().expect("a digest"),
            size: 2,
            urls: Vec::new(),
        };
        let blob = |name: &&str| Blob { name: (*name).to_owned(), descriptor: descriptor.clone() };
        Artifact::new("x".into(), descriptor.clone(), names.iter().map(blob).collect())
    }

    #[test]
    fn no_two_blobs_want_one_place() {
        assert!(artifact(&["a", "b/c", "b/d", "e/f/g"]).is_ok());
        for names in [&["a", "a"][..], &["a", "a/b"], &["a/b", "a"], &["a/b/c", "a/b"]] {
            assert!(artifact(names).is_err(), "{names:?}");
        }
    }

    #[test]
    fn the_empty_configuration_is_known() {
        assert_eq!(Digest::of(b"{}").as_str(), EMPTY);
        assert_eq!(artifact(&[]).expect("fine").empty_config(), Some(b"{}".as_slice()));
    }
}
