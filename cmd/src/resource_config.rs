//! Settings of resources: what pods get of the machine, and what it keeps. Names follow KubeletConfiguration where it
//! has one.

use std::collections::BTreeMap;

use anyhow::{anyhow, bail, ensure};
use kubelet::{IDS_PER_POD, ResourceSettings};
use runtime::spec::Rlimit;
use serde::Deserialize;

/// The settings as written.
#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", default)]
pub struct ResourceFile {
    /// -1: as many as the node has.
    pod_pids_limit: Option<i64>,
    system_reserved: BTreeMap<String, Amount>,
    kube_reserved: BTreeMap<String, Amount>,
    enforce_node_allocatable: Option<Vec<String>>,
    user_namespaces: UserNamespaces,
    allowed_unsafe_sysctls: Vec<String>,
    memory_throttling_factor: Option<f64>,
    memory_reservation_policy: ReservationPolicy,
    memory_swap: MemorySwap,
    #[serde(rename = "singleProcessOOMKill")]
    single_process_oom_kill: bool,
    /// As `ulimit` calls them: `nofile=1024:524288`, soft and hard.
    default_ulimits: Vec<String>,
}

/// A quantity, which YAML may take for a number.
#[derive(Clone, Debug, Deserialize, PartialEq)]
#[serde(untagged)]
enum Amount {
    Number(u64),
    Text(String),
}

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct UserNamespaces {
    ids_per_pod: Option<u32>,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
enum ReservationPolicy {
    #[default]
    None,
    TieredReservation,
}

#[derive(Debug, Default, Deserialize, PartialEq)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct MemorySwap {
    swap_behavior: SwapBehavior,
}

#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq)]
enum SwapBehavior {
    #[default]
    NoSwap,
    LimitedSwap,
}

/// The settings as believed.
#[derive(Clone, Debug)]
pub struct ResourceConfig {
    pub kubelet: ResourceSettings,
    /// `userNamespaces.idsPerPod`; looked at with the node's files when the kubelet starts.
    pub ids_per_pod: u32,
    pub allowed_unsafe_sysctls: Vec<String>,
    pub default_rlimits: Vec<Rlimit>,
    /// `enforceNodeAllocatable` names `pods` in so many words.
    enforced_by_name: bool,
}

impl ResourceFile {
    /// Fills in the defaults and refuses what can't be meant.
    ///
    /// # Errors
    /// The first such setting, with what to do.
    pub fn believe(self) -> anyhow::Result<ResourceConfig> {
        let pod_pids_limit = match self.pod_pids_limit {
            None | Some(-1) => None,
            Some(limit) => {
                ensure!(limit > 0, "podPidsLimit can't be {limit}: use a positive number, or -1 for none");
                Some(limit)
            }
        };
        if let Some(factor) = self.memory_throttling_factor {
            ensure!(
                factor > 0.0 && factor <= 1.0,
                "memoryThrottlingFactor can't be {factor}: use a number above 0 and up to 1, such as 0.9, or leave it out"
            );
        }
        for name in &self.allowed_unsafe_sysctls {
            let spelled = name.replace('/', ".");
            let namespaced =
                ["kernel.shm", "kernel.msg", "fs.mqueue.", "net."].iter().any(|of| spelled.starts_with(of));
            ensure!(
                namespaced || spelled == "kernel.sem",
                "allowedUnsafeSysctls has {name:?}, which would change the whole node: kernel.shm*, kernel.msg*, kernel.sem, \
                 fs.mqueue.* and net.* can be allowed"
            );
        }
        let named = self.enforce_node_allocatable.iter().flatten().any(|name| name == "pods");
        let kubelet = ResourceSettings {
            system_reserved: reserved("systemReserved", self.system_reserved)?,
            kube_reserved: reserved("kubeReserved", self.kube_reserved)?,
            enforce_pods: enforced(self.enforce_node_allocatable)?,
            pod_pids_limit,
            memory_throttling_factor: self.memory_throttling_factor,
            memory_reservation: self.memory_reservation_policy == ReservationPolicy::TieredReservation,
            limited_swap: self.memory_swap.swap_behavior == SwapBehavior::LimitedSwap,
            single_process_oom_kill: self.single_process_oom_kill,
        };
        Ok(ResourceConfig {
            kubelet,
            ids_per_pod: self.user_namespaces.ids_per_pod.unwrap_or(IDS_PER_POD),
            enforced_by_name: named,
            // As the kubelet compares them.
            allowed_unsafe_sysctls: self
                .allowed_unsafe_sysctls
                .iter()
                .map(|name| name.replace('/', "."))
                .collect(),
            default_rlimits: self
                .default_ulimits
                .iter()
                .map(|text| ulimit(text))
                .collect::<Result<_, _>>()?,
        })
    }
}

