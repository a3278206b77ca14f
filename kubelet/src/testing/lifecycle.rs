//! Starting, restarting, backing off, adopting.

use std::sync::atomic::Ordering;

use expect_test::expect;

use super::bench::Bench;

fn pod(policy: &str, containers: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: web, uid: u1}}\nspec:\n  restartPolicy: {policy}\n  terminationGracePeriodSeconds: 5\n{containers}"
    )
}

#[tokio::test(start_paused = true)]
async fn a_pod_starts_and_is_ready() {
    let mut b = Bench::new();
    b.apply(&pod("Always", "  containers:\n  - {name: app, image: i:1, command: [run]}\n"));
    b.until("web", "Running ready | app running").await;
    expect![[r#"
        0s run-sandbox web#0
        0s start app#0"#]]
    .assert_eq(&b.fake.calls());
    let status = b.status("web");
    assert_eq!(status.pod_ip.as_deref(), Some("10.9.0.5"));
    assert_eq!(status.host_ip.as_deref(), Some("192.0.2.1"));
    assert_eq!(status.qos_class.as_deref(), Some("BestEffort"));
    let types: Vec<&str> = status.conditions.iter().flatten().map(|c| c.type_.as_str()).collect();
    assert_eq!(
        types,
        ["PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled"]
    );
}

#[tokio::test(start_paused = true)]
async fn a_crashing_container_backs_off() {
    let mut b = Bench::new();
    b.apply(&pod("Always", "  containers:\n  - {name: app, image: i:1, command: [exit, '1']}\n"));
    b.until("web", "Running | app CrashLoopBackOff x3 (last exit 1)").await;
    let status = b.status("web");
    let waiting = status
        .container_statuses
        .as_ref()
        .and_then(|c| c[0].state.clone())
        .and_then(|s| s.waiting)
        .expect("waiting");
    let uid = b.pod("web").metadata.uid.expect("uid");
    assert_eq!(
        waiting.message,
        Some(format!("back-off 40s restarting failed container=app pod=web_default({uid})"))
    );
    b.sleep(700).await;
    expect![[r#"
        0s run-sandbox web#0
        0s start app#0
        0s start app#1
        10s start app#2
        10s remove app#0
        30s start app#3
        30s remove app#1
        70s start app#4
        70s remove app#2
        150s start app#5
        150s remove app#3
        310s start app#6
        310s remove app#4
        610s start app#7
        610s remove app#5"#]]
    .assert_eq(&b.fake.calls());
}

#[tokio::test(start_paused = true)]
async fn a_long_good_run_resets_the_back_off() {
    let mut b = Bench::new();
    b.apply(&pod(
        "Always",
        "  containers:\n  - {name: app, image: i:1, command: [exit, '1', after, '601']}\n",
    ));
    b.sleep(1900).await;
    let starts: Vec<String> =
        b.fake.calls().lines().filter(|l| l.contains("start ")).map(String::from).collect();
    assert_eq!(starts, ["0s start app#0", "601s start app#1", "1202s start app#2", "1803s start app#3"]);
}

#[tokio::test(start_paused = true)]
async fn restart_policies() {
    for (policy, code, want) in [
        ("Never", 0, "Succeeded | app exit 0"),
        ("Never", 3, "Failed | app exit 3"),
        ("OnFailure", 0, "Succeeded | app exit 0"),
        ("OnFailure", 3, "Running | app CrashLoopBackOff x1 (last exit 3)"),
        ("Always", 0, "Running | app CrashLoopBackOff x1 (last exit 0)"),
    ] {
        let mut b = Bench::new();
        b.apply(&pod(
            policy,
            &format!("  containers:\n  - {{name: app, image: i:1, command: [exit, '{code}']}}\n"),
        ));
        b.until("web", want).await;
    }
}

#[tokio::test(start_paused = true)]
async fn init_containers_run_in_order_and_sidecars_stay() {
    let mut b = Bench::new();
    let yaml = "  initContainers:\n  - {name: one, image: i:1, command: [exit, '0', after, '2']}\n  - {name: side, image: i:1, command: [run], restartPolicy: Always}\n  - {name: two, image: i:1, command: [exit, '0', after, '3']}\n  containers:\n  - {name: app, image: i:1, command: [exit, '0', after, '4']}\n";
    b.apply(&pod("Never", yaml));
    b.until("web", "Pending | one running, side PodInitializing, two PodInitializing, app PodInitializing")
        .await;
    b.until("web", "Running ready | one exit 0, side running, two exit 0, app running").await;
    b.until("web", "Succeeded | one exit 0, side exit 0, two exit 0, app exit 0").await;
    expect![[r#"
        0s run-sandbox web#0
        0s start one#0
        2s start side#0
        2s start two#0
        5s start app#0
        9s stop side#0 within 5s
        9s stop-sandbox"#]]
    .assert_eq(&b.fake.calls());
}

#[tokio::test(start_paused = true)]
async fn a_failing_init_container_fails_a_pod_that_never_restarts() {
    let mut b = Bench::new();
    let yaml = "  initContainers:\n  - {name: one, image: i:1, command: [exit, '2']}\n  containers:\n  - {name: app, image: i:1, command: [run]}\n";
    b.apply(&pod("Never", yaml));
    b.until("web", "Failed | one exit 2, app PodInitializing").await;
}

#[tokio::test(start_paused = true)]
async fn a_failing_pull_backs_off_and_recovers() {
    let mut b = Bench::new();
    b.fake.registry_down.store(true, Ordering::SeqCst);
    b.apply(&pod("Always", "  containers:\n  - {name: app, image: absent, command: [run]}\n"));
    b.until("web", "Pending | app ErrImagePull").await;
    b.until("web", "Pending | app ImagePullBackOff").await;
    b.sleep(35).await;
    b.fake.registry_down.store(false, Ordering::SeqCst);
    b.until("web", "Running ready | app running").await;
    expect![[r#"
        0s run-sandbox web#0
        0s pull absent
        10s pull absent
        30s pull absent
        70s pull absent
        70s start app#0"#]]
    .assert_eq(&b.fake.calls());
}

#[tokio::test(start_paused = true)]
async fn a_restarted_daemon_adopts_what_runs() {
    let mut b = Bench::new();
    b.apply(&pod("Always", "  containers:\n  - {name: app, image: i:1, command: [run]}\n"));
    b.until("web", "Running ready | app running").await;
    b.fake.exit("app", 4);
    b.until("web", "Running ready | app running x1 (last exit 4)").await;
    let (calls, pod) = (b.fake.calls(), b.pod("web"));
    b.sleep(10).await;
    let b = b.restart(vec![pod]).await;
    b.sleep(100).await;
    assert_eq!(b.line("web"), "Running ready | app running x1 (last exit 4)");
    assert_eq!(b.fake.calls(), calls);
}

#[tokio::test(start_paused = true)]
async fn what_was_deleted_while_nobody_looked_is_stopped() {
    let mut b = Bench::new();
    b.apply(&pod("Always", "  containers:\n  - {name: app, image: i:1, command: [run]}\n"));
    b.until("web", "Running ready | app running").await;
    let b = b.restart(Vec::new()).await;
    b.fleet.adopt_orphans().await.expect("orphans");
    b.until_gone("web").await;
    expect![[r#"
        0s run-sandbox web#0
        0s start app#0
        0s stop app#0 within 5s
        0s stop-sandbox
        0s remove-sandbox"#]]
    .assert_eq(&b.fake.calls());
}

#[tokio::test(start_paused = true)]
async fn another_image_restarts_the_container() {
    let mut b = Bench::new();
    b.apply(&pod("Always", "  containers:\n  - {name: app, image: i:1, command: [run]}\n"));
    b.until("web", "Running ready | app running").await;
    let mut pod = b.pod("web");
    pod.spec.as_mut().expect("a spec").containers[0].image = Some("j".into());
    b.put(pod);
    b.until("web", "Running ready | app running x1 (last exit 0)").await;
    assert_eq!(b.fake.config_of("app").image.expect("image").user_specified_image, "j");
}

#[tokio::test(start_paused = true)]
async fn unsupported_features_fail_the_pod_and_say_so() {
    let mut b = Bench::new();
    b.apply(&pod(
        "Always",
        "  hostUsers: false\n  hostPID: true\n  containers:\n  - {name: app, image: i:1}\n",
    ));
    b.until("web", "Failed UnsupportedPodFeature | ").await;
    let message = b.status("web").message.expect("a message");
    assert!(message.contains("spec.hostUsers: false") && message.contains("hostPID"), "{message}");
}
