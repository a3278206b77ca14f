//! Mounts whose targets an image chose.

use std::path::Path;

use anyhow::ensure;
use cri_api::v1::*;
use serde_json::json;

use crate::archive::Member;
use crate::needs_root;
use crate::world::{World, bind, context};

/// Files below `/proc` and `/sys` that the node hides from containers.
pub const MASKED: [&str; 8] = [
    "/proc/kcore",
    "/proc/keys",
    "/proc/timer_list",
    "/proc/interrupts",
    "/proc/acpi",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Files that containers may read at most.
pub const SETTINGS: [&str; 5] = [
    "/proc/sys/kernel/core_pattern",
    "/proc/sys/kernel/modprobe",
    "/proc/sysrq-trigger",
    "/proc/sys/vm/panic_on_oom",
    "/sys/kernel/uevent_helper",
];

/// A volume over `/proc` (or an image's link that leads one there) made the runtime write its labels into
/// files of the attacker's.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2019_16884_volume_over_proc() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start().await?;
    let pod = world.pod(|_| {}).await?;
    let volume = world.volume("proc")?;
    for dir in ["self/attr", "sys/kernel", "self/fd"] {
        std::fs::create_dir_all(volume.join(dir))?;
    }
    std::fs::write(volume.join("self/attr/exec"), "")?;
    let links = vec![
        Member::symlink("toproc", "/proc"),
        Member::symlink("tosys", "proc/sys"),
        Member::symlink("toself", "/proc/self/attr"),
        Member::dir("deep"),
        Member::symlink("deep/er", "../toproc/sys/kernel"),
    ];
    let image = world.image("links", json!({}), links).await?;
    let mut refused = Vec::new();
    for target in [
        "/proc",
        "/proc/",
        "//proc",
        "/./proc",
        "/proc/self/attr",
        "/proc/sys",
        "/proc/1",
        "/proc/self/fd",
        "/toproc",
        "/toproc/self",
        "/tosys",
        "/tosys/kernel",
        "/toself",
        "/deep/er",
        "/proc/sysrq-trigger",
    ] {
        let ran = world
            .run(&pod, &["report"], |config| {
                config.image = Some(ImageSpec { image: image.clone(), ..Default::default() });
                config.mounts.push(bind(&volume, target));
            })
            .await?;
        match ran {
            Ok(ended) => anyhow::bail!("a volume was mounted at {target}: {}", ended.output),
            Err(status) => refused.push(format!("{target}: {}", status.message())),
        }
    }
    println!("{}", refused.join("\n"));
    // What lxcfs does goes on working.
    let file = volume.join("cpuinfo");
    std::fs::write(&file, "processor: none\n")?;
    let ran =
        world.run(&pod, &["report"], |config| config.mounts.push(bind(&file, "/proc/cpuinfo"))).await??;
    ran.clean()?;
    ensure!(std::fs::read(volume.join("self/attr/exec"))?.is_empty(), "a label was written into the volume");
    world.end().await
}

/// An image whose `/proc` or `/sys` is a link had them mounted elsewhere, so that nothing was hidden.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2019_19921_proc_and_sys_as_links() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start().await?;
    let pod = world.pod(|_| {}).await?;
    let volume = world.volume("shared")?;
    for (number, (name, to)) in [
        ("proc", "/volume"),
        ("proc", "volume/proc"),
        ("proc", "/x"),
        ("sys", "/volume"),
        ("sys", "x"),
        ("proc", "/"),
    ]
    .into_iter()
    .enumerate()
    {
        let image = world
            .image(&format!("link{number}"), json!({}), vec![Member::dir("x"), Member::symlink(name, to)])
            .await?;
        let hidden = [&["masked"][..], &MASKED].concat();
        let ran = world
            .run(&pod, &hidden, |config| {
                config.image = Some(ImageSpec { image: image.clone(), ..Default::default() });
                config.mounts.push(bind(&volume, "/volume"));
            })
            .await?;
        let status = ran.expect_err("a link in the place of a kernel's file system is refused");
        println!("{name} -> {to}: {}", status.message());
        ensure!(std::fs::read_dir(&volume)?.next().is_none(), "something was made in the volume");
    }
    // A file in its place, and none at all.
    let image = world.image("file", json!({}), vec![Member::file("proc", "a file")]).await?;
    let named = |config: &mut ContainerConfig| {
        config.image = Some(ImageSpec { image: image.clone(), ..Default::default() });
    };
    ensure!(world.run(&pod, &["report"], named).await?.is_err(), "/proc is a file and was mounted on");
    // The checks can fail: a privileged container has the files.
    let privileged = world.pod(|pod| crate::world::pod_context(pod).privileged = true).await?;
    for words in [&["masked"][..], &["settings"]] {
        let all: Vec<_> = words
            .iter()
            .copied()
            .chain(if words[0] == "masked" { MASKED.to_vec() } else { SETTINGS.to_vec() })
            .collect();
        let ran = world.run(&privileged, &all, |config| context(config).privileged = true).await??;
        ensure!(ran.output.contains("LOOT"), "the check sees nothing: {}", ran.output);
        let ran = world.run(&pod, &all, |_| {}).await??;
        ran.no_loot()?;
    }
    world.end().await
}

/// An image's `VOLUME` with `..` in it showed the host's files in the container.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2022_23648_image_volume_that_climbs() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start().await?;
    let pod = world.pod(|_| {}).await?;
    let canary = world.host.canary().to_string_lossy().into_owned();
    let volumes = [
        format!("/../../../../../../../..{canary}"),
        format!("/volume/../../../..{canary}"),
        "/../../etc".to_owned(),
        "..".to_owned(),
        "/".to_owned(),
        "/proc".to_owned(),
        "/link".to_owned(),
        canary.clone(),
    ];
    for (number, volume) in volumes.iter().enumerate() {
        let config = json!({"Volumes": {volume: {}}});
        let members =
            vec![Member::symlink("link", "../../../../../../../../../../etc"), Member::file("etc/own", "")];
        let image = world.image(&format!("volume{number}"), config, members).await?;
        for readonly in [false, true] {
            let named = |config: &mut ContainerConfig| {
                config.image = Some(ImageSpec { image: image.clone(), ..Default::default() });
                context(config).readonly_rootfs = readonly;
            };
            let absolute = world.host.canary().join("secret");
            let absolute = absolute.to_string_lossy().into_owned();
            let ran = world.run(&pod, &["climb", absolute.trim_start_matches('/')], named).await?;
            let Ok(ended) = ran else {
                println!("{volume} (read-only root {readonly}): {}", ran.expect_err("refused").message());
                continue;
            };
            ended.no_loot()?;
            let root = world.node.root.to_string_lossy().into_owned();
            let ended = world
                .run(
                    &pod,
                    &["mounts", &root, "/etc/hosts", "/etc/resolv.conf", "/etc/hostname", "/dev/shm"],
                    named,
                )
                .await??;
            ended.no_loot()?;
        }
    }
    // The check can fail: a bind mount of the canary is one.
    let given = world
        .run(&pod, &["mounts", "canary"], |config| config.mounts.push(bind(Path::new(&canary), "/c")))
        .await??;
    ensure!(given.output.contains("LOOT"), "the check sees nothing: {}", given.output);
    world.end().await
}
