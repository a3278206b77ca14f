//! Images whose `/dev` is not a directory.

use anyhow::ensure;
use cri_api::v1::*;
use serde_json::json;

use crate::archive::Member;
use crate::needs_root;
use crate::world::{World, bind, context, pod_context};

/// Where `/dev` leads in the images of these tests.
fn leads(world: &World) -> Vec<String> {
    let canary = world.host.canary().display().to_string();
    vec![
        canary.clone(),
        format!("../../../../../../../../../../../../../..{canary}"),
        "/volume".to_owned(),
        "proc/self/fd/5".to_owned(),
        "/proc/1/root".to_owned(),
        "/etc".to_owned(),
        "dev".to_owned(),
    ]
}

/// Starts a container of an image with each of these links as `/dev`: a refusal, or a `/dev` of its own.
async fn start_with(world: &World, privileged: bool, devices: bool) -> anyhow::Result<()> {
    let pod = world.pod(|pod| pod_context(pod).privileged = privileged).await?;
    let volume = world.volume("volume")?;
    for (number, to) in leads(world).iter().enumerate() {
        for links in [
            vec![Member::symlink("dev", to)],
            vec![
                Member::dir("dev"),
                Member::symlink("dev/pts", to),
                Member::symlink("dev/shm", to),
                Member::symlink("dev/mqueue", to),
            ],
            vec![
                Member::dir("dev"),
                Member::symlink("dev/null", to),
                Member::symlink("dev/console", to),
                Member::symlink("dev/fuse", to),
                Member::symlink("dev/fd", to),
            ],
        ] {
            let image = world.image(&format!("dev{number}"), json!({}), links).await?;
            for tty in [false, true] {
                let ran = world
                    .run(&pod, &["mounts", "canary"], |config| {
                        config.image = Some(ImageSpec { image: image.clone(), ..Default::default() });
                        config.tty = tty;
                        context(config).privileged = privileged;
                        config.mounts.push(bind(&volume, "/volume"));
                        if devices {
                            let device = |path: &str| Device {
                                host_path: "/dev/null".into(),
                                container_path: path.into(),
                                permissions: "rwm".into(),
                            };
                            config.devices =
                                vec![device("/dev/fuse"), device("/dev/deep/er"), device("/dev/fd0")];
                        }
                    })
                    .await?;
                match ran {
                    Ok(ended) => ended.no_loot()?,
                    Err(status) => println!("/dev -> {to}: {}", status.message()),
                }
                let made: Vec<_> = std::fs::read_dir(&volume)?.flatten().map(|entry| entry.path()).collect();
                ensure!(made.is_empty(), "/dev -> {to} made {made:?} in the volume");
                world.host.check()?;
            }
        }
    }
    Ok(())
}

/// An image's link at `/dev` had the runtime make device nodes and links on the host.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2026_41579_dev_as_a_link() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start().await?;
    start_with(&world, false, false).await?;
    start_with(&world, true, false).await?;
    world.end().await
}

/// The same of crun, by the devices that a container asks for.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2026_47766_devices_through_a_link() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start().await?;
    start_with(&world, false, true).await?;
    world.end().await
}
