//! Limits hold, and say what they did.

use std::time::Duration;

use anyhow::ensure;
use cri_api::v1::*;
use vm::Lab;
use vm::pods::{Container, Pod, Wanted, keyed, unified};

vm::cases![
    a_cpu_limit_holds_within_five_percent,
    a_memory_limit_kills_only_the_container,
    a_pids_limit_stops_a_fork_bomb
];

/// Busy loops, as many as there are words after it.
const SPIN: &str = "while :; do :; done & while :; do :; done & wait";

/// Processor time that a container gets, in thousandths of one processor, over `seconds` of the guest's time.
async fn share_of_cpu(container: &Container<'_>, seconds: u32) -> anyhow::Result<u64> {
    let cgroup = container.cgroup().await?;
    // One script, so that both ends are read close to the clock. bash itself does not compete: it sleeps.
    let script = format!(
        "usage() {{ sed -n 's/usage_usec //p' {cgroup}/cpu.stat; }}; now() {{ echo ${{EPOCHREALTIME/./}}; }}; \
         u=$(usage); t=$(now); sleep {seconds}; echo $(( ($(usage) - u) * 1000 / ($(now) - t) ))"
    );
    Ok(container.node.guest.ok(&script).await?.parse()?)
}

fn cpu(period: i64, quota: i64) -> LinuxContainerResources {
    LinuxContainerResources { cpu_period: period, cpu_quota: quota, ..Default::default() }
}

async fn a_cpu_limit_holds_within_five_percent(lab: &Lab) -> anyhow::Result<()> {
    let node = lab.node("cpu").await?;
    let pod = Pod::start(&node).await?;
    for (period, quota) in [(100_000, 20_000), (100_000, 50_000), (50_000, 60_000)] {
        let container = pod.container(Wanted::limited(SPIN, cpu(period, quota))).await?;
        let seen = share_of_cpu(&container, 6).await?;
        let want = u64::try_from(quota * 1000 / period)?;
        println!("  quota {want} thousandths of a processor: used {seen}");
        ensure!(seen * 20 <= want * 21 && seen * 20 >= want * 19, "used {seen}, the quota is {want}");
        container.kill().await?;
    }
    pod.remove().await?;
    node.stop().await
}

async fn a_memory_limit_kills_only_the_container(lab: &Lab) -> anyhow::Result<()> {
    let node = lab.node("oom").await?;
    let pod = Pod::start(&node).await?;
    let other = pod.container(Wanted::script("sleep 100000")).await?;
    // The limit of memory and swap together: no swap.
    let limit = LinuxContainerResources {
        memory_limit_in_bytes: 32 << 20,
        memory_swap_limit_in_bytes: 32 << 20,
        unified: unified(&[("memory.oom.group", "1")]),
        ..Default::default()
    };
    // The greedy child is not the container's first process: all of it has to go, as a kubelet asks for it.
    let greedy = pod.container(Wanted::limited("tail /dev/zero & wait; sleep 100000", limit)).await?;
    let status = greedy.ended(Duration::from_secs(60)).await?;
    ensure!(status.reason == "OOMKilled" && status.exit_code == 137, "{status:?}");
    ensure!(other.runs().await?, "the other container of the pod must go on");
    other.exec("true").await?;
    ensure!(
        node.guest.run(&format!("kill -0 {}", node.keeper_pid().await?)).await?.code == 0,
        "the keeper died"
    );
    pod.remove().await?;
    node.stop().await
}

async fn a_pids_limit_stops_a_fork_bomb(lab: &Lab) -> anyhow::Result<()> {
    let node = lab.node("pids").await?;
    let pod = Pod::start(&node).await?;
    let limit = LinuxContainerResources { unified: unified(&[("pids.max", "32")]), ..Default::default() };
    let bomb = pod.container(Wanted::limited("bomb() { bomb | bomb & }; bomb; sleep 100000", limit)).await?;
    let cgroup = bomb.cgroup().await?;
    vm::eventually("the limit to be hit", || async {
        let events = keyed(&node.guest.ok(&format!("cat {cgroup}/pids.events")).await?);
        ensure!(events.get("max").is_some_and(|max| *max > 10), "{events:?}");
        Ok(())
    })
    .await?;
    ensure!(node.guest.number(&format!("{cgroup}/pids.current")).await? <= 32);
    // The machine has room for others.
    let other = pod.container(Wanted::script("sleep 100000")).await?;
    other.exec("for n in 1 2 3 4 5; do sh -c true; done").await?;
    bomb.kill().await?;
    pod.remove().await?;
    node.stop().await
}
