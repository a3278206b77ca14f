//! Devices that containers see and may use.
//!
//! Guarantees: a container that is not privileged can open the default devices, its own terminals, and those that
//! were given to it; nothing else, even if it makes the node by itself.

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use sys::devices::{Kind, Rule, access};

use crate::error::RuntimeError;
use crate::oci::HostDevice;
use crate::spec::{ContainerSpec, Device};

/// Most device nodes below one directory; more is a mistake.
const LIMIT: usize = 4096;

/// What a container gets: all of the host's when privileged, and those it asks for.
pub fn find(spec: &ContainerSpec) -> Result<Vec<HostDevice>, RuntimeError> {
    let mut found = Vec::new();
    if spec.privileged {
        let all = Device::new("/dev", "/dev", "rwm");
        walk(Path::new("/dev"), &all, &mut found)
            .map_err(RuntimeError::io("list the devices of the node"))?;
    }
    for device in &spec.devices {
        let step = || format!("look at device {}", device.host_path.display());
        if device.permissions.bytes().any(|b| !b"rwm".contains(&b)) || device.permissions.is_empty() {
            return Err(RuntimeError::invalid(format!(
                "device {}: permissions {:?} are not of r, w and m",
                device.host_path.display(),
                device.permissions
            )));
        }
        if !device.container_path.is_absolute() {
            return Err(RuntimeError::invalid(format!(
                "device {}: container path {:?} is not absolute",
                device.host_path.display(),
                device.container_path
            )));
        }
        let data = std::fs::metadata(&device.host_path).map_err(RuntimeError::io(step()))?;
        if data.is_dir() {
            walk(&device.host_path, device, &mut found).map_err(RuntimeError::io(step()))?;
        } else {
            match node(device.container_path.clone(), &data, &device.permissions) {
                Some(one) => found.push(HostDevice {
                    mode: device.mode.unwrap_or(one.mode),
                    uid: device.uid.unwrap_or(one.uid),
                    gid: device.gid.unwrap_or(one.gid),
                    ..one
                }),
                None => {
                    return Err(RuntimeError::invalid(format!(
                        "{} is not a device: mount it as a volume instead",
                        device.host_path.display()
                    )));
                }
            }
        }
    }
    // A device named twice is made once, as named last.
    let mut seen = std::collections::HashSet::new();
    found.reverse();
    found.retain(|device: &HostDevice| seen.insert(device.path.clone()));
    found.reverse();
    Ok(found)
}

/// What a container that is not privileged may use.
pub fn rules(found: &[HostDevice]) -> Vec<Rule> {
    let rule = |kind, major, minor, access| Rule { kind, major, minor, access };
    let mut rules = vec![
        // Any node may be made: only opening it does harm.
        rule(Kind::Char, None, None, access::MKNOD),
        rule(Kind::Block, None, None, access::MKNOD),
    ];
    // null, zero, full, random, urandom, tty, ptmx; then all terminals.
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 2)] {
        rules.push(rule(Kind::Char, Some(major), Some(minor), access::ALL));
    }
    rules.push(rule(Kind::Char, Some(136), None, access::ALL));
    for device in found {
        let bits = device.permissions.bytes().fold(0, |bits, letter| {
            bits | match letter {
                b'r' => access::READ,
                b'w' => access::WRITE,
                _ => access::MKNOD,
            }
        });
        let kind = if device.block { Kind::Block } else { Kind::Char };
        rules.push(rule(kind, Some(device.major), Some(device.minor), bits));
    }
    rules
}

/// Loaded programs by rules: nearly all containers have the same.
#[derive(Debug, Default)]
pub struct Filters {
    loaded: Mutex<HashMap<Vec<Rule>, Arc<OwnedFd>>>,
}

/// Programs that are kept; with more the least common are loaded again each time.
const KEPT: usize = 64;

impl Filters {
    /// Confines a cgroup to these devices.
    pub fn attach(&self, cgroup: BorrowedFd<'_>, rules: Vec<Rule>) -> sys::Result<()> {
        let kept = self.loaded.lock().get(&rules).cloned();
        let program = match kept {
            Some(program) => program,
            None => {
                let program = Arc::new(sys::devices::load(&rules)?);
                let mut loaded = self.loaded.lock();
                if loaded.len() < KEPT {
                    loaded.insert(rules, program.clone());
                }
                program
            }
        };
        sys::devices::attach(cgroup, &program)
    }
}

fn walk(dir: &Path, device: &Device, found: &mut Vec<HostDevice>) -> std::io::Result<()> {
    let own = ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/fd"];
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if own.iter().any(|own| path == Path::new(own)) || found.len() >= LIMIT {
            continue;
        }
        // Devices come and go while we look.
        let Ok(data) = std::fs::symlink_metadata(&path) else { continue };
        if data.is_dir() {
            walk(&path, device, found)?;
            continue;
        }
        let below = path.strip_prefix(&device.host_path).unwrap_or(&path);
        found.extend(node(device.container_path.join(below), &data, &device.permissions));
    }
    Ok(())
}

fn node(path: PathBuf, data: &std::fs::Metadata, permissions: &str) -> Option<HostDevice> {
    let kind = data.file_type();
    if !kind.is_char_device() && !kind.is_block_device() {
        return None;
    }
    let number = data.rdev();
    Some(HostDevice {
        path,
        block: kind.is_block_device(),
        major: rustix::fs::major(number),
        minor: rustix::fs::minor(number),
        mode: data.mode() & 0o7777,
        uid: data.uid(),
        gid: data.gid(),
        permissions: permissions.to_owned(),
    })
}
