//! Layers and image configurations that say more than they may.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use cri_api::Cri;
use cri_api::v1::*;
use serde_json::{Value, json};

use crate::archive::{Member, base, saved, tar};
use crate::needs_root;
use crate::world::{Ended, Pod, World};

/// Imports an image of these layers over the base; if it was taken, runs its `report` and gives what it said.
async fn take(world: &World, pod: &Pod, layers: &[Vec<u8>]) -> anyhow::Result<Option<(String, Ended)>> {
    let name = format!("localhost/layers{}:1", world.number());
    let all = [&[tar(&base()?)], layers].concat();
    let ran = world.import(&saved(&name, json!({}), &all)).await?;
    if ran.code != 0 {
        println!("refused: {}", ran.stderr.trim().chars().take(300).collect::<String>());
        return Ok(None);
    }
    let canary = world.host.canary().join("secret");
    let canary = canary.to_string_lossy().into_owned();
    let named = |config: &mut ContainerConfig| {
        config.image = Some(ImageSpec { image: name.clone(), ..Default::default() });
    };
    let ended = world.run(pod, &["climb", canary.trim_start_matches('/')], named).await??;
    ended.no_loot()?;
    Ok(Some((name.clone(), ended)))
}

/// A layer's modes and owners were set through a symbolic link of the same layer, on the host.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2021_32760_modes_through_links() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start().await?;
    let pod = world.pod(|_| {}).await?;
    let canary = world.host.canary().to_string_lossy().into_owned();
    let up = format!("../../../../../../../../../../../../..{canary}");
    let file = |name: &str| Member::file(name, "evil").mode(0o4777);
    let cases: Vec<(&str, Vec<Vec<Member>>)> = vec![
        (
            "a file over its own link",
            vec![vec![Member::symlink("x", &format!("{canary}/secret")), file("x")]],
        ),
        (
            "a directory over its own link",
            vec![vec![Member::symlink("x", &canary), Member::dir("x").mode(0o7777)]],
        ),
        ("a file behind a link", vec![vec![Member::symlink("x", &canary), file("x/secret")]]),
        ("a file behind a link that climbs", vec![vec![Member::symlink("x", &up), file("x/secret")]]),
        (
            "a link behind a link",
            vec![vec![Member::symlink("a", &up), Member::symlink("b", "a"), file("b/secret")]],
        ),
        (
            "a hard link to a link",
            vec![vec![
                Member::symlink("x", &format!("{canary}/secret")),
                Member::hard_link("y", "x"),
                file("y"),
            ]],
        ),
        (
            "a hard link to the host",
            vec![vec![Member::hard_link("x", &format!("{canary}/secret")), file("x")]],
        ),
        ("a hard link that climbs", vec![vec![Member::hard_link("x", &format!("{up}/secret"))]]),
        (
            "a hard link through a link",
            vec![vec![Member::symlink("x", &canary), Member::hard_link("y", "x/secret")]],
        ),
        ("a name that climbs", vec![vec![file(&format!("{up}/new"))]]),
        ("an absolute name", vec![vec![file(&format!("{canary}/new"))]]),
        ("a whiteout behind a link", vec![vec![Member::symlink("x", &canary), file("x/.wh.secret")]]),
        (
            "an opaque directory behind a link",
            vec![vec![Member::symlink("x", &canary), file("x/.wh..wh..opq")]],
        ),
        ("a whiteout that climbs", vec![vec![file(&format!("{up}/.wh.secret"))]]),
        ("a whiteout of the parent", vec![vec![Member::dir("d"), file("d/.wh...")]]),
        (
            "a directory, then a link, then in it",
            vec![vec![Member::dir("x"), Member::symlink("x", &canary), file("x/secret")]],
        ),
        ("the same over two layers", vec![vec![Member::symlink("x", &canary)], vec![file("x/secret")]]),
        (
            "a link over a directory below",
            vec![
                vec![Member::dir("x"), file("x/secret")],
                vec![Member::symlink("x", &canary)],
                vec![file("x/.wh.secret")],
            ],
        ),
        (
            "a device behind a link",
            vec![vec![Member::symlink("x", &canary), Member::special(b'3', "x/zero")]],
        ),
        (
            "extended names that climb",
            vec![vec![Member::extensions(&[("path", &format!("{up}/new"))]), file("harmless")]],
        ),
        (
            "an extended link that climbs",
            vec![vec![
                Member::extensions(&[("linkpath", &format!("{canary}/secret"))]),
                Member::hard_link("x", "harmless"),
            ]],
        ),
    ];
    let mut refused = 0;
    for (what, layers) in cases {
        println!("{what}:");
        let layers: Vec<_> = layers.iter().map(|members| tar(members)).collect();
        refused += u32::from(take(&world, &pod, &layers).await?.is_none());
        world.host.check().with_context(|| what.to_owned())?;
    }
    ensure!(refused >= 10, "only {refused} were refused");
    // What is no attack is taken: links that lead out but through which nothing is written, and set-uid bits.
    let good = vec![Member::symlink("out", &canary), file("tool"), Member::dir("sticky").mode(0o1777)];
    ensure!(take(&world, &pod, &[tar(&good)]).await?.is_some(), "a harmless layer was refused");
    world.end().await
}

