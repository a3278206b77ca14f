//! cgroups of pods and containers.
//!
//! Guarantees: every path is beneath the node's own cgroup and has no `..` in it; a limit that this node cannot
//! enforce comes back as a sentence, one that the kernel refuses as an error.
//! Caveat: controllers that the host uses through cgroup v1 are not there.

pub mod values;

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use parking_lot::Mutex;
use sys::Errno;
use sys::cgroup::{Found, Group};

use crate::error::RuntimeError;
use crate::spec::Resources;
use values::Value;

/// Controllers that a Kubernetes node wants.
const WANTED: [(&str, &str); 6] = [
    ("cpu", "processor limits and weights"),
    ("cpuset", "pinning to processors"),
    ("memory", "memory limits and out-of-memory detection"),
    ("pids", "limits of the number of processes"),
    ("io", "disk weights"),
    ("hugetlb", "huge page limits"),
];

/// Controllers that are used where they are, and not missed where they are not: few machines have their devices.
const WELCOME: [&str; 2] = ["rdma", "misc"];

const KILL_TIME: Duration = Duration::from_secs(10);

/// The node's part of the cgroup2 file system.
#[derive(Debug)]
pub struct Cgroups {
    root: Group,
    /// Where it is mounted.
    pub mounted: Option<PathBuf>,
    /// The node's own cgroup with a leading `/`, or empty.
    base: String,
    /// Controllers that pods can use.
    pub controllers: Vec<String>,
    /// Groups whose children have the controllers already.
    enabled: Mutex<HashSet<String>>,
}

impl Cgroups {
    /// Opens the file system and makes the node's own cgroup.
    pub fn open(parent: &str) -> std::io::Result<Cgroups> {
        let base = clean(parent).ok_or_else(|| std::io::Error::from(std::io::ErrorKind::InvalidInput))?;
        let (root, found) = sys::cgroup::root()?;
        let mounted = match found {
            Found::Mounted(path) => Some(path),
            Found::Detached => None,
        };
        let mut cgroups =
            Cgroups { root, mounted, base, controllers: Vec::new(), enabled: Mutex::new(HashSet::new()) };
        let available = cgroups.root.controllers()?;
        cgroups.controllers = WANTED
            .iter()
            .map(|(name, _)| *name)
            .chain(WELCOME)
            .map(str::to_owned)
            .filter(|name| available.contains(name))
            .collect();
        if cgroups.base.is_empty() {
            cgroups.enable(&cgroups.root, "");
        } else {
            let base = cgroups.make_path(&cgroups.base)?;
            // What could not be enabled on the way is missing below.
            let there = base.controllers()?;
            cgroups.controllers.retain(|name| there.contains(name));
        }
        Ok(cgroups)
    }

    /// Wanted controllers that are not there, each with a sentence.
    pub fn missing(&self) -> Vec<(String, String)> {
        WANTED
            .iter()
            .filter(|(name, _)| !self.controllers.iter().any(|have| have == name))
            .map(|(name, what)| {
                let sentence = format!(
                    "cgroup v2 has no {name} controller here, so {what} are not enforced: boot with \
                     systemd.unified_cgroup_hierarchy=1, or unmount the cgroup v1 hierarchy that uses it"
                );
                ((*name).to_owned(), sentence)
            })
            .collect()
    }

    /// The path of a pod's cgroup from the root of the file system.
    pub fn pod_path(&self, wanted: Option<&str>, id: &str) -> Result<String, RuntimeError> {
        let wanted =
            wanted.filter(|path| !path.is_empty()).map_or_else(|| format!("/pods/{id}"), str::to_owned);
        match clean(&wanted) {
            Some(path) if !path.is_empty() => Ok(format!("{}{path}", self.base)),
            _ => Err(RuntimeError::invalid(format!(
                "cgroup parent {wanted:?} is refused: a path of plain names, such as /kubepods/pod1, is wanted"
            ))),
        }
    }

    /// Makes a pod's cgroup ready for containers, unless its owner did. Tells what is not enforced.
    pub fn make_pod(&self, path: &str, resources: &Resources) -> Result<Vec<String>, RuntimeError> {
        let step = || RuntimeError::io(format!("make cgroup {path}"));
        let existed = self.open_path(path).is_ok();
        let group = self.make_path(path).map_err(|errno| step()(errno.into()))?;
        if existed { Ok(Vec::new()) } else { self.apply(&group, resources) }
    }

    /// Makes a container's cgroup and sets its limits.
    pub fn make_container(
        &self,
        path: &str,
        resources: &Resources,
    ) -> Result<(Group, Vec<String>), RuntimeError> {
        let group = self
            .root
            .create(relative(path))
            .map_err(|errno| RuntimeError::io(format!("make cgroup {path}"))(errno.into()))?;
        let unenforced = self.apply(&group, resources)?;
        Ok((group, unenforced))
    }

