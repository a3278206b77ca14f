//! The task that owns one pod.
//!
//! ```text
//!         ┌────────────────────────────────────────────────────────────┐
//!         ▼                                                            │
//!   observe the runtime ─► status ─► plan ─► start jobs ─► wait for any of: desired state,
//!                                                          runtime event, finished job, probe,
//!                                                          ConfigMap or Secret, time
//! ```
//!
//! Guarantees: nobody else changes this pod's sandboxes, containers and volumes. Jobs (pull, start, stop, …)
//! run beside the task, so it hears of a deletion while it waits for an image. Nothing that wakes the task
//! carries information: it looks for itself, so there is one code path after any loss.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition, PodStatus};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::act::{Failed, Work, text};
use super::lifecycle::Started;
use super::observe::{self, observe};
use super::observed::{Observed, State};
use super::plan::{Situation, plan};
use super::probing::Probes;
use super::report::{self, Known};
use super::step::{Ended, Failure, Job, Memo, Step, Stop, StopWhy, after};
use super::view::{self, PodKey};
use super::{admit, ending, message};
use crate::events::Level;
use crate::metrics::count;
use crate::objects::Held;
use crate::shared::Shared;
use crate::status::{self, Facts};
use crate::volumes::tokens::Tokens;

/// What is wanted of a pod.
#[derive(Clone, Debug)]
pub struct Desired {
    /// The pod's object; of an orphan, what could be pieced together.
    pub pod: Arc<Pod>,
    /// The object that carries the status: the pod itself, a static pod's mirror, or nothing.
    pub object: Option<Arc<Pod>>,
    /// The object is gone: stop and clean up.
    pub gone: bool,
    /// Don't run it, for this reason.
    pub refused: Option<Ended>,
}

/// The supervisor's end of a pod's task.
pub struct Handle {
    /// Tells the task what is wanted.
    pub desired: watch::Sender<Desired>,
    /// Tells the task to look.
    pub wake: Arc<Notify>,
    /// What the task reports: the status.
    pub status: Arc<ArcSwap<PodStatus>>,
    /// Ends with the pod.
    pub done: CancellationToken,
}

/// Starts the task of a pod. It ends when nothing of the pod is left, or at `shutdown`, which
/// leaves the pod running.
pub fn start(shared: Arc<Shared>, key: PodKey, desired: Desired, shutdown: CancellationToken) -> Handle {
    let (tx, rx) = watch::channel(desired.clone());
    let wake = Arc::new(Notify::new());
    let known = desired.object.as_deref().map(Known::of).unwrap_or_default();
    let before = known.status.clone();
    let status = Arc::new(ArcSwap::from_pointee(before.clone()));
    let done = CancellationToken::new();
    let task = Task {
        memo: Memo { ended: status::final_end(&before), ..Memo::default() },
        held: Arc::new(shared.objects.hold(&desired.pod)),
        tokens: Arc::default(),
        known,
        current: before,
        published: Arc::clone(&status),
        probes: Probes::default(),
        cancel: CancellationToken::new(),
        jobs: JoinSet::new(),
        ended: observe::Ended::default(),
        messages: BTreeMap::new(),
        stop: None,
        told: BTreeSet::new(),
        shown: Default::default(),
        stale: false,
        shared,
        key,
    };
    let (inner_wake, inner_done) = (Arc::clone(&wake), done.clone());
    tokio::spawn(async move {
        let _guard = inner_done.drop_guard();
        // Cancel-safe: at shutdown everything is left as it is, and found again by the next start.
        let _ended = shutdown.run_until_cancelled(task.run(rx, inner_wake)).await;
    });
    Handle { desired: tx, wake, status, done }
}

struct Task {
    shared: Arc<Shared>,
    key: PodKey,
    memo: Memo,
    held: Arc<Held>,
    tokens: Arc<tokio::sync::Mutex<Tokens>>,
    /// What the apiserver holds.
    known: Known,
    /// What it should hold.
    current: PodStatus,
    published: Arc<ArcSwap<PodStatus>>,
    probes: Probes,
    cancel: CancellationToken,
    jobs: JoinSet<(Job, Result<Output, Failed>)>,
    ended: observe::Ended,
    messages: BTreeMap<String, String>,
    stop: Option<Stop>,
    /// Back-offs that an event was recorded for.
    told: BTreeSet<String>,
    /// Labels and annotations that the volumes show.
    shown: [Option<BTreeMap<String, String>>; 2],
    /// Something that volumes are made from changed.
    stale: bool,
}

