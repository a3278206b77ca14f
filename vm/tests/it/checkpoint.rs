//! Checkpoints by CRIU, which can't work with every kernel: the guest's is one that Debian's CRIU knows.

use std::time::Duration;

use anyhow::{Context, ensure};
use cri_api::Cri;
use cri_api::v1::*;
use vm::pods::{Container, Pod, Wanted};
use vm::{Lab, Node, eventually, eventually_within};

vm::cases![
    a_checkpoint_has_all_parts_and_the_container_goes_on,
    what_cannot_be_checkpointed_goes_on,
    a_checkpoint_that_takes_too_long_leaves_the_container_running,
];

/// Counts in a file of the writable layer; its memory holds a word that is nowhere else.
const COUNT: &str = "word=$(echo qrfgvab | tr a-z n-za-m); rm /etc/group; mkdir /new; \
                     i=0; while :; do i=$((i+1)); echo $i > /new/n; sleep 0.2; done";

async fn checkpoint(
    node: &Node,
    container: &Container<'_>,
    location: &str,
    timeout: i64,
) -> anyhow::Result<Result<(), tonic::Status>> {
    let container_id = container.id.clone();
    let request = CheckpointContainerRequest { container_id, location: location.into(), timeout };
    Ok(node.cri().await?.checkpoint_container(request).await.map(|_| ()))
}

/// Its counter still counts.
async fn counts(container: &Container<'_>) -> anyhow::Result<()> {
    let pid = container.pid().await?;
    let now = || async {
        let text = container.node.guest.ok(&format!("cat /proc/{pid}/root/new/n")).await?;
        // Written and truncated all the time.
        Ok::<u64, anyhow::Error>(text.trim().parse().unwrap_or(0))
    };
    let before = now().await?;
    eventually("the counter to go on", || async {
        let seen = now().await?;
        ensure!(seen > before, "{seen} after {before}");
        Ok(())
    })
    .await
}

/// Nothing keeps the pod's network still, and no files are left but the archive.
async fn nothing_is_left(node: &Node, container: &Container<'_>) -> anyhow::Result<()> {
    let pid = container.pid().await?;
    eventually_within("CRIU's end", Duration::from_secs(90), || async {
        let left = node.guest.ok(&format!("ls -A {}/data/checkpoints", node.root)).await?;
        ensure!(left.is_empty(), "{left}");
        let tables = node.guest.ok(&format!("nsenter -t {pid} -n nft list tables")).await?;
        ensure!(!tables.contains("CRIU"), "{tables}");
        Ok(())
    })
    .await
}

