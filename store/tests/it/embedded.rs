//! What the embedded engine promises beyond the contract.

use std::{
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::StreamExt;
use store::{OpenError, Options, Range, Retention, Txn, WatchError, open_embedded, open_embedded_with};

use crate::contract::{self, Dyn, put};

#[tokio::test(flavor = "multi_thread")]
async fn keeps_the_contract() {
    let dirs = Mutex::new(Vec::new());
    contract::run(|| {
        let dir = tempfile::tempdir().unwrap();
        let store = open_embedded(dir.path()).unwrap();
        dirs.lock().unwrap().push(dir);
        store
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn reopens_where_it_was() {
    let dir = tempfile::tempdir().unwrap();
    let store: Dyn = open_embedded(dir.path()).unwrap();
    put(&store, "/a", "1").await;
    put(&store, "/b", "x").await;
    let r = put(&store, "/a", "2").await;
    let last = contract::committed(store.txn(Txn::delete("/a", r)).await.unwrap());
    store.compact(last).await.unwrap();
    drop(store);
    let store: Dyn = open_embedded(dir.path()).unwrap();
    assert_eq!(store.current_revision().await.unwrap(), last);
    let all = store.range(Range::default()).await.unwrap();
    assert_eq!(all.kvs.iter().map(|kv| &kv.key[..]).collect::<Vec<_>>(), [b"/b"]);
    assert!(store.watch(b"/", last).await.is_err());
    assert!(put(&store, "/c", "1").await > last);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_opener_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let _first = open_embedded(dir.path()).unwrap();
    match open_embedded(dir.path()) {
        Err(OpenError::Locked { path }) => assert_eq!(path, dir.path()),
        other => panic!("{:?}", other.err()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_watcher_is_dropped_and_may_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { watch_capacity: 4, ..Options::default() };
    let store: Dyn = open_embedded_with(dir.path(), options).unwrap();
    let first = put(&store, "/a", "0").await;
    let mut slow = store.watch(b"/", first + 1).await.unwrap();
    for n in 1..=10 {
        put(&store, "/a", &n.to_string()).await;
    }
    for n in 1..=4 {
        assert_eq!(slow.next().await.unwrap().unwrap().revision, first + n);
    }
    let next = match slow.next().await {
        Some(Err(WatchError::Lagged { next, .. })) => next,
        other => panic!("{other:?}"),
    };
    assert_eq!(next, first + 5);
    let mut again = store.watch(b"/", next).await.unwrap();
    for n in 5..=10 {
        assert_eq!(again.next().await.unwrap().unwrap().revision, first + n);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn closing_ends_watches() {
    let dir = tempfile::tempdir().unwrap();
    let store: Dyn = open_embedded(dir.path()).unwrap();
    let now = put(&store, "/a", "0").await;
    let mut watch = store.watch(b"/", now + 1).await.unwrap();
    drop(store);
    assert!(matches!(watch.next().await, Some(Err(WatchError::Closed))));
    assert!(watch.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn compacts_by_itself() {
    let dir = tempfile::tempdir().unwrap();
    let retention = Retention { age: Duration::from_secs(3600), revisions: 20, at_most: 50 };
    let store: Dyn = open_embedded_with(dir.path(), Options { retention, ..Options::default() }).unwrap();
    let first = put(&store, "/a", "0").await;
    for n in 1..=200 {
        put(&store, "/a", &n.to_string()).await;
    }
    assert!(store.get(b"/a", Some(first)).await.is_err());
    let now = store.current_revision().await.unwrap();
    assert!(store.get(b"/a", Some(now - 20)).await.is_ok());
}

/// Prints what a durable commit costs; asserts only that writers share their fsyncs.
#[tokio::test(flavor = "multi_thread")]
async fn writers_share_an_fsync() {
    let dir = tempfile::tempdir().unwrap();
    let store: Dyn = open_embedded(dir.path()).unwrap();
    let value = "x".repeat(1024);
    let began = Instant::now();
    for n in 0..200 {
        put(&store, &format!("/one/{n}"), &value).await;
    }
    let alone = began.elapsed() / 200;
    let began = Instant::now();
    let tasks: Vec<_> = (0..64)
        .map(|t| {
            let (store, value) = (Arc::clone(&store), value.clone());
            tokio::spawn(async move {
                for n in 0..50 {
                    put(&store, &format!("/many/{t}/{n}"), &value).await;
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    let shared = began.elapsed() / (64 * 50);
    println!("durable commit of 1 kB: alone {alone:?}, each of 64 writers {shared:?}");
    assert!(shared < alone, "alone {alone:?}, shared {shared:?}");
}
