//! What containers use: cgroup files where the controllers are there, else what procfs tells of the processes.
//!
//! Caveat: without controllers, processor time of processes that have ended and were not waited for inside the
//! container is lost; pages that processes share are counted in each of them.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use sys::cgroup::{Group, keyed_value};

use crate::containers::word;
use crate::core::{Inner, blocking};
use crate::error::RuntimeError;
use crate::id::ContainerId;
use crate::state::{ContainerState, Stats};

/// How old a measurement of the writable layer may be: it walks all files.
const USAGE_AGE: Duration = Duration::from_secs(10);
/// Most threads that measure containers for one list.
const MEASURING: usize = 4;

impl Inner {
    /// Measures a container.
    pub async fn stats(self: &Arc<Self>, id: &ContainerId) -> Result<Stats, RuntimeError> {
        let (inner, id) = (self.clone(), id.clone());
        blocking(move || inner.measure(&id)).await
    }

    /// Measures containers. Those that cannot be measured are left out.
    pub async fn stats_of(self: &Arc<Self>, ids: Vec<ContainerId>) -> Vec<(ContainerId, Stats)> {
        // A thread for each of a thousand would wait for the same few processors, and keep its memory.
        let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MEASURING);
        let mut parts = Vec::new();
        for part in ids.chunks(ids.len().div_ceil(threads).max(1)) {
            let (inner, part) = (self.clone(), part.to_vec());
            let measure = move |id: ContainerId| inner.measure(&id).ok().map(|stats| (id, stats));
            parts.push(blocking(move || part.into_iter().filter_map(measure).collect::<Vec<_>>()));
        }
        futures::future::join_all(parts).await.into_iter().flatten().collect()
    }

    /// Measures a container. Blocks.
    fn measure(&self, id: &ContainerId) -> Result<Stats, RuntimeError> {
        let record = self.container_record(id)?;
        if matches!(record.state, ContainerState::Exited(_)) {
            let is = word(&record.state);
            return Err(RuntimeError::WrongState { id: id.clone(), is, wanted: "created or running" });
        }
        let mut stats = self.usage_of(&record.cgroup)?;
        (stats.writable_bytes, stats.writable_inodes) = self.writable(id);
        Ok(stats)
    }

    /// Bytes and inodes of a container's writable layer, as they were a short while ago. Blocks.
    fn writable(&self, id: &ContainerId) -> (u64, u64) {
        let known = self.objects.lock().containers.get(id).and_then(|entry| entry.usage);
        if let Some((_, bytes, inodes)) = known.filter(|(at, _, _)| at.elapsed() < USAGE_AGE) {
            return (bytes, inodes);
        }
        let (bytes, inodes) = disk(&self.paths.layers.join(id.as_str()).join("upper"));
        if let Some(entry) = self.objects.lock().containers.get_mut(id) {
            entry.usage = Some((Instant::now(), bytes, inodes));
        }
        (bytes, inodes)
    }

    /// Bytes and inodes of all writable layers.
    pub async fn all_writable(self: &Arc<Self>) -> (u64, u64) {
        let inner = self.clone();
        blocking(move || {
            let ids: Vec<ContainerId> = inner.objects.lock().containers.keys().cloned().collect();
            ids.iter().map(|id| inner.writable(id)).fold((0, 0), |sum, one| (sum.0 + one.0, sum.1 + one.1))
        })
        .await
    }

    /// Whether a container's processes are stopped by the freezer. Not when it has no cgroup (any more).
    pub fn frozen(&self, id: &ContainerId) -> bool {
        let cgroup = self.objects.lock().containers.get(id).map(|entry| entry.record.cgroup.clone());
        let group = cgroup.and_then(|cgroup| self.cgroups.open_path(&cgroup).ok());
        let events = group.and_then(|group| group.read("cgroup.events").ok()).unwrap_or_default();
        keyed_value(&events, "frozen") == Some(1)
    }

    /// The files of those names in a cgroup, as far as they are there. Blocks.
    pub fn files_of(&self, cgroup: &str, names: &[&'static str]) -> Vec<(&'static str, String)> {
        // A cgroup that is gone has no files: its owner ended meanwhile.
        let Ok(group) = self.cgroups.open_path(cgroup) else { return Vec::new() };
        names.iter().filter_map(|name| Some((*name, group.read(name).ok()?))).collect()
    }

    /// Measures a cgroup: a container's or a pod's.
    pub fn usage_of(&self, cgroup: &str) -> Result<Stats, RuntimeError> {
        let group = self
            .cgroups
            .open_path(cgroup)
            .map_err(|errno| RuntimeError::io(format!("open cgroup {cgroup}"))(errno.into()))?;
        let mut stats = Stats { at: Timestamp::now(), ..Stats::default() };
        let has = |name: &str| self.cgroups.controllers.iter().any(|have| have == name);
        let processes =
            if has("memory") && has("cpu") && has("pids") { None } else { Some(processes(&group)) };
        let sums = processes.map(|pids| from_procfs(&pids)).unwrap_or_default();
        stats.cpu_ns = cpu(&group).filter(|_| has("cpu")).unwrap_or(sums.cpu_ns);
        if has("memory") {
            memory(&group, &mut stats);
        } else {
            stats.memory_bytes = sums.rss_bytes;
            stats.memory_working_set_bytes = sums.rss_bytes;
            stats.memory_rss_bytes = sums.rss_bytes;
            stats.page_faults = sums.faults;
            stats.major_page_faults = sums.major_faults;
        }
        let pids = group.read("pids.current").ok().and_then(|text| text.trim().parse().ok());
        stats.pids = pids.unwrap_or(sums.threads);
        if let Ok(io) = group.read("io.stat") {
            let sum = |key: &str| -> u64 {
                io.split_ascii_whitespace()
                    .filter_map(|word| word.strip_prefix(key)?.parse::<u64>().ok())
                    .sum()
            };
            stats.io_read_bytes = Some(sum("rbytes="));
            stats.io_write_bytes = Some(sum("wbytes="));
        }
        for name in ["cpu", "memory", "io"] {
            if let Ok(text) = group.read(&format!("{name}.pressure")) {
                stats.pressure.push((name.to_owned(), text));
            }
        }
        Ok(stats)
    }
}

