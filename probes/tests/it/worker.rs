//! The ready-made loop.

use std::sync::Arc;
use std::time::Duration;

use probes::{Action, Kind, Probe, Report, State, Step, Thresholds, Tracker, started_ago, worker};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};

use crate::actions::no_exec;

fn probe(port: u16) -> Probe {
    let thresholds = Thresholds { period: Duration::from_millis(20), failure: 2, ..Thresholds::default() };
    Probe { action: Action::Tcp { host: None, port }, thresholds }
}

fn start(kind: Kind, probe: Probe, started: watch::Receiver<bool>) -> mpsc::Receiver<Report> {
    let (reports, receiver) = mpsc::channel(1);
    let tracker = Tracker::new(kind, probe.thresholds);
    let ip = "127.0.0.1".parse().unwrap();
    let began = started_ago(Duration::from_millis(5));
    tokio::spawn(worker(tracker, probe, ip, began, started, Arc::new(no_exec()), reports));
    receiver
}

#[tokio::test]
async fn it_reports_what_changes_and_what_fails() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let (_started, already) = watch::channel(true);
    let mut reports = start(Kind::Readiness, probe(port), already);
    let first = reports.recv().await.unwrap();
    assert_eq!((first.step, first.passed), (Step::Changed(State::Passed), true));
    drop(listener);
    let failing = reports.recv().await.unwrap();
    assert_eq!((failing.step, failing.passed), (Step::Same, true));
    assert!(failing.outcome.message().contains("connection refused"));
    let failed = reports.recv().await.unwrap();
    assert_eq!((failed.step, failed.passed), (Step::Changed(State::Failed), false));
}

#[tokio::test]
async fn liveness_waits_for_startup_and_kills_once() {
    let (started, waits) = watch::channel(false);
    let port = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let mut reports = start(Kind::Liveness, probe(port), waits);
    assert!(tokio::time::timeout(Duration::from_millis(100), reports.recv()).await.is_err());
    started.send(true).unwrap();
    assert_eq!(reports.recv().await.unwrap().step, Step::Same);
    let kill = reports.recv().await.unwrap();
    assert_eq!((kill.step, kill.passed), (Step::Kill, false));
    assert!(tokio::time::timeout(Duration::from_millis(100), reports.recv()).await.is_err());
    // Nothing can wake it any more: it ends.
    drop(started);
    assert_eq!(reports.recv().await, None);
}
