//! Damage is found, and repaired.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use image::{Fate, Image, Problem, Report, Store, What};

use crate::fixture::{Content, Place, motley, root, two_layers};
use crate::server::Server;

async fn pulled(content: Content) -> (Server, Place, Store, Image) {
    let server = Server::start(content).await;
    let place = Place::new();
    let store = place.open();
    let image = store.pull(&server.reference("app:1"), None, None).await.expect("pulled");
    (server, place, store, image)
}

async fn verify(store: &Store) -> Report {
    store.verify(None).await.expect("verified")
}

/// Whether it is there, and no whiteout.
fn is_there(path: &Path) -> bool {
    use std::os::unix::fs::FileTypeExt;
    path.symlink_metadata().is_ok_and(|m| !m.file_type().is_char_device())
}

/// The tree of the layer that has this file.
fn tree_with(place: &Place, file: &str) -> PathBuf {
    let layers = place.names("l").into_iter().map(|n| place.root().join("l").join(n).join("d"));
    layers.into_iter().find(|tree| is_there(&tree.join(file))).expect("a layer with it")
}

/// Changes something without leaving a trace in the times.
fn quietly(path: &Path, change: impl FnOnce()) {
    let times = |path: &Path| std::fs::metadata(path).and_then(|m| m.modified()).expect("a time");
    let parent = path.parent().expect("a parent");
    let (own, parents) = (path.exists().then(|| times(path)), times(parent));
    change();
    let set = |path: &Path, time| {
        std::fs::File::open(path).and_then(|f| f.set_modified(time)).expect("set");
    };
    if let Some(own) = own.filter(|_| path.exists()) {
        set(path, own);
    }
    set(parent, parents);
}

#[tokio::test]
async fn what_is_whole_passes() {
    if !root() {
        return;
    }
    let (_server, place, store, image) = pulled(motley()).await;
    let report = verify(&store).await;
    assert_eq!(report.problems, []);
    // Two blobs; three layers, and one that corrects a directory that is only implied.
    assert_eq!((report.blobs, report.layers), (2, 4));
    assert_eq!(image.layers.len(), 3);
    place.settled().await;
    drop(store);
    assert_eq!(verify(&place.open()).await.problems, []);
}

#[tokio::test]
async fn every_kind_of_damage_is_found() {
    if !root() {
        return;
    }
    type Change = fn(&Path);
    let changes: [(&str, Change, &str); 10] = [
        ("etc/a", |p| std::fs::write(p, "two").expect("written"), "diff id"),
        ("etc/a", |p| std::fs::write(p, "one and more").expect("written"), "another size"),
        (
            "etc/a",
            |p| std::fs::set_permissions(p, PermissionsExt::from_mode(0o777)).expect("set"),
            "another mode",
        ),
        ("etc", |p| chown(p, Some(7), None).expect("set"), "another owner"),
        ("attributed", |p| std::fs::remove_file(p).expect("removed"), "gone"),
        ("etc/empty", |p| std::fs::remove_file(p).expect("removed"), "`/etc/empty` is missing"),
        ("more", |p| std::fs::write(p, "").expect("written"), "`/more` does not belong there"),
        (
            "lib",
            |p| {
                std::fs::remove_file(p).expect("removed");
                std::os::unix::fs::symlink("/usr/lib", p).expect("linked");
            },
            "part of it",
        ),
        ("twice", |p| std::fs::write(p, "SECOND").expect("written"), "another content"),
        ("../meta", |p| std::fs::write(p, "{}").expect("written"), "its record is gone"),
    ];
    for (file, change, expected) in changes {
        let (_server, place, store, image) = pulled(motley()).await;
        let tree = match file {
            "more" | "../meta" => tree_with(&place, "etc/a"),
            file => tree_with(&place, file),
        };
        let path = tree.join(file);
        quietly(&path, || change(&path));
        let report = verify(&store).await;
        let told = |p: &Problem| format!("{}: {}", p.what, p.details.join("; "));
        let all: Vec<String> = report.problems.iter().map(told).collect();
        assert_eq!(report.problems.len(), 1, "{file}: {all:?}");
        assert!(matches!(report.problems[0].what, What::Layer(_)) && report.problems[0].images == [image.id]);
        let told = all.join("");
        assert!(told.contains(expected) || expected == "part of it" || expected == "gone", "{file}: {told}");
    }
}

