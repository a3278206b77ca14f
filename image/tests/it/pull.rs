//! Pulls from a registry that misbehaves.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use image::{Auth, Digest, ErrorKind, Event, LayerProgress, Progress};
use serde_json::json;

use crate::fixture::{
    Content, OCI_INDEX, OCI_MANIFEST, Place, chain, file, gzip, image_of, noise, root, tar_of, two_layers,
};
use crate::server::{Server, Wants};

/// One layer of a megabyte that does not compress.
fn large() -> Content {
    let text: String = noise(1 << 20).iter().map(|b| char::from(b'!' + b % 90)).collect();
    let tar = tar_of(&[file("large", &text)]);
    image_of(&[(gzip(&tar), tar)])
}

/// Pulls what must not come in; gives the kind of error and the whole message.
async fn refused(server: &Server, place: &Place, auth: Option<Auth>) -> (ErrorKind, String) {
    let store = place.open();
    let err = store.pull(&server.reference("app:1"), auth, None).await.expect_err("refused");
    assert!(store.list().is_empty());
    place.settled().await;
    assert_eq!(place.names("l"), ["0"]);
    (err.kind(), chain(&err).replace(&server.address, "REGISTRY"))
}

fn check(found: (ErrorKind, String), kind: ErrorKind, parts: &[&str]) {
    assert_eq!(found.0, kind, "{}", found.1);
    for part in parts {
        assert!(found.1.contains(part), "no `{part}` in `{}`", found.1);
    }
}

#[tokio::test]
async fn pulls_by_tag_and_digest() {
    if !root() {
        return;
    }
    let content = two_layers();
    let (manifest, config) = (content.manifest.clone(), content.config.clone());
    let server = Server::start(content).await;
    let place = Place::new();
    let store = place.open();
    let events = Arc::new(parking_lot::Mutex::new(Vec::new()));
    let sink = events.clone();
    let progress = Progress::new(move |event| sink.lock().push(event));
    let image = store.pull(&server.reference("app:1"), None, Some(progress)).await.expect("pulled");
    assert_eq!(image.id.as_str(), config);
    assert_eq!(image.repo_tags, [format!("{}/app:1", server.address)]);
    assert_eq!(image.repo_digests, [format!("{}/app@{manifest}", server.address)]);
    assert_eq!(image.config.config().as_ref().and_then(|c| c.cmd().clone()), Some(vec!["/bin/hello".into()]));
    let events = events.lock().clone();
    assert!(matches!(events.first(), Some(Event::Resolving { .. })));
    assert_eq!(events.last(), Some(&Event::Done { id: image.id.clone() }));
    let done = |e: &&Event| matches!(e, Event::Layer { state: LayerProgress::Done, .. });
    assert_eq!(events.iter().filter(done).count(), 2);

    let rootfs = store.lease(&image.id, "c1").expect("leased");
    // Two layers, and one that gives `tmp` back its mode, which the upper layer only implies.
    assert_eq!(rootfs.lower.len(), 3);
    let read =
        |layer: usize, path: &str| std::fs::read_to_string(rootfs.lower[layer].join(path)).expect("a file");
    assert_eq!((read(1, "etc/c").as_str(), read(2, "etc/a").as_str()), ("three", "one"));
    let mode =
        std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(rootfs.lower[0].join("tmp")).expect("there"));
    assert_eq!(mode & 0o7777, 0o1777);
    assert!(rootfs.lower.iter().all(|p| p.as_os_str().len() <= place.root().as_os_str().len() + 6));

    // Again, by digest and by tag: nothing is downloaded.
    let before = server.log().len();
    let again = store.pull(&server.reference(&format!("app@{manifest}")), None, None).await.expect("pulled");
    assert_eq!(again.id, image.id);
    store.pull(&server.reference("app:1"), None, None).await.expect("pulled");
    let new: Vec<String> = server.log()[before..].iter().map(|r| r.method.clone()).collect();
    assert_eq!(new, ["HEAD", "HEAD"]);
    assert!(store.get(&format!("{}/app@{manifest}", server.address)).is_some());
    place.settled().await;
}

