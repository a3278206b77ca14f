//! Images: from a registry or an archive to directories that overlayfs can stack.
//!
//! - [`Reference`], [`Digest`], [`Platform`]: names of things.
//! - [`Store`]: pulls, imports, lists, removes; hands out layers under leases.
//! - [`RegistryConfig`], [`Auth`]: how registries are reached.
//! - [`Progress`]: what a pull is doing.
//!
//! Guarantees: an image is visible only when all of it was verified and is durable. Nothing an image or a
//! registry says makes us touch a file outside the store.
//! Assumes: root, overlayfs, and one process per store.
//! **Invariant:** knows neither CRI nor containers; owners of leases are just names.
#![forbid(unsafe_code)]

mod digest;
mod platform;
mod reference;

mod auth;
mod image;
mod limits;
mod progress;
mod store;

mod correct;
mod export;
mod import;
mod layers;
mod layout;
mod manifest;
mod pull;
mod queue;
mod registry;
mod state;
mod unpack;

#[doc(hidden)]
pub mod fuzz;

pub use auth::{Auth, AuthError};
pub use digest::{Digest, DigestError};
pub use export::{ExportError, Form};
pub use image::{Image, Lease, Removed, Rootfs, Usage};
pub use import::ImportError;
pub use layers::LayerError;
pub use limits::{AbsoluteNames, Limits};
pub use manifest::ManifestError;
pub use platform::Platform;
pub use progress::{Event, LayerProgress, Progress};
pub use pull::{ErrorKind, PullError, PullOptions};
pub use queue::Priority;
pub use reference::{Reference, ReferenceError};
pub use registry::{ConfigError, HostsError, Proxy, RegistryConfig, RegistryError};
pub use store::{
    CommitError, Damaged, Fate, ForeignLayers, LeaseError, OpenError, Options, Problem, RemoveError,
    Repaired, Report, Store, What,
};
pub use unpack::UnpackError;

/// Types of image configurations, as [`Image::config`] has them.
pub use oci_spec::image as spec;
