//! Who may pull when, and what ends a pull in which nothing happens.

use std::sync::Arc;
use std::time::Duration;

use image::{ErrorKind, Event, ForeignLayers, Options, Priority, Progress, PullError, PullOptions};
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::Semaphore;

use crate::fixture::{Content, OCI_MANIFEST, Place, chain, file, gzip, image_of, tar_of, two_layers};
use crate::server::{Server, Wants};

/// An image with one small layer for each name.
fn layers(names: &[&str]) -> Content {
    let layer = |name: &&str| {
        let tar = tar_of(&[file(name, name)]);
        (gzip(&tar), tar)
    };
    image_of(&names.iter().map(layer).collect::<Vec<_>>())
}

fn prefetch() -> PullOptions {
    PullOptions { priority: Priority::Prefetch, ..PullOptions::default() }
}

async fn until(what: &str, mut test: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !test() {
        assert!(started.elapsed().as_secs() < 10, "waited in vain for {what}");
        tokio::task::yield_now().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_that_pods_wait_for_come_first() {
    let ahead = layers(&["a", "b", "c"]);
    let pod = layers(&["p"]);
    let server = Server::start(ahead.clone()).await;
    server.add("pod", pod.clone());
    let gate = Arc::new(Semaphore::new(0));
    for layer in &ahead.layers {
        server.behaviour.lock().gates.insert(layer.clone(), gate.clone());
    }
    let place = Place::new();
    let store = place.open_as(Options { parallel: 1, ..Options::default() });
    let (other, reference) = (store.clone(), server.reference("app:1"));
    let first = tokio::spawn(async move { other.pull_with(&reference, prefetch()).await });
    let is_layer = |d: &String| ahead.layers.contains(d) || pod.layers.contains(d);
    let asked = || server.blobs_asked().into_iter().filter(is_layer).collect::<Vec<_>>();
    until("the first layer", || asked().len() == 1).await;
    let (other, reference) = (store.clone(), server.reference("app:pod"));
    let second = tokio::spawn(async move { other.pull(&reference, None, None).await });
    // The pod's pull knows its layers, and waits for the one that is being downloaded.
    until("the second pull", || server.blobs_asked().contains(&pod.config)).await;
    tokio::time::timeout(Duration::from_millis(50), until("nothing", || asked().len() > 1)).await.ok();
    gate.add_permits(3);
    second.await.expect("no panic").expect("pulled");
    first.await.expect("no panic").expect("pulled");
    assert_eq!(asked()[1], pod.layers[0], "a layer of the prefetch went before the pod's");
}

#[tokio::test(flavor = "multi_thread")]
async fn pulls_wait_for_their_turn() {
    let server = Server::start(layers(&["a"])).await;
    server.add("2", layers(&["b"]));
    server.add("3", layers(&["c"]));
    let gate = Arc::new(Semaphore::new(0));
    server.behaviour.lock().gates.insert(layers(&["a"]).layers[0].clone(), gate.clone());
    let place = Place::new();
    let store = place.open_as(Options { pulls: 1, ..Options::default() });
    let done = Arc::new(Mutex::new(Vec::new()));
    let mut running = Vec::new();
    for (tag, priority) in [("1", Priority::Pod), ("2", Priority::Prefetch), ("3", Priority::Pod)] {
        let (store, reference, done) = (store.clone(), server.reference(&format!("app:{tag}")), done.clone());
        let queued = Arc::new(Mutex::new(false));
        let sink = queued.clone();
        let progress = Progress::new(move |event| *sink.lock() |= event == Event::Queued);
        let options = PullOptions { priority, progress: Some(progress), auth: None };
        running.push(tokio::spawn(async move {
            let pulled = store.pull_with(&reference, options).await;
            done.lock().push(tag);
            pulled
        }));
        if tag == "1" {
            until("the first pull", || !server.blobs_asked().is_empty()).await;
        } else {
            until("the wait", || *queued.lock()).await;
        }
    }
    assert!(server.log().iter().all(|r| !r.path.ends_with("/2") && !r.path.ends_with("/3")));
    gate.add_permits(1);
    for pull in running {
        pull.await.expect("no panic").expect("pulled");
    }
    assert_eq!(*done.lock(), ["1", "3", "2"]);
}

#[tokio::test]
async fn a_pull_in_which_nothing_moves_is_given_up() {
    let content = two_layers();
    let layer = content.layers[0].clone();
    let server = Server::start(content).await;
    server.behaviour.lock().hangs.insert(layer, 20);
    let place = Place::new();
    let store = place.open_as(Options { stall: Duration::from_millis(300), ..Options::default() });
    let err = store.pull(&server.reference("app:1"), None, None).await.expect_err("nothing comes");
    assert!(matches!(err, PullError::Stalled { .. }), "{}", chain(&err));
    assert_eq!(err.kind(), ErrorKind::Unavailable);
    assert!(chain(&err).contains("nothing was downloaded or unpacked for 0 s"), "{}", chain(&err));
    place.settled().await;
    server.behaviour.lock().hangs.clear();
    store.pull(&server.reference("app:1"), None, None).await.expect("pulled");
}

#[tokio::test]
async fn waiting_for_a_turn_is_not_stalling() {
    let content = layers(&["a"]);
    let gate = Arc::new(Semaphore::new(0));
    let server = Server::start(content.clone()).await;
    server.add("2", layers(&["b"]));
    server.behaviour.lock().gates.insert(content.layers[0].clone(), gate.clone());
    let place = Place::new();
    // The first is slow, but the second is the one whose patience is tried.
    let store =
        place.open_as(Options { parallel: 1, stall: Duration::from_millis(800), ..Options::default() });
    let (one, two) = (server.reference("app:1"), server.reference("app:2"));
    let first = store.pull(&one, None, None);
    let second = async {
        until("the first pull", || !server.blobs_asked().is_empty()).await;
        store.pull(&two, None, None).await
    };
    let open = async {
        tokio::time::sleep(Duration::from_millis(600)).await;
        gate.add_permits(1);
    };
    let (first, second, ()) = tokio::join!(first, second, open);
    first.expect("pulled");
    second.expect("pulled");
}

/// An image whose only layer is elsewhere.
fn foreign(urls: &[String]) -> (Content, Vec<u8>) {
    let tar = tar_of(&[file("a", "a")]);
    let layer = gzip(&tar);
    let mut content = image_of(&[(layer.clone(), tar)]);
    let digest = content.layers[0].clone();
    content.blobs.remove(&digest);
    let config = content.blobs[&content.config].len();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": content.config, "size": config },
        "layers": [{ "mediaType": "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
            "digest": digest, "size": layer.len(), "urls": urls }],
    });
    content.manifest = content.add_manifest(OCI_MANIFEST, serde_json::to_vec(&manifest).expect("plain data"));
    (content, layer)
}

