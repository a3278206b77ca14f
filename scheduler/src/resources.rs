//! What a pod asks for, and what a node has.

use std::collections::BTreeMap;

use api::k8s::core::{Container, Pod};
use api::quantity::Quantity;

/// Amounts by resource name: `cpu` in millicores, everything else in whole units (bytes, pods, devices).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Amounts(BTreeMap<String, i64>);

/// What a container that asks for nothing is scored with: a tenth of a core and 200 MiB. So are
/// upstream's (`DefaultMilliCPURequest`, `DefaultMemoryRequest`).
const UNSPOKEN: &[(&str, i64)] = &[("cpu", 100), ("memory", 200 << 20)];

impl Amounts {
    /// Reads a resource list; an amount that is none counts as zero (validation refuses it earlier).
    pub fn read(list: Option<&BTreeMap<String, api::k8s::Quantity>>) -> Amounts {
        let amount = |name: &str, quantity: &api::k8s::Quantity| {
            let quantity = Quantity::try_from(quantity).ok();
            quantity.map_or(0, |q| if name == "cpu" { q.milli_value() } else { q.value() })
        };
        Amounts(list.into_iter().flatten().map(|(name, q)| (name.clone(), amount(name, q))).collect())
    }

    /// The amount of one resource; zero if it isn't listed.
    pub fn get(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// All that is listed.
    pub fn iter(&self) -> impl Iterator<Item = (&str, i64)> {
        self.0.iter().map(|(name, amount)| (name.as_str(), *amount))
    }

    /// Adds another's amounts.
    pub fn add(&mut self, other: &Amounts) {
        for (name, amount) in &other.0 {
            *self.0.entry(name.clone()).or_default() += amount;
        }
    }

    fn raise(&mut self, other: &Amounts) {
        for (name, amount) in &other.0 {
            let mine = self.0.entry(name.clone()).or_default();
            *mine = (*mine).max(*amount);
        }
    }
}

/// What the pod asks for: the sum of its containers, or what its init containers need before them, with
/// sidecars (KEP-753) counted beside both, plus its overhead; pod-level requests (KEP-2837) win.
pub fn requests(pod: &Pod) -> Amounts {
    sum(pod, &|container| of(container))
}

/// The same with modest amounts where a container asks for nothing, so that such pods spread too.
pub fn requests_for_scoring(pod: &Pod) -> Amounts {
    sum(pod, &|container| {
        let mut amounts = of(container);
        for (name, amount) in UNSPOKEN {
            amounts.0.entry((*name).to_owned()).or_insert(*amount);
        }
        amounts
    })
}

fn of(container: &Container) -> Amounts {
    Amounts::read(container.resources.as_ref().and_then(|r| r.requests.as_ref()))
}

fn sum(pod: &Pod, of: &dyn Fn(&Container) -> Amounts) -> Amounts {
    let Some(spec) = &pod.spec else { return Amounts::default() };
    let mut total = Amounts::default();
    for container in &spec.containers {
        total.add(&of(container));
    }
    let (mut sidecars, mut peak) = (Amounts::default(), Amounts::default());
    for init in spec.init_containers.iter().flatten() {
        let mut now = sidecars.clone();
        now.add(&of(init));
        if init.restart_policy.as_deref() == Some("Always") {
            sidecars = now.clone();
        }
        peak.raise(&now);
    }
    total.add(&sidecars);
    total.raise(&peak);
    if let Some(pod_level) = spec.resources.as_ref().and_then(|r| r.requests.as_ref()) {
        for (name, amount) in Amounts::read(Some(pod_level)).0 {
            total.0.insert(name, amount);
        }
    }
    total.add(&Amounts::read(spec.overhead.as_ref()));
    total
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(spec: serde_json::Value) -> Amounts {
        requests(&serde_json::from_value(serde_json::json!({ "spec": spec })).unwrap())
    }

    fn container(cpu: &str) -> serde_json::Value {
        serde_json::json!({ "name": "c", "resources": { "requests": { "cpu": cpu } } })
    }

    #[test]
    fn init_containers_count_only_where_they_need_more() {
        let small =
            serde_json::json!({ "containers": [container("1")], "initContainers": [container("500m")] });
        assert_eq!(asks(small).get("cpu"), 1000);
        let large = serde_json::json!({ "containers": [container("1")], "initContainers": [container("3")] });
        assert_eq!(asks(large).get("cpu"), 3000);
    }

    #[test]
    fn a_sidecar_counts_beside_everything_after_it() {
        let mut sidecar = container("200m");
        sidecar["restartPolicy"] = "Always".into();
        let spec = serde_json::json!({ "containers": [container("1")], "initContainers": [sidecar, container("1")] });
        assert_eq!(asks(spec).get("cpu"), 1200);
    }

    #[test]
    fn overhead_is_added_and_pod_level_requests_win() {
        let spec = serde_json::json!({ "containers": [container("1")], "overhead": { "cpu": "250m" } });
        assert_eq!(asks(spec).get("cpu"), 1250);
        let spec = serde_json::json!({ "containers": [container("1")], "resources": { "requests": { "cpu": "2" } } });
        assert_eq!(asks(spec).get("cpu"), 2000);
    }
}
