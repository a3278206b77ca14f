//! Which kernel settings a pod may change.
//!
//! Guarantees: a key that is not the pod's own (its namespace is the node's, or there is none) is refused;
//! a key is letters, digits, `_`, `-` and its separators only, so it names one file beneath `/proc/sys`.

use std::collections::BTreeMap;

use crate::error::RuntimeError;
use crate::spec::{NamespaceMode, Namespaces};

/// Settings of an ipc namespace.
const IPC: [&str; 7] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
];

/// Checks all settings of a pod; gives them as paths below `/proc/sys` with their values.
pub fn check(
    sysctls: &BTreeMap<String, String>,
    namespaces: &Namespaces,
) -> Result<Vec<(String, String)>, RuntimeError> {
    sysctls.iter().map(|(key, value)| one(key, value, namespaces)).collect()
}

fn one(key: &str, value: &str, namespaces: &Namespaces) -> Result<(String, String), RuntimeError> {
    let refuse = |why: String| Err(RuntimeError::invalid(format!("sysctl {key:?} is refused: {why}")));
    let path = path(key);
    let parts_good = path.split('/').all(|part| {
        !part.is_empty()
            && part != "."
            && part != ".."
            && part.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
    });
    if !parts_good {
        return refuse("a key is words of letters, digits, '_' and '-' with dots between them".into());
    }
    if value.bytes().any(|b| b == 0 || b == b'\n') || value.len() > 4095 {
        return refuse("its value is longer than a page or has a line break in it".into());
    }
    let of_pod = |mode: &NamespaceMode| *mode == NamespaceMode::Pod;
    let (good, namespace) = if path.starts_with("net/") {
        (of_pod(&namespaces.net), "network")
    } else if path.starts_with("fs/mqueue/")
        || IPC.contains(&path.as_str())
        || path == "kernel/shm_rmid_forced"
    {
        (of_pod(&namespaces.ipc), "ipc")
    } else if path == "kernel/domainname" {
        (of_pod(&namespaces.uts), "uts")
    } else if path == "kernel/hostname" {
        return refuse("the host name is set by the pod's hostname".into());
    } else {
        return refuse(
            "it is not namespaced, so it would change the whole node: set it on the node itself".into(),
        );
    };
    if good {
        Ok((path, value.to_owned()))
    } else {
        refuse(format!("the pod uses the node's {namespace} namespace, so it would change the whole node"))
    }
}

/// A key as a path: dots become slashes, unless it was written with slashes already
/// (then its dots are names of interfaces and the like).
fn path(key: &str) -> String {
    match key.find(['.', '/']) {
        Some(at) if key.as_bytes()[at] == b'/' => key.to_owned(),
        _ => key
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::{Expect, expect};

    fn check_one(key: &str, value: &str, host_net: bool, want: Expect) {
        let mut namespaces = Namespaces::default();
        if host_net {
            namespaces.net = NamespaceMode::Node;
        }
        want.assert_eq(&match one(key, value, &namespaces) {
            Ok((path, value)) => format!("{path} = {value}"),
            Err(error) => error.to_string(),
        });
    }

    #[test]
    fn only_settings_of_the_pod_itself() {
        check_one("net.core.somaxconn", "1024", false, expect!["net/core/somaxconn = 1024"]);
        check_one(
            "net.ipv4.conf.eth0/1.rp_filter",
            "1",
            false,
            expect!["net/ipv4/conf/eth0.1/rp_filter = 1"],
        );
        check_one("net/ipv4/ip_forward", "1", false, expect!["net/ipv4/ip_forward = 1"]);
        check_one("kernel.shm_rmid_forced", "1", false, expect!["kernel/shm_rmid_forced = 1"]);
        check_one(
            "net.core.somaxconn",
            "1",
            true,
            expect![[
                r#"sysctl "net.core.somaxconn" is refused: the pod uses the node's network namespace, so it would change the whole node"#
            ]],
        );
        check_one(
            "kernel.core_pattern",
            "|/x",
            false,
            expect![[
                r#"sysctl "kernel.core_pattern" is refused: it is not namespaced, so it would change the whole node: set it on the node itself"#
            ]],
        );
        check_one(
            "vm.swappiness",
            "1",
            false,
            expect![[
                r#"sysctl "vm.swappiness" is refused: it is not namespaced, so it would change the whole node: set it on the node itself"#
            ]],
        );
        check_one(
            "net...kernel.core_pattern",
            "1",
            false,
            expect![[
                r#"sysctl "net...kernel.core_pattern" is refused: a key is words of letters, digits, '_' and '-' with dots between them"#
            ]],
        );
        check_one(
            "net/../kernel/core_pattern",
            "1",
            false,
            expect![[
                r#"sysctl "net/../kernel/core_pattern" is refused: a key is words of letters, digits, '_' and '-' with dots between them"#
            ]],
        );
        check_one(
            "net.core.somaxconn",
            "1\nkernel.x=2",
            false,
            expect![[
                r#"sysctl "net.core.somaxconn" is refused: its value is longer than a page or has a line break in it"#
            ]],
        );
        check_one(
            "kernel.shm_rmid_forced=1+kernel.core_pattern",
            "",
            false,
            expect![[
                r#"sysctl "kernel.shm_rmid_forced=1+kernel.core_pattern" is refused: a key is words of letters, digits, '_' and '-' with dots between them"#
            ]],
        );
    }
}
