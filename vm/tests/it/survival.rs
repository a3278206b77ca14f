//! What a machine's bad days leave: killed daemons and keepers, reboots, an ordered end.

use std::time::Duration;

use anyhow::{Context, ensure};
use cri_api::Cri;
use cri_api::v1::*;
use vm::pods::{Container, Pod, Wanted, unified};
use vm::{GuestOptions, Lab, Node, eventually};

vm::cases![
    killed_daemon_and_keeper_take_no_container_along,
    stop_leaves_no_cgroup,
    limits_still_hold_after_the_keepers_death,
    a_reboot_leaves_images_and_no_pods,
];

/// Writes a number every twentieth of a second; ends with 42 when asked to by a file.
const COUNT: &str = "i=0; while [ ! -e /end ]; do echo $i; i=$((i+1)); usleep 50000; done; exit 42";

/// The numbers in the log: each exactly once, in order; how many.
async fn whole(container: &Container<'_>) -> anyhow::Result<usize> {
    let log = container.log().await?;
    let numbers: Vec<u64> = log.lines().map(str::parse).collect::<Result<_, _>>().context("a broken line")?;
    for pair in numbers.windows(2) {
        ensure!(pair[1] == pair[0] + 1, "{} is followed by {}", pair[0], pair[1]);
    }
    Ok(numbers.len())
}

async fn goes_on(container: &Container<'_>, pid: u32) -> anyhow::Result<()> {
    ensure!(container.pid().await? == pid && container.runs().await?, "{:?}", container.status().await?);
    let so_far = whole(container).await?;
    eventually("the log to go on", || async {
        ensure!(whole(container).await? > so_far + 5, "the log stands still at {so_far} lines");
        Ok(())
    })
    .await?;
    container.exec("true").await.map(|_| ())
}

async fn killed_daemon_and_keeper_take_no_container_along(lab: &Lab) -> anyhow::Result<()> {
    let node = lab.own_node("survival").await?;
    let pod = Pod::start(&node).await?;
    let counter = pod.container(Wanted::script(COUNT)).await?;
    let pid = counter.pid().await?;
    let dead_daemon = node.daemon_pid().await?;
    node.kill(&[dead_daemon]).await?;
    node.launch().await?;
    goes_on(&counter, pid).await.context("after the daemon's death")?;

    let keeper = node.keeper_pid().await?;
    node.kill(&[keeper]).await?;
    eventually("another keeper", || async {
        ensure!(node.keeper_pid().await? != keeper, "the old one");
        Ok(())
    })
    .await?;
    goes_on(&counter, pid).await.context("after the keeper's death")?;

    node.kill(&[node.daemon_pid().await?, node.keeper_pid().await?]).await?;
    node.launch().await?;
    eventually("the container to be known", || async { goes_on(&counter, pid).await })
        .await
        .context("after both deaths")?;
    // How it ends is known if a keeper is its parent; otherwise it is unknown, and never invented.
    node.guest.ok(&format!("touch /proc/{pid}/root/end")).await?;
    let status = counter.ended(Duration::from_secs(180)).await?;
    println!("  after both deaths it ended with {} {:?}", status.exit_code, status.reason);
    ensure!(status.exit_code == 42 || (status.exit_code == 255 && !status.reason.is_empty()), "{status:?}");
    pod.remove().await?;
    node.stop().await
}

async fn limits_still_hold_after_the_keepers_death(lab: &Lab) -> anyhow::Result<()> {
    let node = lab.own_node("orphan").await?;
    let pod = Pod::start(&node).await?;
    let mut wanted = Wanted::script("while [ ! -e /go ]; do sleep 0.1; done; tail /dev/zero");
    wanted.resources = crate::limits::as_a_whole(crate::limits::memory(32, 32));
    let container = pod.container(wanted).await?;
    let pid = container.pid().await?;
    let keeper = node.keeper_pid().await?;
    node.kill(&[keeper]).await?;
    eventually("another keeper", || async {
        ensure!(node.keeper_pid().await? != keeper, "the old one");
        Ok(())
    })
    .await?;
    node.guest.ok(&format!("touch /proc/{pid}/root/go")).await?;
    let status = container.ended(Duration::from_secs(180)).await?;
    ensure!(status.reason == "OOMKilled", "{status:?}");
    pod.remove().await?;
    node.stop().await
}

async fn stop_leaves_no_cgroup(lab: &Lab) -> anyhow::Result<()> {
    let node = lab.own_node("stop").await?;
    for _ in 0..3 {
        let pod = Pod::start(&node).await?;
        let mut wanted =
            Wanted::script("mkdir -p /sys/fs/cgroup/mine 2>/dev/null; sleep 100000 & sleep 100000");
        wanted.resources.unified = unified(&[("pids.max", "100")]);
        pod.container(wanted).await?;
        pod.create(Wanted::script("never started")).await?;
    }
    let before = node.left().await?;
    ensure!(before.lines().filter(|line| line.contains("/sys/fs/cgroup")).count() > 6, "{before}");
    // `stop` looks what is left itself.
    node.stop().await
}

/// Reboots the guest of the node, and starts the node.
async fn reboot(node: &Node) -> anyhow::Result<()> {
    node.guest.reboot().await?;
    node.launch().await
}

async fn a_reboot_leaves_images_and_no_pods(lab: &Lab) -> anyhow::Result<()> {
    // The shared node must not be in a guest that reboots.
    let guest = lab.boot(GuestOptions { cpus: 1, ..lab.options("reboot") }).await?;
    let node = Node::start(&guest, "reboot").await?;
    let pod = Pod::start(&node).await?;
    let container = pod.container(Wanted::script(COUNT)).await?;
    eventually("a few lines", || async {
        ensure!(whole(&container).await? > 5);
        Ok(())
    })
    .await?;
    reboot(&node).await?;
    let cri = node.cri().await?;
    let pods = cri.list_pod_sandbox(ListPodSandboxRequest::default()).await?.items;
    ensure!(pods.iter().all(|pod| pod.state != PodSandboxState::SandboxReady as i32), "{pods:?}");
    let containers = cri.list_containers(ListContainersRequest::default()).await?.containers;
    ensure!(containers.iter().all(|c| c.state != ContainerState::ContainerRunning as i32), "{containers:?}");
    for pod in pods {
        cri.remove_pod_sandbox(RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() }).await?;
    }
    let images = cri.list_images(ListImagesRequest::default()).await?.images;
    ensure!(images.len() == 1, "{images:?}");
    // The same pod again, from the image that is still there.
    let pod = Pod::start(&node).await?;
    let again = pod.container(Wanted::script(COUNT)).await?;
    goes_on(&again, again.pid().await?).await?;
    pod.remove().await?;
    let layers = node.guest.ok(&format!("find {}/data -name '*{}*'", node.root, container.id)).await?;
    ensure!(layers.is_empty(), "left by the container from before the reboot:\n{layers}");
    node.stop().await
}
