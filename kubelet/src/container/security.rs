//! Security contexts: what pod and container ask for, put together for the runtime.

use cri_api::v1 as cri;
use k8s_openapi::api::core::v1::{
    Capabilities, Container, Pod, PodSecurityContext, SeccompProfile, SecurityContext,
};

use std::path::Path;

use crate::pod::view;
use crate::users::Range;

/// Paths hidden from containers unless `procMount: Unmasked`.
const MASKED: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// Paths that containers can only read.
const READONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Which namespaces the pod has for itself.
pub fn namespaces(pod: &Pod, users: Option<Range>) -> cri::NamespaceOption {
    let spec = view::spec(pod);
    let node_or = |host: Option<bool>, own: cri::NamespaceMode| {
        if host == Some(true) { cri::NamespaceMode::Node as i32 } else { own as i32 }
    };
    let pid = if spec.share_process_namespace == Some(true) {
        cri::NamespaceMode::Pod
    } else {
        cri::NamespaceMode::Container
    };
    cri::NamespaceOption {
        network: node_or(spec.host_network, cri::NamespaceMode::Pod),
        pid: node_or(spec.host_pid, pid),
        ipc: node_or(spec.host_ipc, cri::NamespaceMode::Pod),
        target_id: String::new(),
        userns_options: users.map(Range::namespace),
    }
}

/// The sandbox's security context.
pub fn sandbox(pod: &Pod, users: Option<Range>, seccomp_root: &Path) -> cri::LinuxSandboxSecurityContext {
    let empty = PodSecurityContext::default();
    let ctx = view::spec(pod).security_context.as_ref().unwrap_or(&empty);
    let privileged = view::members(view::spec(pod))
        .any(|m| m.spec.security_context.as_ref().and_then(|s| s.privileged) == Some(true));
    cri::LinuxSandboxSecurityContext {
        namespace_options: Some(namespaces(pod, users)),
        run_as_user: ctx.run_as_user.map(|value| cri::Int64Value { value }),
        run_as_group: ctx.run_as_group.map(|value| cri::Int64Value { value }),
        supplemental_groups: groups(ctx),
        supplemental_groups_policy: groups_policy(ctx),
        privileged,
        seccomp: Some(seccomp(ctx.seccomp_profile.as_ref(), false, seccomp_root)),
        apparmor: super::apparmor::of_pod(pod),
        selinux_options: super::selinux::of_pod(pod),
        ..Default::default()
    }
}

/// The container's security context. `image_user` is what the image says: uid or name.
pub fn container(
    pod: &Pod,
    container: &Container,
    image_user: &ImageUser,
    users: Option<Range>,
    seccomp_root: &Path,
) -> Result<cri::LinuxContainerSecurityContext, String> {
    let (no_pod, no_own) = (PodSecurityContext::default(), SecurityContext::default());
    let of_pod = view::spec(pod).security_context.as_ref().unwrap_or(&no_pod);
    let own = container.security_context.as_ref().unwrap_or(&no_own);
    let user = own.run_as_user.or(of_pod.run_as_user);
    if own.run_as_non_root.or(of_pod.run_as_non_root) == Some(true) {
        non_root(user, image_user, &container.name)?;
    }
    let privileged = own.privileged.unwrap_or(false);
    let unmasked = own.proc_mount.as_deref() == Some("Unmasked") || privileged;
    let paths =
        |list: &[&str]| if unmasked { Vec::new() } else { list.iter().map(|p| p.to_string()).collect() };
    let (run_as_user, run_as_username) = match (user, image_user) {
        (Some(value), _) | (None, &ImageUser::Uid(value)) => (Some(cri::Int64Value { value }), String::new()),
        (None, ImageUser::Name(name)) => (None, name.clone()),
        (None, ImageUser::Unset) => (Some(cri::Int64Value { value: 0 }), String::new()),
    };
    Ok(cri::LinuxContainerSecurityContext {
        capabilities: Some(capabilities(own.capabilities.as_ref())),
        privileged,
        namespace_options: Some(namespaces(pod, users)),
        run_as_group: own.run_as_group.or(of_pod.run_as_group).map(|value| cri::Int64Value { value }),
        run_as_user,
        run_as_username,
        readonly_rootfs: own.read_only_root_filesystem.unwrap_or(false),
        supplemental_groups: groups(of_pod),
        supplemental_groups_policy: groups_policy(of_pod),
        no_new_privs: own.allow_privilege_escalation == Some(false),
        masked_paths: paths(MASKED),
        readonly_paths: paths(READONLY),
        seccomp: Some(seccomp(
            own.seccomp_profile.as_ref().or(of_pod.seccomp_profile.as_ref()),
            privileged,
            seccomp_root,
        )),
        apparmor: super::apparmor::profile(pod, container),
        selinux_options: super::selinux::of_container(pod, container),
        ..Default::default()
    })
}

/// Whom an image wants to run as.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ImageUser {
    /// A number.
    Uid(i64),
    /// A name, to be looked up inside the image.
    Name(String),
    /// Nobody in particular: root.
    #[default]
    Unset,
}

fn non_root(user: Option<i64>, image: &ImageUser, name: &str) -> Result<(), String> {
    match (user, image) {
        (Some(0), _) => Err(format!("container's runAsUser breaks non-root policy (container: {name})")),
        (Some(_), _) => Ok(()),
        (None, ImageUser::Uid(0) | ImageUser::Unset) => {
            Err(format!("container has runAsNonRoot and image will run as root (container: {name})"))
        }
        (None, ImageUser::Name(user)) => Err(format!(
            "container has runAsNonRoot and image has non-numeric user ({user}), cannot verify user is non-root (container: {name})"
        )),
        (None, ImageUser::Uid(_)) => Ok(()),
    }
}

fn groups(ctx: &PodSecurityContext) -> Vec<i64> {
    let mut groups = ctx.supplemental_groups.clone().unwrap_or_default();
    groups.extend(ctx.fs_group);
    groups
}

fn groups_policy(ctx: &PodSecurityContext) -> i32 {
    match ctx.supplemental_groups_policy.as_deref() {
        Some("Strict") => cri::SupplementalGroupsPolicy::Strict as i32,
        _ => cri::SupplementalGroupsPolicy::Merge as i32,
    }
}

fn capabilities(caps: Option<&Capabilities>) -> cri::Capability {
    let strip = |list: Option<&Vec<String>>| {
        list.into_iter().flatten().map(|c| c.trim_start_matches("CAP_").to_uppercase()).collect()
    };
    cri::Capability {
        add_capabilities: strip(caps.and_then(|c| c.add.as_ref())),
        drop_capabilities: strip(caps.and_then(|c| c.drop.as_ref())),
        add_ambient_capabilities: Vec::new(),
    }
}

/// RuntimeDefault for whoever does not ask otherwise; a privileged container is not confined.
fn seccomp(profile: Option<&SeccompProfile>, privileged: bool, root: &Path) -> cri::SecurityProfile {
    use cri::security_profile::ProfileType;
    let kind = match profile.map(|p| p.type_.as_str()) {
        _ if privileged => ProfileType::Unconfined,
        Some("Unconfined") => ProfileType::Unconfined,
        Some("Localhost") => ProfileType::Localhost,
        _ => ProfileType::RuntimeDefault,
    };
    let path = profile.and_then(|p| p.localhost_profile.as_deref()).unwrap_or("");
    let localhost = kind == ProfileType::Localhost;
    cri::SecurityProfile {
        profile_type: kind as i32,
        localhost_ref: if localhost { root.join(path).display().to_string() } else { String::new() },
    }
}
