//! Scripts in, plans out.
//!
//! A script's lines: `pod: …` (policy and members: `one/init side/sidecar app`), `sandbox: ready|gone|none`,
//! containers (`app: running for=20s restarts=1`, `app: exited code=1 ran=3s ended=-4s restarts=1 backoff=10s`),
//! `stop: deleted grace=5s since=-2s`, `busy: start app`, `verdict: app liveness`, `failed: start app -3s 10s`,
//! `unmounted`, `cleaned`, `finished`.

use std::time::Duration;

use expect_test::{Expect, expect};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Probe};

use super::ending::outcome;
use super::hash;
use super::observed::{Observed, Sandbox, Seen, State};
use super::plan::{Situation, plan};
use super::step::{Failure, Job, Memo, ProbeKind, Step, Stop, StopWhy, Verdict, until};
use crate::config::Backoff;

const NOW: i64 = 1_000_000;

fn now() -> Timestamp {
    Timestamp::from_second(NOW).expect("in range")
}

fn seconds(text: &str) -> i64 {
    text.trim_end_matches('s').parse().unwrap_or_else(|_| panic!("{text:?} is no number of seconds"))
}

fn at(offset: &str) -> Timestamp {
    now() + SignedDuration::from_secs(seconds(offset))
}

struct Script {
    pod: Pod,
    seen: Observed,
    memo: Memo,
    stop: Option<Stop>,
}

fn read(script: &str) -> Script {
    let mut s = Script {
        pod: Pod {
            spec: Some(PodSpec { termination_grace_period_seconds: Some(30), ..PodSpec::default() }),
            ..Pod::default()
        },
        seen: Observed {
            sandboxes: vec![Sandbox {
                id: "s0".into(),
                attempt: 0,
                ready: true,
                created: now(),
                ips: vec!["10.0.0.1".into()],
            }],
            containers: Vec::new(),
        },
        memo: Memo { mounted: true, ..Memo::default() },
        stop: None,
    };
    let spec = s.pod.spec.as_mut().expect("just made");
    spec.containers = vec![container("app")];
    for line in script.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let (head, rest) = line.split_once(':').unwrap_or((line, ""));
        let words: Vec<&str> = rest.split_whitespace().collect();
        let value = |key: &str| words.iter().find_map(|w| w.strip_prefix(key)?.strip_prefix('='));
        match head {
            "pod" => members(spec, &words),
            "sandbox" => match words[0] {
                "none" => s.seen.sandboxes.clear(),
                "gone" => s.seen.sandboxes[0].ready = false,
                _ => {}
            },
            "unmounted" => s.memo.mounted = false,
            "cleaned" => s.memo.cleaned = true,
            "finished" => s.memo.finished = true,
            "stop" => {
                let why = if words[0] == "deleted" { StopWhy::Deleted } else { StopWhy::Gone };
                let grace = Duration::from_secs(seconds(value("grace").unwrap_or("30")) as u64);
                s.stop = Some(Stop { why, grace, since: at(value("since").unwrap_or("0")) });
            }
            "busy" => {
                let over = value("until").map(at);
                s.memo.jobs.insert(job(&words), over);
            }
            "failed" => {
                let failure = Failure {
                    reason: "ErrImagePull".into(),
                    message: String::new(),
                    at: at(words[2]),
                    delay: Duration::from_secs(seconds(words[3]) as u64),
                };
                s.memo.failures.insert(job(&words), failure);
            }
            "verdict" => {
                let kind = if words[1] == "startup" { ProbeKind::Startup } else { ProbeKind::Liveness };
                let grace = value("grace").map(|g| Duration::from_secs(seconds(g) as u64));
                let id = format!("{}#0", words[0]);
                let failed = (words[1] != "started").then_some((kind, grace));
                s.memo.verdicts.insert(words[0].into(), Verdict { id, started: true, ready: true, failed });
            }
            name => s.seen.containers.push(seen(name, &words, &value)),
        }
    }
    s.seen = s.seen.sorted();
    s
}

fn container(name: &str) -> Container {
    Container { name: name.into(), image: Some("i".into()), ..Container::default() }
}

fn members(spec: &mut PodSpec, words: &[&str]) {
    spec.containers.clear();
    for word in words {
        match word.split_once('/') {
            None if ["Always", "OnFailure", "Never"].contains(word) => {
                spec.restart_policy = Some((*word).into())
            }
            None => spec.containers.push(container(word)),
            Some((name, kind)) => {
                let mut c = container(name);
                if kind != "init" {
                    c.restart_policy = Some("Always".into());
                }
                if kind == "slow-sidecar" {
                    c.startup_probe = Some(Probe::default());
                }
                spec.init_containers.get_or_insert_default().push(c);
            }
        }
    }
}

