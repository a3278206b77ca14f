//! What the machine says about itself.

use std::collections::BTreeMap;
use std::fs;

use k8s_openapi::api::core::v1::NodeSystemInfo;

/// Facts about the machine that don't change while it runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Machine {
    /// CPUs.
    pub cpus: i64,
    /// Memory in bytes.
    pub memory: i64,
    /// Size in bytes of the file system that holds the kubelet's directory.
    pub storage: i64,
    /// Swap in bytes.
    pub swap: i64,
    /// Process ids: the least of the kernel's limits.
    pub pids: i64,
    /// Huge pages of each size that the kernel has any of.
    pub huge_pages: Vec<HugePages>,
    /// Kernel, OS, ids.
    pub info: NodeSystemInfo,
}

/// Huge pages of one size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HugePages {
    /// Bytes of one.
    pub size: i64,
    /// How many the kernel keeps.
    pub count: i64,
}

impl HugePages {
    /// Bytes of all of them.
    pub fn total(&self) -> i64 {
        self.size.saturating_mul(self.count)
    }

    /// Kubernetes' name of them as a resource, such as `hugepages-2Mi`.
    pub fn resource(&self) -> String {
        format!("{HUGE_PAGES}{}i", self.scaled())
    }

    /// The kernel's and the CRI's name of their size, such as `2MB`.
    pub fn cri_size(&self) -> String {
        format!("{}B", self.scaled())
    }

    fn scaled(&self) -> String {
        match self.size {
            size if size % (1 << 30) == 0 => format!("{}G", size >> 30),
            size if size % (1 << 20) == 0 => format!("{}M", size >> 20),
            size => format!("{}K", size >> 10),
        }
    }
}

/// How resources of huge pages are named.
pub const HUGE_PAGES: &str = "hugepages-";

/// Those that the kernel has.
fn huge_pages() -> Vec<HugePages> {
    let mut found: Vec<HugePages> = fs::read_dir("/sys/kernel/mm/hugepages")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let kib: i64 = name.strip_prefix("hugepages-")?.strip_suffix("kB")?.parse().ok()?;
            let count = fs::read_to_string(entry.path().join("nr_hugepages")).ok()?.trim().parse().ok()?;
            Some(HugePages { size: kib * 1024, count })
        })
        .filter(|pages| pages.count > 0)
        .collect();
    found.sort_by_key(|pages| pages.size);
    found
}

/// Asks the machine. What it does not tell stays empty.
pub fn machine(root: &std::path::Path) -> Machine {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let uname = rustix::system::uname();
    let text = |s: &std::ffi::CStr| s.to_string_lossy().into_owned();
    let os = os_release(&read("/etc/os-release"));
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get());
    let disk = rustix::fs::statvfs(root).map_or(0, |s| s.f_blocks.saturating_mul(s.f_frsize));
    Machine {
        cpus: i64::try_from(cpus).unwrap_or(1),
        memory: meminfo(&read("/proc/meminfo"), "MemTotal"),
        storage: i64::try_from(disk).unwrap_or(i64::MAX),
        swap: meminfo(&read("/proc/meminfo"), "SwapTotal"),
        pids: ["/proc/sys/kernel/pid_max", "/proc/sys/kernel/threads-max"]
            .iter()
            .filter_map(|path| read(path).trim().parse().ok())
            .min()
            .unwrap_or(0),
        huge_pages: huge_pages(),
        info: NodeSystemInfo {
            architecture: architecture(&text(uname.machine())).into(),
            kernel_version: text(uname.release()),
            operating_system: "linux".into(),
            os_image: os.get("PRETTY_NAME").cloned().unwrap_or_else(|| "Linux".into()),
            boot_id: read("/proc/sys/kernel/random/boot_id").trim().into(),
            machine_id: read("/etc/machine-id").trim().into(),
            system_uuid: read("/sys/class/dmi/id/product_uuid").trim().to_lowercase(),
            ..NodeSystemInfo::default()
        },
    }
}

/// Bytes of one row of `/proc/meminfo`.
pub fn meminfo(text: &str, row: &str) -> i64 {
    let line = text.lines().find(|l| l.split(':').next() == Some(row)).unwrap_or("");
    line.split_whitespace().nth(1).and_then(|kb| kb.parse::<i64>().ok()).unwrap_or(0) * 1024
}

/// Available memory in bytes, now.
pub fn memory_available() -> i64 {
    meminfo(&fs::read_to_string("/proc/meminfo").unwrap_or_default(), "MemAvailable")
}

fn os_release(text: &str) -> BTreeMap<String, String> {
    text.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.into(), value.trim_matches('"').into()))
        .collect()
}

/// The architecture in Go's words, which Kubernetes uses.
fn architecture(machine: &str) -> &str {
    match machine {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "armv7l" | "armv6l" => "arm",
        "ppc64le" => "ppc64le",
        "s390x" => "s390x",
        "riscv64" => "riscv64",
        other => other,
    }
}
