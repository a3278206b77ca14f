//! What every engine must do. `open` gives a fresh, empty store each time.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures::StreamExt;
use store::{Batch, Condition, Op, Range, Store, StoreError, Txn, TxnOutcome, WatchStream};

pub type Dyn = Arc<dyn Store>;

/// Runs the whole contract.
pub async fn run(open: impl Fn() -> Dyn) {
    creates_updates_deletes(open()).await;
    conflicts_tell_the_current_state(open()).await;
    transactions_are_all_or_nothing(open()).await;
    bad_keys_are_refused(open()).await;
    ranges_page_and_stay_in_the_past(open()).await;
    prefixes_do_not_leak(open()).await;
    history_can_be_read(open()).await;
    watch_sees_everything_once(open()).await;
    watch_from_the_past_while_writing(open()).await;
    watch_may_start_in_the_future(open()).await;
    compaction_forgets_only_history(open()).await;
    many_writers_agree(open()).await;
}

pub async fn put(store: &Dyn, key: &str, value: &str) -> u64 {
    let op = Op::Put {
        key: Bytes::copy_from_slice(key.as_bytes()),
        value: Bytes::copy_from_slice(value.as_bytes()),
    };
    committed(store.txn(Txn { compares: vec![], ops: vec![op] }).await.unwrap())
}

pub fn committed(outcome: TxnOutcome) -> u64 {
    match outcome {
        TxnOutcome::Committed { revision } => revision,
        other => panic!("not committed: {other:?}"),
    }
}

async fn next(watch: &mut WatchStream) -> Batch {
    tokio::time::timeout(Duration::from_secs(10), watch.next())
        .await
        .expect("a watch event within 10 s")
        .expect("the watch goes on")
        .expect("no watch error")
}

async fn keys(store: &Dyn, prefix: &str, revision: Option<u64>) -> Vec<String> {
    let range = Range { prefix: Bytes::copy_from_slice(prefix.as_bytes()), revision, ..Range::default() };
    let kvs = store.range(range).await.unwrap().kvs;
    kvs.iter().map(|kv| format!("{}={}", text(&kv.key), text(&kv.value))).collect()
}

fn text(b: &Bytes) -> &str {
    std::str::from_utf8(b).unwrap()
}

async fn creates_updates_deletes(store: Dyn) {
    assert_eq!(store.get(b"/a", None).await.unwrap().kv, None);
    let r1 = committed(store.txn(Txn::create("/a", "1")).await.unwrap());
    let kv = store.get(b"/a", None).await.unwrap().kv.unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version), (r1, r1, 1));
    let r2 = committed(store.txn(Txn::update("/a", r1, "2")).await.unwrap());
    assert!(r2 > r1);
    let got = store.get(b"/a", None).await.unwrap();
    let kv = got.kv.unwrap();
    assert_eq!((kv.create_revision, kv.mod_revision, kv.version, got.revision), (r1, r2, 2, r2));
    let r3 = committed(store.txn(Txn::delete("/a", r2)).await.unwrap());
    assert_eq!(store.get(b"/a", None).await.unwrap().kv, None);
    let r4 = committed(store.txn(Txn::create("/a", "3")).await.unwrap());
    assert!(r4 > r3);
    let kv = store.get(b"/a", None).await.unwrap().kv.unwrap();
    assert_eq!((kv.create_revision, kv.version), (r4, 1));
}

async fn conflicts_tell_the_current_state(store: Dyn) {
    let r1 = put(&store, "/a", "1").await;
    for txn in [Txn::create("/a", "2"), Txn::update("/a", r1 + 7, "2"), Txn::delete("/a", r1 + 7)] {
        match store.txn(txn).await.unwrap() {
            TxnOutcome::Conflict { key, current } => {
                assert_eq!((text(&key), current.unwrap().mod_revision), ("/a", r1));
            }
            other => panic!("{other:?}"),
        }
    }
    let absent = store.txn(Txn::update("/b", 1, "2")).await.unwrap();
    assert_eq!(absent, TxnOutcome::Conflict { key: "/b".into(), current: None });
    assert_eq!(store.current_revision().await.unwrap(), r1);
}

