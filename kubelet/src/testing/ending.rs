//! Deletion, grace, hooks, deadlines.

use expect_test::expect;

use super::bench::Bench;

fn pod(extra: &str, container: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web}}\nspec:\n{extra}  containers:\n  - {{name: app, image: i:1, {container}}}\n"
    )
}

async fn started(extra: &str, container: &str) -> Bench {
    let mut b = Bench::new();
    b.apply(&pod(extra, container));
    b.until("web", "Running ready | app running").await;
    b
}

#[tokio::test(start_paused = true)]
async fn deletion_gives_grace_and_leaves_nothing() {
    let mut b = started("", "command: [stubborn]").await;
    let uid = b.pod("web").metadata.uid.expect("uid");
    assert!(b.shared.config.pod_dir(&uid).exists());
    b.delete("web", 7);
    b.until_gone("web").await;
    expect![[r#"
        0s run-sandbox web#0
        0s start app#0
        0s stop app#0 within 7s
        7s stop-sandbox
        7s remove-sandbox"#]]
    .assert_eq(&b.fake.calls());
    assert!(!b.shared.config.pod_dir(&uid).exists());
    let logs = std::fs::read_dir(&b.shared.config.pod_logs_dir).expect("logs").count();
    assert_eq!(logs, 0);
}

#[tokio::test(start_paused = true)]
async fn a_second_deletion_shortens_the_grace() {
    let mut b = started("", "command: [stubborn]").await;
    b.delete("web", 300);
    b.sleep(3).await;
    b.delete("web", 0);
    b.until_gone("web").await;
    expect![[r#"
        0s run-sandbox web#0
        0s start app#0
        0s stop app#0 within 300s
        3s stop app#0 within 0s
        3s stop-sandbox
        3s remove-sandbox"#]]
    .assert_eq(&b.fake.calls());
}

#[tokio::test(start_paused = true)]
async fn the_hook_counts_towards_the_grace() {
    let hook = "command: [stubborn], lifecycle: {preStop: {exec: {command: [hook, '4']}}}";
    let mut b = started("", hook).await;
    b.delete("web", 10);
    b.until_gone("web").await;
    expect![[r#"
        0s run-sandbox web#0
        0s start app#0
        0s hook in app#0
        4s stop app#0 within 6s
        10s stop-sandbox
        10s remove-sandbox"#]]
    .assert_eq(&b.fake.calls());
}

#[tokio::test(start_paused = true)]
async fn a_failed_post_start_hook_restarts_the_container() {
    let mut b = Bench::new();
    let hook = "command: [run], lifecycle: {postStart: {exec: {command: [hook, '1', '7']}}}";
    b.apply(&pod("  terminationGracePeriodSeconds: 3\n", hook));
    b.until("web", "Running | app CrashLoopBackOff x1 (last exit 0)").await;
    expect![[r#"
        0s run-sandbox web#0
        0s start app#0
        0s hook in app#0
        1s stop app#0 within 3s
        1s start app#1
        1s hook in app#1
        2s stop app#1 within 3s"#]]
    .assert_eq(&b.fake.calls());
}

#[tokio::test(start_paused = true)]
async fn a_deletion_does_not_wait_for_the_image() {
    let mut b = Bench::new();
    b.fake.registry_down.store(true, std::sync::atomic::Ordering::SeqCst);
    b.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers:\n  - {name: app, image: absent}\n");
    b.until("web", "Pending | app ImagePullBackOff").await;
    b.delete("web", 30);
    b.until_gone("web").await;
    assert!(b.fake.calls().ends_with("remove-sandbox"));
}

#[tokio::test(start_paused = true)]
async fn the_deadline_fails_the_pod() {
    let b = started("  activeDeadlineSeconds: 20\n", "command: [run]").await;
    b.until("web", "Failed DeadlineExceeded | app exit 0").await;
    assert!(b.fake.calls().contains("20s stop app#0 within 30s"), "{}", b.fake.calls());
}

#[tokio::test(start_paused = true)]
async fn a_pod_whose_object_is_gone_is_removed() {
    let mut b = started("  terminationGracePeriodSeconds: 9\n", "command: [run]").await;
    b.forget_all();
    b.until_gone("web").await;
    assert!(b.fake.calls().contains("stop app#0 within 9s"), "{}", b.fake.calls());
}
