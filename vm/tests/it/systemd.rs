//! cgroups by systemd: pods are slices, containers are scopes, and systemd leaves them alone.

use anyhow::ensure;
use cri_api::Cri;
use cri_api::v1::*;
use vm::pods::{Pod, Wanted};
use vm::{Lab, Node, eventually};

use crate::limits;

vm::cases![
    pods_are_slices_and_containers_are_scopes,
    who_was_killed_for_memory_is_known,
    a_daemon_that_restarts_finds_its_scopes,
    other_runtimes_run_in_scopes,
    without_systemd_its_driver_is_refused,
];

const CONFIG: &str = "cgroupDriver: systemd\nbridge: sysd\npodCIDRs: [10.99.0.0/24]\n";
/// How often containers end together; every second time while there is no daemon.
const ROUNDS: u32 = 4;
const SLICE: &str = "vmtest-burstable-pod1_2.slice";
const PATH: &str = "/vmtest.slice/vmtest-burstable.slice/vmtest-burstable-pod1_2.slice";

async fn node(lab: &Lab) -> anyhow::Result<Node> {
    Node::start_as(&lab.systemd().await?, "/nodes/sysd", "cri", CONFIG).await
}

fn in_slice(config: &mut PodSandboxConfig) {
    if let Some(linux) = config.linux.as_mut() {
        linux.cgroup_parent = SLICE.into();
        linux.resources = Some(limits::memory(64, 64));
        // Its init is a scope, too.
        if let Some(options) =
            linux.security_context.as_mut().and_then(|context| context.namespace_options.as_mut())
        {
            options.pid = NamespaceMode::Pod.into();
        }
    }
}

async fn pods_are_slices_and_containers_are_scopes(lab: &Lab) -> anyhow::Result<()> {
    let node = node(lab).await?;
    let guest = &node.guest;
    let told = node.cri().await?.runtime_config(RuntimeConfigRequest::default()).await?;
    ensure!(told.linux.is_some_and(|linux| linux.cgroup_driver == CgroupDriver::Systemd as i32));
    let pod = Pod::start_with(&node, in_slice).await?;
    let show = |unit: String, property: &'static str| async move {
        guest.ok(&format!("systemctl show --value -p {property} '{unit}'")).await
    };
    ensure!(show(SLICE.into(), "ActiveState").await? == "active");
    ensure!(show(SLICE.into(), "ControlGroup").await? == PATH, "where the slice is");
    ensure!(show(SLICE.into(), "MemoryMax").await? == (64 << 20).to_string(), "systemd knows the limit");

    let limit = limits::memory(32, 32);
    let container = pod.container(Wanted::limited("sleep 1000", limit)).await?;
    let scope = format!("orlop-{}.scope", container.id);
    ensure!(container.cgroup().await? == format!("/sys/fs/cgroup{PATH}/{scope}/container"));
    ensure!(show(scope.clone(), "Delegate").await? == "yes");
    ensure!(show(scope.clone(), "Slice").await? == SLICE);
    let cgroup = container.cgroup().await?;
    let all =
        format!("cat /sys/fs/cgroup{PATH}/memory.max {cgroup}/memory.max {cgroup}/cgroup.procs | xargs");
    let (main, want) = (container.pid().await?, [64 << 20, 32 << 20]);
    ensure!(guest.ok(&all).await? == format!("{} {} {main}", want[0], want[1]), "no placeholder is left");

    // systemd writes all that it knows of; what it doesn't know of must stay.
    guest.ok("systemctl daemon-reload").await?;
    guest.ok(&format!("systemctl set-property --runtime '{scope}' CPUWeight=50")).await?;
    ensure!(guest.ok(&all).await? == format!("{} {} {main}", want[0], want[1]), "after a reload");
    container.resize(limits::memory(40, 40)).await?;
    ensure!(guest.ok(&format!("cat {cgroup}/memory.max")).await? == (40 << 20).to_string());

    // The limit holds, and the end is told.
    let greedy = limits::as_a_whole(limits::memory(16, 16));
    let greedy = pod.container(Wanted::limited("tail /dev/zero", greedy)).await?;
    let status = greedy.ended(std::time::Duration::from_secs(60)).await?;
    ensure!((status.exit_code, status.reason.as_str()) == (137, "OOMKilled"), "{status:?}");
    // Its brother isn't blamed for it.
    let other = pod.container(Wanted::script("sleep 1000")).await?;
    other.kill().await?;
    ensure!(other.status().await?.reason == "Error", "{:?}", other.status().await?);
    eventually("systemd to drop the scope", || async {
        let state = show(format!("orlop-{}.scope", greedy.id), "ActiveState").await?;
        ensure!(state == "inactive", "{state}");
        Ok(())
    })
    .await?;

    let refused = Pod::start_with(&node, |config| {
        if let Some(linux) = config.linux.as_mut() {
            linux.cgroup_parent = "/kubepods/pod1".into();
        }
    })
    .await;
    let said = refused.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(said.contains("the name of a slice is wanted"), "{said}");

    pod.remove().await?;
    ensure!(show(SLICE.into(), "ActiveState").await? == "inactive");
    ensure!(guest.run(&format!("ls -d /sys/fs/cgroup{PATH}")).await?.code != 0, "the slice's cgroup is left");
    let units =
        guest.ok("systemctl list-units --all --plain --no-legend 'orlop-*.scope' | cut -d' ' -f1").await?;
    ensure!(units.lines().all(|unit| unit.ends_with("keeper.scope")), "left: {units}");
    node.stop().await
}

