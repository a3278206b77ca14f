//! Resident memory of processes, and which processes belong to a runtime.
//!
//! Assumes: `/proc` shows only this run's processes (the script makes a PID namespace).
//! Caveat: a process that ends while it is looked at counts nothing.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::Context;

/// Memory of one or several processes, in kB of 1024 bytes as the kernel counts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Memory {
    /// Pages that are in memory.
    pub rss: u64,
    /// The same, shared pages divided among those who share them.
    pub pss: u64,
}

impl Memory {
    /// Resident set in megabytes.
    pub fn rss_mb(self) -> f64 {
        self.rss as f64 * 1024.0 / 1e6
    }

    /// Proportional set in kilobytes.
    pub fn pss_kb(self) -> f64 {
        self.pss as f64 * 1.024
    }
}

impl std::iter::Sum for Memory {
    fn sum<I: Iterator<Item = Memory>>(all: I) -> Memory {
        all.fold(Memory::default(), |sum, one| Memory { rss: sum.rss + one.rss, pss: sum.pss + one.pss })
    }
}

/// Memory of a process now.
///
/// # Errors
/// There is no such process.
pub fn of(pid: u32) -> anyhow::Result<Memory> {
    let path = format!("/proc/{pid}/smaps_rollup");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let value = |name| field(&text, name).with_context(|| format!("{path} has no {name}"));
    Ok(Memory { rss: value("Rss")?, pss: value("Pss")? })
}

/// Starts the peak of a process's resident set anew.
///
/// # Errors
/// There is no such process, or this is not root.
pub fn forget_peak(pid: u32) -> anyhow::Result<()> {
    let path = format!("/proc/{pid}/clear_refs");
    std::fs::write(&path, "5").with_context(|| format!("write {path}"))
}

/// The largest resident set since [`forget_peak`], in megabytes.
///
/// # Errors
/// There is no such process.
pub fn peak_mb(pid: u32) -> anyhow::Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = std::fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let peak = field(&text, "VmHWM").with_context(|| format!("{path} has no VmHWM"))?;
    Ok(Memory { rss: peak, pss: 0 }.rss_mb())
}

/// The number behind `name:`.
fn field(text: &str, name: &str) -> Option<u64> {
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    value.split_whitespace().next()?.parse().ok()
}

/// A process as `/proc` shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its parent.
    pub parent: u32,
    /// Its words, with a space behind each.
    pub line: String,
}

/// Every process that can be seen, by its id.
pub fn processes() -> BTreeMap<u32, Process> {
    let mut all = BTreeMap::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
        let Some(parent) = field(&status, "PPid").and_then(|parent| u32::try_from(parent).ok()) else {
            continue;
        };
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        // A dead one that nobody waited for has no words.
        if !line.is_empty() {
            all.insert(pid, Process { parent, line });
        }
    }
    all
}

/// What a runtime runs beside its daemon and the pods' own processes: keeper, shims, pauses.
///
/// A process belongs to the runtime if its command line, or that of a process above it, names `dir`; it
/// is a pod's own if its command line is `own`.
pub fn helpers(all: &BTreeMap<u32, Process>, dir: &Path, daemon: u32, own: &str) -> Vec<u32> {
    let dir = dir.to_string_lossy();
    let belongs = |pid: u32| {
        let chain = std::iter::successors(Some(pid), |pid| Some(all.get(pid)?.parent));
        chain.take(all.len() + 1).map_while(|pid| all.get(&pid)).any(|process| process.line.contains(&*dir))
    };
    let candidates = all.iter().filter(|(pid, process)| **pid != daemon && process.line != own);
    candidates.map(|(pid, _)| *pid).filter(|pid| belongs(*pid)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_their_whole_name() {
        let text =
            "0000-ffff ---p 00000000 00:00 0 [rollup]\nRss:    1234 kB\nPss:     56 kB\nPss_Dirty:  7 kB\n";
        assert_eq!(field(text, "Rss"), Some(1234));
        assert_eq!(field(text, "Pss"), Some(56));
        assert_eq!(field(text, "Swap"), None);
    }

    #[test]
    fn helpers_are_neither_the_daemon_nor_the_pods_own() {
        let process = |parent, line: &str| Process { parent, line: line.to_owned() };
        let all = BTreeMap::from([
            (1, process(0, "bash ")),
            (2, process(1, "bench --binary x ")),
            (3, process(2, "containerd --config /r/c/config ")),
            (4, process(1, "shim -address /r/c/sock ")),
            (5, process(4, "pause ")),
            (6, process(4, "sleep 9 ")),
            (7, process(1, "keeper /r/o/run ")),
        ]);
        assert_eq!(helpers(&all, Path::new("/r/c"), 3, "sleep 9 "), [4, 5]);
        assert_eq!(helpers(&all, Path::new("/r/o"), 0, "sleep 9 "), [7]);
    }
}