fn job(words: &[&str]) -> Job {
    match words[0] {
        "start" => Job::Start(words[1].into()),
        "stop" => Job::Stop(words[1].into()),
        "setup" => Job::SetUp,
        other => panic!("no job {other}"),
    }
}

fn seen<'a>(name: &str, words: &[&str], value: &dyn Fn(&str) -> Option<&'a str>) -> Seen {
    let restarts: u32 = value("restarts").map_or(0, |r| r.parse().expect("a count"));
    let state = match words[0] {
        "running" => State::Running { started: at(&format!("-{}", value("for").unwrap_or("5"))) },
        "created" => State::Created,
        "unknown" => State::Unknown,
        _ => {
            let finished = at(value("ended").unwrap_or("-1"));
            let ran = SignedDuration::from_secs(seconds(value("ran").unwrap_or("1")));
            let code = value("code").map_or(0, |c| c.parse().expect("a code"));
            State::Exited {
                started: finished - ran,
                finished,
                code,
                reason: String::new(),
                message: String::new(),
            }
        }
    };
    Seen {
        id: format!("{name}#{restarts}"),
        name: name.into(),
        sandbox: value("sandbox").unwrap_or("s0").into(),
        attempt: restarts,
        created: now(),
        state,
        image: "i".into(),
        image_ref: String::new(),
        hash: value("hash").map_or_else(|| hash::of(&container(name)), Into::into),
        backoff: Duration::from_secs(value("backoff").map_or(0, |b| seconds(b) as u64)),
        log_path: String::new(),
        message_file: None,
        grace: None,
        user: None,
        stop_signal: None,
    }
}

fn show(step: &Step) -> String {
    match step {
        Step::SetUp { attempt: Some(n) } => format!("set up sandbox {n}"),
        Step::SetUp { attempt: None } => "mount".into(),
        Step::Start { name, attempt, backoff } => {
            format!("start {name}#{attempt} backoff={}s", backoff.as_secs())
        }
        Step::Stop { id, why, grace, .. } => format!("stop {id} {why:?} {}s", grace.as_secs()),
        Step::Remove { id } => format!("remove {id}"),
        Step::RemoveSandbox { id } => format!("remove sandbox {id}"),
        Step::StopSandbox => "stop sandbox".into(),
        Step::Release => "release".into(),
        Step::CleanUp => "clean up".into(),
        Step::Finish => "finish".into(),
        Step::Wait { what, at } => format!("wait {what} {}s", until(now(), *at).as_secs()),
    }
}

fn check(script: &str, want: Expect) {
    let mut s = read(script);
    if s.stop.is_none() {
        s.memo.ended = outcome(&s.pod, &s.seen);
    }
    let steps = plan(&Situation {
        pod: &s.pod,
        stop: s.stop.as_ref(),
        seen: &s.seen,
        memo: &s.memo,
        crash_loop: Backoff::default(),
        now: now(),
    });
    want.assert_eq(&steps.iter().map(show).collect::<Vec<_>>().join("; "));
}

#[test]
fn a_new_pod_gets_volumes_and_a_sandbox_first() {
    check("sandbox: none\nunmounted", expect!["set up sandbox 0"]);
    check("sandbox: none\nbusy: setup", expect![""]);
    check("sandbox: none\nfailed: setup x -3s 10s", expect!["wait pod 7s"]);
}

#[test]
fn a_restarted_daemon_mounts_before_it_starts_anything() {
    check("unmounted\napp: running", expect!["mount"]);
    check("unmounted", expect!["mount"]);
}

#[test]
fn containers_start_once() {
    check("", expect!["start app#0 backoff=0s"]);
    check("busy: start app", expect![""]);
    check("app: running", expect![""]);
    check("pod: Always a b", expect!["start a#0 backoff=0s; start b#0 backoff=0s"]);
}

#[test]
fn the_first_crash_restarts_at_once_and_later_ones_wait() {
    check("app: exited code=1", expect!["start app#1 backoff=10s"]);
    check("app: exited code=1 ended=-4s restarts=1 backoff=10s", expect!["wait app 6s"]);
    check("app: exited code=1 ended=-10s restarts=1 backoff=10s", expect!["start app#2 backoff=20s"]);
    check("app: exited code=1 ended=-300s restarts=9 backoff=300s", expect!["start app#10 backoff=300s"]);
    check(
        "app: exited code=1 ran=600s ended=-1s restarts=9 backoff=300s",
        expect!["start app#10 backoff=10s"],
    );
}

#[test]
fn a_container_that_was_never_started_is_made_again() {
    check("app: created", expect!["start app#0 backoff=0s"]);
    check("app: created\nfailed: start app -3s 10s", expect!["wait app 7s"]);
    check("app: created\nfailed: start app -30s 10s", expect!["start app#1 backoff=0s"]);
}

