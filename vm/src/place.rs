//! Where things are on this side: the workspace, images, the files of running guests, results.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, ensure};

/// The workspace's directory.
pub fn workspace() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().map_or_else(|| here.to_path_buf(), Path::to_path_buf)
}

/// Where images, running guests' files and results are: `ORLOP_VM_DIR`, or `out/vm` in the workspace.
pub fn base() -> PathBuf {
    std::env::var_os("ORLOP_VM_DIR").map_or_else(|| workspace().join("out/vm"), PathBuf::from)
}

/// Where a failed test's logs and core dumps are brought.
pub fn results() -> PathBuf {
    base().join("results")
}

/// The built binary under test: `ORLOP_TEST_BINARY`, or the debug build's.
pub fn orlop() -> PathBuf {
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| workspace().join("target"), PathBuf::from);
    std::env::var_os("ORLOP_TEST_BINARY").map_or_else(|| target.join("debug/orlop"), PathBuf::from)
}

/// The directory of the test images: `ORLOP_TEST_IMAGES`, or `out/images` in the workspace.
pub fn images() -> PathBuf {
    std::env::var_os("ORLOP_TEST_IMAGES").map_or_else(|| workspace().join("out/images"), PathBuf::from)
}

/// The directory of critest and its images: `ORLOP_TEST_CRITEST`, or `out/critest` in the workspace.
pub fn critest() -> PathBuf {
    std::env::var_os("ORLOP_TEST_CRITEST").map_or_else(|| workspace().join("out/critest"), PathBuf::from)
}

/// A directory for this process's guests, on the disk (not in a tmpfs). What processes left that have ended
/// is removed on the way.
///
/// # Errors
/// It can't be made.
pub fn run_directory() -> anyhow::Result<PathBuf> {
    let all = base().join("run");
    let own = all.join(std::process::id().to_string());
    std::fs::create_dir_all(&own).with_context(|| format!("make {}", own.display()))?;
    for entry in std::fs::read_dir(&all).with_context(|| format!("list {}", all.display()))?.flatten() {
        if !Path::new("/proc").join(entry.file_name()).exists() {
            // Another process may remove it at the same time.
            std::fs::remove_dir_all(entry.path()).ok();
        }
    }
    Ok(own)
}

/// Why no guest can run here, or `None`.
pub fn obstacle() -> Option<String> {
    let has = |program: &str| {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .chain(["/usr/sbin".into(), "/sbin".into()])
            .any(|d| d.join(program).exists())
    };
    let missing: Vec<_> = [
        "qemu-system-x86_64",
        "qemu-img",
        "mmdebstrap",
        "mke2fs",
        "ssh",
        "setpriv",
        "cpio",
        "depmod",
        "secilc",
    ]
    .into_iter()
    .filter(|program| !has(program))
    .collect();
    if !missing.is_empty() {
        return Some(format!("missing {}; scripts/setup.sh test installs them", missing.join(", ")));
    }
    let root = std::fs::metadata("/proc/self").map(|own| std::os::unix::fs::MetadataExt::uid(&own) == 0);
    if !root.unwrap_or(false) {
        return Some("making a guest's Debian tree needs root".into());
    }
    (std::env::consts::ARCH != "x86_64").then(|| "the guest is made for x86_64".into())
}

/// Runs a program of this side to its end; its output is shown only if it fails.
///
/// # Errors
/// It can't be started, or ends with another code than 0; what it printed.
pub fn tool(command: &mut Command) -> anyhow::Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command.output().with_context(|| format!("start {name}"))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {}: {}", output.status, said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
