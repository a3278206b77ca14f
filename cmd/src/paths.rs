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

    /// Makes the directories of data and of the run, and shuts them for everybody but root: the store with its
    /// secrets, layers with set-uid programs, and the sandboxes' namespaces lie below them.
    ///
    /// # Errors
    /// One can't be made, or isn't ours.
    pub fn shut(&self) -> std::io::Result<()> {
        use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
        for dir in [&self.data, &self.run] {
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            // An earlier version, or an administrator, may have made it.
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))?;
        }
        Ok(())
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
    fn only_root_enters() {
        use std::os::unix::fs::PermissionsExt;
        let root = std::env::temp_dir().join(format!("orlop-shut-{}", std::process::id()));
        let paths = Paths::new(Some(&root.join("deep")));
        std::fs::create_dir_all(&paths.data).unwrap();
        paths.shut().unwrap();
        for dir in [&paths.data, &paths.run] {
            assert_eq!(dir.metadata().unwrap().permissions().mode() & 0o777, 0o700, "{dir:?}");
        }
        std::fs::remove_dir_all(root).unwrap();
    }

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
