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
    /// Kernel, OS, ids.
    pub info: NodeSystemInfo,
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
