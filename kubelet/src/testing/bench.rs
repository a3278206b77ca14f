//! A kubelet's pod machinery on a fake runtime, without an apiserver.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{ContainerStatus, Pod, PodStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tempfile::TempDir;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::fake_cri::{FakeCri, Handle, epoch};
use crate::clock::Clock;
use crate::config::Config;
use crate::events::Recorder;
use crate::fleet::{Fleet, Wanted};
use crate::images::Images;
use crate::metrics::Metrics;
use crate::node::facts::Machine;
use crate::objects::{Files, Objects};
use crate::shared::Shared;
use crate::source::parse::parse;

pub struct Bench {
    pub fake: Arc<FakeCri>,
    pub shared: Arc<Shared>,
    pub fleet: Arc<Fleet>,
    pub root: Arc<TempDir>,
    wanted: Wanted,
    token: CancellationToken,
}

impl Bench {
    pub fn new() -> Bench {
        let clock = Clock::Tokio { base: epoch(), since: Instant::now() };
        Bench::on(FakeCri::new(clock), clock, Arc::new(tempfile::tempdir().expect("temporary directory")))
    }

    fn on(fake: Arc<FakeCri>, clock: Clock, root: Arc<TempDir>) -> Bench {
        let mut config = Config::new("node1", root.path());
        config.node_ips = vec!["192.0.2.1".parse().expect("an address")];
        let metrics = Arc::new(Metrics::default());
        let shared = Arc::new(Shared {
            objects: Objects::new(None),
            services: None,
            runtime_classes: None,
            events: Recorder::start(None, "node1".into(), clock, Arc::clone(&metrics)),
            images: Arc::new(Images::open(&config.images, &config.root_dir).expect("no plugins")),
            clock,
            metrics,
            runtime_name: "fake".into(),
            machine: Machine { cpus: 4, memory: 8 << 30, ..Machine::default() },
            client: None,
            cri: Arc::new(Handle(Arc::clone(&fake))),
            config,
        });
        let token = CancellationToken::new();
        let fleet = Arc::new(Fleet::new(Arc::clone(&shared), token.clone()));
        tokio::spawn(crate::kubelet::follow_events(Arc::clone(&shared), Arc::clone(&fleet)));
        Bench { fake, shared, fleet, root, wanted: Wanted::default(), token }
    }

    /// The daemon dies and another takes over: same runtime, same files, no memory.
    pub async fn restart(self, pods: Vec<Pod>) -> Bench {
        self.token.cancel();
        tokio::task::yield_now().await;
        let mut next = Bench::on(Arc::clone(&self.fake), self.shared.clock, Arc::clone(&self.root));
        next.set(pods);
        next
    }

    /// Adds or changes a pod, or the ConfigMaps and Secrets, given as YAML.
    pub fn apply(&mut self, yaml: &str) {
        let manifest = parse(yaml, Path::new("test.yaml"), "node1", epoch()).expect("a good manifest");
        let mut files = Files::default();
        let key = |ns: &Option<String>, name: &Option<String>| {
            (ns.clone().unwrap_or_default(), name.clone().unwrap_or_default())
        };
        for map in manifest.config_maps {
            files.config_maps.insert(key(&map.metadata.namespace, &map.metadata.name), map);
        }
        for secret in manifest.secrets {
            files.secrets.insert(key(&secret.metadata.namespace, &secret.metadata.name), secret);
        }
        if !files.config_maps.is_empty() || !files.secrets.is_empty() {
            self.shared.objects.set_files(files);
        }
        for pod in manifest.pods {
            let mut pod = Arc::unwrap_or_clone(pod);
            pod.metadata.name = pod.metadata.name.map(|n| n.trim_end_matches("-node1").to_owned());
            self.put(pod);
        }
    }

    /// Adds or replaces one pod.
    pub fn put(&mut self, pod: Pod) {
        let mut all: Vec<Pod> = self.wanted.from_files.iter().map(|p| p.as_ref().clone()).collect();
        all.retain(|p| p.metadata.name != pod.metadata.name);
        all.push(pod);
        self.set(all);
    }

    fn set(&mut self, pods: Vec<Pod>) {
        self.wanted.from_files = pods.into_iter().map(Arc::new).collect();
        self.fleet.sync(&self.wanted);
    }

    pub fn pod(&self, name: &str) -> Pod {
        self.fleet.find("default", name).expect("the pod").1
    }

    /// As `kubectl delete` does it.
    pub fn delete(&mut self, name: &str, grace: i64) {
        let mut pod = self.pod(name);
        pod.status = None;
        pod.metadata.deletion_timestamp = Some(Time(self.shared.clock.now()));
        pod.metadata.deletion_grace_period_seconds = Some(grace);
        self.put(pod);
    }

    /// The objects are gone.
    pub fn forget_all(&mut self) {
        self.set(Vec::new());
    }

    pub fn status(&self, name: &str) -> PodStatus {
        self.pod(name).status.expect("a status")
    }

    pub async fn sleep(&self, seconds: u64) {
        tokio::time::sleep(Duration::from_secs(seconds)).await;
    }

    /// Waits until the pod looks so; a time-out shows how it looks then.
    pub async fn until(&self, name: &str, want: &str) {
        let deadline = Instant::now() + Duration::from_secs(1000);
        while self.line(name) != want {
            assert!(
                Instant::now() < deadline,
                "wanted {want:?}, is {:?}\n{}",
                self.line(name),
                self.fake.calls()
            );
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    pub async fn until_gone(&self, name: &str) {
        let deadline = Instant::now() + Duration::from_secs(1000);
        while self.fleet.find("default", name).is_some() {
            assert!(Instant::now() < deadline, "still there: {}\n{}", self.line(name), self.fake.calls());
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// `Running ready | app running x1 (last exit 1)`.
    pub fn line(&self, name: &str) -> String {
        let Some((_, pod)) = self.fleet.find("default", name) else { return "gone".into() };
        let status = pod.status.unwrap_or_default();
        let ready = status.conditions.iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True");
        let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
        let containers: Vec<String> = all.map(container).collect();
        let reason = status.reason.map(|r| format!(" {r}")).unwrap_or_default();
        let phase = status.phase.unwrap_or_default();
        format!("{phase}{}{reason} | {}", if ready { " ready" } else { "" }, containers.join(", "))
    }
}

fn container(s: &ContainerStatus) -> String {
    let state = s.state.clone().unwrap_or_default();
    let word = if let Some(w) = state.waiting {
        w.reason.unwrap_or_default()
    } else if let Some(t) = state.terminated {
        format!("exit {}", t.exit_code)
    } else {
        "running".into()
    };
    let last = s.last_state.as_ref().and_then(|l| l.terminated.as_ref());
    let last = last.map(|t| format!(" (last exit {})", t.exit_code)).unwrap_or_default();
    let count = if s.restart_count > 0 { format!(" x{}", s.restart_count) } else { String::new() };
    format!("{} {word}{count}{last}", s.name)
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.token.cancel();
        // Tests that mounted something leave nothing.
        let _cleaned = crate::volumes::mounts::unmount_below(self.root.path());
    }
}