/// A size in an entry's extensions beside another in its header: one reader skips what another reads as entries.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2025_62518_sizes_that_differ() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start().await?;
    let pod = world.pod(|_| {}).await?;
    // An archive within the archive, with a file that must not come out of it.
    let mut inner = tar(&[Member::file("evil", "evil")]);
    inner.truncate(1024);
    let sized = |pax: &str, said: usize| {
        let mut member = Member::file("inner.tar", Vec::new());
        member.size = Some(said);
        let mut layer = tar(&[Member::extensions(&[("size", pax)]), member]);
        layer.truncate(layer.len() - 1024);
        layer.extend_from_slice(&inner);
        layer.extend_from_slice(&tar(&[Member::file("after", "after")]));
        layer
    };
    for (pax, said) in [
        ("1024", 0),
        ("0", 1024),
        ("512", 1024),
        ("1024", 512),
        ("01024", 0),
        ("1024 ", 0),
        ("-1", 0),
        ("0x400", 0),
        ("18446744073709551616", 0),
        ("", 0),
    ] {
        println!("{pax:?} and {said}:");
        if let Some((image, _)) = take(&world, &pod, &[sized(pax, said)]).await? {
            let named = |config: &mut ContainerConfig| {
                config.image = Some(ImageSpec { image: image.clone(), ..Default::default() });
            };
            let evil = world.run(&pod, &["cat", "/evil"], named).await??;
            ensure!(evil.code != 0, "{pax:?} and {said}: a file of the inner archive was unpacked");
        }
    }
    // Extensions that agree are good, and so is what follows.
    let good = take(&world, &pod, &[sized("1024", 1024)]).await?;
    let (image, _) = good.context("an archive whose sizes agree was refused")?;
    let named = |config: &mut ContainerConfig| {
        config.image = Some(ImageSpec { image: image.clone(), ..Default::default() });
    };
    ensure!(world.run(&pod, &["cat", "/evil"], named).await??.code != 0, "the inner archive was unpacked");
    ensure!(
        world.run(&pod, &["cat", "/after"], named).await??.output.trim() == "after",
        "what follows is lost"
    );
    world.end().await
}

/// An image's labels reached what acts on the labels of containers, and ran a program of the host's.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2026_53488_labels_of_images() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start().await?;
    let pod = world.pod(|_| {}).await?;
    let canary = world.host.canary().to_string_lossy().into_owned();
    let binary = format!("binary:///bin/sh?-c=touch%20{canary}/evil");
    let labels: Value = [
        ("containerd.io/restart.status", "running"),
        ("containerd.io/restart.loguri", &*binary),
        ("containerd.io/restart.logpath", &*format!("{canary}/evil")),
        ("containerd.io/restart.policy", "always"),
        ("io.cri-containerd.kind", "sandbox"),
        ("io.kubernetes.container.name", "evil"),
        ("io.kubernetes.container.logpath", &*format!("{canary}/evil")),
        ("io.kubernetes.container.hash", "evil"),
        ("io.kubernetes.pod.name", "evil"),
        ("io.kubernetes.pod.namespace", "kube-system"),
        ("io.kubernetes.pod.uid", "evil"),
        ("io.kubernetes.pod.terminationGracePeriod", "99999"),
        ("io.kubernetes.cri.sandbox-id", "evil"),
        ("io.kubernetes.cri-o.userns-mode", "private"),
        ("io.kubernetes.cri-o.Devices", "/dev/kmsg"),
        ("io.kubernetes.cri-o.TrySkipVolumeSELinuxLabel", "true"),
        ("io.kubernetes.cri-o.UnifiedCgroup.c", "memory.max=1"),
        ("io.podman.annotations.privileged", "TRUE"),
        ("run.oci.keep_original_groups", "1"),
        ("run.oci.hooks.stderr", &*format!("{canary}/evil")),
        ("run.oci.mount_context_type", "evil"),
        ("org.criu.config", &*format!("{canary}/secret")),
        ("org.systemd.property.ExecStartPre", "/evil"),
        ("cdi.k8s.io/evil", "vendor.com/device=all"),
        ("org.opencontainers.image.ref.name", "registry.k8s.io/pause:3.10"),
        ("io.containerd.image.name", "registry.k8s.io/pause:3.10"),
        ("orlop.io/privileged", "true"),
        ("orlop.privileged", "true"),
        ("devices.nri.io/container.c", "[{path: /dev/kmsg}]"),
        ("seccomp.security.alpha.kubernetes.io/pod", "unconfined"),
        ("container.apparmor.security.beta.kubernetes.io/c", "unconfined"),
    ]
    .iter()
    .map(|(key, value)| ((*key).to_owned(), Value::from(*value)))
    .collect::<serde_json::Map<_, _>>()
    .into();
    let plain = world.run(&pod, &["report"], |_| {}).await??;
    let image = world.image("labels", json!({"Labels": labels}), Vec::new()).await?;
    let archive =
        crate::archive::layout("localhost/annotated:1", json!({"Labels": labels}), &[tar(&base()?)], &labels);
    world.import(&archive).await?.ok()?;
    for image in [image, "localhost/annotated:1".to_owned()] {
        let named = |config: &mut ContainerConfig| {
            config.image = Some(ImageSpec { image: image.clone(), ..Default::default() });
            config.labels.insert("own".into(), "label".into());
        };
        let id = world.serve(&pod, &["sleep"], named).await?;
        let status = world.status(&id).await?;
        ensure!(status.labels.len() == 1 && status.annotations.is_empty(), "{status:?}");
        let request = ContainerStatusRequest { container_id: id.clone(), verbose: true };
        let info = world.cri.container_status(request).await?.info;
        ensure!(!format!("{info:?}").contains("evil"), "{info:?}");
        let ran = world.exec(&id, &["/attack", "report"]).await?;
        ran.clean()?;
        for line in ["CapEff", "CapBnd", "Uid", "NoNewPrivs", "Seccomp"] {
            ensure!(ran.line(line) == plain.line(line), "{line} is another: {}", ran.output);
        }
        world.host.check()?;
    }
    // The other image has no name that it gave itself.
    let images = world.cri.list_images(ListImagesRequest::default()).await?.images;
    let names: Vec<_> = images.iter().flat_map(|image| &image.repo_tags).collect();
    ensure!(names.iter().all(|name| name.starts_with("localhost/")), "{names:?}");
    world.end().await
}

