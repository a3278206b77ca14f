//! Who is let in, and what is refused.

use serde_json::json;

use crate::harness::{CM, Cluster, PODS, config_map, pod};

#[tokio::test(flavor = "multi_thread")]
async fn nobody_gets_in_without_proof() {
    let cluster = Cluster::start().await;
    let nobody = cluster.client(None);
    for path in ["/healthz", "/livez", "/readyz", "/version"] {
        assert_eq!(nobody.get(path).await.code, 200, "{path}");
    }
    for path in ["/", "/api", "/apis", "/metrics", "/openapi/v2", CM, "/api/v1/nothing", "/apis/none/v1/x"] {
        assert_eq!(nobody.get(path).await.refused(401), "Unauthorized", "{path}");
    }
    assert_eq!(nobody.post(CM, &config_map("a")).await.refused(401), "Unauthorized");
    let bad = nobody.call("GET", "/version", &[("authorization", "Bearer nonsense")], "").await;
    assert_eq!(bad.refused(401), "Unauthorized");

    let other = cluster.admin().call("GET", CM, &[("impersonate-user", "bob")], "").await;
    assert_eq!(other.refused(403), "Forbidden");

    // A certificate of another authority does not even get through TLS.
    let other = Cluster::start().await;
    let stranger = cluster.client(Some(other.pki.client("admin", "system:masters").unwrap()));
    let request = http::Request::new(http_body_util::Full::default());
    assert!(stranger.try_send(request).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_bound_to_what_exists() {
    let cluster = Cluster::start().await;
    let (admin, nobody) = (cluster.admin(), cluster.client(None));
    let uid = admin.post(PODS, &pod("p")).await.ok()["metadata"]["uid"].clone();
    let request = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {
        "expirationSeconds": 600, "boundObjectRef": {"kind": "Pod", "apiVersion": "v1", "name": "p", "uid": uid}}});
    let path = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let made = admin.post(path, &request).await.ok();
    let token = made["status"]["token"].as_str().unwrap();
    let bearer = format!("Bearer {token}");
    let auth = [("authorization", bearer.as_str())];
    assert_eq!(nobody.call("GET", CM, &auth, "").await.code, 200);

    let review =
        json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenReview", "spec": {"token": token}});
    let reviewed = admin.post("/apis/authentication.k8s.io/v1/tokenreviews", &review).await.ok();
    assert_eq!(reviewed["status"]["user"]["username"], "system:serviceaccount:default:default");
    assert_eq!(reviewed["status"]["user"]["extra"]["authentication.kubernetes.io/pod-name"], json!(["p"]));
    let me = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "SelfSubjectReview"});
    let body = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    let me = nobody
        .call("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews", &body, me.to_string())
        .await
        .ok();
    assert!(
        me["status"]["userInfo"]["groups"]
            .as_array()
            .unwrap()
            .contains(&json!("system:serviceaccounts:default"))
    );

    admin.delete(&format!("{PODS}/p")).await.ok();
    assert_eq!(nobody.call("GET", CM, &auth, "").await.refused(401), "Unauthorized");
    let gone = admin.post("/apis/authentication.k8s.io/v1/tokenreviews", &review).await.ok();
    assert_eq!(gone["status"].get("authenticated"), None);
    let short = json!({"spec": {"expirationSeconds": 60}});
    assert_eq!(admin.post(path, &short).await.refused(400), "BadRequest");
}

#[tokio::test(flavor = "multi_thread")]
async fn access_reviews_say_what_requests_meet() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let path = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
    let review = |groups: serde_json::Value| {
        json!({"apiVersion": "authorization.k8s.io/v1", "kind": "SubjectAccessReview", "spec": {
            "user": "x", "groups": groups, "resourceAttributes": {"verb": "get", "resource": "pods"}}})
    };
    let known = admin.post(path, &review(json!(["system:authenticated"]))).await.ok();
    assert_eq!(known["status"]["allowed"], true);
    let unknown = admin.post(path, &review(json!([]))).await.ok();
    assert_eq!(unknown["status"]["allowed"], false);
}

#[tokio::test(flavor = "multi_thread")]
async fn oversized_deep_and_odd_bodies() {
    let cluster = Cluster::start().await;
    let admin = cluster.admin();
    let json_type = [("content-type", "application/json")];
    let large = format!("{{\"data\": {{\"a\": \"{}\"}}}}", "x".repeat(4 << 20));
    assert_eq!(admin.call("POST", CM, &json_type, large).await.refused(413), "RequestEntityTooLarge");
    let deep = "[".repeat(100_000);
    assert_eq!(admin.call("POST", CM, &json_type, deep).await.refused(400), "BadRequest");
    assert_eq!(admin.call("POST", CM, &json_type, "not json").await.refused(400), "BadRequest");
    assert_eq!(
        admin.call("POST", CM, &[("content-type", "text/xml")], "<a/>").await.refused(415),
        "UnsupportedMediaType"
    );
    assert_eq!(admin.post(CM, &pod("p")).await.refused(400), "BadRequest");
    assert_eq!(admin.post(CM, &json!([1])).await.code, 400);
    let mut elsewhere = config_map("a");
    elsewhere["metadata"]["namespace"] = json!("kube-system");
    assert_eq!(admin.post(CM, &elsewhere).await.refused(400), "BadRequest");
    assert_eq!(admin.call("BREW", CM, &[], "").await.refused(405), "MethodNotAllowed");
    assert_eq!(admin.call("POST", "/version", &[], "").await.refused(405), "MethodNotAllowed");
    admin.post(CM, &config_map("a")).await.ok();
    let many: Vec<_> = (0..10_001).map(|_| json!({"op": "test", "path": "/data/k", "value": "v"})).collect();
    assert_eq!(admin.patch(&format!("{CM}/a"), "json-patch+json", &json!(many)).await.code, 413);
    // Each copy doubles the object.
    let doubling: Vec<_> =
        (0..40).map(|n| json!({"op": "copy", "from": "/data", "path": format!("/data/k{n}")})).collect();
    let code = admin.patch(&format!("{CM}/a"), "json-patch+json", &json!(doubling)).await.code;
    assert!((400..500).contains(&code), "{code}");
}
