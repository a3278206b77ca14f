//! Devices by name (the Container Device Interface): vendors' files say what a container needs to use one.
//!
//! Guarantees: a container gets all that its devices need, or is not made. Files are read for each container that has
//! such devices, so a new one counts at once.
//! Caveats: devices that need hooks (programs that run as root on the node while a container is made), cache shares or
//! network interfaces are refused: the launcher has none of these.

mod document;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

use cri_api::v1::ContainerConfig;
use runtime::ContainerSpec;
use runtime::spec::{Device, Mount, Propagation};
use tonic::Status;

use crate::error::invalid;
use document::{Document, Edits, parse_name};

/// Prefix of annotations that name devices, as device plugins set them.
const ANNOTATION: &str = "cdi.k8s.io/";
/// Largest file that is read, in bytes.
const LARGEST: u64 = 16 << 20;

/// The devices that a container asks for, each once: by field, then by annotation.
pub fn wanted(config: &ContainerConfig) -> Result<Vec<String>, Status> {
    let fields = config.cdi_devices.iter().map(|device| device.name.as_str());
    let annotations = config.annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATION));
    let annotations = annotations.flat_map(|(_, value)| value.split(','));
    let mut seen = HashSet::new();
    let mut names = Vec::new();
    for name in fields.chain(annotations) {
        parse_name(name).map_err(invalid)?;
        if seen.insert(name) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// Changes a container so that it can use the devices that it asks for. Reads files: call it from a blocking thread.
///
/// # Errors
/// `InvalidArgument` for what can never be given, `FailedPrecondition` for devices that no file describes (yet).
pub fn inject(names: &[String], directories: &[PathBuf], spec: &mut ContainerSpec) -> Result<(), Status> {
    if names.is_empty() {
        return Ok(());
    }
    let known = Known::read(directories);
    let mut begun = HashSet::new();
    for name in names {
        let found = known.find(name)?;
        let refused = |what: String| invalid(format!("the CDI device {name:?} {what}"));
        // What all devices of a file need is needed once.
        if begun.insert(&found.file) {
            apply(&found.document.container_edits, spec).map_err(refused)?;
        }
        apply(&found.document.devices[found.index].container_edits, spec).map_err(refused)?;
    }
    Ok(())
}

/// A device's place.
#[derive(Debug, Clone)]
struct Found {
    file: PathBuf,
    document: std::sync::Arc<Document>,
    index: usize,
}

/// All files' devices.
#[derive(Debug, Default)]
struct Known {
    /// By name; in one directory two files may describe the same, and then neither counts.
    devices: BTreeMap<String, Vec<Found>>,
    /// Files that can't be used, and why.
    broken: Vec<String>,
}

impl Known {
    /// Later directories win over earlier ones.
    fn read(directories: &[PathBuf]) -> Known {
        let mut known = Known::default();
        for directory in directories {
            let mut here: BTreeMap<String, Vec<Found>> = BTreeMap::new();
            for file in files(directory, &mut known.broken) {
                let document = match load(&file) {
                    Ok(document) => std::sync::Arc::new(document),
                    Err(why) => {
                        known.broken.push(format!("{}: {why}", file.display()));
                        continue;
                    }
                };
                for (index, device) in document.devices.iter().enumerate() {
                    let found = Found { file: file.clone(), document: document.clone(), index };
                    here.entry(format!("{}={}", document.kind, device.name)).or_default().push(found);
                }
            }
            known.devices.extend(here);
        }
        known
    }

    fn find(&self, name: &str) -> Result<&Found, Status> {
        match self.devices.get(name).map(Vec::as_slice) {
            Some([one]) => Ok(one),
            Some(many) => {
                let files: Vec<String> = many.iter().map(|found| found.file.display().to_string()).collect();
                Err(Status::failed_precondition(format!(
                    "the CDI device {name:?} is described by more than one file: {}",
                    files.join(", ")
                )))
            }
            None => {
                let broken = match self.broken.as_slice() {
                    [] => String::new(),
                    all => format!("; files that can't be used: {}", all.join("; ")),
                };
                Err(Status::failed_precondition(format!(
                    "the CDI device {name:?} is not known: no file describes it{broken}"
                )))
            }
        }
    }
}

/// The `.json` and `.yaml` files of a directory, in order; none if it is not there.
fn files(directory: &Path, broken: &mut Vec<String>) -> Vec<PathBuf> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            broken.push(format!("{}: {error}", directory.display()));
            return Vec::new();
        }
    };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.extension().is_some_and(|end| end == "json" || end == "yaml"));
    files.sort();
    files
}

