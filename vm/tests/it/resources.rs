//! What the kubelet writes for all pods together, for each pod and each container, on full cgroup v2.

use anyhow::{Context, ensure};
use cri_api::v1::Device;
use vm::pods::{Container, Pod, Wanted, unified};
use vm::{Lab, Node, eventually};

vm::cases![
    a_node_limits_and_protects_its_pods,
    limits_of_devices_that_are_not_there_are_told,
    a_block_device_is_used_as_allowed,
];

const MIB: u64 = 1 << 20;

const CONFIG: &str = "\
bridge: resources
podCIDRs: [10.48.0.0/24]
podPidsLimit: 60
systemReserved: {memory: 200Mi, pid: 1000}
kubeReserved: {memory: 56Mi}
memoryThrottlingFactor: 0.5
memoryReservationPolicy: TieredReservation
memorySwap: {swapBehavior: LimitedSwap}
";

/// A pod named as it is labelled, with its container's resources and mounts.
fn pod(name: &str, container: &str, volumes: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, labels: {{app: {name}}}}}\nspec:\n  \
         terminationGracePeriodSeconds: 0\n{volumes}  containers:\n    - name: main\n      \
         image: localhost/busybox:1\n      command: [sleep, '100000']\n{container}"
    )
}

async fn a_node_limits_and_protects_its_pods(lab: &Lab) -> anyhow::Result<()> {
    let guest = lab.plain().await?;
    guest.ok("echo 16 > /proc/sys/vm/nr_hugepages").await?;
    let node = Node::start_as(&guest, "/nodes/resources", "server", CONFIG).await?;
    node.wait_ready().await?;
    let sure = pod(
        "sure",
        "      resources: {limits: {cpu: 100m, memory: 64Mi, hugepages-2Mi: 4Mi}}\n      \
         volumeMounts: [{name: pages, mountPath: /pages}]\n",
        "  volumes: [{name: pages, emptyDir: {medium: HugePages}}]\n",
    );
    let some = pod("some", "      resources: {requests: {memory: 32Mi}, limits: {memory: 64Mi}}\n", "");
    // One that is limited as a whole, its container not at all.
    let whole = pod("whole", "", "  resources: {limits: {cpu: 200m, memory: 96Mi}}\n");
    let manifest = [sure, some, whole, pod("any", "", "")].join("---\n");
    guest.write("/nodes/resources/pods.yaml", manifest.as_bytes()).await?;
    node.orlop("apply -f /nodes/resources/pods.yaml").await?.ok()?;
    let container = async |app: &str| {
        let (_, found) = eventually("the container to run", || async {
            node.running(app).await?.into_iter().next().context("no container runs")
        })
        .await?;
        anyhow::Ok(Container { node: &node, id: found.id.clone() })
    };
    let above = |path: &str| path.rsplit_once('/').map(|(above, _)| above.to_owned()).unwrap_or_default();
    // All at once: each command of a guest takes its time.
    let are = async |wants: &[(&str, &str, u64)]| {
        let files: Vec<String> = wants.iter().map(|(group, file, _)| format!("{group}/{file}")).collect();
        let seen = guest.ok(&format!("cat {}", files.join(" "))).await?;
        for ((file, (_, _, want)), seen) in files.iter().zip(wants).zip(seen.lines()) {
            ensure!(seen == want.to_string(), "{file} is {seen}, not {want}");
        }
        ensure!(seen.lines().count() == wants.len(), "{seen}");
        anyhow::Ok(())
    };

    // All pods together: what the node doesn't keep for itself.
    let (sure, some, any) = (container("sure").await?, container("some").await?, container("any").await?);
    let whole_pod = above(&container("whole").await?.cgroup().await?);
    let any_group = any.cgroup().await?;
    let kubepods = above(&above(&above(&any_group)));
    ensure!(kubepods.ends_with("/kubepods"), "{any_group}");
    let facts = "sed -nE 's/(MemTotal|SwapTotal): *([0-9]*) kB/\\2/p' /proc/meminfo; \
                 cat /proc/sys/kernel/pid_max /proc/sys/kernel/threads-max | sort -n | head -n 1";
    let facts = guest.ok(facts).await?;
    let facts: Vec<u64> = facts.lines().map(str::parse).collect::<Result<_, _>>()?;
    let [total, swap, most] = facts[..] else { anyhow::bail!("not three numbers: {facts:?}") };
    let (total, swap) = (total << 10, swap << 10);
    let (sure_group, some_group) = (sure.cgroup().await?, some.cgroup().await?);
    let (base, sure_pod, some_pod) = (above(&kubepods), above(&sure_group), above(&some_group));
    let burstable = format!("{kubepods}/burstable");
    are(&[
        (&kubepods, "memory.max", (total - 256 * MIB) / 4096 * 4096),
        (&kubepods, "pids.max", most - 1000),
        (&kubepods, "hugetlb.2MB.max", 32 * MIB),
        // What they request is protected, from the node's own cgroup down.
        (&base, "memory.min", 160 * MIB),
        (&kubepods, "memory.min", 160 * MIB),
        (&base, "memory.low", 32 * MIB),
        (&kubepods, "memory.low", 32 * MIB),
        (&burstable, "memory.low", 32 * MIB),
        // A guaranteed pod.
        (&sure_pod, "memory.min", 64 * MIB),
        (&sure_group, "memory.min", 64 * MIB),
        (&sure_pod, "hugetlb.2MB.max", 4 * MIB),
        (&sure_group, "hugetlb.2MB.max", 4 * MIB),
        (&sure_group, "memory.swap.max", 0),
        // A pod that is limited as a whole.
        (&whole_pod, "memory.max", 96 * MIB),
        (&whole_pod, "memory.min", 96 * MIB),
        // A burstable one: protected softly, slowed down half-way to its limit, with its part of the swap.
        (&some_pod, "memory.low", 32 * MIB),
        (&some_group, "memory.low", 32 * MIB),
        (&some_group, "memory.high", 48 * MIB),
        (&some_group, "memory.max", 64 * MIB),
        (&some_group, "memory.swap.max", 32 * MIB * swap / total / 4096 * 4096),
        // Best effort: no huge pages, no swap, and no more processes than a pod may have.
        (&any_group, "hugetlb.2MB.max", 0),
        (&any_group, "memory.swap.max", 0),
        (&above(&any_group), "pids.max", 60),
    ])
    .await?;
    let rest = guest.ok(&format!("cat {sure_group}/memory.high {whole_pod}/cpu.max")).await?;
    ensure!(rest == "max\n20000 100000", "{rest}");

    sure.exec("fallocate -l 4194304 /pages/fits").await?;
    are(&[(&sure_group, "hugetlb.2MB.current", 4 * MIB)]).await?;
    ensure!(sure.exec("fallocate -l 2097152 /pages/more").await.is_err(), "a third page was given");
    let score = async |container: &Container<'_>| {
        guest.ok(&format!("cat /proc/{}/oom_score_adj", container.pid().await?)).await
    };
    ensure!(score(&sure).await? == "-997" && score(&any).await? == "1000");

    let bomb = "for n in $(seq 100); do sleep 100 > /dev/null 2>&1 & done; wait";
    let said = any.exec(bomb).await;
    ensure!(said.is_err(), "a hundred processes were made: {said:?}");
    // Older kernels count where the process was to be, newer ones where the limit is.
    let events = guest.ok(&format!("cat {any_group}/pids.events {}/pids.events", above(&any_group))).await?;
    ensure!(events.lines().any(|line| line.starts_with("max ") && line != "max 0"), "{events}");
    ensure!(some.exec("echo lives").await?.trim() == "lives", "another pod is disturbed");
    node.stop().await?;
    guest.ok("echo 0 > /proc/sys/vm/nr_hugepages").await.map(|_| ())
}

