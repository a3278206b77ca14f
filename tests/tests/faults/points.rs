//! Every step of every call that changes something: an error there, and the daemon's death there.
//!
//! The steps are found by making the calls once: what they pass is what is struck, so a new step is struck, too.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use cri_api::v1::*;
use cri_api::{Cri, GrpcClient};
use tests::leaks::in_kernel;
use tests::{Node, NodeOptions, Registry, eventually, eventually_within, image};

use crate::pods::*;

/// How long a step that comes after the answer may take to be passed.
const LATER: Duration = Duration::from_secs(5);

/// The calls, in the order in which a pod passes through them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Call {
    Run,
    Create,
    Start,
    Stop,
    Remove,
    /// With a running container in it.
    StopPod,
    /// With an ended container in it.
    RemovePod,
    Pull,
}

const CALLS: [Call; 8] = [
    Call::Run,
    Call::Create,
    Call::Start,
    Call::Stop,
    Call::Remove,
    Call::StopPod,
    Call::RemovePod,
    Call::Pull,
];

struct Bench {
    node: Node,
    cri: GrpcClient,
    faults: PathBuf,
    config: PodSandboxConfig,
    /// Ids of the sandbox and the container of this round.
    pod: String,
    container: String,
    pulled: String,
    /// What there is in the kernel without pods.
    before: Option<BTreeSet<String>>,
}

impl Bench {
    async fn start() -> anyhow::Result<(Bench, Registry)> {
        let options = NodeOptions { role: vec!["cri".into()], faults: true, ..NodeOptions::default() };
        let node = Node::start_with(options).await?;
        let registry = Registry::start(&node, 5000).await?;
        let pulled = registry.push(&image("hello"), "hello:1").await?;
        node.import("busybox").await?;
        let cri = client(&node).await?;
        let config = pod(&node, "pod", NamespaceMode::Pod, Some(18080));
        let faults = node.faults();
        let none = String::new;
        Ok((
            Bench { node, cri, faults, config, pod: none(), container: none(), pulled, before: None },
            registry,
        ))
    }

    /// Brings the node to where `call` can be made.
    async fn prepare(&mut self, call: Call) -> anyhow::Result<()> {
        if call == Call::Pull {
            let image = Some(ImageSpec { image: self.pulled.clone(), ..Default::default() });
            let request = RemoveImageRequest { image };
            return self.cri.remove_image(request).await.context("RemoveImage").map(drop);
        }
        if call > Call::Run {
            self.pod = run_pod(&self.cri, &self.config).await?;
        }
        if call > Call::Create {
            self.container = create(&self.cri, &self.pod, &self.config).await?;
        }
        if call > Call::Start {
            start(&self.cri, &self.container).await?;
        }
        match call {
            Call::Remove => stop(&self.cri, &self.container).await,
            Call::RemovePod => stop_pod(&self.cri, &self.pod).await,
            _ => Ok(()),
        }
    }

    async fn make(&mut self, call: Call) -> anyhow::Result<()> {
        match call {
            Call::Run => self.pod = run_pod(&self.cri, &self.config).await?,
            Call::Create => self.container = create(&self.cri, &self.pod, &self.config).await?,
            Call::Start => start(&self.cri, &self.container).await?,
            Call::Stop => stop(&self.cri, &self.container).await?,
            Call::Remove => remove(&self.cri, &self.container).await?,
            Call::StopPod => stop_pod(&self.cri, &self.pod).await?,
            Call::RemovePod => remove_pod(&self.cri, &self.pod).await?,
            Call::Pull => {
                let image = Some(ImageSpec { image: self.pulled.clone(), ..Default::default() });
                let request = PullImageRequest { image, ..Default::default() };
                self.cri.pull_image(request).await.context("PullImage")?;
            }
        }
        Ok(())
    }

    /// Removes the round's pod, and sees that nothing is left.
    async fn finish(&mut self) -> anyhow::Result<()> {
        for sandbox in sandboxes(&self.cri).await? {
            stop_pod(&self.cri, &sandbox.id).await?;
            remove_pod(&self.cri, &sandbox.id).await?;
        }
        self.nothing_left().await
    }

    /// Only what was there before the first round may be there after each; the node's own table comes with the first pod.
    async fn nothing_left(&self) -> anyhow::Result<()> {
        let (pods, containers) = (sandboxes(&self.cri).await?, containers(&self.cri).await?);
        ensure!(pods.is_empty() && containers.is_empty(), "still listed: {pods:?} {containers:?}");
        eventually_within("nothing to be left", Duration::from_secs(10), || async {
            let mut left = left(&self.node);
            if left.is_empty()
                && let Some(before) = &self.before
            {
                let now = in_kernel(&self.node.root, &self.node.netns).await;
                left.extend(now.difference(before).cloned());
            }
            ensure!(left.is_empty(), "{}", left.join("\n"));
            Ok(())
        })
        .await
    }

