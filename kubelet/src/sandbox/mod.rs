//! The sandbox of a pod as the runtime is asked for it.

pub mod dns;
pub mod hosts;
pub mod shares;

use std::collections::BTreeMap;

use cri_api::v1 as cri;
use k8s_openapi::api::core::v1::Pod;

use crate::config::Config;
use crate::container::{resources, security};
use crate::labels;
use crate::node::facts::Machine;
use crate::pod::view::{self, PodKey};
use crate::users::Range;

/// Makes the configuration. `host_resolv` is the text of the host's `resolv.conf`. The error is a
/// message for the event `FailedCreatePodSandBox`.
pub fn config(
    config: &Config,
    machine: &Machine,
    pod: &Pod,
    key: &PodKey,
    attempt: u32,
    users: Option<Range>,
    host_resolv: &str,
) -> Result<(cri::PodSandboxConfig, bool), String> {
    let (name, domain) = hosts::names(pod, &config.hostname, &config.cluster_domain);
    let hostname = hosts::kernel_name(pod, &name, domain.as_deref())?;
    let offer =
        dns::Offer { cluster: &config.cluster_dns, domain: &config.cluster_domain, host: host_resolv };
    let (dns, lacks_cluster_dns) = dns::config(pod, &offer);
    let spec = view::spec(pod);
    let sysctls = spec.security_context.as_ref().and_then(|s| s.sysctls.as_ref());
    let seccomp_root = config.root_dir.join("seccomp");
    let wanted = cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: key.name.clone(),
            uid: key.uid.to_string(),
            namespace: key.namespace.clone(),
            attempt,
        }),
        hostname: if view::host_network(pod) { String::new() } else { hostname },
        log_directory: config.pod_logs_dir.join(key.log_dir()).display().to_string(),
        dns_config: Some(dns),
        port_mappings: ports(pod),
        labels: pod_labels(pod, key),
        annotations: annotations(pod),
        linux: Some(cri::LinuxPodSandboxConfig {
            cgroup_parent: resources::cgroup_parent(config, pod, key.uid.as_str()),
            security_context: Some(security::sandbox(pod, users, &seccomp_root)),
            sysctls: sysctls.into_iter().flatten().map(|s| (s.name.clone(), s.value.clone())).collect(),
            overhead: resources::overhead(pod),
            resources: Some(resources::pod(pod, config, machine)),
        }),
        windows: None,
    };
    Ok((wanted, lacks_cluster_dns))
}

fn pod_labels(pod: &Pod, key: &PodKey) -> BTreeMap<String, String> {
    let mut all: BTreeMap<String, String> = pod.metadata.labels.clone().unwrap_or_default();
    all.insert(labels::POD_NAME.into(), key.name.clone());
    all.insert(labels::POD_NAMESPACE.into(), key.namespace.clone());
    all.insert(labels::POD_UID.into(), key.uid.to_string());
    all
}

fn annotations(pod: &Pod) -> BTreeMap<String, String> {
    let mut all = pod.metadata.annotations.clone().unwrap_or_default();
    all.entry(labels::CONFIG_SOURCE.into()).or_insert_with(|| "api".into());
    let grace = view::spec(pod).termination_grace_period_seconds.unwrap_or(30);
    all.insert(labels::TERMINATION_GRACE.into(), grace.to_string());
    all
}

fn ports(pod: &Pod) -> Vec<cri::PortMapping> {
    if view::host_network(pod) {
        return Vec::new();
    }
    let all = view::members(view::spec(pod)).flat_map(|m| m.spec.ports.iter().flatten());
    all.map(|p| cri::PortMapping {
        protocol: match p.protocol.as_deref() {
            Some("UDP") => cri::Protocol::Udp as i32,
            Some("SCTP") => cri::Protocol::Sctp as i32,
            _ => cri::Protocol::Tcp as i32,
        },
        container_port: p.container_port,
        host_port: p.host_port.unwrap_or(0),
        host_ip: p.host_ip.clone().unwrap_or_default(),
    })
    .collect()
}
