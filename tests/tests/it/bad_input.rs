//! Bad input: each with its own clear error.

use anyhow::ensure;
use serde_json::Value;
use tests::{Node, Registry, eventually, image};

use crate::manifests::{IDLE, pod, pod_with};
use crate::needs_root;

fn waiting(pod: &Value) -> (String, String) {
    let waiting = &pod["status"]["containerStatuses"][0]["state"]["waiting"];
    let text = |key: &str| waiting[key].as_str().unwrap_or_default().to_owned();
    (text("reason"), text("message"))
}

#[tokio::test(flavor = "multi_thread")]
async fn images_that_cannot_be_had() -> anyhow::Result<()> {
    needs_root!();
    let node = Node::start().await?;
    let registry = Registry::start(&node, 5000).await?;
    registry.push(&image("busybox"), "there:1").await?;
    let wrong = format!("{}/there@sha256:{}", registry.address, "0".repeat(64));
    for (name, image, reason, word) in [
        ("unknown", format!("{}/nowhere:1", registry.address), "ErrImagePull", "nowhere"),
        ("digest", wrong, "ErrImagePull", "sha256:0000"),
        ("reference", "NOT a reference".to_owned(), "InvalidImageName", "NOT a reference"),
        ("never", "localhost/never:1".to_owned(), "ErrImageNeverPull", "never"),
    ] {
        let policy = if name == "never" { "      imagePullPolicy: Never\n" } else { "" };
        let manifest =
            pod_with(name, IDLE, policy, "").replace(crate::manifests::BUSYBOX, &format!("{image:?}"));
        node.apply(&manifest).await?;
        let object = node
            .wait_for(&format!("pod/{name}"), reason, |pod| {
                let now = waiting(pod).0;
                now == reason || (reason == "ErrImagePull" && now == "ImagePullBackOff")
            })
            .await?;
        let described = node.kubectl(&["describe", "pod", name]).await?.ok()?;
        ensure!(
            described.contains(word),
            "{name}: no {word:?} in {:?} nor in\n{described}",
            waiting(&object)
        );
    }
    node.kubectl(&["delete", "pod", "--all", "--timeout=30s"]).await?.ok()?;
    drop(registry);
    node.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_that_are_wrong() -> anyhow::Result<()> {
    needs_root!();
    let node = Node::start().await?;
    let refused = |manifest: String| {
        let node = &node;
        async move { node.kubectl_with(&["create", "-f", "-"], &manifest).await?.err() }
    };
    let said = refused("a: [1\n".to_owned()).await?;
    ensure!(said.contains("yaml") || said.contains("YAML"), "{said}");
    let said = refused(pod_with("x", IDLE, "      imagePolicy: Always\n", "")).await?;
    ensure!(said.contains("unknown field \"spec.containers[0].imagePolicy\""), "{said}");
    let said = refused(pod("Not_Valid", IDLE)).await?;
    ensure!(said.contains("metadata.name") && said.contains("RFC 1123"), "{said}");
    let said =
        refused(pod_with("x", IDLE, "      volumeMounts: [{name: nope, mountPath: /x}]\n", "")).await?;
    ensure!(said.contains("volumeMounts[0].name") && said.contains("Not found"), "{said}");
    let said = refused(pod_with(
        "x",
        IDLE,
        "      resources: {requests: {memory: 2Gi}, limits: {memory: 1Gi}}\n",
        "",
    ))
    .await?;
    ensure!(said.contains("must be less than or equal to memory limit"), "{said}");
    let said = node.kubectl(&["get", "pods", "--field-selector=spec.wrong=1"]).await?.err()?;
    ensure!(said.contains("field label not supported"), "{said}");
    let said = node.kubectl(&["get", "nonsense"]).await?.err()?;
    ensure!(said.contains("doesn't have a resource type"), "{said}");
    node.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_supported_is_refused_in_words() -> anyhow::Result<()> {
    needs_root!();
    let node = Node::start().await?;
    node.import("busybox").await?;
    let spec = "  volumes: [{name: share, nfs: {server: example.org, path: /}}]\n";
    node.apply(&pod_with("nfs", IDLE, "      volumeMounts: [{name: share, mountPath: /n}]\n", spec)).await?;
    eventually("the refusal", || async {
        let described = node.kubectl(&["describe", "pod", "nfs"]).await?.ok()?;
        ensure!(described.contains("nfs") && described.contains("not supported"), "{described}");
        Ok(())
    })
    .await?;
    node.kubectl(&["delete", "pod", "nfs", "--grace-period=0", "--force"]).await?.ok()?;
    node.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_command_that_is_not_there() -> anyhow::Result<()> {
    needs_root!();
    let node = Node::start().await?;
    node.import("busybox").await?;
    let manifest = pod("c", IDLE).replace("command: [sh, -c,", "command: [no-such-program,");
    node.apply(&manifest).await?;
    eventually("the reason", || async {
        let described = node.kubectl(&["describe", "pod", "c"]).await?.ok()?;
        ensure!(described.contains("no-such-program") && described.contains("not found"), "{described}");
        Ok(())
    })
    .await?;
    node.kubectl(&["delete", "pod", "c"]).await?.ok()?;
    node.end().await
}
