//! What survives the daemon's death, its upgrade, and the keeper's death.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use rustix::process::Signal;
use serde_json::Value;
use tests::{Node, binary, condition, eventually, eventually_within, signal};

use crate::life::pid_of;
use crate::manifests::{IDLE, pod};
use crate::needs_root;

/// Pods of the tests: name → (pid, restart count).
async fn census(node: &Node) -> anyhow::Result<BTreeMap<String, (u32, u64)>> {
    let list = node.kubectl(&["get", "pods", "-o", "json"]).await?.json()?;
    let mut found = BTreeMap::new();
    for pod in list["items"].as_array().into_iter().flatten() {
        let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        let restarts = pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or(99);
        let pid = pid_of(node, &name).await?;
        found.insert(name, (pid, restarts));
    }
    Ok(found)
}

/// Writes two numbered lines and waits a millisecond, again and again: more than a line per millisecond, without a
/// process of its own for the waiting (nothing is ever written to the fifo).
const COUNTER: &str = "mkfifo /tmp/never; exec 3<>/tmp/never; i=0; \
    while :; do echo $i; echo $((i+1)); i=$((i+2)); read -t 0.001 -u 3 x; done";

/// Ten pods, one of them counting; all running.
async fn ten_pods(node: &Node) -> anyhow::Result<()> {
    node.import("busybox").await?;
    let mut manifests = pod("counter", COUNTER);
    for i in 1..10 {
        manifests.push_str("---\n");
        manifests.push_str(&pod(&format!("idle-{i}"), IDLE));
    }
    node.apply(&manifests).await?;
    node.kubectl(&["wait", "--for=condition=Ready", "pod", "--all", "--timeout=60s"]).await?.ok()?;
    Ok(())
}

/// The numbers in the counter's log: each exactly once, in order.
async fn numbers_are_whole(node: &Node, at_least: usize) -> anyhow::Result<()> {
    let more = || async {
        let log = node.kubectl(&["logs", "counter"]).await?.ok()?;
        let numbers: Vec<u64> =
            log.lines().map(str::parse).collect::<Result<_, _>>().context("a broken line")?;
        ensure!(numbers.len() >= at_least, "only {} lines", numbers.len());
        Ok(numbers)
    };
    let numbers = eventually("enough lines", more).await?;
    for pair in numbers.windows(2) {
        ensure!(pair[1] == pair[0] + 1, "{} is followed by {}", pair[0], pair[1]);
    }
    Ok(())
}

/// Lines per millisecond that the counter has written, by the time stamps in its log.
async fn rate(node: &Node) -> anyhow::Result<f64> {
    let log = node.kubectl(&["logs", "counter", "--timestamps"]).await?.ok()?;
    let at = |line: Option<&str>| -> anyhow::Result<jiff::Timestamp> {
        Ok(line.and_then(|line| line.split(' ').next()).context("no line")?.parse()?)
    };
    let took = at(log.lines().last())?.duration_since(at(log.lines().next())?);
    Ok(log.lines().count() as f64 / (took.as_secs_f64() * 1000.0))
}

async fn lines(node: &Node) -> anyhow::Result<usize> {
    Ok(node.kubectl(&["logs", "counter"]).await?.ok()?.lines().count())
}

