//! Hash of what a container is made from, to notice that the pod asks for another.

use std::fmt::Write;

use k8s_openapi::api::core::v1::Container;
use sha2::{Digest, Sha256};

/// Hash of the fields that can change in a living pod and cannot be changed in a living container:
/// its name and image. (Resources are resized in place elsewhere, everything else is immutable.)
pub fn of(container: &Container) -> String {
    hex(&[container.name.as_bytes(), b"\0", container.image.as_deref().unwrap_or("").as_bytes()], 8)
}

/// The first `bytes` bytes of a SHA-256 over the parts, in hex.
pub fn hex(parts: &[&[u8]], bytes: usize) -> String {
    let mut hasher = Sha256::new();
    for part in parts {
        hasher.update(part);
    }
    let mut text = String::with_capacity(bytes * 2);
    for byte in hasher.finalize().iter().take(bytes) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}
