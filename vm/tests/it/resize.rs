//! Limits that change while the container runs.

use anyhow::ensure;
use cri_api::v1::*;
use vm::Lab;
use vm::pods::{Pod, Wanted, unified};

use crate::limits::{SPIN, cpu, memory, uses};

vm::cases![a_resize_changes_the_files_and_never_restarts, a_resize_keeps_what_it_does_not_name];

async fn a_resize_changes_the_files_and_never_restarts(lab: &Lab) -> anyhow::Result<()> {
    let node = lab.node().await?;
    let pod = Pod::start(&node).await?;
    let before = LinuxContainerResources { cpu_shares: 512, ..memory(64, 64) };
    let before = LinuxContainerResources { cpu_period: 100_000, cpu_quota: 20_000, ..before };
    let container = pod.container(Wanted::limited(SPIN, before)).await?;
    let (pid, cgroup, old) = (container.pid().await?, container.cgroup().await?, container.status().await?);
    let files = || async {
        let names = "cpu.max cpu.weight memory.max memory.swap.max cpuset.cpus pids.max memory.high";
        node.guest.ok(&format!("cd {cgroup} && for f in {names}; do echo $f $(cat $f); done")).await
    };
    let first = files().await?;
    uses(&node, &cgroup, 200, 3).await?;

    let after = LinuxContainerResources {
        cpu_period: 50_000,
        cpu_quota: 30_000,
        cpu_shares: 2048,
        cpuset_cpus: "0".into(),
        unified: unified(&[("pids.max", "77"), ("memory.high", "125829120")]),
        ..memory(128, 160)
    };
    container.resize(after.clone()).await?;
    let second = files().await?;
    let weight = second.lines().nth(1).unwrap_or_default();
    let want = format!(
        "cpu.max 30000 50000\n{weight}\nmemory.max 134217728\nmemory.swap.max 33554432\ncpuset.cpus 0\n\
         pids.max 77\nmemory.high 125829120"
    );
    ensure!(second == want && first.lines().nth(1) != Some(weight), "before:\n{first}\nafter:\n{second}");
    let seen = uses(&node, &cgroup, 600, 3).await?;
    println!("  resized from 200 to 600 thousandths of a processor: used {seen}");

    let new = container.status().await?;
    ensure!(container.pid().await? == pid && new.started_at == old.started_at, "it was restarted");
    let told = new.resources.and_then(|all| all.linux).unwrap_or_default();
    ensure!(
        told.cpu_quota == after.cpu_quota
            && told.cpu_period == after.cpu_period
            && told.cpu_shares == after.cpu_shares
            && told.memory_limit_in_bytes == after.memory_limit_in_bytes
            && told.cpuset_cpus == after.cpuset_cpus,
        "ContainerStatus says {told:?}"
    );
    // The next daemon knows it, too.
    node.terminate().await?;
    node.launch().await?;
    let told = container.status().await?.resources.and_then(|all| all.linux).unwrap_or_default();
    ensure!(
        told.memory_limit_in_bytes == after.memory_limit_in_bytes,
        "after a restart of the daemon: {told:?}"
    );
    ensure!(files().await? == second, "a restart of the daemon changed the files");
    pod.remove().await
}

async fn a_resize_keeps_what_it_does_not_name(lab: &Lab) -> anyhow::Result<()> {
    let node = lab.node().await?;
    let pod = Pod::start(&node).await?;
    let container = pod.container(Wanted::limited("sleep 100000", memory(64, 64))).await?;
    let cgroup = container.cgroup().await?;
    container.resize(cpu(100_000, 50_000)).await?;
    ensure!(node.guest.number_in(&cgroup, "memory.max").await? == 64 << 20);
    let quota = node.guest.ok(&format!("cat {cgroup}/cpu.max")).await?;
    ensure!(quota == "50000 100000", "{quota}");
    // No limit any more.
    container.resize(cpu(100_000, -1)).await?;
    let quota = node.guest.ok(&format!("cat {cgroup}/cpu.max")).await?;
    ensure!(quota == "max 100000", "{quota}");
    pod.remove().await
}
