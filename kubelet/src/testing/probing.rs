//! What probes lead to.

use std::sync::atomic::Ordering;

use super::bench::Bench;

async fn with(probe: &str) -> Bench {
    let mut b = Bench::new();
    b.apply(&format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n  terminationGracePeriodSeconds: 4\n  containers:\n  - name: app\n    image: i:1\n    command: [run]\n    {probe}: {{exec: {{command: [check]}}, periodSeconds: 2, failureThreshold: 2}}\n"
    ));
    b
}

#[tokio::test(start_paused = true)]
async fn liveness_restarts() {
    let b = with("livenessProbe").await;
    b.until("web", "Running ready | app running").await;
    b.fake.healthy.store(false, Ordering::SeqCst);
    b.until("web", "Running ready | app running x1 (last exit 0)").await;
    b.fake.healthy.store(true, Ordering::SeqCst);
    b.sleep(60).await;
    assert_eq!(b.line("web"), "Running ready | app running x1 (last exit 0)");
    assert!(b.fake.calls().contains("stop app#0 within 4s"), "{}", b.fake.calls());
}

#[tokio::test(start_paused = true)]
async fn readiness_never_restarts() {
    let b = with("readinessProbe").await;
    b.until("web", "Running ready | app running").await;
    b.fake.healthy.store(false, Ordering::SeqCst);
    b.until("web", "Running | app running").await;
    let status = b.status("web");
    let ready = status.conditions.iter().flatten().find(|c| c.type_ == "Ready").expect("Ready");
    assert_eq!(ready.reason.as_deref(), Some("ContainersNotReady"));
    assert_eq!(ready.message.as_deref(), Some("containers with unready status: [app]"));
    b.sleep(60).await;
    b.fake.healthy.store(true, Ordering::SeqCst);
    b.until("web", "Running ready | app running").await;
}

#[tokio::test(start_paused = true)]
async fn startup_holds_readiness_back() {
    let b = with("startupProbe").await;
    b.until("web", "Running ready | app running").await;
}

#[tokio::test(start_paused = true)]
async fn a_restarted_daemon_does_not_drop_readiness() {
    let b = with("readinessProbe").await;
    b.until("web", "Running ready | app running").await;
    let pod = b.pod("web");
    let mut seen = Vec::new();
    // Without an apiserver a static pod's last status is lost with the process; the API keeps it.
    let b = b.restart(vec![pod]).await;
    for _ in 0..40 {
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        seen.push(b.line("web"));
    }
    assert_eq!(seen.last().map(String::as_str), Some("Running ready | app running"));
}
