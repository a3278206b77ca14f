//! ListImages, ImageStatus, PullImage, RemoveImage, ImageFsInfo.

use std::collections::BTreeMap;

use cri_api::v1::*;
use image::{Auth, Priority, PullOptions, Reference};
use tonic::Status;

use crate::error::{invalid, status};
use crate::server::Inner;
use crate::view;

/// An image as answers show it. Pure.
fn row(image: &image::Image) -> Image {
    let user = image.config.config().as_ref().and_then(|config| config.user().clone()).unwrap_or_default();
    let (uid, username) = user_of(&user);
    Image {
        id: image.id.to_string(),
        repo_tags: image.repo_tags.clone(),
        repo_digests: image.repo_digests.clone(),
        size: image.size,
        uid: uid.map(|value| Int64Value { value }),
        username,
        spec: Some(ImageSpec { image: image.id.to_string(), ..ImageSpec::default() }),
        pinned: image.pinned,
    }
}

/// What an image's USER says: a number, else a name; the group is not asked for.
fn user_of(user: &str) -> (Option<i64>, String) {
    let user = user.split(':').next().unwrap_or_default();
    match user.parse::<i64>() {
        Ok(uid) => (Some(uid), String::new()),
        Err(_) => (None, user.to_owned()),
    }
}

/// The credentials of a pull, the most special first. Those for another registry are not used.
fn auth_of(auth: Option<AuthConfig>, reference: &Reference) -> Result<Option<Auth>, Status> {
    let Some(auth) = auth else { return Ok(None) };
    let server = auth.server_address.trim_start_matches("https://").trim_start_matches("http://");
    let server = server.split('/').next().unwrap_or_default();
    let docker = |host: &str| matches!(host, "docker.io" | "index.docker.io" | "registry-1.docker.io");
    if !server.is_empty() && server != reference.domain() && !(docker(server) && docker(reference.domain())) {
        return Ok(None);
    }
    if !auth.registry_token.is_empty() {
        return Ok(Some(Auth::RegistryToken(auth.registry_token)));
    }
    if !auth.identity_token.is_empty() {
        return Ok(Some(Auth::IdentityToken(auth.identity_token)));
    }
    if !auth.username.is_empty() {
        return Ok(Some(Auth::Basic { username: auth.username, password: auth.password }));
    }
    if !auth.auth.is_empty() {
        let basic = Auth::from_basic_field(&auth.auth);
        return Ok(Some(basic.ok_or_else(|| invalid("`auth` is not base64 of user:password"))?));
    }
    Ok(None)
}

impl Inner {
    pub(crate) fn list_images(&self, request: ListImagesRequest) -> ListImagesResponse {
        let wanted =
            request.filter.and_then(|filter| filter.image).map(|spec| spec.image).unwrap_or_default();
        let images = match wanted.as_str() {
            "" => self.images.list().iter().map(row).collect(),
            name => self.images.get(name).iter().map(row).collect(),
        };
        ListImagesResponse { images }
    }

    pub(crate) fn image_status(&self, request: ImageStatusRequest) -> Result<ImageStatusResponse, Status> {
        let name = request.image.unwrap_or_default().image;
        if name.is_empty() {
            return Err(invalid("no image is named"));
        }
        let Some(image) = self.images.get(&name) else {
            return Ok(ImageStatusResponse { image: None, info: BTreeMap::new() });
        };
        let mut info = BTreeMap::new();
        if request.verbose {
            let layers: Vec<&str> = image.layers.iter().map(|layer| layer.as_str()).collect();
            let about = serde_json::json!({
                "imageSpec": &*image.config,
                "layers": layers,
                "manifest": image.manifest.as_str(),
                "pulled": image.pulled,
            });
            info.insert("info".to_owned(), about.to_string());
        }
        Ok(ImageStatusResponse { image: Some(row(&image)), info })
    }

    pub(crate) async fn pull_image(&self, request: PullImageRequest) -> Result<PullImageResponse, Status> {
        let name = request.image.unwrap_or_default().image;
        let reference: Reference = name.parse().map_err(|error: image::ReferenceError| status(error))?;
        let auth = auth_of(request.auth, &reference)?;
        // A kubelet says for which pod it pulls; somebody with crictl fetches ahead.
        let priority = match request.sandbox_config {
            Some(_) => Priority::Pod,
            None => Priority::Prefetch,
        };
        let options = PullOptions { auth, priority, ..PullOptions::default() };
        let image = self.images.pull_with(&reference, options).await.map_err(status)?;
        Ok(PullImageResponse { image_ref: image.id.to_string() })
    }

    pub(crate) async fn remove_image(&self, request: RemoveImageRequest) -> Result<(), Status> {
        let name = request.image.unwrap_or_default().image;
        if name.is_empty() {
            return Err(invalid("no image is named"));
        }
        // By id: the image goes with all its names.
        let Some(image) = self.images.get(&name) else { return Ok(()) };
        match self.images.remove(image.id.as_str()).await {
            Ok(_) | Err(image::RemoveError::NotFound(_)) => Ok(()),
            Err(error) => Err(status(error)),
        }
    }

    pub(crate) async fn image_fs_info(&self) -> ImageFsInfoResponse {
        let usage = self.images.usage();
        let timestamp = view::nanos(jiff::Timestamp::now());
        let fs = |mountpoint: &std::path::Path, bytes, inodes| FilesystemUsage {
            timestamp,
            fs_id: Some(FilesystemIdentifier { mountpoint: mountpoint.to_string_lossy().into_owned() }),
            used_bytes: Some(UInt64Value { value: bytes }),
            inodes_used: Some(UInt64Value { value: inodes }),
        };
        let (bytes, inodes) = self.runtime.writable().await;
        ImageFsInfoResponse {
            image_filesystems: vec![fs(&usage.mountpoint, usage.bytes, usage.inodes)],
            container_filesystems: vec![fs(&self.config.layers_dir, bytes, inodes)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_numbers_or_names() {
        assert_eq!(user_of("1000:5"), (Some(1000), String::new()));
        assert_eq!(user_of("app"), (None, "app".to_owned()));
        assert_eq!(user_of(""), (None, String::new()));
        assert_eq!(user_of("4294967296"), (Some(1 << 32), String::new()));
    }

    #[test]
    fn credentials_go_only_to_their_registry() {
        let reference: Reference = "r.io/a".parse().expect("a name");
        let find = |auth: AuthConfig| auth_of(Some(auth), &reference).map_err(|status| status.code());
        let basic = AuthConfig { username: "u".into(), password: "p".into(), ..Default::default() };
        let expected = Some(Auth::Basic { username: "u".into(), password: "p".into() });
        assert_eq!(find(basic.clone()), Ok(expected.clone()));
        assert_eq!(
            find(AuthConfig { server_address: "https://r.io/v2/".into(), ..basic.clone() }),
            Ok(expected.clone())
        );
        assert_eq!(find(AuthConfig { server_address: "other.io".into(), ..basic }), Ok(None));
        assert_eq!(find(AuthConfig { auth: "dTpw".into(), ..Default::default() }), Ok(expected));
        assert_eq!(
            find(AuthConfig { auth: "!".into(), ..Default::default() }),
            Err(tonic::Code::InvalidArgument)
        );
        assert_eq!(find(AuthConfig::default()), Ok(None));
        assert_eq!(auth_of(None, &reference).map_err(|s| s.code()), Ok(None));
    }
}
