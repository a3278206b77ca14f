//! System call filters: profiles, and their translation to the kernel's classic BPF.
//!
//! Guarantees: pure but for reading a `Localhost` file; a filter that this module makes is accepted by the
//! kernel (length and jumps are checked); the same profile and capabilities give the same bytes.
//! Assumes: x86_64 (with x86 and x32) or aarch64.
//! Caveat: 32-bit ARM programs on aarch64 are killed: their calls are in no table here.

mod compile;
mod default;
mod document;
mod profile;

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;

pub use compile::{Instruction, compile};
pub use default::default_profile;
pub use document::document;
pub use profile::{Action, Condition, Operator, Profile, ProfileError, Rule, parse};

use crate::error::RuntimeError;
use crate::spec::Seccomp;

/// Largest profile file that is read.
const PROFILE_LIMIT: u64 = 1 << 20;

/// The architectures whose calls are known, in the order of the table's columns.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Arch {
    /// 64-bit x86.
    X86_64,
    /// 32-bit x86.
    X86,
    /// 64-bit x86 with 32-bit pointers.
    X32,
    /// 64-bit ARM.
    Aarch64,
}

impl Arch {
    /// The architectures whose programs this node can run, its own first.
    pub fn native() -> &'static [Arch] {
        if cfg!(target_arch = "aarch64") { &[Arch::Aarch64] } else { &[Arch::X86_64, Arch::X86, Arch::X32] }
    }
}

/// Number of a system call on an architecture (x32: without its bit).
pub fn number(name: &str, arch: Arch) -> Option<u32> {
    static TABLE: OnceLock<HashMap<&'static str, [Option<u32>; 4]>> = OnceLock::new();
    let table = TABLE.get_or_init(|| {
        let mut table = HashMap::with_capacity(512);
        for line in include_str!("syscalls.txt").lines().filter(|line| !line.starts_with('#')) {
            let mut words = line.split(' ');
            let name = words.next().unwrap_or_default();
            let mut numbers = [None; 4];
            for (number, word) in numbers.iter_mut().zip(words) {
                *number = word.parse().ok();
            }
            table.insert(name, numbers);
        }
        table
    });
    table.get(name)?[arch as usize]
}

/// A compiled filter, shared by all containers that have it.
pub type Filter = Arc<[Instruction]>;

/// Compiled filters by profile and capabilities.
#[derive(Debug, Default)]
pub struct Cache {
    defaults: Mutex<HashMap<u64, Filter>>,
}

impl Cache {
    /// The filter for a container with these (effective) capabilities as a bit set; `None` for `Unconfined`.
    pub fn filter(
        &self,
        seccomp: &Seccomp,
        profiles: &Path,
        capabilities: u64,
    ) -> Result<Option<Filter>, RuntimeError> {
        match seccomp {
            Seccomp::Unconfined => Ok(None),
            Seccomp::RuntimeDefault => {
                let relevant = capabilities & default::RELEVANT;
                if let Some(filter) = self.defaults.lock().get(&relevant) {
                    return Ok(Some(filter.clone()));
                }
                let filter: Filter = compile(&default_profile(relevant), Arch::native())
                    .map_err(|error| RuntimeError::invalid(format!("default seccomp profile: {error}")))?
                    .into();
                self.defaults.lock().insert(relevant, filter.clone());
                Ok(Some(filter))
            }
            Seccomp::Localhost(path) => {
                let profile = localhost(profiles, path)?;
                let filter = compile(&profile, Arch::native()).map_err(|error| {
                    RuntimeError::invalid(format!("seccomp profile {}: {error}", path.display()))
                })?;
                Ok(Some(filter.into()))
            }
        }
    }
}

/// The profile itself, for runtimes that compile it by themselves; `None` for `Unconfined`.
pub fn profile(
    seccomp: &Seccomp,
    profiles: &Path,
    capabilities: u64,
) -> Result<Option<Profile>, RuntimeError> {
    Ok(match seccomp {
        Seccomp::Unconfined => None,
        Seccomp::RuntimeDefault => Some(default_profile(capabilities & default::RELEVANT)),
        Seccomp::Localhost(path) => Some(localhost(profiles, path)?),
    })
}

fn localhost(profiles: &Path, path: &Path) -> Result<Profile, RuntimeError> {
    let path = localhost_path(profiles, path)?;
    parse(&read(&path)?)
        .map_err(|error| RuntimeError::invalid(format!("seccomp profile {}: {error}", path.display())))
}

/// Where a `Localhost` profile is: an absolute path as given, else beneath the directory of profiles.
fn localhost_path(profiles: &Path, path: &Path) -> Result<PathBuf, RuntimeError> {
    if path.as_os_str().is_empty() {
        return Err(RuntimeError::invalid(
            "seccomp type Localhost with an empty profile name: name a file, or use RuntimeDefault",
        ));
    }
    if path.components().any(|part| part == Component::ParentDir) {
        return Err(RuntimeError::invalid(format!(
            "seccomp profile {path:?} has a `..` in its path: name a file beneath {}",
            profiles.display()
        )));
    }
    Ok(profiles.join(path))
}

fn read(path: &Path) -> Result<String, RuntimeError> {
    use std::io::Read;
    let step = || format!("read seccomp profile {}", path.display());
    let file = std::fs::File::open(path).map_err(RuntimeError::io(step()))?;
    let mut text = String::new();
    file.take(PROFILE_LIMIT + 1).read_to_string(&mut text).map_err(RuntimeError::io(step()))?;
    if text.len() as u64 > PROFILE_LIMIT {
        return Err(RuntimeError::invalid(format!(
            "seccomp profile {} is larger than {PROFILE_LIMIT} bytes",
            path.display()
        )));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
