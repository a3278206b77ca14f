//! Statistics are the kernel's own figures. A container's cgroup is frozen first: then nothing changes between
//! our reading and the runtime's.

use std::time::Duration;

use anyhow::{Context, ensure};
use cri_api::Cri;
use cri_api::v1::*;
use vm::pods::{Container, Pod, Wanted, keyed};
use vm::{Lab, eventually, eventually_within};

use crate::limits::memory;

vm::cases![
    stats_agree_with_the_kernels_files,
    pressure_is_reported,
    a_frozen_container_is_known_and_can_be_stopped,
    a_pods_stats_are_the_sum_and_the_networks,
];

async fn freeze(container: &Container<'_>) -> anyhow::Result<String> {
    let cgroup = container.cgroup().await?;
    let script = format!(
        "echo 1 > {cgroup}/cgroup.freeze; for n in $(seq 100); do \
         grep -q 'frozen 1' {cgroup}/cgroup.events && exit 0; sleep 0.05; done; exit 1"
    );
    container.node.guest.ok(&script).await.context("freeze the container")?;
    Ok(cgroup)
}

fn number(value: &Option<UInt64Value>) -> u64 {
    value.as_ref().map_or(u64::MAX, |value| value.value)
}

async fn stats_agree_with_the_kernels_files(lab: &Lab) -> anyhow::Result<()> {
    let node = lab.node().await?;
    let pod = Pod::start(&node).await?;
    // Anonymous memory, shared memory, page cache, swap, files of its own, and a bit of work.
    let script = "dd if=/dev/zero of=/dev/shm/a bs=1M count=40; dd if=/dev/zero of=/file bs=1M count=3; \
                  mkdir /dir; touch /dir/1 /dir/2; i=0; while [ $i -lt 3000 ]; do i=$((i+1)); done; \
                  echo done; sleep 100000";
    let container = pod.container(Wanted::limited(script, memory(32, 64))).await?;
    eventually("the work to be done", || async {
        let log = container.log().await?;
        ensure!(log.ends_with("done"), "{log}");
        Ok(())
    })
    .await?;
    // Dirty pages become clean ones on the way.
    node.guest.ok("sync").await?;
    let cgroup = freeze(&container).await?;
    let agree = || async {
        let read = async |file: &str| node.guest.ok(&format!("cat {cgroup}/{file}")).await;
        let stats = container.stats().await?;
        let (cpu, used) = (stats.cpu.context("no cpu")?, stats.memory.context("no memory")?);
        let files = keyed(&read("memory.stat").await?);
        let current = node.guest.number_in(&cgroup, "memory.current").await?;
        let swapped = node.guest.number_in(&cgroup, "memory.swap.current").await?;
        let limit = node.guest.number_in(&cgroup, "memory.swap.max").await?;
        // The guest has more swap than this container's limit.
        let left = limit - swapped;
        let time = keyed(&read("cpu.stat").await?)["usage_usec"] * 1000;
        let working = current - files["inactive_file"];
        let pairs = [
            ("usage_core_nano_seconds", number(&cpu.usage_core_nano_seconds), time),
            ("usage_bytes", number(&used.usage_bytes), current),
            ("working_set_bytes", number(&used.working_set_bytes), working),
            ("available_bytes", number(&used.available_bytes), (32 << 20) - working),
            ("rss_bytes", number(&used.rss_bytes), files["anon"]),
            ("page_faults", number(&used.page_faults), files["pgfault"]),
            ("major_page_faults", number(&used.major_page_faults), files["pgmajfault"]),
            (
                "swap_available_bytes",
                stats.swap.map_or(u64::MAX, |swap| number(&swap.swap_available_bytes)),
                left,
            ),
            ("swap_usage_bytes", stats.swap.map_or(u64::MAX, |swap| number(&swap.swap_usage_bytes)), swapped),
        ];
        for (name, told, file) in pairs {
            ensure!(told == file, "{name}: told {told}, the kernel says {file}; all: {pairs:?}");
        }
        ensure!(time > 0 && swapped > 0 && files["anon"] > 0, "nothing was measured: {pairs:?}");
        Ok(())
    };
    // The kernel itself may still reclaim a page of a frozen container, or add up its counters (every 2 s).
    eventually_within("stats and files to agree", Duration::from_secs(180), agree).await?;

    let find = format!("find {}/data -type d -path '*/{}/upper'", node.root, container.id);
    let upper = node.guest.ok(&find).await?;
    ensure!(upper.lines().count() == 1, "the writable layer is not found: {upper:?}");
    // The layer's own directory is not the container's.
    let count = format!(
        "find '{upper}' -mindepth 1 -printf '%b\\n' | awk '{{ b += $1 * 512 }} END {{ print b; print NR }}'"
    );
    let disk = node.guest.ok(&count).await?;
    let (bytes, inodes) = disk.split_once('\n').context("read the sums")?;
    eventually("the writable layer to be measured", || async {
        let layer = container.stats().await?.writable_layer.context("no writable layer")?;
        let (told, told_inodes) = (number(&layer.used_bytes), number(&layer.inodes_used));
        ensure!(
            told.to_string() == bytes && told_inodes.to_string() == inodes,
            "told {told} bytes, {told_inodes} inodes; there are {bytes}, {inodes}"
        );
        Ok(())
    })
    .await?;
    pod.remove().await
}

