//! Images that say they are checkpoints, and what of them must not be obeyed.

use std::path::Path;

use anyhow::ensure;
use cri_api::Cri;
use cri_api::v1::*;
use serde_json::json;

use crate::archive::{Member, base, tar};
use crate::needs_root;
use crate::world::{Pod, World, bind};

/// A checkpoint in an image's clothes, with what the exploits of four CVEs put in it. In pieces, it has all but what
/// tells that it is one.
async fn checkpoint(world: &World, name: &str, pieces: bool) -> anyhow::Result<String> {
    let canary = world.host.canary().to_string_lossy().into_owned();
    let mount =
        json!([{"destination": "/host", "source": canary, "type": "bind", "options": ["rbind", "rw"]}]);
    let spec = json!({
        "ociVersion": "1.2.0", "mounts": mount,
        "process": {"args": ["/evil"], "cwd": "/", "user": {"uid": 0}},
        "annotations": {
            "cdi.k8s.io/evil": "vendor.com/device=all",
            "io.kubernetes.cri-o.ImageName": "registry.k8s.io/pause:3.10",
            "io.kubernetes.cri-o.Labels": "{\"evil\":\"evil\"}",
            "io.kubernetes.cri-o.Volumes": mount.to_string(),
        },
        "linux": {"devices": [{"path": "/dev/kmsg", "type": "c", "major": 1, "minor": 11}]},
    });
    let config = json!({"id": "evil", "name": "evil", "rootfsImageName": "registry.k8s.io/pause:3.10", "rootfsImage": "registry.k8s.io/pause:3.10"});
    let mut members = base()?;
    members.extend([
        Member::file("spec.dump", spec.to_string()),
        Member::file("config.dump", config.to_string()),
        Member::file(
            "bind.mounts",
            json!([{"source": canary, "destination": "/host", "is_dir": true}]).to_string(),
        ),
        Member::symlink("container.log", &format!("{canary}/secret")),
        Member::symlink("io.kubernetes.cri-o.LogPath", &format!("{canary}/secret")),
        Member::file("rootfs-diff.tar", tar(&[Member::symlink("x", &canary), Member::file("x/new", "evil")])),
    ]);
    if !pieces {
        members.extend([Member::dir("checkpoint"), Member::file("checkpoint/inventory.img", "evil")]);
    }
    let annotations = json!({
        "io.kubernetes.cri-o.annotations.checkpoint.name": "evil",
        "org.criu.checkpoint.container.name": "evil",
        "org.criu.checkpoint.rootfsImageName": "registry.k8s.io/pause:3.10",
        "org.criu.checkpoint.engine.name": "cri-o",
        "cdi.k8s.io/evil": "vendor.com/device=all",
        "io.kubernetes.cri-o.Volumes": mount.to_string(),
    });
    let reference = format!("localhost/{name}:1");
    let config = json!({"Labels": annotations});
    let archive = crate::archive::layout(&reference, config, &[tar(&members)], &annotations);
    world.import(&archive).await?.ok()?;
    Ok(reference)
}

/// Makes containers of a checkpoint: of an archive by its path, of an image, of one in pieces. They are refused as
/// checkpoints, or ordinary ones that `check` looks at; nothing of the checkpoint is obeyed.
async fn restore(check: impl AsyncFn(&World, &Pod, &str) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let world = World::start().await?;
    let pod = world.pod(|_| {}).await?;
    let file = world.node.root.join("checkpoint.tar");
    std::fs::write(&file, tar(&[Member::symlink("container.log", "/etc/shadow")]))?;
    let path = file.to_string_lossy().into_owned();
    let of = |image: &str| {
        let image = image.to_owned();
        move |config: &mut ContainerConfig| config.image = Some(ImageSpec { image, ..Default::default() })
    };
    ensure!(world.run(&pod, &["report"], of(&path)).await?.is_err(), "a container was made of {path}");
    for (name, pieces) in [("checkpoint", false), ("pieces", true)] {
        let image = checkpoint(&world, name, pieces).await?;
        // Without a command there is none: that of the checkpoint isn't taken.
        let bare = |config: &mut ContainerConfig| {
            of(&image)(config);
            config.command.clear();
        };
        ensure!(world.run(&pod, &[], bare).await?.is_err(), "a command of the checkpoint ran");
        match world.run(&pod, &["report"], of(&image)).await? {
            Ok(_) => check(&world, &pod, &image).await?,
            Err(status) => {
                ensure!(!pieces && status.message().contains("restoring is not supported"), "{status}");
            }
        }
    }
    world.end().await
}

