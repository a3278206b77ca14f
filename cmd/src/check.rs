//! `orlop check`: everything that keeps this machine from being a node, or limits it, at once.
//!
//! The findings are made by a pure function of what was observed; only [`observe`] looks at the machine.

use std::path::Path;
use std::process::ExitCode;

use anyhow::ensure;
use sys::cgroup::Found;
use sys::features::Features;

use crate::paths::Paths;

/// Oldest kernel that Orlop runs on (docs/SPECIFICATION.md).
const OLDEST_KERNEL: (u32, u32) = (5, 15);
/// Controllers that a node wants, and what is missing without each.
const CONTROLLERS: &[(&str, &str)] = &[
    ("cpu", "CPU limits and shares are not enforced"),
    ("memory", "memory limits are not enforced, and nothing is OOM-killed for exceeding them"),
    ("pids", "limits on the number of processes are not enforced"),
    ("io", "I/O limits are not enforced, and I/O is not counted"),
    ("cpuset", "containers can't be pinned to CPUs"),
    ("hugetlb", "limits on huge pages are not enforced"),
];

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Good,
    Limits,
    Prevents,
}

/// One finding: what was looked at, how it is, and what to do.
#[derive(Debug)]
struct Finding {
    level: Level,
    what: &'static str,
    found: String,
    advice: &'static str,
}

/// What the machine looks like.
#[derive(Debug)]
struct Observed {
    root: bool,
    kernel: String,
    cgroup: Result<(String, Vec<String>), String>,
    filesystems: String,
    nft: bool,
    capabilities: u64,
    seccomp: bool,
    pidfd_exit_info: bool,
    forwarding: bool,
    data_on_overlay: bool,
    swap_total: u64,
}

/// Looks, prints, and fails if something prevents a node from running here.
pub async fn run(paths: &Paths) -> anyhow::Result<ExitCode> {
    let findings = findings(&observe(paths));
    for finding in &findings {
        let mark = match finding.level {
            Level::Good => "ok     ",
            Level::Limits => "limited",
            Level::Prevents => "FAILS  ",
        };
        println!("{mark}  {:<18} {}", finding.what, finding.found);
        if !finding.advice.is_empty() && finding.level != Level::Good {
            println!("{:29}{}", "", finding.advice);
        }
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let (fails, limits) = (count(Level::Prevents), count(Level::Limits));
    println!();
    if fails > 0 {
        println!("This machine can't be a node: {fails} of the points above must be mended first.");
        return Ok(ExitCode::FAILURE);
    }
    match limits {
        0 => println!("This machine can be a node, without limits."),
        _ => println!("This machine can be a node, with the {limits} limits above."),
    }
    Ok(ExitCode::SUCCESS)
}

/// A daemon refuses early and plainly; everything else is for `orlop check`.
pub fn refuse_to_start_without_root() -> anyhow::Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "not root: a node makes namespaces, mounts and cgroups. Run it as root (sudo orlop …); `orlop check` tells \
         what else is missing"
    );
    Ok(())
}

fn observe(paths: &Paths) -> Observed {
    let features: &Features = sys::features::get();
    let uname = rustix::system::uname();
    let place = match &features.cgroup2 {
        Some(Found::Mounted(path)) => Ok(format!("mounted at {}", path.display())),
        Some(_) => Ok("not mounted; the node makes a mount of its own".to_owned()),
        None => Err(match sys::cgroup::root() {
            Err(errno) => format!("neither mounted nor mountable: {errno}"),
            Ok(_) => "it has just appeared; look again".to_owned(),
        }),
    };
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let status = read("/proc/self/status");
    let search = std::env::var_os("PATH").unwrap_or_default();
    let data = paths.data.ancestors().find(|dir| dir.exists()).unwrap_or(Path::new("/"));
    let overlay = rustix::fs::statfs(data).is_ok_and(|fs| fs.f_type == 0x794c_7630);
    Observed {
        root: rustix::process::geteuid().is_root(),
        kernel: uname.release().to_string_lossy().into_owned(),
        cgroup: place.map(|place| (place, features.cgroup_controllers.clone())),
        filesystems: read("/proc/filesystems"),
        nft: std::env::split_paths(&search)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .any(|dir| dir.join("nft").exists()),
        capabilities: effective_capabilities(&status),
        seccomp: status.contains("\nSeccomp:"),
        pidfd_exit_info: features.pidfd_exit_info,
        forwarding: read("/proc/sys/net/ipv4/ip_forward").trim() == "1",
        data_on_overlay: overlay,
        swap_total: swap_total(&read("/proc/meminfo")),
    }
}

