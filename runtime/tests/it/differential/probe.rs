//! What a container sees of itself, as lines that can be compared.

use std::collections::BTreeSet;
use std::path::Path;

/// Runs in the container (busybox' shell is its static program) and prints one section after the other.
pub const SCRIPT: &str = r#"
p=/proc/$$
section() { echo "== $1"; }
section mounts; cat $p/mountinfo
section status; grep -E '^(Umask|Uid|Gid|Groups|NSpid|SigBlk|SigIgn|SigCgt|Cap...|NoNewPrivs|Seccomp|Seccomp_filters|Cpus_allowed_list|Mems_allowed_list|CoreDumping|Speculation.*):' $p/status
section limits; cat $p/limits
section namespaces; for n in cgroup ipc mnt net pid uts user time; do echo "$n $(readlink $p/ns/$n)"; done
section devices; for d in $(find /dev -xdev 2>/dev/null | sort); do stat -c '%n %F %t:%T %a %u:%g %N' "$d"; done
section environment; tr '\0' '\n' < $p/environ
section arguments; tr '\0' '\n' < $p/cmdline | head -2
section cgroup; cat $p/cgroup; ls /sys/fs/cgroup 2>&1 | sort | head -60
section descriptors; for f in $p/fd/*; do echo "${f##*/} $(readlink $f)"; done
section place; pwd; readlink $p/cwd; readlink $p/root; hostname; id; umask
section process; cat $p/oom_score_adj; awk '{print "session", ($6==$1), "group", ($5==$1), "tty", ($7!=0), "nice", $19}' $p/stat; cat $p/personality 2>/dev/null; cat $p/loginuid 2>/dev/null; cat $p/setgroups 2>/dev/null; cat $p/uid_map
section files; stat -c '%n %F %a %u:%g' / /proc /sys /dev /dev/shm /dev/pts /dev/mqueue /tmp /work /vol /vol/file /vol/sub /tmpfs /image /new/deep /dev/console 2>&1 | sed 's/^stat: can.t stat .\([^:]*\)..*/\1 missing/'
section writable; for d in / /proc/sys/kernel/domainname /sys /sys/fs/cgroup /dev /dev/shm /tmp /vol /vol/sub /tmpfs /image /proc/sysrq-trigger /proc/irq /proc/bus; do if [ -d $d ]; then if touch $d/.probe 2>/dev/null; then rm -f $d/.probe; echo "$d yes"; else echo "$d no"; fi; elif [ -e $d ]; then if (: >> $d) 2>/dev/null; then echo "$d yes"; else echo "$d no"; fi; fi; done
section masked; for f in /proc/kcore /proc/keys /proc/timer_list /proc/acpi /proc/scsi /proc/interrupts /sys/firmware /proc/asound /proc/latency_stats /proc/sched_debug /sys/devices/virtual/powercap /etc/group; do if [ -d $f ]; then echo "$f dir $(ls $f 2>/dev/null | wc -l)"; elif [ -e $f ]; then echo "$f file $(head -c 10 $f 2>/dev/null | wc -c)"; fi; done
section kernel; for s in net/ipv4/ip_default_ttl net/ipv4/ping_group_range kernel/msgmax kernel/shm_rmid_forced fs/mqueue/msg_max; do echo "$s $(cat /proc/sys/$s 2>&1)"; done
section calls; unshare -U true 2>/dev/null && echo "unshare yes" || echo "unshare no"; mknod /tmp/.null c 1 3 2>/dev/null && echo "mknod yes" || echo "mknod no"; (: < /tmp/.null) 2>/dev/null && echo "null opens" || echo "null refused"; rm -f /tmp/.null; mknod /tmp/.kmsg c 1 11 2>/dev/null; (head -c 0 /tmp/.kmsg) 2>/dev/null && echo "kmsg opens" || echo "kmsg refused"; rm -f /tmp/.kmsg; (: > /dev/null) 2>/dev/null && echo "dev null opens"; (: < /dev/tty) 2>/dev/null && echo "tty opens" || echo "tty refused"; (: > /dev/stdout) 2>/dev/null && echo "stdout opens" || echo "stdout refused"; chroot / true 2>/dev/null && echo "chroot yes" || echo "chroot no"; hostname -F /etc/hostname-probe 2>/dev/null && echo "sethostname yes" || echo "sethostname no"; set -- /proc/[0-9]*; [ $# -gt 9 ] && echo "many processes" || echo "processes $#"; cat /vol/file 2>/dev/null; cat /image/passwd 2>/dev/null | head -1
section end
"#;

/// What is different in every container and is put aside.
pub struct Names<'a> {
    /// The container.
    pub id: &'a str,
    /// Its sandbox.
    pub sandbox: &'a str,
    /// The node's directory.
    pub dir: &'a Path,
}

