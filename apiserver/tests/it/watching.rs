//! Watches as informers use them.

use serde_json::json;

use crate::harness::{CM, Cluster, PODS, config_map, pod};

#[tokio::test(flavor = "multi_thread")]
async fn changes_come_once_and_in_order() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let version = admin.post(CM, &config_map("a")).await.ok()["metadata"]["resourceVersion"].clone();
    let version = version.as_str().unwrap();
    let mut live = admin.watch(&format!("{CM}?watch=1&resourceVersion={version}")).await;
    admin.post(CM, &config_map("b")).await.ok();
    admin.patch(&format!("{CM}/b"), "merge-patch+json", &json!({"data": {"k": "w"}})).await.ok();
    admin.delete(&format!("{CM}/b")).await.ok();
    let mut late = admin.watch(&format!("{CM}?watch=1&resourceVersion={version}")).await;
    for watch in [&mut live, &mut late] {
        assert_eq!(watch.line().await, "ADDED b");
        assert_eq!(watch.line().await, "MODIFIED b");
        let deleted = watch.next().await.unwrap();
        assert_eq!(deleted["type"], "DELETED");
        assert_eq!(deleted["object"]["data"]["k"], "w");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_starts_or_stops_to_match() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let path = "/api/v1/pods?watch=1&labelSelector=app%3Dp&fieldSelector=metadata.namespace%3Ddefault";
    let mut watch = admin
        .watch(&format!(
            "{path}&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true"
        ))
        .await;
    let mark = watch.next().await.unwrap();
    assert_eq!(mark["type"], "BOOKMARK");
    assert_eq!(mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    admin.post(PODS, &pod("other")).await.ok();
    admin.post(PODS, &pod("p")).await.ok();
    assert_eq!(watch.line().await, "ADDED p");
    let label = |value: &str| json!({"metadata": {"labels": {"app": value}}});
    admin.patch(&format!("{PODS}/p"), "merge-patch+json", &label("q")).await.ok();
    let gone = watch.next().await.unwrap();
    assert_eq!(
        (&gone["type"], &gone["object"]["metadata"]["labels"]["app"]),
        (&json!("DELETED"), &json!("p"))
    );
    admin.patch(&format!("{PODS}/other"), "merge-patch+json", &label("p")).await.ok();
    assert_eq!(watch.line().await, "ADDED other");
}

#[tokio::test(flavor = "multi_thread")]
async fn initial_state_tables_and_single_objects() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.post(PODS, &pod("a")).await.ok();
    admin.post(PODS, &pod("b")).await.ok();
    let mut all = admin.watch(&format!("{PODS}?watch=true")).await;
    assert_eq!((all.line().await, all.line().await), ("ADDED a".into(), "ADDED b".into()));
    let mut one = admin.watch(&format!("{PODS}?watch=true&fieldSelector=metadata.name%3Db")).await;
    assert_eq!(one.line().await, "ADDED b");
    let mut table =
        admin.watch_as(&format!("{PODS}?watch=true"), "application/json;as=Table;v=v1;g=meta.k8s.io").await;
    let first = table.next().await.unwrap();
    assert_eq!(
        (&first["object"]["kind"], &first["object"]["rows"][0]["cells"][0]),
        (&json!("Table"), &json!("a"))
    );
    assert!(first["object"]["columnDefinitions"].is_array());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_outlives_the_server_that_it_was_begun_on() {
    let mut cluster = Cluster::start().await;
    let admin = cluster.admin();
    let version = admin.post(CM, &config_map("a")).await.ok()["metadata"]["resourceVersion"].clone();
    let mut watch = admin.watch(&format!("{CM}?watch=1&resourceVersion={}", version.as_str().unwrap())).await;
    admin.post(CM, &config_map("b")).await.ok();
    assert_eq!(watch.line().await, "ADDED b");
    cluster.restart().await;
    assert_eq!(watch.line().await, "END");
    // The new server's cache does not know the past, but the store does.
    let admin = cluster.admin();
    let mut again = admin.watch(&format!("{CM}?watch=1&resourceVersion={}", version.as_str().unwrap())).await;
    assert_eq!(again.line().await, "ADDED b");
    admin.post(CM, &config_map("c")).await.ok();
    assert_eq!(again.line().await, "ADDED c");
}

#[tokio::test(flavor = "multi_thread")]
async fn bookmarks_and_ends() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let now = admin.get(CM).await.ok()["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let query = format!("watch=1&resourceVersion={now}&timeoutSeconds=1&allowWatchBookmarks=true");
    let mut watch = admin.watch(&format!("{CM}?{query}")).await;
    // A change of another kind moves the bookmark.
    admin.post(PODS, &pod("p")).await.ok();
    let mark = watch.next().await.unwrap();
    assert_eq!(mark["type"], "BOOKMARK");
    let at: u64 = mark["object"]["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap();
    assert!(at > now.parse().unwrap());
    assert_eq!(watch.line().await, "END");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_watchers_see_the_same() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let now = admin.get(CM).await.ok()["metadata"]["resourceVersion"].as_str().unwrap().to_owned();
    let mut watches = Vec::new();
    for _ in 0..10 {
        watches.push(admin.watch(&format!("{CM}?watch=1&resourceVersion={now}")).await);
    }
    let writers: Vec<_> = (0..4)
        .map(|w| {
            let admin = admin.clone();
            tokio::spawn(async move {
                for n in 0..25 {
                    admin.post(CM, &config_map(&format!("w{w}-{n}"))).await.ok();
                }
            })
        })
        .collect();
    let mut seen = Vec::new();
    for watch in &mut watches {
        let mut names = Vec::new();
        for _ in 0..100 {
            names.push(watch.line().await);
        }
        seen.push(names);
    }
    for writer in writers {
        writer.await.unwrap();
    }
    assert!(seen.iter().all(|names| *names == seen[0]));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_old_says_so() {
    let mut cluster = Cluster::start().await;
    let admin = cluster.admin();
    for n in 0..5 {
        admin.post(CM, &config_map(&format!("c{n}"))).await.ok();
    }
    let page = admin.get(&format!("{CM}?limit=2")).await.ok();
    let token = page["metadata"]["continue"].as_str().unwrap().to_owned();
    let last = admin.post(CM, &config_map("last")).await.ok();
    // A fresh cache remembers no changes, and now the store does not either.
    cluster.restart().await;
    let admin = cluster.admin();
    let store = cluster.store.clone().unwrap();
    store.compact(store.current_revision().await.unwrap()).await.unwrap();
    drop(store);
    let mut old = admin.watch(&format!("{CM}?watch=1&resourceVersion=2")).await;
    let event = old.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert_eq!(event["object"]["reason"], "Expired");
    assert_eq!(old.line().await, "END");
    assert_eq!(admin.get(&format!("{CM}?limit=2&continue={token}")).await.refused(410), "Expired");
    let now = last["metadata"]["resourceVersion"].as_str().unwrap();
    let mut fresh = admin.watch(&format!("{CM}?watch=1&resourceVersion={now}")).await;
    admin.post(CM, &config_map("newer")).await.ok();
    assert_eq!(fresh.line().await, "ADDED newer");
}