// Bits of capabilities(7).
const CAP_NET_ADMIN: u64 = 1 << 12;
const CAP_SYS_ADMIN: u64 = 1 << 21;
const CAP_SYS_RESOURCE: u64 = 1 << 24;

fn effective_capabilities(status: &str) -> u64 {
    let line = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok()).unwrap_or(0)
}

fn swap_total(meminfo: &str) -> u64 {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("SwapTotal:"));
    line.and_then(|rest| rest.trim().trim_end_matches(" kB").parse().ok()).unwrap_or(0)
}

/// The findings, in the order in which they are shown.
fn findings(seen: &Observed) -> Vec<Finding> {
    let mut all = vec![
        judge(seen.root, Level::Prevents, "root", ("running as root", "not root"), "run it as root"),
        judge(
            // Who is not root has been told so.
            !seen.root
                || seen.capabilities & (CAP_SYS_ADMIN | CAP_NET_ADMIN) == CAP_SYS_ADMIN | CAP_NET_ADMIN,
            Level::Prevents,
            "capabilities",
            ("enough", "CAP_SYS_ADMIN or CAP_NET_ADMIN is missing"),
            "namespaces, mounts and cgroups need the first, the pod network the second: a container must be given them",
        ),
        judge(
            kernel_version(&seen.kernel) >= Some(OLDEST_KERNEL),
            Level::Prevents,
            "kernel",
            (&seen.kernel, &seen.kernel),
            "Linux 5.15 or newer is needed; 6.1 is the reference",
        ),
        filesystem(
            seen,
            "overlay",
            Level::Prevents,
            "container file systems need overlayfs: modprobe overlay",
        ),
    ];
    all.extend(cgroups(seen));
    all.push(judge(
        !seen.data_on_overlay,
        Level::Prevents,
        "data directory",
        ("on a file system that overlayfs can stack on", "on overlayfs, which can't be stacked on itself"),
        "put --root (or /var/lib/orlop) on ext4, xfs or btrfs",
    ));
    all.push(judge(seen.seccomp, Level::Prevents, "seccomp", ("filters can be installed", "not in this kernel"),
        "a kernel with CONFIG_SECCOMP_FILTER is needed: every container gets a filter unless it asks otherwise"));
    all.push(judge(
        seen.nft,
        Level::Limits,
        "nft",
        ("found", "not found"),
        "host ports and masquerading need it: apt-get install nftables",
    ));
    all.push(judge(
        seen.capabilities & CAP_SYS_RESOURCE != 0,
        Level::Limits,
        "CAP_SYS_RESOURCE",
        ("there", "missing"),
        "oom_score_adj can't be lowered and limits can't be raised above this process' own",
    ));
    all.push(judge(
        seen.pidfd_exit_info,
        Level::Limits,
        "exit codes",
        ("survive the keeper", "are lost if the keeper is killed"),
        "Linux 6.15 keeps them in the pidfd; below that they are reported as unknown, never invented",
    ));
    all.push(judge(
        seen.forwarding,
        Level::Good,
        "IP forwarding",
        ("on", "off; the node turns it on when it starts"),
        "",
    ));
    if seen.swap_total > 0 {
        all.push(Finding {
            level: Level::Limits,
            what: "swap",
            found: format!("{} MiB in use by the system", seen.swap_total >> 10),
            advice: "containers without a swap limit may be swapped out; swapoff -a if you don't want that",
        });
    }
    all
}

