//! A sandbox's configuration as the runtime and the network want it. Pure.
//!
//! Guarantees: what this node cannot do is refused here, before anything is made.

use std::net::IpAddr;

use cri_api::v1::{
    IdMapping, LinuxContainerResources, LinuxSandboxSecurityContext, NamespaceMode as Mode, NamespaceOption,
    PodSandboxConfig, PortMapping, Protocol, SeLinuxOption, SecurityProfile, SupplementalGroupsPolicy,
    security_profile::ProfileType,
};
use runtime::spec::{AppArmorProfile, IdRange, NamespaceMode, Namespaces, SelinuxOptions, UserNamespace};
use runtime::{Resources, SandboxId, SandboxSpec};
use tonic::Status;

use crate::container_spec::seccomp;
use crate::error::invalid;

/// Translates a sandbox. `meta` is what the record shall hold.
pub fn sandbox_spec(
    id: SandboxId,
    config: &PodSandboxConfig,
    handler: &str,
    meta: serde_json::Value,
) -> Result<SandboxSpec, Status> {
    let metadata = config.metadata.as_ref().filter(|m| !m.name.is_empty() && !m.namespace.is_empty());
    if metadata.is_none() {
        return Err(invalid("the sandbox needs metadata with a name and a namespace"));
    }
    if config.windows.is_some() {
        return Err(invalid("a sandbox with Windows settings cannot run on Linux"));
    }
    let linux = config.linux.clone().unwrap_or_default();
    let context = linux.security_context.unwrap_or_default();
    // A sandbox has no program of its own to confine, but a mistake is told early.
    apparmor(context.apparmor.as_ref(), "")?;
    check_process(&context)?;
    linux.overhead.as_ref().map(resources).transpose()?;
    let mut spec = SandboxSpec::new(id);
    spec.namespaces = namespaces(context.namespace_options.as_ref())?;
    spec.user_namespace = context.namespace_options.as_ref().map_or(Ok(None), user_namespace)?;
    if !config.hostname.is_empty() {
        check_hostname(&config.hostname)?;
        spec.hostname = config.hostname.clone();
    }
    spec.cgroup_parent = Some(linux.cgroup_parent).filter(|parent| !parent.is_empty());
    spec.sysctls = linux.sysctls;
    spec.resources = match &linux.resources {
        Some(sums) => resources(&with_overhead(sums, linux.overhead.as_ref()))?,
        None => Default::default(),
    };
    spec.privileged = context.privileged;
    spec.selinux = context.selinux_options.as_ref().map(selinux);
    // The runtime refuses a name that it doesn't have.
    spec.handler = handler.to_owned();
    spec.meta = meta;
    Ok(spec)
}

/// What is said of a pod's own process is checked, and without effect: a pod has none but, with shared process ids, an
/// init, which runs nothing of anybody's.
#[expect(deprecated, reason = "old kubelets still set the paths of profiles")]
fn check_process(context: &LinuxSandboxSecurityContext) -> Result<(), Status> {
    let id = |value: i64, what: &str| match u32::try_from(value) {
        Ok(_) => Ok(()),
        Err(_) => Err(invalid(format!("the sandbox's {what} {value} is not between 0 and 4294967295"))),
    };
    if context.run_as_group.is_some() && context.run_as_user.is_none() {
        return Err(invalid("the sandbox's run_as_group is given without run_as_user: set that, too"));
    }
    context.run_as_user.as_ref().map_or(Ok(()), |user| id(user.value, "run_as_user"))?;
    context.run_as_group.as_ref().map_or(Ok(()), |group| id(group.value, "run_as_group"))?;
    context.supplemental_groups.iter().try_for_each(|group| id(*group, "supplemental group"))?;
    if SupplementalGroupsPolicy::try_from(context.supplemental_groups_policy).is_err() {
        return Err(invalid("the sandbox's supplemental_groups_policy can be Merge or Strict"));
    }
    seccomp(context.seccomp.as_ref(), &context.seccomp_profile_path).map(|_| ())
}

fn check_hostname(name: &str) -> Result<(), Status> {
    let good = name.len() <= 64 && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    if good {
        Ok(())
    } else {
        Err(invalid(format!("{name:?} cannot be a host name of at most 64 characters")))
    }
}

