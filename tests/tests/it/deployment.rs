//! Real input, end to end: nginx from a real registry, a Deployment with probes and a ConfigMap.

use anyhow::ensure;
use serde_json::Value;
use tests::{Node, Registry, condition, eventually, image};

use crate::manifests::nginx;
use crate::needs_root;

async fn web_pods(node: &Node) -> anyhow::Result<Vec<Value>> {
    let list = node.kubectl(&["get", "pods", "-l", "app=web", "-o", "json"]).await?.json()?;
    Ok(list["items"].as_array().cloned().unwrap_or_default())
}

async fn available(node: &Node, replicas: u64) -> anyhow::Result<Value> {
    let what = format!("{replicas} available");
    let check = |d: &Value| {
        d["status"]["availableReplicas"].as_u64().unwrap_or(0) == replicas
            && d["status"]["updatedReplicas"].as_u64().unwrap_or(0) == replicas
            && d["status"]["replicas"].as_u64().unwrap_or(0) == replicas
    };
    node.wait_for("deployment/web", &what, check).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nginx_from_a_registry_is_served_scaled_rolled_out_and_undone() -> anyhow::Result<()> {
    needs_root!();
    let node = Node::start().await?;
    let registry = Registry::start(&node, 5000).await?;
    let first = registry.push(&image("nginx"), "library/nginx:1").await?;
    let second = registry.push(&image("nginx"), "library/nginx:2").await?;

    node.apply(&nginx(&first)).await?;
    available(&node, 2).await?;
    for pod in web_pods(&node).await? {
        ensure!(condition(&pod, "Ready") == Some("True"), "{pod}");
        let ip = pod["status"]["podIP"].as_str().unwrap_or_default().to_owned();
        let page = node.curl(&[&format!("http://{ip}/")]).await?;
        ensure!(page == "first page\n", "{page}");
    }
    let status = node.kubectl(&["rollout", "status", "deployment/web", "--timeout=30s"]).await?.ok()?;
    ensure!(status.contains("successfully rolled out"), "{status}");

    // A change of the ConfigMap reaches the running container.
    node.kubectl(&["patch", "configmap", "page", "-p", r#"{"data":{"index.html":"second page\n"}}"#])
        .await?
        .ok()?;
    let ip = web_pods(&node).await?[0]["status"]["podIP"].as_str().unwrap_or_default().to_owned();
    eventually("the new page", || async {
        let page = node.curl(&[&format!("http://{ip}/")]).await?;
        ensure!(page == "second page\n", "{page}");
        Ok(())
    })
    .await?;

    node.kubectl(&["scale", "deployment/web", "--replicas=3"]).await?.ok()?;
    available(&node, 3).await?;
    node.kubectl(&["scale", "deployment/web", "--replicas=1"]).await?.ok()?;
    available(&node, 1).await?;

    node.kubectl(&["set", "image", "deployment/web", &format!("nginx={second}")]).await?.ok()?;
    node.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]).await?.ok()?;
    let image_of =
        |pods: &[Value]| pods[0]["spec"]["containers"][0]["image"].as_str().unwrap_or_default().to_owned();
    available(&node, 1).await?;
    eventually("the second image only", || async {
        let pods = web_pods(&node).await?;
        ensure!(pods.len() == 1 && image_of(&pods) == second, "{pods:?}");
        Ok(())
    })
    .await?;
    let history = node.kubectl(&["rollout", "history", "deployment/web"]).await?.ok()?;
    ensure!(history.contains('1') && history.contains('2'), "{history}");
    node.kubectl(&["rollout", "undo", "deployment/web"]).await?.ok()?;
    node.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]).await?.ok()?;
    available(&node, 1).await?;
    eventually("the first image again", || async {
        let pods = web_pods(&node).await?;
        ensure!(pods.len() == 1 && image_of(&pods) == first, "{pods:?}");
        Ok(())
    })
    .await?;
    node.kubectl(&["rollout", "restart", "deployment/web"]).await?.ok()?;
    node.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"]).await?.ok()?;

    let described = node.kubectl(&["describe", "deployment", "web"]).await?.ok()?;
    ensure!(described.contains("ScalingReplicaSet") && described.contains("NewReplicaSet:"), "{described}");
    // Deleting the Deployment takes its sets and pods along.
    node.kubectl(&["delete", "deployment", "web"]).await?.ok()?;
    eventually("nothing of the deployment to be left", || async {
        let left = node.kubectl(&["get", "replicasets,pods", "-o", "name"]).await?.ok()?;
        ensure!(left.is_empty(), "{left}");
        Ok(())
    })
    .await?;
    drop(registry);
    node.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn deletion_can_orphan_or_wait_in_the_foreground() -> anyhow::Result<()> {
    needs_root!();
    let node = Node::start().await?;
    node.import("nginx").await?;
    node.apply(&nginx("localhost/nginx:1").replace("replicas: 2", "replicas: 1")).await?;
    available(&node, 1).await?;
    node.kubectl(&["delete", "deployment", "web", "--cascade=orphan"]).await?.ok()?;
    eventually("the set to be free", || async {
        let sets = node.kubectl(&["get", "replicasets", "-o", "json"]).await?.json()?;
        ensure!(sets["items"].as_array().is_some_and(|items| items.len() == 1), "{sets}");
        ensure!(sets["items"][0]["metadata"]["ownerReferences"].is_null(), "{sets}");
        Ok(())
    })
    .await?;
    let set = node.kubectl(&["get", "replicasets", "-o", "name"]).await?.ok()?;
    node.kubectl(&["delete", set.trim(), "--cascade=foreground", "--timeout=60s"]).await?.ok()?;
    let pods = web_pods(&node).await?;
    ensure!(pods.is_empty(), "the set went before its pods: {pods:?}");
    node.end().await
}
