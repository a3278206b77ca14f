//! Limits hold, and say what they did.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use cri_api::v1::*;
use vm::pods::{Container, Pod, Wanted, keyed, unified};
use vm::{Lab, Node, eventually};

vm::cases![
    a_cpu_limit_holds_within_five_percent,
    cpu_weights_share_a_processor,
    a_cpuset_pins,
    a_memory_limit_kills_only_the_container,
    without_group_only_the_greedy_process_dies,
    a_pids_limit_stops_a_fork_bomb,
    io_limits_hold,
    a_swap_limit_holds,
    a_huge_page_limit_holds,
];

/// Two busy loops.
pub const SPIN: &str = "while :; do :; done & while :; do :; done & wait";

/// Processor time that cgroups get, in thousandths of one processor each, over `seconds` of the guest's time.
pub async fn shares_of_cpu(node: &Node, cgroups: &[&str], seconds: u32) -> anyhow::Result<Vec<u64>> {
    // One script, so that each reading is close to its clock. The shell itself does not compete: it sleeps.
    let script = format!(
        "read_all() {{ for g in {groups}; do sed -n 's/usage_usec //p' $g/cpu.stat; echo ${{EPOCHREALTIME/./}}; done; }}; \
         a=($(read_all)); sleep {seconds}; b=($(read_all)); \
         for ((i = 0; i < ${{#a[@]}}; i += 2)); do \
           echo $(( (b[i] - a[i]) * 1000 / (b[i+1] - a[i+1]) )); \
         done",
        groups = cgroups.join(" ")
    );
    let lines = node.guest.ok(&script).await?;
    lines.lines().map(|line| line.parse().with_context(|| format!("read {line:?}"))).collect()
}

/// Whether `seen` is within five per cent of `want`.
pub fn close(seen: u64, want: u64) -> bool {
    seen * 20 <= want * 21 && seen * 20 >= want * 19
}

/// How often a figure is measured before it counts as wrong. A limit that doesn't hold never has the right one; a
/// guest whose processors had to wait for this machine's may have a wrong one once.
const LOOKS: usize = 5;

/// Measures until `measure` gives something that is `right`, a few times at most.
pub async fn settles<T, F>(
    what: &str,
    mut measure: impl FnMut() -> F,
    right: impl Fn(&T) -> bool,
) -> anyhow::Result<T>
where
    T: std::fmt::Debug,
    F: Future<Output = anyhow::Result<T>>,
{
    let mut seen = Vec::new();
    for _ in 0..LOOKS {
        let found = measure().await?;
        if right(&found) {
            return Ok(found);
        }
        seen.push(found);
    }
    bail!("{what}: measured {seen:?}")
}

/// Measures the processor time of a cgroup until it is `want` thousandths of a processor; what was measured.
pub async fn uses(node: &Node, cgroup: &str, want: u64, seconds: u32) -> anyhow::Result<u64> {
    let measure = || async { Ok(shares_of_cpu(node, &[cgroup], seconds).await?[0]) };
    settles(&format!("{want} thousandths of a processor"), measure, |seen| close(*seen, want)).await
}

pub fn cpu(period: i64, quota: i64) -> LinuxContainerResources {
    LinuxContainerResources { cpu_period: period, cpu_quota: quota, ..Default::default() }
}

/// A limit of memory, and of memory and swap together, in MiB.
pub fn memory(mib: i64, with_swap: i64) -> LinuxContainerResources {
    LinuxContainerResources {
        memory_limit_in_bytes: mib << 20,
        memory_swap_limit_in_bytes: with_swap << 20,
        ..Default::default()
    }
}

/// What a kubelet asks for besides: all of a container ends with its greediest process.
pub fn as_a_whole(limit: LinuxContainerResources) -> LinuxContainerResources {
    LinuxContainerResources { unified: unified(&[("memory.oom.group", "1")]), ..limit }
}

