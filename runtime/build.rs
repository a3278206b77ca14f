//! Builds the keeper as a static program with a cargo of its own, and tells where it is, so that the runtime
//! carries it inside itself.
//!
//! The keeper must not share this build's flags (it alone is linked statically) nor its features (it has no async
//! runtime), so it has a target directory and an environment of its own. It needs no network: the lock file and the
//! sources are those of this build.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

fn main() {
    let here = PathBuf::from(var("CARGO_MANIFEST_DIR"));
    let workspace = here.parent().expect("the crate is in the workspace");
    for input in [
        "runtime/keeper/src",
        "runtime/keeper/Cargo.toml",
        "runtime/keeper/build.rs",
        "sys/src",
        "sys/Cargo.toml",
    ] {
        println!("cargo:rerun-if-changed={}", workspace.join(input).display());
    }
    println!("cargo:rerun-if-changed=build.rs");
    let (target, out) = (var("TARGET"), PathBuf::from(var("OUT_DIR")).join("keeper"));
    build(workspace, &target, &out);
    let binary = out.join(&target).join("keeper").join("orlop-keeper");
    assert!(binary.exists(), "cargo built no {}", binary.display());
    println!("cargo:rustc-env=KEEPER_BINARY={}", binary.display());
}

fn build(workspace: &Path, target: &str, out: &Path) {
    let mut cargo = Command::new(var("CARGO"));
    cargo
        .current_dir(workspace)
        .args(["build", "--package", "keeper", "--bin", "orlop-keeper", "--no-default-features"])
        .args(["--profile", "keeper", "--locked", "--offline", "--target", target, "--target-dir"])
        .arg(out);
    // Everything that cargo tells a build script would change the inner build.
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        let of_outer = ["CARGO_", "RUSTC", "RUSTFLAGS", "RUSTDOC", "CLIPPY", "DEP_"]
            .iter()
            .any(|prefix| text.starts_with(prefix));
        if of_outer && text != "CARGO_HOME" {
            cargo.env_remove(&name);
        }
    }
    for name in ["TARGET", "HOST", "OUT_DIR", "PROFILE", "OPT_LEVEL", "DEBUG", "NUM_JOBS", "LD_LIBRARY_PATH"]
    {
        cargo.env_remove(name);
    }
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
    let output = cargo.output().expect("cargo is there, it runs this");
    assert!(
        output.status.success(),
        "building the keeper failed ({})\n{}",
        output.status,
        String::from_utf8_lossy(&output.stderr)
    );
}

fn var(name: &str) -> String {
    env::var(name).unwrap_or_else(|_| panic!("cargo sets {name}"))
}