async fn transactions_are_all_or_nothing(store: Dyn) {
    let r1 = put(&store, "/a", "1").await;
    let txn = Txn::create("/b", "b").and_create("/a", "2");
    assert!(matches!(store.txn(txn).await.unwrap(), TxnOutcome::Conflict { .. }));
    assert_eq!(keys(&store, "/", None).await, ["/a=1"]);
    let txn = Txn::create("/b", "b").and_create("/c", "c").and_if("/a", Condition::ModRevision(r1));
    let mut watch = store.watch(b"/", r1 + 1).await.unwrap();
    let r2 = committed(store.txn(txn).await.unwrap());
    let batch = next(&mut watch).await;
    assert_eq!((batch.revision, batch.events.len()), (r2, 2));
    let nothing = Txn { compares: vec![], ops: vec![Op::Delete { key: "/absent".into() }] };
    assert_eq!(committed(store.txn(nothing).await.unwrap()), r2);
}

async fn bad_keys_are_refused(store: Dyn) {
    for txn in [Txn::create("", "x"), Txn::create("a\0b", "x"), Txn::create("/a", "x").and_create("/a", "y")]
    {
        assert!(matches!(store.txn(txn).await, Err(StoreError::BadKey { .. })));
    }
}

async fn ranges_page_and_stay_in_the_past(store: Dyn) {
    for n in 0..10 {
        put(&store, &format!("/k/{n}"), "x").await;
    }
    let first =
        store.range(Range { prefix: "/k/".into(), limit: Some(4), ..Range::default() }).await.unwrap();
    assert_eq!((first.kvs.len(), first.remaining), (4, 6));
    put(&store, "/k/45", "new").await;
    store.txn(Txn { compares: vec![], ops: vec![Op::Delete { key: "/k/9".into() }] }).await.unwrap();
    let rest = store
        .range(Range {
            prefix: "/k/".into(),
            start: Some("/k/3\x01".into()),
            limit: None,
            revision: Some(first.revision),
        })
        .await
        .unwrap();
    let names: Vec<_> = rest.kvs.iter().map(|kv| text(&kv.key).to_owned()).collect();
    assert_eq!(names, ["/k/4", "/k/5", "/k/6", "/k/7", "/k/8", "/k/9"]);
    assert_eq!((rest.revision, rest.remaining), (first.revision, 0));
    let past = Range { prefix: "/k/".into(), start: Some("/z".into()), ..Range::default() };
    assert!(store.range(past).await.unwrap().kvs.is_empty());
}

async fn prefixes_do_not_leak(store: Dyn) {
    put(&store, "/pods/a/x", "1").await;
    let rev = put(&store, "/pods/ab/x", "2").await;
    put(&store, "/podsx", "3").await;
    assert_eq!(keys(&store, "/pods/a/", None).await, ["/pods/a/x=1"]);
    assert_eq!(keys(&store, "/pods/", None).await, ["/pods/a/x=1", "/pods/ab/x=2"]);
    assert_eq!(keys(&store, "/pods/a/", Some(rev)).await, ["/pods/a/x=1"]);
    assert_eq!(keys(&store, "/pods/a", Some(rev)).await, ["/pods/a/x=1", "/pods/ab/x=2"]);
}

async fn history_can_be_read(store: Dyn) {
    let r1 = put(&store, "/a", "1").await;
    let r2 = put(&store, "/a", "2").await;
    let r3 = committed(store.txn(Txn::delete("/a", r2)).await.unwrap());
    let r4 = put(&store, "/a", "4").await;
    for (revision, value) in [(r1, Some("1")), (r2, Some("2")), (r3, None), (r4, Some("4"))] {
        let got = store.get(b"/a", Some(revision)).await.unwrap();
        assert_eq!(got.kv.as_ref().map(|kv| text(&kv.value)), value, "at {revision}");
        assert_eq!(keys(&store, "/", Some(revision)).await.len(), usize::from(value.is_some()));
    }
    let future = store.get(b"/a", Some(r4 + 1)).await;
    assert!(matches!(future, Err(StoreError::FutureRevision { current, .. }) if current == r4));
}

