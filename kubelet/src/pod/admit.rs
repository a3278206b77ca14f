//! What this kubelet refuses to run, with the reason and what to do about it.
//!
//! Guarantees: nothing a pod asks for is silently ignored: either it is done or the pod fails with a
//! message that names the field. The same table stands in `docs/kubelet-refusals.md`.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Volume};

use super::step::Ended;
use super::view::{self, host_network};
use crate::config::Config;
use crate::node::facts::{HUGE_PAGES, Machine};

/// Refusals of whole pods: `status.reason` of most of them.
const UNSUPPORTED: &str = "UnsupportedPodFeature";

/// One row: the field, whether the pod uses it, what to do.
type Row<T> = (&'static str, fn(&T) -> bool, &'static str);

const OF_POD: &[Row<PodSpec>] = &[
    (
        "spec.hostUsers: false beside hostNetwork, hostPID or hostIPC",
        |s| {
            let host = [s.host_network, s.host_pid, s.host_ipc];
            s.host_users == Some(false) && host.contains(&Some(true))
        },
        "leave the node's namespaces out, or set hostUsers to true",
    ),
    (
        "emptyDir.medium: HugePages beside hostUsers: false",
        |s| s.host_users == Some(false) && s.volumes.iter().flatten().any(of_huge_pages),
        "use medium Memory, or set hostUsers to true",
    ),
    (
        "securityContext.procMount: Unmasked without hostUsers: false",
        |s| {
            s.host_users != Some(false)
                && view::members(s)
                    .filter_map(|m| m.spec.security_context.as_ref())
                    .any(|c| c.proc_mount.as_deref() == Some("Unmasked"))
        },
        "set hostUsers to false, or leave procMount out",
    ),
    (
        "spec.resourceClaims",
        |s| !s.resource_claims.as_deref().unwrap_or_default().is_empty(),
        "remove them: dynamic resource allocation is not supported",
    ),
    (
        "spec.ephemeralContainers",
        |s| !s.ephemeral_containers.as_deref().unwrap_or_default().is_empty(),
        "use a container or kubectl exec",
    ),
    (
        "spec.os.name: windows",
        |s| s.os.as_ref().is_some_and(|o| o.name == "windows"),
        "run it on a Windows node",
    ),
    (
        "spec.securityContext.windowsOptions",
        |s| s.security_context.as_ref().is_some_and(|c| c.windows_options.is_some()),
        "run it on a Windows node",
    ),
];

const OF_CONTAINER: &[Row<Container>] = &[
    (
        "volumeDevices",
        |c| !c.volume_devices.as_deref().unwrap_or_default().is_empty(),
        "block devices come from persistent volume claims, which are not supported yet: name the device by CDI, or mount \
         its node by hostPath into a privileged container",
    ),
    (
        "restartPolicyRules",
        |c| !c.restart_policy_rules.as_deref().unwrap_or_default().is_empty(),
        "use restartPolicy",
    ),
    (
        "resources.claims",
        |c| c.resources.as_ref().is_some_and(|r| !r.claims.as_deref().unwrap_or_default().is_empty()),
        "remove them: dynamic resource allocation is not supported",
    ),
    (
        "securityContext.windowsOptions",
        |c| c.security_context.as_ref().is_some_and(|s| s.windows_options.is_some()),
        "run it on a Windows node",
    ),
    ("resources.limits of extended resources", extended, "remove them: device plugins are not supported"),
    (
        "env valueFrom.fileKeyRef",
        |c| c.env.iter().flatten().any(|e| e.value_from.as_ref().is_some_and(|v| v.file_key_ref.is_some())),
        "use configMapKeyRef or secretKeyRef",
    ),
    (
        "lifecycle tcpSocket",
        |c| {
            c.lifecycle.as_ref().is_some_and(|l| {
                [&l.post_start, &l.pre_stop]
                    .iter()
                    .any(|h| h.as_ref().is_some_and(|h| h.tcp_socket.is_some()))
            })
        },
        "use exec, httpGet or sleep",
    ),
];

const OF_VOLUME: &[Row<Volume>] = &[
    (
        "persistentVolumeClaim",
        |v| v.persistent_volume_claim.is_some(),
        "use hostPath or emptyDir: persistent volumes are not supported yet",
    ),
    ("ephemeral", |v| v.ephemeral.is_some(), "use emptyDir"),
    ("csi", |v| v.csi.is_some(), "CSI drivers are not supported yet"),
    ("nfs", |v| v.nfs.is_some(), "mount it on the node and use hostPath"),
    ("iscsi", |v| v.iscsi.is_some(), "mount it on the node and use hostPath"),
    ("fc", |v| v.fc.is_some(), "mount it on the node and use hostPath"),
    ("gitRepo", |v| v.git_repo.is_some(), "clone in an init container: gitRepo volumes are not secure"),
    (
        "projected clusterTrustBundle",
        |v| {
            v.projected
                .iter()
                .flat_map(|p| p.sources.iter().flatten())
                .any(|s| s.cluster_trust_bundle.is_some())
        },
        "use a configMap source",
    ),
    (
        "projected podCertificate",
        |v| v.projected.iter().flat_map(|p| p.sources.iter().flatten()).any(|s| s.pod_certificate.is_some()),
        "use a secret source",
    ),
];

