//! The metrics by cAdvisor's names, and how each is read from what the kernel says. Pure.

use cri_api::v1::{Metric, MetricDescriptor, MetricType, UInt64Value};
use network::InterfaceStats;
use runtime::Stats;

/// Labels that every metric has, in the order of [`Owner::values`].
const BASE: [&str; 6] = ["id", "name", "image", "container", "namespace", "pod"];

/// Whose metrics they are.
pub struct Owner {
    /// The cgroup's path, as cAdvisor has it.
    pub id: String,
    /// The container's id; empty for a pod.
    pub name: String,
    /// The image's name.
    pub image: String,
    /// The container's name in its pod; empty for a pod.
    pub container: String,
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
}

impl Owner {
    fn values(&self) -> Vec<String> {
        [&self.id, &self.name, &self.image, &self.container, &self.namespace, &self.pod]
            .map(Clone::clone)
            .to_vec()
    }
}

/// What was measured of one owner.
#[derive(Default)]
pub struct Measured {
    /// Its cgroup's files.
    pub files: Vec<(&'static str, String)>,
    /// What the runtime counts itself.
    pub stats: Stats,
    /// When it was started.
    pub started_at_ns: i64,
    /// Its interfaces; a pod's only.
    pub interfaces: Vec<InterfaceStats>,
    /// Where its writable layer is, and that file system; a container's only.
    pub layers: Option<(String, rustix::fs::StatVfs)>,
}

impl Measured {
    fn file(&self, name: &str) -> Option<&str> {
        self.files.iter().find(|(known, _)| *known == name).map(|(_, text)| text.as_str())
    }

    /// `key value` lines.
    fn keyed(&self, file: &str, key: &str) -> Option<u64> {
        let text = self.file(file)?;
        text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
    }

    /// A file with one number; `max`, which is no limit, is none.
    fn number(&self, file: &str) -> Option<u64> {
        self.file(file)?.trim().parse().ok()
    }

    /// `total=` of a line of a pressure file, in microseconds.
    fn stalled(&self, file: &str, line: &str) -> Option<u64> {
        let line = self.file(file)?.lines().find_map(|found| found.strip_prefix(line))?;
        line.split_whitespace().find_map(|word| word.strip_prefix("total="))?.parse().ok()
    }
}

/// How a metric's values are found: each with the values of its own labels.
type Read = fn(&Measured) -> Vec<(Vec<String>, u64)>;

struct Row {
    name: &'static str,
    help: &'static str,
    kind: MetricType,
    labels: &'static [&'static str],
    read: Read,
}

const COUNTER: MetricType = MetricType::Counter;
const GAUGE: MetricType = MetricType::Gauge;

fn one(value: Option<u64>) -> Vec<(Vec<String>, u64)> {
    value.map(|value| (Vec::new(), value)).into_iter().collect()
}

fn seconds(micros: Option<u64>) -> Vec<(Vec<String>, u64)> {
    one(micros.map(|micros| micros / 1_000_000))
}

fn interfaces(measured: &Measured, of: fn(&InterfaceStats) -> u64) -> Vec<(Vec<String>, u64)> {
    measured.interfaces.iter().map(|interface| (vec![interface.name.clone()], of(interface))).collect()
}

/// A field of `io.stat`, for each device.
fn devices(measured: &Measured, field: &str) -> Vec<(Vec<String>, u64)> {
    let lines = measured.file("io.stat").unwrap_or_default().lines();
    let value = |line: &str| {
        let (device, fields) = line.split_once(' ')?;
        let value = fields.split(' ').find_map(|word| word.strip_prefix(field)?.strip_prefix('='))?;
        Some((vec![device.to_owned()], value.parse().ok()?))
    };
    lines.filter_map(value).collect()
}

fn failures(measured: &Measured) -> Vec<(Vec<String>, u64)> {
    let row = |kind: &str, value| (vec![kind.to_owned(), "hierarchy".to_owned()], value);
    vec![row("pgfault", measured.stats.page_faults), row("pgmajfault", measured.stats.major_page_faults)]
}

fn layers(measured: &Measured, of: fn(&rustix::fs::StatVfs, &Stats) -> u64) -> Vec<(Vec<String>, u64)> {
    let fs = measured.layers.as_ref();
    fs.map(|(device, fs)| (vec![device.clone()], of(fs, &measured.stats))).into_iter().collect()
}

