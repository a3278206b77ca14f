//! OCI artifacts: content that is no container image. Its blobs become the files of one directory.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};

use super::PullError;
use super::bring::Landed;
use super::run::Pull;
use crate::digest::Digest;
use crate::image::Image;
use crate::layers::{Arrived, Content, Staged, Staging};
use crate::manifest::{Artifact, check_size};
use crate::registry::Session;
use crate::state::{LayerRecord, Origin};
use crate::store::NewImage;
use crate::unpack::write_record;

impl Pull<'_> {
    pub(super) async fn artifact(
        &self,
        session: &Session,
        artifact: Artifact,
        manifest_bytes: Vec<u8>,
        top: Digest,
    ) -> Result<Image, PullError> {
        let limits = &self.store.0.limits;
        check_size("configuration", artifact.config.size, limits.config_bytes)
            .map_err(|e| self.refused(e))?;
        for blob in &artifact.blobs {
            check_size("artifact's blob", blob.descriptor.size, limits.layer_bytes)
                .map_err(|e| self.refused(e))?;
        }
        let config_bytes = match artifact.empty_config() {
            Some(bytes) => bytes.to_vec(),
            None => session
                .small_blob(&artifact.config.digest, limits.config_bytes)
                .await
                .map_err(|e| self.unresolved(e))?,
        };
        let layer = artifact.directory_id();
        let layers = vec![layer.clone()];
        let _hold = self.store.hold(&layers);
        let there = self.store.0.state.lock().layers.contains_key(&layer);
        let wanted = if there { &[] } else { artifact.blobs.as_slice() };
        let wanted = wanted.iter().map(|blob| (blob.descriptor.clone(), Content::Blob)).collect();
        let landed = self.bring_all(session, wanted, Digest::of(&manifest_bytes)).await?;
        let mut staged = Vec::new();
        if !there {
            let staging = Staging::new(self.store.0.layout.temporary());
            let (blobs, files) = (artifact.clone(), paths(&landed));
            let built = tokio::task::spawn_blocking(move || build(&blobs, &files, staging))
                .await
                .map_err(io::Error::other);
            let built = built.and_then(|built| built);
            let failed = |source| PullError::Artifact { reference: self.reference.to_string(), source };
            staged.push(std::sync::Arc::new(built.map_err(failed)?));
        }
        let (tags, digests) = self.names(&top);
        let new = NewImage {
            // The configuration of most artifacts is empty, and so no name for them.
            id: Digest::of(&manifest_bytes),
            config_bytes,
            config: oci_spec::image::ImageConfiguration::default(),
            manifest_bytes,
            tags,
            digests,
            layers,
            staged,
            correction: None,
            artifact: Some(artifact.kind),
        };
        self.commit(new).await
    }
}

fn paths(landed: &[Landed]) -> Vec<(Digest, std::path::PathBuf)> {
    let blob = |landed: &Landed| match &landed.arrived {
        Arrived::Blob(landing) => Some((landed.digest.clone(), landing.0.path().to_owned())),
        Arrived::Layer(_) => None,
    };
    landed.iter().filter_map(blob).collect()
}

/// Puts the blobs into one directory, each under its name.
pub(crate) fn build(
    artifact: &Artifact,
    files: &[(Digest, std::path::PathBuf)],
    staging: Staging,
) -> io::Result<Staged> {
    let root = staging.path().join("d");
    let directories = || {
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o755);
        builder
    };
    directories().create(&root)?;
    let (mut bytes, mut inodes) = (4096, 1);
    for blob in &artifact.blobs {
        let from = files.iter().find(|(digest, _)| *digest == blob.descriptor.digest);
        let (_, from) = from.ok_or(io::ErrorKind::NotFound)?;
        // Names were judged with the manifest: they lead nowhere else, and the tree is new.
        let to = root.join(&blob.name);
        directories().create(to.parent().unwrap_or(&root))?;
        // One blob may have several names.
        fs::hard_link(from, &to)?;
        fs::set_permissions(&to, fs::Permissions::from_mode(0o644))?;
        bytes += blob.descriptor.size.next_multiple_of(4096);
        inodes += 1;
    }
    let record = LayerRecord {
        diff_id: artifact.directory_id(),
        bytes,
        inodes,
        implied: Vec::new(),
        tar_bytes: 0,
        origin: Origin::Artifact,
    };
    write_record(staging.path(), &record).map_err(io::Error::other)?;
    Ok(staging.keep(record))
}
