//! What survives crashes, and what is removed when.

use expect_test::expect;
use image::{LeaseError, OpenError, RegistryConfig, RemoveError, Store};

use crate::fixture::{Content, Place, file, gzip, image_of, root, tar_of, two_layers};
use crate::server::Server;

async fn pulled(content: Content) -> (Place, Store, image::Image) {
    let server = Server::start(content).await;
    let place = Place::new();
    let store = place.open();
    let image = store.pull(&server.reference("app:1"), None, None).await.expect("pulled");
    (place, store, image)
}

fn one_layer() -> Content {
    let tar = tar_of(&[file("a", "a")]);
    image_of(&[(gzip(&tar), tar)])
}

#[tokio::test]
async fn everything_is_there_after_a_restart() {
    let (place, store, image) = pulled(one_layer()).await;
    store.lease(&image.id, "c1").expect("leased");
    store.pin(image.id.as_str(), true).await.expect("pinned");
    let before = store.get(image.id.as_str()).expect("there");
    let usage = store.usage();
    drop(store);
    let store = place.open();
    assert_eq!(format!("{:?}", store.get(&image.repo_tags[0]).expect("there")), format!("{before:?}"));
    assert_eq!((store.usage(), store.leases().len()), (usage, 1));
    assert!(store.damaged().is_empty());
}

#[tokio::test]
async fn a_lease_that_a_power_cut_emptied_is_no_damage() {
    let (place, store, image) = pulled(one_layer()).await;
    for owner in ["c1", "c2"] {
        store.lease(&image.id, owner).expect("leased");
    }
    drop(store);
    let record = place.root().join("s/c1");
    std::fs::write(&record, "").expect("written");
    let store = place.open();
    let owners: Vec<_> = store.leases().into_iter().map(|lease| lease.owner).collect();
    assert_eq!(owners, ["c2"], "the other one is still there");
    assert!(store.damaged().is_empty() && !record.exists(), "{:?}", store.damaged());
}

#[tokio::test]
async fn only_one_process_has_the_store() {
    let place = Place::new();
    let _store = place.open();
    let second = Store::open(place.root(), RegistryConfig::default());
    assert!(matches!(second, Err(OpenError::Busy { .. })));
}

#[tokio::test]
async fn directories_are_closed_to_others() {
    let (place, ..) = pulled(one_layer()).await;
    for name in ["", "b", "i", "l", "p", "s", "t"] {
        let mode =
            std::os::unix::fs::MetadataExt::mode(&std::fs::metadata(place.root().join(name)).expect("there"));
        assert_eq!(mode & 0o777, 0o700, "{name}");
    }
}

#[tokio::test]
async fn in_use_means_kept() {
    let (place, store, image) = pulled(one_layer()).await;
    let rootfs = store.lease(&image.id, "c1").expect("leased");
    assert!(matches!(store.lease(&image.id, "../x"), Err(LeaseError::Owner(_))));
    let err = store.remove(image.id.as_str()).await.expect_err("in use");
    expect!["in use by c1; remove them first"]
        .assert_eq(err.to_string().split_once("` is ").expect("a name").1);
    // By name it loses the name, and goes with its last user.
    let removed = store.remove(&image.repo_tags[0]).await.expect("untagged");
    assert_eq!((removed.untagged.len(), removed.deleted.len()), (1, 0));
    assert!(rootfs.lower[0].join("a").exists());
    assert_eq!(store.prune(true).await.expect("pruned").deleted.len(), 0);
    drop(store);
    let store = place.open();
    assert!(rootfs.lower[0].join("a").exists());
    store.release("c1");
    store.release("c1");
    crate::fixture::wait_for("the image to go", || {
        store.list().is_empty() && place.names("l") == ["0"] && place.names("b").is_empty()
    });
    place.settled().await;
    assert!(place.names("i").is_empty());
    assert!(matches!(store.remove(&image.repo_tags[0]).await, Err(RemoveError::NotFound(_))));
}

#[tokio::test]
async fn removal_frees_what_only_it_needed() {
    if !root() {
        return;
    }
    let (place, store, image) = pulled(two_layers()).await;
    assert!(store.usage().bytes > 0 && store.usage().inodes > 5);
    let removed = store.remove(image.id.as_str()).await.expect("removed");
    assert_eq!((removed.untagged.len(), removed.deleted), (2, vec![image.id]));
    assert!(removed.bytes > 0);
    assert_eq!((store.usage().bytes, store.usage().inodes), (0, 0));
    place.settled().await;
}

#[tokio::test]
async fn an_image_may_have_no_layers() {
    let (_place, store, image) = pulled(image_of(&[])).await;
    let rootfs = store.lease(&image.id, "c1").expect("leased");
    assert_eq!(rootfs.lower.len(), 1);
    assert_eq!(std::fs::read_dir(&rootfs.lower[0]).expect("a directory").count(), 0);
}

#[tokio::test]
async fn the_same_layer_twice_is_stacked_once() {
    let tar = tar_of(&[file("a", "a")]);
    let other = tar_of(&[file("b", "b")]);
    let layer = (gzip(&tar), tar.clone());
    let (_place, store, image) = pulled(image_of(&[layer.clone(), (gzip(&other), other), layer])).await;
    let rootfs = store.lease(&image.id, "c1").expect("leased");
    assert_eq!(rootfs.lower.len(), 2);
    assert!(rootfs.lower[0].join("a").exists() && rootfs.lower[1].join("b").exists());
}

#[tokio::test]
async fn crashes_leave_nothing() {
    let (place, store, image) = pulled(one_layer()).await;
    drop(store);
    let root = place.root();
    // In the middle of unpacking; after the rename, before the record; a blob without an image.
    std::fs::create_dir_all(root.join("t/half/d/etc")).expect("created");
    std::fs::create_dir_all(root.join("l/9/d")).expect("created");
    let meta = std::fs::read_to_string(root.join("l/1/meta")).expect("a layer");
    let orphan = meta.replace(&meta[20..40], &"0".repeat(20));
    std::fs::write(root.join("l/9/meta"), orphan).expect("written");
    std::fs::write(root.join("b").join("0".repeat(64)), "x").expect("written");
    let store = place.open();
    place.settled().await;
    assert_eq!(place.names("l"), ["0", "1"]);
    crate::fixture::wait_for("the blob to go", || place.names("b").len() == 2);
    assert!(store.get(image.id.as_str()).is_some());
}

#[tokio::test]
async fn damage_is_told_and_skipped() {
    let (place, store, image) = pulled(one_layer()).await;
    drop(store);
    let root = place.root();
    std::fs::write(root.join("i").join("0".repeat(64)), "{").expect("written");
    std::fs::write(root.join("s/c9"), "nonsense").expect("written");
    std::fs::create_dir(root.join("l/zz")).expect("created");
    let store = place.open();
    assert!(store.get(image.id.as_str()).is_some());
    assert_eq!(store.damaged().len(), 3);
    drop(store);
    std::fs::write(root.join("b").join(image.id.hex()), "{}").expect("written");
    let store = place.open();
    assert!(store.list().is_empty());
    assert!(store.damaged().iter().any(|d| d.reason.contains("digest")));
}