fn judge(
    good: bool,
    otherwise: Level,
    what: &'static str,
    (yes, no): (&str, &str),
    advice: &'static str,
) -> Finding {
    let (level, found) = if good { (Level::Good, yes) } else { (otherwise, no) };
    Finding { level, what, found: found.to_owned(), advice }
}

fn filesystem(seen: &Observed, name: &'static str, otherwise: Level, advice: &'static str) -> Finding {
    let there = seen.filesystems.lines().any(|line| line.split_whitespace().last() == Some(name));
    judge(
        there,
        otherwise,
        name,
        ("in this kernel", "not in this kernel (or its module is not loaded)"),
        advice,
    )
}

/// The cgroup2 hierarchy, and one finding for each controller that it lacks.
fn cgroups(seen: &Observed) -> Vec<Finding> {
    let (place, controllers) = match &seen.cgroup {
        Ok(found) => found,
        Err(why) => {
            let advice =
                "cgroup v2 is needed: boot with systemd.unified_cgroup_hierarchy=1, or mount -t cgroup2";
            return vec![Finding { level: Level::Prevents, what: "cgroup v2", found: why.clone(), advice }];
        }
    };
    let mut all = vec![Finding { level: Level::Good, what: "cgroup v2", found: place.clone(), advice: "" }];
    let missing = CONTROLLERS.iter().filter(|(name, _)| !controllers.iter().any(|c| c == name));
    all.extend(missing.map(|(name, without)| Finding {
        level: Level::Limits,
        what: "cgroup controller",
        found: format!("{name} is missing: {without}"),
        advice: "it is mounted as cgroup v1 or switched off: boot with systemd.unified_cgroup_hierarchy=1",
    }));
    all
}

/// Major and minor number of a kernel release.
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn perfect() -> Observed {
        let all = CONTROLLERS.iter().map(|(name, _)| (*name).to_owned()).collect();
        Observed {
            root: true,
            kernel: "6.1.0-9-amd64".into(),
            cgroup: Ok(("/sys/fs/cgroup".into(), all)),
            filesystems: "nodev\toverlay\n".into(),
            nft: true,
            capabilities: u64::MAX,
            seccomp: true,
            pidfd_exit_info: true,
            forwarding: true,
            data_on_overlay: false,
            swap_total: 0,
        }
    }

    fn worst(seen: &Observed) -> Level {
        findings(seen).iter().map(|finding| finding.level).max().unwrap()
    }

    #[test]
    fn a_good_machine_has_no_findings() {
        assert_eq!(worst(&perfect()), Level::Good);
    }

    #[test]
    fn everything_that_lacks_is_said_at_once() {
        let bare = Observed {
            root: false,
            kernel: "5.10.0".into(),
            cgroup: Err("no cgroup2".into()),
            filesystems: String::new(),
            seccomp: false,
            ..perfect()
        };
        let fails: Vec<_> =
            findings(&bare).into_iter().filter(|f| f.level == Level::Prevents).map(|f| f.what).collect();
        assert_eq!(fails, ["root", "kernel", "overlay", "cgroup v2", "seccomp"]);
    }

    #[test]
    fn a_root_without_its_capabilities_cannot() {
        let seen = Observed { capabilities: CAP_SYS_ADMIN, ..perfect() };
        let fails: Vec<_> = findings(&seen).into_iter().filter(|f| f.level == Level::Prevents).collect();
        assert_eq!(fails.iter().map(|f| f.what).collect::<Vec<_>>(), ["capabilities"]);
    }

    #[test]
    fn missing_controllers_limit_but_do_not_prevent() {
        let seen = Observed { cgroup: Ok(("own mount".into(), vec!["memory".into()])), ..perfect() };
        assert_eq!(worst(&seen), Level::Limits);
        let missing = findings(&seen).iter().filter(|f| f.what == "cgroup controller").count();
        assert_eq!(missing, CONTROLLERS.len() - 1);
    }

    #[test]
    fn kernel_releases() {
        assert_eq!(kernel_version("6.18.44-fc"), Some((6, 18)));
        assert_eq!(kernel_version("5.15.0-1-amd64"), Some((5, 15)));
        assert_eq!(kernel_version("strange"), None);
    }
}
