//! The guest's image: kernel, initramfs and root disk, made from Debian's packages by `image/build.sh`.
//!
//! An image is kept in a directory named after the hash of the scripts that make it, so a change of a script
//! makes a new one, and nothing else does. (Debian's security updates come with `make clean`.)

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, ensure};
use sha2::{Digest, Sha256};

use crate::place;

/// What an image is made from.
const INPUTS: &[(&str, &str)] = &[
    ("build.sh", include_str!("../image/build.sh")),
    ("init.sh", include_str!("../image/init.sh")),
    ("setup.sh", include_str!("../image/setup.sh")),
    ("packages", include_str!("../image/packages")),
];

/// A complete image.
#[derive(Debug, Clone)]
pub struct Image {
    dir: PathBuf,
}

impl Image {
    /// The image of these scripts; it is built when it is not there (about a minute).
    ///
    /// # Errors
    /// The build failed; what it said went to standard error.
    pub fn ready() -> anyhow::Result<Image> {
        let base = place::base();
        std::fs::create_dir_all(&base).with_context(|| format!("make {}", base.display()))?;
        let suite = suite(&std::fs::read_to_string("/etc/os-release").unwrap_or_default());
        let mut inputs = INPUTS.to_vec();
        inputs.push(("suite", &suite));
        let name = format!("image-{}", fingerprint(&inputs));
        let dir = base.join(&name);
        // Two processes must not build at once; the second finds the first one's work.
        let lock = File::create(base.join("lock")).context("open the lock of the images")?;
        lock.lock().context("lock the images")?;
        if !dir.join("complete").exists() {
            let start = Instant::now();
            build(&suite, &dir, &base.join("cache"))?;
            forget_others(&base, &name)?;
            eprintln!("vm: the image took {} s", start.elapsed().as_secs());
        }
        Ok(Image { dir })
    }

    /// The kernel.
    pub fn kernel(&self) -> PathBuf {
        self.dir.join("vmlinuz")
    }

    /// The initramfs.
    pub fn initramfs(&self) -> PathBuf {
        self.dir.join("initramfs.cpio")
    }

    /// The root disk, raw; never written by a guest.
    pub fn disk(&self) -> PathBuf {
        self.dir.join("disk.ext4")
    }

    /// The private key that opens root's account in every guest.
    pub fn key(&self) -> PathBuf {
        self.dir.join("key")
    }
}

/// The Debian release that guests run: this machine's own, as programs built here want its C library.
fn suite(os_release: &str) -> String {
    let field = |name: &str| os_release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    match (field("ID"), field("VERSION_CODENAME")) {
        (Some("debian"), Some(name)) => name.trim_matches('"').to_owned(),
        _ => "bookworm".to_owned(),
    }
}

fn build(suite: &str, dir: &Path, cache: &Path) -> anyhow::Result<()> {
    let scripts = tempfile::tempdir().context("make a directory for the image's scripts")?;
    for (name, text) in INPUTS {
        std::fs::write(scripts.path().join(name), text).with_context(|| format!("write {name}"))?;
    }
    let mut command = Command::new("bash");
    command.arg(scripts.path().join("build.sh")).arg(suite).arg(dir).arg(cache);
    // The admin's tools are not in everybody's path.
    let path = std::env::var("PATH").unwrap_or_default();
    let status =
        command.env("PATH", format!("{path}:/usr/sbin:/sbin")).status().context("start image/build.sh")?;
    ensure!(status.success(), "image/build.sh ended with {status}");
    Ok(())
}

/// Images of former scripts only take room.
fn forget_others(base: &Path, name: &str) -> anyhow::Result<()> {
    for entry in std::fs::read_dir(base).with_context(|| format!("list {}", base.display()))?.flatten() {
        let other = entry.file_name().to_string_lossy().into_owned();
        if other.starts_with("image-") && other != name {
            std::fs::remove_dir_all(entry.path()).with_context(|| format!("remove {other}"))?;
        }
    }
    Ok(())
}

fn fingerprint(inputs: &[(&str, &str)]) -> String {
    let mut hash = Sha256::new();
    for (name, text) in inputs {
        hash.update(format!("{name} {}\n{text}", text.len()));
    }
    hash.finalize().iter().take(6).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guests_run_the_debian_of_this_machine() {
        assert_eq!(suite("PRETTY_NAME=x\nVERSION_CODENAME=trixie\nID=debian\n"), "trixie");
        assert_eq!(suite("ID=ubuntu\nVERSION_CODENAME=noble\n"), "bookworm");
        assert_eq!(suite(""), "bookworm");
    }

    #[test]
    fn a_changed_script_is_another_image() {
        let one = fingerprint(&[("a", "x"), ("b", "y")]);
        assert_eq!(one, fingerprint(&[("a", "x"), ("b", "y")]));
        assert_ne!(one, fingerprint(&[("a", "x"), ("b", "z")]));
        assert_ne!(one, fingerprint(&[("a", "xb"), ("b", "")]));
        assert_eq!(one.len(), 12);
    }
}
