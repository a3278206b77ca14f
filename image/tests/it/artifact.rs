//! OCI artifacts: stored, mounted, never run. And streams that are more than one frame.

use image::{ErrorKind, Form, LeaseError};

use crate::fixture::{Place, artifact_of, chain, file, image_of, root, tar_of, zstd};
use crate::server::Server;

#[tokio::test]
async fn an_artifact_is_a_directory_of_its_blobs() {
    let content = artifact_of(&[("models/a.bin", b"weights"), ("README", b"read me"), ("copy", b"weights")]);
    let manifest = content.manifest.clone();
    let server = Server::start(content).await;
    let place = Place::new();
    let store = place.open();
    let image = store.pull(&server.reference("app:1"), None, None).await.expect("pulled");
    assert_eq!(image.id.as_str(), manifest, "its configuration names nothing");
    assert_eq!(image.artifact.as_deref(), Some("application/vnd.example.model"));
    let err = store.lease(&image.id, "c1").expect_err("it cannot run");
    assert!(matches!(err, LeaseError::Artifact { .. }));
    assert!(err.to_string().contains("cannot run; mount it as an image volume"), "{err}");
    let volume = store.volume_lease(&image.id, "c1").expect("leased").lower;
    assert_eq!(volume.len(), 1);
    let read = |name: &str| std::fs::read_to_string(volume[0].join(name)).expect("a file");
    assert_eq!(
        (read("models/a.bin"), read("copy"), read("README")),
        ("weights".into(), "weights".into(), "read me".into())
    );
    assert!(store.remove(image.id.as_str()).await.is_err(), "it is in use");
    assert!(place.names("p").is_empty());
    place.settled().await;
    drop(store);

    let store = place.open();
    let again = store.get(&image.repo_tags[0]).expect("still there");
    assert_eq!((again.artifact, store.damaged().len()), (image.artifact.clone(), 0));
    assert_eq!(store.verify(None).await.expect("verified").problems, []);
    // The same blobs a second time: nothing is downloaded.
    let asked = server.blobs_asked().len();
    store.pull(&server.reference("app:1"), None, None).await.expect("pulled");
    assert_eq!(server.blobs_asked().len(), asked);

    let archive = place.dir.path().join("artifact.tar");
    store.export(&image.repo_tags, &archive, Form::Oci).await.expect("exported");
    let err = store.export(&image.repo_tags, &archive, Form::Docker).await.expect_err("docker has none");
    assert!(chain(&err).contains("export it as an OCI archive"), "{}", chain(&err));
    let other = Place::new();
    let imported = other.open().import(&archive, None).await.expect("imported");
    assert_eq!((&imported[0].id, &imported[0].artifact), (&image.id, &image.artifact));

    std::fs::write(volume[0].join("README"), "changed").expect("written");
    std::fs::write(volume[0].join("more"), "").expect("written");
    let report = store.verify(None).await.expect("verified");
    assert_eq!(report.problems.len(), 1);
    assert!(report.problems[0].details[0].starts_with("`README` hashes to"), "{report:?}");
    store.release("c1");
    store.remove(image.id.as_str()).await.expect("removed");
    place.settled().await;
    assert_eq!((place.names("l"), place.names("b").len()), (vec!["0".to_owned()], 0));
}

#[tokio::test]
async fn blobs_of_artifacts_are_verified() {
    let content = artifact_of(&[("a", b"as it should be")]);
    let blob = content.layers[0].clone();
    let server = Server::start(content).await;
    server.behaviour.lock().forged.insert(blob, b"not as it should".to_vec()[..15].to_vec());
    let place = Place::new();
    let store = place.open();
    let err = store.pull(&server.reference("app:1"), None, None).await.expect_err("forged");
    assert_eq!(err.kind(), ErrorKind::Invalid);
    assert!(chain(&err).contains("wrong digest"), "{}", chain(&err));
    place.settled().await;
    assert!(place.names("p").is_empty() && place.names("i").is_empty());
}

/// A frame that decoders skip, as zstd:chunked and eStargz-like formats put their tables in.
fn skippable(content: &[u8]) -> Vec<u8> {
    let mut frame = 0x184d_2a50u32.to_le_bytes().to_vec();
    frame.extend((content.len() as u32).to_le_bytes());
    frame.extend(content);
    frame
}

#[tokio::test]
async fn zstd_chunked_is_read_as_zstd() {
    if !root() {
        return;
    }
    let tar = tar_of(&[file("a", "one"), file("b", &"two".repeat(5000))]);
    let (head, tail) = tar.split_at(700);
    let chunked = [zstd(head), skippable(b"table"), zstd(tail), skippable(&[0; 300])].concat();
    let leading = [skippable(b"first"), zstd(&tar)].concat();
    for served in [chunked, leading] {
        let server = Server::start(image_of(&[(served, tar.clone())])).await;
        let place = Place::new();
        let store = place.open();
        let image = store.pull(&server.reference("app:1"), None, None).await.expect("pulled");
        let lower = store.lease(&image.id, "c").expect("leased").lower;
        assert_eq!(std::fs::read_to_string(lower[0].join("b")).expect("there").len(), 15000);
    }
}
