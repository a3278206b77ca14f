//! How much of the machine pods can have.
//!
//! Guarantees: pure; amounts are never negative.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::facts::Machine;
use crate::config::{Config, ResourceSettings};
use crate::quantity;

/// What can be reserved.
const KINDS: [&str; 4] = ["cpu", "memory", STORAGE, "pid"];
const STORAGE: &str = "ephemeral-storage";

/// Checks the amounts of `systemReserved` or `kubeReserved`.
///
/// # Errors
/// A sentence about the first that can't be reserved.
pub fn check_reserved(reserved: &BTreeMap<String, String>) -> Result<(), String> {
    for (kind, amount) in reserved {
        if !KINDS.contains(&kind.as_str()) {
            return Err(format!("{kind} can't be reserved: use {}", KINDS.join(", ")));
        }
        if quantity::milli(amount).is_none_or(|amount| amount < 0) {
            return Err(format!("{kind}: {amount:?} is no amount: use one such as 500m or 1Gi"));
        }
    }
    Ok(())
}

/// What the machine has, as the Node object tells it.
pub fn capacity(config: &Config, machine: &Machine) -> BTreeMap<String, Quantity> {
    let mut all: BTreeMap<String, String> = [
        ("cpu", machine.cpus.to_string()),
        ("memory", kibibytes(machine.memory)),
        (STORAGE, kibibytes(machine.storage)),
        ("pods", config.max_pods.to_string()),
        ("hugepages-1Gi", "0".into()),
        ("hugepages-2Mi", "0".into()),
    ]
    .into_iter()
    .map(|(kind, amount)| (kind.to_owned(), amount))
    .collect();
    for pages in &machine.huge_pages {
        all.insert(pages.resource(), kibibytes(pages.total()));
    }
    all.into_iter().map(|(kind, amount)| (kind, Quantity(amount))).collect()
}

/// What pods can have of it, as the Node object tells it.
pub fn allocatable(config: &Config, machine: &Machine) -> BTreeMap<String, Quantity> {
    let mut left = capacity(config, machine);
    for (kind, rest) in [("cpu", cpu(config, machine)), ("memory", memory(config, machine))] {
        let text = if kind == "cpu" { format!("{rest}m") } else { rest.to_string() };
        if left.get(kind).and_then(|q| quantity::milli(&q.0)) != quantity::milli(&text) {
            left.insert(kind.to_owned(), Quantity(text));
        }
    }
    if reserved(&config.resources, STORAGE) > 0 {
        left.insert(STORAGE.to_owned(), Quantity(storage(config, machine).to_string()));
    }
    left
}

/// Processor time that pods can have, in thousandths of a CPU.
pub fn cpu(config: &Config, machine: &Machine) -> i64 {
    let all = i128::from(machine.cpus) * 1000;
    whole((all - reserved(&config.resources, "cpu")).max(0))
}

/// Memory in bytes that pods can have: huge pages are no longer among it.
pub fn memory(config: &Config, machine: &Machine) -> i64 {
    (rest(&config.resources, "memory", machine.memory) - huge(machine)).max(0)
}

/// Bytes of the disk that pods can have.
pub fn storage(config: &Config, machine: &Machine) -> i64 {
    rest(&config.resources, STORAGE, machine.storage)
}

/// The limit in bytes of all pods' memory together, if there is to be one. Huge pages are not counted by it.
pub fn memory_limit(config: &Config, machine: &Machine) -> Option<i64> {
    let limit = rest(&config.resources, "memory", machine.memory);
    (config.resources.enforce_pods && machine.memory > 0).then_some(limit)
}

/// The limit of all pods' processes together, if there is to be one.
pub fn pids_limit(config: &Config, machine: &Machine) -> Option<i64> {
    let limit = rest(&config.resources, "pid", machine.pids);
    (config.resources.enforce_pods && machine.pids > 0 && reserved(&config.resources, "pid") > 0)
        .then_some(limit)
}

/// The weight of all pods together where the node divides its processors.
pub fn cpu_of_all(config: &Config, machine: &Machine) -> Option<i64> {
    config.resources.enforce_pods.then(|| cpu(config, machine))
}

fn huge(machine: &Machine) -> i64 {
    machine.huge_pages.iter().map(|pages| pages.total()).sum()
}

/// What is left of a whole amount.
fn rest(settings: &ResourceSettings, kind: &str, all: i64) -> i64 {
    whole((i128::from(all) * 1000 - reserved(settings, kind)).max(0) / 1000)
}

/// Thousandths of one resource that the machine keeps.
fn reserved(settings: &ResourceSettings, kind: &str) -> i128 {
    let of = |list: &BTreeMap<String, String>| list.get(kind).and_then(|text| quantity::milli(text));
    of(&settings.system_reserved).unwrap_or(0) + of(&settings.kube_reserved).unwrap_or(0)
}

fn whole(amount: i128) -> i64 {
    i64::try_from(amount).unwrap_or(i64::MAX)
}

fn kibibytes(bytes: i64) -> String {
    format!("{}Ki", bytes / 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::facts::HugePages;

    fn machine() -> Machine {
        Machine {
            cpus: 4,
            memory: 8 << 30,
            storage: 100 << 30,
            pids: 32_768,
            huge_pages: vec![HugePages { size: 2 << 20, count: 512 }],
            ..Machine::default()
        }
    }

    fn list(of: &[(&str, &str)]) -> BTreeMap<String, String> {
        of.iter().map(|(kind, amount)| ((*kind).to_owned(), (*amount).to_owned())).collect()
    }

    #[test]
    fn what_is_reserved_is_not_for_pods() {
        let mut config = Config::new("n", "/n");
        let told = |config: &Config, kind: &str| allocatable(config, &machine())[kind].0.clone();
        // Huge pages are memory that nothing else can have.
        assert_eq!(told(&config, "memory"), (7_i64 << 30).to_string());
        assert_eq!((told(&config, "cpu"), told(&config, "hugepages-2Mi")), ("4".into(), "1048576Ki".into()));
        assert_eq!(memory_limit(&config, &machine()), Some(8 << 30));
        assert_eq!(pids_limit(&config, &machine()), None);
        config.resources.system_reserved = list(&[("memory", "1Gi"), ("cpu", "500m"), ("pid", "1000")]);
        config.resources.kube_reserved = list(&[("memory", "1Gi"), ("ephemeral-storage", "10Gi")]);
        assert_eq!(
            (told(&config, "memory"), told(&config, "cpu")),
            ((5_i64 << 30).to_string(), "3500m".into())
        );
        assert_eq!(told(&config, "ephemeral-storage"), (90_i64 << 30).to_string());
        assert_eq!(memory_limit(&config, &machine()), Some(6 << 30));
        assert_eq!(
            (pids_limit(&config, &machine()), cpu_of_all(&config, &machine())),
            (Some(31_768), Some(3500))
        );
        config.resources.enforce_pods = false;
        assert_eq!((memory_limit(&config, &machine()), pids_limit(&config, &machine())), (None, None));
    }

    #[test]
    fn only_known_amounts_can_be_reserved() {
        assert_eq!(check_reserved(&list(&[("cpu", "1"), ("memory", "100Mi"), ("pid", "9")])), Ok(()));
        assert!(check_reserved(&list(&[("gpu", "1")])).unwrap_err().contains("gpu can't be reserved"));
        assert!(check_reserved(&list(&[("cpu", "-1")])).unwrap_err().contains("no amount"));
        assert!(check_reserved(&list(&[("cpu", "much")])).unwrap_err().contains("no amount"));
    }
}
