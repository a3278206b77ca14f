//! Where one node keeps its things.

use std::path::{Path, PathBuf};

/// The directories and sockets of one node. Without `--root` they are the usual ones; with it, all
/// of them lie below that directory, so that several nodes can run side by side.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Images, writable layers, volumes, the store: outlives a reboot.
    pub data: PathBuf,
    /// Sockets, pinned namespaces, records: gone after a reboot.
    pub run: PathBuf,
    /// Configuration, certificates, kubeconfigs, static pods.
    pub etc: PathBuf,
    /// Container logs.
    pub log: PathBuf,
}

impl Paths {
    /// The usual places, or all below `root`.
    pub fn new(root: Option<&Path>) -> Paths {
        match root {
            None => Paths {
                data: "/var/lib/orlop".into(),
                run: "/run/orlop".into(),
                etc: "/etc/orlop".into(),
                log: "/var/log".into(),
            },
            Some(root) => Paths {
                data: root.join("data"),
                run: root.join("run"),
                etc: root.join("etc"),
                log: root.join("log"),
            },
        }
    }

    /// The CRI socket.
    pub fn cri_socket(&self) -> PathBuf {
        self.run.join("cri.sock")
    }

    /// The socket on which the daemon answers `orlop image …`.
    pub fn admin_socket(&self) -> PathBuf {
        self.run.join("admin.sock")
    }

    /// The administrator's kubeconfig.
    pub fn admin_kubeconfig(&self) -> PathBuf {
        self.etc.join("admin.kubeconfig")
    }

    /// The configuration file that is read when no other is named.
    pub fn config_file(&self) -> PathBuf {
        self.etc.join("config.yaml")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_moves_everything() {
        let usual = Paths::new(None);
        assert_eq!(usual.cri_socket(), Path::new("/run/orlop/cri.sock"));
        assert_eq!(usual.admin_kubeconfig(), Path::new("/etc/orlop/admin.kubeconfig"));
        let moved = Paths::new(Some(Path::new("/x")));
        for path in [&moved.data, &moved.run, &moved.etc, &moved.log] {
            assert!(path.starts_with("/x"), "{path:?}");
        }
    }
}