/// What a job brings back.
enum Output {
    Nothing,
    Mounted,
    Started(Started),
    Released,
    Cleaned,
    Finished,
    Written(Box<Known>),
}

impl Task {
    async fn run(mut self, mut desired: watch::Receiver<Desired>, wake: Arc<Notify>) {
        let mut objects = self.shared.objects.changed();
        let mut by_resync = false;
        loop {
            let wanted = desired.borrow_and_update().clone();
            objects.borrow_and_update();
            let busy = self.memo.jobs.len();
            let next = self.round(&wanted).await;
            if by_resync && self.memo.jobs.len() > busy {
                count(&self.shared.metrics.resync_finds);
            }
            if self.memo.finished && self.jobs.is_empty() && (wanted.gone || wanted.object.is_none()) {
                return;
            }
            let resync = Instant::now() + self.shared.config.resync;
            let at = next.map_or(resync, |at| self.shared.clock.instant(at).min(resync));
            by_resync = false;
            // Every branch is cancel-safe: unobserved changes, notifications, results and reports stay.
            tokio::select! {
                changed = desired.changed() => if changed.is_err() { return },
                () = wake.notified() => {}
                Some(result) = self.jobs.join_next(), if !self.jobs.is_empty() => self.take(result),
                (id, report) = self.probes.report() => self.probes.take(&self.shared, &wanted.pod, &id, &report),
                changed = objects.changed() => if changed.is_ok() { self.objects_changed() },
                () = sleep_until(at) => by_resync = at == resync,
            }
        }
    }

    /// Looks, reports, decides, acts. Returns when to look again at the latest.
    async fn round(&mut self, wanted: &Desired) -> Option<Timestamp> {
        count(&self.shared.metrics.rounds);
        let pod = &wanted.pod;
        let seen = match observe(&self.shared, &self.key.uid, &mut self.ended).await {
            Ok(seen) => seen,
            Err(err) => {
                warn!(pod = %self.key, err = text(&err), "cannot observe the pod, skip this round");
                return Some(after(self.shared.clock.now(), Duration::from_secs(1)));
            }
        };
        let seen = status::with_lost(seen, pod, &self.current);
        let now = self.shared.clock.now();
        self.desire(wanted, &seen, now);
        self.read_messages(pod, &seen).await;
        let ending = self.stop.is_some() || self.memo.ended.is_some();
        let jobs = self.memo.jobs.clone();
        self.probes.sync(&self.shared, pod, &seen, &self.current, |job| jobs.contains_key(job), ending);
        self.memo.verdicts = self.probes.verdicts();
        if !ending {
            self.memo.ended = ending::outcome(pod, &seen);
        }
        self.report(wanted, &seen, now);
        let steps = plan(&Situation {
            pod,
            stop: self.stop.as_ref(),
            seen: &seen,
            memo: &self.memo,
            crash_loop: self.shared.config.crash_loop,
            now,
        });
        debug!(pod = %self.key, ?steps, "planned");
        let mut next = self.deadline(pod, now);
        let mut sooner = |at: Timestamp| next = Some(next.map_or(at, |n: Timestamp| n.min(at)));
        let seen = Arc::new(seen);
        for step in steps {
            match step {
                Step::Wait { what, at } => {
                    self.tell_back_off(pod, &seen, &what, now);
                    sooner(at);
                }
                Step::Finish if self.unwritten(wanted) => {} // The last status first.
                step => self.begin(wanted, &seen, step, now),
            }
        }
        for failure in self.memo.failures.values() {
            let turns = after(failure.at, crate::status::FRESH_FAILURE);
            if turns > now {
                sooner(turns);
            }
            if failure.retry_at() > now {
                sooner(failure.retry_at());
            }
        }
        if let Ok(tokens) = self.tokens.try_lock()
            && let Some(at) = tokens.next_renewal()
            && self.memo.mounted
        {
            sooner(at);
        }
        self.refresh(wanted, &seen, now);
        next
    }

