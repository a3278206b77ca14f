//! What the runtime holds open while it starts a program, and who could reach it.

use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cri_api::Cri;
use cri_api::v1::*;
use serde_json::json;

use crate::archive::{Member, digest};
use crate::needs_root;
use crate::world::{World, bind, context, pid_namespace, pod_context};

/// Capabilities that a container gets unless it asks for others.
const DEFAULT_CAPABILITIES: u64 = 0xa804_25fb;
const SYS_PTRACE: u64 = 1 << 19;

/// The process that enters a container could be traced from inside, with the host's descriptors in its
/// hands. Here a container with CAP_SYS_PTRACE traces all that appears, while a thousand execs enter it, and
/// while containers start beside it in one process namespace.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2016_9962_tracing_a_process_that_enters() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start().await?;
    // What another pod was given, and what the attacker looks for: with its first letter changed, or it would find
    // its own arguments.
    let secret = "Neighbour-4711-keeps-this";
    let neighbour = world.pod(|_| {}).await?;
    let keeps = |config: &mut ContainerConfig| {
        config.envs = vec![KeyValue { key: "SECRET".into(), value: secret.into() }];
    };
    let neighbour = world.serve(&neighbour, &["sleep"], keeps).await?;
    let disguised = format!("O{}", &secret[1..]);
    for (shared, ptrace) in [(false, false), (false, true), (true, false), (true, true)] {
        world.exec(&neighbour, &["/attack", "echo", "in"]).await?;
        let mode = if shared { NamespaceMode::Pod } else { NamespaceMode::Container };
        let pod = world.pod(|pod| pod_context(pod).namespace_options = Some(pid_namespace(mode))).await?;
        let tracer = world
            .serve(&pod, &["trace", "8", &disguised], |config| {
                filtered(config);
                if ptrace {
                    may_trace(config);
                }
            })
            .await?;
        let until = Instant::now() + Duration::from_millis(6500);
        let mut rounds = 0;
        while Instant::now() < until && rounds < 1000 {
            rounds += 1;
            world.exec(&tracer, &["/attack", "echo", "in"]).await?;
            if shared && rounds % 4 == 0 {
                let id = world.launch(&pod, &["echo", "beside"], filtered).await?;
                world.remove(&id).await?;
            }
        }
        let ended = world.wait(&tracer).await?;
        println!("shared {shared} ptrace {ptrace}: {rounds} rounds, {}", ended.line("seen"));
        ended.no_loot()?;
        // Traced or not: a process that has its container's rights only is no prize.
        let allowed = DEFAULT_CAPABILITIES | SYS_PTRACE;
        for line in ended.output.lines().filter(|line| line.starts_with("TRACED")) {
            let effective = line.rsplit('\t').next().unwrap_or_default().trim();
            let effective = u64::from_str_radix(effective, 16).with_context(|| line.to_owned())?;
            ensure!(effective & !allowed == 0, "{line}");
        }
        let unfiltered =
            ended.output.lines().filter(|line| line.starts_with("FILTER")).find(|line| !line.ends_with('2'));
        ensure!(unfiltered.is_none(), "{unfiltered:?}");
        world.remove_pod(&pod).await?;
    }
    world.end().await
}

fn filtered(config: &mut ContainerConfig) {
    let kind = security_profile::ProfileType::RuntimeDefault as i32;
    context(config).seccomp = Some(SecurityProfile { profile_type: kind, ..Default::default() });
}

fn may_trace(config: &mut ContainerConfig) {
    let add = vec!["SYS_PTRACE".to_owned()];
    context(config).capabilities = Some(Capability { add_capabilities: add, ..Default::default() });
}

