//! `orlop server`: from its start to a Ready node, and from a pod's creation in the API to its Ready.
//!
//! Guarantees: times are what a client of the API sees, over TLS with the administrator's certificate.
//! Caveat: `kubectl`'s own start is not in them. Node readiness is looked at each few milliseconds.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod, ServiceAccount};
use kube::api::{DeleteParams, ListParams, PostParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use serde_json::json;

use crate::engine::text;
use crate::measure::Measure;
use crate::memory;
use crate::pods::IMAGE;
use crate::process::{Daemon, run};
use crate::report::{Report, Who};

const PATIENCE: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(5);
/// A server is left alone for so long before its memory counts.
const SETTLE: Duration = Duration::from_secs(2);

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Starts on an empty directory, and as many on a used one.
    pub starts: usize,
    /// Pods one after the other.
    pub pods: usize,
    /// Pods at once.
    pub crowd: usize,
}

/// A running server.
struct Server<'a> {
    binary: &'a Path,
    root: PathBuf,
    daemon: Daemon,
    client: Client,
}

/// Measures all of it, below `dir`.
pub async fn run_all(report: &mut Report, binary: &Path, dir: &Path, image: &Path, size: Size) {
    let first = async {
        for number in 1..=size.starts {
            let root = dir.join(format!("orlop-start-{number}"));
            timed_start(report, binary, &root, Measure::ServerStart).await?.end().await?;
        }
        anyhow::Ok(())
    };
    let first = first.await;
    report.note(Who::Orlop, &[Measure::ServerStart], first);
    let used = dir.join("orlop-server");
    let again = async {
        for _ in 0..=size.starts {
            let measure = if used.exists() { Measure::ServerRestart } else { Measure::ServerStart };
            timed_start(report, binary, &used, measure).await?.end().await?;
        }
        anyhow::Ok(())
    };
    let again = again.await;
    report.note(Who::Orlop, &[Measure::ServerRestart], again);
    let pods = pods(report, binary, &used, image, size).await;
    let measures = [Measure::ServerIdle, Measure::CreateToReady, Measure::CrowdToReady, Measure::ServerCrowd];
    report.note(Who::Orlop, &measures, pods);
    // The image is there from the step before.
    let recovery = recover(report, binary, &used, size.starts).await;
    report.note(Who::Orlop, &[Measure::ServerRecovery], recovery);
}

async fn timed_start<'a>(
    report: &mut Report,
    binary: &'a Path,
    root: &Path,
    measure: Measure,
) -> anyhow::Result<Server<'a>> {
    let (server, time) = Server::start(binary, root).await?;
    report.add_ms(Who::Orlop, measure, time);
    let how = if measure == Measure::ServerStart { "on an empty directory" } else { "again" };
    report.say(&format!("orlop server {how}: Ready after {:.0} ms", time.as_secs_f64() * 1e3));
    Ok(server)
}

impl<'a> Server<'a> {
    /// Starts it and waits until its node is Ready; says how long that took.
    async fn start(binary: &'a Path, root: &Path) -> anyhow::Result<(Server<'a>, Duration)> {
        std::fs::create_dir_all(root.join("etc"))?;
        std::fs::write(root.join("etc/config.yaml"), "")?;
        let log = root.join("daemon.log");
        let kubeconfig = root.join("etc/admin.kubeconfig");
        // After a restart the stored status still says Ready until the kubelet speaks again, so its lease
        // must be renewed too.
        let is_restart = kubeconfig.exists();
        let (since, begin) = (jiff::Timestamp::now(), Instant::now());
        let mut daemon = Daemon::start("orlop server", binary, &["--root", text(root)?, "server"], &log)?;
        let look = || async {
            let client = connect(&kubeconfig).await?;
            let nodes = Api::<Node>::all(client.clone()).list(&ListParams::default()).await?;
            ensure!(nodes.items.iter().any(node_ready), "the node is not Ready");
            if is_restart {
                let leases = Api::<Lease>::namespaced(client.clone(), "kube-node-lease");
                let leases = leases.list(&ListParams::default()).await?;
                ensure!(leases.items.iter().any(|lease| renewed(lease, since)), "the node's lease is old");
            }
            Ok(client)
        };
        let client = daemon.until("the node to be Ready", PATIENCE, LOOK, look).await?;
        Ok((Server { binary, root: root.to_owned(), daemon, client }, begin.elapsed()))
    }

    /// Ends the daemon, then its pods and its keeper.
    async fn end(self) -> anyhow::Result<()> {
        self.daemon.end().await?;
        run(self.binary, &["--root", text(&self.root)?, "stop"]).await.map(|_| ())
    }
}

async fn connect(kubeconfig: &Path) -> anyhow::Result<Client> {
    let read = Kubeconfig::read_from(kubeconfig).context("read the kubeconfig")?;
    let mut config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
    config.read_timeout = None;
    config.proxy_url = None;
    Ok(Client::try_from(config)?)
}

fn node_ready(node: &Node) -> bool {
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

fn renewed(lease: &Lease, since: jiff::Timestamp) -> bool {
    let time = lease.spec.as_ref().and_then(|spec| spec.renew_time.as_ref());
    time.is_some_and(|time| time.0 >= since)
}

fn pod_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.is_some_and(|all| all.iter().any(|c| c.type_ == "Ready" && c.status == "True"))
}