/// Sysctls that any pod may set: they are namespaced and harm nobody else.
const SAFE_SYSCTLS: &[&str] = &[
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

/// `Err` with how the pod is to fail.
pub fn check(config: &Config, machine: &Machine, pod: &Pod) -> Result<(), Ended> {
    let spec = view::spec(pod);
    let refuse = |what: String, todo: &str| {
        Err(Ended {
            success: false,
            reason: Some(UNSUPPORTED.into()),
            message: Some(format!("Pod was rejected: {what} is not supported on this node: {todo}")),
        })
    };
    for (what, uses, todo) in OF_POD {
        if uses(spec) {
            return refuse((*what).into(), todo);
        }
    }
    for member in view::members(spec) {
        for (what, uses, todo) in OF_CONTAINER {
            if uses(member.spec) {
                return refuse(format!("{what} of container \"{}\"", member.name()), todo);
            }
        }
    }
    for volume in spec.volumes.iter().flatten() {
        for (what, uses, todo) in OF_VOLUME {
            if uses(volume) {
                return refuse(format!("{what} of volume \"{}\"", volume.name), todo);
            }
        }
        let known = volume.image.is_some()
            || crate::volumes::host_path_of(std::path::Path::new("/"), volume).is_some();
        if !known {
            return refuse(
                format!("the source of volume \"{}\"", volume.name),
                "use one of emptyDir, hostPath, configMap, secret, downwardAPI, projected, image",
            );
        }
    }
    sysctls(config, pod)?;
    huge_pages(machine, pod)?;
    apparmor(config, pod)?;
    if !config.selinux && crate::container::selinux::is_required(pod) {
        return refuse("seLinuxOptions".into(), "remove it: the kernel runs without SELinux");
    }
    localhost_profiles(spec)
}

fn of_huge_pages(volume: &Volume) -> bool {
    let medium = volume.empty_dir.as_ref().and_then(|source| source.medium.as_deref());
    medium.is_some_and(|medium| medium.starts_with("HugePages"))
}

fn extended(c: &Container) -> bool {
    let native =
        |name: &str| matches!(name, "cpu" | "memory" | "ephemeral-storage") || name.starts_with(HUGE_PAGES);
    let limits = c.resources.as_ref().and_then(|r| r.limits.as_ref());
    limits.is_some_and(|l| l.iter().any(|(name, amount)| !native(name) && amount.0 != "0"))
}

fn sysctls(config: &Config, pod: &Pod) -> Result<(), Ended> {
    let list = view::spec(pod).security_context.as_ref().and_then(|s| s.sysctls.as_ref());
    for sysctl in list.into_iter().flatten() {
        let name = sysctl.name.replace('/', ".");
        let allowed = config.allowed_unsafe_sysctls.iter().any(|rule| match rule.strip_suffix('*') {
            Some(prefix) => name.starts_with(prefix),
            None => *rule == name,
        });
        let of_ipc = name.starts_with("kernel.") || name.starts_with("fs.mqueue.");
        let of_host = (name.starts_with("net.") && host_network(pod))
            || (of_ipc && view::spec(pod).host_ipc == Some(true));
        if of_host || (!SAFE_SYSCTLS.contains(&name.as_str()) && !allowed) {
            return Err(Ended {
                success: false,
                reason: Some("SysctlForbidden".into()),
                message: Some(format!(
                    "Pod was rejected: forbidden sysctl: \"{}\" not allowlisted",
                    sysctl.name
                )),
            });
        }
    }
    Ok(())
}

/// Pages that the kernel does not keep can't be had, whoever placed the pod here.
fn huge_pages(machine: &Machine, pod: &Pod) -> Result<(), Ended> {
    match crate::container::resources::missing_huge_pages(pod, machine) {
        None => Ok(()),
        Some((kind, wanted, there)) => Err(Ended {
            success: false,
            reason: Some(format!("OutOf{kind}")),
            message: Some(format!(
                "Pod was rejected: Node didn't have enough resource: {kind}, requested: {wanted}, capacity: {there}"
            )),
        }),
    }
}

fn apparmor(config: &Config, pod: &Pod) -> Result<(), Ended> {
    if config.apparmor || !crate::container::apparmor::is_required(pod) {
        return Ok(());
    }
    Err(Ended {
        success: false,
        reason: Some("AppArmor".into()),
        message: Some("Cannot enforce AppArmor: AppArmor is not enabled on the host".into()),
    })
}

/// A Localhost seccomp profile needs a path, and one that stays below the profile directory.
fn localhost_profiles(spec: &PodSpec) -> Result<(), Ended> {
    let of_pod = spec.security_context.as_ref().and_then(|s| s.seccomp_profile.as_ref());
    let of_containers = view::members(spec)
        .filter_map(|m| m.spec.security_context.as_ref().and_then(|s| s.seccomp_profile.as_ref()));
    for profile in of_pod.into_iter().chain(of_containers).filter(|p| p.type_ == "Localhost") {
        let path = profile.localhost_profile.as_deref().unwrap_or("");
        if path.is_empty() || path.starts_with('/') || path.split('/').any(|p| p == "..") {
            return Err(Ended {
                success: false,
                reason: Some("CreateContainerConfigError".into()),
                message: Some(format!(
                    "Pod was rejected: localhostProfile {path:?} must be a path below the seccomp directory when type is Localhost"
                )),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::node::facts::HugePages;

    /// Reason and message of the refusal, or nothing.
    fn refusal(spec: &Value) -> String {
        let machine =
            Machine { huge_pages: vec![HugePages { size: 2 << 20, count: 4 }], ..Machine::default() };
        let mut config = Config::new("n", "/n");
        config.allowed_unsafe_sysctls = vec!["kernel.msg*".into()];
        let pod = serde_json::from_value(json!({ "spec": spec })).expect("a pod");
        match check(&config, &machine, &pod) {
            Ok(()) => String::new(),
            Err(end) => format!("{}: {}", end.reason.unwrap_or_default(), end.message.unwrap_or_default()),
        }
    }

    fn container(more: &Value) -> Value {
        let mut one = json!({ "name": "c", "image": "i" });
        one.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        json!([one])
    }

    #[test]
    fn huge_pages_are_those_of_the_node() {
        let asks = |amount: &str, host_users: bool| {
            let limits = json!({ "hugepages-2Mi": amount, "memory": "64Mi" });
            let volumes = json!([{ "name": "v", "emptyDir": { "medium": "HugePages" } }]);
            refusal(&json!({
                "hostUsers": host_users, "volumes": volumes,
                "containers": container(&json!({ "resources": { "limits": limits } })),
            }))
        };
        assert_eq!(asks("8Mi", true), "");
        let more = asks("10Mi", true);
        assert!(more.starts_with("OutOfhugepages-2Mi:") && more.contains("capacity: 8388608"), "{more}");
        let mapped = asks("8Mi", false);
        assert!(mapped.starts_with("UnsupportedPodFeature:") && mapped.contains("hostUsers"), "{mapped}");
    }

    #[test]
    fn settings_are_of_the_pods_own_namespaces() {
        let sets = |name: &str, more: Value| {
            let mut spec = json!({ "containers": container(&json!({})) });
            spec["securityContext"] = json!({ "sysctls": [{ "name": name, "value": "1" }] });
            spec.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
            refusal(&spec)
        };
        let refused = |said: String| said.starts_with("SysctlForbidden:");
        assert_eq!(sets("kernel.shm_rmid_forced", json!({})), "");
        assert_eq!(sets("kernel/msgmax", json!({})), "");
        assert!(refused(sets("kernel.sem", json!({}))));
        assert!(refused(sets("kernel.shm_rmid_forced", json!({ "hostIPC": true }))));
        assert!(refused(sets("kernel.msgmax", json!({ "hostIPC": true }))));
        assert_eq!(sets("net.ipv4.tcp_syncookies", json!({ "hostIPC": true })), "");
        assert!(refused(sets("net.ipv4.tcp_syncookies", json!({ "hostNetwork": true }))));
    }

    #[test]
    fn what_is_refused_says_what_to_do() {
        let unmasked = container(&json!({ "securityContext": { "procMount": "Unmasked" } }));
        assert_eq!(refusal(&json!({ "hostUsers": false, "containers": unmasked })), "");
        let said = refusal(&json!({ "containers": unmasked }));
        assert!(said.contains("set hostUsers to false"), "{said}");
        let devices = json!({ "volumeDevices": [{ "name": "v", "devicePath": "/dev/x" }] });
        let said = refusal(&json!({ "containers": container(&devices) }));
        assert!(said.contains("persistent volume claims") && said.contains("CDI"), "{said}");
    }
}
