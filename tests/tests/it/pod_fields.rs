//! Fields of a pod: each is done, or refused in words.

use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::Value;
use tests::{Node, eventually};

use crate::manifests::{BUSYBOX, IDLE, pod_with};
use crate::needs_root;

/// One more container of a pod of [`pod_with`].
fn another(name: &str, script: &str, more: &str) -> String {
    format!("    - name: {name}\n      image: {BUSYBOX}\n      command: [sh, -c, {script:?}]\n{more}")
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_of_the_host_and_of_the_pod() -> anyhow::Result<()> {
    needs_root!();
    let node = Node::start().await?;
    node.import("busybox").await?;
    let host = pod_with("host", IDLE, "", "  hostNetwork: true\n  hostPID: true\n  hostIPC: true\n");
    let shared = pod_with("shared", "echo from main; exec sleep 1001", "", "  shareProcessNamespace: true\n")
        + &another("second", "echo from second; exec sleep 1002", "");
    let ports = "      ports: [{containerPort: 8080, hostPort: 8099}]\n";
    let serve = "mkdir /w; echo page > /w/index.html; exec httpd -f -p 8080 -h /w";
    node.apply(&[host, shared, pod_with("port", serve, ports, "")].join("---\n")).await?;
    for name in ["host", "shared", "port"] {
        node.wait_ready(name).await?;
    }
    let sh = |pod: &'static str, script: &'static str| {
        let node = &node;
        async move { node.kubectl(&["exec", pod, "--", "sh", "-c", script]).await?.ok() }
    };
    let of_us = std::fs::read_link("/proc/self/ns/ipc")?;
    ensure!(sh("host", "readlink /proc/self/ns/ipc").await?.trim() == of_us.to_string_lossy());
    ensure!(sh("host", "ip -o link").await?.contains(": outside:"), "not the node's network");
    let daemon = format!("/proc/{}/comm", node.daemon_pid());
    let seen = node.kubectl(&["exec", "host", "--", "cat", &daemon]).await?.ok()?;
    ensure!(seen.starts_with("orlop"), "{daemon}: {seen}");
    let object = node.kubectl(&["get", "pod", "host", "-o", "json"]).await?.json()?;
    ensure!(object["status"]["podIP"] == object["status"]["hostIP"], "{}", object["status"]);

    let seen = sh("shared", "ps").await?;
    ensure!(seen.contains("sleep 1001") && seen.contains("sleep 1002"), "{seen}");
    let logs = node.kubectl(&["logs", "shared", "--all-containers", "--prefix"]).await?.ok()?;
    // kubectl asks for them in no order.
    let mut each: Vec<&str> = logs.lines().collect();
    each.sort_unstable();
    ensure!(each == ["[pod/shared/main] from main", "[pod/shared/second] from second"], "{logs}");
    let logs = node.kubectl(&["logs", "-l", "app=shared", "-c", "second"]).await?.ok()?;
    ensure!(logs == "from second\n", "{logs}");
    let said = node.kubectl(&["logs", "shared", "-c", "third"]).await?.err()?;
    ensure!(said.contains("container third is not valid for pod shared"), "{said}");

    for address in ["127.0.0.1", "10.99.0.2"] {
        let page = node.curl(&[&format!("http://{address}:8099/")]).await?;
        ensure!(page == "page\n", "{address}: {page}");
    }
    node.kubectl(&["delete", "pod", "--all", "--timeout=30s"]).await?.ok()?;
    let said = node.curl(&["http://127.0.0.1:8099/"]).await;
    ensure!(said.is_err(), "the port is still served");
    node.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn sidecars_deadlines_and_last_words() -> anyhow::Result<()> {
    needs_root!();
    let node = Node::start().await?;
    node.import("busybox").await?;
    let sidecar = format!(
        "  restartPolicy: Never\n  initContainers:\n    - name: side\n      image: {BUSYBOX}\n      restartPolicy: Always\n      \
         command: [sh, -c, \"trap 'echo side ends; exit 0' TERM; echo side begins; touch /tmp/up; while :; do sleep 1000 & wait $!; done\"]\n      \
         startupProbe: {{exec: {{command: [test, -e, /tmp/up]}}, periodSeconds: 1}}\n    \
         - name: init\n      image: {BUSYBOX}\n      command: [echo, init]\n"
    );
    let deaf = pod_with("deaf", "trap '' TERM; while :; do sleep 1; done", "", "");
    let pre = pod_with(
        "pre",
        "trap 'exit 0' TERM; while :; do sleep 1000 & wait $!; done",
        "      lifecycle: {preStop: {sleep: {seconds: 1}}}\n",
        "",
    );
    node.apply(
        &[
            pod_with("job", "sleep 1; echo main", "", &sidecar),
            pod_with("late", IDLE, "", "  activeDeadlineSeconds: 2\n"),
            deaf,
            pre,
        ]
        .join("---\n"),
    )
    .await?;
    node.wait_ready("deaf").await?;
    node.wait_ready("pre").await?;
    let start = Instant::now();
    node.kubectl(&["delete", "pod", "deaf", "--timeout=20s"]).await?.ok()?;
    let took = start.elapsed();
    ensure!(took > Duration::from_millis(1800) && took < Duration::from_secs(6), "deaf: {took:?}");
    let start = Instant::now();
    node.kubectl(&["delete", "pod", "pre", "--timeout=20s"]).await?.ok()?;
    let took = start.elapsed();
    ensure!(took > Duration::from_millis(900) && took < Duration::from_secs(4), "pre: {took:?}");
    let done = |pod: &Value| pod["status"]["phase"] == "Succeeded";
    let ended = node.wait_for("pod/job", "Succeeded", done).await?;
    let side = &ended["status"]["initContainerStatuses"][0];
    ensure!(side["restartCount"] == 0 && side["state"]["terminated"]["exitCode"] == 0, "{side}");
    let logs = node.kubectl(&["logs", "job", "-c", "side"]).await?.ok()?;
    ensure!(logs == "side begins\nside ends\n", "{logs}");
    let said = node.kubectl(&["exec", "job", "--", "true"]).await?.err()?;
    ensure!(said.contains("completed pod"), "{said}");
    let failed = |pod: &Value| pod["status"]["phase"] == "Failed";
    let late = node.wait_for("pod/late", "Failed", failed).await?;
    ensure!(late["status"]["reason"] == "DeadlineExceeded", "{}", late["status"]);
    node.kubectl(&["delete", "pod", "--all", "--timeout=30s"]).await?.ok()?;
    node.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn sub_paths_and_host_paths_are_checked() -> anyhow::Result<()> {
    needs_root!();
    let node = Node::start().await?;
    node.import("busybox").await?;
    let init = format!(
        "  volumes: [{{name: d, emptyDir: {{}}}}]\n  initContainers:\n    - name: init\n      image: {BUSYBOX}\n      \
         command: [sh, -c, \"mkdir /d/ok; echo fine > /d/ok/f; ln -s / /d/escape; ln -s ../../../../../../../../etc /d/up\"]\n      \
         volumeMounts: [{{name: d, mountPath: /d}}]\n"
    );
    let mount = |path: &str| format!("      volumeMounts: [{{name: d, mountPath: /s, subPath: {path}}}]\n");
    let subs = pod_with("subs", "cat /s/f; exec sleep 1000", &mount("ok"), &init)
        + &another("root", "ls /s", &mount("escape"))
        + &another("up", "ls /s", &mount("up/ssh"))
        + &another("fresh", "touch /s/here; exec sleep 1000", &mount("made/anew"));
    let there = node.root.join("there");
    std::fs::write(&there, "text")?;
    let path = there.display();
    let volumes = format!(
        "  volumes:\n    - {{name: f, hostPath: {{path: {path}, type: File}}}}\n    - {{name: dir, hostPath: {{path: {path}-dir, type: DirectoryOrCreate}}}}\n    \
         - {{name: dev, hostPath: {{path: /dev/null, type: CharDevice}}}}\n"
    );
    let mounts = "      volumeMounts: [{name: f, mountPath: /f}, {name: dir, mountPath: /dir}, {name: dev, mountPath: /n}]\n";
    let right = pod_with("right", "touch /dir/made; cat /f; exec sleep 1000", mounts, &volumes);
    let wrong = |name: &str, kind: &str, path: &str| {
        let volume = format!("  volumes: [{{name: f, hostPath: {{path: {path}, type: {kind}}}}}]\n");
        pod_with(name, IDLE, "      volumeMounts: [{name: f, mountPath: /f}]\n", &volume)
    };
    let wrong_dir = wrong("wrong-dir", "Directory", &path.to_string());
    let missing = wrong("missing", "File", &format!("{path}-none"));
    let socket = wrong("socket", "Socket", &path.to_string());
    node.apply(&[subs, right, wrong_dir, missing, socket].join("---\n")).await?;
    node.wait_ready("right").await?;
    eventually("DirectoryOrCreate made a directory", || async {
        ensure!(node.root.join("there-dir/made").exists());
        Ok(())
    })
    .await?;
    for (pod, words) in [
        ("subs", "subPath \"escape\" leads out of the volume"),
        ("subs", "subPath \"up/ssh\" leads out of the volume"),
        ("wrong-dir", "is not a directory"),
        ("missing", "there-none"),
        ("socket", "is not a socket"),
    ] {
        eventually("the refusal", || async {
            let described = node.kubectl(&["describe", "pod", pod]).await?.ok()?;
            ensure!(described.contains(words), "{pod}: no {words:?} in\n{described}");
            Ok(())
        })
        .await?;
    }
    eventually("the file", || async {
        let logs = node.kubectl(&["logs", "subs", "-c", "main"]).await?.ok()?;
        ensure!(logs == "fine\n", "{logs}");
        Ok(())
    })
    .await?;
    let said = node.kubectl(&["exec", "subs", "-c", "root", "--", "true"]).await?.err()?;
    ensure!(said.contains("root"), "{said}");
    node.kubectl(&["delete", "pod", "--all", "--timeout=30s"]).await?.ok()?;
    ensure!(there.exists(), "a host path was removed with its pod");
    node.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_field_that_is_not_done_is_refused() -> anyhow::Result<()> {
    needs_root!();
    let node = Node::start().await?;
    node.import("busybox").await?;
    // What refuses: the apiserver at once, or the kubelet with a failed pod.
    let cases = [
        ("  runtimeClassName: other\n", "", "RuntimeClass"),
        ("  hostUsers: false\n  hostPID: true\n", "", "HostUsers"),
        ("  priorityClassName: mine\n", "", "mine"),
        ("  securityContext: {seLinuxOptions: {level: s0}}\n", "", "seLinuxOptions"),
        ("  securityContext: {appArmorProfile: {type: Unknown}}\n", "", "appArmorProfile"),
        (
            "  securityContext: {appArmorProfile: {type: Localhost, localhostProfile: not-there}}\n",
            "",
            "AppArmor",
        ),
        ("  securityContext: {sysctls: [{name: kernel.msgmax, value: \"1\"}]}\n", "", "kernel.msgmax"),
        ("  volumes: [{name: v, persistentVolumeClaim: {claimName: c}}]\n", "", "persistentVolumeClaim"),
        ("", "      resources: {limits: {example.org/gpu: 1}}\n", "example.org/gpu"),
        ("", "      volumeDevices: [{name: v, devicePath: /dev/x}]\n", "volumeDevices"),
    ];
    for (n, (spec, container, word)) in cases.into_iter().enumerate() {
        let name = format!("refused-{n}");
        // On the node by name, so that the scheduler's opinion does not come first.
        let spec = format!("  nodeName: {}\n{spec}", crate::pod_fields::node_name(&node).await?);
        let created =
            node.kubectl_with(&["create", "-f", "-"], &pod_with(&name, IDLE, container, &spec)).await?;
        if created.code != 0 {
            ensure!(created.stderr.contains(word), "{word}: {}", created.stderr);
            continue;
        }
        let failed = |pod: &Value| pod["status"]["phase"] == "Failed";
        let pod = node.wait_for(&format!("pod/{name}"), "Failed", failed).await?;
        let message = pod["status"]["message"].as_str().unwrap_or_default();
        let of_all = word == "example.org/gpu" && message.contains("extended resources");
        ensure!(message.contains(word) || of_all, "{word}: {}", pod["status"]);
    }
    node.kubectl(&["delete", "pod", "--all", "--timeout=30s"]).await?.ok()?;
    node.end().await
}

/// The name of the cluster's only node.
pub async fn node_name(node: &Node) -> anyhow::Result<String> {
    let names = node.kubectl(&["get", "nodes", "-o", "jsonpath={.items[*].metadata.name}"]).await?.ok()?;
    Ok(names.trim().to_owned())
}