/// Whether the sandbox lives in the node's network.
pub fn host_network(config: &PodSandboxConfig) -> bool {
    options(config).network == Mode::Node as i32
}

/// The sandbox's namespace options, with defaults for what is absent.
pub fn options(config: &PodSandboxConfig) -> NamespaceOption {
    context(config).and_then(|context| context.namespace_options.clone()).unwrap_or_default()
}

/// The sandbox's security context.
pub fn context(config: &PodSandboxConfig) -> Option<&LinuxSandboxSecurityContext> {
    config.linux.as_ref()?.security_context.as_ref()
}

fn namespaces(options: Option<&NamespaceOption>) -> Result<Namespaces, Status> {
    let options = options.cloned().unwrap_or_default();
    let shared = |mode: i32, what: &str| match Mode::try_from(mode) {
        Ok(Mode::Pod) => Ok(NamespaceMode::Pod),
        Ok(Mode::Node) => Ok(NamespaceMode::Node),
        _ => Err(invalid(format!("the sandbox's {what} namespace can be POD or NODE"))),
    };
    let net = shared(options.network, "network")?;
    Ok(Namespaces {
        // A pod in the node's network has the node's name as well.
        uts: net.clone(),
        net,
        ipc: shared(options.ipc, "ipc")?,
        pid: match Mode::try_from(options.pid) {
            Ok(Mode::Pod) => NamespaceMode::Pod,
            Ok(Mode::Node) => NamespaceMode::Node,
            // A target is a container's matter: its sandbox shares nothing.
            Ok(Mode::Container | Mode::Target) => NamespaceMode::Container,
            Err(_) => return Err(invalid("the sandbox's pid namespace is of an unknown kind")),
        },
    })
}

/// The ids of a pod that has users of its own.
pub fn user_namespace(options: &NamespaceOption) -> Result<Option<UserNamespace>, Status> {
    let Some(userns) = &options.userns_options else { return Ok(None) };
    match Mode::try_from(userns.mode) {
        Ok(Mode::Node) => Ok(None),
        Ok(Mode::Pod) => ids(&userns.uids, &userns.gids, "the user namespace")?.map(Some).ok_or_else(|| {
            invalid("the user namespace has no ids: one mapping for users and one for groups are wanted")
        }),
        _ => Err(invalid("the user namespace can be that of the POD or of the NODE")),
    }
}

/// One range of users and one of groups, both from 0 on; nothing when none is given.
pub fn ids(users: &[IdMapping], groups: &[IdMapping], what: &str) -> Result<Option<UserNamespace>, Status> {
    let range = |list: &[IdMapping], kind: &str| match list {
        [one] if one.container_id == 0 => Ok(IdRange { host: one.host_id, length: one.length }),
        _ => Err(invalid(format!("{what} needs exactly one mapping of {kind} ids, from container id 0 on"))),
    };
    if users.is_empty() && groups.is_empty() {
        return Ok(None);
    }
    Ok(Some(UserNamespace { users: range(users, "user")?, groups: range(groups, "group")? }))
}

/// A pod's limits: the sums of its containers, and what its runtime class takes beside them. What has no limit gets none.
pub fn with_overhead(
    sums: &LinuxContainerResources,
    overhead: Option<&LinuxContainerResources>,
) -> LinuxContainerResources {
    let mut all = sums.clone();
    let Some(overhead) = overhead else { return all };
    let add = |to: &mut i64, more: i64| {
        if *to > 0 {
            *to = to.saturating_add(more.max(0));
        }
    };
    add(&mut all.memory_limit_in_bytes, overhead.memory_limit_in_bytes);
    add(&mut all.cpu_shares, overhead.cpu_shares);
    // Quotas can be of different periods.
    let more = match (all.cpu_period, overhead.cpu_period) {
        (ours, theirs) if ours > 0 && theirs > 0 => {
            i128::from(overhead.cpu_quota) * i128::from(ours) / i128::from(theirs)
        }
        _ => i128::from(overhead.cpu_quota),
    };
    add(&mut all.cpu_quota, i64::try_from(more).unwrap_or(i64::MAX));
    all
}

