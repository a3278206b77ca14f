//! More races: files below `/proc` and `/dev`, and directories made in volumes.

use std::os::unix::fs::symlink;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, ensure};
use cri_api::v1::*;

use crate::mounts::{MASKED, SETTINGS};
use crate::needs_root;
use crate::races::{Tally, race};
use crate::world::{Ended, World, bind};

/// Fails if a race went one way only: then nothing was raced.
fn both_ways(tally: &Tally) -> anyhow::Result<()> {
    let (started, refused) = (tally.started.load(Ordering::Relaxed), tally.refused.load(Ordering::Relaxed));
    ensure!(started > 0 && refused > 0, "{started} were started and {refused} refused: there was no race");
    Ok(())
}

/// A directory or file was made on the host when a volume's directory was exchanged for a link in time.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2024_45310_files_made_through_an_exchanged_directory() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start().await?;
    let pod = world.pod(|_| {}).await?;
    let volume = world.volume("shared")?;
    let canary = world.host.canary().join("empty");
    let (file, dir) = (world.volume("files")?.join("file"), world.volume("dir")?);
    std::fs::write(&file, "")?;
    std::fs::create_dir(volume.join("here"))?;
    // The volume's own path as the host sees it, upwards to the canary; and the canary's absolute path.
    symlink(format!("../../../../../../../../..{}", canary.display()), volume.join("there"))?;
    std::fs::create_dir(volume.join("here2"))?;
    symlink(&canary, volume.join("there2"))?;
    let shared = |config: &mut ContainerConfig| config.mounts.push(bind(&volume, "/shared"));
    world.serve(&pod, &["exchange", "/shared/here", "/shared/there"], shared).await?;
    world.serve(&pod, &["exchange", "/shared/here2", "/shared/there2"], shared).await?;
    let number = AtomicU32::new(0);
    let tally = race(
        &world,
        &pod,
        &["report"],
        |config| {
            // Names that are never there yet, so that each must be made.
            let number = number.fetch_add(1, Ordering::Relaxed);
            config.mounts = vec![
                bind(&volume, "/shared"),
                bind(&file, &format!("/shared/here/new{number}")),
                bind(&dir, &format!("/shared/here2/a/b{number}/c")),
            ];
        },
        Ended::clean,
    )
    .await?;
    ensure!(tally.started.into_inner() > 0, "no container was started");
    ensure!(std::fs::read_dir(&canary)?.next().is_none(), "something was made in the canary");
    world.end().await
}

/// `/proc` over a volume that two containers share: the runtime wrote labels through it, and hid nothing.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2023_27561_proc_exchanged_in_a_shared_volume() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start().await?;
    let pod = world.pod(|_| {}).await?;
    let volume = world.volume("shared")?;
    std::fs::create_dir_all(volume.join("own/self/attr"))?;
    std::fs::create_dir_all(volume.join("own/sys/kernel"))?;
    symlink("/proc", volume.join("proc"))?;
    let shared = |config: &mut ContainerConfig| config.mounts.push(bind(&volume, "/shared"));
    world.serve(&pod, &["exchange-slowly", "/shared/own", "/shared/proc", "100"], shared).await?;
    let all = [&["masked"][..], &MASKED].concat();
    let tally = race(
        &world,
        &pod,
        &all,
        |config| {
            config.mounts = vec![bind(&volume, "/shared"), bind(&volume, "/shared/own/sys")];
        },
        Ended::no_loot,
    )
    .await?;
    both_ways(&tally)?;
    // The volume in the place of /proc itself is refused, always.
    let ran = world.run(&pod, &["report"], |config| config.mounts.push(bind(&volume, "/proc"))).await?;
    ensure!(ran.is_err(), "a volume was mounted over /proc");
    world.end().await
}

/// `/dev/null`, which hides files, was exchanged for a link to a file of the host's: that was mounted, writable.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2025_31133_null_device_exchanged_for_a_link() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start().await?;
    let pod = world.pod(|_| {}).await?;
    let dev = dev_volume(&world)?;
    symlink("/proc/sys/kernel/core_pattern", dev.join("evil"))?;
    let shared = |config: &mut ContainerConfig| config.mounts.push(bind(&dev, "/shared"));
    world.serve(&pod, &["exchange-slowly", "/shared/null", "/shared/evil", "100"], shared).await?;
    let all = [&["masked"][..], &MASKED].concat();
    let mounted = |config: &mut ContainerConfig| config.mounts = vec![bind(&dev, "/dev")];
    let tally = race(&world, &pod, &all, mounted, Ended::no_loot).await?;
    both_ways(&tally)?;
    let ran = world.run(&pod, &[&["settings"][..], &SETTINGS].concat(), |_| {}).await??;
    ran.no_loot()?;
    world.end().await
}