/// No Ready condition or restart count moved since `before`.
async fn nothing_moved(node: &Node, before: &Value) -> anyhow::Result<()> {
    let after = node.kubectl(&["get", "pods", "-o", "json"]).await?.json()?;
    let ready = |list: &Value| -> BTreeMap<String, (Value, Value)> {
        let of = |pod: &Value| {
            let conditions = pod["status"]["conditions"].as_array().cloned().unwrap_or_default();
            let ready = conditions.into_iter().find(|c| c["type"] == "Ready").unwrap_or_default();
            (
                pod["metadata"]["name"].as_str().unwrap_or_default().to_owned(),
                (ready["status"].clone(), ready["lastTransitionTime"].clone()),
            )
        };
        list["items"].as_array().into_iter().flatten().map(of).collect()
    };
    ensure!(ready(before) == ready(&after), "readiness moved:\n{:?}\n{:?}", ready(before), ready(&after));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_daemon_is_not_noticed() -> anyhow::Result<()> {
    needs_root!();
    let mut node = Node::start().await?;
    ten_pods(&node).await?;
    // This one ends while nobody watches.
    node.apply(
        &pod("short", "while [ ! -e /tmp/end ]; do sleep 0.05; done; exit 42")
            .replace("spec:\n", "spec:\n  restartPolicy: Never\n"),
    )
    .await?;
    node.wait_ready("short").await?;
    let short = pid_of(&node, "short").await?;
    let (before, ready) = (census(&node).await?, node.kubectl(&["get", "pods", "-o", "json"]).await?.json()?);
    node.kill().await?;
    std::fs::write(format!("/proc/{short}/root/tmp/end"), "")?;
    eventually("the short one to end", || async {
        ensure!(!std::path::Path::new(&format!("/proc/{short}/root/tmp")).exists());
        Ok(())
    })
    .await?;
    let start = Instant::now();
    node.launch().await?;
    eprintln!(
        "kubectl works again {:.0} ms after the start; the counter wrote {:.2} lines a millisecond",
        start.elapsed().as_secs_f64() * 1000.0,
        rate(&node).await?
    );
    let ended = node.wait_for("pod/short", "Failed", |pod| pod["status"]["phase"] == "Failed").await?;
    ensure!(ended["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] == 42, "{ended}");
    node.kubectl(&["delete", "pod", "short"]).await?.ok()?;
    let mut after_expected = before.clone();
    after_expected.remove("short");
    ensure!(census(&node).await? == after_expected, "pids or restarts moved");
    let mut ready = ready;
    if let Some(items) = ready["items"].as_array_mut() {
        items.retain(|pod| pod["metadata"]["name"] != "short");
    }
    nothing_moved(&node, &ready).await?;
    let so_far = lines(&node).await?;
    numbers_are_whole(&node, so_far + 500).await?;
    node.kubectl(&["delete", "pod", "--all", "--timeout=60s"]).await?.ok()?;
    node.end().await
}

/// Another build of the binary: its daemon and the keeper inside it carry another build id.
fn second_build(path: &std::path::Path) -> anyhow::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    const HEX: usize = 16;
    let mut bytes = std::fs::read(binary())?;
    let start = concat!(env!("CARGO_PKG_VERSION"), "+").as_bytes();
    let ids: Vec<usize> = (0..bytes.len() - start.len() - HEX)
        .filter(|at| bytes[*at..].starts_with(start))
        .map(|at| at + start.len())
        .filter(|at| bytes[*at..*at + HEX].iter().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')))
        .collect();
    ensure!(ids.len() >= 2, "the binary has no build ids: {ids:?}");
    for at in ids {
        bytes[at] = if bytes[at] == b'0' { b'1' } else { b'0' };
    }
    std::fs::write(path, bytes)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755))?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upgrade_is_not_noticed() -> anyhow::Result<()> {
    needs_root!();
    let mut node = Node::start().await?;
    ten_pods(&node).await?;
    let (before, ready) = (census(&node).await?, node.kubectl(&["get", "pods", "-o", "json"]).await?.json()?);
    let other = node.root.join("orlop-next");
    second_build(&other)?;
    let keeper = node.keeper_pid()?;
    node.terminate().await?;
    node.use_binary(other);
    node.launch().await?;
    // The keeper became the new build's by executing itself anew: same process, same children.
    ensure!(node.log_text().contains("upgrade the keeper"), "the keeper was not upgraded");
    ensure!(node.keeper_pid()? == keeper, "the keeper was replaced instead of upgraded");
    ensure!(census(&node).await? == before, "pids or restarts moved");
    nothing_moved(&node, &ready).await?;
    let so_far = lines(&node).await?;
    numbers_are_whole(&node, so_far + 500).await?;
    node.kubectl(&["delete", "pod", "--all", "--timeout=60s"]).await?.ok()?;
    node.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_keeper_is_replaced() -> anyhow::Result<()> {
    needs_root!();
    let node = Node::start().await?;
    ten_pods(&node).await?;
    let before = census(&node).await?;
    let old = node.keeper_pid()?;
    signal(old, Signal::KILL)?;
    eventually("a new keeper", || async {
        let new = node.keeper_pid()?;
        ensure!(new != old);
        Ok(())
    })
    .await?;
    ensure!(census(&node).await? == before, "pids or restarts moved");
    // The new keeper writes the logs, runs execs, and sees exits.
    let so_far = lines(&node).await?;
    eventually("more lines", || async {
        ensure!(lines(&node).await? > so_far + 200);
        Ok(())
    })
    .await?;
    node.kubectl(&["exec", "idle-1", "--", "true"]).await?.ok()?;
    signal(pid_of(&node, "idle-2").await?, Signal::KILL)?;
    node.wait_for("pod/idle-2", "restarted", |pod| {
        pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or(0) == 1
    })
    .await?;
    node.kubectl(&["delete", "pod", "--all", "--timeout=60s"]).await?.ok()?;
    node.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn both_killed_at_once() -> anyhow::Result<()> {
    all_run_again(|_| Ok(())).await
}

/// The namespaces of the pods are mounts, which end with the mount namespace that they are in.
#[tokio::test]
async fn both_killed_and_the_namespaces_gone() -> anyhow::Result<()> {
    all_run_again(|node| {
        let pins = node.root.join("run/ns");
        rustix::mount::unmount(&pins, rustix::mount::UnmountFlags::DETACH).context("unmount the namespaces")
    })
    .await
}

/// Ten pods run again after the daemon and the keeper were killed, and `between`.
async fn all_run_again(between: impl FnOnce(&Node) -> anyhow::Result<()>) -> anyhow::Result<()> {
    needs_root!();
    let mut node = Node::start().await?;
    ten_pods(&node).await?;
    let before = census(&node).await?;
    signal(node.keeper_pid()?, Signal::KILL)?;
    node.kill().await?;
    between(&node)?;
    node.launch().await?;
    let patience = Duration::from_secs(90);
    eventually_within("all pods to run", patience, || async {
        let after = census(&node).await?;
        ensure!(after.len() == before.len(), "{after:?}");
        let list = node.kubectl(&["get", "pods", "-o", "json"]).await?.json()?;
        let waiting = |pod: &&Value| condition(pod, "Ready") != Some("True");
        let waiting = list["items"].as_array().into_iter().flatten().find(waiting).cloned();
        ensure!(waiting.is_none(), "{waiting:?}");
        Ok(())
    })
    .await?;
    let so_far = lines(&node).await?;
    eventually("more lines", || async {
        ensure!(lines(&node).await? > so_far + 200);
        Ok(())
    })
    .await?;
    node.kubectl(&["delete", "pod", "--all", "--timeout=60s"]).await?.ok()?;
    node.end().await
}
