//! Linux capabilities by name and number.
//!
//! Guarantees: an unknown name is an error, never dropped silently.

use crate::error::RuntimeError;
use crate::spec::Capabilities;

/// Names by number, without `CAP_`.
const NAMES: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

/// What containerd gives a container: the fourteen of Docker.
const DEFAULT: [&str; 14] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "FSETID",
    "FOWNER",
    "MKNOD",
    "NET_RAW",
    "SETGID",
    "SETUID",
    "SETFCAP",
    "SETPCAP",
    "NET_BIND_SERVICE",
    "SYS_CHROOT",
    "KILL",
    "AUDIT_WRITE",
];

/// Every capability that has a name here.
pub const ALL: u64 = (1 << NAMES.len()) - 1;

/// Effective and ambient sets of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sets {
    /// Bounding, permitted and effective.
    pub effective: u64,
    /// Kept by users other than root.
    pub ambient: u64,
}

/// The number of a name, with or without `CAP_`, in any case.
fn number(name: &str) -> Result<u64, RuntimeError> {
    let upper = name.to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    NAMES.iter().position(|known| *known == bare).map(|at| 1 << at).ok_or_else(|| {
        RuntimeError::invalid(format!(
            "capability {name:?} is not known: use a name of capabilities(7), such as NET_ADMIN, or ALL"
        ))
    })
}

/// The sets that follow from a wish. `available` is what this node can give at all.
///
/// `ALL` first, then single names; what is both added and dropped is dropped, as in containerd.
pub fn sets(wish: &Capabilities, privileged: bool, available: u64) -> Result<Sets, RuntimeError> {
    let is_all = |name: &String| name.eq_ignore_ascii_case("ALL") || name.eq_ignore_ascii_case("CAP_ALL");
    let mut set = 0;
    for name in DEFAULT {
        set |= number(name)?;
    }
    if privileged {
        set = ALL;
    }
    if wish.add.iter().any(is_all) {
        set = ALL;
    }
    if wish.drop.iter().any(is_all) {
        set = 0;
    }
    for name in wish.add.iter().filter(|name| !is_all(name)) {
        set |= number(name)?;
    }
    for name in wish.drop.iter().filter(|name| !is_all(name)) {
        set &= !number(name)?;
    }
    let mut ambient = 0;
    for name in &wish.add_ambient {
        ambient |= if is_all(name) { ALL } else { number(name)? };
    }
    set |= ambient;
    Ok(Sets { effective: set & available, ambient: ambient & available })
}

/// The bit of a name, if it is known.
pub fn bit_of(name: &str) -> Option<u64> {
    number(name).ok()
}

/// Names (with `CAP_`) of a set, by number.
pub fn names(set: u64) -> impl Iterator<Item = String> {
    NAMES
        .iter()
        .enumerate()
        .filter(move |(at, _)| set & (1 << at) != 0)
        .map(|(_, name)| format!("CAP_{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check(add: &[&str], drop: &[&str], privileged: bool, want: Expect) {
        let strings = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
        let wish = Capabilities { add: strings(add), drop: strings(drop), add_ambient: Vec::new() };
        want.assert_eq(&match sets(&wish, privileged, ALL) {
            Ok(sets) if sets.effective == ALL => "all".to_owned(),
            Ok(sets) => names(sets.effective).collect::<Vec<_>>().join(" ").replace("CAP_", ""),
            Err(error) => error.to_string(),
        });
    }

    #[test]
    fn wishes_change_the_default() {
        check(
            &[],
            &[],
            false,
            expect![
                "CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE NET_RAW SYS_CHROOT MKNOD AUDIT_WRITE SETFCAP"
            ],
        );
        check(&["NET_ADMIN"], &["ALL"], false, expect!["NET_ADMIN"]);
        check(&[], &["all"], false, expect![""]);
        check(&["ALL"], &[], false, expect!["all"]);
        check(
            &["cap_sys_time"],
            &["MKNOD", "CAP_NET_RAW"],
            false,
            expect![
                "CHOWN DAC_OVERRIDE FOWNER FSETID KILL SETGID SETUID SETPCAP NET_BIND_SERVICE SYS_CHROOT SYS_TIME AUDIT_WRITE SETFCAP"
            ],
        );
        check(&[], &[], true, expect!["all"]);
        check(
            &["ROOT"],
            &[],
            false,
            expect![[
                r#"capability "ROOT" is not known: use a name of capabilities(7), such as NET_ADMIN, or ALL"#
            ]],
        );
    }

    #[test]
    fn what_the_node_lacks_is_not_promised() {
        let wish = Capabilities::default();
        let sets = sets(&wish, true, ALL & !(1 << 24)).expect("good names");
        assert_eq!(sets.effective, ALL & !(1 << 24));
    }
}