/// Containers of one pod that end in the same moment aren't mixed up, whoever listens, and no scope is left of them.
async fn who_was_killed_for_memory_is_known(lab: &Lab) -> anyhow::Result<()> {
    let node = node(lab).await?;
    let guest = &node.guest;
    let pod = Pod::start_with(&node, in_slice).await?;
    let minute = std::time::Duration::from_secs(60);
    let mut greedy = Wanted::limited(
        // It waits at the pipe until the others are there.
        "read line < /go/now; tail /dev/zero",
        limits::as_a_whole(limits::memory(16, 16)),
    );
    greedy.config.mounts = vec![Mount {
        container_path: "/go".into(),
        host_path: "/tmp/systemd-go".into(),
        readonly: true,
        ..Default::default()
    }];
    for round in 0..ROUNDS {
        guest.ok("rm -rf /tmp/systemd-go; mkdir /tmp/systemd-go; mkfifo /tmp/systemd-go/now").await?;
        let first = pod.container(Wanted::script("sleep 1000")).await?;
        let hungry = pod.container(greedy.clone()).await?;
        let last = pod.container(Wanted::script("sleep 1000")).await?;
        let (before, killed, after) = (first.pid().await?, hungry.pid().await?, last.pid().await?);
        let holders = guest.ok("pgrep -xc orlop-hold").await?;
        ensure!(holders == "3", "{holders} placeholders for three containers");
        if round == 0 {
            // What the driver costs.
            let costs =
                "for pid in $(pgrep -x orlop-hold); do grep -h ^Pss: /proc/$pid/smaps_rollup; done | xargs";
            println!("  placeholders of three containers: {}", guest.ok(costs).await?);
        }
        // In every second round nobody hears of it in time.
        let daemon = (round % 2 == 1).then_some(node.daemon_pid().await?);
        if let Some(daemon) = daemon {
            node.kill(&[daemon]).await?;
        }
        let gone = |pid| format!("[ -e /proc/{pid} ] && ! grep -q '^State:.Z' /proc/{pid}/status");
        guest
            .ok(&format!(
                "echo > /tmp/systemd-go/now; while {}; do :; done; kill -9 {before} {after}; \
                 while {} || {}; do :; done",
                gone(killed),
                gone(before),
                gone(after)
            ))
            .await?;
        if daemon.is_some() {
            node.launch().await?;
        }
        for (container, reason) in [(&first, "Error"), (&hungry, "OOMKilled"), (&last, "Error")] {
            let status = container.ended(minute).await?;
            ensure!((status.exit_code, status.reason.as_str()) == (137, reason), "round {round}: {status:?}");
        }
        eventually("systemd to drop the scopes", || async {
            let left = guest
                .run("pgrep -x orlop-hold; ls -d /sys/fs/cgroup/vmtest.slice/*/*/orlop-[0-9a-f]*.scope")
                .await?;
            ensure!(left.stdout.trim().is_empty(), "{}", left.stdout);
            Ok(())
        })
        .await?;
    }
    pod.remove().await?;
    guest.ok("rm -r /tmp/systemd-go").await?;
    node.stop().await
}

