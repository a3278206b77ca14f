//! Images from registries that ask, break off or lie, onto disks that are full.

use std::path::{Path, PathBuf};

use anyhow::ensure;
use tests::archive::{Member, saved_image, tar};
use tests::{Node, NodeOptions, Proxy, Registry, Trouble, eventually, image};

use crate::manifests::{BUSYBOX, IDLE, pod_with};
use crate::needs_root;

async fn cri_node() -> anyhow::Result<Node> {
    Node::start_with(NodeOptions { role: vec!["cri".into()], ..NodeOptions::default() }).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_asks_for_a_password() -> anyhow::Result<()> {
    needs_root!();
    let node = Node::start().await?;
    let registry = Registry::start(&node, 5000).await?;
    registry.push(&image("busybox"), "private:1").await?;
    // base64 of "me:pass:word".
    let basic = Some("bWU6cGFzczp3b3Jk".to_owned());
    let proxy = Proxy::start(&node, 5001, &registry.address, Trouble { basic, ..Trouble::default() })?;
    let reference = format!("{}/private:1", proxy.address);
    let manifest =
        pod_with("p", IDLE, "", "  imagePullSecrets: [{name: login}]\n").replace(BUSYBOX, &reference);
    node.apply(&manifest).await?;
    eventually("the refusal", || async {
        let described = node.kubectl(&["describe", "pod", "p"]).await?.ok()?;
        ensure!(
            described.contains("ErrImagePull") && described.contains("authentication required"),
            "{described}"
        );
        Ok(())
    })
    .await?;
    node.kubectl(&["delete", "pod", "p", "--timeout=20s"]).await?.ok()?;
    let server = format!("--docker-server={}", proxy.address);
    let login = ["create", "secret", "docker-registry", "login", &server, "--docker-username=me"];
    node.kubectl(&[&login[..], &["--docker-password=pass:word"]].concat()).await?.ok()?;
    node.apply(&manifest).await?;
    node.wait_ready("p").await?;
    // By hand, with and without.
    let second =
        registry.push(&image("hello"), "private:2").await?.replace(&registry.address, &proxy.address);
    let said = node.orlop(&["image", "pull", &second]).await?.err()?;
    ensure!(said.contains("denies access"), "{said}");
    let said = node.orlop(&["image", "pull", "--creds", "me:wrong", &second]).await?.err()?;
    ensure!(said.contains(&proxy.address), "{said}");
    node.orlop(&["image", "pull", "--creds", "me:pass:word", &second]).await?.ok()?;
    node.kubectl(&["delete", "pod", "p", "--timeout=20s"]).await?.ok()?;
    drop(registry);
    node.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_stops_half_way() -> anyhow::Result<()> {
    needs_root!();
    let node = cri_node().await?;
    let registry = Registry::start(&node, 5000).await?;
    registry.push(&image("nginx"), "web:1").await?;
    let trouble = Trouble { cut_after: Some(300_000), cuts: 3, ..Trouble::default() };
    let proxy = Proxy::start(&node, 5001, &registry.address, trouble)?;
    node.orlop(&["image", "pull", &format!("{}/web:1", proxy.address)]).await?.ok()?;
    ensure!(proxy.cuts() == 3 && proxy.ranges() >= 3, "{} cuts, {} resumed", proxy.cuts(), proxy.ranges());
    // One that never gets further is given up, with the reason.
    node.orlop(&["image", "remove", &format!("{}/web:1", proxy.address)]).await?.ok()?;
    let trouble = Trouble { cut_after: Some(0), cuts: u32::MAX, ..Trouble::default() };
    let dead = Proxy::start(&node, 5002, &registry.address, trouble)?;
    let said = node.orlop(&["image", "pull", &format!("{}/web:1", dead.address)]).await?.err()?;
    ensure!(said.contains(&dead.address), "{said}");
    drop(registry);
    node.end().await
}

/// A file system of its own below the node; gone when dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn tmpfs(at: &Path, size: &str) -> anyhow::Result<Mounted> {
        std::fs::create_dir_all(at)?;
        let status = std::process::Command::new("mount")
            .args(["-t", "tmpfs", "-o", &format!("size={size}"), "tmpfs"])
            .arg(at)
            .status()?;
        ensure!(status.success(), "mount a tmpfs at {}", at.display());
        Ok(Mounted(at.to_owned()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        match std::process::Command::new("umount").arg("-l").arg(&self.0).status() {
            Ok(status) if status.success() => {}
            other => eprintln!("umount {}: {other:?}", self.0.display()),
        }
    }
}

/// Bytes used below a directory.
fn used(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let of = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(meta) if meta.is_dir() => used(&entry.path()),
        Ok(meta) => meta.len(),
        Err(_) => 0,
    };
    entries.map(of).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_is_full() -> anyhow::Result<()> {
    needs_root!();
    let mut node = cri_node().await?;
    node.terminate().await?;
    let images = node.root.join("data/images");
    let small = Mounted::tmpfs(&images, "6m")?;
    node.launch().await?;
    node.import("busybox").await?;
    let before = used(&images);
    let registry = Registry::start(&node, 5000).await?;
    let reference = registry.push(&image("nginx"), "web:1").await?;
    let said = node.orlop(&["image", "pull", &reference]).await?.err()?;
    ensure!(said.contains("No space left on device"), "{said}");
    let said = node.orlop(&["image", "import", &image("nginx").display().to_string()]).await?.err()?;
    ensure!(said.contains("No space left on device"), "{said}");
    let listed = node.orlop(&["image", "list"]).await?.ok()?;
    ensure!(listed.contains("busybox") && !listed.contains("web") && !listed.contains("nginx"), "{listed}");
    // The half of it makes way again.
    node.orlop(&["image", "prune"]).await?.ok()?;
    let after = used(&images);
    ensure!(after <= before, "{before} bytes became {after}");
    node.import("busybox").await?;
    drop(registry);
    node.terminate().await?;
    drop(small);
    node.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_layers_are_refused_and_leave_nothing() -> anyhow::Result<()> {
    needs_root!();
    let node = cri_node().await?;
    let images = node.root.join("data/images");
    let file = |name| Member { name, kind: b'0', link: "", data: b"evil" };
    let link = |name, kind, link| Member { name, kind, link, data: b"" };
    let victim = node.root.join("victim");
    std::fs::create_dir(&victim)?;
    let outside = victim.display().to_string();
    let absolute = format!("{outside}/absolute");
    let good = tar(&[file("fine")]);
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("dots", tar(&[file("../../../../evil")]), "../../../../evil"),
        ("inner-dots", tar(&[file("a/../../evil")]), "a/../../evil"),
        ("hard-link-out", tar(&[link("out", b'1', "../../../etc/passwd")]), "out"),
        (
            "truncated",
            {
                let mut layer = tar(&[Member { name: "big", kind: b'0', link: "", data: &[7; 4096] }]);
                layer.truncate(2048);
                layer
            },
            "",
        ),
    ];
    for (name, layer, word) in &cases {
        let archive = node.root.join(format!("{name}.tar"));
        std::fs::write(&archive, saved_image(&format!("localhost/{name}:1"), layer))?;
        let before = used(&images);
        let said = node.orlop(&["image", "import", &archive.display().to_string()]).await?.err()?;
        eprintln!("{name}: {}", said.trim());
        ensure!(said.contains(word) && said.trim().len() > 20, "{name}: {said}");
        ensure!(used(&images) <= before, "{name} left something");
    }
    // These may be kept inside the layer or refused: what is outside stays as it is.
    let through = tar(&[link("door", b'2', &outside), file("door/through")]);
    for (name, layer) in [("absolute", tar(&[file(&absolute)])), ("symlink", through)] {
        let archive = node.root.join(format!("{name}.tar"));
        std::fs::write(&archive, saved_image(&format!("localhost/{name}:1"), &layer))?;
        let ran = node.orlop(&["image", "import", &archive.display().to_string()]).await?;
        eprintln!("{name}: {} {}", ran.code, ran.stderr.trim());
        ensure!(ran.code != 0, "{name} was imported");
        ensure!(std::fs::read_dir(&victim)?.next().is_none(), "{name} came out of its layer");
    }
    let archive = node.root.join("cut.tar");
    let whole = saved_image("localhost/cut:1", &good);
    std::fs::write(&archive, &whole[..whole.len() / 2])?;
    node.orlop(&["image", "import", &archive.display().to_string()]).await?.err()?;
    std::fs::write(&archive, b"no archive at all")?;
    let said = node.orlop(&["image", "import", &archive.display().to_string()]).await?.err()?;
    ensure!(said.contains("cut.tar"), "{said}");
    let listed = node.orlop(&["image", "list"]).await?.ok()?;
    ensure!(!listed.contains("localhost/"), "{listed}");
    node.end().await
}
