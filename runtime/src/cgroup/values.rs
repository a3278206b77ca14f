//! Limits → files of cgroup v2. Pure.
//!
//! Guarantees: values come in an order in which the kernel takes them; a file named in `unified` wins.

use std::collections::BTreeMap;

use sys::cgroup::weight_of_shares;

use crate::error::RuntimeError;
use crate::spec::Resources;

/// One file and what is written to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// File name; its part before the first dot is the controller.
    pub file: String,
    /// Content.
    pub value: String,
}

impl Value {
    /// The controller that makes this file exist.
    pub fn controller(&self) -> &str {
        self.file.split('.').next().unwrap_or_default()
    }
}

/// The files for these limits.
pub fn values(resources: &Resources) -> Result<Vec<Value>, RuntimeError> {
    let mut files: BTreeMap<String, String> = BTreeMap::new();
    let mut put = |file: &str, value: String| files.insert(file.to_owned(), value);
    if let Some(shares) = resources.cpu_shares.filter(|shares| *shares != 0) {
        put("cpu.weight", weight_of_shares(shares).to_string());
    }
    if resources.cpu_quota.is_some() || resources.cpu_period.is_some() {
        let period = resources.cpu_period.filter(|period| *period != 0).unwrap_or(100_000);
        let quota = match resources.cpu_quota {
            Some(quota) if quota > 0 => quota.to_string(),
            _ => "max".to_owned(),
        };
        put("cpu.max", format!("{quota} {period}"));
    }
    if let Some(limit) = resources.memory_limit {
        put("memory.max", bytes(limit));
    }
    if let Some(value) = swap(resources)? {
        put("memory.swap.max", value);
    }
    if let Some(limit) = resources.pids_limit {
        put("pids.max", bytes(limit));
    }
    if let Some(cpus) = resources.cpuset_cpus.as_deref().filter(|cpus| !cpus.is_empty()) {
        put("cpuset.cpus", cpus.to_owned());
    }
    if let Some(mems) = resources.cpuset_mems.as_deref().filter(|mems| !mems.is_empty()) {
        put("cpuset.mems", mems.to_owned());
    }
    for (size, limit) in &resources.hugepages {
        put(&format!("hugetlb.{size}.max"), limit.to_string());
        put(&format!("hugetlb.{size}.rsvd.max"), limit.to_string());
    }
    if let Some(weight) = resources.blkio_weight.filter(|weight| *weight != 0) {
        put("io.weight", format!("default {}", io_weight(weight)));
    }
    for (file, value) in &resources.unified {
        put(file, value.clone());
    }
    for file in files.keys() {
        check_name(file)?;
    }
    Ok(files.into_iter().map(|(file, value)| Value { file, value }).collect())
}

/// `io.weight` (1 to 10000) of a blkio weight (10 to 1000).
fn io_weight(blkio: u16) -> u64 {
    1 + (u64::from(blkio.clamp(10, 1000)) - 10) * 9999 / 990
}

fn bytes(limit: i64) -> String {
    if limit > 0 { limit.to_string() } else { "max".to_owned() }
}

/// CRI's limit is memory and swap together; the file's is swap alone.
fn swap(resources: &Resources) -> Result<Option<String>, RuntimeError> {
    let Some(both) = resources.memory_swap_limit.filter(|both| *both != 0) else { return Ok(None) };
    if both < 0 {
        return Ok(Some("max".to_owned()));
    }
    match resources.memory_limit {
        Some(memory) if memory > 0 && memory <= both => Ok(Some((both - memory).to_string())),
        Some(memory) if memory > both => Err(RuntimeError::invalid(format!(
            "memory and swap together ({both} bytes) are less than memory alone ({memory} bytes): raise the first"
        ))),
        _ => Err(RuntimeError::invalid(
            "a limit of memory and swap together needs a limit of memory: set both, or neither",
        )),
    }
}

fn check_name(file: &str) -> Result<(), RuntimeError> {
    let good = file.contains('.')
        && !file.starts_with('.')
        && file.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        && !file.starts_with("cgroup.");
    if good {
        return Ok(());
    }
    Err(RuntimeError::invalid(format!(
        "cgroup file {file:?} is refused: the name of a controller's file, such as memory.high, is wanted"
    )))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(resources: Resources, want: Expect) {
        want.assert_eq(&match values(&resources) {
            Ok(values) => values.iter().map(|v| format!("{}={}\n", v.file, v.value)).collect::<String>(),
            Err(error) => error.to_string(),
        });
    }

    #[test]
    fn limits_become_files() {
        check(Resources::default(), expect![""]);
        check(
            Resources {
                cpu_shares: Some(1024),
                cpu_quota: Some(50_000),
                memory_limit: Some(1 << 30),
                memory_swap_limit: Some((1 << 30) + 4096),
                pids_limit: Some(100),
                cpuset_cpus: Some("0-1".into()),
                hugepages: vec![("2MB".into(), 1 << 21)],
                blkio_weight: Some(500),
                ..Resources::default()
            },
            expect![[r#"
                cpu.max=50000 100000
                cpu.weight=100
                cpuset.cpus=0-1
                hugetlb.2MB.max=2097152
                hugetlb.2MB.rsvd.max=2097152
                io.weight=default 4950
                memory.max=1073741824
                memory.swap.max=4096
                pids.max=100
            "#]],
        );
        check(
            Resources {
                cpu_quota: Some(-1),
                cpu_period: Some(50_000),
                memory_limit: Some(0),
                memory_swap_limit: Some(-1),
                pids_limit: Some(-1),
                unified: BTreeMap::from([
                    ("memory.high".into(), "1000".into()),
                    ("memory.max".into(), "2000".into()),
                ]),
                ..Resources::default()
            },
            expect![[r#"
                cpu.max=max 50000
                memory.high=1000
                memory.max=2000
                memory.swap.max=max
                pids.max=max
            "#]],
        );
        check(
            Resources { memory_swap_limit: Some(5), ..Resources::default() },
            expect!["a limit of memory and swap together needs a limit of memory: set both, or neither"],
        );
        check(
            Resources { memory_swap_limit: Some(5), memory_limit: Some(6), ..Resources::default() },
            expect![
                "memory and swap together (5 bytes) are less than memory alone (6 bytes): raise the first"
            ],
        );
        let escape = BTreeMap::from([("../cgroup.procs".to_owned(), "1".to_owned())]);
        check(
            Resources { unified: escape, ..Resources::default() },
            expect![[
                r#"cgroup file "../cgroup.procs" is refused: the name of a controller's file, such as memory.high, is wanted"#
            ]],
        );
    }
}