#[tokio::test]
async fn a_moved_tag_leaves_its_old_image() {
    let server = Server::start(two_layers()).await;
    let place = Place::new();
    let store = place.open();
    let old = store.pull(&server.reference("app:1"), None, None).await.expect("pulled");
    let new = large();
    {
        let mut behaviour = server.behaviour.lock();
        behaviour.tags.insert("1".into(), new.manifest.clone());
        behaviour.content.blobs.extend(new.blobs);
        behaviour.content.manifests.extend(new.manifests);
    }
    let image = store.pull(&server.reference("app:1"), None, None).await.expect("pulled");
    assert_ne!(image.id, old.id);
    assert!(store.get(old.id.as_str()).expect("still there").repo_tags.is_empty());
    drop(store);
    let store = place.open();
    assert_eq!(store.get(image.id.as_str()).expect("there").repo_tags, image.repo_tags);
    assert!(store.get(old.id.as_str()).expect("still there").repo_tags.is_empty());
    assert_eq!(store.prune(false).await.expect("pruned").deleted, [old.id]);
}

#[tokio::test]
async fn chooses_from_an_index() {
    let mut content = two_layers();
    let host = image::Platform::host();
    let index = json!({ "schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [
        { "mediaType": OCI_MANIFEST, "digest": Digest::of(b"other"), "size": 5, "platform": { "os": "linux", "architecture": "s390x" } },
        { "mediaType": OCI_MANIFEST, "digest": content.manifest, "size": 5, "platform": { "os": "linux", "architecture": host.architecture } },
        { "mediaType": OCI_MANIFEST, "digest": Digest::of(b"proof"), "size": 5, "platform": { "os": "unknown", "architecture": "unknown" } },
    ]});
    let index = content.add_manifest(OCI_INDEX, serde_json::to_vec(&index).expect("plain"));
    let server = Server::start(content).await;
    server.behaviour.lock().tags.insert("1".into(), index.clone());
    let place = Place::new();
    let store = place.open();
    let image = store.pull(&server.reference("app:1"), None, None).await.expect("pulled");
    assert_eq!(image.repo_digests, [format!("{}/app@{index}", server.address)]);
}

#[tokio::test]
async fn resumes_where_it_broke() {
    let content = large();
    let (layer, size) = (content.layers[0].clone(), content.blobs[&content.layers[0]].len());
    let server = Server::start(content).await;
    server.behaviour.lock().cuts.insert(layer.clone(), vec![size / 4, size / 4, 0]);
    let place = Place::new();
    let store = place.open();
    store.pull(&server.reference("app:1"), None, None).await.expect("pulled");
    let ranges: Vec<_> =
        server.log().into_iter().filter(|r| r.path.ends_with(&layer)).map(|r| r.range).collect();
    assert_eq!(ranges[0], None);
    assert_eq!(ranges[1], Some(format!("bytes={}-", size / 4)));
    assert_eq!(ranges.last().cloned().flatten(), Some(format!("bytes={}-", size / 4 * 2)));
    assert!(place.names("p").is_empty());
}

#[tokio::test]
async fn resumes_after_a_restart_and_without_ranges() {
    let content = large();
    let (layer, size) = (content.layers[0].clone(), content.blobs[&content.layers[0]].len());
    let server = Server::start(content).await;
    server.behaviour.lock().cuts.insert(layer.clone(), vec![size / 2, 0, 0, 0, 0, 0, 0, 0]);
    let place = Place::new();
    check(
        refused(&server, &place, None).await,
        ErrorKind::Unavailable,
        &["download layer", "REGISTRY", "broke off"],
    );
    assert_eq!(place.names("p").len(), 1);
    {
        let mut behaviour = server.behaviour.lock();
        behaviour.cuts.clear();
        behaviour.log.clear();
        behaviour.ignore_ranges = true;
    }
    let store = place.open();
    store.pull(&server.reference("app:1"), None, None).await.expect("pulled");
    assert_eq!(server.log().last().and_then(|r| r.range.clone()), Some(format!("bytes={}-", size / 2)));
}

#[tokio::test]
async fn a_damaged_leftover_is_downloaded_again() {
    let content = large();
    let layer = content.layers[0].clone();
    let server = Server::start(content).await;
    let place = Place::new();
    let store = place.open();
    let partial = place.root().join("p").join(layer.strip_prefix("sha256:").expect("a digest"));
    std::fs::write(partial, noise(1000)).expect("written");
    store.pull(&server.reference("app:1"), None, None).await.expect("pulled");
    assert_eq!(server.asked(&layer), 2);
}

