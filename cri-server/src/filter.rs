//! Which sandboxes and containers a list call wants. Pure.

use std::collections::BTreeMap;

use cri_api::v1::{
    ContainerFilter, ContainerStatsFilter, PodSandbox, PodSandboxFilter, PodSandboxStatsFilter,
};

/// Whether every wanted label is there.
pub fn labels(wanted: &BTreeMap<String, String>, has: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| has.get(key) == Some(value))
}

/// Whether a list call wants a sandbox. No filter wants all.
pub fn sandbox(filter: Option<&PodSandboxFilter>, row: &PodSandbox) -> bool {
    filter.is_none_or(|filter| {
        row.id.starts_with(&filter.id)
            && filter.state.as_ref().is_none_or(|state| state.state == row.state)
            && labels(&filter.label_selector, &row.labels)
    })
}

/// What filters look at in a container.
#[derive(Debug, Clone, Copy)]
pub struct Traits<'a> {
    /// Its id.
    pub id: &'a str,
    /// Its sandbox's id.
    pub sandbox: &'a str,
    /// CRI's number of its state.
    pub state: i32,
    /// Its labels.
    pub labels: &'a BTreeMap<String, String>,
}

/// Whether a list call wants a container.
pub fn container(filter: Option<&ContainerFilter>, has: Traits<'_>) -> bool {
    filter.is_none_or(|filter| {
        has.id.starts_with(&filter.id)
            && has.sandbox.starts_with(&filter.pod_sandbox_id)
            && filter.state.as_ref().is_none_or(|state| state.state == has.state)
            && labels(&filter.label_selector, has.labels)
    })
}

/// Whether a statistics call wants a container.
pub fn container_stats(filter: Option<&ContainerStatsFilter>, has: Traits<'_>) -> bool {
    filter.is_none_or(|filter| {
        has.id.starts_with(&filter.id)
            && has.sandbox.starts_with(&filter.pod_sandbox_id)
            && labels(&filter.label_selector, has.labels)
    })
}

/// Whether a statistics call wants a sandbox.
pub fn sandbox_stats(filter: Option<&PodSandboxStatsFilter>, row: &PodSandbox) -> bool {
    filter.is_none_or(|filter| row.id.starts_with(&filter.id) && labels(&filter.label_selector, &row.labels))
}

#[cfg(test)]
mod tests {
    use cri_api::v1::{ContainerStateValue, PodSandboxStateValue};

    use super::*;

    fn map(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn all_conditions_must_hold() {
        let row = PodSandbox {
            id: "abc".into(),
            state: 1,
            labels: map(&[("a", "1"), ("b", "2")]),
            ..Default::default()
        };
        let check = |id: &str, state: Option<i32>, wanted: &[(&str, &str)]| {
            let filter = PodSandboxFilter {
                id: id.into(),
                state: state.map(|state| PodSandboxStateValue { state }),
                label_selector: map(wanted),
            };
            sandbox(Some(&filter), &row)
        };
        assert!(sandbox(None, &row));
        assert!(check("", None, &[]));
        assert!(check("ab", Some(1), &[("b", "2")]));
        assert!(!check("b", None, &[]));
        assert!(!check("", Some(0), &[]));
        assert!(!check("", None, &[("b", "3")]));
        assert!(!check("", None, &[("c", "")]));
        let labels = map(&[("a", "1")]);
        let has = Traits { id: "c1", sandbox: "abc", state: 1, labels: &labels };
        let filter = ContainerFilter {
            pod_sandbox_id: "ab".into(),
            state: Some(ContainerStateValue { state: 1 }),
            ..Default::default()
        };
        assert!(container(Some(&filter), has));
        assert!(!container(Some(&ContainerFilter { pod_sandbox_id: "x".into(), ..filter }), has));
    }
}
