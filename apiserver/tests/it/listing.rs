//! Lists, pages, tables, formats.

use serde_json::{Value, json};

use crate::harness::{CM, Cluster, PODS, config_map, pod};

fn names(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().unwrap();
    items.iter().map(|i| i["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_are_all_of_one_state() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.delete(&format!("{CM}/kube-root-ca.crt")).await.ok();
    for n in 0..7 {
        admin.post(CM, &config_map(&format!("c{n}"))).await.ok();
    }
    let first = admin.get(&format!("{CM}?limit=3")).await.ok();
    assert_eq!(names(&first), ["c0", "c1", "c2"]);
    assert_eq!(first["metadata"]["remainingItemCount"], 4);
    admin.delete(&format!("{CM}/c5")).await.ok();
    admin.post(CM, &config_map("c35")).await.ok();
    let token = first["metadata"]["continue"].as_str().unwrap();
    let second = admin.get(&format!("{CM}?limit=3&continue={token}")).await.ok();
    assert_eq!(names(&second), ["c3", "c4", "c5"]);
    assert_eq!(second["metadata"]["resourceVersion"], first["metadata"]["resourceVersion"]);
    let token = second["metadata"]["continue"].as_str().unwrap();
    let third = admin.get(&format!("{CM}?limit=3&continue={token}")).await.ok();
    assert_eq!(names(&third), ["c6"]);
    assert_eq!(third["metadata"].get("continue"), None);
    assert_eq!(admin.get(&format!("{CM}?continue=nonsense")).await.refused(400), "BadRequest");

    let version = first["metadata"]["resourceVersion"].as_str().unwrap();
    let exact = admin.get(&format!("{CM}?resourceVersion={version}&resourceVersionMatch=Exact")).await.ok();
    assert_eq!(names(&exact).len(), 7);
    let newer =
        admin.get(&format!("{CM}?resourceVersion={version}&resourceVersionMatch=NotOlderThan")).await.ok();
    assert!(names(&newer).contains(&"c35".to_owned()));
    let future = admin.get(&format!("{CM}?resourceVersion=999999")).await;
    assert_eq!(future.refused(504), "Timeout");
    assert_eq!(future.json()["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
    assert_eq!(admin.get(&format!("{CM}?resourceVersion=abc")).await.refused(400), "BadRequest");
}

#[tokio::test(flavor = "multi_thread")]
async fn shapes_and_formats() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.post(PODS, &pod("p")).await.ok();
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
    let get = |path: &'static str, accept: &'static str| {
        let admin = admin.clone();
        async move { admin.call("GET", path, &[("accept", accept)], "").await }
    };
    let list = get("/api/v1/pods", table).await.ok();
    assert_eq!(list["kind"], "Table");
    assert_eq!(list["columnDefinitions"][0]["name"], "Name");
    assert_eq!(list["rows"][0]["cells"][0], "p");
    assert_eq!(list["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let one = get("/api/v1/namespaces/default/pods/p", table).await.ok();
    assert_eq!(one["rows"].as_array().unwrap().len(), 1);
    let partial =
        get("/api/v1/pods", "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io").await.ok();
    assert_eq!(partial["kind"], "PartialObjectMetadataList");
    assert_eq!(partial["items"][0].get("spec"), None);
    let proto = get("/api/v1/pods", "application/vnd.kubernetes.protobuf,application/json").await;
    assert_eq!(proto.headers["content-type"], "application/json");
    assert_eq!(
        get("/api/v1/pods", "application/vnd.kubernetes.protobuf").await.refused(406),
        "NotAcceptable"
    );
    let yaml = get("/api/v1/namespaces/default/pods/p", "application/yaml").await;
    assert!(String::from_utf8_lossy(&yaml.raw).starts_with("apiVersion: v1\n"));

    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: y\ndata: {a: b}\n";
    admin.call("POST", CM, &[("content-type", "application/yaml")], yaml).await.ok();
    assert_eq!(admin.get(&format!("{CM}/y")).await.ok()["data"], json!({"a": "b"}));
}

#[tokio::test(flavor = "multi_thread")]
async fn documents() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,application/json";
    let found = admin.call("GET", "/apis", &[("accept", accept)], "").await;
    assert!(found.headers["content-type"].to_str().unwrap().contains("as=APIGroupDiscoveryList"));
    assert_eq!(found.ok()["kind"], "APIGroupDiscoveryList");
    assert_eq!(admin.get("/apis").await.ok()["kind"], "APIGroupList");
    assert_eq!(admin.get("/api/v1").await.ok()["kind"], "APIResourceList");
    assert_eq!(admin.get("/apis/none/v1").await.code, 404);
    let index = admin.get("/openapi/v3").await.ok();
    let path = index["paths"]["api/v1"]["serverRelativeURL"].as_str().unwrap().to_owned();
    let document = admin.get(&path).await;
    assert!(document.headers["cache-control"].to_str().unwrap().contains("immutable"));
    let etag = document.headers["etag"].to_str().unwrap().to_owned();
    assert!(document.ok()["components"]["schemas"]["io.k8s.api.core.v1.Pod"].is_object());
    let again = admin.call("GET", &path, &[("if-none-match", &etag)], "").await;
    assert_eq!((again.code, again.raw.len()), (304, 0));
    assert!(admin.get("/openapi/v2").await.ok()["definitions"].is_object());
    assert!(admin.get("/version").await.ok()["gitVersion"].as_str().unwrap().starts_with("v1.36.0+orlop"));
    let metrics = admin.get("/metrics").await;
    assert!(String::from_utf8_lossy(&metrics.raw).contains("apiserver_request_total{verb=\"get\""));
    let verbose = admin.get("/readyz?verbose").await;
    assert!(String::from_utf8_lossy(&verbose.raw).contains("[+]etcd ok"));
}
