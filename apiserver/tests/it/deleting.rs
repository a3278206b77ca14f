//! Deleting, finalizers, namespaces.

use serde_json::json;

use crate::harness::{CM, Cluster, PODS, config_map, pod};

#[tokio::test(flavor = "multi_thread")]
async fn a_running_pod_goes_when_its_kubelet_says_so() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let mut p = pod("p");
    p["spec"]["nodeName"] = json!("n");
    p["spec"]["terminationGracePeriodSeconds"] = json!(9);
    let uid = admin.post(PODS, &p).await.ok()["metadata"]["uid"].clone();
    let path = format!("{PODS}/p");
    let going = admin.delete(&path).await.ok();
    assert_eq!(going["metadata"]["deletionGracePeriodSeconds"], 9);
    assert!(admin.get(&path).await.ok()["metadata"]["deletionTimestamp"].is_string());
    let options = |uid: &serde_json::Value| json!({"kind": "DeleteOptions", "apiVersion": "v1", "gracePeriodSeconds": 0, "preconditions": {"uid": uid}});
    let json = [("content-type", "application/json")];
    let wrong = admin.call("DELETE", &path, &json, options(&json!("other")).to_string()).await;
    assert_eq!(wrong.refused(409), "Conflict");
    admin.call("DELETE", &path, &json, options(&uid).to_string()).await.ok();
    assert_eq!(admin.get(&path).await.code, 404);
    admin.post(PODS, &pod("unscheduled")).await.ok();
    admin.delete(&format!("{PODS}/unscheduled")).await.ok();
    assert_eq!(admin.get(&format!("{PODS}/unscheduled")).await.code, 404);
    admin.post(PODS, &pod("evicted")).await.ok();
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "evicted"}});
    admin.post(&format!("{PODS}/evicted/eviction"), &eviction).await.ok();
    assert_eq!(admin.get(&format!("{PODS}/evicted")).await.code, 404);
}

#[tokio::test(flavor = "multi_thread")]
async fn finalizers_hold_an_object() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let mut held = config_map("a");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    admin.post(CM, &held).await.ok();
    let path = format!("{CM}/a");
    admin.delete(&path).await.ok();
    let now = admin.get(&path).await.ok();
    assert!(now["metadata"]["deletionTimestamp"].is_string());
    let more = json!({"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}});
    assert_eq!(admin.patch(&path, "merge-patch+json", &more).await.refused(422), "Invalid");
    admin.patch(&path, "merge-patch+json", &json!({"metadata": {"finalizers": null}})).await.ok();
    assert_eq!(admin.get(&path).await.code, 404);
    admin.post(CM, &config_map("b")).await.ok();
    admin.delete(&format!("{CM}/b?propagationPolicy=Foreground")).await.ok();
    let b = admin.get(&format!("{CM}/b")).await.ok();
    assert_eq!(b["metadata"]["finalizers"], json!(["foregroundDeletion"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn collections_go_by_selector() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    for n in 0..4 {
        let mut cm = config_map(&format!("c{n}"));
        cm["metadata"]["labels"] = json!({"odd": (n % 2).to_string()});
        admin.post(CM, &cm).await.ok();
    }
    let gone = admin.delete(&format!("{CM}?labelSelector=odd%3D1")).await.ok();
    assert_eq!(gone["items"].as_array().unwrap().len(), 2);
    let left = admin.get(&format!("{CM}?labelSelector=odd")).await.ok();
    assert_eq!(left["items"].as_array().unwrap().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_begin_complete_and_end_in_order() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let ns = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n"}});
    let made = admin.post("/api/v1/namespaces", &ns).await.ok();
    assert_eq!(made["metadata"]["labels"]["kubernetes.io/metadata.name"], "n");
    assert_eq!(made["status"]["phase"], "Active");
    assert_eq!(admin.get("/api/v1/namespaces/n/serviceaccounts/default").await.code, 200);
    let ca = admin.get("/api/v1/namespaces/n/configmaps/kube-root-ca.crt").await.ok();
    assert_eq!(ca["data"]["ca.crt"], cluster.pki.ca_pem());
    assert_eq!(
        admin.post("/api/v1/namespaces/none/configmaps", &config_map("a")).await.refused(404),
        "NotFound"
    );
    for protected in ["default", "kube-system"] {
        assert_eq!(admin.delete(&format!("/api/v1/namespaces/{protected}")).await.refused(403), "Forbidden");
    }
    let mut going = admin.delete("/api/v1/namespaces/n").await.ok();
    assert_eq!(going["status"]["phase"], "Terminating");
    let late = admin.post("/api/v1/namespaces/n/configmaps", &config_map("late")).await;
    assert_eq!(late.refused(403), "Forbidden");
    assert_eq!(late.json()["details"]["causes"][0]["reason"], "NamespaceTerminating");
    going["spec"]["finalizers"] = json!([]);
    admin.put("/api/v1/namespaces/n/finalize", &going).await.ok();
    assert_eq!(admin.get("/api/v1/namespaces/n").await.code, 404);
}
