//! An image as its users see it.

use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use oci_spec::image::ImageConfiguration;

use crate::digest::Digest;

/// A snapshot of one image in the store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Image {
    /// The image's id: the digest of its configuration.
    pub id: Digest,
    /// Digest of the manifest for this machine's platform.
    pub manifest: Digest,
    /// Completed names with tags, e.g. `docker.io/library/nginx:1.27`, sorted.
    pub repo_tags: Vec<String>,
    /// Completed names with digests, e.g. `docker.io/library/nginx@sha256:…`, sorted.
    pub repo_digests: Vec<String>,
    /// Bytes of disk that the image's layers and configuration take, layers shared with others included.
    pub size: u64,
    /// Command, environment, user, labels and so on.
    pub config: Arc<ImageConfiguration>,
    /// Diff ids of the layers, lowest first.
    pub layers: Vec<Digest>,
    /// Never removed by `prune`, and `pinned` in the CRI.
    pub pinned: bool,
    /// The type of an OCI artifact: something that is no container image. It can be mounted as a volume
    /// ([`crate::Store::volume_lease`]), not run.
    pub artifact: Option<String>,
    /// When the image was built, if it says so.
    pub created: Option<Timestamp>,
    /// When it came into this store.
    pub pulled: Timestamp,
}

/// The layers of an image, ready for overlayfs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rootfs {
    /// Directories, topmost first; at least one.
    pub lower: Vec<PathBuf>,
}

/// Who holds which image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    /// The owner, e.g. a container's id.
    pub owner: String,
    /// The image's id.
    pub image: Digest,
}

/// What a removal did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Removed {
    /// Names the image no longer has.
    pub untagged: Vec<String>,
    /// Images that are gone.
    pub deleted: Vec<Digest>,
    /// Bytes of disk that are freed (the deletion itself goes on in the background).
    pub bytes: u64,
}

/// What the store takes of the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// Bytes of layers, manifests and configurations.
    pub bytes: u64,
    /// Files and directories in the layers.
    pub inodes: u64,
    /// A directory on the file system that holds the images.
    pub mountpoint: PathBuf,
}