    /// What the call passes, a name as often as it is passed; also what comes after its answer.
    async fn record(&mut self, call: Call) -> anyhow::Result<BTreeMap<String, u32>> {
        self.prepare(call).await?;
        let trace = self.faults.join("passed");
        std::fs::write(&trace, "")?;
        self.make(call).await?;
        if call == Call::RemovePod {
            self.nothing_left().await?;
        }
        let mut steps = BTreeMap::new();
        for name in std::fs::read_to_string(&trace)?.lines() {
            *steps.entry(name.to_owned()).or_default() += 1;
        }
        self.finish().await?;
        Ok(steps)
    }

    /// One round. Tells whether the step was passed.
    async fn round(&mut self, call: Call, how: &str, nth: u32, step: &str) -> anyhow::Result<bool> {
        self.prepare(call).await?;
        let (armed, struck) = (self.faults.join("armed"), self.faults.join("struck"));
        // In one go: the daemon must not read half of it.
        std::fs::write(self.faults.join("arming"), format!("{how} {nth} {step}"))?;
        std::fs::rename(self.faults.join("arming"), &armed)?;
        let outcome = self.make(call).await;
        let there = eventually_within("the step", LATER, || async {
            ensure!(struck.exists(), "{step} was not passed");
            Ok(())
        });
        if there.await.is_err() {
            std::fs::remove_file(&armed)?;
            outcome?;
            self.finish().await?;
            return Ok(false);
        }
        std::fs::remove_file(&struck)?;
        if how == "kill" {
            let status = self.node.ended().await?;
            ensure!(!status.success(), "it ended with {status}");
            self.node.launch().await?;
        }
        self.is_right(call, outcome.is_ok(), how == "kill").await?;
        self.finish().await?;
        Ok(true)
    }

    /// The state after a call that failed, and a second attempt with the same names.
    async fn is_right(&mut self, call: Call, answered: bool, died: bool) -> anyhow::Result<()> {
        match call {
            Call::Run => {
                let found = sandboxes(&self.cri).await?;
                if !answered && !died {
                    ensure!(found.is_empty(), "RunPodSandbox failed, and there is {found:?}");
                }
                let ready = PodSandboxState::SandboxReady as i32;
                ensure!(found.iter().all(|row| row.state == ready), "half made: {found:?}");
                self.make(call).await.context("again")?;
                let found = sandboxes(&self.cri).await?;
                ensure!(found.len() == 1 && found[0].id == self.pod && found[0].state == ready, "{found:?}");
                self.container_runs().await
            }
            Call::Create => {
                let found = containers(&self.cri).await?;
                if !answered && !died {
                    ensure!(found.is_empty(), "CreateContainer failed, and there is {found:?}");
                }
                self.container_runs().await
            }
            Call::Start => self.started(answered).await,
            Call::Stop => {
                self.make(call).await.context("again")?;
                let state = self.state().await?;
                ensure!(state == Some(ContainerState::ContainerExited), "stopped: {state:?}");
                Ok(())
            }
            Call::Remove => {
                self.make(call).await.context("again")?;
                ensure!(self.state().await?.is_none(), "removed, and listed");
                self.container_runs().await
            }
            Call::StopPod => {
                self.make(call).await.context("again")?;
                let found = sandboxes(&self.cri).await?;
                ensure!(
                    found.len() == 1 && found[0].state == PodSandboxState::SandboxNotready as i32,
                    "{found:?}"
                );
                let state = self.state().await?;
                ensure!(state == Some(ContainerState::ContainerExited), "in a stopped pod: {state:?}");
                Ok(())
            }
            Call::RemovePod => {
                self.make(call).await.context("again")?;
                self.nothing_left().await
            }
            Call::Pull => {
                self.make(call).await.context("again")?;
                let image = Some(ImageSpec { image: self.pulled.clone(), ..Default::default() });
                let status = self.cri.image_status(ImageStatusRequest { image, verbose: false }).await?;
                ensure!(status.image.is_some(), "pulled, and not there");
                self.node.orlop(&["image", "verify"]).await?.ok().map(drop)
            }
        }
    }

    /// After StartContainer: it runs, or it can be started, or it has ended and can be replaced.
    async fn started(&mut self, answered: bool) -> anyhow::Result<()> {
        let settled = eventually_within("the container to be one thing", Duration::from_secs(10), || async {
            let state = self.state().await?;
            match state {
                Some(ContainerState::ContainerRunning) if answered => Ok(state),
                // The daemon may have died between the start and the answer.
                Some(ContainerState::ContainerRunning | ContainerState::ContainerCreated) if !answered => {
                    Ok(state)
                }
                Some(ContainerState::ContainerExited) if !answered => Ok(state),
                _ => bail!("it is {state:?}"),
            }
        });
        match settled.await? {
            Some(ContainerState::ContainerCreated) => {
                self.make(Call::Start).await.context("again")?;
            }
            Some(ContainerState::ContainerExited) => {
                remove(&self.cri, &self.container).await?;
                return self.container_runs().await;
            }
            _ => {}
        }
        let state = self.state().await?;
        ensure!(state == Some(ContainerState::ContainerRunning), "started, and {state:?}");
        self.answers().await
    }