    /// Works out whether the pod is to end.
    fn desire(&mut self, wanted: &Desired, seen: &Observed, now: Timestamp) {
        let pod = &wanted.pod;
        let seconds = |s: i64| Duration::from_secs(u64::try_from(s).unwrap_or(0));
        let began = seen.sandbox().is_some() || !self.memo.jobs.is_empty() || self.memo.mounted;
        let stop = if wanted.gone {
            let grace = seen.containers.iter().filter_map(|c| c.grace).max().unwrap_or(30);
            let own = pod.metadata.deletion_grace_period_seconds.unwrap_or(grace);
            Some((StopWhy::Gone, seconds(own)))
        } else if pod.metadata.deletion_timestamp.is_some() {
            Some((StopWhy::Deleted, seconds(pod.metadata.deletion_grace_period_seconds.unwrap_or(30))))
        } else if let Some(refused) = wanted.refused.clone().filter(|_| !began) {
            Some((StopWhy::Failed(refused), Duration::ZERO))
        } else if let Some(late) = self.overdue(pod, now) {
            Some((StopWhy::Failed(late), super::plan::pod_grace(pod)))
        } else if !began && self.stop.is_none() && self.memo.ended.is_none() {
            let admitted = admit::check(&self.shared.config, &self.shared.machine, pod);
            admitted.err().map(|end| (StopWhy::Failed(end), Duration::ZERO))
        } else {
            None
        };
        let Some((why, grace)) = stop else { return };
        if self.memo.ended.is_some() && matches!(why, StopWhy::Failed(_)) {
            return;
        }
        match &mut self.stop {
            Some(stop) => {
                // A second deletion may shorten the time, never lengthen it.
                stop.grace = stop.grace.min(grace);
                if !matches!(why, StopWhy::Failed(_)) {
                    stop.why = why;
                }
            }
            None => {
                info!(pod = %self.key, ?why, ?grace, "the pod is to end");
                if let StopWhy::Failed(end) = &why {
                    self.memo.ended = Some(end.clone());
                    let (reason, text) =
                        (end.reason.as_deref().unwrap_or("Failed"), end.message.as_deref().unwrap_or(""));
                    self.shared.events.pod(pod, None, Level::Warning, event_reason(reason), text);
                }
                self.stop = Some(Stop { why, grace, since: now });
                self.cancel.cancel();
            }
        }
    }

    fn deadline(&self, pod: &Pod, now: Timestamp) -> Option<Timestamp> {
        let seconds = view::spec(pod).active_deadline_seconds?;
        let start = self.current.start_time.as_ref()?.0;
        let at = after(start, Duration::from_secs(u64::try_from(seconds).ok()?));
        (at > now && self.stop.is_none()).then_some(at)
    }

    fn overdue(&self, pod: &Pod, now: Timestamp) -> Option<Ended> {
        let seconds = view::spec(pod).active_deadline_seconds?;
        let start = self.current.start_time.as_ref()?.0;
        let at = after(start, Duration::from_secs(u64::try_from(seconds).ok()?));
        (at <= now && self.memo.ended.is_none()).then(|| Ended {
            success: false,
            reason: Some("DeadlineExceeded".into()),
            message: Some("Pod was active on the node longer than the specified deadline".into()),
        })
    }

    async fn read_messages(&mut self, pod: &Arc<Pod>, seen: &Observed) {
        for c in seen.containers.iter().filter(|c| c.exit().is_some() && !c.sandbox.is_empty()) {
            if self.messages.contains_key(&c.id) {
                continue;
            }
            let (shared, pod, key, copy) =
                (Arc::clone(&self.shared), Arc::clone(pod), self.key.clone(), c.clone());
            let read = tokio::task::spawn_blocking(move || message::read(&shared, &pod, &key, &copy)).await;
            self.messages.insert(c.id.clone(), read.unwrap_or_default());
        }
        self.messages.retain(|id, _| seen.containers.iter().any(|c| c.id == *id));
    }