#[tokio::test]
async fn corrections_and_blobs_are_verified() {
    if !root() {
        return;
    }
    let (_server, place, store, image) = pulled(two_layers()).await;
    let top = store.lease(&image.id, "c").expect("leased").lower[0].clone();
    std::fs::set_permissions(top.join("tmp"), PermissionsExt::from_mode(0o755)).expect("set");
    let manifest = place.root().join("b").join(image.manifest.hex());
    std::fs::write(manifest, "{}").expect("written");
    let problems = verify(&store).await.problems;
    assert_eq!(problems.len(), 2, "{problems:?}");
    assert!(
        matches!(problems[0].what, What::Blob(_)) && problems[0].details[0].starts_with("its content hashes")
    );
    assert_eq!(problems[1].details, ["its directories are not as they were made"]);
}

#[tokio::test]
async fn repair_pulls_again() {
    if !root() {
        return;
    }
    let (server, place, store, image) = pulled(two_layers()).await;
    store.pin(image.id.as_str(), true).await.expect("pinned");
    let lower = server.behaviour.lock().content.layers[0].clone();
    let asked = server.asked(&lower);
    std::fs::write(tree_with(&place, "etc/c").join("etc/c"), "changed").expect("written");
    let report = verify(&store).await;
    // In use, it stays.
    store.lease(&image.id, "c1").expect("leased");
    let repaired = store.repair(&report, |_| None).await.expect("repaired");
    assert_eq!(repaired[0].fate, Fate::InUse { owners: vec!["c1".into()] });
    store.release("c1");
    let repaired = store.repair(&report, |_| None).await.expect("repaired");
    assert_eq!(repaired.len(), 1);
    assert_eq!((&repaired[0].id, &repaired[0].fate), (&image.id, &Fate::Pulled));
    let again = store.get(&image.repo_tags[0]).expect("there");
    assert_eq!(
        (again.id, again.repo_digests, again.pinned),
        (image.id.clone(), image.repo_digests.clone(), true)
    );
    assert_eq!(verify(&store).await.problems, []);
    assert_eq!(server.asked(&lower), asked, "the layer that is whole was downloaded again");
    place.settled().await;
}

#[tokio::test]
async fn repair_drops_what_cannot_be_pulled() {
    if !root() {
        return;
    }
    let (server, place, store, image) = pulled(two_layers()).await;
    server.behaviour.lock().tags.clear();
    server.behaviour.lock().content.manifests.clear();
    std::fs::remove_file(place.root().join("b").join(image.manifest.hex())).expect("removed");
    let report = verify(&store).await;
    assert_eq!(report.problems[0].details, ["it is missing"]);
    let repaired = store.repair(&report, |_| None).await.expect("repaired");
    assert!(
        matches!(&repaired[0].fate, Fate::Dropped { reason } if reason.contains("not found")),
        "{repaired:?}"
    );
    assert!(store.list().is_empty());
    place.settled().await;
    assert_eq!(
        (place.names("l"), place.names("b").len(), place.names("i").len()),
        (vec!["0".to_owned()], 0, 0)
    );
    // A record that nobody can read goes, too.
    drop(store);
    std::fs::write(place.root().join("i").join("0".repeat(64)), "{").expect("written");
    let store = place.open();
    let report = verify(&store).await;
    assert!(matches!(report.problems[0].what, What::Record(_)));
    store.repair(&report, |_| None).await.expect("repaired");
    crate::fixture::wait_for("the record to go", || place.names("i").is_empty());
    assert_eq!(verify(&store).await.problems, []);
}