/// A container that may trace stops all that enters it for ever: an exec ends in its time all the same, and neither
/// other containers nor the keeper take any notice.
#[tokio::test(flavor = "multi_thread")]
async fn a_process_that_is_held_while_it_enters() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start().await?;
    let pod = world.pod(|_| {}).await?;
    let other = world.serve(&pod, &["sleep"], |_| {}).await?;
    let holder = world.serve(&pod, &["hold", "60"], may_trace).await?;
    let mut refused = 0;
    for _ in 0..8 {
        let request = ExecSyncRequest {
            container_id: holder.clone(),
            cmd: vec!["/attack".into(), "echo".into(), "in".into()],
            timeout: 1,
        };
        let began = Instant::now();
        let answer = world.cri.exec_sync(request).await;
        ensure!(began.elapsed() < Duration::from_secs(5), "{:?}: {answer:?}", began.elapsed());
        refused += usize::from(answer.is_err_and(|status| status.code() == tonic::Code::DeadlineExceeded));
        world.exec(&other, &["/attack", "echo", "in"]).await?.no_loot()?;
    }
    let held = world.output(&holder).await?;
    println!(
        "{refused} execs took too long, held before their program ran: {}",
        held.matches("before").count()
    );
    ensure!(held.contains("HELD") && refused > 0, "nothing was held: {held}");
    // Those that ended and are held are no work for the keeper.
    let keeper = world.node.keeper_pid()?;
    let before = processor_time(keeper)?;
    world.exec(&other, &["/attack", "echo", "in"]).await?;
    // The window that is measured: a keeper that spins has nothing to wait for.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let spent = processor_time(keeper)? - before;
    ensure!(spent < 50, "the keeper was busy for {spent} of 100 ticks");
    world.remove(&holder).await?;
    world.end().await
}

/// Clock ticks that a process has used.
fn processor_time(pid: u32) -> anyhow::Result<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = stat.rsplit_once(')').context("a name")?.1.split_whitespace().collect();
    Ok(fields[11].parse::<u64>()? + fields[12].parse::<u64>()?)
}

/// A container could write to the runtime's own program through `/proc/PID/exe` of a process that entered it.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2019_5736_overwriting_the_runtime_binary() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start().await?;
    let script = Member::file("entry", "#!/proc/self/exe\n");
    let image = world.image("exe", json!({"Entrypoint": ["/entry"]}), vec![script]).await?;
    let keeper = world.node.keeper_pid()?;
    let program = |pid: u32| anyhow::Ok(digest(&std::fs::read(format!("/proc/{pid}/exe"))?));
    let before = (program(keeper)?, program(world.node.daemon_pid())?);
    let pod =
        world.pod(|pod| pod_context(pod).namespace_options = Some(pid_namespace(NamespaceMode::Pod))).await?;
    let named = |config: &mut ContainerConfig| {
        config.image = Some(ImageSpec { image: image.clone(), ..Default::default() });
    };
    let attacker = world.serve(&pod, &["overwrite", "6"], named).await?;
    let until = Instant::now() + Duration::from_millis(5000);
    let mut rounds = 0;
    while Instant::now() < until {
        rounds += 1;
        // It runs the runtime's program in the container; what comes of that is not the question.
        for words in [&["/proc/self/exe"][..], &["/entry"]] {
            let _ended_or_refused = world.exec(&attacker, words).await;
        }
        if let Ok(id) = world
            .launch(&pod, &[], |config| {
                named(config);
                config.command.clear();
            })
            .await
        {
            world.remove(&id).await?;
        }
    }
    let ended = world.wait(&attacker).await?;
    println!("{rounds} rounds, {}", ended.line("seen"));
    ended.no_loot()?;
    let seen = ended.line("seen").split(' ').next().unwrap_or_default();
    ensure!(
        seen.parse::<u32>().is_ok_and(|seen| seen > 0),
        "the attack saw no program of the runtime: {}",
        ended.output
    );
    ensure!(
        (program(keeper)?, program(world.node.daemon_pid())?) == before,
        "the runtime's program is another"
    );
    // And it still works.
    let after = world.run(&pod, &["report"], |_| {}).await??;
    after.clean()?;
    world.end().await
}

