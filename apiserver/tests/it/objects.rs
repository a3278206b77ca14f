//! Creating, reading, changing.

use serde_json::json;

use crate::harness::{CM, Cluster, PODS, config_map, pod};

#[tokio::test(flavor = "multi_thread")]
async fn an_object_lives() {
    let mut cluster = Cluster::start().await;
    let admin = cluster.admin();
    let made = admin.post(CM, &config_map("a")).await.ok();
    assert_eq!(made["metadata"]["namespace"], "default");
    assert!(made["metadata"]["uid"].is_string() && made["metadata"]["creationTimestamp"].is_string());
    assert_eq!(admin.post(CM, &config_map("a")).await.refused(409), "AlreadyExists");
    let path = format!("{CM}/a");
    assert_eq!(admin.get(&path).await.ok(), made);

    // A stale writer loses, a fresh one wins; a write that changes nothing is none.
    let mut fresh = made.clone();
    fresh["data"]["k"] = json!("w");
    let written = admin.put(&path, &fresh).await.ok();
    assert_ne!(written["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    fresh["data"]["k"] = json!("x");
    assert_eq!(admin.put(&path, &fresh).await.refused(409), "Conflict");
    assert_eq!(admin.put(&path, &written).await.ok(), written);
    fresh["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    let last = admin.put(&path, &fresh).await.ok();
    assert_eq!(last["data"]["k"], "x");

    // The store is the truth: another server on it shows the same.
    cluster.restart().await;
    let admin = cluster.admin();
    assert_eq!(admin.get(&path).await.ok(), last);
    admin.delete(&path).await.ok();
    assert_eq!(admin.get(&path).await.refused(404), "NotFound");
    assert_eq!(admin.delete(&path).await.refused(404), "NotFound");
    cluster.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn patches() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let deployments = "/apis/apps/v1/namespaces/default/deployments";
    let made = admin
        .post(deployments, &json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {
            "selector": {"matchLabels": {"a": "b"}}, "template": {"metadata": {"labels": {"a": "b"}}, "spec": {
                "containers": [{"name": "one", "image": "x:1"}, {"name": "two", "image": "y:1"}]}}}}))
        .await
        .ok();
    assert_eq!(made["metadata"]["generation"], 1);
    let path = format!("{deployments}/d");
    let strategic =
        json!({"spec": {"template": {"spec": {"containers": [{"name": "two", "image": "y:2"}]}}}});
    let out = admin.patch(&path, "strategic-merge-patch+json", &strategic).await.ok();
    let images = |o: &serde_json::Value| {
        let list = o["spec"]["template"]["spec"]["containers"].as_array().unwrap().clone();
        list.iter().map(|c| c["image"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(images(&out), ["x:1", "y:2"]);
    assert_eq!(out["metadata"]["generation"], 2);
    let out = admin.patch(&path, "merge-patch+json", &json!({"metadata": {"labels": {"l": "m"}}})).await.ok();
    assert_eq!(out["metadata"]["generation"], 2);
    let test = json!([{"op": "test", "path": "/spec/replicas", "value": 7}]);
    assert_eq!(admin.patch(&path, "json-patch+json", &test).await.code, 422);
    let scale = admin
        .patch(&format!("{path}/scale"), "merge-patch+json", &json!({"spec": {"replicas": 4}}))
        .await
        .ok();
    assert_eq!((&scale["kind"], &scale["spec"]["replicas"]), (&json!("Scale"), &json!(4)));
    assert_eq!(admin.get(&path).await.ok()["spec"]["replicas"], 4);
    let status = admin
        .patch(
            &format!("{path}/status"),
            "merge-patch+json",
            &json!({"status": {"replicas": 4}, "spec": {"replicas": 9}}),
        )
        .await
        .ok();
    assert_eq!((&status["spec"]["replicas"], &status["status"]["replicas"]), (&json!(4), &json!(4)));
    let apply = admin.call("PATCH", &path, &[("content-type", "application/apply-patch+yaml")], "{}").await;
    assert_eq!(apply.refused(415), "UnsupportedMediaType");
    let stale = json!({"metadata": {"resourceVersion": "1"}, "spec": {"replicas": 1}});
    assert_eq!(admin.patch(&path, "merge-patch+json", &stale).await.refused(409), "Conflict");
}

#[tokio::test(flavor = "multi_thread")]
async fn concurrent_patches_all_count() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    admin.post(CM, &config_map("a")).await.ok();
    let tasks: Vec<_> = (0..16)
        .map(|n| {
            let admin = admin.clone();
            tokio::spawn(async move {
                let patch = json!({"data": {format!("key-{n}"): "v"}});
                admin.patch(&format!("{CM}/a"), "merge-patch+json", &patch).await.ok();
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(admin.get(&format!("{CM}/a")).await.ok()["data"].as_object().unwrap().len(), 17);
}

#[tokio::test(flavor = "multi_thread")]
async fn fields_are_checked_as_asked() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let mut odd = config_map("a");
    odd["dataa"] = json!({});
    let strict = admin.post(&format!("{CM}?fieldValidation=Strict"), &odd).await;
    assert_eq!(strict.refused(400), "BadRequest");
    let warned = admin.post(&format!("{CM}?fieldValidation=Warn&dryRun=All"), &odd).await;
    warned.ok();
    assert!(warned.headers["warning"].to_str().unwrap().contains("dataa"));
    let silent = admin.post(&format!("{CM}?fieldValidation=Ignore"), &odd).await;
    assert!(!silent.headers.contains_key("warning"));
    assert_eq!(silent.ok().get("dataa"), None);
    assert_eq!(admin.get(&format!("{CM}/a")).await.code, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn names_are_generated_and_dry_runs_leave_no_trace() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let unnamed = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "g-"}});
    let (one, two) = (admin.post(CM, &unnamed).await.ok(), admin.post(CM, &unnamed).await.ok());
    assert_ne!(one["metadata"]["name"], two["metadata"]["name"]);
    assert!(one["metadata"]["name"].as_str().unwrap().starts_with("g-"));
    admin.post(&format!("{CM}?dryRun=All"), &config_map("ghost")).await.ok();
    assert_eq!(admin.get(&format!("{CM}/ghost")).await.code, 404);
    assert_eq!(admin.post(&format!("{CM}?dryRun=Some"), &config_map("x")).await.code, 400);
    let name = one["metadata"]["name"].as_str().unwrap();
    admin.call("DELETE", &format!("{CM}/{name}?dryRun=All"), &[], "").await.ok();
    assert_eq!(admin.get(&format!("{CM}/{name}")).await.code, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_are_completed_and_bound_once() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let made = admin.post(PODS, &pod("p")).await.ok();
    let spec = &made["spec"];
    assert_eq!(spec["serviceAccountName"], "default");
    assert_eq!(spec["tolerations"].as_array().unwrap().len(), 2);
    assert!(spec["volumes"][0]["name"].as_str().unwrap().starts_with("kube-api-access-"));
    assert_eq!(made["status"]["phase"], "Pending");
    let mut other = pod("q");
    other["spec"]["serviceAccountName"] = json!("nobody");
    assert_eq!(admin.post(PODS, &other).await.refused(403), "Forbidden");
    let binding = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": "p"},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "n1"}});
    let path = format!("{PODS}/p/binding");
    let bound = admin.post(&path, &binding).await;
    assert_eq!((bound.code, &bound.json()["status"]), (201, &json!("Success")));
    assert_eq!(admin.post(&path, &binding).await.refused(409), "Conflict");
    let now = admin.get(&format!("{PODS}/p")).await.ok();
    assert_eq!(now["spec"]["nodeName"], "n1");
    assert_eq!(now["status"]["conditions"][0]["type"], "PodScheduled");
    let list = admin.get(&format!("{PODS}?fieldSelector=spec.nodeName%3Dn1")).await.ok();
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn services_get_addresses_of_their_own() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let services = "/api/v1/namespaces/default/services";
    let service = |name: &str, ip: &str| {
        let mut s = json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
            "spec": {"type": "NodePort", "ports": [{"port": 80}]}});
        if !ip.is_empty() {
            s["spec"]["clusterIP"] = json!(ip);
        }
        s
    };
    let tasks: Vec<_> = (0..12)
        .map(|n| {
            let (admin, s) = (admin.clone(), service(&format!("s{n}"), ""));
            tokio::spawn(async move { admin.post(services, &s).await.ok() })
        })
        .collect();
    let mut ips = std::collections::HashSet::new();
    let mut ports = std::collections::HashSet::new();
    for task in tasks {
        let made = task.await.unwrap();
        assert!(ips.insert(made["spec"]["clusterIP"].as_str().unwrap().to_owned()));
        assert!(ports.insert(made["spec"]["ports"][0]["nodePort"].as_u64().unwrap()));
    }
    let taken = ips.iter().next().unwrap();
    assert_eq!(admin.post(services, &service("late", taken)).await.refused(422), "Invalid");
    let all = admin.get(services).await.ok();
    let owner =
        all["items"].as_array().unwrap().iter().find(|s| s["spec"]["clusterIP"] == **taken).unwrap().clone();
    admin.delete(&format!("{services}/{}", owner["metadata"]["name"].as_str().unwrap())).await.ok();
    assert_eq!(admin.post(services, &service("late", taken)).await.ok()["spec"]["clusterIP"], **taken);
    assert_eq!(admin.get(&format!("{services}/kubernetes")).await.ok()["spec"]["clusterIP"], "10.96.0.1");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_have_two_spellings() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let core = "/api/v1/namespaces/default/events";
    let new = "/apis/events.k8s.io/v1/namespaces/default/events";
    admin
        .post(core, &json!({"apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "reason": "R", "message": "m",
            "type": "Normal", "involvedObject": {"kind": "Pod", "name": "p", "namespace": "default"}}))
        .await
        .ok();
    let seen = admin.get(&format!("{new}/e")).await.ok();
    assert_eq!((&seen["note"], &seen["regarding"]["name"]), (&json!("m"), &json!("p")));
    let found = admin.get(&format!("{core}?fieldSelector=involvedObject.name%3Dp")).await.ok();
    assert_eq!(found["items"].as_array().unwrap().len(), 1);
    admin.patch(&format!("{new}/e"), "merge-patch+json", &json!({"note": "n"})).await.ok();
    assert_eq!(admin.get(&format!("{core}/e")).await.ok()["message"], "n");
}
