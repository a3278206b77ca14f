//! What hostile containers, clients and images make the daemon hold: memory and descriptors stay flat.

use std::io::Write;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cri_api::Cri;
use cri_api::v1::*;
use futures::StreamExt;
use serde_json::json;
use tests::eventually;

use crate::archive::{Member, base, saved, tar};
use crate::needs_root;
use crate::socket::Socket;
use crate::world::{World, context};

/// What a process holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    /// Most memory that it ever had, in KiB.
    peak: u64,
    descriptors: usize,
    threads: usize,
}

impl Held {
    fn by(pid: u32) -> anyhow::Result<Held> {
        let count = |what: &str| anyhow::Ok(std::fs::read_dir(format!("/proc/{pid}/{what}"))?.count());
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no peak")?;
        let peak = peak.trim().trim_end_matches(" kB").parse()?;
        Ok(Held { peak, descriptors: count("fd")?, threads: count("task")? })
    }
}

/// Daemon and keeper before an attack.
struct Before(Vec<(&'static str, u32, Held)>);

impl Before {
    fn look(world: &World) -> anyhow::Result<Before> {
        let of = |name, pid| anyhow::Ok((name, pid, Held::by(pid)?));
        Ok(Before(vec![of("daemon", world.node.daemon_pid())?, of("keeper", world.node.keeper_pid()?)?]))
    }

    /// Waits until they hold as few descriptors as before; fails if their peak grew by more than `megabytes`.
    async fn compare(&self, megabytes: u64) -> anyhow::Result<()> {
        for (name, pid, before) in &self.0 {
            let after = eventually("descriptors to be closed", || async {
                let after = Held::by(*pid)?;
                ensure!(after.descriptors <= before.descriptors + 2, "{name}: {before:?} became {after:?}");
                // Idle threads of the blocking pool end by themselves.
                ensure!(after.threads <= before.threads + 40, "{name}: {before:?} became {after:?}");
                Ok(after)
            })
            .await?;
            let grown = after.peak.saturating_sub(before.peak) >> 10;
            println!("{name}: {before:?} became {after:?}");
            ensure!(grown <= megabytes, "{name}: its memory grew by {grown} MiB, {megabytes} are the bound");
        }
        Ok(())
    }
}

/// A command's output was kept whole until it ended.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2022_31030_output_of_a_command_without_end() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start().await?;
    let pod = world.pod(|_| {}).await?;
    let id = world.serve(&pod, &["sleep"], |_| {}).await?;
    world.exec(&id, &["/attack", "flood", "1"]).await?;
    let before = Before::look(&world)?;
    let request = |megabytes: &str| ExecSyncRequest {
        container_id: id.clone(),
        cmd: ["/attack", "flood", megabytes].map(str::to_owned).to_vec(),
        timeout: 120,
    };
    let begin = Instant::now();
    let answer = world.cri.exec_sync(request("1024")).await?;
    println!("1 GiB in {:.1} s, {} bytes of it kept", begin.elapsed().as_secs_f64(), answer.stdout.len());
    ensure!(answer.exit_code == 0, "it ended with {}", answer.exit_code);
    ensure!(answer.stdout.len() <= 16 << 20, "{} bytes were kept", answer.stdout.len());
    // The sixteen megabytes, and copies of them on their way through gRPC.
    before.compare(120).await?;
    // The keeper cuts the lines of a container's own output.
    let ended = world.run(&pod, &["flood", "8"], |_| {}).await??;
    ensure!(ended.output.len() >= 8 << 20, "{} bytes of 8 MiB are in the log", ended.output.len());
    before.compare(120).await?;
    world.end().await
}

/// Each change of a terminal's size whose command could not be started left something behind.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2022_23471_terminals_that_never_start() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start().await?;
    let pod = world.pod(|_| {}).await?;
    let id = world.serve(&pod, &["sleep"], |_| {}).await?;
    let attack = async |cmd: &[&str], times: usize| {
        let request = ExecRequest {
            container_id: id.clone(),
            cmd: cmd.iter().map(|word| (*word).to_owned()).collect(),
            tty: true,
            stdin: true,
            stdout: true,
            stderr: false,
        };
        let url = world.cri.exec(request).await?.url;
        let mut socket = Socket::open(&world, &url).await?;
        // Whether the server has closed already, is no matter.
        let _closed_or_sent = socket.send(4, br#"{"Width":100,"Height":40}"#, times).await;
        socket.drain().await
    };
    attack(&["/not/there"], 1).await?;
    attack(&["/attack", "echo", "x"], 1).await?;
    let before = Before::look(&world)?;
    // Ten thousand changes, of terminals that never were, and that were for a moment.
    let mut all = futures::stream::iter(0..100)
        .map(|round| {
            let words: &[&str] = if round % 4 == 3 { &["/attack", "echo", "x"] } else { &["/not/there"] };
            attack(words, 100)
        })
        .buffer_unordered(8);
    while let Some(done) = all.next().await {
        done?;
    }
    drop(all);
    // And of one that is there all the time, by a client that goes away.
    let request = AttachRequest { container_id: id.clone(), stdin: true, stdout: true, ..Default::default() };
    let url = world.cri.attach(request).await?.url;
    Socket::open(&world, &url).await?.send(4, br#"{"Width":1,"Height":1}"#, 10_000).await?;
    before.compare(60).await?;
    world.end().await
}

/// Each client that attached and went away left something behind.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2025_64329_attachments_that_break_off() -> anyhow::Result<()> {
    needs_root!();
    const ROUNDS: usize = 10_000;
    let world = World::start().await?;
    let pod = world.pod(|_| {}).await?;
    let id = world.serve(&pod, &["sleep"], |config| config.stdin = true).await?;
    let attack = async |round: usize| {
        let request = AttachRequest {
            container_id: id.clone(),
            stdin: round.is_multiple_of(2),
            stdout: true,
            stderr: round.is_multiple_of(3),
            tty: false,
        };
        let url = world.cri.attach(request).await?.url;
        // Some never connect, some go at once, some in the middle of a message.
        if !round.is_multiple_of(20) {
            let mut socket = Socket::open(&world, &url).await?;
            if round % 20 < 5 {
                socket.send(0, b"input", 1).await?;
            }
        }
        anyhow::Ok(())
    };
    // URLs that nobody uses are kept for a minute, up to a number; those, too, are there before.
    for round in 0..100 {
        attack(round).await?;
    }
    let before = Before::look(&world)?;
    let begin = Instant::now();
    let mut all = futures::stream::iter(0..ROUNDS).map(attack).buffer_unordered(16);
    while let Some(done) = all.next().await {
        done?;
    }
    drop(all);
    println!("{ROUNDS} attachments in {:.1} s", begin.elapsed().as_secs_f64());
    before.compare(60).await?;
    world.exec(&id, &["/attack", "echo", "alive"]).await?;
    world.end().await
}

/// Imports an archive that lies in a file.
async fn import_file(world: &World, file: &Path) -> anyhow::Result<tests::Ran> {
    let ran = world.node.orlop(&["image", "import", file.to_str().context("a path")?]).await;
    std::fs::remove_file(file)?;
    ran
}

/// Manifests and configurations were read whole, whatever their size.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2023_25153_documents_without_end() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start().await?;
    let layer = tar(&base()?);
    // Warm: what an ordinary import takes.
    world.import(&saved("localhost/warm:1", json!({}), std::slice::from_ref(&layer))).await?.ok()?;
    let before = Before::look(&world)?;
    let good = r#"[{"Config":"config.json","RepoTags":["localhost/big:1"],"Layers":["layer0.tar"]}]"#;
    let deep = format!("{}{}", "[".repeat(2_000_000), "]".repeat(2_000_000));
    let many = format!(
        r#"[{{"Config":"config.json","RepoTags":["localhost/many:1"],"Layers":[{}"layer0.tar"]}}]"#,
        r#""layer0.tar","#.repeat(100_000)
    );
    let names = format!(
        r#"[{{"Config":"config.json","RepoTags":[{}"localhost/x:1"],"Layers":["layer0.tar"]}}]"#,
        r#""localhost/x:1","#.repeat(200_000)
    );
    let big_env = json!({"architecture": "amd64", "os": "linux", "config": {"Env": vec!["x".repeat(1000); 20_000]}, "rootfs": {"type": "layers", "diff_ids": []}}).to_string();
    for (what, members, sparse) in [
        ("a manifest of a gigabyte", vec![], Some("manifest.json")),
        ("a configuration of a gigabyte", vec![("manifest.json", good)], Some("config.json")),
        (
            "an index of a gigabyte",
            vec![("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#)],
            Some("index.json"),
        ),
        ("a layout of a gigabyte", vec![], Some("oci-layout")),
        ("a deep manifest", vec![("manifest.json", &*deep)], None),
        ("a deep configuration", vec![("manifest.json", good), ("config.json", &*deep)], None),
        (
            "a deep index",
            vec![("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#), ("index.json", &*deep)],
            None,
        ),
        ("a hundred thousand layers", vec![("manifest.json", &*many), ("config.json", "{}")], None),
        ("two hundred thousand names", vec![("manifest.json", &*names), ("config.json", "{}")], None),
        ("a large environment", vec![("manifest.json", good), ("config.json", &*big_env)], None),
    ] {
        let path = world.node.root.join("documents.tar");
        let mut file = std::fs::File::create(&path)?;
        let mut whole =
            tar(&members.iter().map(|(name, text)| Member::file(name, *text)).collect::<Vec<_>>());
        whole.truncate(whole.len() - 1024);
        if let Some(name) = sparse {
            let mut member = Member::file(name, Vec::new());
            member.size = Some(1 << 30);
            whole.extend_from_slice(&tar(&[member])[..512]);
        }
        file.write_all(&whole)?;
        if sparse.is_some() {
            file.write_all_at(b"\n", whole.len() as u64 + (1 << 30) - 1)?;
        }
        let begin = Instant::now();
        let said = import_file(&world, &path).await?.err().with_context(|| what.to_owned())?;
        let said: String = said.trim().chars().take(200).collect();
        println!("{what}: {said} ({:.1} s)", begin.elapsed().as_secs_f64());
        ensure!(begin.elapsed() < Duration::from_secs(20), "{what} took {:?}", begin.elapsed());
    }
    before.compare(100).await?;
    world.end().await
}

/// An image's list of groups without end was read into memory when a container was made.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2026_47262_groups_without_end() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start().await?;
    let pod = world.pod(|_| {}).await?;
    world.run(&pod, &["report"], |_| {}).await??;
    let line = format!("g:x:7:{}root\n", "web,".repeat(10_000));
    let endless = line.repeat(64 << 20 >> line.len().ilog2());
    let groups: String = (0..60_000).map(|number| format!("g{number}:x:{}:root\n", 1000 + number)).collect();
    let fits: String =
        groups.lines().take_while(|line| !line.starts_with("g45000")).map(|l| format!("{l}\n")).collect();
    let mut cases = vec![
        ("groups without end", vec![Member::file("etc/group", endless.clone())], false),
        ("users without end", vec![Member::file("etc/passwd", endless)], false),
        ("more groups than are read", vec![Member::file("etc/group", groups)], false),
        ("as many groups as are read", vec![Member::file("etc/group", fits)], true),
        ("a line without end", vec![Member::file("etc/group", "x".repeat(900_000))], true),
    ];
    for name in ["etc/group", "etc/passwd"] {
        cases.extend([
            ("a pipe", vec![Member::special(b'6', name)], true),
            ("a device without end", vec![Member::special(b'3', name)], true),
            ("a directory", vec![Member::dir(name)], true),
            ("a link to a device", vec![Member::symlink(name, "/dev/zero")], true),
            ("a link to a file of the host's", vec![Member::symlink(name, "/proc/self/environ")], true),
            (
                "a link to itself",
                vec![Member::symlink(name, name.rsplit('/').next().unwrap_or_default())],
                true,
            ),
        ]);
    }
    let mut images = Vec::new();
    for (number, (what, members, runs)) in cases.into_iter().enumerate() {
        images.push((world.image(&format!("users{number}"), json!({}), members).await?, what, runs));
    }
    let before = Before::look(&world)?;
    for (image, what, runs) in images {
        let begin = Instant::now();
        let ran = world
            .run(&pod, &["report"], |config| {
                config.image = Some(ImageSpec { image: image.clone(), ..Default::default() });
                context(config).supplemental_groups_policy = SupplementalGroupsPolicy::Merge as i32;
            })
            .await?;
        match ran {
            Ok(ended) => ensure!(runs && ended.code == 0, "{what}: {ended:?}"),
            Err(status) => {
                println!("{what}: {}", status.message().chars().take(200).collect::<String>());
                ensure!(!runs, "{what} was refused: {status}");
            }
        }
        ensure!(begin.elapsed() < Duration::from_secs(10), "{what} took {:?}", begin.elapsed());
    }
    before.compare(40).await?;
    world.end().await
}
