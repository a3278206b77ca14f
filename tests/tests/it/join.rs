//! A kubelet of its own: without a cluster, and as the second node of one; addresses of both families.

use anyhow::{Context, ensure};
use serde_json::Value;
use tests::{Node, NodeOptions, eventually};
use tokio::process::Command;

use crate::manifests::{IDLE, pod_with};
use crate::needs_root;

#[tokio::test(flavor = "multi_thread")]
async fn a_kubelet_without_a_cluster() -> anyhow::Result<()> {
    needs_root!();
    let role = vec!["kubelet".into(), "--standalone".into()];
    let node = Node::start_with(NodeOptions { role, ..NodeOptions::default() }).await?;
    node.import("busybox").await?;
    let manifests = node.root.join("etc/manifests");
    std::fs::write(
        manifests.join("objects.yaml"),
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: settings}\ndata: {colour: red}\n---\n\
         apiVersion: v1\nkind: Secret\nmetadata: {name: hidden}\nstringData: {password: s3cret}\n",
    )?;
    let spec = "  volumes: [{name: s, configMap: {name: settings}}]\n";
    let container = "      env: [{name: PASSWORD, valueFrom: {secretKeyRef: {name: hidden, key: password}}}]\n      \
                     volumeMounts: [{name: s, mountPath: /s}]\n      \
                     livenessProbe: {exec: {command: [test, '!', -e, /tmp/ill]}, periodSeconds: 1, failureThreshold: 1}\n";
    std::fs::write(manifests.join("pod.yaml"), pod_with("alone", IDLE, container, spec))?;
    let container = || async {
        let list = node.crictl(&["ps", "--name", "main", "-o", "json"]).await?.json()?;
        let id = list["containers"][0]["id"].as_str().context("no container")?.to_owned();
        let attempt = list["containers"][0]["metadata"]["attempt"].as_u64().unwrap_or(0);
        Ok((id, attempt))
    };
    let (first, _) = eventually("the container", container).await?;
    let seen = eventually("an exec", || async {
        node.crictl(&["exec", &first, "sh", "-c", "echo $PASSWORD; cat /s/colour"]).await?.ok()
    })
    .await?;
    ensure!(seen == "s3cret\nred", "{seen:?}");
    node.crictl(&["exec", &first, "touch", "/tmp/ill"]).await?.ok()?;
    eventually("a second attempt", || async {
        let (id, attempt) = container().await?;
        ensure!(id != first && attempt == 1, "attempt {attempt}");
        Ok(())
    })
    .await?;
    std::fs::remove_file(manifests.join("pod.yaml"))?;
    eventually("the pod to go", || async {
        let pods = node.crictl(&["pods", "-q"]).await?.ok()?;
        ensure!(pods.is_empty(), "{pods}");
        Ok(())
    })
    .await?;
    node.end().await
}