#[tokio::test]
async fn wrong_content_is_refused() {
    let content = two_layers();
    let (layer, config, manifest) =
        (content.layers[0].clone(), content.config.clone(), content.manifest.clone());
    let server = Server::start(content.clone()).await;
    let place = Place::new();
    let mut forged = content.blobs[&layer].clone();
    let middle = forged.len() / 2;
    forged[middle] ^= 1;
    server.behaviour.lock().forged.insert(layer.clone(), forged);
    check(refused(&server, &place, None).await, ErrorKind::Invalid, &["wrong digest", &layer]);
    let whole = content.blobs[&layer].clone();
    server.behaviour.lock().forged.insert(layer.clone(), whole[..whole.len() - 10].to_vec());
    check(refused(&server, &place, None).await, ErrorKind::Unavailable, &["download layer", "sends"]);
    let longer = [whole.as_slice(), b"more"].concat();
    server.behaviour.lock().forged.insert(layer.clone(), longer);
    check(refused(&server, &place, None).await, ErrorKind::Invalid, &["sends more than the expected"]);
    server.behaviour.lock().forged.clear();
    server.behaviour.lock().forged.insert(config.clone(), b"{}".to_vec());
    check(refused(&server, &place, None).await, ErrorKind::Invalid, &["wrong digest", &config]);
    server.behaviour.lock().forged.clear();
    server.behaviour.lock().content.manifests.get_mut(&manifest).expect("there").1.push(b' ');
    check(refused(&server, &place, None).await, ErrorKind::Invalid, &["wrong digest", &manifest]);
}

#[tokio::test]
async fn a_wrong_diff_id_is_refused() {
    let tar = tar_of(&[file("a", "a")]);
    let server = Server::start(image_of(&[(gzip(&tar), b"something else".to_vec())])).await;
    check(refused(&server, &Place::new(), None).await, ErrorKind::Invalid, &["unpacks to diff id"]);
}

#[tokio::test]
async fn unknown_images_are_told_apart() {
    let server = Server::start(two_layers()).await;
    let place = Place::new();
    server.behaviour.lock().tags.clear();
    check(
        refused(&server, &place, None).await,
        ErrorKind::NotFound,
        &["resolve REGISTRY/app:1", "manifest unknown"],
    );
    let store = place.open();
    let nobody: image::Reference = "127.0.0.1:1/app:1".parse().expect("a reference");
    let err = store.pull(&nobody, None, None).await.expect_err("nobody listens");
    assert_eq!(err.kind(), ErrorKind::Unavailable);
    assert!(chain(&err).contains("connect to registry 127.0.0.1:1"), "{}", chain(&err));
    assert!(chain(&err).contains("refused"), "{}", chain(&err));
}

#[tokio::test]
async fn passing_failures_are_tried_again() {
    let server = Server::start(two_layers()).await;
    server.behaviour.lock().failures = vec![503, 500];
    let place = Place::new();
    place.open().pull(&server.reference("app:1"), None, None).await.expect("pulled");
    server.behaviour.lock().failures = vec![429];
    check(
        refused(&server, &Place::new(), None).await,
        ErrorKind::Unavailable,
        &["limits its rate", "as you wished"],
    );
}

fn user() -> Option<Auth> {
    Some(Auth::Basic { username: "user".into(), password: "secret".into() })
}

const USER: &str = "Basic dXNlcjpzZWNyZXQ=";

#[tokio::test]
async fn authenticates() {
    let server = Server::start(two_layers()).await;
    let wants = |wants| server.behaviour.lock().auth = Some(wants);
    let pull = async |auth| Place::new().open().pull(&server.reference("app:1"), auth, None).await;
    wants(Wants::Basic(USER.into()));
    check(
        refused(&server, &Place::new(), None).await,
        ErrorKind::Unauthorized,
        &["denies access", "check the credentials"],
    );
    pull(user()).await.expect("pulled with basic authentication");
    wants(Wants::Bearer(None));
    pull(None).await.expect("pulled with an anonymous token");
    wants(Wants::Bearer(Some(USER.into())));
    pull(user()).await.expect("pulled with a token");
    check(refused(&server, &Place::new(), None).await, ErrorKind::Unauthorized, &["denies access"]);
    wants(Wants::Refresh("refresh".into()));
    pull(Some(Auth::IdentityToken("refresh".into()))).await.expect("pulled with an identity token");
    pull(Some(Auth::RegistryToken("good".into()))).await.expect("pulled with a registry token");
}

