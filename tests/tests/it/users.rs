//! Pods with users of their own, and volumes made of images.

use anyhow::ensure;
use tests::Node;

use crate::manifests::{BUSYBOX, IDLE, pod_with};
use crate::needs_root;

#[tokio::test(flavor = "multi_thread")]
async fn pods_have_users_of_their_own() -> anyhow::Result<()> {
    needs_root!();
    let node = Node::start().await?;
    node.import("busybox").await?;
    let volumes = "  hostUsers: false\n  volumes: [{name: v, emptyDir: {}}, {name: m, emptyDir: {medium: Memory}}, \
                   {name: c, configMap: {name: page}}, {name: s, secret: {secretName: hidden}}]\n";
    let mounts = "      volumeMounts: [{name: v, mountPath: /v}, {name: m, mountPath: /m}, {name: c, mountPath: /c}, \
                  {name: s, mountPath: /s}]\n";
    let objects = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: page}\ndata: {key: value}\n---\n\
                   apiVersion: v1\nkind: Secret\nmetadata: {name: hidden}\nstringData: {key: secret}\n"
        .to_owned();
    let pods = ["one", "two"].map(|name| pod_with(name, IDLE, mounts, volumes));
    node.apply(&[objects, pods[0].clone(), pods[1].clone()].join("---\n")).await?;
    let mut hosts = Vec::new();
    for name in ["one", "two"] {
        node.wait_ready(name).await?;
        let sh = async |script: &str| node.kubectl(&["exec", name, "--", "sh", "-c", script]).await?.ok();
        let map = sh("cat /proc/self/uid_map").await?;
        let numbers: Vec<u32> = map.split_ascii_whitespace().map(str::parse).collect::<Result<_, _>>()?;
        ensure!(numbers.len() == 3 && numbers[0] == 0 && numbers[2] == 65_536, "{map}");
        ensure!(numbers[1] >= 65_536 && !hosts.contains(&numbers[1]), "{map}: not its own");
        hosts.push(numbers[1]);
        let script = "id -u; stat -c '%u' /v /m /c /c/key /s/key /etc/hosts /dev/termination-log; cat /c/key /s/key; \
                      touch /v/made /m/made && echo x >> /etc/hosts && echo written; ls /var/run/secrets/kubernetes.io/serviceaccount";
        let said = sh(script).await?;
        let want = "0\n0\n0\n0\n0\n0\n0\n0\nvaluesecretwritten\nca.crt\nnamespace\ntoken\n";
        ensure!(said == want, "{said}");
    }
    let status =
        node.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].status.runtimeHandlers}"]).await?.ok()?;
    ensure!(status.contains("\"userNamespaces\":true"), "{status}");
    node.kubectl(&["delete", "pod", "--all", "--timeout=30s"]).await?.ok()?;
    node.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_can_be_a_volume() -> anyhow::Result<()> {
    needs_root!();
    let node = Node::start().await?;
    node.import("busybox").await?;
    let spec = |more: &str| format!("{more}  volumes: [{{name: i, image: {{reference: {BUSYBOX}}}}}]\n");
    let mounts = "      volumeMounts: [{name: i, mountPath: /i}, {name: i, mountPath: /b, subPath: bin}]\n";
    let pods = [("plain", ""), ("mapped", "  hostUsers: false\n")]
        .map(|(name, more)| pod_with(name, IDLE, mounts, &spec(more)));
    node.apply(&pods.join("---\n")).await?;
    for name in ["plain", "mapped"] {
        node.wait_ready(name).await?;
        let script =
            "test -x /i/bin/sh && test -x /b/sh && stat -c %u /i/bin /b; touch /i/x 2>&1; touch /b/x 2>&1";
        let said = node.kubectl(&["exec", name, "--", "sh", "-c", &format!("{script}; true")]).await?.ok()?;
        ensure!(said.starts_with("0\n0\n") && said.matches("Read-only").count() == 2, "{name}: {said}");
    }
    node.kubectl(&["delete", "pod", "--all", "--timeout=30s"]).await?.ok()?;
    node.end().await
}