async fn a_cpu_limit_holds_within_five_percent(lab: &Lab) -> anyhow::Result<()> {
    let node = lab.node().await?;
    let pod = Pod::start(&node).await?;
    for (period, quota) in [(100_000, 20_000), (100_000, 50_000), (50_000, 60_000)] {
        let container = pod.container(Wanted::limited(SPIN, cpu(period, quota))).await?;
        let cgroup = container.cgroup().await?;
        let want = u64::try_from(quota * 1000 / period)?;
        let seen = uses(&node, &cgroup, want, 4).await?;
        println!("  quota {want} thousandths of a processor: used {seen}");
        container.kill().await?;
    }
    pod.remove().await
}

async fn cpu_weights_share_a_processor(lab: &Lab) -> anyhow::Result<()> {
    let node = lab.node().await?;
    let pod = Pod::start(&node).await?;
    let spin = |shares| {
        let resources =
            LinuxContainerResources { cpu_shares: shares, cpuset_cpus: "1".into(), ..Default::default() };
        pod.container(Wanted::limited("while :; do :; done", resources))
    };
    let (light, heavy) = (spin(512).await?.cgroup().await?, spin(4096).await?.cgroup().await?);
    let weight = async |cgroup: &str| node.guest.number_in(cgroup, "cpu.weight").await;
    let (light_weight, heavy_weight) = (weight(&light).await?, weight(&heavy).await?);
    // A container without a wish has 100, which 1024 shares ask for, too.
    ensure!(light_weight < 100 && heavy_weight > 100, "weights {light_weight} and {heavy_weight}");
    // What they get together is less than a processor when something else runs there; their ratio stays.
    let want = |seen: &[u64]| (seen[0] + seen[1]) * heavy_weight / (light_weight + heavy_weight);
    let measure = || async { shares_of_cpu(&node, &[&light, &heavy], 5).await };
    let what = format!("shares by the weights {light_weight} and {heavy_weight}");
    let seen = settles(&what, measure, |seen| close(seen[1], want(seen))).await?;
    println!("  weights {light_weight} and {heavy_weight}: used {} and {} thousandths", seen[0], seen[1]);
    pod.remove().await
}

async fn a_cpuset_pins(lab: &Lab) -> anyhow::Result<()> {
    let node = lab.node().await?;
    let pod = Pod::start(&node).await?;
    let resources =
        LinuxContainerResources { cpuset_cpus: "1".into(), cpuset_mems: "0".into(), ..Default::default() };
    let pinned = pod.container(Wanted::limited(SPIN, resources)).await?;
    let allowed = pinned.exec("grep Cpus_allowed_list /proc/self/status | cut -f2; nproc").await?;
    ensure!(allowed == "1\n1", "{allowed}");
    let cgroup = pinned.cgroup().await?;
    // The processor on which each last ran, asked many times while they spin.
    let script = format!(
        "for n in $(seq 20); do for p in $(cat {cgroup}/cgroup.procs); do \
           sed 's/.*) //' /proc/$p/stat | cut -d' ' -f37; \
         done; sleep 0.05; done | sort | uniq -c"
    );
    let seen = node.guest.ok(&script).await?;
    ensure!(seen.lines().count() == 1 && seen.trim().ends_with(" 1"), "processors that were used:\n{seen}");
    pod.remove().await
}

async fn a_memory_limit_kills_only_the_container(lab: &Lab) -> anyhow::Result<()> {
    let node = lab.node().await?;
    let pod = Pod::start(&node).await?;
    let other = pod.container(Wanted::script("sleep 100000")).await?;
    let (keeper, daemon) = (node.keeper_pid().await?, node.daemon_pid().await?);
    // The greedy child is not the container's first process: all of it has to go.
    let greedy = Wanted::limited("tail /dev/zero & wait; sleep 100000", as_a_whole(memory(32, 32)));
    let greedy = pod.container(greedy).await?;
    let status = greedy.ended(Duration::from_secs(180)).await?;
    ensure!(status.reason == "OOMKilled" && status.exit_code == 137, "{status:?}");
    ensure!(other.runs().await?, "the other container of the pod must go on");
    other.exec("true").await?;
    node.guest.ok(&format!("kill -0 {keeper} {daemon}")).await.context("the keeper or the daemon died")?;
    let killed = node.guest.ok("dmesg | grep -o 'Killed process [0-9]* ([^)]*)' | sort -u").await?;
    ensure!(killed.lines().all(|line| line.ends_with("(tail)") || line.ends_with("(sh)")), "{killed}");
    pod.remove().await
}