#[tokio::test]
async fn credentials_do_not_follow_redirects() {
    let content = two_layers();
    let elsewhere = Server::start(content.clone()).await;
    let server = Server::start(content).await;
    {
        let mut behaviour = server.behaviour.lock();
        behaviour.auth = Some(Wants::Basic(USER.into()));
        behaviour.redirect = Some(format!("http://{}", elsewhere.address));
    }
    let place = Place::new();
    place.open().pull(&server.reference("app:1"), user(), None).await.expect("pulled");
    assert!(!elsewhere.log().is_empty());
    assert!(elsewhere.log().iter().all(|r| r.authorization.is_none()));
    // Nor does anybody get us to ask for tokens, or metadata services.
    elsewhere.behaviour.lock().auth = Some(Wants::Bearer(None));
    check(refused(&server, &Place::new(), user()).await, ErrorKind::Unauthorized, &["denies access"]);
    server.behaviour.lock().redirect = Some("http://169.254.169.254".into());
    check(
        refused(&server, &Place::new(), user()).await,
        ErrorKind::Unavailable,
        &["refused, it leads to a link-local address"],
    );
}

#[tokio::test]
async fn one_download_for_all() {
    let content = large();
    let layer = content.layers[0].clone();
    let server = Server::start(content).await;
    let place = Place::new();
    let store = place.open();
    let done = Arc::new(AtomicUsize::new(0));
    let mut pulls = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (store, reference, done) = (store.clone(), server.reference("app:1"), done.clone());
        pulls.spawn(async move {
            store.pull(&reference, None, None).await.expect("pulled");
            done.fetch_add(1, Ordering::Relaxed);
        });
    }
    pulls.join_all().await;
    assert_eq!((done.load(Ordering::Relaxed), server.asked(&layer)), (8, 1));
}

#[tokio::test]
async fn mirrors_are_asked_first_and_get_no_credentials() {
    let content = two_layers();
    let server = Server::start(content.clone()).await;
    let mirror = Server::start(content).await;
    mirror.behaviour.lock().failures = vec![404];
    let place = Place::new();
    let directory = place.dir.path().join("certs.d/_default");
    std::fs::create_dir_all(&directory).expect("created");
    let hosts = format!("[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n", mirror.address);
    std::fs::write(directory.join("hosts.toml"), hosts).expect("written");
    server.behaviour.lock().auth = Some(Wants::Basic(USER.into()));
    place.open().pull(&server.reference("app:1"), user(), None).await.expect("pulled");
    // The mirror did not know the tag; the content came from it all the same.
    assert!(server.log().iter().all(|r| r.path.contains("/manifests/")));
    assert!(mirror.log().iter().all(|r| r.authorization.is_none()));
    assert!(
        mirror.log().iter().all(|r| r.path.contains(&format!("?ns={}", server.address.replace(':', "%3A"))))
    );
}

#[tokio::test]
async fn hostile_documents_are_refused() {
    let mut content = two_layers();
    let both = json!({ "schemaVersion": 2, "layers": [], "manifests": [] });
    let both = content.add_manifest(OCI_MANIFEST, serde_json::to_vec(&both).expect("plain"));
    let old = content.add_manifest(
        "application/vnd.docker.distribution.manifest.v1+prettyjws",
        br#"{"schemaVersion":1,"fsLayers":[]}"#.to_vec(),
    );
    let huge = content.add_manifest(OCI_MANIFEST, vec![b' '; 5 << 20]);
    let deep = content.add_manifest(OCI_MANIFEST, "[".repeat(1 << 20).into_bytes());
    let server = Server::start(content).await;
    for (digest, part) in [
        (both, "both layers and manifests"),
        (old, "schema 1"),
        (huge, "sends more than the expected 4194304 bytes"),
        (deep, "parse manifest"),
    ] {
        server.behaviour.lock().tags.insert("1".into(), digest);
        check(refused(&server, &Place::new(), None).await, ErrorKind::Invalid, &[part]);
    }
}

