//! Runtime classes: pods whose containers another runtime makes, and what becomes of them when a part dies.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use rustix::process::Signal;
use tests::{Node, NodeOptions, binary, eventually, signal};

use crate::life::pid_of;
use crate::manifests::{IDLE, pod, pod_with};
use crate::needs_root;

const CRUN: &str = "/usr/bin/crun";

/// A class of that name for the handler of that name.
fn class(name: &str, more: &str) -> String {
    format!(
        "apiVersion: node.k8s.io/v1\nkind: RuntimeClass\nmetadata: {{name: {name}}}\nhandler: {name}\n{more}---\n"
    )
}

/// The same pod as `pod`, of a class.
fn pod_of(class: &str, name: &str, script: &str) -> String {
    pod_with(name, script, "", &format!("  runtimeClassName: {class}\n"))
}

/// Classes that can be tested here, each with its handler's configuration; none without crun.
fn handlers() -> Vec<(&'static str, String)> {
    if !Path::new(CRUN).exists() {
        println!("skipped: crun is not installed (package crun)");
        return Vec::new();
    }
    let mut found = vec![("crun", format!("  crun: {{runtimePath: {CRUN}}}\n"))];
    if binary().with_file_name("orlop-libcontainer").exists() {
        found.push(("libcontainer", "  libcontainer: {runtimeType: libcontainer}\n".to_owned()));
    } else {
        println!(
            "skipped: containers by libcontainer: there is no orlop-libcontainer beside {}",
            binary().display()
        );
    }
    found
}