async fn without_group_only_the_greedy_process_dies(lab: &Lab) -> anyhow::Result<()> {
    let node = lab.node().await?;
    let pod = Pod::start(&node).await?;
    let script = "tail /dev/zero; echo the child ended with $?; sleep 100000";
    let container = pod.container(Wanted::limited(script, memory(32, 32))).await?;
    eventually("the child's end", || async {
        let log = container.log().await?;
        ensure!(log == "the child ended with 137" || log.ends_with("\nthe child ended with 137"), "{log}");
        Ok(())
    })
    .await?;
    ensure!(container.runs().await?, "the container ended with its child");
    let events = keyed(&node.guest.ok(&format!("cat {}/memory.events", container.cgroup().await?)).await?);
    ensure!(events.get("oom_kill") == Some(&1), "{events:?}");
    pod.remove().await
}

async fn a_pids_limit_stops_a_fork_bomb(lab: &Lab) -> anyhow::Result<()> {
    let node = lab.node().await?;
    let pod = Pod::start(&node).await?;
    let limit = LinuxContainerResources { unified: unified(&[("pids.max", "32")]), ..Default::default() };
    let bomb = Wanted::limited("bomb() { bomb | bomb & }; bomb; sleep 100000", limit);
    let bomb = pod.container(bomb).await?;
    let cgroup = bomb.cgroup().await?;
    eventually("the limit to be hit", || async {
        let events = keyed(&node.guest.ok(&format!("cat {cgroup}/pids.events")).await?);
        ensure!(events.get("max").is_some_and(|max| *max > 10), "{events:?}");
        Ok(())
    })
    .await?;
    ensure!(node.guest.number_in(&cgroup, "pids.current").await? <= 32);
    // The machine has room for others.
    let other = pod.container(Wanted::script("sleep 100000")).await?;
    other.exec("for n in 1 2 3 4 5; do sh -c true; done").await?;
    bomb.kill().await?;
    pod.remove().await
}

/// How fast a field of `io.stat` grows, per second of the guest's time.
async fn io_rate(container: &Container<'_>, field: &str, seconds: u32) -> anyhow::Result<u64> {
    let file = format!("{}/io.stat", container.cgroup().await?);
    let script = format!(
        "value() {{ sed -n 's/.*{field}=\\([0-9]*\\).*/\\1/p' {file} | head -n 1; }}; \
         until [ \"$(value)\" ] && [ $(value) -gt 0 ]; do sleep 0.1; done; \
         a=$(value); t=${{EPOCHREALTIME/./}}; sleep {seconds}; \
         echo $(( ($(value) - a) * 1000000 / (${{EPOCHREALTIME/./}} - t) ))"
    );
    container.node.guest.ok(&script).await?.parse().context("read the rate")
}

