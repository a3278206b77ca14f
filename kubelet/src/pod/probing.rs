//! Runs the probes of a pod's containers and keeps what they say.
//!
//! Guarantees: probes run for running containers only, and end with them. Whoever takes over a running
//! container (a restarted daemon) starts from what the pod's status said.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use cri_api::v1 as cri;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus, Probe};
use probes::{Action, ExecError, ExecOutput, Kind, Outcome, Report, Scheme, Thresholds, Tracker};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;

use super::hooks::port;
use super::observed::{Observed, State};
use super::step::{Job, ProbeKind, Verdict, until};
use super::view::{self, Member, Role};
use crate::events::Level;
use crate::metrics::count;
use crate::shared::Shared;

/// All probes of one pod.
pub struct Probes {
    running: BTreeMap<String, Watched>,
    said: mpsc::Sender<(String, Report)>,
    heard: mpsc::Receiver<(String, Report)>,
}

/// The probes of one container.
struct Watched {
    name: String,
    verdict: Verdict,
    started: watch::Sender<bool>,
    _tasks: JoinSet<()>,
}

impl Default for Probes {
    fn default() -> Probes {
        let (said, heard) = mpsc::channel(16);
        Probes { running: BTreeMap::new(), said, heard }
    }
}

impl Probes {
    /// Starts and ends probes so that they fit what runs. `busy` containers are still being started.
    pub fn sync(
        &mut self,
        shared: &Arc<Shared>,
        pod: &Pod,
        seen: &Observed,
        status: &PodStatus,
        busy: impl Fn(&Job) -> bool,
        ending: bool,
    ) {
        let alive =
            |id: &str| seen.containers.iter().any(|c| c.id == id && matches!(c.state, State::Running { .. }));
        self.running.retain(|id, _| alive(id) && !ending);
        if ending {
            return;
        }
        let spec = view::spec(pod);
        for member in view::members(spec).filter(|m| m.role != Role::Init) {
            let Some(c) = seen.current(member.name()) else { continue };
            let State::Running { started } = c.state else { continue };
            if self.running.contains_key(&c.id) || busy(&Job::Start(c.name.clone())) {
                continue;
            }
            let ip = pod_ip(shared, pod, seen);
            let watched = self.start(shared, pod, &member, &c.id, started, ip, status);
            self.running.insert(c.id.clone(), watched);
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn start(
        &self,
        shared: &Arc<Shared>,
        pod: &Pod,
        member: &Member<'_>,
        id: &str,
        began: Timestamp,
        ip: Option<IpAddr>,
        status: &PodStatus,
    ) -> Watched {
        let spec = member.spec;
        let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
        let own = format!("{}://{id}", shared.runtime_name);
        // What was reported of this very container, before this process watched it.
        let before = all.into_iter().find(|s| s.container_id.as_deref() == Some(own.as_str()));
        let was_started = before.is_some_and(|s| s.started == Some(true));
        let was_ready = before.is_some_and(|s| s.ready);
        let started = spec.startup_probe.is_none() || was_started;
        let verdict = Verdict {
            id: id.into(),
            started,
            ready: spec.readiness_probe.is_none() || was_ready,
            failed: None,
        };
        let (started_tx, started_rx) = watch::channel(started);
        let mut tasks = JoinSet::new();
        let kinds = [
            (Kind::Startup, &spec.startup_probe, was_started),
            (Kind::Liveness, &spec.liveness_probe, false),
            (Kind::Readiness, &spec.readiness_probe, was_ready),
        ];
        for (kind, probe, passed) in kinds {
            let Some(probe) = probe else { continue };
            let probe = match (translate(probe, member), ip) {
                (Ok(probe), Some(ip)) => (probe, ip),
                // An exec probe needs no address.
                (Ok(probe), None) => (probe, IpAddr::from([127, 0, 0, 1])),
                (Err(why), _) => {
                    let text = format!("{} probe errored: {why}", kind.as_str());
                    shared.events.pod(pod, Some(member.field_path()), Level::Warning, "Unhealthy", text);
                    continue;
                }
            };
            let tracker = if passed {
                Tracker::resume(kind, probe.0.thresholds, true)
            } else {
                Tracker::new(kind, probe.0.thresholds)
            };
            let exec = Arc::new(Exec { shared: Arc::clone(shared), id: id.into() });
            let ago = until(began, shared.clock.now());
            let (reports, mut inbox) = mpsc::channel(4);
            let (id, said) = (id.to_owned(), self.said.clone());
            tasks.spawn(probes::worker(
                tracker,
                probe.0,
                probe.1,
                probes::started_ago(ago),
                started_rx.clone(),
                exec,
                reports,
            ));
            tasks.spawn(async move {
                while let Some(report) = inbox.recv().await {
                    if said.send((id.clone(), report)).await.is_err() {
                        return;
                    }
                }
            });
        }
        Watched { name: spec.name.clone(), verdict, started: started_tx, _tasks: tasks }
    }

    /// The next report. Cancel-safe.
    pub async fn report(&mut self) -> (String, Report) {
        match self.heard.recv().await {
            Some(report) => report,
            // We hold a sender ourselves.
            None => std::future::pending().await,
        }
    }

    /// Takes in a report, with its event.
    pub fn take(&mut self, shared: &Shared, pod: &Pod, id: &str, report: &Report) {
        let Some(watched) = self.running.get_mut(id) else { return };
        let member = view::member(view::spec(pod), &watched.name);
        let path = member.map(|m| m.field_path());
        let kind = report.kind.as_str();
        let event = |reason, text| shared.events.pod(pod, path, Level::Warning, reason, text);
        match &report.outcome {
            Outcome::Success { .. } => {}
            Outcome::Failure { message } => event("Unhealthy", format!("{kind} probe failed: {message}")),
            Outcome::Warning { message } => event("ProbeWarning", format!("{kind} probe warning: {message}")),
            Outcome::Unknown { message } => event("Unhealthy", format!("{kind} probe errored: {message}")),
        }
        if !report.outcome.is_success() {
            count(&shared.metrics.probe_failures);
        }
        let own_grace = member.and_then(|m| match report.kind {
            Kind::Startup => grace(m.spec.startup_probe.as_ref()),
            Kind::Liveness => grace(m.spec.liveness_probe.as_ref()),
            Kind::Readiness => None,
        });
        match (report.kind, report.step) {
            (Kind::Readiness, _) => watched.verdict.ready = report.passed,
            (Kind::Startup, probes::Step::Kill) => {
                watched.verdict.failed = Some((ProbeKind::Startup, own_grace))
            }
            (Kind::Liveness, probes::Step::Kill) => {
                watched.verdict.failed = Some((ProbeKind::Liveness, own_grace))
            }
            (Kind::Startup, _) if report.passed => {
                watched.verdict.started = true;
                watched.started.send_replace(true);
            }
            (Kind::Startup | Kind::Liveness, _) => {}
        }
    }

    /// What they say, by container name.
    pub fn verdicts(&self) -> BTreeMap<String, Verdict> {
        self.running.values().map(|w| (w.name.clone(), w.verdict.clone())).collect()
    }
}

fn grace(probe: Option<&Probe>) -> Option<Duration> {
    probe?.termination_grace_period_seconds.and_then(|s| u64::try_from(s).ok()).map(Duration::from_secs)
}

/// The pod's primary address; the node's on the node's network.
pub fn pod_ip(shared: &Shared, pod: &Pod, seen: &Observed) -> Option<IpAddr> {
    if view::host_network(pod) {
        return shared.config.node_ips.first().copied();
    }
    seen.sandbox()?.ips.first()?.parse().ok()
}

fn translate(probe: &Probe, member: &Member<'_>) -> Result<probes::Probe, String> {
    let number =
        |p| port(Some(member), p).ok_or_else(|| "its port is not a port of the container".to_owned());
    let action = if let Some(exec) = &probe.exec {
        Action::Exec { command: exec.command.clone().unwrap_or_default() }
    } else if let Some(get) = &probe.http_get {
        let https = get.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https"));
        Action::Http {
            scheme: if https { Scheme::Https } else { Scheme::Http },
            host: get.host.clone().filter(|h| !h.is_empty()),
            port: number(&get.port)?,
            path: get.path.clone().unwrap_or_default(),
            headers: get.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect(),
        }
    } else if let Some(tcp) = &probe.tcp_socket {
        Action::Tcp { host: tcp.host.clone().filter(|h| !h.is_empty()), port: number(&tcp.port)? }
    } else if let Some(grpc) = &probe.grpc {
        let port = u16::try_from(grpc.port).map_err(|_| "its port is out of range".to_owned())?;
        Action::Grpc { port, service: grpc.service.clone().unwrap_or_default() }
    } else {
        return Err("it has no action".into());
    };
    let or = |value: Option<i32>, default: u32| {
        value.and_then(|v| u32::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default)
    };
    let seconds = |value: Option<i32>, default: u32| Duration::from_secs(u64::from(or(value, default)));
    let thresholds = Thresholds {
        initial_delay: seconds(probe.initial_delay_seconds, 0),
        period: seconds(probe.period_seconds, 10),
        timeout: seconds(probe.timeout_seconds, 1),
        success: or(probe.success_threshold, 1),
        failure: or(probe.failure_threshold, 3),
    };
    Ok(probes::Probe { action, thresholds })
}

/// Runs exec probes over CRI.
struct Exec {
    shared: Arc<Shared>,
    id: String,
}

impl probes::Exec for Exec {
    fn exec<'a>(
        &'a self,
        command: &'a [String],
        timeout: Duration,
    ) -> Pin<Box<dyn Future<Output = Result<ExecOutput, ExecError>> + Send + 'a>> {
        Box::pin(async move {
            let timeout = i64::try_from(timeout.as_secs().max(1)).unwrap_or(i64::MAX);
            let request =
                cri::ExecSyncRequest { container_id: self.id.clone(), cmd: command.to_vec(), timeout };
            match self.shared.cri.exec_sync(request).await {
                Ok(answer) => {
                    let output = [answer.stdout, answer.stderr].concat();
                    Ok(ExecOutput { exit_code: answer.exit_code, output })
                }
                Err(err) if err.code() == tonic::Code::DeadlineExceeded => Err(ExecError::TimedOut),
                Err(err) => Err(ExecError::CannotRun(err.message().into())),
            }
        })
    }
}