/// The terminal's name below `/dev/pts` was exchanged for a link before it became `/dev/console`.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2025_52565_terminal_exchanged_for_a_link() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start().await?;
    let pod = world.pod(|_| {}).await?;
    let dev = dev_volume(&world)?;
    // `/dev/pts/N` for any N, and the console's own name.
    std::fs::create_dir(dev.join("fake"))?;
    for number in 0..4 {
        symlink("/proc/sys/kernel/core_pattern", dev.join("fake").join(number.to_string()))?;
    }
    symlink("/proc/sysrq-trigger", dev.join("fake/ptmx"))?;
    std::fs::create_dir(dev.join("pts"))?;
    std::fs::write(dev.join("console"), "")?;
    symlink("/proc/sys/kernel/core_pattern", dev.join("evil"))?;
    let shared = |config: &mut ContainerConfig| config.mounts.push(bind(&dev, "/shared"));
    world.serve(&pod, &["exchange-slowly", "/shared/pts", "/shared/fake", "100"], shared).await?;
    world.serve(&pod, &["exchange-slowly", "/shared/console", "/shared/evil", "100"], shared).await?;
    let all = [&["settings"][..], &SETTINGS, &["/dev/console"]].concat();
    race(
        &world,
        &pod,
        &all,
        |config| {
            config.tty = true;
            config.mounts = vec![bind(&dev, "/dev")];
        },
        Ended::no_loot,
    )
    .await?;
    // Without the volume a terminal is a terminal.
    let ran = world.run(&pod, &all, |config| config.tty = true).await??;
    ran.no_loot()?;
    world.end().await
}

/// Files below `/proc` that the runtime writes to were replaced, so that it wrote what and where it should not.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2025_52881_redirected_writes_to_procfs() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start().await?;
    let volume = world.volume("shared")?;
    // Targets that lead into procfs now and then: attr, oom_score_adj and the settings of the pod.
    std::fs::create_dir_all(volume.join("own/attr"))?;
    std::fs::create_dir_all(volume.join("own/net"))?;
    std::fs::create_dir_all(volume.join("own/kernel"))?;
    std::fs::write(volume.join("own/oom_score_adj"), "")?;
    std::fs::write(volume.join("own/kernel/core_pattern"), "")?;
    symlink("/proc/self", volume.join("self"))?;
    symlink("/proc/sys", volume.join("sys"))?;
    std::fs::create_dir_all(volume.join("own2/kernel"))?;
    let sysctls = [("net.ipv4.ip_unprivileged_port_start", "77"), ("kernel.shm_rmid_forced", "1")];
    let pod = world
        .pod(|pod| {
            let linux = pod.linux.get_or_insert_default();
            linux.sysctls =
                sysctls.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        })
        .await?;
    let shared = |config: &mut ContainerConfig| config.mounts.push(bind(&volume, "/shared"));
    world.serve(&pod, &["exchange-slowly", "/shared/own", "/shared/self", "100"], shared).await?;
    world.serve(&pod, &["exchange-slowly", "/shared/own2", "/shared/sys", "100"], shared).await?;
    let decoy = world.volume("decoy")?.join("file");
    std::fs::write(&decoy, "")?;
    let all = [&["settings"][..], &SETTINGS].concat();
    let tally = race(
        &world,
        &pod,
        &all,
        |config| {
            let linux = config.linux.get_or_insert_default();
            linux.resources = Some(LinuxContainerResources { oom_score_adj: 500, ..Default::default() });
            config.mounts = vec![
                bind(&volume, "/shared"),
                bind(&decoy, "/shared/own/attr/exec"),
                bind(&volume, "/shared/own2/kernel"),
            ];
        },
        Ended::no_loot,
    )
    .await?;
    both_ways(&tally)?;
    ensure!(std::fs::read(&decoy)?.is_empty(), "the runtime wrote into the decoy");
    ensure!(
        std::fs::read(volume.join("own/oom_score_adj"))
            .or_else(|_| std::fs::read(volume.join("self/oom_score_adj")))?
            .is_empty(),
        "the runtime wrote into the volume"
    );
    // What it should have written is written, in a container and in the pod.
    let id = world
        .serve(&pod, &["sleep"], |config| {
            let linux = config.linux.get_or_insert_default();
            linux.resources = Some(LinuxContainerResources { oom_score_adj: 500, ..Default::default() });
        })
        .await?;
    let request = ContainerStatusRequest { container_id: id.clone(), verbose: true };
    let info = cri_api::Cri::container_status(&world.cri, request).await?.info;
    let info: serde_json::Value = serde_json::from_str(info.get("info").context("no info")?)?;
    let pid = info["pid"].as_u64().context("no pid")?;
    let score = std::fs::read_to_string(format!("/proc/{pid}/oom_score_adj"))?;
    ensure!(score.trim() == "500", "oom_score_adj is {score}");
    world.end().await
}

/// A directory as a container's `/dev`, with the device that matters.
fn dev_volume(world: &World) -> anyhow::Result<std::path::PathBuf> {
    let dev = world.volume("dev")?;
    let null = rustix::fs::makedev(1, 3);
    let mode = rustix::fs::Mode::from_raw_mode(0o666);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        dev.join("null"),
        rustix::fs::FileType::CharacterDevice,
        mode,
        null,
    )?;
    Ok(dev)
}
