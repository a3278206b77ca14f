//! Disks: a read-only one with what is under test, layers above the image, and data that outlives a power cut.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

use crate::image::Image;
use crate::place;

/// Programs and files for guests, as one read-only disk that every guest sees at `/share`. Programs go to
/// `/share/bin`, which is in the path there.
#[derive(Debug, Default)]
pub struct Share {
    files: Vec<(PathBuf, String)>,
}

impl Share {
    /// The binary under test, the test images, and when there are such: crictl, kubectl, and critest with its images.
    ///
    /// # Errors
    /// The binary or the images are not built.
    pub fn usual() -> anyhow::Result<Share> {
        let orlop = place::orlop();
        ensure!(orlop.exists(), "{} is not built: cargo build -p orlop", orlop.display());
        let mut share = Share::default().file(&orlop, "bin/orlop");
        for name in ["busybox", "hello", "pause", "nginx", "large"] {
            let archive = place::images().join(format!("{name}.tar"));
            if archive.exists() {
                share = share.file(&archive, &format!("images/{name}.tar"));
            }
        }
        ensure!(share.files.len() > 1, "no test images: tests/images/build.sh out/images");
        let path = std::env::var_os("PATH").unwrap_or_default();
        for client in ["crictl", "kubectl"] {
            let found = std::env::split_paths(&path).map(|dir| dir.join(client)).find(|p| p.exists());
            if let Some(found) = found {
                share = share.file(&found, &format!("bin/{client}"));
            }
        }
        if place::critest().join("stamp").exists() {
            share = share.file(&place::critest(), "critest");
        }
        // A wish of the caller's: files and directories to put beside them, `HOST=NAME` with colons between.
        for pair in std::env::var("ORLOP_VM_SHARE").unwrap_or_default().split(':').filter(|p| !p.is_empty()) {
            let (host, name) = pair.split_once('=').context("ORLOP_VM_SHARE wants HOST=NAME")?;
            share = share.file(Path::new(host), name);
        }
        Ok(share)
    }

    /// Adds a file, or a directory with all that is in it, as `/share/NAME`.
    pub fn file(mut self, host: &Path, name: &str) -> Share {
        self.files.push((host.to_path_buf(), name.to_owned()));
        self
    }

    /// Makes the disk at `path`.
    ///
    /// # Errors
    /// A file can't be read, or the disk is full.
    pub fn make(&self, path: &Path) -> anyhow::Result<()> {
        let tree = path.with_extension("tree");
        std::fs::create_dir_all(tree.join("bin")).with_context(|| format!("make {}", tree.display()))?;
        for (host, name) in &self.files {
            let target = tree.join(name);
            if let Some(parent) = target.parent() {
                std::fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
            }
            place::tool(Command::new("cp").args(["-rL", "--reflink=auto"]).arg(host).arg(&target))?;
        }
        let kib = place::tool(Command::new("du").args(["-sk", "--apparent-size"]).arg(&tree))?;
        let kib: u64 =
            kib.split_whitespace().next().unwrap_or_default().parse().context("read du's answer")?;
        // A quarter more for the file system itself.
        let size = format!("{}k", kib + kib / 4 + 16_384);
        let mut make = Command::new("mke2fs");
        make.env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin").args([
            "-q",
            "-F",
            "-t",
            "ext4",
            "-O",
            "^has_journal",
        ]);
        place::tool(make.args(["-L", "share", "-d"]).arg(&tree).arg(path).arg(&size))?;
        std::fs::remove_dir_all(&tree).with_context(|| format!("remove {}", tree.display()))
    }
}

/// Makes the root disk of one guest at `path`: what it changes lies above the image.
///
/// # Errors
/// qemu-img failed.
pub fn layer(image: &Image, path: &Path) -> anyhow::Result<()> {
    layer_above(&image.disk(), path)
}

/// Makes a qcow2 file at `path` above the raw file `base`.
///
/// # Errors
/// qemu-img failed.
pub fn layer_above(base: &Path, path: &Path) -> anyhow::Result<()> {
    let mut make = Command::new("qemu-img");
    make.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(base).arg(path);
    place::tool(&mut make).map(|_| ())
}

/// Makes an empty file of `mib` MiB that takes no room until it is written.
///
/// # Errors
/// It can't be made.
pub fn empty(path: &Path, mib: u64) -> anyhow::Result<()> {
    let file = std::fs::File::create(path).with_context(|| format!("make {}", path.display()))?;
    file.set_len(mib << 20).with_context(|| format!("size {}", path.display()))
}
