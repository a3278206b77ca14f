//! The life of a pod: restarts, back-off, probes, init containers, termination.

use anyhow::{Context, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tests::{Node, condition, eventually, signal};

use crate::manifests::{BUSYBOX, IDLE, pod, pod_with};
use crate::needs_root;

async fn node_with_busybox() -> anyhow::Result<Node> {
    let node = Node::start().await?;
    node.import("busybox").await?;
    Ok(node)
}

fn restarts(pod: &Value) -> u64 {
    pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or(0)
}

/// The host's process id of a pod's container.
pub async fn pid_of(node: &Node, pod: &str) -> anyhow::Result<u32> {
    let object = node.kubectl(&["get", "pod", pod, "-o", "json"]).await?.json()?;
    let id = object["status"]["containerStatuses"][0]["containerID"].as_str().context("no container id")?;
    let id = id.trim_start_matches("orlop://");
    let inspected = node.crictl(&["inspect", id]).await?.json()?;
    let pid = inspected["info"]["pid"].as_u64().with_context(|| format!("no pid in {inspected}"))?;
    Ok(u32::try_from(pid)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_container_comes_back_with_growing_back_off() -> anyhow::Result<()> {
    needs_root!();
    let node = node_with_busybox().await?;
    node.apply(&pod("k", IDLE)).await?;
    node.wait_ready("k").await?;
    signal(pid_of(&node, "k").await?, Signal::KILL)?;
    let pod = node.wait_for("pod/k", "restarted once", |pod| restarts(pod) == 1).await?;
    let last = &pod["status"]["containerStatuses"][0]["lastState"]["terminated"];
    ensure!(last["exitCode"] == 137, "{last}");
    node.wait_ready("k").await?;
    signal(pid_of(&node, "k").await?, Signal::KILL)?;
    let waiting = node
        .wait_for("pod/k", "in back-off", |pod| {
            pod["status"]["containerStatuses"][0]["state"]["waiting"]["reason"] == "CrashLoopBackOff"
        })
        .await?;
    let message =
        waiting["status"]["containerStatuses"][0]["state"]["waiting"]["message"].as_str().unwrap_or("");
    ensure!(message.contains("back-off 10s restarting failed container=main"), "{message}");
    let listed = node.kubectl(&["get", "pod", "k"]).await?.ok()?;
    ensure!(listed.contains("CrashLoopBackOff"), "{listed}");
    node.wait_for("pod/k", "restarted twice", |pod| restarts(pod) == 2).await?;
    node.wait_ready("k").await?;
    signal(pid_of(&node, "k").await?, Signal::KILL)?;
    eventually("a longer back-off", || async {
        let described = node.kubectl(&["describe", "pod", "k"]).await?.ok()?;
        ensure!(described.contains("Back-off restarting failed container main"), "{described}");
        let pod = node.kubectl(&["get", "pod", "k", "-o", "json"]).await?.json()?;
        let message = pod["status"]["containerStatuses"][0]["state"]["waiting"]["message"].to_string();
        ensure!(message.contains("back-off 20s"), "{message}");
        Ok(())
    })
    .await?;
    node.kubectl(&["delete", "pod", "k"]).await?.ok()?;
    node.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn failing_liveness_restarts_and_failing_readiness_does_not() -> anyhow::Result<()> {
    needs_root!();
    let node = node_with_busybox().await?;
    let probes = "      livenessProbe: {exec: {command: [test, -e, /tmp/alive]}, periodSeconds: 1, failureThreshold: 2}\n      \
                  readinessProbe: {exec: {command: [test, -e, /tmp/ready]}, periodSeconds: 1, failureThreshold: 1}\n";
    let script = format!("touch /tmp/alive /tmp/ready; {IDLE}");
    node.apply(&pod_with("p", &script, probes, "")).await?;
    node.wait_ready("p").await?;
    node.kubectl(&["exec", "p", "--", "rm", "/tmp/ready"]).await?.ok()?;
    let pod = node.wait_for("pod/p", "not Ready", |pod| condition(pod, "Ready") == Some("False")).await?;
    ensure!(restarts(&pod) == 0, "{pod}");
    node.kubectl(&["exec", "p", "--", "touch", "/tmp/ready"]).await?.ok()?;
    let pod = node.wait_ready("p").await?;
    ensure!(restarts(&pod) == 0, "{pod}");
    node.kubectl(&["exec", "p", "--", "rm", "/tmp/alive"]).await?.ok()?;
    node.wait_for("pod/p", "restarted", |pod| restarts(pod) == 1).await?;
    let described = node.kubectl(&["describe", "pod", "p"]).await?.ok()?;
    for expected in
        ["Liveness probe failed", "Readiness probe failed", "failed liveness probe, will be restarted"]
    {
        ensure!(described.contains(expected), "{expected} is missing:\n{described}");
    }
    node.kubectl(&["delete", "pod", "p"]).await?.ok()?;
    node.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn probes_of_every_kind() -> anyhow::Result<()> {
    needs_root!();
    let node = node_with_busybox().await?;
    let serve = "sleep 1; mkdir /www; echo ok > /www/healthz; exec httpd -f -p 8080 -h /www";
    let probes = "      startupProbe: {tcpSocket: {port: 8080}, periodSeconds: 1, failureThreshold: 30}\n      \
                  readinessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}\n      \
                  livenessProbe: {httpGet: {path: /healthz, port: 8080}, periodSeconds: 1}\n";
    node.apply(&pod_with("w", serve, probes, "")).await?;
    let pod = node.wait_ready("w").await?;
    ensure!(pod["status"]["containerStatuses"][0]["started"] == true && restarts(&pod) == 0, "{pod}");
    // No server behind a grpc probe: it fails, and says so.
    let grpc = "      readinessProbe: {grpc: {port: 9999}, periodSeconds: 1}\n";
    node.apply(&pod_with("g", IDLE, grpc, "")).await?;
    eventually("the grpc probe's failure", || async {
        let described = node.kubectl(&["describe", "pod", "g"]).await?.ok()?;
        ensure!(described.contains("Readiness probe failed"), "{described}");
        Ok(())
    })
    .await?;
    node.kubectl(&["delete", "pod", "w", "g"]).await?.ok()?;
    node.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn init_containers_hooks_and_a_job_like_pod() -> anyhow::Result<()> {
    needs_root!();
    let node = node_with_busybox().await?;
    let spec = format!(
        "  restartPolicy: Never\n  volumes: [{{name: shared, emptyDir: {{}}}}]\n  initContainers:\n    - name: one\n      \
         image: {BUSYBOX}\n      command: [sh, -c, 'echo one >> /shared/log']\n      volumeMounts: [{{name: shared, mountPath: /shared}}]\n    \
         - name: two\n      image: {BUSYBOX}\n      command: [sh, -c, 'echo two >> /shared/log']\n      volumeMounts: [{{name: shared, mountPath: /shared}}]\n"
    );
    let container = "      volumeMounts: [{name: shared, mountPath: /shared}]\n      lifecycle: {postStart: {exec: {command: [sh, -c, 'echo hook >> /shared/log']}}}\n";
    node.apply(&pod_with(
        "j",
        "sleep 1; cat /shared/log; echo why > /dev/termination-log; exit 4",
        container,
        &spec,
    ))
    .await?;
    let pod = node.wait_for("pod/j", "Failed", |pod| pod["status"]["phase"] == "Failed").await?;
    let ended = &pod["status"]["containerStatuses"][0]["state"]["terminated"];
    ensure!(ended["exitCode"] == 4 && ended["reason"] == "Error", "{ended}");
    ensure!(ended["message"] == "why\n", "{ended}");
    let log = node.kubectl(&["logs", "j"]).await?.ok()?;
    ensure!(log == "one\ntwo\nhook\n", "{log:?}");
    node.apply(&pod_with("ok", "true", "", "  restartPolicy: OnFailure\n")).await?;
    let pod = node.wait_for("pod/ok", "Succeeded", |pod| pod["status"]["phase"] == "Succeeded").await?;
    ensure!(pod["status"]["containerStatuses"][0]["state"]["terminated"]["reason"] == "Completed", "{pod}");
    node.kubectl(&["delete", "pod", "j", "ok"]).await?.ok()?;
    node.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn termination_is_graceful() -> anyhow::Result<()> {
    needs_root!();
    let node = node_with_busybox().await?;
    let spec = "  volumes: [{name: v, hostPath: {path: DIR, type: DirectoryOrCreate}}]\n";
    let dir = node.root.join("shared");
    let spec = spec.replace("DIR", &dir.to_string_lossy());
    let container = "      volumeMounts: [{name: v, mountPath: /v}]\n      lifecycle: {preStop: {exec: {command: [sh, -c, 'echo stop >> /v/log']}}}\n";
    let script = "trap 'echo term >> /v/log; exit 0' TERM; while :; do sleep 0.1; done";
    let manifest = pod_with("t", script, container, &spec)
        .replace("terminationGracePeriodSeconds: 2", "terminationGracePeriodSeconds: 20");
    node.apply(&manifest).await?;
    node.wait_ready("t").await?;
    node.kubectl(&["delete", "pod", "t", "--timeout=15s"]).await?.ok()?;
    ensure!(std::fs::read_to_string(dir.join("log"))? == "stop\nterm\n");
    node.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn static_pods_have_mirrors() -> anyhow::Result<()> {
    needs_root!();
    let node = node_with_busybox().await?;
    let file = node.root.join("etc/manifests/still.yaml");
    std::fs::write(&file, pod("still", IDLE))?;
    let name = eventually("the mirror pod", || async {
        let names = node.kubectl(&["get", "pods", "-o", "name"]).await?.ok()?;
        let name = names.lines().find(|name| name.starts_with("pod/still-")).context("no mirror")?;
        Ok(name.trim_start_matches("pod/").to_owned())
    })
    .await?;
    let mirror = node.wait_ready(&name).await?;
    ensure!(mirror["metadata"]["annotations"]["kubernetes.io/config.mirror"].is_string(), "{mirror}");
    std::fs::write(&file, "this: is\nno pod\n")?;
    eventually("the complaint", || async {
        ensure!(node.log_text().contains("still.yaml"), "no word of it");
        Ok(())
    })
    .await?;
    node.wait_ready(&name).await?;
    std::fs::remove_file(&file)?;
    eventually("the mirror to go", || async {
        let names = node.kubectl(&["get", "pods", "-o", "name"]).await?.ok()?;
        ensure!(names.is_empty(), "{names}");
        Ok(())
    })
    .await?;
    node.end().await
}