async fn a_daemon_that_restarts_finds_its_scopes(lab: &Lab) -> anyhow::Result<()> {
    let node = node(lab).await?;
    let pod = Pod::start_with(&node, in_slice).await?;
    let container = pod.container(Wanted::script("sleep 1000")).await?;
    let created = pod.create(Wanted::script("sleep 1000")).await?;
    let pid = container.pid().await?;
    node.kill(&[node.daemon_pid().await?]).await?;
    node.launch().await?;
    ensure!(container.pid().await? == pid, "it runs on");
    ensure!(container.exec("echo here").await? == "here");
    // Its scope had no process yet, and was never made.
    let request = StartContainerRequest { container_id: created.id.clone() };
    node.cri().await?.start_container(request).await?;
    ensure!(created.cgroup().await?.ends_with(&format!("/orlop-{}.scope/container", created.id)));
    // CRIU finds all of it there, and thaws it again.
    let request = CheckpointContainerRequest {
        container_id: created.id.clone(),
        location: format!("{}/checkpoint.tar", node.root),
        timeout: 120,
    };
    node.cri().await?.checkpoint_container(request).await?;
    ensure!(created.exec("echo here").await? == "here");
    pod.remove().await?;
    node.stop().await
}

/// Containers that crun and runc make are in the scopes that Orlop asked for, and go with them.
async fn other_runtimes_run_in_scopes(lab: &Lab) -> anyhow::Result<()> {
    let runtimes = "runtimes: {crun: {runtimePath: /usr/bin/crun}, runc: {runtimePath: /usr/sbin/runc}}\n";
    let config = format!("{CONFIG}{runtimes}");
    let node = Node::start_as(&lab.systemd().await?, "/nodes/sysd", "cri", &config).await?;
    for handler in ["crun", "runc"] {
        let pod = Pod::start_by(&node, handler, in_slice).await?;
        let container = pod.container(Wanted::limited("sleep 1000", limits::memory(32, 32))).await?;
        let cgroup = container.cgroup().await?;
        let want = format!("/sys/fs/cgroup{PATH}/orlop-{}.scope/container", container.id);
        ensure!(cgroup == want, "{handler}: {cgroup}");
        let limit = node.guest.ok(&format!("cat {cgroup}/memory.max")).await?;
        ensure!(limit == (32 << 20).to_string(), "{handler}: {limit}");
        ensure!(container.exec("echo here").await? == "here");
        let greedy = limits::as_a_whole(limits::memory(16, 16));
        let greedy = pod.container(Wanted::limited("tail /dev/zero", greedy)).await?;
        let status = greedy.ended(std::time::Duration::from_secs(60)).await?;
        ensure!(status.reason == "OOMKilled", "{handler}: {status:?}");
        pod.remove().await?;
        let left = node.guest.run(&format!("ls -d /sys/fs/cgroup{PATH}")).await?;
        ensure!(left.code != 0, "{handler}: left {}", left.stdout);
    }
    node.stop().await
}

async fn without_systemd_its_driver_is_refused(lab: &Lab) -> anyhow::Result<()> {
    let guest = lab.plain().await?;
    guest.write("/nodes/nosysd/etc/config.yaml", CONFIG.as_bytes()).await?;
    let ran = guest.run("timeout 20 orlop --root /nodes/nosysd cri").await?;
    ensure!(ran.code != 0, "it runs");
    ensure!(ran.stderr.contains("systemd is not this machine's first process"), "{}", ran.stderr);
    guest.ok("rm -rf /nodes/nosysd").await.map(|_| ())
}
