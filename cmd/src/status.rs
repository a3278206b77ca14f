//! `orlop status`: is the node ready, and what runs on it.

use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams};
use kube::{Client, ResourceExt};

use crate::flags::StatusFlags;
use crate::paths::Paths;

/// How often the node is looked at while it isn't Ready.
const LOOK: Duration = Duration::from_millis(100);

/// Prints the cluster's nodes and pods; with `--wait-ready`, waits until every node is Ready.
pub async fn run(paths: &Paths, flags: &StatusFlags) -> anyhow::Result<()> {
    let kubeconfig = flags.kubeconfig.clone().unwrap_or_else(|| paths.admin_kubeconfig());
    let deadline = Instant::now() + Duration::from_secs(flags.timeout);
    loop {
        match look(&kubeconfig).await {
            Ok((_, nodes)) if flags.wait_ready && nodes.iter().all(ready) && !nodes.is_empty() => {
                return Ok(());
            }
            Ok((client, nodes)) if !flags.wait_ready => return print(&client, &nodes).await,
            Ok(_) if Instant::now() >= deadline => bail!("the node is not Ready yet"),
            Err(err) if !flags.wait_ready || Instant::now() >= deadline => return Err(err),
            _ => tokio::time::sleep(LOOK).await,
        }
    }
}

async fn look(kubeconfig: &std::path::Path) -> anyhow::Result<(Client, Vec<Node>)> {
    let client = client::connect(kubeconfig).await?;
    let nodes =
        Api::<Node>::all(client.clone()).list(&ListParams::default()).await.context("list the nodes")?;
    Ok((client, nodes.items))
}

fn ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

async fn print(client: &Client, nodes: &[Node]) -> anyhow::Result<()> {
    for node in nodes {
        println!("node {}: {}", node.name_any(), if ready(node) { "Ready" } else { "not Ready" });
    }
    let pods = Api::<Pod>::all(client.clone()).list(&ListParams::default()).await.context("list the pods")?;
    if !pods.items.is_empty() {
        println!("{:<16} {:<40} {:<10} {:<8} IP", "NAMESPACE", "POD", "PHASE", "RESTARTS");
    }
    for pod in &pods.items {
        let status = pod.status.clone().unwrap_or_default();
        let restarts: i32 = status.container_statuses.iter().flatten().map(|c| c.restart_count).sum();
        let (phase, ip) = (status.phase.unwrap_or_default(), status.pod_ip.unwrap_or_default());
        println!(
            "{:<16} {:<40} {phase:<10} {restarts:<8} {ip}",
            pod.namespace().unwrap_or_default(),
            pod.name_any()
        );
    }
    Ok(())
}