fn load(file: &Path) -> Result<Document, String> {
    let size = std::fs::metadata(file).map_err(|error| error.to_string())?.len();
    if size > LARGEST {
        return Err(format!("{size} bytes are more than {LARGEST}"));
    }
    Document::parse(&std::fs::read_to_string(file).map_err(|error| error.to_string())?)
}

/// Makes one set of changes. Errors end the sentence "the device …".
fn apply(edits: &Edits, spec: &mut ContainerSpec) -> Result<(), String> {
    if !edits.hooks.is_empty() {
        return Err("needs hooks, which are not run here: use a file that was made without them".to_owned());
    }
    if edits.intel_rdt.is_some() {
        return Err("needs intelRdt, which is not supported".to_owned());
    }
    if !edits.net_devices.is_empty() {
        return Err("needs netDevices, which are not supported".to_owned());
    }
    for pair in &edits.env {
        let (name, _) = pair
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| format!("has the variable {pair:?}, which is not of the form NAME=value"))?;
        let head = format!("{name}=");
        spec.env.retain(|old| !old.starts_with(&head));
        spec.env.push(pair.clone());
    }
    for node in &edits.device_nodes {
        let device = device(node)?;
        spec.devices.retain(|old| old.container_path != device.container_path);
        spec.devices.push(device);
    }
    for mount in &edits.mounts {
        let mount = translate(mount)?;
        spec.mounts.retain(|old| old.target != mount.target);
        spec.mounts.push(mount);
    }
    // Group 0 means none in CDI.
    for gid in edits.additional_gids.iter().filter(|gid| **gid != 0) {
        if !spec.user.supplementary.contains(gid) {
            spec.user.supplementary.push(*gid);
        }
    }
    Ok(())
}

fn device(node: &document::Node) -> Result<Device, String> {
    let host = if node.host_path.is_empty() { &node.path } else { &node.host_path };
    if !Path::new(&node.path).is_absolute() || !Path::new(host).is_absolute() {
        return Err(format!("has the device node {:?} of {host:?}: absolute paths are wanted", node.path));
    }
    check_kind(node, Path::new(host))?;
    let permissions = if node.permissions.is_empty() { "rwm" } else { &node.permissions };
    Ok(Device {
        host_path: host.into(),
        container_path: node.path.clone().into(),
        permissions: permissions.to_owned(),
        mode: node.file_mode.map(|mode| mode & 0o7777),
        uid: node.uid,
        gid: node.gid,
    })
}

/// A file may say which device it means: then the node must be that one.
fn check_kind(node: &document::Node, host: &Path) -> Result<(), String> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt};
    let seen = std::fs::metadata(host)
        .map_err(|error| format!("needs {}, which can't be looked at: {error}", host.display()))?;
    let kind = seen.file_type();
    let same_kind = match node.r#type.as_str() {
        "" => kind.is_block_device() || kind.is_char_device(),
        "b" => kind.is_block_device(),
        "c" | "u" => kind.is_char_device(),
        other => return Err(format!("has a device node of the type {other:?}: b, c and u are known")),
    };
    let (major, minor) = (rustix::fs::major(seen.rdev()), rustix::fs::minor(seen.rdev()));
    let same = |said: Option<i64>, is: u32| said.is_none_or(|said| said == i64::from(is));
    if same_kind && same(node.major, major) && same(node.minor, minor) {
        return Ok(());
    }
    Err(format!("means another device than {} is ({major}:{minor}): make its file anew", host.display()))
}

fn translate(mount: &document::Mount) -> Result<Mount, String> {
    let place = &mount.container_path;
    if !Path::new(place).is_absolute() || !Path::new(&mount.host_path).is_absolute() {
        return Err(format!("has a mount of {:?} at {place:?}: absolute paths are wanted", mount.host_path));
    }
    if !matches!(mount.r#type.as_str(), "" | "bind" | "none") {
        return Err(format!("has a mount of the type {:?} at {place}: bind mounts are known", mount.r#type));
    }
    let mut made = Mount::bind(&mount.host_path, place);
    for option in &mount.options {
        match option.as_str() {
            "ro" => made.readonly = true,
            "rw" => made.readonly = false,
            "noexec" => made.noexec = true,
            "nosuid" => made.nosuid = true,
            "nodev" => made.nodev = true,
            "private" | "rprivate" => made.propagation = Propagation::Private,
            "slave" | "rslave" => made.propagation = Propagation::HostToContainer,
            "shared" | "rshared" => made.propagation = Propagation::Bidirectional,
            // Without any of these, it is so.
            "bind" | "rbind" | "exec" | "suid" | "dev" => {}
            other => {
                return Err(format!("has a mount at {place} with the option {other:?}, which is not known"));
            }
        }
    }
    Ok(made)
}

#[cfg(test)]
mod tests;