async fn start(runtimes: &str) -> anyhow::Result<Node> {
    let config = format!("runtimes:\n{runtimes}");
    let node = Node::start_with(NodeOptions { config, ..NodeOptions::default() }).await?;
    node.import("busybox").await?;
    Ok(node)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_class_chooses_the_runtime() -> anyhow::Result<()> {
    needs_root!();
    let handlers = handlers();
    if handlers.is_empty() {
        return Ok(());
    }
    let node = start(&handlers.iter().map(|(_, config)| config.as_str()).collect::<String>()).await?;
    let told =
        node.kubectl(&["get", "nodes", "-o", "jsonpath={.items[0].status.runtimeHandlers[*].name}"]).await?;
    let told = told.ok()?;
    let more = "overhead: {podFixed: {cpu: 250m, memory: 16Mi}}\n\
                scheduling: {nodeSelector: {kubernetes.io/os: linux}, tolerations: [{key: special, operator: Exists}]}\n";
    let resources =
        "      resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 200m, memory: 32Mi}}\n";
    for (name, _) in &handlers {
        ensure!(told.split(' ').any(|handler| handler == *name), "{told}: no {name}");
        let spec = format!("  runtimeClassName: {name}\n");
        node.apply(&[class(name, more), pod_with(&format!("by-{name}"), IDLE, resources, &spec)].concat())
            .await?;
    }
    for (name, _) in &handlers {
        let table = node.kubectl(&["get", "runtimeclass", name]).await?.ok()?;
        ensure!(table.starts_with("NAME") && table.contains("HANDLER"), "{table}");
        let pod = format!("by-{name}");
        let seen = node.wait_ready(&pod).await?;
        let spec = &seen["spec"];
        ensure!(spec["overhead"]["cpu"] == "250m" && spec["overhead"]["memory"] == "16Mi", "{spec}");
        ensure!(spec["nodeSelector"]["kubernetes.io/os"] == "linux", "{spec}");
        let tolerations = spec["tolerations"].as_array().context("tolerations")?;
        ensure!(tolerations.iter().any(|one| one["key"] == "special"), "{spec}");
        // The runtime has it by its handler's name, with the overhead beside the containers' sums.
        let listed = node.crictl(&["pods", "--name", &pod, "-q"]).await?.ok()?;
        let sandbox = node.crictl(&["inspectp", listed.trim()]).await?.json()?;
        ensure!(sandbox["status"]["runtimeHandler"] == *name, "{sandbox}");
        let said = node.kubectl(&["exec", &pod, "--", "sh", "-c", "echo $((6*7)); id -u"]).await?.ok()?;
        ensure!(said == "42\n0\n", "{said}");
    }
    // What it takes is counted on the node.
    let described = node.kubectl(&["describe", "node"]).await?.ok()?;
    let requests = format!("{}m", 350 * handlers.len());
    let line = described.lines().find(|line| line.trim_start().starts_with("cpu  ") && line.contains('%'));
    ensure!(line.is_some_and(|line| line.contains(&requests)), "no {requests} of CPU in\n{described}");
    node.kubectl(&["delete", "pod", "--all", "--timeout=30s"]).await?.ok()?;
    node.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn classes_that_cannot_be_are_refused() -> anyhow::Result<()> {
    needs_root!();
    let mut node = start("  plain: {runtimeType: native}\n").await?;
    node.apply(&[class("plain", ""), class("kata", "")].concat()).await?;
    // By the apiserver: no such class, an overhead of one's own, a handler that is no name or another one.
    for (yaml, words) in [
        (pod_of("nope", "one", IDLE), "pod rejected: RuntimeClass \"nope\" not found"),
        (pod_with("one", IDLE, "", "  overhead: {cpu: 1}\n"), "without corresponding RuntimeClass"),
        (class("bad", "").replace("handler: bad", "handler: No_Name"), "handler: Invalid value: \"No_Name\""),
    ] {
        let refused = node.kubectl_with(&["create", "-f", "-"], &yaml).await?.err()?;
        ensure!(refused.contains(words), "no {words:?} in {refused}");
    }
    let patch = ["patch", "runtimeclass", "kata", "--type=merge", "-p", r#"{"handler":"other"}"#];
    let refused = node.kubectl(&patch).await?.err()?;
    ensure!(refused.contains("field is immutable"), "{refused}");

    // An overhead that no node has room for keeps a pod from being placed.
    let huge = "overhead: {podFixed: {cpu: 1000}}\n";
    node.apply(
        &[class("huge", huge).replace("handler: huge", "handler: plain"), pod_of("huge", "big", IDLE)]
            .concat(),
    )
    .await?;
    let events = async |pod: &str, words: &str| {
        eventually("the pod's event", || async {
            let described = node.kubectl(&["describe", "pod", pod]).await?.ok()?;
            ensure!(described.contains(words), "{pod}: no {words:?} in\n{described}");
            Ok(())
        })
        .await
    };
    events("big", "Insufficient cpu").await?;

    // By the node: it has no such handler. The pod waits, and runs once it has.
    node.apply(&[pod_of("kata", "waits", IDLE), pod_of("plain", "native", IDLE)].concat().replace(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: native",
        "---\napiVersion: v1\nkind: Pod\nmetadata:\n  name: native",
    ))
    .await?;
    node.wait_ready("native").await?;
    events("waits", "Failed to create pod sandbox: ").await?;
    events("waits", "no runtime for \"kata\" is configured").await?;
    let waiting = node.kubectl(&["get", "pod", "waits", "-o", "jsonpath={.status.phase}"]).await?.ok()?;
    ensure!(waiting == "Pending", "{waiting}");
    node.terminate().await?;
    let config = "runtimes:\n  plain: {runtimeType: native}\n  kata: {runtimeType: native}\n";
    std::fs::write(node.root.join("etc/config.yaml"), config)?;
    node.launch().await?;
    node.wait_ready("waits").await?;
    node.kubectl(&["delete", "pod", "--all", "--timeout=30s"]).await?.ok()?;
    node.end().await
}

/// crun behind a gate: its `create` waits until it is opened.
struct Gate {
    dir: PathBuf,
}

impl Gate {
    fn new(name: &str) -> anyhow::Result<Gate> {
        use std::os::unix::fs::PermissionsExt;
        let dir = std::env::temp_dir().join(format!("orlop-gate-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir)?;
        let gate = Gate { dir };
        rustix::fs::mkfifoat(rustix::fs::CWD, gate.file("go"), rustix::fs::Mode::from_raw_mode(0o600))?;
        std::fs::write(gate.file("closed"), "")?;
        let dir = gate.dir.display();
        let script = format!(
            "#!/bin/sh\ncase \" $* \" in *\" create \"*) if [ -e {dir}/closed ]; then echo $$ > {dir}/waits; read x < \
             {dir}/go; fi;; esac\nexec {CRUN} \"$@\"\n"
        );
        std::fs::write(gate.runtime(), script)?;
        std::fs::set_permissions(gate.runtime(), std::fs::Permissions::from_mode(0o755))?;
        Ok(gate)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn runtime(&self) -> PathBuf {
        self.file("runtime")
    }

    /// Waits until a `create` stands before it; its process id.
    async fn reached(&self) -> anyhow::Result<u32> {
        eventually("a create that waits", || async {
            Ok(std::fs::read_to_string(self.file("waits"))?.trim().parse()?)
        })
        .await
    }

    /// Later ones pass; the one that waits goes on waiting.
    fn pass(&self) -> anyhow::Result<()> {
        Ok(std::fs::remove_file(self.file("closed"))?)
    }

    /// Lets the one that waits go; nobody may wait any more.
    fn open(&self) -> anyhow::Result<()> {
        use std::io::Write;
        use std::os::unix::fs::OpenOptionsExt;
        let nonblock = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
        match std::fs::File::options().write(true).custom_flags(nonblock).open(self.file("go")) {
            Ok(mut go) => Ok(writeln!(go)?),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        // Only the directory of a test; what is left of it lies in the temporary directory.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_or_the_keeper_dies_while_another_runtime_creates() -> anyhow::Result<()> {
    needs_root!();
    if handlers().is_empty() {
        return Ok(());
    }
    for (who, name) in [("daemon", "slow-a"), ("keeper", "slow-b")] {
        let gate = Gate::new(who)?;
        let mut node = start(&format!("  slow: {{runtimePath: {}}}\n", gate.runtime().display())).await?;
        node.apply(&[class("slow", ""), pod_of("slow", name, IDLE)].concat()).await?;
        let waits = gate.reached().await?;
        gate.pass()?;
        if who == "daemon" {
            node.kill().await?;
            node.launch().await?;
        } else {
            signal(node.keeper_pid()?, Signal::KILL)?;
            // What it had started ends with it, so that nobody makes a container that nobody knows.
            eventually("the create to end with the keeper", || async {
                ensure!(!Path::new(&format!("/proc/{waits}")).exists(), "process {waits} is there");
                Ok(())
            })
            .await?;
        }
        gate.open()?;
        node.wait_ready(name).await.with_context(|| format!("the {who} was killed"))?;
        let said = node.kubectl(&["exec", name, "--", "echo", "here"]).await?.ok()?;
        ensure!(said == "here\n", "{said}");
        let containers = node.crictl(&["ps", "--name", "main", "--state", "running", "-q"]).await?.ok()?;
        ensure!(containers.lines().count() == 1, "{who}: {containers}");
        node.kubectl(&["delete", "pod", "--all", "--timeout=30s"]).await?.ok()?;
        node.end().await.with_context(|| format!("the {who} was killed"))?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_keeper_dies_under_containers_of_other_runtimes() -> anyhow::Result<()> {
    needs_root!();
    let handlers = handlers();
    if handlers.is_empty() {
        return Ok(());
    }
    let node = start(&handlers.iter().map(|(_, config)| config.as_str()).collect::<String>()).await?;
    const COUNT: &str = "i=0; while :; do echo $i; i=$((i+1)); sleep 0.05; done";
    let mut before = Vec::new();
    for (name, _) in &handlers {
        let pods =
            [pod_of(name, &format!("counts-{name}"), COUNT), pod_of(name, &format!("ends-{name}"), IDLE)];
        node.apply(&[class(name, ""), pods.join("---\n")].concat()).await?;
    }
    for (name, _) in &handlers {
        for pod in [format!("counts-{name}"), format!("ends-{name}")] {
            node.wait_ready(&pod).await?;
            before.push((pid_of(&node, &pod).await?, pod));
        }
    }
    let old = node.keeper_pid()?;
    signal(old, Signal::KILL)?;
    eventually("a new keeper", || async {
        ensure!(node.keeper_pid()? != old);
        Ok(())
    })
    .await?;
    for (pid, pod) in &before {
        ensure!(pid_of(&node, pod).await? == *pid, "{pod} was restarted");
    }
    for (name, _) in &handlers {
        let pod = format!("counts-{name}");
        let lines = async || anyhow::Ok(node.kubectl(&["logs", &pod]).await?.ok()?.lines().count());
        let so_far = lines().await?;
        eventually("more lines", || async {
            ensure!(lines().await? > so_far + 5);
            Ok(())
        })
        .await?;
        let said = node.kubectl(&["exec", &pod, "--", "echo", "here"]).await?.ok()?;
        ensure!(said == "here\n", "{name}: {said}");
        let pod = format!("ends-{name}");
        signal(pid_of(&node, &pod).await?, Signal::KILL)?;
        node.wait_for(&format!("pod/{pod}"), "restarted", |pod| {
            pod["status"]["containerStatuses"][0]["restartCount"].as_u64().unwrap_or(0) == 1
        })
        .await?;
    }
    // Beside them, one of ours.
    node.apply(&pod("native", IDLE)).await?;
    node.wait_ready("native").await?;
    node.kubectl(&["delete", "pod", "--all", "--timeout=60s"]).await?.ok()?;
    node.end().await
}