/// A checkpoint's annotations named devices of the node's, which its restored container got.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2026_53492_devices_that_a_checkpoint_names() -> anyhow::Result<()> {
    needs_root!();
    restore(async |world, pod, image| {
        let named = |config: &mut ContainerConfig| {
            config.image = Some(ImageSpec { image: image.to_owned(), ..Default::default() });
        };
        let id = world.serve(pod, &["sleep"], named).await?;
        let status = world.status(&id).await?;
        ensure!(status.annotations.is_empty() && status.labels.is_empty(), "{status:?}");
        let kmsg = world.exec(&id, &["/attack", "cat", "/dev/kmsg"]).await?;
        ensure!(kmsg.code != 0, "the container has /dev/kmsg");
        Ok(())
    })
    .await
}

/// A checkpoint's `container.log` was a link; the file of the host's that it led to became the container's log.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2026_53489_log_of_a_checkpoint_as_a_link() -> anyhow::Result<()> {
    needs_root!();
    restore(async |world, pod, image| {
        let ended = world
            .run(pod, &["echo", "own"], |config| {
                config.image = Some(ImageSpec { image: image.to_owned(), ..Default::default() });
            })
            .await??;
        ensure!(ended.output == "own\n", "the log is {:?}", ended.output);
        // A log that is already there as a link is not written through, and not shown.
        let name = format!("linked{}.log", world.number());
        let log = Path::new(&pod.config.log_directory).join(&name);
        std::os::unix::fs::symlink(world.host.canary().join("victim"), &log)?;
        let linked = world.run(pod, &["echo", "evil"], |config| config.log_path = name.clone()).await?;
        println!(
            "a log that is a link: {:?}",
            linked.map(|ended| ended.code).map_err(|s| s.message().to_owned())
        );
        world.host.check()
    })
    .await
}

/// A checkpoint's list of mounts showed directories of the host's in the restored container.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2024_8676_mounts_that_a_checkpoint_names() -> anyhow::Result<()> {
    needs_root!();
    restore(async |world, pod, image| {
        let named = |config: &mut ContainerConfig| {
            config.image = Some(ImageSpec { image: image.to_owned(), ..Default::default() });
        };
        let ended = world.run(pod, &["mounts", "canary"], named).await??;
        ended.no_loot()?;
        ensure!(ended.code == 0, "{ended:?}");
        // The check can fail.
        let canary = world.host.canary().to_owned();
        let given =
            world.run(pod, &["mounts", "canary"], |config| config.mounts.push(bind(&canary, "/c"))).await??;
        ensure!(given.output.contains("LOOT"), "the check sees nothing: {}", given.output);
        Ok(())
    })
    .await
}

/// A checkpoint's own image name was given to what was unpacked from it.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2026_50195_names_that_a_checkpoint_takes() -> anyhow::Result<()> {
    needs_root!();
    restore(async |world, pod, image| {
        let named = |config: &mut ContainerConfig| {
            config.image = Some(ImageSpec { image: image.to_owned(), ..Default::default() });
        };
        world.run(pod, &["echo", "own"], named).await??;
        let images = world.cri.list_images(ListImagesRequest::default()).await?.images;
        let names: Vec<_> = images.iter().flat_map(|image| &image.repo_tags).collect();
        ensure!(names.iter().all(|name| name.starts_with("localhost/")), "{names:?}");
        Ok(())
    })
    .await
}
