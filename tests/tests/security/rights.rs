//! What a process in a container may do, and how much of a request arrives.

use anyhow::{Context, ensure};
use cri_api::v1::*;

use crate::needs_root;
use crate::world::{Ended, Pod, World, context, pid_namespace, pod_context};

/// Fails unless the process had no inheritable and no ambient capabilities, and at most `most` of the others.
fn nothing_inheritable(who: &str, ended: &Ended) -> anyhow::Result<()> {
    for set in ["CapInh", "CapAmb"] {
        let line = ended.line(set);
        let bits = u64::from_str_radix(line, 16).with_context(|| format!("{who}: {}", ended.output))?;
        ensure!(bits == 0, "{who}: {set} is {line}");
    }
    Ok(())
}

/// A change that makes a container another, and what it is.
type Kind = (&'static str, fn(&mut ContainerConfig));

/// Users and capabilities of containers.
const KINDS: [Kind; 5] = [
    ("root", |_| {}),
    ("another user", |config| context(config).run_as_user = Some(Int64Value { value: 1000 })),
    ("with more", |config| {
        context(config).capabilities = Some(Capability {
            add_capabilities: vec!["NET_ADMIN".into(), "SYS_NICE".into()],
            ..Default::default()
        });
    }),
    ("with all", |config| {
        context(config).run_as_user = Some(Int64Value { value: 1000 });
        context(config).capabilities =
            Some(Capability { add_capabilities: vec!["ALL".into()], ..Default::default() });
    }),
    ("privileged", |config| context(config).privileged = true),
];

async fn pod_of(world: &World, kind: &str) -> anyhow::Result<Pod> {
    world.pod(|pod| pod_context(pod).privileged = kind == "privileged").await
}

/// Containers began with inheritable capabilities, which file capabilities turned into real ones.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2022_29162_inheritable_capabilities() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start().await?;
    for (kind, change) in KINDS {
        let pod = pod_of(&world, kind).await?;
        let ended = world.run(&pod, &["report"], change).await??;
        nothing_inheritable(kind, &ended)?;
    }
    // The check can fail: who asks for ambient capabilities gets inheritable ones, too.
    let pod = world.pod(|_| {}).await?;
    let ambient = |config: &mut ContainerConfig| {
        let names = vec!["NET_BIND_SERVICE".to_owned()];
        context(config).capabilities =
            Some(Capability { add_ambient_capabilities: names, ..Default::default() });
    };
    let ended = world.run(&pod, &["report"], ambient).await??;
    ensure!(nothing_inheritable("ambient", &ended).is_err(), "the check sees nothing: {}", ended.output);
    world.end().await
}

/// The same of what is executed in a container later.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2022_27650_inheritable_capabilities_of_an_exec() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start().await?;
    for (kind, change) in KINDS {
        let pod = pod_of(&world, kind).await?;
        let id = world.serve(&pod, &["sleep"], change).await?;
        nothing_inheritable(kind, &world.exec(&id, &["/attack", "report"]).await?)?;
        world.remove_pod(&pod).await?;
    }
    world.end().await
}

/// A list of id mappings longer than 64 KiB overflowed a length, and what followed was read as namespaces and paths.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2021_43784_lengths_that_overflow() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start().await?;
    let mapping = |number: u32| IdMapping { host_id: 100_000 + number, container_id: number, length: 1 };
    for count in [2, 340, 2731, 5462, 65_536] {
        let many: Vec<_> = (0..count).map(mapping).collect();
        let users = UserNamespace { mode: NamespaceMode::Pod as i32, uids: many.clone(), gids: many };
        let tried = world
            .try_pod(|pod| {
                let options = pid_namespace(NamespaceMode::Container);
                pod_context(pod).namespace_options =
                    Some(NamespaceOption { userns_options: Some(users), ..options });
            })
            .await?;
        let Err(status) = tried else { anyhow::bail!("{count} mappings were taken") };
        ensure!(status.message().contains("exactly one mapping"), "{status}");
    }
    // Everything that is written to the new process, around and beyond 64 KiB: it arrives whole, or is refused.
    let pod = world.pod(|_| {}).await?;
    for bytes in [65_535, 65_536, 65_537, 131_000, 700_000] {
        let pieces: Vec<String> = (0..bytes / 1000).map(|number| format!("{number:x}").repeat(250)).collect();
        let long = "x".repeat(bytes);
        let envs: Vec<_> = pieces
            .iter()
            .enumerate()
            .map(|(number, piece)| KeyValue { key: format!("HUGE{number}"), value: piece.clone().into() })
            .collect();
        let total: usize = envs.iter().map(|env| env.key.len() + 1 + env.value.len()).sum();
        let id = world
            .serve(&pod, &["sleep"], |config| {
                config.envs = envs.clone();
                config.args = pieces.clone();
                config.annotations.insert("huge".into(), long.clone());
                config.labels.insert("huge".into(), long.clone());
            })
            .await?;
        let ended = world.exec(&id, &["/attack", "sizes"]).await?;
        let found = format!("variables {} bytes {total} ", pieces.len());
        ensure!(ended.output.contains(&found), "{found} is wanted: {}", ended.output);
        ended.clean()?;
        own_namespaces(&world, &id).await?;
        world.remove(&id).await?;
        // Names that no path or host can have.
        for (what, refused) in [
            (
                "a working directory",
                world.run(&pod, &["report"], |c| c.working_dir = format!("/{long}")).await?,
            ),
            (
                "a mount",
                world
                    .run(&pod, &["report"], |c| {
                        c.mounts.push(crate::world::bind("/tmp".as_ref(), &format!("/{long}")))
                    })
                    .await?,
            ),
            ("a log", world.run(&pod, &["report"], |c| c.log_path = long.clone()).await?),
            ("a user", world.run(&pod, &["report"], |c| context(c).run_as_username = long.clone()).await?),
        ] {
            // A short refusal: a long one would end the connection.
            let Err(status) = refused else { anyhow::bail!("{what} of {bytes} bytes was taken") };
            ensure!(!status.message().contains("cancel"), "{what} of {bytes} bytes: {status}");
        }
    }
    world.end().await
}

