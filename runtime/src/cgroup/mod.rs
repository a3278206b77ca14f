//! cgroups of pods and containers.
//!
//! Guarantees: every path is beneath the node's own cgroup and has no `..` in it; a limit that this node cannot
//! enforce comes back as a sentence, one that the kernel refuses as an error.
//! Caveat: controllers that the host uses through cgroup v1 are not there.
//!
//! Who makes them is the driver: this process by itself, or systemd when it is asked to (`systemd`). With systemd a
//! pod has a slice, whose limits systemd must know too, and each container a delegated scope, in which a directory is
//! all ours.

mod systemd;
mod unit;
pub mod values;

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use parking_lot::Mutex;
use sys::Errno;
use sys::cgroup::{Found, Group};

use crate::error::{OpenError, RuntimeError};
use crate::options::CgroupDriver;
use crate::spec::Resources;
use systemd::Systemd;
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
    systemd: Option<Systemd>,
}

impl Cgroups {
    /// Opens the file system and makes the node's own cgroup.
    pub fn open(parent: &str, driver: CgroupDriver) -> Result<Cgroups, OpenError> {
        let systemd = match driver {
            CgroupDriver::Cgroupfs => None,
            CgroupDriver::Systemd => Some(Systemd::connect().map_err(|source| {
                let step = "use systemd for cgroups".to_owned();
                OpenError::Io { step, source }
            })?),
        };
        let base = match &systemd {
            Some(_) if !parent.is_empty() => unit::slice_path(&format!("{parent}.slice")),
            _ => clean(parent),
        };
        let opened = base.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::InvalidInput));
        opened.and_then(|base| Cgroups::open_at(base, systemd)).map_err(|source| OpenError::Cgroup { source })
    }

    fn open_at(base: String, systemd: Option<Systemd>) -> std::io::Result<Cgroups> {
        let (root, found) = sys::cgroup::root()?;
        let mounted = match found {
            Found::Mounted(path) => Some(path),
            Found::Detached => None,
        };
        let mut cgroups = Cgroups {
            root,
            mounted,
            base,
            controllers: Vec::new(),
            enabled: Mutex::new(HashSet::new()),
            systemd,
        };
        let available = cgroups.root.controllers()?;
        cgroups.controllers = WANTED
            .iter()
            .map(|(name, _)| *name)
            .chain(WELCOME)
            .map(str::to_owned)
            .filter(|name| available.contains(name))
            .collect();
        if let Some(systemd) = cgroups.systemd.as_ref().filter(|_| !cgroups.base.is_empty()) {
            let unit = cgroups.base.rsplit('/').next().unwrap_or_default();
            if cgroups.open_path(&cgroups.base).is_err() {
                systemd.start_slice(unit, &[])?;
            }
        }
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
        let wanted = wanted.filter(|path| !path.is_empty());
        if self.systemd.is_some() {
            return self.pod_slice(wanted, id);
        }
        let wanted = wanted.map_or_else(|| format!("/pods/{id}"), str::to_owned);
        match clean(&wanted) {
            Some(path) if !path.is_empty() => Ok(format!("{}{path}", self.base)),
            _ => Err(RuntimeError::invalid(format!(
                "cgroup parent {wanted:?} is refused: a path of plain names, such as /kubepods/pod1, is wanted"
            ))),
        }
    }

    /// As [`Cgroups::pod_path`], for systemd. A slice's name alone says where it is, wherever the node's own is.
    fn pod_slice(&self, wanted: Option<&str>, id: &str) -> Result<String, RuntimeError> {
        let name = match wanted {
            Some(wanted) => wanted.to_owned(),
            None => format!("{}-pods-{}.slice", self.stem(), unit::flat(id)),
        };
        unit::slice_path(&name).filter(|path| !path.is_empty()).ok_or_else(|| {
            RuntimeError::invalid(format!(
                "cgroup parent {name:?} is refused: the cgroup driver is systemd, so the name of a slice is wanted, such \
                 as kubepods-burstable-pod1.slice"
            ))
        })
    }

    /// The node's own slice without its ending.
    fn stem(&self) -> &str {
        let unit = self.base.rsplit('/').next().unwrap_or_default();
        unit.strip_suffix(".slice").filter(|stem| !stem.is_empty()).unwrap_or("orlop")
    }

    /// The path of a container's cgroup in its pod's.
    pub fn container_path(&self, pod: &str, id: &str) -> String {
        match self.systemd {
            Some(_) => format!("{pod}/orlop-{id}.scope/{}", unit::INNER),
            None => format!("{pod}/{id}"),
        }
    }

    /// The path of the cgroup of a pod's init.
    pub fn init_path(&self, pod: &str, sandbox: &str) -> String {
        match self.systemd {
            Some(_) => self.container_path(pod, &format!("init-{sandbox}")),
            None => format!("{pod}/init"),
        }
    }

    /// The container or pod that a child of a pod's cgroup, or of the node's own, is named for.
    pub fn name_of<'a>(&self, child: &'a str) -> &'a str {
        match self.systemd {
            Some(_) => unit::name_of_scope(child).unwrap_or_default(),
            None => child,
        }
    }

    /// Whether containers' cgroups are made only when they're started: a scope needs a process.
    pub fn is_late(&self) -> bool {
        self.systemd.is_some()
    }

    /// Makes a pod's cgroup ready for containers, unless its owner did. Tells what is not enforced.
    pub fn make_pod(&self, path: &str, resources: &Resources) -> Result<Vec<String>, RuntimeError> {
        let step = || RuntimeError::io(format!("make cgroup {path}"));
        let existed = self.open_path(path).is_ok();
        if let (Some(systemd), false) = (&self.systemd, existed) {
            let (unit, _) = unit::unit_of(path).unwrap_or_default();
            let limits = unit::properties(&values::values(resources)?);
            systemd.start_slice(unit, &limits).map_err(step())?;
        }
        let group = self.make_path(path).map_err(|errno| step()(errno.into()))?;
        if existed { Ok(Vec::new()) } else { self.apply(&group, resources) }
    }

    /// Makes a container's cgroup and sets its limits.
    pub fn make_container(
        &self,
        path: &str,
        resources: &Resources,
    ) -> Result<(Group, Vec<String>), RuntimeError> {
        let step = || RuntimeError::io(format!("make cgroup {path}"));
        let group = match &self.systemd {
            None => self.root.create(relative(path)).map_err(|errno| step()(errno.into()))?,
            Some(systemd) => self.make_scope(systemd, path).map_err(step())?,
        };
        let unenforced = self.apply(&group, resources)?;
        Ok((group, unenforced))
    }

    /// Starts the scope of a container, with a directory in it that systemd leaves alone. Its placeholder holds the
    /// scope until [`Cgroups::settle`].
    fn make_scope(&self, systemd: &Systemd, path: &str) -> std::io::Result<Group> {
        let (Some((unit, scope)), Some(slice)) = (unit::unit_of(path), unit::slice_of(path)) else {
            return Err(std::io::ErrorKind::InvalidInput.into());
        };
        let pid = systemd.start_scope(unit, slice, "A container of Orlop")?;
        // Controllers reach children only where there are no processes, and the container's must be empty for it.
        let made = self.root.open(relative(scope)).and_then(|scope| {
            scope.create(unit::START)?.write("cgroup.procs", &pid.to_string())?;
            scope.create(unit::INNER)
        });
        match made {
            Ok(inner) => {
                self.make_path(scope)?;
                Ok(inner)
            }
            Err(errno) => {
                systemd.settle(unit);
                Err(errno.into())
            }
        }
    }

    /// Nothing more is wanted to know of a cgroup: its scope may end with its last process, which systemd removes it
    /// after.
    pub fn settle(&self, path: &str) {
        let (Some(systemd), Some((unit, scope))) = (&self.systemd, unit::unit_of(path)) else { return };
        systemd.settle(unit);
        // A placeholder of the daemon before this one is no child of this process.
        match self.open_path(&format!("{scope}/{}", unit::START)).and_then(|start| start.kill()) {
            Ok(()) | Err(Errno::NOENT | Errno::NODEV) => {}
            Err(error) => tracing::warn!(unit, %error, "end the placeholder of a scope"),
        }
    }

    /// Limits of a container that can't be set here, before its cgroup is made.
    pub fn unenforced(&self, resources: &Resources) -> Result<Vec<String>, RuntimeError> {
        let values = values::values(resources)?;
        let missing = |value: &&Value| !self.controllers.iter().any(|have| have == value.controller());
        let told = |value: &&Value| !value.file.ends_with(".rsvd.max");
        Ok(values.iter().filter(missing).filter(told).map(sentence).collect())
    }

    /// Writes a pod's limits, and lets systemd know them.
    pub fn apply_pod(&self, path: &str, resources: &Resources) -> Result<Vec<String>, RuntimeError> {
        let group = self
            .open_path(path)
            .map_err(|errno| RuntimeError::io(format!("open cgroup {path}"))(errno.into()))?;
        if let (Some(systemd), Some((unit, _))) = (&self.systemd, unit::unit_of(path)) {
            let limits = unit::properties(&values::values(resources)?);
            systemd.set(unit, &limits).map_err(RuntimeError::io(format!("set the limits of {unit}")))?;
        }
        self.apply(&group, resources)
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
        let owned = self.systemd.as_ref().and_then(|systemd| Some((systemd, unit::unit_of(path)?)));
        let directory = owned.map_or(path, |(_, (_, directory))| directory);
        self.enabled.lock().remove(directory);
        let step = || RuntimeError::io(format!("remove cgroup {directory}"));
        if let Some((systemd, (unit, _))) = owned {
            systemd.settle(unit);
            match self.open_path(directory).and_then(|group| group.kill()) {
                Ok(()) | Err(Errno::NOENT | Errno::NODEV) => {}
                Err(errno) => return Err(step()(errno.into())),
            }
            // It removes the directory, too, unless it never knew of the unit.
            systemd.stop(unit).map_err(step())?;
        }
        match self.root.destroy(relative(directory), KILL_TIME) {
            Err(Errno::NODEV | Errno::NOENT) if owned.is_some() => Ok(()),
            outcome => outcome.map_err(|errno| step()(errno.into())),
        }
    }

    /// The keeper's own cgroup, so that it does not end with the daemon's; none when the node has no cgroup of its own.
    /// [`Cgroups::settle`] it when the keeper is there.
    pub fn make_keeper(&self) -> std::io::Result<Option<Group>> {
        match &self.systemd {
            _ if self.base.is_empty() => Ok(None),
            None => Ok(Some(self.root.create(relative(&self.keeper_path()))?)),
            Some(systemd) => self.make_scope(systemd, &self.keeper_path()).map(Some),
        }
    }

    /// The path of the keeper's cgroup.
    pub fn keeper_path(&self) -> String {
        match self.systemd {
            Some(_) => format!("{}/{}-keeper.scope/{}", self.base, self.stem(), unit::INNER),
            None => format!("{}/keeper", self.base),
        }
    }

    /// Kills and removes everything beneath the node's own cgroup but the keeper. Blocks.
    pub fn destroy_pods(&self) -> Result<(), RuntimeError> {
        if self.base.is_empty() {
            return Ok(());
        }
        for child in self
            .children(&self.base)
            .into_iter()
            .filter(|child| !child.ends_with("keeper") && !child.ends_with("keeper.scope"))
        {
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