async fn pods(
    report: &mut Report,
    binary: &Path,
    root: &Path,
    image: &Path,
    size: Size,
) -> anyhow::Result<()> {
    let (mut server, _) = Server::start(binary, root).await?;
    let measured = async {
        tokio::time::sleep(SETTLE).await;
        report.add(Who::Orlop, Measure::ServerIdle, memory::of(server.daemon.pid()?)?.rss_mb());
        run(binary, &["--root", text(root)?, "image", "import", text(image)?]).await?;
        let accounts = Api::<ServiceAccount>::default_namespaced(server.client.clone());
        let account = || async { Ok(accounts.get("default").await?) };
        server.daemon.until("the default service account", PATIENCE, LOOK, account).await?;
        let api = Api::<Pod>::default_namespaced(server.client.clone());
        // One to warm up.
        for number in 0..=size.pods {
            let time = create_to_ready(&api, &[format!("single-{number}")]).await?;
            if number > 0 {
                report.add_ms(Who::Orlop, Measure::CreateToReady, time);
            }
        }
        let last = report.series(Who::Orlop, Measure::CreateToReady);
        let middle = last.and_then(|series| crate::stats::median(&series.values)).unwrap_or_default();
        report.say(&format!(
            "{} pods in the API, one after the other: Ready after {middle:.1} ms (p50)",
            size.pods
        ));
        let names: Vec<_> = (0..size.crowd).map(|number| format!("many-{number}")).collect();
        let weigh = async {
            tokio::time::sleep(SETTLE).await;
            Ok(memory::of(server.daemon.pid()?)?.rss_mb())
        };
        let (time, weight) = created(&api, &names, weigh).await?;
        report.add(Who::Orlop, Measure::CrowdToReady, time.as_secs_f64());
        report.add(Who::Orlop, Measure::ServerCrowd, weight);
        report.say(&format!("{} pods in the API: all Ready after {:.2} s", size.crowd, time.as_secs_f64()));
        anyhow::Ok(())
    };
    let measured = measured.await;
    let ended = server.end().await;
    measured.and(ended)
}

/// Ten pods run; the daemon is killed and started again, `rounds` times.
async fn recover(report: &mut Report, binary: &Path, root: &Path, rounds: usize) -> anyhow::Result<()> {
    let (mut server, _) = Server::start(binary, root).await?;
    let api = Api::<Pod>::default_namespaced(server.client.clone());
    let names: Vec<_> = (0..10).map(|number| format!("stays-{number}")).collect();
    for name in &names {
        api.create(&PostParams::default(), &pod(name)?)
            .await
            .with_context(|| format!("create pod {name}"))?;
    }
    let all_ready = || async {
        let ready = api.list(&ListParams::default()).await?.items.iter().filter(|pod| pod_ready(pod)).count();
        ensure!(ready == names.len(), "{ready} pods are Ready");
        Ok(())
    };
    server.daemon.until("ten pods to be Ready", PATIENCE, LOOK, all_ready).await?;
    let mut times = Vec::new();
    for _ in 0..rounds {
        let Server { daemon, .. } = server;
        daemon.kill().await?;
        let time;
        (server, time) = Server::start(binary, root).await?;
        report.add_ms(Who::Orlop, Measure::ServerRecovery, time);
        times.push(time.as_secs_f64() * 1e3);
    }
    let middle = crate::stats::median(&times).unwrap_or_default();
    report.say(&format!(
        "orlop server killed with ten pods running: Ready {middle:.0} ms after its start (p50)"
    ));
    let api = Api::<Pod>::default_namespaced(server.client.clone());
    for name in &names {
        api.delete(name, &DeleteParams::default().grace_period(0))
            .await
            .with_context(|| format!("delete {name}"))?;
    }
    server.end().await
}

async fn create_to_ready(api: &Api<Pod>, names: &[String]) -> anyhow::Result<Duration> {
    Ok(created(api, names, async { Ok(()) }).await?.0)
}

/// Creates pods, waits until all are Ready, does `then`, and deletes them; says how long Ready took.
async fn created<T>(
    api: &Api<Pod>,
    names: &[String],
    then: impl Future<Output = anyhow::Result<T>>,
) -> anyhow::Result<(Duration, T)> {
    let from =
        api.list(&ListParams::default()).await?.metadata.resource_version.context("a list has no version")?;
    let mut events = api.watch(&WatchParams::default(), &from).await?.boxed();
    let begin = Instant::now();
    for name in names {
        api.create(&PostParams::default(), &pod(name)?)
            .await
            .with_context(|| format!("create pod {name}"))?;
    }
    let mut waiting: Vec<&str> = names.iter().map(String::as_str).collect();
    let ready = async {
        while !waiting.is_empty() {
            match events.try_next().await?.context("the watch ended")? {
                WatchEvent::Modified(pod) | WatchEvent::Added(pod) if pod_ready(&pod) => {
                    waiting.retain(|name| pod.metadata.name.as_deref() != Some(*name));
                }
                WatchEvent::Error(status) => bail!("the watch failed: {}", status.message),
                _ => {}
            }
        }
        anyhow::Ok(begin.elapsed())
    };
    let time = tokio::time::timeout(PATIENCE, ready).await;
    let time =
        time.with_context(|| format!("{} of {} pods did not get Ready", waiting.len(), names.len()))??;
    let result = then.await?;
    for name in names {
        api.delete(name, &DeleteParams::default().grace_period(0))
            .await
            .with_context(|| format!("delete {name}"))?;
    }
    let mut left: Vec<&str> = names.iter().map(String::as_str).collect();
    let gone = async {
        while !left.is_empty() {
            if let WatchEvent::Deleted(pod) = events.try_next().await?.context("the watch ended")? {
                left.retain(|name| pod.metadata.name.as_deref() != Some(*name));
            }
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, gone).await.context("pods are not deleted")??;
    Ok((time, result))
}

fn pod(name: &str) -> anyhow::Result<Pod> {
    let value = json!({
        "metadata": {"name": name},
        "spec": {"containers": [{"name": "sleep", "image": IMAGE, "command": ["sleep", "100000"]}]},
    });
    serde_json::from_value(value).context("make a pod")
}
