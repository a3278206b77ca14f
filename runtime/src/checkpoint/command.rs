//! What CRIU is told about a container: which of its mounts and namespaces come from outside. Pure.
//!
//! The names are those by which OCI runtimes give the same things back when they restore: a mount by its place, what
//! hides a file by `/dev/null`, the pod's namespaces by `extRootNetNS` and `extRootPidNS`.
//!
//! Guarantees: what another container or the node has mounted too is not dumped.

use std::collections::HashSet;
use std::path::Path;

use sys::mountinfo::MountEntry;

/// File systems that CRIU makes anew.
const REMADE: [&str; 4] = ["devpts", "mqueue", "proc", "sysfs"];

/// What is known about the container.
#[derive(Debug)]
pub struct Seen<'a> {
    /// Its first process.
    pub pid: u32,
    /// Its mounts.
    pub mounts: &'a [MountEntry],
    /// The node's mounts.
    pub node: &'a [MountEntry],
    /// Inode of its network namespace, if that is the pod's.
    pub net: Option<u64>,
    /// Inode of its process id namespace, if that is not its own.
    pub pids: Option<u64>,
}

/// Arguments of `criu dump`.
///
/// # Errors
/// A sentence: a mount's place can't be told to CRIU.
pub fn arguments(seen: &Seen<'_>, images: &Path, work: &Path) -> Result<Vec<String>, String> {
    let mut all = vec![
        "dump".to_owned(),
        format!("--tree={}", seen.pid),
        format!("--images-dir={}", images.display()),
        format!("--work-dir={}", work.display()),
        "--log-file=dump.log".to_owned(),
        "-v4".to_owned(),
        "--leave-running".to_owned(),
        // The node makes and removes cgroups by itself.
        "--manage-cgroups=ignore".to_owned(),
        "--file-locks".to_owned(),
        // The other way is iptables, which a node with nftables needn't have.
        "--network-lock=nftables".to_owned(),
        "--enable-external-sharing".to_owned(),
        "--enable-external-masters".to_owned(),
    ];
    for (place, name) in external(seen)? {
        all.extend(["--external".to_owned(), format!("mnt[{place}]:{name}")]);
    }
    for (kind, inode, name) in [("net", seen.net, "extRootNetNS"), ("pid", seen.pids, "extRootPidNS")] {
        if let Some(inode) = inode {
            all.extend(["--external".to_owned(), format!("{kind}[{inode}]:{name}")]);
        }
    }
    Ok(all)
}

/// Mounts that come from outside: their places, and what they are called in the images.
fn external(seen: &Seen<'_>) -> Result<Vec<(String, String)>, String> {
    let node: HashSet<&str> = seen.node.iter().map(|mount| mount.device.as_str()).collect();
    // Devices of which the container has the whole: parts of them are found again inside.
    let own: HashSet<&str> = seen
        .mounts
        .iter()
        .filter(|mount| mount.root == Path::new("/") && !node.contains(mount.device.as_str()))
        .map(|mount| mount.device.as_str())
        .collect();
    let mut all = Vec::new();
    for mount in seen.mounts.iter().filter(|mount| mount.target != Path::new("/")) {
        let remade = REMADE.contains(&mount.fstype.as_str());
        let own_tmpfs = mount.fstype == "tmpfs" && own.contains(mount.device.as_str());
        let null = own_tmpfs && mount.root == Path::new("/null");
        if !null && (own_tmpfs || (remade && own.contains(mount.device.as_str()))) {
            continue;
        }
        let place =
            mount.target.to_str().filter(|place| !place.contains([']', ':', '\u{fffd}'])).ok_or_else(
                || {
                    format!(
                        "the mount at {:?} can't be named to CRIU: use a path without ']' and ':'",
                        mount.target
                    )
                },
            )?;
        let name = if null { "/dev/null" } else { place };
        all.push((place.to_owned(), name.to_owned()));
    }
    Ok(all)
}

