//! Five hundred pods on one node.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cri_api::v1::*;
use futures::{StreamExt, TryStreamExt, stream};
use tests::leaks::in_kernel;
use tests::{Node, NodeOptions, eventually, eventually_within};

use crate::pods::*;

const PODS: usize = 500;
/// So many have the node's network.
const IN_NODE_NETWORK: usize = 50;
/// Calls at a time.
const AT_ONCE: usize = 8;

/// Memory of a process in KiB: resident, and its share of what it shares.
fn memory(pid: u32) -> anyhow::Result<(u64, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup"))?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|line| line.split_whitespace().next()?.parse().ok())
            .with_context(|| format!("no {name}"))
    };
    Ok((field("Rss:")?, field("Pss:")?))
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[tokio::test(flavor = "multi_thread")]
async fn five_hundred_pods() -> anyhow::Result<()> {
    if !tests::can_run() {
        return Ok(());
    }
    // The default range holds a /24's 253 pods.
    let config = "podCIDRs: [10.42.0.0/22]\n".to_owned();
    let options = NodeOptions { role: vec!["cri".into()], config, ..NodeOptions::default() };
    let node = Node::start_with(options).await?;
    node.import("busybox").await?;
    let cri = client(&node).await?;
    let (daemon, keeper) = (node.daemon_pid(), node.keeper_pid()?);
    let before = (memory(daemon)?, memory(keeper)?);
    let first = run_pod(&cri, &pod(&node, "first", NamespaceMode::Pod, None)).await?;
    let with_one = in_kernel(&node.root, &node.netns).await;
    stop_pod(&cri, &first).await?;
    remove_pod(&cri, &first).await?;
    // The node's own things come with the first pod, whose own go.
    let empty = eventually("the first pod to be gone", || async {
        let now = in_kernel(&node.root, &node.netns).await;
        let ports = now.iter().filter(|what| what.starts_with("port ")).count();
        ensure!(ports == 0 && now.len() < with_one.len(), "{now:?}");
        Ok(now)
    })
    .await?;
    let begin = Instant::now();
    let (made, config_of) = (&cri, |number: usize| {
        let network = if number < IN_NODE_NETWORK { NamespaceMode::Node } else { NamespaceMode::Pod };
        pod(&node, &format!("pod-{number}"), network, None)
    });
    let pods: Vec<String> = stream::iter(0..PODS)
        .map(|number| {
            let config = config_of(number);
            async move {
                let id = run_pod(made, &config).await.with_context(|| format!("pod {number}"))?;
                let container = create(made, &id, &config).await?;
                start(made, &container).await?;
                anyhow::Ok(id)
            }
        })
        .buffer_unordered(AT_ONCE)
        .try_collect()
        .await?;
    let started = begin.elapsed();
    let (rows, all) = (containers(&cri).await?, sandboxes(&cri).await?);
    let running = ContainerState::ContainerRunning as i32;
    ensure!(rows.len() == PODS && rows.iter().all(|row| row.state == running), "{} run", rows.len());
    let ready = PodSandboxState::SandboxReady as i32;
    ensure!(all.len() == PODS && all.iter().all(|row| row.state == ready), "{} are ready", all.len());
    let addresses = addresses(&cri, &pods).await?;
    ensure!(addresses.len() == PODS - IN_NODE_NETWORK, "{} addresses are different", addresses.len());
    let (mut of_containers, mut of_sandboxes) = (Vec::new(), Vec::new());
    for _ in 0..100 {
        let at = Instant::now();
        containers(&cri).await?;
        of_containers.push(at.elapsed());
        let at = Instant::now();
        sandboxes(&cri).await?;
        of_sandboxes.push(at.elapsed());
    }
    let after = (memory(daemon)?, memory(keeper)?);
    let begin = Instant::now();
    stream::iter(pods)
        .map(|id| async move {
            stop_pod(made, &id).await?;
            remove_pod(made, &id).await
        })
        .buffer_unordered(AT_ONCE)
        .try_collect::<()>()
        .await?;
    let removed = begin.elapsed();
    ensure!(containers(&cri).await?.is_empty() && sandboxes(&cri).await?.is_empty(), "still listed");
    eventually_within("nothing to be left", Duration::from_secs(60), || async {
        let mut left = left(&node);
        left.extend(in_kernel(&node.root, &node.netns).await.difference(&empty).cloned());
        ensure!(left.is_empty(), "{} are left, e.g. {:?}", left.len(), left.first());
        Ok(())
    })
    .await?;
    println!(
        "{PODS} pods: started in {:.1} s, removed in {:.1} s",
        started.as_secs_f64(),
        removed.as_secs_f64()
    );
    println!(
        "{PODS} pods: p50 of ListContainers {:.2} ms, of ListPodSandbox {:.2} ms",
        median(of_containers).as_secs_f64() * 1e3,
        median(of_sandboxes).as_secs_f64() * 1e3
    );
    for (name, before, after) in [("daemon", before.0, after.0), ("keeper", before.1, after.1)] {
        println!(
            "{PODS} pods: {name}: RSS {} KiB, PSS {} KiB; per pod {:.1} KiB of PSS",
            after.0,
            after.1,
            (after.1 as f64 - before.1 as f64) / PODS as f64
        );
    }
    node.end().await
}

/// The addresses of all pods that have one of their own.
async fn addresses(
    cri: &cri_api::GrpcClient,
    pods: &[String],
) -> anyhow::Result<std::collections::BTreeSet<String>> {
    use cri_api::Cri;
    let mut found = std::collections::BTreeSet::new();
    for id in pods {
        let request = PodSandboxStatusRequest { pod_sandbox_id: id.clone(), verbose: false };
        let status = cri.pod_sandbox_status(request).await?.status.context("no status")?;
        found.extend(status.network.map(|network| network.ip).filter(|ip| !ip.is_empty()));
    }
    Ok(found)
}