impl ResourceConfig {
    /// Refuses what only a runtime of ours does: another one's cgroups are not the kubelet's to write, and its limits
    /// are set where it is set up.
    ///
    /// # Errors
    /// The first such setting.
    pub fn fits_another_runtime(&self) -> anyhow::Result<()> {
        self.refuse_set(
            &["podPidsLimit", "memoryReservationPolicy", "enforceNodeAllocatable", "defaultUlimits"],
            "needs the runtime of this program: leave it out with --container-runtime-endpoint",
        )
    }

    /// Refuses what is not done where systemd owns the groups above the pods'.
    ///
    /// # Errors
    /// The first such setting.
    pub fn fits_systemd(&self) -> anyhow::Result<()> {
        self.refuse_set(
            &["memoryReservationPolicy", "enforceNodeAllocatable"],
            "needs the cgroup driver cgroupfs: all pods together have no limits with systemd",
        )
    }

    fn refuse_set(&self, names: &[&str], why: &str) -> anyhow::Result<()> {
        let is_set = |name: &str| match name {
            "podPidsLimit" => self.kubelet.pod_pids_limit.is_some(),
            "memoryReservationPolicy" => self.kubelet.memory_reservation,
            "enforceNodeAllocatable" => self.enforced_by_name,
            _ => !self.default_rlimits.is_empty(),
        };
        match names.iter().find(|name| is_set(name)) {
            Some(name) => bail!("{name} {why}"),
            None => Ok(()),
        }
    }
}

fn reserved(what: &str, file: BTreeMap<String, Amount>) -> anyhow::Result<BTreeMap<String, String>> {
    let text = |amount| match amount {
        Amount::Number(number) => number.to_string(),
        Amount::Text(text) => text,
    };
    let list = file.into_iter().map(|(kind, amount)| (kind, text(amount))).collect();
    kubelet::check_reserved(&list).map_err(|why| anyhow!("{what}: {why}"))?;
    Ok(list)
}

/// Whether the limit of all pods together is enforced, as it is by default.
fn enforced(file: Option<Vec<String>>) -> anyhow::Result<bool> {
    let Some(list) = file else { return Ok(true) };
    for name in &list {
        ensure!(
            matches!(name.as_str(), "pods" | "none"),
            "enforceNodeAllocatable has {name:?}: pods and none are supported; daemons of the node are limited where they are \
             started, such as in their systemd units"
        );
    }
    ensure!(
        list.len() < 2 || !list.iter().any(|name| name == "none"),
        "enforceNodeAllocatable has none beside others: choose"
    );
    Ok(list.iter().any(|name| name == "pods"))
}

