//! Images whose `/dev` is not a directory.

use anyhow::ensure;
use cri_api::v1::*;
use futures::StreamExt;
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

/// Makes an image with each of these links as `/dev`, or in it.
async fn images(world: &World) -> anyhow::Result<Vec<(String, String)>> {
    let mut images = Vec::new();
    for (number, to) in leads(world).into_iter().enumerate() {
        for (form, links) in [
            vec![Member::symlink("dev", &to)],
            ["pts", "shm", "mqueue"].map(|name| Member::symlink(&format!("dev/{name}"), &to)).to_vec(),
            ["null", "console", "fuse", "fd"]
                .map(|name| Member::symlink(&format!("dev/{name}"), &to))
                .to_vec(),
        ]
        .into_iter()
        .enumerate()
        {
            let name = format!("dev{number}-{form}");
            let members = if form == 0 { links } else { [vec![Member::dir("dev")], links].concat() };
            images.push((world.image(&name, json!({}), members).await?, to.clone()));
        }
    }
    Ok(images)
}

/// Starts a container of each image: a refusal, or a `/dev` of its own.
async fn start_with(
    world: &World,
    images: &[(String, String)],
    privileged: bool,
    devices: bool,
) -> anyhow::Result<()> {
    let pod = &world.pod(|pod| pod_context(pod).privileged = privileged).await?;
    let volume = &world.volume("volume")?;
    let all = images.iter().flat_map(|(image, to)| [(image, to, false), (image, to, true)]);
    let mut all = futures::stream::iter(all)
        .map(|(image, to, tty)| async move {
            let ran = world
                .run(pod, &["mounts", "canary"], |config| {
                    config.image = Some(ImageSpec { image: image.clone(), ..Default::default() });
                    config.tty = tty;
                    context(config).privileged = privileged;
                    config.mounts.push(bind(volume, "/volume"));
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
            let made: Vec<_> = std::fs::read_dir(volume)?.flatten().map(|entry| entry.path()).collect();
            ensure!(made.is_empty(), "/dev -> {to} made {made:?} in the volume");
            world.host.check()
        })
        .buffer_unordered(3);
    while let Some(checked) = all.next().await {
        checked?;
    }
    Ok(())
}

/// An image's link at `/dev` had the runtime make device nodes and links on the host.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2026_41579_dev_as_a_link() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start().await?;
    let images = images(&world).await?;
    start_with(&world, &images, false, false).await?;
    start_with(&world, &images, true, false).await?;
    world.end().await
}

/// The same of crun, by the devices that a container asks for.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2026_47766_devices_through_a_link() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start().await?;
    let images = images(&world).await?;
    start_with(&world, &images, false, true).await?;
    world.end().await
}
