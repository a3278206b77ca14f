//! Differences that are right, with the reason.

use crate::handlers::LIBCONTAINER;

/// One explanation.
struct Difference {
    /// The runtimes that differ from us; empty: all.
    by: &'static [&'static str],
    /// Beginnings of the lines, without the side.
    lines: &'static [&'static str],
    /// Part of the row's name; empty: all rows.
    row: &'static str,
    /// Why it is right.
    why: &'static str,
}

const DIFFERENCES: &[Difference] = &[
    Difference {
        by: &[],
        lines: &[
            "mounts: /proc/acpi ",
            "mounts: /sys/firmware ",
            "mounts: /proc/scsi ",
            "mounts: /proc/asound ",
            "mounts: /srv ",
        ],
        row: "",
        why: "a masked directory is an empty read-only tmpfs everywhere; ours also forbids devices, programs and set-user-id",
    },
    Difference {
        by: &[],
        lines: &[
            "mounts: /proc/interrupts ",
            "mounts: /proc/keys ",
            "mounts: /proc/timer_list ",
            "mounts: /proc/kcore ",
            "mounts: /proc/sched_debug ",
            "mounts: /proc/latency_stats ",
            "mounts: /etc/group ",
        ],
        row: "",
        why: "a masked file is the null device: ours is the container's own, read-only; runc's is writable, crun's the node's",
    },
    Difference {
        by: &["crun"],
        lines: &[
            "mounts: /proc/bus ",
            "mounts: /proc/fs ",
            "mounts: /proc/irq ",
            "mounts: /proc/sys ",
            "mounts: /proc/sysrq-trigger ",
            "mounts: /tmp ",
        ],
        row: "",
        why: "crun's read-only paths lose nosuid, nodev and noexec of the mount below; ours keep them",
    },
    Difference {
        by: &["crun"],
        lines: &["mounts: /sys/fs/cgroup "],
        row: "",
        why: "crun names the source of the cgroup mount after its type",
    },
    Difference {
        by: &["runc"],
        lines: &["mounts: /sys nodev,noexec,nosuid,relatime,ro sysfs sysfs "],
        row: "",
        why: "runc makes the file system itself read-only beside the mount",
    },
    Difference {
        by: &["runc", LIBCONTAINER],
        lines: &["devices: /dev/core "],
        row: "",
        why: "runc and libcontainer leave out the link to /proc/kcore where the node has none",
    },
    Difference {
        by: &["crun"],
        lines: &["devices: /dev/null character special file 1:3 666 "],
        row: "",
        why: "crun gives the null device that is standard input to the user; ours gives pipes and terminals only",
    },
    Difference {
        by: &["crun"],
        lines: &["mounts: /dev/console "],
        row: "a terminal",
        why: "crun's console loses nosuid and noexec of the devpts that it comes from; ours keeps them",
    },
    Difference {
        by: &[LIBCONTAINER],
        lines: &["devices: /dev/cpu", "devices: /dev/net ", "devices: /dev/deep "],
        row: "",
        why: "libcontainer lets everybody write to the directories that it makes for devices",
    },
    Difference {
        by: &[LIBCONTAINER],
        lines: &["masked: /proc/keys file"],
        row: "privileged",
        why: "libcontainer gives a container no session keyring of its own, as the others do",
    },
    Difference {
        by: &[LIBCONTAINER],
        lines: &["mounts: /tmp "],
        row: "other paths read-only",
        why: "libcontainer's read-only paths also forbid devices, programs and set-user-id; ours keep what was",
    },
    Difference {
        by: &[LIBCONTAINER],
        lines: &["mounts: /dev/shm "],
        row: "both ways",
        why: "libcontainer's root is shared already when it mounts below it; the volume is shared in both",
    },
    Difference {
        by: &["runc"],
        lines: &["mounts: / "],
        row: "both ways",
        why: "runc's root is no shared mount when what it got was private; the volume is shared in both",
    },
];

/// The reason of a difference: `-` is seen by our containers only, `+` by the other runtime's only.
pub fn why(row: &str, by: &str, side: char, line: &str) -> Option<&'static str> {
    let text = format!("{side} {line}");
    let fits = |one: &&Difference| {
        (one.by.is_empty() || one.by.contains(&by))
            && row.contains(one.row)
            && one.lines.iter().any(|start| text.starts_with(start) || line.starts_with(start))
    };
    DIFFERENCES.iter().find(fits).map(|one| one.why)
}