async fn ip(netns: Option<&str>, line: &str) -> anyhow::Result<()> {
    let mut ip = Command::new("ip");
    if let Some(netns) = netns {
        ip.args(["-n", netns]);
    }
    let out = ip.args(line.split(' ')).output().await?;
    ensure!(out.status.success(), "ip {line}: {}", String::from_utf8_lossy(&out.stderr));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_node_joins() -> anyhow::Result<()> {
    needs_root!();
    let first = Node::start().await?;
    first.import("busybox").await?;
    let text = std::fs::read_to_string(first.kubeconfig())?.replace("127.0.0.1", "10.99.0.2");
    let dir = tempfile::tempdir()?;
    let kubeconfig = dir.path().join("kubeconfig");
    std::fs::write(&kubeconfig, text)?;
    let name = |path: &std::path::Path| path.display().to_string();
    let flags = [
        "kubelet",
        "--kubeconfig",
        &name(&kubeconfig),
        "--node-name",
        "second",
        "--node-ip",
        "10.99.0.3",
        "--pod-cidr",
        "10.42.1.0/24",
    ];
    let role = flags.iter().map(|&flag| flag.to_owned()).collect();
    // It starts before the cluster can be reached.
    let mut second = Node::start_with(NodeOptions { role, ..NodeOptions::default() }).await?;
    second.import("busybox").await?;
    // The cluster's authority signs what the second node serves, so that logs and exec reach it.
    second.terminate().await?;
    let (from, to) = (first.root.join("etc/pki"), second.root.join("etc/pki"));
    for file in ["ca.crt", "ca.key"] {
        std::fs::copy(from.join(file), to.join(file))?;
    }
    second.launch().await?;
    ip(Some(&second.netns), "addr del 10.99.0.2/24 dev outside").await?;
    ip(Some(&second.netns), "addr add 10.99.0.3/24 dev outside").await?;
    ip(Some(&first.netns), &format!("link add second type veth peer name first netns {}", second.netns))
        .await?;
    for (node, link) in [(&first, "second"), (&second, "first")] {
        ip(Some(&node.netns), &format!("link set {link} master outside up")).await?;
    }
    eventually("the second node to be Ready", || async {
        let nodes = first.kubectl(&["get", "node", "second", "-o", "json"]).await?.json()?;
        ensure!(tests::condition(&nodes, "Ready") == Some("True"), "{}", nodes["status"]["conditions"]);
        Ok(())
    })
    .await?;
    let spec = "  nodeSelector: {kubernetes.io/hostname: second}\n";
    first.apply(&pod_with("far", &format!("echo here; {IDLE}"), "", spec)).await?;
    let pod = first.wait_ready("far").await?;
    ensure!(pod["spec"]["nodeName"] == "second", "{}", pod["spec"]["nodeName"]);
    ensure!(
        pod["status"]["podIP"].as_str().is_some_and(|ip| ip.starts_with("10.42.1.")),
        "{}",
        pod["status"]
    );
    ensure!(first.kubectl(&["logs", "far"]).await?.ok()? == "here\n");
    ensure!(first.kubectl(&["exec", "far", "--", "echo", "hi"]).await?.ok()? == "hi\n");
    let seen = second.crictl(&["pods", "-q"]).await?.ok()?;
    ensure!(seen.lines().count() == 1, "{seen}");
    // Cut off, the pod goes on; together again, the node is Ready again.
    ip(Some(&first.netns), "link set second down").await?;
    second.kill().await?;
    second.launch().await?;
    ip(Some(&first.netns), "link set second up").await?;
    eventually("an exec after the restart", || async {
        first.kubectl(&["exec", "far", "--", "echo", "hi"]).await?.ok()
    })
    .await?;
    let after = first.kubectl(&["get", "pod", "far", "-o", "json"]).await?.json()?;
    ensure!(after["status"]["containerStatuses"][0]["restartCount"] == 0, "{}", after["status"]);
    first.kubectl(&["delete", "pod", "far", "--timeout=30s"]).await?.ok()?;
    let seen = second.crictl(&["pods", "-q"]).await?.ok()?;
    ensure!(seen.is_empty(), "{seen}");
    second.terminate().await?;
    ip(Some(&first.netns), "link del second").await?;
    second.end().await?;
    first.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_of_both_families() -> anyhow::Result<()> {
    needs_root!();
    let config = "podCIDRs: [10.42.0.0/24, 'fd42::/112']\n".to_owned();
    let node = Node::start_with(NodeOptions { config, ..NodeOptions::default() }).await?;
    node.import("busybox").await?;
    let serve = "mkdir /w; echo page > /w/index.html; exec httpd -f -p '[::]:8080' -h /w";
    let ports = "      ports: [{containerPort: 8080, hostPort: 8097}]\n      readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1}\n";
    node.apply(&pod_with("both", serve, ports, "")).await?;
    let pod = node.wait_ready("both").await?;
    let ips: Vec<&str> = pod["status"]["podIPs"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|entry| entry["ip"].as_str())
        .collect();
    ensure!(ips.len() == 2 && ips[0].starts_with("10.42.0.") && ips[1].starts_with("fd42::"), "{ips:?}");
    for url in [
        format!("http://{}:8080/", ips[0]),
        format!("http://[{}]:8080/", ips[1]),
        "http://127.0.0.1:8097/".to_owned(),
    ] {
        let page = node.curl(&["-g", &url]).await?;
        ensure!(page == "page\n", "{url}: {page}");
    }
    let hosts = node.kubectl(&["exec", "both", "--", "cat", "/etc/hosts"]).await?.ok()?;
    ensure!(hosts.contains(ips[0]) && hosts.contains(ips[1]), "{hosts}");
    let described: Value = node.kubectl(&["get", "nodes", "-o", "json"]).await?.json()?;
    let ranges = &described["items"][0]["spec"]["podCIDRs"];
    eprintln!("podCIDRs of the node: {ranges}");
    let second = pod_with("other", IDLE, "", "");
    node.apply(&second).await?;
    node.wait_ready("other").await?;
    let url = format!("http://[{}]:8080/", ips[1]);
    let page = node.kubectl(&["exec", "other", "--", "wget", "-qO-", &url]).await?.ok()?;
    ensure!(page == "page\n", "{page}");
    node.kubectl(&["delete", "pod", "--all", "--timeout=30s"]).await?.ok()?;
    node.end().await
}
