//! ContainerStats, ListContainerStats, PodSandboxStats, ListPodSandboxStats.

use std::collections::HashMap;

use cri_api::Row;
use cri_api::v1::*;
use futures::StreamExt;
use network::InterfaceStats;
use parking_lot::Mutex;
use runtime::{ContainerId, Stats};
use tonic::Status;

use crate::container::container_id;
use crate::error::status;
use crate::sandbox::sandbox_id;
use crate::server::Inner;
use crate::{filter, view};

/// Sandboxes that are measured at the same time.
pub const AT_A_TIME: usize = 4;

/// Processor use at the last two questions, to tell a rate.
#[derive(Default)]
pub struct Rates(Mutex<HashMap<String, (Sample, Option<u64>)>>);

#[derive(Clone, Copy)]
struct Sample {
    at: i64,
    cpu_ns: u64,
}

impl Rates {
    /// Nanoseconds of processor time per second since the last question at least a second ago.
    fn rate(&self, id: &str, at: i64, cpu_ns: u64) -> Option<u64> {
        let now = Sample { at, cpu_ns };
        let mut last = self.0.lock();
        let Some((before, rate)) = last.get_mut(id) else {
            last.insert(id.to_owned(), (now, None));
            return None;
        };
        let passed = now.at - before.at;
        if passed >= 1_000_000_000 {
            let used = u128::from(now.cpu_ns.saturating_sub(before.cpu_ns));
            *rate = u64::try_from(used * 1_000_000_000 / passed as u128).ok();
            *before = now;
        }
        *rate
    }

    /// Forgets a container.
    pub fn forget(&self, id: &str) {
        self.0.lock().remove(id);
    }
}

fn value(value: u64) -> Option<UInt64Value> {
    Some(UInt64Value { value })
}

impl Inner {
    pub(crate) async fn container_stats(&self, given: &str) -> Result<ContainerStats, Status> {
        let id = self.index.container_id(given)?;
        let row = self.container_rows(None, |has| has.id == id).pop();
        let row = row.ok_or_else(|| Status::not_found(format!("no container {id}")))?;
        let stats = self.runtime.stats(&container_id(&id)?).await.map_err(status)?;
        Ok(self.shown(&row, &stats))
    }

    pub(crate) async fn list_container_stats(
        &self,
        wanted: Option<&ContainerStatsFilter>,
    ) -> Vec<ContainerStats> {
        let rows = self.container_rows(None, |has| filter::container_stats(wanted, has));
        self.stats_of_running(rows).await
    }

    /// Those that cannot be measured any more are left out.
    async fn stats_of_running(&self, mut rows: Vec<Row<Container>>) -> Vec<ContainerStats> {
        rows.retain(|row| row.state == ContainerState::ContainerRunning as i32);
        let ids = rows.iter().filter_map(|row| container_id(&row.id).ok()).collect();
        let measured: HashMap<ContainerId, Stats> = self.runtime.stats_of(ids).await.into_iter().collect();
        let all = rows.iter().filter_map(|row| Some((row, measured.get(row.id.as_str())?)));
        all.map(|(row, stats)| self.shown(row, stats)).collect()
    }

    fn shown(&self, row: &Container, stats: &Stats) -> ContainerStats {
        let rate = self.rates.rate(&row.id, view::nanos(stats.at), stats.cpu_ns);
        let layers = self.config.layers_dir.to_string_lossy().into_owned();
        container_stats(row, stats, rate, layers)
    }

    pub(crate) async fn sandbox_stats(&self, given: &str) -> Result<PodSandboxStats, Status> {
        let id = self.index.sandbox_id(given)?;
        let row = self.list_sandboxes(None).into_iter().find(|row| row.id == id);
        let row = row.ok_or_else(|| Status::not_found(format!("no sandbox {id}")))?;
        Ok(self.stats_of_sandbox(row).await)
    }

    pub(crate) async fn list_sandbox_stats(
        &self,
        wanted: Option<&PodSandboxStatsFilter>,
    ) -> Vec<PodSandboxStats> {
        let rows = self.list_sandboxes(None).into_iter().filter(|row| {
            row.state == PodSandboxState::SandboxReady as i32 && filter::sandbox_stats(wanted, row)
        });
        let all = futures::stream::iter(rows.map(|row| self.stats_of_sandbox(row)));
        all.buffered(AT_A_TIME).collect().await
    }

    async fn stats_of_sandbox(&self, row: Row<PodSandbox>) -> PodSandboxStats {
        let now = view::nanos(jiff::Timestamp::now());
        let (mine, whole) = match sandbox_id(&row.id) {
            Ok(id) => (
                self.container_rows(Some(&id), |_| true),
                // A sandbox that goes away meanwhile uses nothing.
                self.runtime.sandbox_stats(&id).await.unwrap_or_default(),
            ),
            Err(_) => Default::default(),
        };
        let containers = self.stats_of_running(mine).await;
        let netns = sandbox_id(&row.id).ok().and_then(|id| self.runtime.sandbox(&id)).and_then(|s| s.netns);
        let interfaces = match netns {
            Some(netns) => self.network.stats(&netns).await.unwrap_or_default(),
            None => Vec::new(),
        };
        PodSandboxStats {
            attributes: Some(PodSandboxAttributes {
                id: row.id.clone(),
                metadata: row.metadata.clone(),
                labels: row.labels.clone(),
                annotations: row.annotations.clone(),
            }),
            linux: Some(sandbox_sum(now, containers, interfaces, &whole)),
            windows: None,
        }
    }
}