/// `nofile=1024:2048`, or `nofile=1024` for both; -1 or `unlimited`: no limit.
fn ulimit(text: &str) -> anyhow::Result<Rlimit> {
    let wrong = || {
        anyhow!(
            "defaultUlimits has {text:?}: write NAME=SOFT:HARD, such as nofile=1024:524288, with the soft one not above the hard one"
        )
    };
    let number = |text: &str| match text {
        "-1" | "unlimited" => Ok(u64::MAX),
        text => text.parse::<u64>().map_err(|_| wrong()),
    };
    let (name, values) = text.split_once('=').ok_or_else(wrong)?;
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let limit = Rlimit { name: name.trim().to_owned(), soft: number(soft)?, hard: number(hard)? };
    ensure!(limit.soft <= limit.hard, wrong());
    ensure!(
        runtime::oci::is_rlimit(&limit.name),
        "defaultUlimits has {text:?}: {:?} is no name of getrlimit(2), such as nofile",
        limit.name
    );
    Ok(limit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(yaml: &str) -> anyhow::Result<ResourceConfig> {
        serde_yaml_ng::from_str::<ResourceFile>(yaml)?.believe()
    }

    #[test]
    fn silence_gives_the_defaults() {
        let config = read("{}").unwrap();
        assert_eq!(config.kubelet, ResourceSettings { enforce_pods: true, ..Default::default() });
        assert_eq!((config.ids_per_pod, config.default_rlimits.len()), (65_536, 0));
        assert!(config.fits_another_runtime().is_ok() && config.fits_systemd().is_ok());
    }

    #[test]
    fn what_is_written_is_believed() {
        let yaml = "podPidsLimit: 100\nsystemReserved: {cpu: 1, memory: 1Gi}\nkubeReserved: {pid: '1000'}\n\
                    enforceNodeAllocatable: [none]\nuserNamespaces: {idsPerPod: 131072}\n\
                    allowedUnsafeSysctls: [net.core.*, kernel/msgmax]\nmemoryThrottlingFactor: 0.9\n\
                    memoryReservationPolicy: TieredReservation\nmemorySwap: {swapBehavior: LimitedSwap}\n\
                    singleProcessOOMKill: true\ndefaultUlimits: ['nofile=1024:2048', core=0, memlock=-1]\n";
        let config = read(yaml).unwrap();
        let settings = &config.kubelet;
        assert_eq!((settings.pod_pids_limit, settings.enforce_pods), (Some(100), false));
        assert_eq!((settings.system_reserved["cpu"].as_str(), config.ids_per_pod), ("1", 131_072));
        assert!(settings.memory_reservation && settings.limited_swap && settings.single_process_oom_kill);
        assert_eq!(config.allowed_unsafe_sysctls, ["net.core.*", "kernel.msgmax"]);
        let limit = |n: usize| (config.default_rlimits[n].soft, config.default_rlimits[n].hard);
        assert_eq!((limit(0), limit(1), limit(2)), ((1024, 2048), (0, 0), (u64::MAX, u64::MAX)));
        assert!(config.fits_another_runtime().unwrap_err().to_string().contains("podPidsLimit"));
        assert!(config.fits_systemd().unwrap_err().to_string().contains("memoryReservationPolicy"));
        let config = read("enforceNodeAllocatable: [pods]").unwrap();
        assert!(config.fits_systemd().unwrap_err().to_string().contains("enforceNodeAllocatable"));
    }

    #[test]
    fn mistakes_are_named() {
        let wrong = |yaml: &str| read(yaml).unwrap_err().to_string();
        assert!(wrong("podPidsLimit: 0").contains("podPidsLimit can't be 0"));
        assert!(wrong("systemReserved: {gpu: 1}").contains("systemReserved: gpu can't be reserved"));
        assert!(wrong("kubeReserved: {cpu: much}").contains("kubeReserved: cpu"));
        assert!(wrong("enforceNodeAllocatable: [system-reserved]").contains("systemd units"));
        assert!(wrong("enforceNodeAllocatable: [none, pods]").contains("choose"));
        assert!(wrong("allowedUnsafeSysctls: [vm.swappiness]").contains("whole node"));
        assert!(wrong("memoryThrottlingFactor: 1.5").contains("memoryThrottlingFactor"));
        assert!(wrong("memoryReservationPolicy: All").contains("All"));
        assert!(wrong("defaultUlimits: [nofile]").contains("NAME=SOFT:HARD"));
        assert!(wrong("defaultUlimits: ['nofile=2:1']").contains("not above"));
        assert!(wrong("defaultUlimits: [files=1]").contains("getrlimit"));
    }
}
