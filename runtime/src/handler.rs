//! Runtime handlers: which program makes the containers of a pod.
//!
//! A pod names its handler (Kubernetes: the `handler` of its RuntimeClass). The native one is this runtime's own
//! launcher; the others are programs with the command line that OCI runtimes share, run by the keeper.
//!
//! Guarantees: pure but for nothing; an unknown name is refused with the names that there are.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::RuntimeError;

/// The name of the native handler.
pub const NATIVE: &str = "orlop";

/// What makes the containers of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Handler {
    /// This runtime's own launcher.
    #[default]
    Native,
    /// An OCI runtime.
    Oci(OciRuntime),
    /// libcontainer, in the program `orlop-libcontainer`. Execs are the keeper's: libcontainer gives them no seccomp
    /// filter.
    Libcontainer(OciRuntime),
}

/// An OCI runtime and how it is called.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OciRuntime {
    /// The program, an absolute path.
    pub path: PathBuf,
    /// Where it keeps its state; `None` is a directory of its own below the node's run directory.
    pub root: Option<PathBuf>,
    /// Arguments before the command.
    pub args: Vec<String>,
}

/// The handlers of a node by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Handlers {
    /// All but the native one.
    pub named: BTreeMap<String, Handler>,
    /// The one that a pod gets without a name; empty is the native one.
    pub default: String,
}

impl Handlers {
    /// The handler of a name, the empty one included; and its name.
    ///
    /// # Errors
    /// `Invalid` for a name that the node doesn't have.
    pub fn get<'a>(&'a self, name: &str) -> Result<(&'a str, &'a Handler), RuntimeError> {
        let name = if name.is_empty() { self.default.as_str() } else { name };
        if name.is_empty() || name == NATIVE {
            return Ok((NATIVE, &Handler::Native));
        }
        match self.named.get_key_value(name) {
            Some((name, handler)) => Ok((name, handler)),
            None => Err(RuntimeError::invalid(format!(
                "no runtime for {name:?} is configured: this node has {}; name another, or add it to `runtimes` in the \
                 node's configuration",
                self.names().join(", ")
            ))),
        }
    }

    /// All names, the native one first.
    pub fn names(&self) -> Vec<&str> {
        let others = self.named.keys().map(String::as_str).filter(|name| *name != NATIVE);
        std::iter::once(NATIVE).chain(others).collect()
    }
}

impl Handler {
    /// The OCI runtime behind it, unless it is native.
    pub fn oci(&self) -> Option<&OciRuntime> {
        match self {
            Handler::Native => None,
            Handler::Oci(runtime) | Handler::Libcontainer(runtime) => Some(runtime),
        }
    }

    /// The OCI runtime that runs further processes in its containers, unless the keeper does.
    pub fn execs(&self) -> Option<&OciRuntime> {
        match self {
            Handler::Native | Handler::Libcontainer(_) => None,
            Handler::Oci(runtime) => Some(runtime),
        }
    }
}

/// What a handler can do, as the CRI's `RuntimeHandlerFeatures` has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Features {
    /// Mounts can be read-only with all that is below them.
    pub recursive_read_only_mounts: bool,
    /// Pods can have user namespaces.
    pub user_namespaces: bool,
}

/// Who confines the devices of a container.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Devices {
    /// The runtime, by the rules of the bundle.
    #[default]
    ByRuntime,
    /// We do, with a program on the cgroup that the runtime leaves alone; to the runtime all are allowed.
    ByUs,
}

impl Devices {
    /// Decides by what a runtime's `--version` prints.
    ///
    /// crun loads no program when all devices are allowed, and cannot load one without CAP_SYS_RESOURCE. runc takes
    /// away every program that it finds on the cgroup, so it must have the rules.
    pub fn of(version: &str) -> Devices {
        if version.starts_with("crun version ") { Devices::ByUs } else { Devices::ByRuntime }
    }
}

impl Features {
    /// What an OCI runtime's `features` command says (features.md of the OCI runtime spec).
    pub fn parse(text: &str) -> Option<Features> {
        #[derive(Deserialize, Default)]
        #[serde(rename_all = "camelCase", default)]
        struct Document {
            mount_options: Vec<String>,
        }
        let document: Document = serde_json::from_str(text).ok()?;
        Some(Features {
            recursive_read_only_mounts: document.mount_options.iter().any(|option| option == "rro"),
            // `create_sandbox` refuses them: only the native launcher maps volumes as the pod's users.
            user_namespaces: false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn handlers(default: &str) -> Handlers {
        let crun = Handler::Oci(OciRuntime { path: "/usr/bin/crun".into(), ..OciRuntime::default() });
        Handlers { named: BTreeMap::from([("crun".to_owned(), crun)]), default: default.to_owned() }
    }

    #[test]
    fn names_choose() {
        let plain = handlers("");
        assert_eq!(plain.get("").expect("known"), (NATIVE, &Handler::Native));
        assert_eq!(plain.get("orlop").expect("known").1, &Handler::Native);
        assert!(plain.get("crun").expect("known").1.oci().is_some());
        let error = plain.get("kata").expect_err("unknown").to_string();
        assert!(error.contains("kata") && error.contains("orlop, crun"), "{error}");
        assert_eq!(handlers("crun").get("").expect("known").0, "crun");
    }

    #[test]
    fn only_crun_leaves_devices_to_us() {
        assert_eq!(Devices::of("crun version 1.8.1\ncommit: x\n"), Devices::ByUs);
        assert_eq!(Devices::of("runc version 1.1.5\n"), Devices::ByRuntime);
        assert_eq!(Devices::of("not crun version 1\n"), Devices::ByRuntime);
    }

    #[test]
    fn features_are_read() {
        let text = r#"{"ociVersionMin":"1.0.0","mountOptions":["bind","rro"],"linux":{}}"#;
        assert!(Features::parse(text).expect("a document").recursive_read_only_mounts);
        assert!(!Features::parse("{}").expect("a document").recursive_read_only_mounts);
        assert_eq!(Features::parse("unknown command features"), None);
    }
}