/// Processor time of a group in nanoseconds. `cpu.stat` has it even without the controller, but then for the
/// whole hierarchy only when the kernel keeps it.
fn cpu(group: &Group) -> Option<u64> {
    keyed_value(&group.read("cpu.stat").ok()?, "usage_usec").map(|micros| micros * 1000)
}

fn memory(group: &Group, stats: &mut Stats) {
    let number = |file: &str| group.read(file).ok().and_then(|text| text.trim().parse::<u64>().ok());
    stats.memory_bytes = number("memory.current").unwrap_or_default();
    stats.memory_limit_bytes = number("memory.max");
    stats.swap_bytes = number("memory.swap.current");
    stats.swap_available_bytes = stats.swap_bytes.and_then(|used| {
        let free = free_swap(&std::fs::read_to_string("/proc/meminfo").ok()?)?;
        // No number: no limit.
        let left = number("memory.swap.max").map(|limit| limit.saturating_sub(used));
        Some(left.map_or(free, |left| left.min(free)))
    });
    let details = group.read("memory.stat").unwrap_or_default();
    let key = |name: &str| keyed_value(&details, name).unwrap_or_default();
    stats.memory_working_set_bytes = stats.memory_bytes.saturating_sub(key("inactive_file"));
    stats.memory_rss_bytes = key("anon");
    stats.page_faults = key("pgfault");
    stats.major_page_faults = key("pgmajfault");
}

/// Bytes of swap that nobody uses, of the text of `/proc/meminfo`.
fn free_swap(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("SwapFree:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}

/// Process ids in a group and below it.
fn processes(group: &Group) -> Vec<i32> {
    let mut pids = group.processes().unwrap_or_default();
    for child in group.children().unwrap_or_default() {
        if let Ok(child) = group.open(&child) {
            pids.extend(processes(&child));
        }
    }
    pids
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
struct Sums {
    cpu_ns: u64,
    rss_bytes: u64,
    threads: u64,
    faults: u64,
    major_faults: u64,
}

fn from_procfs(pids: &[i32]) -> Sums {
    let tick = 1_000_000_000 / rustix::param::clock_ticks_per_second().max(1);
    let page = rustix::param::page_size() as u64;
    let mut sums = Sums::default();
    for pid in pids {
        // One that ended meanwhile counts nothing.
        if let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/stat")) {
            add(&mut sums, &text, tick, page);
        }
    }
    sums
}

/// Adds one `/proc/PID/stat`. The name in parentheses may contain anything.
fn add(sums: &mut Sums, stat: &str, tick: u64, page: u64) {
    let Some((_, rest)) = stat.rsplit_once(')') else { return };
    let fields: Vec<&str> = rest.split_ascii_whitespace().collect();
    // The first of them is field 3 of proc_pid_stat(5).
    let field = |number: usize| fields.get(number - 3).and_then(|text| text.parse::<u64>().ok()).unwrap_or(0);
    sums.faults += field(10);
    sums.major_faults += field(12);
    sums.cpu_ns += (field(14) + field(15) + field(16) + field(17)) * tick;
    sums.threads += field(20);
    sums.rss_bytes += field(24) * page;
}

/// Bytes and inodes below a directory; what cannot be read counts nothing. Hard links are counted once each.
fn disk(dir: &Path) -> (u64, u64) {
    use std::os::unix::fs::MetadataExt;
    let (mut bytes, mut inodes) = (0, 0);
    let mut open = vec![dir.to_owned()];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(&dir).into_iter().flatten().flatten() {
            let Ok(data) = entry.metadata() else { continue };
            bytes += data.blocks() * 512;
            inodes += 1;
            if data.is_dir() {
                open.push(entry.path());
            }
        }
    }
    (bytes, inodes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn free_swap_is_found() {
        assert_eq!(free_swap("MemTotal: 1 kB\nSwapFree:       2097148 kB\n"), Some(2_147_479_552));
        assert_eq!(free_swap("MemTotal: 1 kB\n"), None);
    }

    #[test]
    fn a_process_with_a_strange_name_is_counted() {
        let mut sums = Sums::default();
        let stat =
            "7 (a) b) S 1 7 7 0 -1 4194560 11 0 2 0 30 4 5 6 20 0 3 0 4711 1000 25 18446744073709551615";
        add(&mut sums, stat, 10_000_000, 4096);
        let want =
            Sums { cpu_ns: 450_000_000, rss_bytes: 25 * 4096, threads: 3, faults: 11, major_faults: 2 };
        assert_eq!(sums, want);
        add(&mut sums, "nonsense", 1, 1);
        assert_eq!(sums, want);
    }
}
