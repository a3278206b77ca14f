//! Makes a build id from the sources of the keeper and of `sys`, so that a daemon knows whether
//! a running keeper is of its own build.

use std::collections::hash_map::DefaultHasher;
use std::fs;
use std::hash::Hasher;
use std::path::{Path, PathBuf};

fn main() {
    let here = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let mut hasher = DefaultHasher::new();
    for dir in [here.join("src"), here.join("../../sys/src")] {
        println!("cargo:rerun-if-changed={}", dir.display());
        hash(&dir, &mut hasher);
    }
    println!("cargo:rustc-env=KEEPER_BUILD_ID={:016x}", hasher.finish());
}

fn hash(path: &Path, hasher: &mut DefaultHasher) {
    if path.is_dir() {
        let entries = fs::read_dir(path).expect("sources are readable");
        let mut paths: Vec<PathBuf> = entries.map(|e| e.expect("sources are readable").path()).collect();
        paths.sort();
        paths.iter().for_each(|p| hash(p, hasher));
    } else {
        hasher.write(path.file_name().expect("a file has a name").as_encoded_bytes());
        hasher.write(&fs::read(path).expect("sources are readable"));
    }
}