    /// Computes the status and writes it if it changed.
    fn report(&mut self, wanted: &Desired, seen: &Observed, now: Timestamp) {
        let host_ips = self.shared.host_ips();
        // Other writers' conditions come from the object; everything else goes on from what was computed.
        let mut previous = self.current.clone();
        if let Some(object) = wanted.object.as_deref() {
            let known = Known::of(object);
            if known.version >= self.known.version || known.uid != self.known.uid {
                previous.conditions = merged_conditions(&previous, &known.status);
                self.known = known;
            }
        }
        self.current = status::compute(&Facts {
            pod: &wanted.pod,
            previous: &previous,
            stop: self.stop.as_ref(),
            seen,
            memo: &self.memo,
            messages: &self.messages,
            crash_loop: self.shared.config.crash_loop,
            host_ips: &host_ips,
            runtime: &self.shared.runtime_name,
            now,
        });
        self.published.store(Arc::new(self.current.clone()));
        let retry = self.memo.failures.get(&Job::Report).is_none_or(|f| f.retry_at() <= now);
        if self.unwritten(wanted)
            && retry
            && !self.memo.jobs.contains_key(&Job::Report)
            && let Some(object) = wanted.object.clone()
        {
            let (shared, known, status) =
                (Arc::clone(&self.shared), self.known.clone(), self.current.clone());
            self.memo.jobs.insert(Job::Report, None);
            self.jobs.spawn(async move {
                let written = report::write(shared, object, known, status).await;
                (Job::Report, written.map(|k| Output::Written(Box::new(k))))
            });
        }
    }

    /// Whether the apiserver holds something else than it should.
    fn unwritten(&self, wanted: &Desired) -> bool {
        let differs = || status::patch::status("", &self.known.status, &self.current).is_some();
        wanted.object.is_some() && !wanted.gone && self.shared.client.is_some() && differs()
    }

    fn work(&self, pod: &Arc<Pod>, seen: &Arc<Observed>) -> Work {
        Work {
            shared: Arc::clone(&self.shared),
            pod: Arc::clone(pod),
            key: self.key.clone(),
            held: Arc::clone(&self.held),
            tokens: Arc::clone(&self.tokens),
            seen: Arc::clone(seen),
            cancel: self.cancel.clone(),
        }
    }

    fn begin(&mut self, wanted: &Desired, seen: &Arc<Observed>, step: Step, now: Timestamp) {
        let Some(job) = step.job() else { return };
        let over = match &step {
            Step::Stop { grace, .. } => Some(after(now, *grace)),
            _ => None,
        };
        let work = self.work(&wanted.pod, seen);
        let nobody_to_tell =
            wanted.gone || wanted.object.as_ref().is_none_or(|o| o.metadata.uid != wanted.pod.metadata.uid);
        self.memo.jobs.insert(job.clone(), over);
        self.jobs.spawn(async move {
            let result = match &step {
                Step::SetUp { attempt } => work.set_up(*attempt).await.map(|()| Output::Mounted),
                Step::Start { name, attempt, backoff } => {
                    work.start(name, *attempt, *backoff).await.map(Output::Started)
                }
                Step::Stop { id, name, why, grace } => {
                    work.stop(id, name, why, *grace).await.map(|()| Output::Nothing)
                }
                Step::Remove { id } => work.remove(id).await.map(|()| Output::Nothing),
                Step::RemoveSandbox { id } => work.remove_sandbox(id).await.map(|()| Output::Nothing),
                Step::StopSandbox => work.stop_sandboxes().await.map(|()| Output::Nothing),
                Step::Release => work.release().await.map(|()| Output::Released),
                Step::CleanUp => work.clean_up().await.map(|()| Output::Cleaned),
                Step::Finish if nobody_to_tell => Ok(Output::Finished),
                Step::Finish => work.finish().await.map(|()| Output::Finished),
                Step::Wait { .. } => Ok(Output::Nothing),
            };
            (job, result)
        });
    }

    /// Takes in the end of a job.
    fn take(&mut self, joined: Result<(Job, Result<Output, Failed>), tokio::task::JoinError>) {
        let (job, result) = match joined {
            Ok(done) => done,
            Err(err) => {
                // A panic in a job: which one is not known, so all are looked at anew.
                warn!(pod = %self.key, %err, "a job ended early");
                self.memo.jobs.clear();
                return;
            }
        };
        self.memo.jobs.remove(&job);
        let failed = match result {
            Ok(output) => {
                self.memo.failures.remove(&job);
                self.succeeded(output);
                return;
            }
            Err(failed) => failed,
        };
        let now = self.shared.clock.now();
        let policy = match job {
            Job::Start(_) if failed.reason == "ErrImagePull" => self.shared.config.image_pull,
            Job::Report | Job::Finish => crate::config::Backoff {
                base: Duration::from_millis(200),
                max: Duration::from_secs(10),
                reset_after: Duration::ZERO,
            },
            _ => self.shared.config.crash_loop,
        };
        let last = self.memo.failures.get(&job).map_or(Duration::ZERO, |f| f.delay);
        let failure = Failure {
            reason: failed.reason.into(),
            message: failed.message,
            at: now,
            delay: policy.next(last),
        };
        debug!(pod = %self.key, ?job, reason = failure.reason, message = failure.message, "failed");
        self.memo.failures.insert(job, failure);
    }