#[tokio::test]
async fn tls_needs_the_right_ca() {
    let (server, ca) = Server::start_tls(two_layers()).await;
    let place = Place::new();
    let directory = place.dir.path().join("certs.d").join(&server.address);
    std::fs::create_dir_all(&directory).expect("created");
    let hosts = |more: &str| {
        let text = format!("server = \"https://{}\"\n{more}\n", server.address);
        std::fs::write(directory.join("hosts.toml"), text).expect("written");
    };
    hosts("");
    check(
        refused(&server, &place, None).await,
        ErrorKind::Unavailable,
        &["connect to registry", "certificate"],
    );
    std::fs::write(directory.join("ca.pem"), ca).expect("written");
    hosts("ca = \"ca.pem\"");
    let store = place.open();
    let image = store.pull(&server.reference("app:1"), None, None).await.expect("pulled with the CA");
    store.remove(image.id.as_str()).await.expect("removed");
    hosts("skip_verify = true");
    store.pull(&server.reference("app:1"), None, None).await.expect("pulled without a check");
    hosts("nonsense");
    let err = store.pull(&server.reference("app:1"), None, None).await.expect_err("refused");
    assert!(chain(&err).contains("hosts.toml"), "{}", chain(&err));
}

#[tokio::test]
async fn giving_up_ends_only_what_nobody_else_wants() {
    let content = large();
    let layer = content.layers[0].clone();
    let server = Server::start(content).await;
    // Breaks off so often that it takes a while.
    let pieces = || vec![100_000; 10];
    server.behaviour.lock().cuts.insert(layer.clone(), pieces());
    let place = Place::new();
    let store = place.open();
    let reference = server.reference("app:1");
    let first = tokio::spawn({
        let (store, reference) = (store.clone(), reference.clone());
        async move { store.pull(&reference, None, None).await.map(|_| ()) }
    });
    while server.asked(&layer) < 2 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let second = store.pull(&reference, None, None);
    first.abort();
    second.await.expect("the second pull goes on");
    store.remove("127.0.0.1:1/none").await.expect_err("no such image");
    store.prune(true).await.expect("pruned");

    server.behaviour.lock().cuts.insert(layer.clone(), pieces());
    let before = server.asked(&layer);
    let alone = tokio::spawn(async move { store.pull(&reference, None, None).await.map(|_| ()) });
    while server.asked(&layer) < before + 3 {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    alone.abort();
    place.settled().await;
    assert_eq!(place.names("p").len(), 1, "what came is kept");
    assert_eq!(place.names("l"), ["0"]);
}

#[tokio::test]
async fn tunnels_through_a_proxy() {
    let content = two_layers();
    let (server, ca) = Server::start_tls(content.clone()).await;
    let direct = Server::start(content).await;
    let (address, asked) = crate::server::proxy(server.address.clone()).await;
    let place = Place::new();
    let directory = place.dir.path().join("certs.d/registry.test");
    std::fs::create_dir_all(&directory).expect("created");
    std::fs::write(directory.join("ca.pem"), ca).expect("written");
    std::fs::write(directory.join("hosts.toml"), "server = 'https://registry.test'\nca = 'ca.pem'")
        .expect("written");
    let config = image::RegistryConfig {
        hosts: Some(place.dir.path().join("certs.d")),
        proxy: Some(image::Proxy { https: format!("http://u:p@{address}"), no: "other.test".into() }),
        ..image::RegistryConfig::default()
    };
    let store = image::Store::open(place.root(), config).expect("opens");
    // This machine is reached without it.
    store.pull(&direct.reference("app:1"), None, None).await.expect("pulled");
    assert!(asked.lock().is_empty());
    let reference = "registry.test/app:1".parse().expect("a reference");
    store.pull(&reference, None, None).await.expect("pulled through the proxy");
    let first = asked.lock()[0].to_lowercase();
    assert!(first.starts_with("connect registry.test:443 "), "{first}");
    assert!(first.contains("proxy-authorization: basic "), "{first}");
}