/// An SELinux label, as the runtime takes it.
pub fn selinux(label: &SeLinuxOption) -> SelinuxOptions {
    let SeLinuxOption { user, role, r#type, level } = label.clone();
    SelinuxOptions { user, role, kind: r#type, level }
}

/// The AppArmor profile; `old` is the field that kubelets before 1.30 set.
pub fn apparmor(profile: Option<&SecurityProfile>, old: &str) -> Result<AppArmorProfile, Status> {
    let localhost = |name: &str| {
        // Both spellings are in use.
        let name = name.strip_prefix("localhost/").unwrap_or(name);
        runtime::lsm::apparmor::check_name(name).map_err(invalid)?;
        Ok(AppArmorProfile::Localhost(name.to_owned()))
    };
    if let Some(profile) = profile {
        return match ProfileType::try_from(profile.profile_type) {
            Ok(ProfileType::RuntimeDefault) => Ok(AppArmorProfile::RuntimeDefault),
            Ok(ProfileType::Unconfined) => Ok(AppArmorProfile::Unconfined),
            Ok(ProfileType::Localhost) => localhost(&profile.localhost_ref),
            Err(_) => Err(invalid("an AppArmor profile can be RuntimeDefault, Unconfined or Localhost")),
        };
    }
    match old {
        "" => Ok(AppArmorProfile::Unspecified),
        "runtime/default" => Ok(AppArmorProfile::RuntimeDefault),
        "unconfined" => Ok(AppArmorProfile::Unconfined),
        other if other.starts_with("localhost/") => localhost(other),
        other => Err(invalid(format!(
            "the AppArmor profile {other:?} is not known: use runtime/default, unconfined or localhost/NAME"
        ))),
    }
}

/// The ports that the node forwards; those without a host port are only information.
pub fn port_mappings(config: &PodSandboxConfig) -> Result<Vec<network::PortMapping>, Status> {
    let wanted = config.port_mappings.iter().filter(|mapping| mapping.host_port != 0);
    wanted.map(port_mapping).collect()
}

fn port_mapping(mapping: &PortMapping) -> Result<network::PortMapping, Status> {
    let port = |number: i32| {
        let port = u16::try_from(number).ok().filter(|port| *port > 0);
        port.ok_or_else(|| invalid(format!("{number} is no port: 1 to 65535 is wanted")))
    };
    let host_ip = match mapping.host_ip.as_str() {
        "" => None,
        text => {
            Some(text.parse::<IpAddr>().map_err(|_| invalid(format!("host_ip {text:?} is no IP address")))?)
        }
    };
    Ok(network::PortMapping {
        host_ip,
        host_port: port(mapping.host_port)?,
        container_port: port(mapping.container_port)?,
        protocol: match Protocol::try_from(mapping.protocol) {
            Ok(Protocol::Tcp) => network::Protocol::Tcp,
            Ok(Protocol::Udp) => network::Protocol::Udp,
            Ok(Protocol::Sctp) => network::Protocol::Sctp,
            Err(_) => return Err(invalid("a port mapping's protocol can be TCP, UDP or SCTP")),
        },
    })
}

/// Limits as the runtime takes them; 0 and empty mean "not set".
pub fn resources(from: &LinuxContainerResources) -> Result<Resources, Status> {
    let positive = |value: i64, what: &str| match u64::try_from(value) {
        Ok(0) => Ok(None),
        Ok(value) => Ok(Some(value)),
        Err(_) => Err(invalid(format!("{what} cannot be negative ({value})"))),
    };
    let set = |value: i64| Some(value).filter(|value| *value != 0);
    let text = |value: &String| Some(value.clone()).filter(|value| !value.is_empty());
    let oom_score_adj = i32::try_from(from.oom_score_adj).ok().filter(|adj| (-1000..=1000).contains(adj));
    Ok(Resources {
        cpu_shares: positive(from.cpu_shares, "cpu_shares")?,
        cpu_quota: set(from.cpu_quota),
        cpu_period: positive(from.cpu_period, "cpu_period")?,
        memory_limit: set(from.memory_limit_in_bytes),
        memory_swap_limit: set(from.memory_swap_limit_in_bytes),
        cpuset_cpus: text(&from.cpuset_cpus),
        cpuset_mems: text(&from.cpuset_mems),
        oom_score_adj: Some(
            oom_score_adj.ok_or_else(|| {
                invalid(format!("oom_score_adj {} is not -1000 to 1000", from.oom_score_adj))
            })?,
        ),
        hugepages: from.hugepage_limits.iter().map(|limit| (limit.page_size.clone(), limit.limit)).collect(),
        unified: from.unified.clone(),
        ..Resources::default()
    })
}

#[cfg(test)]
mod tests {
    use cri_api::v1::{LinuxPodSandboxConfig, PodSandboxMetadata, UserNamespace};

    use super::*;

    fn config(context: LinuxSandboxSecurityContext) -> PodSandboxConfig {
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: "p".into(),
                namespace: "n".into(),
                ..Default::default()
            }),
            hostname: "web-0".into(),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: "/kubepods/pod1".into(),
                security_context: Some(context),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn an_overhead_is_added_where_there_is_a_limit() {
        let linux = |memory, quota, period, shares| LinuxContainerResources {
            memory_limit_in_bytes: memory,
            cpu_quota: quota,
            cpu_period: period,
            cpu_shares: shares,
            ..Default::default()
        };
        let overhead = linux(64 << 20, 25_000, 100_000, 256);
        let all = with_overhead(&linux(128 << 20, 10_000, 50_000, 102), Some(&overhead));
        assert_eq!(all, linux(192 << 20, 22_500, 50_000, 358));
        let unlimited = linux(0, 0, 100_000, 2);
        assert_eq!(with_overhead(&unlimited, Some(&overhead)), linux(0, 0, 100_000, 258));
        assert_eq!(with_overhead(&unlimited, None), unlimited);
        let mut config = config(modes(Mode::Pod, Mode::Container, Mode::Pod));
        let linux = config.linux.as_mut().expect("Linux");
        (linux.resources, linux.overhead) = (Some(all), Some(overhead));
        assert_eq!(translate(&config, "crun").expect("a spec").resources.memory_limit, Some(256 << 20));
    }

    fn translate(config: &PodSandboxConfig, handler: &str) -> Result<SandboxSpec, String> {
        let id = "s1".parse().expect("an id");
        sandbox_spec(id, config, handler, serde_json::Value::Null)
            .map_err(|status| status.message().to_owned())
    }

    fn modes(network: Mode, pid: Mode, ipc: Mode) -> LinuxSandboxSecurityContext {
        LinuxSandboxSecurityContext {
            namespace_options: Some(NamespaceOption {
                network: network as i32,
                pid: pid as i32,
                ipc: ipc as i32,
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    #[test]
    fn namespaces_follow_the_options() {
        let spec = translate(&config(modes(Mode::Pod, Mode::Container, Mode::Pod)), "").expect("good");
        assert_eq!(spec.namespaces, Namespaces::default());
        assert_eq!(
            (spec.hostname.as_str(), spec.cgroup_parent.as_deref()),
            ("web-0", Some("/kubepods/pod1"))
        );
        let host = config(modes(Mode::Node, Mode::Node, Mode::Node));
        let spec = translate(&host, "orlop").expect("good");
        let node = NamespaceMode::Node;
        let all = Namespaces { net: node.clone(), ipc: node.clone(), uts: node.clone(), pid: node };
        assert_eq!(spec.namespaces, all);
        assert!(host_network(&host));
        let shared = translate(&config(modes(Mode::Pod, Mode::Pod, Mode::Pod)), "").expect("good");
        assert_eq!(shared.namespaces.pid, NamespaceMode::Pod);
    }

    #[test]
    fn what_cannot_be_is_refused() {
        let bad = |config: PodSandboxConfig, handler: &str, part: &str| {
            let error = translate(&config, handler).expect_err("refused");
            assert!(error.contains(part), "{error}");
        };
        bad(PodSandboxConfig::default(), "", "metadata");
        bad(config(modes(Mode::Container, Mode::Pod, Mode::Pod)), "", "network");
        bad(PodSandboxConfig { hostname: "a b".into(), ..config(Default::default()) }, "", "a b");
        let userns = modes(Mode::Pod, Mode::Pod, Mode::Pod);
        let with = |mode: Mode, uids: &[(u32, u32)]| {
            let mut context = userns.clone();
            let all = |list: &[(u32, u32)]| {
                list.iter()
                    .map(|(container_id, host_id)| IdMapping {
                        container_id: *container_id,
                        host_id: *host_id,
                        length: 65_536,
                    })
                    .collect()
            };
            context.namespace_options.as_mut().expect("set").userns_options =
                Some(UserNamespace { mode: mode as i32, uids: all(uids), gids: all(&[(0, 65_536)]) });
            config(context)
        };
        bad(with(Mode::Pod, &[]), "", "exactly one mapping of user ids");
        bad(with(Mode::Pod, &[(0, 65_536), (65_536, 131_072)]), "", "exactly one mapping");
        bad(with(Mode::Pod, &[(1, 65_536)]), "", "container id 0");
        bad(with(Mode::Container, &[(0, 65_536)]), "", "POD or of the NODE");
        bad(with(Mode::Target, &[(0, 65_536)]), "", "POD or of the NODE");
        assert_eq!(translate(&with(Mode::Node, &[(0, 65_536)]), "").expect("good").user_namespace, None);
        let ids =
            translate(&with(Mode::Pod, &[(0, 131_072)]), "").expect("good").user_namespace.expect("ids");
        assert_eq!((ids.users.host, ids.groups.host, ids.users.length), (131_072, 65_536, 65_536));
        use cri_api::v1::Int64Value;
        let number = |value| Some(Int64Value { value });
        let of = |context| config(context);
        bad(
            of(LinuxSandboxSecurityContext { run_as_group: number(1), ..Default::default() }),
            "",
            "run_as_user",
        );
        bad(
            of(LinuxSandboxSecurityContext { run_as_user: number(-1), ..Default::default() }),
            "",
            "run_as_user -1",
        );
        let groups = LinuxSandboxSecurityContext { supplemental_groups: vec![1 << 40], ..Default::default() };
        bad(of(groups), "", "supplemental group");
        let policy = LinuxSandboxSecurityContext { supplemental_groups_policy: 7, ..Default::default() };
        bad(of(policy), "", "Merge or Strict");
        let nameless = SecurityProfile { profile_type: ProfileType::Localhost as i32, ..Default::default() };
        let seccomp = LinuxSandboxSecurityContext { seccomp: Some(nameless), ..Default::default() };
        bad(of(seccomp), "", "localhost_ref");
        let mut overhead = config(LinuxSandboxSecurityContext::default());
        overhead.linux.as_mut().expect("set").overhead =
            Some(LinuxContainerResources { cpu_shares: -1, ..Default::default() });
        bad(overhead, "", "cpu_shares");
        let label = SeLinuxOption { level: "s0".into(), ..Default::default() };
        let spec = translate(
            &config(LinuxSandboxSecurityContext { selinux_options: Some(label), ..Default::default() }),
            "",
        );
        assert_eq!(spec.expect("good").selinux.expect("a label").level, "s0");
    }

    #[test]
    fn ports_and_limits() {
        let mapping = |host_port, container_port, host_ip: &str| PortMapping {
            protocol: Protocol::Udp as i32,
            container_port,
            host_port,
            host_ip: host_ip.into(),
        };
        let ports = |list| port_mappings(&PodSandboxConfig { port_mappings: list, ..Default::default() });
        assert_eq!(ports(vec![mapping(0, 80, "")]).expect("good"), []);
        let one = ports(vec![mapping(8080, 80, "127.0.0.1")]).expect("good");
        assert_eq!(one[0].to_string(), "127.0.0.1:8080/udp");
        assert!(ports(vec![mapping(70000, 80, "")]).is_err());
        assert!(ports(vec![mapping(80, 80, "localhost")]).is_err());
        let limits = resources(&LinuxContainerResources {
            cpu_shares: 2,
            cpu_quota: -1,
            memory_limit_in_bytes: 1 << 20,
            ..Default::default()
        })
        .expect("good");
        assert_eq!((limits.cpu_shares, limits.cpu_quota, limits.cpu_period), (Some(2), Some(-1), None));
        assert_eq!((limits.memory_limit, limits.oom_score_adj), (Some(1 << 20), Some(0)));
        assert!(resources(&LinuxContainerResources { cpu_shares: -1, ..Default::default() }).is_err());
        assert!(resources(&LinuxContainerResources { oom_score_adj: 2000, ..Default::default() }).is_err());
    }
}