async fn watch_sees_everything_once(store: Dyn) {
    let r1 = put(&store, "/a", "1").await;
    put(&store, "/other", "x").await;
    let r2 = put(&store, "/a", "2").await;
    let mut watch = store.watch(b"/a", r1).await.unwrap();
    let r3 = committed(store.txn(Txn::delete("/a", r2)).await.unwrap());
    let (b1, b2, b3) = (next(&mut watch).await, next(&mut watch).await, next(&mut watch).await);
    assert_eq!((b1.revision, b2.revision, b3.revision), (r1, r2, r3));
    assert_eq!(b1.events[0].prev, None);
    assert_eq!(text(&b2.events[0].prev.as_ref().unwrap().value), "1");
    assert_eq!(text(&b2.events[0].kv.as_ref().unwrap().value), "2");
    assert_eq!(b3.events[0].kv, None);
    assert_eq!(text(&b3.events[0].prev.as_ref().unwrap().value), "2");
}

async fn watch_from_the_past_while_writing(store: Dyn) {
    let first = put(&store, "/n", "0").await;
    let writer = {
        let store = store.clone();
        tokio::spawn(async move {
            for n in 1..400 {
                put(&store, "/n", &n.to_string()).await;
            }
        })
    };
    for _ in 0..8 {
        let mut watch = store.watch(b"/", first).await.unwrap();
        for n in 0..400 {
            let batch = next(&mut watch).await;
            assert_eq!(text(&batch.events[0].kv.as_ref().unwrap().value), n.to_string());
        }
    }
    writer.await.unwrap();
}

async fn watch_may_start_in_the_future(store: Dyn) {
    let now = put(&store, "/a", "0").await;
    let mut watch = store.watch(b"/", now + 2).await.unwrap();
    put(&store, "/a", "1").await;
    let r2 = put(&store, "/a", "2").await;
    assert_eq!(next(&mut watch).await.revision, r2);
}

async fn compaction_forgets_only_history(store: Dyn) {
    let r1 = put(&store, "/a", "1").await;
    put(&store, "/gone", "x").await;
    store.txn(Txn { compares: vec![], ops: vec![Op::Delete { key: "/gone".into() }] }).await.unwrap();
    let r2 = put(&store, "/a", "2").await;
    let r3 = put(&store, "/b", "3").await;
    store.compact(r2).await.unwrap();
    assert_eq!(keys(&store, "/", None).await, ["/a=2", "/b=3"]);
    assert_eq!(keys(&store, "/", Some(r2)).await, ["/a=2"]);
    for old in [store.get(b"/a", Some(r1)).await.err(), store.watch(b"/", r2).await.err()] {
        assert!(matches!(old, Some(StoreError::Compacted { oldest, .. }) if oldest == r2), "{old:?}");
    }
    let mut watch = store.watch(b"/", r2 + 1).await.unwrap();
    assert_eq!(next(&mut watch).await.revision, r3);
    assert!(matches!(store.compact(r3 + 10).await, Err(StoreError::FutureRevision { .. })));
    store.compact(r1).await.unwrap();
}

async fn many_writers_agree(store: Dyn) {
    let start = store.current_revision().await.unwrap();
    put(&store, "/counter", "0").await;
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let store = store.clone();
            tokio::spawn(async move {
                let mut done = 0;
                while done < 25 {
                    let kv = store.get(b"/counter", None).await.unwrap().kv.unwrap();
                    let n: u64 = text(&kv.value).parse().unwrap();
                    let txn = Txn::update("/counter", kv.mod_revision, (n + 1).to_string());
                    if let TxnOutcome::Committed { .. } = store.txn(txn).await.unwrap() {
                        done += 1;
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(keys(&store, "/counter", None).await, ["/counter=200"]);
    assert_eq!(store.current_revision().await.unwrap(), start + 201);
}
