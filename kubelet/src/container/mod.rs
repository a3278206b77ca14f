//! A container as the runtime is asked for it.

pub mod apparmor;
pub mod env;
pub mod expand;
pub mod fields;
pub mod resources;
pub mod security;
pub mod selinux;

use std::path::Path;

use cri_api::v1 as cri;
use k8s_openapi::api::core::v1::{Container, Pod};

use crate::config::Config;
use crate::labels;
use crate::node::facts::Machine;
use crate::pod::hash;
use crate::pod::view;
use security::ImageUser;

/// All that a container's configuration is made from.
pub struct Wanted<'a> {
    /// The pod.
    pub pod: &'a Pod,
    /// The container's specification.
    pub spec: &'a Container,
    /// Restart count.
    pub attempt: u32,
    /// What to wait should it end.
    pub backoff: std::time::Duration,
    /// The image as the runtime knows it: its id.
    pub image_id: &'a str,
    /// Whom the image wants to run as.
    pub image_user: &'a ImageUser,
    /// Its environment.
    pub env: &'a [(String, Vec<u8>)],
    /// Its mounts.
    pub mounts: Vec<cri::Mount>,
    /// The node's settings.
    pub node: &'a Config,
    /// Its machine.
    pub machine: &'a Machine,
    /// The pod's own users, if it has any.
    pub users: Option<crate::users::Range>,
    /// Where `localhostProfile` paths begin.
    pub seccomp_root: &'a Path,
}

/// Makes the configuration. The error is the message of `CreateContainerConfigError`.
pub fn config(w: Wanted<'_>) -> Result<cri::ContainerConfig, String> {
    let (command, args) = env::command(w.spec, w.env);
    let named = w.spec.image.clone().unwrap_or_default();
    Ok(cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: w.spec.name.clone(), attempt: w.attempt }),
        image: Some(cri::ImageSpec {
            image: w.image_id.into(),
            user_specified_image: named,
            ..Default::default()
        }),
        command,
        args,
        working_dir: w.spec.working_dir.clone().unwrap_or_default(),
        envs: w
            .env
            .iter()
            .map(|(key, value)| cri::KeyValue { key: key.clone(), value: value.clone() })
            .collect(),
        mounts: w.mounts,
        labels: container_labels(w.pod, w.spec),
        annotations: annotations(w.pod, w.spec, w.attempt, w.backoff),
        log_path: format!("{}/{}.log", w.spec.name, w.attempt),
        stdin: w.spec.stdin.unwrap_or(false),
        stdin_once: w.spec.stdin_once.unwrap_or(false),
        tty: w.spec.tty.unwrap_or(false),
        linux: Some(cri::LinuxContainerConfig {
            resources: Some(resources::container(w.pod, w.spec, w.node, w.machine)),
            security_context: Some(security::container(
                w.pod,
                w.spec,
                w.image_user,
                w.users,
                w.seccomp_root,
            )?),
        }),
        stop_signal: stop_signal(w.spec) as i32,
        ..Default::default()
    })
}

fn container_labels(pod: &Pod, spec: &Container) -> std::collections::BTreeMap<String, String> {
    let meta = &pod.metadata;
    [
        (labels::POD_NAME, meta.name.clone()),
        (labels::POD_NAMESPACE, meta.namespace.clone()),
        (labels::POD_UID, meta.uid.clone()),
        (labels::CONTAINER_NAME, Some(spec.name.clone())),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.unwrap_or_default()))
    .collect()
}

fn annotations(
    pod: &Pod,
    spec: &Container,
    attempt: u32,
    backoff: std::time::Duration,
) -> std::collections::BTreeMap<String, String> {
    let mut all = std::collections::BTreeMap::new();
    let mut put = |key: &str, value: String| all.insert(key.to_owned(), value);
    put(labels::CONTAINER_HASH, hash::of(spec));
    put(labels::RESTART_COUNT, attempt.to_string());
    put(labels::BACKOFF, backoff.as_millis().to_string());
    put(
        labels::TERMINATION_MESSAGE_PATH,
        spec.termination_message_path.clone().unwrap_or_else(|| "/dev/termination-log".into()),
    );
    put(
        labels::TERMINATION_MESSAGE_POLICY,
        spec.termination_message_policy.clone().unwrap_or_else(|| "File".into()),
    );
    let grace = view::spec(pod).termination_grace_period_seconds.unwrap_or(30);
    put(labels::TERMINATION_GRACE, grace.to_string());
    // Both are plain data; a value that cannot be written is left out.
    if let Some(text) = spec.ports.as_ref().and_then(|p| serde_json::to_string(p).ok()) {
        put(labels::CONTAINER_PORTS, text);
    }
    let pre_stop = spec.lifecycle.as_ref().and_then(|l| l.pre_stop.as_ref());
    if let Some(text) = pre_stop.and_then(|p| serde_json::to_string(p).ok()) {
        put(labels::PRE_STOP, text);
    }
    all
}

fn stop_signal(spec: &Container) -> cri::Signal {
    let name = spec.lifecycle.as_ref().and_then(|l| l.stop_signal.as_deref()).unwrap_or("");
    let name = format!("SIGNAL_{}", name.replace('+', "PLUS").replace('-', "MINUS"));
    cri::Signal::from_str_name(&name).unwrap_or(cri::Signal::RuntimeDefault)
}

/// Kubernetes' name of a signal; nothing for one that the runtime didn't name.
pub fn signal_name(signal: cri::Signal) -> Option<String> {
    let name =
        signal.as_str_name().strip_prefix("SIGNAL_").filter(|_| signal != cri::Signal::RuntimeDefault)?;
    Some(name.replace("PLUS", "+").replace("MINUS", "-"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_has_a_number() {
        let signal = |name: &str| {
            let container = serde_json::json!({ "name": "c", "lifecycle": { "stopSignal": name } });
            stop_signal(&serde_json::from_value(container).expect("a container"))
        };
        assert_eq!(signal("SIGUSR1"), cri::Signal::Sigusr1);
        assert_eq!(signal("SIGRTMIN+3"), cri::Signal::Sigrtminplus3);
        assert_eq!(signal("SIGRTMAX-14"), cri::Signal::Sigrtmaxminus14);
        assert_eq!(stop_signal(&Container::default()), cri::Signal::RuntimeDefault);
        assert_eq!(signal_name(cri::Signal::Sigrtminplus3).as_deref(), Some("SIGRTMIN+3"));
        assert_eq!(signal_name(cri::Signal::Sigusr1).as_deref(), Some("SIGUSR1"));
        assert_eq!(signal_name(cri::Signal::RuntimeDefault), None);
    }
}
