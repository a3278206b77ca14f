//! More races: files below `/proc` and `/dev`, and directories made in volumes.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::ensure;
use cri_api::v1::*;

use crate::mounts::{MASKED, SETTINGS};
use crate::needs_root;
use crate::races::{Met, Round, because, race};
use crate::world::{Ended, World, bind};

/// A refusal with one of these words in it says that the link was met; what ran is judged by `check`.
fn refused_or(
    words: &'static [&'static str],
    check: fn(&Ended) -> anyhow::Result<()>,
) -> impl Fn(Round<'_>) -> anyhow::Result<Met> + Copy {
    move |round| match round {
        Round::Refused(why) => because(why, words),
        Round::Ended(ended) => check(ended).map(|()| Met::Target),
    }
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
    let pairs = ["race", "300", "/shared/here", "/shared/there", "/shared/here2", "/shared/there2"];
    world.serve(&pod, &pairs, shared).await?;
    let number = AtomicU32::new(0);
    let root = world.node.root.to_string_lossy().into_owned();
    race(
        &world,
        &pod,
        &["where", &root],
        |config| {
            // Names that are never there yet, so that each must be made.
            let number = number.fetch_add(1, Ordering::Relaxed);
            config.mounts = vec![
                bind(&volume, "/shared"),
                bind(&file, &format!("/shared/here/new{number}")),
                bind(&dir, &format!("/shared/here2/a/b{number}/c")),
            ];
        },
        |round| match round {
            Round::Refused(why) => because(why, &["mount /shared/here"]),
            Round::Ended(ended) => {
                // Where the canary's path leads in the container's own root, or beside the link.
                let canary = canary.to_string_lossy();
                let through = ended.points().any(|point| point.starts_with(&*canary));
                ensure!(ended.code == 0 && ended.output.contains("/shared"), "{ended:?}");
                Ok(if through { Met::Link } else { Met::Target })
            }
        },
    )
    .await?;
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
    world.serve(&pod, &["race", "300", "/shared/own", "/shared/proc"], shared).await?;
    let all = [&["masked"][..], &MASKED].concat();
    let over = |config: &mut ContainerConfig| {
        config.mounts = vec![bind(&volume, "/shared"), bind(&volume, "/shared/own/sys")];
    };
    race(&world, &pod, &all, over, refused_or(&["it leads into procfs"], Ended::no_loot)).await?;
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
    world.serve(&pod, &["race", "300", "/shared/null", "/shared/evil"], shared).await?;
    let all = [&["masked"][..], &MASKED].concat();
    let mounted = |config: &mut ContainerConfig| config.mounts = vec![bind(&dev, "/dev")];
    race(&world, &pod, &all, mounted, refused_or(&["not the null device"], Ended::no_loot)).await?;
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
    let pairs = ["race", "300", "/shared/pts", "/shared/fake", "/shared/console", "/shared/evil"];
    world.serve(&pod, &pairs, shared).await?;
    let all = [&["settings"][..], &SETTINGS, &["/dev/console"]].concat();
    race(
        &world,
        &pod,
        &all,
        |config| {
            config.tty = true;
            // A devpts that goes with the directory when its name does.
            config.mounts = vec![bind(&dev, "/dev"), bind(Path::new("/dev/pts"), "/dev/pts")];
        },
        refused_or(&["make the terminal", "console"], Ended::no_loot),
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
    let pairs = ["race", "300", "/shared/own", "/shared/self", "/shared/own2", "/shared/sys"];
    let attacker = world.serve(&pod, &pairs, shared).await?;
    let decoy = world.volume("decoy")?.join("file");
    std::fs::write(&decoy, "")?;
    let all = [&["settings"][..], &SETTINGS].concat();
    race(
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
        refused_or(&["it leads into procfs"], Ended::no_loot),
    )
    .await?;
    ensure!(std::fs::read(&decoy)?.is_empty(), "the runtime wrote into the decoy");
    // The names stand still now; the directory has one of the two.
    world.remove(&attacker).await?;
    let own = if volume.join("own").is_symlink() { volume.join("self") } else { volume.join("own") };
    for file in ["oom_score_adj", "kernel/core_pattern"] {
        ensure!(std::fs::read(own.join(file))?.is_empty(), "the runtime wrote into {file} of the volume");
    }
    // What it should have written is written, in a container and in the pod.
    let id = world
        .serve(&pod, &["sleep"], |config| {
            let linux = config.linux.get_or_insert_default();
            linux.resources = Some(LinuxContainerResources { oom_score_adj: 500, ..Default::default() });
        })
        .await?;
    let pid = world.pid(&id).await?;
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