    /// A container of the same name can be made and works; one that is there is the one.
    async fn container_runs(&mut self) -> anyhow::Result<()> {
        self.make(Call::Create).await.context("again")?;
        let found = containers(&self.cri).await?;
        ensure!(found.len() == 1 && found[0].id == self.container, "{found:?}");
        self.make(Call::Start).await?;
        self.answers().await
    }

    /// The container does what it is told.
    async fn answers(&self) -> anyhow::Result<()> {
        let cmd = vec!["cat".into(), "/etc/hostname".into()];
        let request = ExecSyncRequest { container_id: self.container.clone(), cmd, timeout: 10 };
        let said = self.cri.exec_sync(request).await.context("ExecSync")?;
        ensure!(said.exit_code == 0 && said.stdout == b"pod\n", "{said:?}");
        Ok(())
    }

    async fn state(&self) -> anyhow::Result<Option<ContainerState>> {
        let found = containers(&self.cri).await?;
        let row = found.into_iter().find(|row| row.id == self.container);
        row.map(|row| ContainerState::try_from(row.state).context("an unknown state")).transpose()
    }
}

/// Open descriptors of a process.
fn descriptors(pid: u32) -> usize {
    std::fs::read_dir(format!("/proc/{pid}/fd")).map(Iterator::count).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn every_step_may_fail_and_be_the_last() -> anyhow::Result<()> {
    if !tests::can_run() {
        return Ok(());
    }
    let begin = Instant::now();
    // Part of the name of a round, such as `StopPod, kill`: for who hunts a bug.
    let only = std::env::var("ORLOP_TEST_FAULTS");
    let (mut bench, registry) = Bench::start().await?;
    let (mut rounds, mut wrong) = (0, Vec::new());
    for call in CALLS {
        let steps = bench.record(call).await.with_context(|| format!("record {call:?}"))?;
        if bench.before.is_none() {
            // The reaper deletes interfaces behind the answers.
            let ports = |found: &BTreeSet<String>| found.iter().any(|what| what.starts_with("port "));
            let settled = eventually("the first pod's interface to be deleted", || async {
                let now = in_kernel(&bench.node.root, &bench.node.netns).await;
                ensure!(!ports(&now), "{now:?}");
                Ok(now)
            });
            bench.before = Some(settled.await?);
        }
        ensure!(steps.len() > 1, "{call:?} passes only {steps:?}: was this built without debug assertions?");
        let passings: u32 = steps.values().sum();
        println!("{call:?}: {} steps, passed {passings} times", steps.len());
        for how in ["error", "kill"] {
            let before = (descriptors(bench.node.daemon_pid()), descriptors(bench.node.keeper_pid()?));
            for (step, count) in &steps {
                for nth in 1..=*count {
                    let what = format!("{call:?}, {how} at {step} ({nth} of {count})");
                    if only.as_ref().is_ok_and(|only| !what.contains(only)) {
                        continue;
                    }
                    rounds += 1;
                    match bench.round(call, how, nth, step).await {
                        Ok(true) => {}
                        Ok(false) if nth > 1 => println!("{what}: not passed this time"),
                        Ok(false) => wrong.push(format!("{what}: not passed")),
                        Err(error) => {
                            println!("{what}: {error:#}; the daemon said:\n{}", bench.said());
                            wrong.push(format!("{what}: {error:#}"));
                            // Go on with a node that may be whole again.
                            bench.recover().await.with_context(|| wrong.join("\n"))?;
                        }
                    }
                }
            }
            let after = (descriptors(bench.node.daemon_pid()), descriptors(bench.node.keeper_pid()?));
            // A connection or two come and go.
            let more = after.0.saturating_sub(before.0 + 8) + after.1.saturating_sub(before.1 + 8);
            ensure!(more == 0, "{call:?}, {how}: descriptors went from {before:?} to {after:?}");
        }
    }
    println!("faults: {rounds} rounds in {} s", begin.elapsed().as_secs());
    ensure!(wrong.is_empty(), "{} rounds went wrong:\n{}", wrong.len(), wrong.join("\n"));
    drop(registry);
    bench.node.end().await
}

impl Bench {
    /// The end of what the daemon logged, without what it says at each start.
    fn said(&self) -> String {
        let text = self.node.log_text();
        let lines: Vec<_> = text.lines().filter(|line| !line.contains("runtime::open: ")).collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// Starts the daemon anew after a round that went wrong, and removes what is there.
    async fn recover(&mut self) -> anyhow::Result<()> {
        for name in ["armed", "struck"] {
            match std::fs::remove_file(self.faults.join(name)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
                _ => {}
            }
        }
        // It may have ended by itself.
        if self.node.kill().await.is_err() {
            println!("the daemon had ended");
        }
        self.node.launch().await?;
        self.finish().await
    }
}