/// A container's statistics in CRI's shape. Pure.
fn container_stats(row: &Container, stats: &Stats, rate: Option<u64>, layers: String) -> ContainerStats {
    let timestamp = view::nanos(stats.at);
    let psi = |what: &str| pressure(stats, what);
    ContainerStats {
        attributes: Some(ContainerAttributes {
            id: row.id.clone(),
            metadata: row.metadata.clone(),
            labels: row.labels.clone(),
            annotations: row.annotations.clone(),
        }),
        cpu: Some(CpuUsage {
            timestamp,
            usage_core_nano_seconds: value(stats.cpu_ns),
            usage_nano_cores: rate.and_then(value),
            psi: psi("cpu"),
        }),
        memory: Some(MemoryUsage {
            timestamp,
            working_set_bytes: value(stats.memory_working_set_bytes),
            available_bytes: stats
                .memory_limit_bytes
                .and_then(|limit| value(limit.saturating_sub(stats.memory_working_set_bytes))),
            usage_bytes: value(stats.memory_bytes),
            rss_bytes: value(stats.memory_rss_bytes),
            page_faults: value(stats.page_faults),
            major_page_faults: value(stats.major_page_faults),
            psi: psi("memory"),
        }),
        writable_layer: Some(FilesystemUsage {
            timestamp,
            fs_id: Some(FilesystemIdentifier { mountpoint: layers }),
            used_bytes: value(stats.writable_bytes),
            inodes_used: value(stats.writable_inodes),
        }),
        swap: stats.swap_bytes.map(|used| SwapUsage {
            timestamp,
            swap_available_bytes: stats.swap_available_bytes.and_then(value),
            swap_usage_bytes: value(used),
        }),
        io: psi("io").map(|psi| IoUsage { timestamp, psi: Some(psi) }),
    }
}

/// The pressure on one resource.
fn pressure(stats: &Stats, what: &str) -> Option<PsiStats> {
    stats.pressure.iter().find(|(name, _)| name == what).map(|(_, text)| psi(text))
}

/// A sandbox's statistics: its containers' added up, and its interfaces'. Pure.
fn sandbox_sum(
    timestamp: i64,
    containers: Vec<ContainerStats>,
    interfaces: Vec<InterfaceStats>,
    whole: &Stats,
) -> LinuxPodSandboxStats {
    let sum = |of: &dyn Fn(&ContainerStats) -> Option<u64>| value(containers.iter().filter_map(of).sum());
    let cpu =
        |of: fn(&CpuUsage) -> Option<&UInt64Value>| sum(&|c| c.cpu.as_ref().and_then(of).map(|v| v.value));
    let memory = |of: fn(&MemoryUsage) -> Option<&UInt64Value>| {
        sum(&|c| c.memory.as_ref().and_then(of).map(|v| v.value))
    };
    let mut interfaces = interfaces.into_iter().map(|i| NetworkInterfaceUsage {
        name: i.name,
        rx_bytes: value(i.rx_bytes),
        rx_errors: value(i.rx_errors),
        tx_bytes: value(i.tx_bytes),
        tx_errors: value(i.tx_errors),
    });
    LinuxPodSandboxStats {
        cpu: Some(CpuUsage {
            timestamp,
            usage_core_nano_seconds: cpu(|c| c.usage_core_nano_seconds.as_ref()),
            usage_nano_cores: cpu(|c| c.usage_nano_cores.as_ref()),
            psi: pressure(whole, "cpu"),
        }),
        memory: Some(MemoryUsage {
            timestamp,
            working_set_bytes: memory(|m| m.working_set_bytes.as_ref()),
            available_bytes: whole
                .memory_limit_bytes
                .and_then(|limit| value(limit.saturating_sub(whole.memory_working_set_bytes))),
            usage_bytes: memory(|m| m.usage_bytes.as_ref()),
            rss_bytes: memory(|m| m.rss_bytes.as_ref()),
            page_faults: memory(|m| m.page_faults.as_ref()),
            major_page_faults: memory(|m| m.major_page_faults.as_ref()),
            psi: pressure(whole, "memory"),
        }),
        network: Some(NetworkUsage {
            timestamp,
            default_interface: interfaces.next(),
            interfaces: interfaces.collect(),
        }),
        process: Some(ProcessUsage { timestamp, process_count: value(whole.pids) }),
        containers,
        io: pressure(whole, "io").map(|psi| IoUsage { timestamp, psi: Some(psi) }),
    }
}

/// The kernel's text: lines such as `some avg10=0.00 avg60=0.00 avg300=0.00 total=0`.
fn psi(text: &str) -> PsiStats {
    let data = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let field = |key: &str| line.split_whitespace().find_map(|word| word.strip_prefix(key));
        Some(PsiData {
            total: field("total=")?.parse().ok()?,
            avg10: field("avg10=")?.parse().ok()?,
            avg60: field("avg60=")?.parse().ok()?,
            avg300: field("avg300=")?.parse().ok()?,
        })
    };
    PsiStats { full: data("full "), some: data("some ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_need_a_second() {
        let (rates, second) = (Rates::default(), 1_000_000_000);
        assert_eq!(rates.rate("a", 0, 100), None);
        assert_eq!(rates.rate("a", second / 2, 200), None);
        assert_eq!(rates.rate("a", 2 * second, 1100), Some(500));
        assert_eq!(rates.rate("a", 2 * second + 1, 9000), Some(500), "asked too soon: the old one");
        rates.forget("a");
        assert_eq!(rates.rate("a", 3 * second, 0), None);
    }

    #[test]
    fn pressure_is_read_from_the_kernels_text() {
        let text = "some avg10=1.50 avg60=0.25 avg300=0.00 total=1234\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=5\n";
        let read = psi(text);
        assert_eq!(read.some, Some(PsiData { total: 1234, avg10: 1.5, avg60: 0.25, avg300: 0.0 }));
        assert_eq!(read.full.map(|full| full.total), Some(5));
        assert_eq!(psi("nonsense"), PsiStats::default());
    }
}