macro_rules! rows {
    ($( $name:ident $kind:ident [$($label:literal)*] $help:literal = $read:expr; )*) => {
        const ROWS: &[Row] = &[$( Row {
            name: stringify!($name), help: $help, kind: $kind, labels: &[$($label),*], read: $read,
        } ),*];
    };
}

rows! {
    container_cpu_usage_seconds_total COUNTER ["cpu"] "Processor time used, in seconds." =
        |m| vec![(vec!["total".to_owned()], m.stats.cpu_ns / 1_000_000_000)];
    container_cpu_user_seconds_total COUNTER [] "Processor time used outside the kernel, in seconds." =
        |m| seconds(m.keyed("cpu.stat", "user_usec"));
    container_cpu_system_seconds_total COUNTER [] "Processor time used in the kernel, in seconds." =
        |m| seconds(m.keyed("cpu.stat", "system_usec"));
    container_cpu_cfs_periods_total COUNTER [] "Periods in which a processor limit was looked at." =
        |m| one(m.keyed("cpu.stat", "nr_periods"));
    container_cpu_cfs_throttled_periods_total COUNTER [] "Periods in which the processor limit was reached." =
        |m| one(m.keyed("cpu.stat", "nr_throttled"));
    container_cpu_cfs_throttled_seconds_total COUNTER [] "Time spent waiting for the processor limit, in seconds." =
        |m| seconds(m.keyed("cpu.stat", "throttled_usec"));
    container_spec_cpu_quota GAUGE [] "Processor limit: microseconds in each period." =
        |m| one(m.file("cpu.max").and_then(|text| text.split_whitespace().next()?.parse().ok()));
    container_spec_cpu_period GAUGE [] "Processor limit: the period, in microseconds." =
        |m| one(m.file("cpu.max").and_then(|text| text.split_whitespace().nth(1)?.parse().ok()));
    container_memory_usage_bytes GAUGE [] "Memory in use, page cache included." =
        |m| one(Some(m.stats.memory_bytes));
    container_memory_working_set_bytes GAUGE [] "Memory in use without inactive page cache." =
        |m| one(Some(m.stats.memory_working_set_bytes));
    container_memory_rss GAUGE [] "Anonymous memory." = |m| one(Some(m.stats.memory_rss_bytes));
    container_memory_cache GAUGE [] "Page cache." = |m| one(m.keyed("memory.stat", "file"));
    container_memory_mapped_file GAUGE [] "Memory-mapped files." = |m| one(m.keyed("memory.stat", "file_mapped"));
    container_memory_kernel_usage GAUGE [] "Memory of the kernel." = |m| one(m.keyed("memory.stat", "kernel"));
    container_memory_total_active_file_bytes GAUGE [] "Active page cache." =
        |m| one(m.keyed("memory.stat", "active_file"));
    container_memory_total_inactive_file_bytes GAUGE [] "Inactive page cache." =
        |m| one(m.keyed("memory.stat", "inactive_file"));
    container_memory_swap GAUGE [] "Swap in use." = |m| one(m.number("memory.swap.current"));
    container_memory_max_usage_bytes GAUGE [] "Most memory that was ever in use." = |m| one(m.number("memory.peak"));
    container_memory_failcnt COUNTER [] "How often the memory limit was reached." =
        |m| one(m.keyed("memory.events", "max"));
    container_memory_failures_total COUNTER ["failure_type" "scope"] "Page faults." = failures;
    container_oom_events_total COUNTER [] "Processes killed for want of memory." =
        |m| one(m.keyed("memory.events", "oom_kill"));
    container_spec_memory_limit_bytes GAUGE [] "Memory limit; 0 means none." =
        |m| one(m.file("memory.max").map(|_| m.number("memory.max").unwrap_or(0)));
    container_spec_memory_reservation_limit_bytes GAUGE [] "Memory that is protected; 0 means none." =
        |m| one(m.number("memory.low"));
    container_spec_memory_swap_limit_bytes GAUGE [] "Swap limit; 0 means none." =
        |m| one(m.file("memory.swap.max").map(|_| m.number("memory.swap.max").unwrap_or(0)));
    container_pressure_cpu_waiting_seconds_total COUNTER [] "Time in which a task waited for a processor." =
        |m| seconds(m.stalled("cpu.pressure", "some "));
    container_pressure_cpu_stalled_seconds_total COUNTER [] "Time in which all tasks waited for a processor." =
        |m| seconds(m.stalled("cpu.pressure", "full "));
    container_pressure_memory_waiting_seconds_total COUNTER [] "Time in which a task waited for memory." =
        |m| seconds(m.stalled("memory.pressure", "some "));
    container_pressure_memory_stalled_seconds_total COUNTER [] "Time in which all tasks waited for memory." =
        |m| seconds(m.stalled("memory.pressure", "full "));
    container_pressure_io_waiting_seconds_total COUNTER [] "Time in which a task waited for a disk." =
        |m| seconds(m.stalled("io.pressure", "some "));
    container_pressure_io_stalled_seconds_total COUNTER [] "Time in which all tasks waited for a disk." =
        |m| seconds(m.stalled("io.pressure", "full "));
    container_fs_reads_bytes_total COUNTER ["device"] "Bytes read from a disk." = |m| devices(m, "rbytes");
    container_fs_writes_bytes_total COUNTER ["device"] "Bytes written to a disk." = |m| devices(m, "wbytes");
    container_fs_reads_total COUNTER ["device"] "Reads from a disk." = |m| devices(m, "rios");
    container_fs_writes_total COUNTER ["device"] "Writes to a disk." = |m| devices(m, "wios");
    container_fs_usage_bytes GAUGE ["device"] "Bytes of the writable layer." = |m| layers(m, |_, s| s.writable_bytes);
    container_fs_limit_bytes GAUGE ["device"] "Size of the writable layer's file system." =
        |m| layers(m, |fs, _| fs.f_blocks * fs.f_frsize);
    container_fs_inodes_total GAUGE ["device"] "Inodes of the writable layer's file system." =
        |m| layers(m, |fs, _| fs.f_files);
    container_fs_inodes_free GAUGE ["device"] "Free inodes of the writable layer's file system." =
        |m| layers(m, |fs, _| fs.f_ffree);
    container_threads GAUGE [] "Tasks." = |m| one(Some(m.stats.pids));
    container_threads_max GAUGE [] "Limit of the number of tasks; 0 means none." =
        |m| one(m.file("pids.max").map(|_| m.number("pids.max").unwrap_or(0)));
    container_start_time_seconds GAUGE [] "When it was started, in seconds since 1970." =
        |m| one(u64::try_from(m.started_at_ns / 1_000_000_000).ok());
    container_network_receive_bytes_total COUNTER ["interface"] "Bytes received." =
        |m| interfaces(m, |i| i.rx_bytes);
    container_network_receive_packets_total COUNTER ["interface"] "Packets received." =
        |m| interfaces(m, |i| i.rx_packets);
    container_network_receive_packets_dropped_total COUNTER ["interface"] "Packets dropped while receiving." =
        |m| interfaces(m, |i| i.rx_dropped);
    container_network_receive_errors_total COUNTER ["interface"] "Errors while receiving." =
        |m| interfaces(m, |i| i.rx_errors);
    container_network_transmit_bytes_total COUNTER ["interface"] "Bytes sent." = |m| interfaces(m, |i| i.tx_bytes);
    container_network_transmit_packets_total COUNTER ["interface"] "Packets sent." =
        |m| interfaces(m, |i| i.tx_packets);
    container_network_transmit_packets_dropped_total COUNTER ["interface"] "Packets dropped while sending." =
        |m| interfaces(m, |i| i.tx_dropped);
    container_network_transmit_errors_total COUNTER ["interface"] "Errors while sending." =
        |m| interfaces(m, |i| i.tx_errors);
}