/// The cause in a log of CRIU: its first error, which the others follow from. The probes that it makes before may fail.
pub fn cause(log: &str) -> Option<String> {
    let errors = log.lines().filter(|line| line.contains("Error (") && !is_probe(line));
    let first =
        errors.map(|line| line.split_once("): ").map_or(line, |(_, text)| text).trim().to_owned()).next();
    first.filter(|text| !text.is_empty()).map(|text| text.chars().take(500).collect())
}

fn is_probe(line: &str) -> bool {
    line.contains("(criu/tun.c") || line.ends_with("exited, status=1")
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTAINER: &str = "\
45 52 0:33 / / rw,relatime - overlay overlay rw
53 45 0:35 / /proc rw - proc proc rw
54 45 0:36 / /dev rw - tmpfs tmpfs rw
55 54 0:37 / /dev/pts rw - devpts devpts rw
56 54 0:31 / /dev/mqueue rw - mqueue mqueue rw
57 45 0:38 / /sys ro - sysfs sysfs rw
58 57 0:22 /pods/p/c /sys/fs/cgroup ro - cgroup2 cgroup rw
46 54 0:32 / /dev/shm rw - tmpfs shm rw
47 45 254:0 /data/vol /vol rw - ext4 /dev/vda rw
48 45 0:50 / /secret ro - tmpfs tmpfs rw
59 53 0:35 /bus /proc/bus ro - proc proc rw
64 53 0:39 / /proc/acpi ro - tmpfs none rw
65 53 0:36 /null /proc/kcore ro - tmpfs tmpfs rw
69 57 0:39 / /sys/firmware ro - tmpfs none rw
";
    const NODE: &str = "\
1 0 254:0 / / rw - ext4 /dev/vda rw
2 1 0:22 / /sys/fs/cgroup rw - cgroup2 cgroup rw
3 1 0:32 / /run/orlop/ns/p/shm rw - tmpfs shm rw
4 1 0:50 / /var/lib/orlop/kubelet/pods/u/volumes/s rw - tmpfs tmpfs rw
";

    fn told(container: &str, net: Option<u64>) -> Result<Vec<String>, String> {
        let (mounts, node) = (sys::mountinfo::parse(container), sys::mountinfo::parse(NODE));
        let seen = Seen { pid: 7, mounts: &mounts, node: &node, net, pids: None };
        let all = arguments(&seen, Path::new("/i"), Path::new("/w"))?;
        Ok(all.windows(2).filter(|pair| pair[0] == "--external").map(|pair| pair[1].clone()).collect())
    }

    #[test]
    fn what_comes_from_outside_is_named() {
        let external = told(CONTAINER, Some(4_026_532_250)).expect("can be told");
        assert_eq!(
            external,
            [
                "mnt[/sys/fs/cgroup]:/sys/fs/cgroup",
                "mnt[/dev/shm]:/dev/shm",
                "mnt[/vol]:/vol",
                "mnt[/secret]:/secret",
                "mnt[/proc/kcore]:/dev/null",
                "net[4026532250]:extRootNetNS",
            ]
        );
    }

    #[test]
    fn a_place_that_cannot_be_told_is_refused() {
        let error = told("47 45 254:0 /v /a]b rw - ext4 /dev/vda rw\n", None).expect_err("refused");
        assert!(error.contains("/a]b"), "{error}");
    }

    #[test]
    fn the_cause_is_the_first_error_that_is_none_of_a_probe() {
        let log = "\
(00.730616) Error (criu/util.c:642): exited, status=1
(01.097989) Error (criu/tun.c:85): tun: Unable to create tun: No such file or directory
(01.402496) Warn  (criu/x.c:1): never mind
(01.426577) Error (criu/sk-inet.c:1): inet: Connected TCP socket, consider using --tcp-established option.
(01.503787) Error (criu/cr-dump.c:2053): Dumping FAILED.
";
        let cause = cause(log).expect("a cause");
        assert_eq!(cause, "inet: Connected TCP socket, consider using --tcp-established option.");
        assert_eq!(super::cause("all is well"), None);
    }
}
