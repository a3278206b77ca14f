//! Status texts, conditions and patches.

use std::collections::BTreeMap;

use expect_test::expect;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, Pod, PodCondition, PodReadinessGate, PodSpec, PodStatus, ResourceRequirements,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::json;

use super::{Facts, compute, go_duration, patch, qos};
use crate::config::Backoff;
use crate::pod::observed::Observed;
use crate::pod::step::Memo;

fn pod(gate: Option<&str>) -> Pod {
    let container = Container { name: "app".into(), ..Container::default() };
    let gates = gate.map(|g| vec![PodReadinessGate { condition_type: g.into() }]);
    let mut pod = Pod {
        spec: Some(PodSpec { containers: vec![container], readiness_gates: gates, ..PodSpec::default() }),
        ..Pod::default()
    };
    pod.metadata.generation = Some(3);
    pod
}

fn status_of(pod: &Pod, previous: &PodStatus) -> PodStatus {
    compute(&Facts {
        pod,
        previous,
        stop: None,
        seen: &Observed::default(),
        memo: &Memo::default(),
        messages: &BTreeMap::new(),
        crash_loop: Backoff::default(),
        host_ips: &["192.0.2.1".into()],
        runtime: "orlop",
        now: Timestamp::UNIX_EPOCH,
    })
}

#[test]
fn a_new_pod_is_pending_and_says_why_it_is_not_ready() {
    let status = status_of(&pod(None), &PodStatus::default());
    assert_eq!(status.phase.as_deref(), Some("Pending"));
    assert_eq!(status.observed_generation, Some(3));
    let lines: Vec<String> = status
        .conditions
        .iter()
        .flatten()
        .map(|c| {
            format!(
                "{}={} {} {}",
                c.type_,
                c.status,
                c.reason.as_deref().unwrap_or("-"),
                c.message.as_deref().unwrap_or("-")
            )
        })
        .collect();
    expect![[r#"
        PodReadyToStartContainers=False - -
        Initialized=True - -
        Ready=False ContainersNotReady containers with unready status: [app]
        ContainersReady=False ContainersNotReady containers with unready status: [app]
        PodScheduled=True - -"#]]
    .assert_eq(&lines.join("\n"));
}

#[test]
fn conditions_of_others_are_kept() {
    let other =
        PodCondition { type_: "example.com/lb".into(), status: "True".into(), ..PodCondition::default() };
    let previous = PodStatus { conditions: Some(vec![other.clone()]), ..PodStatus::default() };
    let status = status_of(&pod(Some("example.com/lb")), &previous);
    assert!(status.conditions.iter().flatten().any(|c| *c == other));
}

#[test]
fn a_patch_names_what_changed_and_nothing_else() {
    let old = status_of(&pod(None), &PodStatus::default());
    assert_eq!(patch::status("u", &old, &old), None);
    let mut new = old.clone();
    new.phase = Some("Running".into());
    new.pod_ip = Some("10.0.0.2".into());
    let patch = patch::status("u", &old, &new).expect("a difference");
    assert_eq!(patch, json!({"metadata": {"uid": "u"}, "status": {"phase": "Running", "podIP": "10.0.0.2"}}));
    let mut ready = old.clone();
    for c in ready.conditions.iter_mut().flatten().filter(|c| c.type_ == "Ready") {
        (c.status, c.reason, c.message) = ("True".into(), None, None);
    }
    let patch = patch::status("u", &old, &ready).expect("a difference");
    let conditions = patch["status"]["conditions"].as_array().expect("conditions");
    assert_eq!(conditions.len(), 1);
    assert_eq!((&conditions[0]["type"], &conditions[0]["reason"]), (&json!("Ready"), &json!(null)));
}

#[test]
fn durations_print_as_go_prints_them() {
    let print = |ms| go_duration(std::time::Duration::from_millis(ms));
    assert_eq!(
        [print(10_000), print(160_000), print(300_000), print(120), print(1_250)],
        ["10s", "2m40s", "5m0s", "120ms", "1.25s"]
    );
}

#[test]
fn quality_of_service() {
    let with = |limits: &[(&str, &str)], requests: &[(&str, &str)]| {
        let list = |l: &[(&str, &str)]| {
            Some(l.iter().map(|(k, v)| (k.to_string(), Quantity(v.to_string()))).collect())
        };
        let resources = ResourceRequirements { limits: list(limits), requests: list(requests), claims: None };
        let c = Container { name: "a".into(), resources: Some(resources), ..Container::default() };
        qos::class(&PodSpec { containers: vec![c], ..PodSpec::default() })
    };
    assert_eq!(with(&[], &[]), "BestEffort");
    assert_eq!(with(&[("cpu", "1"), ("memory", "1Gi")], &[]), "Guaranteed");
    assert_eq!(
        with(&[("cpu", "1"), ("memory", "1Gi")], &[("cpu", "1000m"), ("memory", "1Gi")]),
        "Guaranteed"
    );
    assert_eq!(with(&[("memory", "1Gi")], &[("cpu", "1m")]), "Burstable");
}