/// What [`metrics`] can give.
pub fn descriptors() -> Vec<MetricDescriptor> {
    let describe = |row: &Row| MetricDescriptor {
        name: row.name.to_owned(),
        help: row.help.to_owned(),
        label_keys: BASE.iter().chain(row.labels).map(|key| (*key).to_owned()).collect(),
    };
    ROWS.iter().map(describe).collect()
}

/// One owner's metrics; what the kernel does not tell is left out.
pub fn metrics(owner: &Owner, measured: &Measured) -> Vec<Metric> {
    let of_row = |row: &'static Row| {
        (row.read)(measured).into_iter().map(move |(labels, value)| Metric {
            name: row.name.to_owned(),
            // Gathered live.
            timestamp: 0,
            metric_type: row.kind as i32,
            label_values: owner.values().into_iter().chain(labels).collect(),
            value: Some(UInt64Value { value }),
        })
    };
    ROWS.iter().flat_map(of_row).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owner() -> Owner {
        let text = str::to_owned;
        Owner {
            id: text("/a"),
            name: text("n"),
            image: text("i"),
            container: text("c"),
            namespace: text("ns"),
            pod: text("p"),
        }
    }

    fn value(metrics: &[Metric], name: &str) -> Vec<(Vec<String>, u64)> {
        let named = metrics.iter().filter(|metric| metric.name == name);
        named
            .map(|m| (m.label_values[BASE.len()..].to_vec(), m.value.as_ref().map_or(0, |v| v.value)))
            .collect()
    }

    #[test]
    fn values_come_from_the_kernels_files() {
        let file = |name, text: &str| (name, text.to_owned());
        let measured = Measured {
            files: vec![
                file(
                    "cpu.stat",
                    "usage_usec 9\nuser_usec 7000000\nsystem_usec 2500000\nnr_periods 5\nnr_throttled 2\nthrottled_usec 3000000\n",
                ),
                file("cpu.max", "max 100000\n"),
                file("memory.stat", "file 10\nfile_mapped 4\nactive_file 3\n"),
                file("memory.max", "max\n"),
                file("memory.events", "low 0\nmax 6\noom 1\noom_kill 1\n"),
                file(
                    "cpu.pressure",
                    "some avg10=0.00 avg60=0.00 avg300=0.00 total=4000000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1000000\n",
                ),
                file(
                    "io.stat",
                    "8:0 rbytes=11 wbytes=12 rios=1 wios=2 dbytes=0 dios=0\n259:0 rbytes=5 wbytes=6 rios=7 wios=8\n",
                ),
            ],
            stats: Stats { cpu_ns: 9_500_000_000, page_faults: 21, ..Stats::default() },
            interfaces: vec![InterfaceStats { name: "eth0".into(), rx_bytes: 33, ..Default::default() }],
            ..Measured::default()
        };
        let all = metrics(&owner(), &measured);
        let plain = |name: &str| value(&all, name).first().map(|(_, value)| *value);
        assert_eq!(plain("container_cpu_usage_seconds_total"), Some(9));
        assert_eq!(plain("container_cpu_user_seconds_total"), Some(7));
        assert_eq!(plain("container_cpu_cfs_throttled_seconds_total"), Some(3));
        assert_eq!(
            (plain("container_spec_cpu_quota"), plain("container_spec_cpu_period")),
            (None, Some(100_000))
        );
        assert_eq!(
            (plain("container_memory_cache"), plain("container_memory_mapped_file")),
            (Some(10), Some(4))
        );
        assert_eq!(
            (plain("container_spec_memory_limit_bytes"), plain("container_memory_failcnt")),
            (Some(0), Some(6))
        );
        assert_eq!(plain("container_pressure_cpu_waiting_seconds_total"), Some(4));
        assert_eq!(plain("container_pressure_cpu_stalled_seconds_total"), Some(1));
        assert_eq!(plain("container_memory_swap"), None, "no such file, no value");
        let of = |device: &str, value| (vec![device.to_owned()], value);
        assert_eq!(value(&all, "container_fs_writes_bytes_total"), [of("8:0", 12), of("259:0", 6)]);
        assert_eq!(value(&all, "container_network_receive_bytes_total"), [of("eth0", 33)]);
    }

    #[test]
    fn every_metric_is_described() {
        let measured = Measured {
            interfaces: vec![InterfaceStats::default()],
            files: vec![("io.stat", "8:0 rbytes=1\n".into())],
            ..Measured::default()
        };
        let described = descriptors();
        for metric in metrics(&owner(), &measured) {
            let descriptor = described.iter().find(|d| d.name == metric.name).expect("described");
            assert_eq!(descriptor.label_keys.len(), metric.label_values.len(), "{}", metric.name);
        }
        let mut names: Vec<_> = described.iter().map(|d| &d.name).collect();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), described.len());
    }
}