    fn succeeded(&mut self, output: Output) {
        match output {
            Output::Nothing | Output::Started(Started::Running) => {}
            Output::Mounted => self.memo.mounted = true,
            Output::Started(Started::HookFailed { id, message }) => {
                self.memo.hook_failed.insert(id, message);
            }
            Output::Released => (self.memo.released, self.memo.mounted) = (true, false),
            Output::Cleaned => (self.memo.cleaned, self.memo.mounted) = (true, false),
            Output::Finished => self.memo.finished = true,
            Output::Written(known) => self.known = *known,
        }
    }

    /// A ConfigMap or Secret changed: what waited for it is tried at once.
    fn objects_changed(&mut self) {
        let waits = ["FailedMount", "CreateContainerConfigError"];
        self.memo.failures.retain(|_, f| !waits.contains(&f.reason.as_str()));
        self.stale = true;
    }

    /// Brings mounted volumes up to date when what they are made from changed or a token is due.
    fn refresh(&mut self, wanted: &Desired, seen: &Arc<Observed>, now: Timestamp) {
        let meta = &wanted.pod.metadata;
        let shown = [meta.labels.clone(), meta.annotations.clone()];
        if self.shown != shown {
            self.shown = shown;
            self.stale = true;
        }
        let due = self.tokens.try_lock().ok().and_then(|t| t.next_renewal()).is_some_and(|at| at <= now);
        let busy = [Job::Refresh, Job::SetUp].iter().any(|job| self.memo.jobs.contains_key(job));
        let waits = self.memo.failures.get(&Job::Refresh).is_some_and(|f| f.retry_at() > now);
        let ends = self.stop.is_some() || self.memo.ended.is_some();
        if !(self.stale || due) || !self.memo.mounted || busy || waits || ends {
            return;
        }
        self.stale = false;
        let work = self.work(&wanted.pod, seen);
        self.memo.jobs.insert(Job::Refresh, None);
        self.jobs.spawn(async move { (Job::Refresh, work.mount().await.map(|()| Output::Nothing)) });
    }

    /// Tells once that a container waits, as `kubectl describe` shows it.
    fn tell_back_off(&mut self, pod: &Pod, seen: &Observed, what: &str, now: Timestamp) {
        let Some(member) = view::member(view::spec(pod), what) else { return };
        let event = |level, reason, text: String| {
            self.shared.events.pod(pod, Some(member.field_path()), level, reason, text);
        };
        if let Some(failure) = self.memo.failures.get(&Job::Start(what.into())) {
            let pulls = failure.reason == "ErrImagePull";
            let fresh = super::step::until(failure.at, now) < status::FRESH_FAILURE;
            if pulls && !fresh && self.told.insert(format!("{what}@{}", failure.at)) {
                let image = member.spec.image.as_deref().unwrap_or("");
                event(Level::Normal, "BackOff", format!("Back-off pulling image \"{image}\""));
                event(Level::Warning, "Failed", "Error: ImagePullBackOff".into());
            }
        } else if let Some(c) = seen.newest(what)
            && matches!(c.state, State::Exited { .. })
            && self.told.insert(c.id.clone())
        {
            let text = format!("Back-off restarting failed container {what} in pod {}", self.key);
            event(Level::Warning, "BackOff", text);
        }
    }
}

/// The kubelet's own conditions as they were computed, everybody else's as the object has them.
fn merged_conditions(own: &PodStatus, object: &PodStatus) -> Option<Vec<PodCondition>> {
    const OWN: [&str; 4] = ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady"];
    let is_own = |c: &&PodCondition| OWN.contains(&c.type_.as_str());
    let mine = own.conditions.iter().flatten().filter(is_own);
    let theirs = object.conditions.iter().flatten().filter(|c| !is_own(c));
    Some(mine.chain(theirs).cloned().collect())
}

/// The reason of the event that goes with a failed pod.
fn event_reason(reason: &str) -> &'static str {
    const KNOWN: [&str; 4] = ["DeadlineExceeded", "UnsupportedPodFeature", "SysctlForbidden", "OutOfpods"];
    KNOWN.into_iter().find(|known| *known == reason).unwrap_or("Failed")
}