/// Directories with containers' files could be entered by everybody on the node, set-uid programs in them and all.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2024_25621_directories_that_others_may_enter() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start_as("server").await?;
    let manifest = "apiVersion: v1\nkind: Pod\nmetadata: {name: secret}\nspec:\n  terminationGracePeriodSeconds: 0\n  \
                    containers:\n  - {name: c, image: 'localhost/attack:1', imagePullPolicy: Never, command: [/attack, sleep]}\n";
    world.node.apply(manifest).await?;
    world.node.wait_for("pod/secret", "running", |pod| pod["status"]["phase"] == "Running").await?;
    let root = &world.node.root;
    let mut open = Vec::new();
    let mut seen = 0;
    for name in ["data", "run", "etc", "log"] {
        reachable(&root.join(name), &mut open, &mut seen)?;
    }
    ensure!(seen > 10, "there are only {seen} files below {}", root.display());
    // What anybody on a node may know: its configuration, without keys; what the logs' directories are called.
    let good = ["etc", "etc/config.yaml", "etc/manifests", "log"];
    let bad: Vec<_> = open
        .iter()
        .map(|(path, mode)| (path.strip_prefix(root).unwrap_or(path).to_owned(), mode))
        .filter(|(path, _)| !good.iter().any(|good| path == Path::new(good)))
        .filter(|(path, _)| !(path.starts_with("log") && root.join(path).is_dir()))
        .map(|(path, mode)| format!("{} {mode:o}", path.display()))
        .collect();
    ensure!(bad.is_empty(), "others may enter or read:\n{}", bad.join("\n"));
    world.node.kubectl(&["delete", "pod", "secret"]).await?.ok()?;
    world.end().await
}

/// Adds what somebody who is neither owner nor in the group can enter or read, starting from a directory.
fn reachable(path: &Path, open: &mut Vec<(PathBuf, u32)>, seen: &mut u32) -> anyhow::Result<()> {
    let stat = match path.symlink_metadata() {
        Ok(stat) => stat,
        // It went away meanwhile.
        Err(_) => return Ok(()),
    };
    *seen += 1;
    if stat.is_symlink() {
        return Ok(());
    }
    let mode = stat.permissions().mode();
    if mode & 0o7 == 0 {
        // Nobody else comes in: what lies below is out of reach.
        if stat.is_dir() {
            *seen += u32::try_from(std::fs::read_dir(path)?.count())?;
        }
        return Ok(());
    }
    open.push((path.to_owned(), mode & 0o7777));
    if stat.is_dir() {
        for entry in std::fs::read_dir(path)?.flatten() {
            reachable(&entry.path(), open, seen)?;
        }
    }
    Ok(())
}