const USER: &str = "Basic dTpw";

fn user() -> Option<image::Auth> {
    image::Auth::from_basic_field("dTpw")
}

#[tokio::test]
async fn foreign_layers_are_refused_or_fetched_without_credentials() {
    let elsewhere = Server::start(two_layers()).await;
    let (_, layer) = foreign(&[]);
    let digest = image::Digest::of(&layer).to_string();
    elsewhere.behaviour.lock().content.blobs.insert(digest.clone(), layer);
    let url = format!("http://{}/v2/app/blobs/{digest}", elsewhere.address);
    let hostile = ["file:///etc/shadow".to_owned(), "http://169.254.169.254/latest".to_owned()];
    let (content, _) = foreign(&[&hostile[..], &[url]].concat());
    let server = Server::start(content).await;
    server.behaviour.lock().auth = Some(Wants::Basic(USER.into()));
    let place = Place::new();
    let store = place.open();
    let err = store.pull(&server.reference("app:1"), user(), None).await.expect_err("refused");
    assert_eq!(err.kind(), ErrorKind::Invalid);
    assert!(chain(&err).contains("such foreign layers are not fetched"), "{}", chain(&err));
    assert!(elsewhere.log().is_empty());
    let place = Place::new();
    let store = place.open_as(Options { foreign: ForeignLayers::Fetch, ..Options::default() });
    store.pull(&server.reference("app:1"), user(), None).await.expect("pulled");
    assert_eq!(elsewhere.asked(&digest), 1);
    assert!(elsewhere.log().iter().all(|r| r.authorization.is_none()));
    assert!(server.log().iter().any(|r| r.authorization.as_deref() == Some(USER)));
    // Hostile places alone lead nowhere.
    let (content, _) = foreign(&hostile);
    server.add("2", content);
    store.remove(&server.reference("app:1").to_string()).await.expect("removed");
    let err = store.pull(&server.reference("app:2"), user(), None).await.expect_err("refused");
    assert!(chain(&err).contains("it leads to a link-local address"), "{}", chain(&err));
}