/// Fails if a container's process shares a namespace with the host's.
async fn own_namespaces(world: &World, id: &str) -> anyhow::Result<()> {
    let pid = world.pid(id).await?;
    for name in ["mnt", "pid", "net", "ipc", "uts"] {
        let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/{name}"));
        ensure!(of(&pid.to_string())? != of("self")?, "the container has the host's namespace {name}");
    }
    Ok(())
}

/// The cgroup file system could be written to from a container.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2023_25809_cgroups_can_not_be_written() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start().await?;
    let pod = world.pod(|_| {}).await?;
    let files = ["cgroup.procs", "cgroup.subtree_control", "cgroup.freeze", "cgroup.kill", "../cgroup.procs"]
        .map(|name| format!("/sys/fs/cgroup/{name}"));
    let words: Vec<_> = ["settings"].into_iter().chain(files.iter().map(String::as_str)).collect();
    let ended = world.run(&pod, &words, |_| {}).await??;
    ended.no_loot()?;
    // They are there: a container with the host's view could be written to.
    let id = world.serve(&pod, &["sleep"], |_| {}).await?;
    let seen = world.exec(&id, &["/attack", "where", "/"]).await?;
    ensure!(seen.points().any(|point| point == "/sys/fs/cgroup"), "{}", seen.output);
    world.end().await
}

/// A pod's kernel setting smuggled others through a list joined with `+` (cr8escape).
#[tokio::test(flavor = "multi_thread")]
async fn cve_2022_0811_settings_that_smuggle_others() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start().await?;
    let evil = "|/bin/sh -c evil";
    let good = "kernel.shm_rmid_forced";
    let bad: &[(&str, String)] = &[
        (good, format!("1+kernel.core_pattern={evil}")),
        (good, format!("1\nkernel.core_pattern={evil}")),
        (good, format!("1,kernel.core_pattern={evil}")),
        (good, format!("1 -w kernel.core_pattern={evil}")),
        (good, "1\0kernel.core_pattern=x".into()),
        (good, "1".repeat(5000)),
        ("kernel.core_pattern", evil.into()),
        ("kernel/core_pattern", evil.into()),
        ("kernel.shm_rmid_forced=1+kernel.core_pattern", evil.into()),
        ("kernel.shm_rmid_forced\n", "1".into()),
        ("net.ipv4.../../kernel.core_pattern", evil.into()),
        ("net/../kernel/core_pattern", evil.into()),
        ("net/./../kernel/core_pattern", evil.into()),
        ("net//../kernel/core_pattern", evil.into()),
        ("/proc/sys/kernel/core_pattern", evil.into()),
        ("fs.mqueue.../../../kernel/core_pattern", evil.into()),
        ("Kernel.core_pattern", evil.into()),
        (" kernel.shm_rmid_forced", "1".into()),
        ("", "1".into()),
        (".", "1".into()),
        ("/", "1".into()),
        ("net", "1".into()),
        ("kernel.modprobe", "/evil".into()),
        ("kernel.hostname", "evil".into()),
        ("vm.panic_on_oom", "1".into()),
        ("net.ipv4.ip_unprivileged_port_start", "0+kernel.core_pattern=x".into()),
    ];
    for (key, value) in bad {
        let set = |pod: &mut PodSandboxConfig| {
            pod.linux.get_or_insert_default().sysctls.insert((*key).to_owned(), value.clone());
        };
        match world.try_pod(set).await? {
            Ok(_) => anyhow::bail!("{key:?} = {value:?} was taken"),
            Err(status) => println!("{key:?}: {}", status.message().chars().take(150).collect::<String>()),
        }
        world.host.check()?;
    }
    // The settings of a pod's own are set, as they are given.
    let own = [("kernel.shm_rmid_forced", "1"), ("net.ipv4.ip_unprivileged_port_start", "77")];
    let pod = world
        .pod(|pod| {
            pod.linux.get_or_insert_default().sysctls =
                own.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        })
        .await?;
    let read = world.run(&pod, &["cat", "/proc/sys/net/ipv4/ip_unprivileged_port_start"], |_| {}).await??;
    ensure!(read.output.trim() == "77", "{}", read.output);
    world.end().await
}
