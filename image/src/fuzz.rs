//! Entries for fuzzing: what strangers' bytes reach, without a store around it. Nothing else uses them.

use std::path::Path;

use crate::digest::Digest;
use crate::limits::Limits;
use crate::manifest::{self, Document};
use crate::platform::Platform;
use crate::reference::Reference;

/// Unpacks a layer to `place/staging`. Returns whether it was taken.
pub fn layer(bytes: &[u8], place: &Path) -> bool {
    let limits =
        Limits { free_bytes: 1 << 20, ratio: 1, layer_bytes: 4 << 20, entries: 200, ..Limits::default() };
    crate::unpack::unpack(bytes, bytes.len() as u64, &place.join("staging"), None, &limits).is_ok()
}

/// Reads a manifest or an index, and chooses from an index.
///
/// # Panics
/// A manifest was taken that breaks its own promises.
pub fn manifest(bytes: &[u8]) {
    let limits = Limits { layers: 64, ..Limits::default() };
    for served in ["", manifest::OCI_MANIFEST, "application/vnd.oci.image.index.v1+json"] {
        match manifest::parse(bytes, served, &limits) {
            Ok(Document::Manifest(manifest)) => {
                assert!(manifest.layers.len() <= limits.layers, "more layers than the limit");
                for digest in manifest.layers.iter().chain([&manifest.config]).map(|part| &part.digest) {
                    plain(digest);
                }
            }
            Ok(Document::Index(entries)) => {
                if let Ok(chosen) = manifest::choose(&entries, &Platform::host()) {
                    plain(&chosen.digest);
                }
            }
            Ok(Document::Artifact(_)) | Err(_) => {}
        }
    }
}

/// A digest is `sha256:` and hex digits, so it never names a path outside of the store.
fn plain(digest: &Digest) {
    let hex = digest.as_str().strip_prefix("sha256:");
    let good = hex.is_some_and(|hex| {
        hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    });
    assert!(good, "the digest {digest} was taken");
}

/// Reads an image's configuration; gives its part for containers.
pub fn config(bytes: &[u8]) -> Option<crate::spec::Config> {
    let config = manifest::parse_config(bytes, &Limits::default()).ok()?;
    for layers in [0, 1, config.rootfs().diff_ids().len()] {
        if let Ok(ids) = manifest::diff_ids(&config, layers) {
            ids.iter().for_each(plain);
        }
    }
    let taken = manifest::check_platform(&config, &Platform::host()).is_ok();
    config.config().clone().filter(|_| taken)
}

/// Reads a reference, a digest, and what a registry says about logging in.
///
/// # Panics
/// A reference is another one when it was printed and read again.
pub fn reference(text: &str) {
    if let Ok(reference) = text.parse::<Reference>() {
        let printed = reference.to_string();
        let again: Reference = printed.parse().expect("what was printed can be read");
        assert_eq!(again.to_string(), printed);
        assert_eq!((again.domain(), again.repository()), (reference.domain(), reference.repository()));
        for part in [reference.domain(), reference.repository(), reference.tag().unwrap_or_default()] {
            let odd = |c: char| c.is_control() || c.is_whitespace() || "?#%\\".contains(c);
            assert!(!part.contains(odd), "{part:?} would change a URL");
        }
        assert!(!reference.repository().split('/').any(|part| part == ".." || part == "."), "{printed}");
        assert!(!reference.domain().contains(['/', '@']), "{printed}");
    }
    if let Ok(digest) = text.parse::<Digest>() {
        plain(&digest);
    }
    crate::registry::fuzz_challenge(text);
}
