//! Archives: OCI layouts and the output of `docker save`.

use std::io::Write;

use image::{Digest, ImportError, Platform};
use serde_json::json;

use crate::fixture::{
    Content, OCI_MANIFEST, Place, chain, file, gzip, image_of, root, tar_of, two_layers, zstd,
};

fn archive(files: &[(String, Vec<u8>)]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        builder.append_data(&mut header, name, content.as_slice()).expect("written");
    }
    builder.into_inner().expect("written")
}

fn blob(digest: &str) -> String {
    format!("blobs/sha256/{}", digest.strip_prefix("sha256:").expect("a digest"))
}

/// An OCI layout; `index.json` comes last, as it may.
fn layout(images: &[(&Content, serde_json::Value)]) -> Vec<u8> {
    let mut files = vec![("oci-layout".to_owned(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec())];
    let mut manifests = Vec::new();
    for (content, annotations) in images {
        files.extend(content.blobs.iter().map(|(d, b)| (blob(d), b.clone())));
        files.extend(content.manifests.iter().map(|(d, (_, b))| (blob(d), b.clone())));
        manifests.push(json!({ "mediaType": OCI_MANIFEST, "digest": content.manifest, "size": 1, "annotations": annotations }));
    }
    let index = json!({ "schemaVersion": 2, "manifests": manifests });
    files.push(("index.json".to_owned(), serde_json::to_vec(&index).expect("plain")));
    archive(&files)
}

fn save(place: &Place, bytes: &[u8]) -> std::path::PathBuf {
    let path = place.dir.path().join("archive.tar");
    std::fs::File::create(&path).and_then(|mut f| f.write_all(bytes)).expect("written");
    path
}

#[tokio::test]
async fn oci_layouts_plain_and_compressed() {
    if !root() {
        return;
    }
    let (one, two) = (two_layers(), {
        let tar = tar_of(&[file("only", "x")]);
        image_of(&[(tar.clone(), tar)])
    });
    let plain = layout(&[
        (&one, json!({ "org.opencontainers.image.ref.name": "localhost/hello:1" })),
        (&two, json!({ "io.containerd.image.name": "nginx:2", "org.opencontainers.image.ref.name": "2" })),
        (&one, json!({ "org.opencontainers.image.ref.name": "localhost/hello:latest" })),
    ]);
    for bytes in [plain.clone(), gzip(&plain), zstd(&plain)] {
        let place = Place::new();
        let store = place.open();
        let images = store.import(&save(&place, &bytes), None).await.expect("imported");
        assert_eq!(images.len(), 2);
        let hello = store.get("localhost/hello:1").expect("there");
        assert_eq!(hello.repo_tags, ["localhost/hello:1", "localhost/hello:latest"]);
        assert_eq!(hello.id.as_str(), one.config);
        assert_eq!(store.get("nginx:2").expect("there").repo_tags, ["docker.io/library/nginx:2"]);
        assert_eq!(store.lease(&hello.id, "c").expect("leased").lower.len(), 3);
        place.settled().await;
    }
}

#[tokio::test]
async fn docker_archives() {
    let tar = tar_of(&[file("a", "a")]);
    let content = image_of(&[(tar.clone(), tar.clone())]);
    let manifest = json!([{ "Config": "config.json", "RepoTags": ["app:1", "r.io/app:2"], "Layers": ["one/layer.tar"] }]);
    let bytes = archive(&[
        ("one/layer.tar".into(), tar),
        ("config.json".into(), content.blobs[&content.config].clone()),
        ("manifest.json".into(), serde_json::to_vec(&manifest).expect("plain")),
    ]);
    let place = Place::new();
    let store = place.open();
    let images = store.import(&save(&place, &bytes), None).await.expect("imported");
    assert_eq!(images[0].repo_tags, ["docker.io/library/app:1", "r.io/app:2"]);
    assert_eq!(images[0].id.as_str(), content.config);
}

#[tokio::test]
async fn bad_archives_say_what_is_wrong() {
    let tar = tar_of(&[file("a", "a")]);
    let content = image_of(&[(tar.clone(), tar)]);
    let good = json!({ "org.opencontainers.image.ref.name": "r.io/app:1" });
    let mut forged = content.clone();
    forged.blobs.get_mut(&content.layers[0]).expect("there")[600] ^= 1;
    let mut missing = content.clone();
    missing.blobs.remove(&content.layers[0]);
    let bad_name = json!({ "org.opencontainers.image.ref.name": "r.io/App:1" });
    let whole = layout(&[(&content, good.clone())]);
    for (bytes, part) in [
        (layout(&[(&forged, good.clone())]), "has the wrong digest"),
        (layout(&[(&missing, good.clone())]), "the archive has no `blobs/sha256/"),
        (layout(&[(&content, bad_name)]), "must be lower case"),
        (layout(&[]), "the archive has no image"),
        (archive(&[("x".into(), vec![])]), "neither `index.json` nor `manifest.json`"),
        (b"nonsense".to_vec(), "archive"),
        (whole[..whole.len() / 2].to_vec(), "archive"),
        (gzip(&whole)[..400].to_vec(), "decompress archive"),
    ] {
        let place = Place::new();
        let store = place.open();
        let err = store.import(&save(&place, &bytes), None).await.expect_err("refused");
        assert!(chain(&err).contains(part), "no `{part}` in `{}`", chain(&err));
        assert!(store.list().is_empty());
        place.settled().await;
    }
    let place = Place::new();
    let err = place.open().import(&place.dir.path().join("none"), None).await.expect_err("not there");
    assert!(matches!(err, ImportError::Read(_)));
}

#[tokio::test]
async fn other_machines_images_are_refused() {
    let mut content = Content::default();
    let config =
        json!({ "architecture": "s390x", "os": "linux", "rootfs": { "type": "layers", "diff_ids": [] } });
    let config = serde_json::to_vec(&config).expect("plain");
    let digest = Digest::of(&config).to_string();
    let manifest =
        json!({ "schemaVersion": 2, "config": { "digest": digest, "size": config.len() }, "layers": [] });
    content.blobs.insert(digest, config);
    content.manifest = content.add_manifest(OCI_MANIFEST, serde_json::to_vec(&manifest).expect("plain"));
    let place = Place::new();
    let err = place
        .open()
        .import(&save(&place, &layout(&[(&content, json!({}))])), None)
        .await
        .expect_err("refused");
    let wanted = format!("image has no variant for {}; it has linux/s390x", Platform::host());
    assert!(chain(&err).contains(&wanted), "{}", chain(&err));
}