#[test]
fn init_containers_go_one_by_one() {
    check("pod: Always one/init two/init app", expect!["start one#0 backoff=0s"]);
    check("pod: Always one/init two/init app\none: running", expect![""]);
    check("pod: Always one/init two/init app\none: exited", expect!["start two#0 backoff=0s"]);
    check("pod: Always one/init app\none: exited code=1", expect!["start one#1 backoff=10s"]);
    check("pod: Always one/init app\none: exited\napp: running", expect![""]);
    check("pod: Always one/init app\napp: exited code=1", expect!["start app#1 backoff=10s"]);
}

#[test]
fn sidecars_hold_up_the_rest_until_they_are_started() {
    check("pod: Always side/sidecar app", expect!["start side#0 backoff=0s"]);
    check("pod: Always side/sidecar app\nside: running\nbusy: start side", expect![""]);
    check("pod: Always side/sidecar app\nside: running", expect!["start app#0 backoff=0s"]);
    check("pod: Always side/slow-sidecar app\nside: running", expect![""]);
    check(
        "pod: Always side/slow-sidecar app\nside: running\nverdict: side started",
        expect!["start app#0 backoff=0s"],
    );
    check("pod: Never side/sidecar app\nside: exited\napp: running", expect!["start side#1 backoff=10s"]);
}

#[test]
fn unfit_containers_are_stopped() {
    check("app: running\nverdict: app liveness", expect!["stop app#0 Unhealthy(Liveness) 30s"]);
    check("app: running\nverdict: app startup grace=3s", expect!["stop app#0 Unhealthy(Startup) 3s"]);
    check("app: running restarts=1\nverdict: app liveness", expect![""]);
    check("app: running hash=other", expect!["stop app#0 Changed 30s"]);
    check("app: unknown", expect!["stop app#0 Unknown 30s"]);
    check("app: running\nverdict: app liveness\nbusy: stop app#0 until=20s", expect![""]);
    check("app: running\nold: running", expect!["stop old#0 Unwanted 30s"]);
}

#[test]
fn a_lost_sandbox_takes_its_containers_along() {
    check("sandbox: gone\napp: running", expect!["stop app#0 SandboxGone 30s"]);
    check("sandbox: gone\napp: exited code=137", expect!["set up sandbox 1"]);
    check("sandbox: gone\npod: Never app\napp: exited code=1", expect!["release"]);
}

#[test]
fn one_ended_run_of_each_container_is_kept() {
    check(
        "app: running restarts=3\napp: exited restarts=2\napp: exited restarts=1\napp: exited",
        expect!["remove app#1; remove app#0"],
    );
    check("app: running\nold: exited", expect!["remove old#0"]);
}

#[test]
fn pods_end_when_their_containers_do() {
    check("pod: Never app\napp: exited", expect!["stop sandbox"]);
    check("pod: Never a b\na: exited\nb: running", expect![""]);
    check(
        "pod: Never side/sidecar app\nside: running\napp: exited code=1",
        expect!["stop side#0 PodEnds 30s"],
    );
    check("pod: OnFailure app\napp: exited code=1", expect!["start app#1 backoff=10s"]);
}

#[test]
fn deletion_stops_then_cleans_then_tells() {
    check("app: running\nstop: deleted grace=5s", expect!["stop app#0 PodEnds 5s"]);
    check("app: running\nstop: deleted grace=5s since=-2s", expect!["stop app#0 PodEnds 3s"]);
    check("app: running\nstop: deleted grace=5s\nbusy: stop app#0 until=5s", expect![""]);
    check(
        "app: running\nstop: deleted grace=1s\nbusy: stop app#0 until=300s",
        expect!["stop app#0 PodEnds 1s"],
    );
    check("app: exited\nstop: deleted\nbusy: start b", expect![""]);
    check("app: exited\nstop: deleted", expect!["clean up"]);
    check("sandbox: none\nstop: deleted", expect!["clean up"]);
    check("sandbox: none\nstop: deleted\ncleaned", expect!["finish"]);
    check("sandbox: none\nstop: deleted\ncleaned\nfinished", expect![""]);
}

#[test]
fn sidecars_outlive_the_apps_and_go_last_first() {
    let pod = "pod: Always s1/sidecar s2/sidecar app\nstop: deleted grace=9s\n";
    check(&format!("{pod}s1: running\ns2: running\napp: running"), expect!["stop app#0 PodEnds 9s"]);
    check(&format!("{pod}s1: running\ns2: running\napp: exited"), expect!["stop s2#0 PodEnds 9s"]);
    check(&format!("{pod}s1: running\ns2: exited\napp: exited"), expect!["stop s1#0 PodEnds 9s"]);
    let late = "pod: Always s1/sidecar app\nstop: deleted grace=9s since=-9s\n";
    check(
        &format!("{late}s1: running\napp: running"),
        expect!["stop s1#0 PodEnds 0s; stop app#0 PodEnds 0s"],
    );
}