    /// Writes limits.
    pub fn apply(&self, group: &Group, resources: &Resources) -> Result<Vec<String>, RuntimeError> {
        let mut unenforced = Vec::new();
        for value in values::values(resources)? {
            if !self.controllers.iter().any(|have| have == value.controller()) {
                // The second file of a pair says the same again.
                if !value.file.ends_with(".rsvd.max") {
                    unenforced.push(sentence(&value));
                }
                continue;
            }
            match group.write(&value.file, &value.value) {
                Ok(()) => {}
                Err(Errno::NOENT) if value.file.ends_with(".rsvd.max") => {}
                Err(Errno::NOENT) => unenforced.push(sentence(&value)),
                Err(errno) => {
                    let step = format!("write {:?} to cgroup file {}", value.value, value.file);
                    return Err(RuntimeError::io(step)(errno.into()));
                }
            }
        }
        Ok(unenforced)
    }

    /// Opens a cgroup by its path from the root.
    pub fn open_path(&self, path: &str) -> sys::Result<Group> {
        self.root.open(relative(path))
    }

    /// Kills what is in a cgroup and removes it with its children; a missing one is fine. Blocks.
    pub fn destroy(&self, path: &str) -> Result<(), RuntimeError> {
        self.enabled.lock().remove(path);
        self.root
            .destroy(relative(path), KILL_TIME)
            .map_err(|errno| RuntimeError::io(format!("remove cgroup {path}"))(errno.into()))
    }

    /// The keeper's own cgroup, so that it does not end with the daemon's; none when the node has no cgroup of its own.
    pub fn make_keeper(&self) -> sys::Result<Option<Group>> {
        if self.base.is_empty() {
            Ok(None)
        } else {
            self.root.create(relative(&format!("{}/keeper", self.base))).map(Some)
        }
    }

    /// Kills and removes everything beneath the node's own cgroup but the keeper. Blocks.
    pub fn destroy_pods(&self) -> Result<(), RuntimeError> {
        if self.base.is_empty() {
            return Ok(());
        }
        for child in self.children(&self.base).into_iter().filter(|child| child != "keeper") {
            self.destroy(&format!("{}/{child}", self.base))?;
        }
        Ok(())
    }

    /// Kills and removes everything beneath the node's own cgroup, and itself. Blocks.
    pub fn destroy_all(&self) -> Result<(), RuntimeError> {
        // Without a cgroup of our own we do not know what is ours.
        if self.base.is_empty() { Ok(()) } else { self.destroy(&self.base) }
    }

    /// Children of a cgroup that look like containers or pods of ours.
    pub fn children(&self, path: &str) -> Vec<String> {
        self.open_path(path).and_then(|group| group.children()).unwrap_or_default()
    }

    /// The node's own cgroup.
    pub fn base(&self) -> &str {
        &self.base
    }

    /// Makes each group on a path and lets its children use the controllers.
    fn make_path(&self, path: &str) -> sys::Result<Group> {
        self.enable(&self.root, "");
        let mut at = String::new();
        let mut group = self.root.try_clone()?;
        for part in relative(path).split('/') {
            at.push('/');
            at.push_str(part);
            group = group.create(part)?;
            self.enable(&group, &at);
        }
        Ok(group)
    }

    fn enable(&self, group: &Group, path: &str) {
        if self.controllers.is_empty() || self.enabled.lock().contains(path) {
            return;
        }
        let all: String = self.controllers.iter().map(|name| format!("+{name} ")).collect();
        if group.write("cgroup.subtree_control", all.trim_end()).is_err() {
            let names: Vec<&str> = self.controllers.iter().map(String::as_str).collect();
            for (name, errno) in group.enable(&names) {
                tracing::warn!(cgroup = path, controller = name, error = %errno, "enable a cgroup controller");
            }
        }
        self.enabled.lock().insert(path.to_owned());
    }
}

fn sentence(value: &Value) -> String {
    format!(
        "{} = {} is not enforced: the {} controller is not there",
        value.file,
        value.value,
        value.controller()
    )
}

fn relative(path: &str) -> &str {
    path.trim_start_matches('/')
}

/// A path with one leading slash and no empty part; nothing for one that could lead elsewhere.
fn clean(path: &str) -> Option<String> {
    let mut out = String::new();
    for part in path.split('/').filter(|part| !part.is_empty()) {
        if part == "."
            || part == ".."
            || part.bytes().any(|b| b == 0 || b == b'\n')
            || part.starts_with("cgroup.")
        {
            return None;
        }
        out.push('/');
        out.push_str(part);
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::clean;

    #[test]
    fn paths_stay_beneath() {
        assert_eq!(clean("orlop").as_deref(), Some("/orlop"));
        assert_eq!(clean("//kubepods//pod1/").as_deref(), Some("/kubepods/pod1"));
        assert_eq!(clean("").as_deref(), Some(""));
        assert_eq!(clean("/a/../../b"), None);
        assert_eq!(clean("/a/cgroup.procs"), None);
    }
}