/// Controllers of devices that the guest has not: what is written reaches the kernel, and its refusal the caller.
async fn limits_of_devices_that_are_not_there_are_told(lab: &Lab) -> anyhow::Result<()> {
    let node = lab.node().await?;
    let pod = Pod::start(&node).await?;
    for (file, value) in [("rdma.max", "mlx5_0 hca_handle=2"), ("misc.max", "sev 5")] {
        let controller = file.split('.').next().unwrap_or_default();
        let there = node.guest.ok("cat /sys/fs/cgroup/cgroup.controllers").await?;
        if !there.split_whitespace().any(|name| name == controller) {
            println!("  (this kernel has no {controller} controller)");
            continue;
        }
        let mut wanted = Wanted::script("sleep 100000");
        wanted.resources.unified = unified(&[(file, value)]);
        let said = match pod.container(wanted).await {
            Ok(_) => anyhow::bail!("{file} = {value} was taken"),
            Err(error) => format!("{error:#}"),
        };
        ensure!(said.contains(file) && said.contains(value), "{file}: {said}");
    }
    pod.remove().await
}

/// The guest's own disk: read where reading was allowed, opened for writing where both were, and not at all without its
/// device. Nothing is written to it.
async fn a_block_device_is_used_as_allowed(lab: &Lab) -> anyhow::Result<()> {
    let node = lab.node().await?;
    let pod = Pod::start(&node).await?;
    let container = async |permissions: &str| {
        let mut wanted = Wanted::script("sleep 100000");
        let device = Device {
            container_path: "/dev/disk".into(),
            host_path: "/dev/vda".into(),
            permissions: permissions.into(),
        };
        wanted.config.devices = if permissions.is_empty() { Vec::new() } else { vec![device] };
        pod.container(wanted).await
    };
    let (reads, writes, none) = (container("r").await?, container("rw").await?, container("").await?);
    let read = "head -c 65536 /dev/disk | md5sum | cut -d' ' -f1";
    let write = "dd if=/dev/null of=/dev/disk conv=notrunc 2>&1";
    let own = "head -c 65536 /dev/vda | md5sum | cut -d' ' -f1; tr : ' ' < /sys/block/vda/dev";
    let own = node.guest.ok(own).await?;
    let (sum, number) = own.split_once('\n').context("two lines")?;
    let seen = reads.exec(&format!("test -b /dev/disk && {read}")).await?;
    ensure!(seen.trim() == sum, "{seen}, not {sum}");
    let said = reads.exec(write).await;
    ensure!(said.is_err(), "it can open the disk for writing: {said:?}");
    writes.exec(write).await?;
    let made = none.exec(&format!("mknod /dev/disk b {number} && head -c 1 /dev/disk")).await;
    ensure!(made.is_err(), "a container without the device reads it: {made:?}");
    pod.remove().await
}