/// A working directory of `/proc/self/fd/N` was a descriptor of the host's, and `../..` from there the host.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2024_21626_working_directory_in_a_leaked_descriptor() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start().await?;
    let pod = world.pod(|_| {}).await?;
    let canary = world.host.canary().join("secret");
    let canary = canary.to_str().context("a path")?.trim_start_matches('/').to_owned();
    let mut refused = 0;
    for number in 3..=64 {
        let directory = format!("/proc/self/fd/{number}");
        let config = json!({"WorkingDir": directory});
        let links = vec![Member::symlink("w", &directory), Member::symlink("deep", "w/../../..")];
        let image = world.image("cwd", config, links).await?;
        let named = |config: &mut ContainerConfig| {
            config.image = Some(ImageSpec { image: image.clone(), ..Default::default() });
        };
        for other in ["", "/w", "/deep", "/proc/1/fd/3", "/proc/thread-self/fd/7/.."] {
            let climbs = world
                .run(&pod, &["climb", &canary], |config| {
                    named(config);
                    config.working_dir = other.to_owned();
                })
                .await?;
            match climbs {
                Ok(ended) => {
                    ended.no_loot()?;
                    ensure!(ended.line("cwd").starts_with('/'), "{}", ended.output);
                }
                Err(status) => {
                    refused += 1;
                    ensure!(status.message().contains("working directory"), "{status}");
                }
            }
            // One number is enough for the spellings.
            if number != 7 {
                break;
            }
        }
        // The third form: the program itself by a descriptor.
        let through = format!("/proc/self/fd/{number}/../../../../../../../../usr/bin/id");
        let ran = world
            .run(&pod, &[], |config| {
                named(config);
                config.working_dir = "/".into();
                config.command = vec![through];
            })
            .await?;
        ensure!(ran.is_err(), "a program of the host ran: {ran:?}");
    }
    println!("{refused} working directories were refused");
    ensure!(refused >= 62, "only {refused} were refused");

    // Exec: the working directory becomes a link while the container runs.
    let volume = world.volume("work")?;
    std::fs::create_dir(volume.join("w"))?;
    let id = world
        .serve(&pod, &["sleep"], |config| {
            config.mounts.push(bind(&volume, "/volume"));
            config.working_dir = "/volume/w".into();
        })
        .await?;
    world.exec(&id, &["/attack", "report"]).await?.clean()?;
    std::fs::remove_dir(volume.join("w"))?;
    for number in 3..=64 {
        symlink(format!("/proc/self/fd/{number}"), volume.join("w"))?;
        match world.exec(&id, &["/attack", "climb", &canary]).await {
            Ok(ended) => {
                ended.no_loot()?;
                ensure!(ended.line("cwd").starts_with('/'), "{}", ended.output);
            }
            Err(status) => ensure!(status.message().contains("working directory"), "{status}"),
        }
        std::fs::remove_file(volume.join("w"))?;
    }
    // The check can fail: a container that is given the host's root climbs to the canary.
    let given = world
        .run(&pod, &["climb", &canary], |config| {
            config.mounts.push(bind(std::path::Path::new("/"), "/host"));
            config.working_dir = "/host/tmp".into();
        })
        .await??;
    ensure!(given.output.contains("LOOT"), "the check sees nothing: {}", given.output);
    world.end().await
}

/// The control socket of a shim was an abstract one, so any pod in the host's network could connect to it.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2020_15257_control_over_abstract_sockets() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start().await?;
    let pod = world
        .pod(|pod| {
            pod_context(pod).namespace_options = Some(NamespaceOption {
                network: NamespaceMode::Node as i32,
                pid: NamespaceMode::Container as i32,
                ..Default::default()
            });
        })
        .await?;
    let running = world.serve(&pod, &["sleep"], |_| {}).await?;
    let scan = world.run(&pod, &["scan-unix"], |_| {}).await??;
    println!("{}", scan.output.trim());
    ensure!(scan.code == 0 && scan.output.contains("sockets "), "{}", scan.output);
    ensure!(!scan.output.contains("CONNECTED"), "{}", scan.output);
    // The check can fail: a socket that is there on purpose is found.
    world.serve(&pod, &["listen-abstract", "decoy"], |_| {}).await?;
    let scan = world.run(&pod, &["scan-unix"], |_| {}).await??;
    let connected: Vec<_> = scan.output.lines().filter(|line| line.starts_with("CONNECTED")).collect();
    ensure!(
        connected.iter().all(|line| *line == "CONNECTED @decoy") && !connected.is_empty(),
        "{}",
        scan.output
    );
    world.remove(&running).await?;
    world.end().await
}