async fn io_limits_hold(lab: &Lab) -> anyhow::Result<()> {
    let node = lab.node().await?;
    let disk = node.guest.ok("cat /sys/block/vda/dev").await?;
    let pod = Pod::start(&node).await?;
    let limited = |limit: &str| LinuxContainerResources {
        unified: unified(&[("io.max", &format!("{disk} {limit}"))]),
        ..Default::default()
    };
    let write = "while :; do dd if=/dev/zero of=/x bs=64k count=256 oflag=direct; done";
    let container = pod.container(Wanted::limited(write, limited("wbps=2097152"))).await?;
    // The kernel gives out its budget in slices of a tenth of a second.
    let near = |seen: &u64| seen * 10 <= 2_097_152 * 11 && seen * 10 >= 2_097_152 * 8;
    let seen = settles("2097152 bytes a second", || io_rate(&container, "wbytes", 4), near).await?;
    println!("  2097152 bytes written a second are allowed: {seen}");
    container.kill().await?;
    let read =
        "dd if=/dev/zero of=/x bs=1M count=4; while :; do dd if=/x of=/dev/null bs=4k iflag=direct; done";
    let container = pod.container(Wanted::limited(read, limited("riops=50"))).await?;
    let near = |seen: &u64| (40..=55).contains(seen);
    let seen = settles("50 reads a second", || io_rate(&container, "rios", 4), near).await?;
    println!("  50 reads a second are allowed: {seen}");
    pod.remove().await
}

async fn a_swap_limit_holds(lab: &Lab) -> anyhow::Result<()> {
    let node = lab.node().await?;
    let pod = Pod::start(&node).await?;
    // 32 MiB of memory and 16 of swap: 40 MiB fit, 60 do not.
    let container = pod.container(Wanted::limited("sleep 100000", memory(32, 48))).await?;
    let cgroup = container.cgroup().await?;
    ensure!(node.guest.number_in(&cgroup, "memory.swap.max").await? == 16 << 20);
    container.exec("dd if=/dev/zero of=/dev/shm/a bs=1M count=40 2>&1").await?;
    let swapped = node.guest.number_in(&cgroup, "memory.swap.current").await?;
    println!("  of 40 MiB with 32 MiB of memory, {} kiB are swapped", swapped >> 10);
    ensure!((7 << 20..=16 << 20).contains(&swapped), "{swapped} bytes are swapped");
    // The kernel kills whoever wants more.
    let more = container.exec("dd if=/dev/zero of=/dev/shm/b bs=1M count=20 2>&1; echo $?").await;
    if let Ok(said) = &more {
        ensure!(said.ends_with("137"), "60 MiB fit into 48: {said}");
    }
    let read = async |file: &str| node.guest.ok(&format!("cat {cgroup}/{file}")).await;
    let (memory, swap) = (keyed(&read("memory.events").await?), keyed(&read("memory.swap.events").await?));
    ensure!(memory.get("oom_kill").is_some_and(|kills| *kills >= 1), "{memory:?}");
    ensure!(swap.get("max").is_some_and(|hits| *hits >= 1), "{swap:?}");
    pod.remove().await
}

async fn a_huge_page_limit_holds(lab: &Lab) -> anyhow::Result<()> {
    let node = lab.node().await?;
    node.guest
        .ok("echo 16 > /proc/sys/vm/nr_hugepages && mkdir -p /huge && mount -t hugetlbfs huge /huge")
        .await?;
    let pod = Pod::start(&node).await?;
    let limit = HugepageLimit { page_size: "2MB".into(), limit: 4 << 20 };
    let mut wanted = Wanted::script("sleep 100000");
    wanted.resources.hugepage_limits = vec![limit];
    wanted.config.mounts =
        vec![Mount { container_path: "/huge".into(), host_path: "/huge".into(), ..Default::default() }];
    let container = pod.container(wanted).await?;
    let cgroup = container.cgroup().await?;
    ensure!(node.guest.number_in(&cgroup, "hugetlb.2MB.max").await? == 4 << 20);
    container.exec("fallocate -l 4194304 /huge/fits").await?;
    ensure!(node.guest.number_in(&cgroup, "hugetlb.2MB.current").await? == 4 << 20);
    let more = container.exec("fallocate -l 2097152 /huge/more").await;
    ensure!(more.is_err(), "a third page was given");
    pod.remove().await?;
    node.guest.ok("umount /huge && echo 0 > /proc/sys/vm/nr_hugepages").await.map(|_| ())
}
