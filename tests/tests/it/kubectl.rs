//! Everyday kubectl against the built binary.

use anyhow::ensure;
use tests::{Node, eventually};

use crate::manifests::{IDLE, pod, pod_with};
use crate::needs_root;

async fn node_with_busybox() -> anyhow::Result<Node> {
    let node = Node::start().await?;
    node.import("busybox").await?;
    Ok(node)
}

#[tokio::test(flavor = "multi_thread")]
async fn reading_and_watching() -> anyhow::Result<()> {
    needs_root!();
    let node = node_with_busybox().await?;
    let mut watch = node.kubectl_running(&["get", "pods", "-w", "-o", "wide"])?;
    node.apply(&pod("a", &format!("echo started; {IDLE}"))).await?;
    node.wait_ready("a").await?;
    watch.line_with("ContainerCreating").await?;
    watch.line_with("1/1").await?;
    let wide = node.kubectl(&["get", "pods", "-o", "wide"]).await?.ok()?;
    ensure!(wide.contains("10.42.0.") && wide.contains("Running"), "{wide}");
    let yaml = node.kubectl(&["get", "pod", "a", "-o", "yaml"]).await?.ok()?;
    ensure!(yaml.contains("apiVersion: v1") && yaml.contains("containerID: orlop://"), "{yaml}");
    let phase = node
        .kubectl(&["get", "pods", "-l", "app=a", "-o", "jsonpath={.items[*].status.phase}"])
        .await?
        .ok()?;
    ensure!(phase == "Running", "{phase}");
    let none =
        node.kubectl(&["get", "pods", "--field-selector=status.phase=Failed", "-o", "name"]).await?.ok()?;
    ensure!(none.is_empty(), "{none}");
    let described = node.kubectl(&["describe", "pod", "a"]).await?.ok()?;
    for expected in ["Scheduled", "Pulled", "Created", "Started", "Ready", "QoS Class:"] {
        ensure!(described.contains(expected), "{expected} is missing:\n{described}");
    }
    let all = node.kubectl(&["get", "all"]).await?.ok()?;
    ensure!(all.contains("pod/a") && all.contains("service/kubernetes"), "{all}");
    let resources = node.kubectl(&["api-resources"]).await?.ok()?;
    for expected in ["pods", "deployments", "configmaps", "leases", "po ", "deploy "] {
        ensure!(resources.contains(expected), "{expected} is missing:\n{resources}");
    }
    let explained = node.kubectl(&["explain", "pod.spec.containers.livenessProbe.httpGet"]).await?.ok()?;
    ensure!(explained.contains("path") && explained.contains("scheme"), "{explained}");
    let events = node.kubectl(&["get", "events"]).await?.ok()?;
    ensure!(events.contains("Started"), "{events}");
    let versions = node.kubectl(&["version"]).await?.ok()?;
    ensure!(versions.contains("Server Version: v1.36"), "{versions}");
    node.kubectl(&["delete", "pod", "a", "--wait=true", "--timeout=30s"]).await?.ok()?;
    node.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn logs() -> anyhow::Result<()> {
    needs_root!();
    let node = node_with_busybox().await?;
    node.apply(&pod("talk", "i=0; while :; do echo line $i; i=$((i+1)); sleep 0.2; done")).await?;
    node.wait_ready("talk").await?;
    let mut follow = node.kubectl_running(&["logs", "-f", "talk"])?;
    follow.line_with("line 0").await?;
    follow.line_with("line 5").await?;
    let stamped = node.kubectl(&["logs", "talk", "--timestamps", "--tail=1"]).await?.ok()?;
    ensure!(
        stamped.starts_with("20") && stamped.contains("Z line ") && stamped.lines().count() == 1,
        "{stamped}"
    );
    let since = node.kubectl(&["logs", "talk", "--since=1h", "--limit-bytes=6"]).await?.ok()?;
    ensure!(since == "line 0", "{since:?}");

    node.apply(&pod("again", "echo run; sleep 0.3; exit 3")).await?;
    node.wait_for("pod/again", "restarted", |pod| {
        pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or(0) > 0
    })
    .await?;
    let previous = node.kubectl(&["logs", "again", "--previous"]).await?.ok()?;
    ensure!(previous == "run\n", "{previous:?}");
    node.kubectl(&["delete", "pod", "--all", "--grace-period=0", "--force"]).await?.ok()?;
    node.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_attach_and_copy() -> anyhow::Result<()> {
    needs_root!();
    let node = node_with_busybox().await?;
    node.apply(&pod_with("sh", "echo ready; cat", "      stdin: true\n", "")).await?;
    node.wait_ready("sh").await?;
    let hello = node.kubectl(&["exec", "sh", "--", "echo", "hello"]).await?.ok()?;
    ensure!(hello == "hello\n", "{hello:?}");
    let failed = node.kubectl(&["exec", "sh", "--", "sh", "-c", "echo oops >&2; exit 7"]).await?;
    ensure!(failed.code == 7 && failed.stderr.contains("oops"), "{failed:?}");
    let piped =
        node.kubectl_with(&["exec", "-i", "sh", "--", "wc", "-c"], &"x".repeat(300_000)).await?.ok()?;
    ensure!(piped.trim() == "300000", "{piped:?}");
    // A terminal: `script` gives kubectl one.
    let kubeconfig = node.kubeconfig();
    let line = format!("KUBECONFIG={} kubectl exec -it sh -- tty", kubeconfig.display());
    let typed = node.run("script", &["-qec", &line, "/dev/null"]).await?.ok()?;
    ensure!(typed.contains("/dev/pts/0"), "{typed:?}");

    let mut attached = node.kubectl_running(&["attach", "-i", "sh"])?;
    eventually("attach to take input", || async { Ok(()) }).await?;
    attached.type_in("through attach\n").await?;
    attached.line_with("through attach").await?;

    let dir = tempfile::tempdir()?;
    let (there, back) = (dir.path().join("there"), dir.path().join("back"));
    let content: Vec<u8> = (0..2_000_000u32).map(|i| (i % 251) as u8).collect();
    std::fs::write(&there, &content)?;
    let name = |path: &std::path::Path| path.to_string_lossy().into_owned();
    node.kubectl(&["cp", &name(&there), "sh:/tmp/copied"]).await?.ok()?;
    node.kubectl(&["cp", "sh:/tmp/copied", &name(&back)]).await?.ok()?;
    ensure!(std::fs::read(&back)? == content, "what came back differs");
    node.kubectl(&["delete", "pod", "sh", "--grace-period=1"]).await?.ok()?;
    node.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn port_forward() -> anyhow::Result<()> {
    needs_root!();
    let node = node_with_busybox().await?;
    let serve = "mkdir /www; echo over the port > /www/index.html; exec httpd -f -p 8080 -h /www";
    node.apply(&pod("http", serve)).await?;
    node.wait_ready("http").await?;
    eventually("the server in the pod answers", || async {
        let ask = ["exec", "http", "--", "wget", "-q", "-O-", "http://127.0.0.1:8080/index.html"];
        node.kubectl(&ask).await?.ok().map(drop)
    })
    .await?;
    let mut forward = node.kubectl_running(&["port-forward", "pod/http", "18081:8080"])?;
    forward.line_with("Forwarding from 127.0.0.1:18081").await?;
    for _ in 0..5 {
        let page = node.curl(&["http://127.0.0.1:18081/index.html"]).await?;
        ensure!(page == "over the port\n", "{page:?}");
    }
    drop(forward);
    node.kubectl(&["delete", "pod", "http"]).await?.ok()?;
    node.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn changing_objects() -> anyhow::Result<()> {
    needs_root!();
    let node = node_with_busybox().await?;
    node.apply("apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {k: v}\n").await?;
    let dry = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {k: w}\n";
    node.kubectl_with(&["apply", "--dry-run=server", "-f", "-"], dry).await?.ok()?;
    let value = || async { node.kubectl(&["get", "configmap", "c", "-o", "jsonpath={.data.k}"]).await?.ok() };
    ensure!(value().await? == "v");
    let diff = node.kubectl_with(&["diff", "-f", "-"], dry).await?;
    ensure!(diff.code == 1 && diff.stdout.contains("-  k: v") && diff.stdout.contains("+  k: w"), "{diff:?}");
    node.apply(dry).await?;
    ensure!(value().await? == "w");
    node.kubectl(&["label", "configmap", "c", "colour=red"]).await?.ok()?;
    node.kubectl(&["annotate", "configmap", "c", "note=kept"]).await?.ok()?;
    let red = node.kubectl(&["get", "configmap", "-l", "colour=red", "-o", "name"]).await?.ok()?;
    ensure!(red.trim() == "configmap/c", "{red}");
    node.kubectl(&[
        "patch",
        "configmap",
        "c",
        "--type=json",
        "-p",
        r#"[{"op":"add","path":"/data/n","value":"1"}]"#,
    ])
    .await?
    .ok()?;
    node.kubectl(&["patch", "configmap", "c", "--type=merge", "-p", r#"{"data":{"k":null}}"#]).await?.ok()?;
    let left = node.kubectl(&["get", "configmap", "c", "-o", "jsonpath={.data}"]).await?.ok()?;
    ensure!(left == r#"{"n":"1"}"#, "{left}");
    let mut edit = node.kubectl_command(&["edit", "configmap", "c"]);
    edit.env("EDITOR", r#"sed -i s/\"1\"/\"2\"/"#);
    tests::run(edit, None).await?.ok()?;
    let left = node.kubectl(&["get", "configmap", "c", "-o", "jsonpath={.data}"]).await?.ok()?;
    ensure!(left == r#"{"n":"2"}"#, "{left}");
    // Somebody else's change in between is not overwritten.
    let stale = node.kubectl(&["get", "configmap", "c", "-o", "yaml"]).await?.ok()?;
    node.kubectl(&["label", "configmap", "c", "colour=blue", "--overwrite"]).await?.ok()?;
    let refused = node.kubectl_with(&["replace", "-f", "-"], &stale).await?.err()?;
    ensure!(refused.contains("the object has been modified"), "{refused}");
    node.kubectl(&["delete", "configmap", "c"]).await?.ok()?;
    let gone = node.kubectl(&["get", "configmap", "c"]).await?.err()?;
    ensure!(gone.contains("NotFound"), "{gone}");
    node.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn waiting_and_deleting() -> anyhow::Result<()> {
    needs_root!();
    let node = node_with_busybox().await?;
    node.apply(&pod("a", IDLE)).await?;
    node.kubectl(&["wait", "--for=condition=Ready", "pod/a", "--timeout=30s"]).await?.ok()?;
    // One that ignores its signal lives through its grace period; grace 0 doesn't wait.
    node.apply(&pod("deaf", "trap '' TERM; while :; do sleep 1; done")).await?;
    node.wait_ready("deaf").await?;
    node.kubectl(&["delete", "pod", "deaf", "--grace-period=0", "--force", "--timeout=10s"]).await?.ok()?;
    node.kubectl(&["create", "namespace", "n"]).await?.ok()?;
    node.kubectl_with(&["apply", "-n", "n", "-f", "-"], &pod("inside", IDLE)).await?.ok()?;
    node.kubectl(&["wait", "-n", "n", "--for=condition=Ready", "pod/inside", "--timeout=30s"]).await?.ok()?;
    node.kubectl(&["delete", "namespace", "n", "--timeout=60s"]).await?.ok()?;
    let left = node.kubectl(&["get", "pods", "-A", "-o", "name"]).await?.ok()?;
    ensure!(left.trim() == "pod/a", "{left}");
    node.kubectl(&["delete", "pod", "a", "--timeout=30s"]).await?.ok()?;
    node.end().await
}