fn some(psi: Option<PsiStats>) -> Option<u64> {
    psi?.some.map(|some| some.total)
}

async fn pressure_is_reported(lab: &Lab) -> anyhow::Result<()> {
    let node = lab.node().await?;
    let disk = node.guest.ok("cat /sys/block/vda/dev").await?;
    let pod = Pod::start(&node).await?;
    // Too little of everything: half a processor for more than that, a slow disk, little memory for much of it.
    let script = "while :; do :; done & \
                  while :; do dd if=/dev/zero of=/dev/shm/a bs=256k count=24; done & \
                  while :; do dd if=/dev/zero of=/x bs=64k count=16 oflag=direct; done";
    let mut resources = memory(16, 32);
    (resources.cpu_period, resources.cpu_quota) = (100_000, 50_000);
    resources.unified =
        vm::pods::unified(&[("io.max", &format!("{disk} wbps=1048576")), ("memory.high", "1048576")]);
    let container = pod.container(Wanted::limited(script, resources)).await?;
    let cgroup = container.cgroup().await?;
    eventually("pressure on all three", || async {
        // Totals only grow: ours before, the runtime's, ours after.
        let totals = async || -> anyhow::Result<Vec<u64>> {
            let script =
                format!("cd {cgroup} && sed -n 's/some.*total=//p' cpu.pressure memory.pressure io.pressure");
            let text = node.guest.ok(&script).await?;
            text.lines().map(|line| line.parse().context("read a total")).collect()
        };
        let before = totals().await?;
        let stats = container.stats().await?;
        let after = totals().await?;
        let told = [
            stats.cpu.and_then(|cpu| some(cpu.psi)),
            stats.memory.and_then(|memory| some(memory.psi)),
            stats.io.and_then(|io| some(io.psi)),
        ];
        for (index, told) in told.into_iter().enumerate() {
            let told = told.context("a pressure is not reported")?;
            ensure!((before[index]..=after[index]).contains(&told), "{before:?} {told} {after:?}");
            ensure!(told > 0, "no pressure: cpu, memory and io had {after:?}");
        }
        Ok(())
    })
    .await?;
    pod.remove().await
}

async fn a_frozen_container_is_known_and_can_be_stopped(lab: &Lab) -> anyhow::Result<()> {
    let node = lab.node().await?;
    let pod = Pod::start(&node).await?;
    let container = pod.container(Wanted::script("trap 'exit 3' TERM; while :; do sleep 0.1; done")).await?;
    let info = async || -> anyhow::Result<serde_json::Value> {
        let request = ContainerStatusRequest { container_id: container.id.clone(), verbose: true };
        let info = node.cri().await?.container_status(request).await?.info;
        serde_json::from_str(info.get("info").context("no verbose info")?).context("read the verbose info")
    };
    ensure!(info().await?["frozen"] == false, "{}", info().await?);
    freeze(&container).await?;
    ensure!(info().await?["frozen"] == true, "{}", info().await?);
    // A frozen container is one that runs: a kubelet must not start it anew.
    ensure!(container.runs().await?, "{:?}", container.status().await?);
    // It can't follow SIGTERM. After the grace, SIGKILL ends also a frozen one.
    let request = StopContainerRequest { container_id: container.id.clone(), timeout: 1 };
    node.cri().await?.stop_container(request).await?;
    let status = container.ended(Duration::from_secs(180)).await?;
    ensure!(status.exit_code == 137, "{status:?}");
    pod.remove().await
}

async fn a_pods_stats_are_the_sum_and_the_networks(lab: &Lab) -> anyhow::Result<()> {
    let node = lab.node().await?;
    let pod = Pod::start(&node).await?;
    let one = pod.container(Wanted::script("sleep 100000 & sleep 100000 & wait")).await?;
    let two = pod.container(Wanted::script("sleep 100000")).await?;
    one.exec("ping -c 3 -i 0.2 $(ip route | sed -n 's/default via \\([0-9.]*\\).*/\\1/p') > /dev/null")
        .await?;
    freeze(&one).await?;
    freeze(&two).await?;
    let request = PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
    let cri = node.cri().await?;
    let pid = two.pid().await?;
    eventually("stats and files to agree", || async {
        let stats = cri.pod_sandbox_stats(request.clone()).await?.stats.and_then(|stats| stats.linux);
        let stats = stats.context("no stats")?;
        let processes = stats.process.as_ref().map_or(0, |process| number(&process.process_count));
        ensure!(processes == 4, "{processes} processes");
        ensure!(stats.containers.len() == 2, "{} containers", stats.containers.len());
        let net = stats.network.and_then(|network| network.default_interface).context("no interface")?;
        let script = format!(
            "nsenter -t {pid} -n sh -c 'sed -n \"s/ *{}: *//p\" /proc/net/dev' | awk '{{ print $1, $9 }}'",
            net.name
        );
        let seen = node.guest.ok(&script).await?;
        let told = format!("{} {}", number(&net.rx_bytes), number(&net.tx_bytes));
        ensure!(told == seen && number(&net.tx_bytes) > 200, "told {told}, the kernel says {seen}");
        Ok(())
    })
    .await?;
    pod.remove().await
}