/// The lines `section: text` of a probe's output, made comparable.
pub fn view(output: &str, names: &Names<'_>) -> BTreeSet<String> {
    let mut section = "";
    let mut lines = BTreeSet::new();
    for line in output.lines().map(|line| line.trim_end_matches('\r')) {
        if let Some(name) = line.strip_prefix("== ") {
            section = name;
            continue;
        }
        let line = match section {
            "mounts" => mount(line, names),
            "namespaces" => namespace(line, names),
            // Keys and interrupts come and go.
            "masked" => Some(
                line.rsplit_once(' ').map_or(line, |(file, n)| if n == "0" { line } else { file }).to_owned(),
            ),
            // A number that the node gave.
            "status" if line.starts_with("NSpid:\t") && line != "NSpid:\t1" => Some("NSpid: N".to_owned()),
            "descriptors" => Some(numberless(line)),
            _ => Some(line.split_whitespace().collect::<Vec<_>>().join(" ")),
        };
        if let Some(line) = line {
            let line = line.replace(names.id, "ID").replace(names.sandbox, "SANDBOX");
            lines.insert(format!("{section}: {line}"));
        }
    }
    if section != "end" {
        lines.insert(format!("broke off after {section:?}"));
    }
    lines
}

/// A mount without what no two mounts have in common: target, options, kind, source, propagation.
fn mount(line: &str, names: &Names<'_>) -> Option<String> {
    let (left, right) = line.split_once(" - ")?;
    let left: Vec<&str> = left.split(' ').collect();
    let right: Vec<&str> = right.split(' ').collect();
    let (root, target, options) = (*left.get(3)?, *left.get(4)?, *left.get(5)?);
    let tags: Vec<String> =
        left.iter().skip(6).map(|tag| tag.split(':').next().unwrap_or(tag).to_owned()).collect();
    let kind = *right.first()?;
    // Where the layers are is the launcher's own matter; what they hold is seen by the probe.
    let (source, more) = match kind {
        "overlay" => (
            "",
            sorted(right.get(2)?)
                .split(',')
                .filter(|o| matches!(*o, "ro" | "rw"))
                .collect::<Vec<_>>()
                .join(","),
        ),
        _ => (*right.get(1)?, sorted(right.get(2)?)),
    };
    let dir = names.dir.to_string_lossy();
    // Seen from the root of the file system that the directory is on.
    let root = match root.find(dir.trim_start_matches("/tmp")) {
        Some(at) => format!("DIR{}", &root[at + dir.trim_start_matches("/tmp").len()..]),
        None => numberless(root),
    };
    Some(format!("{target} {} {kind} {source} {more} root={root} {}", sorted(options), tags.join(",")))
}

fn sorted(options: &str) -> String {
    let mut all: Vec<&str> = options.split(',').collect();
    all.sort_unstable();
    all.join(",")
}

/// Whose namespace it is.
fn namespace(line: &str, names: &Names<'_>) -> Option<String> {
    use std::os::unix::fs::MetadataExt;
    let (kind, link) = line.split_once(' ')?;
    let number: u64 = link.split(['[', ']']).nth(1)?.parse().ok()?;
    let inode = |path: std::path::PathBuf| std::fs::metadata(path).ok().map(|data| data.ino());
    let pinned = names.dir.join("run/ns").join(names.sandbox).join(kind);
    let whose = if inode(pinned) == Some(number) {
        "the sandbox's"
    } else if inode(format!("/proc/self/ns/{kind}").into()) == Some(number) {
        "the node's"
    } else {
        "another"
    };
    Some(format!("{kind} {whose}"))
}

/// Numbers in brackets name pipes and sockets.
fn numberless(text: &str) -> String {
    let mut out = String::new();
    let mut inside = false;
    for c in text.chars() {
        match c {
            '[' => {
                inside = true;
                out.push_str("[N");
            }
            ']' => {
                inside = false;
                out.push(c);
            }
            _ if inside => {}
            _ => out.push(c),
        }
    }
    out
}
