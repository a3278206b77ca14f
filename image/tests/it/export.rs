//! What is exported is what was pulled.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use image::{Digest, ExportError, Form};
use serde_json::Value;

use crate::fixture::{Place, chain, motley, root};
use crate::server::Server;

fn entries(path: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(std::fs::File::open(path).expect("an archive"));
    let read = |entry: std::io::Result<tar::Entry<std::fs::File>>| {
        let mut entry = entry.expect("an entry");
        let mut content = Vec::new();
        entry.read_to_end(&mut content).expect("read");
        (entry.path().expect("a name").display().to_string(), content)
    };
    archive.entries().expect("entries").map(read).collect()
}

fn json(bytes: &[u8]) -> Value {
    serde_json::from_slice(bytes).expect("JSON")
}

#[tokio::test]
async fn round_trips() {
    if !root() {
        return;
    }
    let content = motley();
    let server = Server::start(content.clone()).await;
    let place = Place::new();
    let store = place.open();
    let image = store.pull(&server.reference("app:1"), None, None).await.expect("pulled");
    let tag = image.repo_tags[0].clone();
    for (form, name) in [
        (Form::Oci, "oci.tar"),
        (Form::Oci, "oci.tar.gz"),
        (Form::Docker, "docker.tar"),
        (Form::Docker, "docker.tar.zst"),
    ] {
        let path = place.dir.path().join(name);
        store.export(std::slice::from_ref(&tag), &path, form).await.expect("exported");
        let other = Place::new();
        let target = other.open();
        let imported =
            target.import(&path, None).await.unwrap_or_else(|err| panic!("{name}: {}", chain(&err)));
        assert_eq!((imported.len(), &imported[0].id), (1, &image.id), "{name}");
        assert_eq!(imported[0].repo_tags, image.repo_tags, "{name}");
        assert_eq!(imported[0].layers, image.layers, "{name}");
        assert_eq!(target.verify(None).await.expect("verified").problems, [], "{name}");
    }
    assert_eq!(crate::fixture::names(place.dir.path()).iter().filter(|n| n.starts_with('.')).count(), 0);
}

#[tokio::test]
async fn the_formats_are_as_others_expect_them() {
    if !root() {
        return;
    }
    let content = motley();
    let server = Server::start(content.clone()).await;
    let place = Place::new();
    let store = place.open();
    let image = store.pull(&server.reference("app:1"), None, None).await.expect("pulled");
    let path = place.dir.path().join("out.tar");
    let tag = image.repo_tags.clone();

    store.export(&tag, &path, Form::Docker).await.expect("exported");
    let found = entries(&path);
    let line = json(&found["manifest.json"])[0].clone();
    assert_eq!(line["RepoTags"][0], tag[0].as_str());
    assert_eq!(Digest::of(&found[line["Config"].as_str().expect("a name")]), image.id);
    let layers: Vec<Digest> = line["Layers"]
        .as_array()
        .expect("layers")
        .iter()
        .map(|name| Digest::of(&found[name.as_str().expect("a name")]))
        .collect();
    assert_eq!(layers, image.layers, "`docker load` compares layers with the configuration's diff ids");

    store.export(&tag, &path, Form::Oci).await.expect("exported");
    let found = entries(&path);
    assert_eq!(json(&found["oci-layout"])["imageLayoutVersion"], "1.0.0");
    for (name, content) in &found {
        if let Some(hex) = name.strip_prefix("blobs/sha256/") {
            assert_eq!(Digest::of(content).hex(), hex);
        }
    }
    let index = json(&found["index.json"]);
    let blob = |digest: &Value| {
        found[&format!("blobs/sha256/{}", digest.as_str().expect("a digest").trim_start_matches("sha256:"))]
            .clone()
    };
    let manifest = json(&blob(&index["manifests"][0]["digest"]));
    assert_eq!(manifest["config"]["digest"], image.id.as_str());
    for layer in manifest["layers"].as_array().expect("layers") {
        assert_eq!(blob(&layer["digest"]).len() as u64, layer["size"]);
    }
    assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], tag[0].as_str());
    assert!(found.contains_key("manifest.json"), "older dockers load it, too");
}

#[tokio::test]
async fn what_is_damaged_is_not_exported() {
    if !root() {
        return;
    }
    let server = Server::start(motley()).await;
    let place = Place::new();
    let store = place.open();
    let image = store.pull(&server.reference("app:1"), None, None).await.expect("pulled");
    let lower = store.lease(&image.id, "c").expect("leased").lower;
    let bottom = lower.last().expect("a layer");
    std::fs::write(bottom.join("attributed"), "y").expect("written");
    let path = place.dir.path().join("out.tar");
    let err = store.export(&image.repo_tags, &path, Form::Oci).await.expect_err("damaged");
    assert!(matches!(err, ExportError::Damaged { .. }), "{}", chain(&err));
    std::fs::remove_file(bottom.join("attributed")).expect("removed");
    let err = store.export(&image.repo_tags, &path, Form::Oci).await.expect_err("damaged");
    assert!(matches!(err, ExportError::Read { .. }), "{}", chain(&err));
    assert!(!path.exists());
    assert_eq!(crate::fixture::names(place.dir.path()), ["images"]);
    let err = store.export(&["nothing".into()], &path, Form::Oci).await.expect_err("unknown");
    assert_eq!(err.to_string(), "image `nothing` not found");
}