async fn a_checkpoint_has_all_parts_and_the_container_goes_on(lab: &Lab) -> anyhow::Result<()> {
    let node = lab.node().await?;
    let pod = Pod::start(&node).await?;
    node.guest.ok("mkdir -p /data/volume /data/cp && echo theirs > /data/volume/file").await?;
    let mut wanted = Wanted::script(COUNT);
    wanted.config.mounts =
        vec![Mount { container_path: "/vol".into(), host_path: "/data/volume".into(), ..Default::default() }];
    let container = pod.container(wanted).await?;
    eventually("the counter", || counts(&container)).await?;
    let (pid, before) = (container.pid().await?, container.status().await?);

    checkpoint(&node, &container, "/data/cp/one.tar", 0).await??;
    counts(&container).await?;
    let after = container.status().await?;
    ensure!(container.pid().await? == pid && after.started_at == before.started_at, "it was restarted");
    nothing_is_left(&node, &container).await?;

    let guest = &node.guest;
    let mode = guest.ok("stat -c '%a %u' /data/cp/one.tar; ls -A /data/cp").await?;
    ensure!(mode == "600 0\none.tar", "{mode}");
    guest.ok("mkdir /data/cp/x && tar -xf /data/cp/one.tar -C /data/cp/x").await?;
    let parts = guest.ok("cd /data/cp/x && find . -type f | sort").await?;
    for part in [
        "./checkpoint/inventory.img",
        "./checkpoint/pstree.img",
        "./checkpoint/core-1.img",
        "./checkpoint/descriptors.json",
        "./config.dump",
        "./container.log",
        "./deleted.files",
        "./dump.log",
        "./rootfs-diff.tar",
        "./spec.dump",
        "./stats-dump",
        "./status",
        "./status.dump",
    ] {
        ensure!(parts.lines().any(|line| line == part), "no {part} in\n{parts}");
    }
    let end = guest.ok("tail -n 1 /data/cp/x/dump.log").await?;
    ensure!(end.contains("Dumping finished successfully"), "{end}");
    // The word was only ever in the shell's memory.
    guest.ok("grep -q destino /data/cp/x/checkpoint/pages-*.img").await.context("the memory is not there")?;
    let files = guest.ok("tar -tf /data/cp/x/rootfs-diff.tar").await?;
    ensure!(files.lines().any(|line| line == "new/n"), "{files}");
    ensure!(!files.contains("etc/group"), "{files}");
    let deleted = guest.ok("cat /data/cp/x/deleted.files").await?;
    ensure!(deleted == r#"["/etc/group"]"#, "{deleted}");
    let volumes = guest.ok("grep -rl theirs /data/cp/x || true").await?;
    ensure!(volumes.is_empty(), "a volume's file is in {volumes}");
    let config = guest.ok("jq -r '.id, .runtime, .restored' /data/cp/x/config.dump").await?;
    ensure!(config == format!("{}\norlop\nfalse", container.id), "{config}");
    let spec = guest.ok("jq -r '.annotations[\"io.kubernetes.cri.sandbox-namespace\"], .process.args[0]' /data/cp/x/spec.dump").await?;
    ensure!(spec == "default\nsh", "{spec}");
    // Again, over the file that is there.
    checkpoint(&node, &container, "/data/cp/one.tar", 60).await??;
    counts(&container).await?;
    guest.ok("rm -r /data/cp /data/volume").await?;
    pod.remove().await
}

async fn what_cannot_be_checkpointed_goes_on(lab: &Lab) -> anyhow::Result<()> {
    let node = lab.node().await?;
    let pod = Pod::start(&node).await?;
    // A connection of its own to itself is one that CRIU won't cut.
    let script = format!("nc -l -p 7000 -e sleep 100000 & sleep 1; nc 127.0.0.1 7000 & {COUNT}");
    let connected = pod.container(Wanted::script(&script)).await?;
    eventually("the counter", || counts(&connected)).await?;
    let refused =
        checkpoint(&node, &connected, "/data/no.tar", 0).await?.err().context("it was checkpointed")?;
    ensure!(refused.message().contains("CRIU says") && refused.message().contains("TCP"), "{refused}");
    counts(&connected).await?;
    nothing_is_left(&node, &connected).await?;

    let mut wanted = Wanted::script(COUNT);
    wanted.config.tty = true;
    let terminal = pod.container(wanted).await?;
    eventually("the counter", || counts(&terminal)).await?;
    let refused =
        checkpoint(&node, &terminal, "/data/no.tar", 0).await?.err().context("it was checkpointed")?;
    let told = refused.code() == tonic::Code::FailedPrecondition && refused.message().contains("terminal");
    ensure!(told, "{refused}");
    let created = pod.create(Wanted::script(COUNT)).await?;
    let refused =
        checkpoint(&node, &created, "/data/no.tar", 0).await?.err().context("it was checkpointed")?;
    ensure!(refused.code() == tonic::Code::FailedPrecondition, "{refused}");
    counts(&terminal).await?;
    // Nowhere to put it: the container goes on, and nothing is left.
    let running = pod.container(Wanted::script(COUNT)).await?;
    eventually("the counter", || counts(&running)).await?;
    let refused = checkpoint(&node, &running, "/nowhere/no.tar", 0).await?.err().context("it was written")?;
    ensure!(refused.message().contains("/nowhere/no.tar"), "{refused}");
    counts(&running).await?;
    nothing_is_left(&node, &running).await?;
    node.guest.ok("test ! -e /data/no.tar").await?;
    pod.remove().await
}

async fn a_checkpoint_that_takes_too_long_leaves_the_container_running(lab: &Lab) -> anyhow::Result<()> {
    let node = lab.node().await?;
    let pod = Pod::start(&node).await?;
    // Memory that takes a while to write.
    let script = format!("x=$(head -c 40000000 /dev/zero | tr '\\0' x); {COUNT}");
    let container = pod.container(Wanted::script(&script)).await?;
    eventually_within("the counter", Duration::from_secs(60), || counts(&container)).await?;
    match checkpoint(&node, &container, "/data/late.tar", 1).await? {
        Err(refused) => ensure!(refused.code() == tonic::Code::DeadlineExceeded, "{refused}"),
        Ok(()) => println!("  (this machine is so quick that it was done within a second)"),
    }
    counts(&container).await?;
    nothing_is_left(&node, &container).await?;
    counts(&container).await?;
    node.guest.ok("rm -f /data/late.tar").await?;
    pod.remove().await
}
