//! Which crate may use which of ours (docs/ARCHITECTURE.md draws the same).

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, ensure};
use serde_json::Value;

/// A crate, and the crates of ours that it may name in any dependency section.
const MAY_USE: &[(&str, &[&str])] = &[
    ("api", &[]),
    ("cri-api", &[]),
    ("sys", &[]),
    ("store", &[]),
    ("pki", &[]),
    ("probes", &[]),
    ("client", &["api"]),
    ("keeper", &["sys"]),
    ("runtime", &["keeper", "sys"]),
    ("image", &["sys"]),
    ("network", &["sys"]),
    ("cri-server", &["cri-api", "image", "network", "runtime", "sys"]),
    ("apiserver", &["api", "pki", "store"]),
    ("scheduler", &["api", "client"]),
    ("controllers", &["api", "client"]),
    ("kubelet", &["api", "client", "cri-api", "probes", "sys"]),
    (
        "orlop",
        &[
            "api",
            "apiserver",
            "client",
            "controllers",
            "cri-api",
            "cri-server",
            "image",
            "kubelet",
            "network",
            "pki",
            "probes",
            "runtime",
            "scheduler",
            "store",
            "sys",
        ],
    ),
    // The tests drive the built binary and link no crate of the daemon's; those of attacks speak CRI to it.
    ("tests", &["client", "cri-api"]),
    // So does the benchmark; it speaks CRI to both runtimes with our client.
    ("bench", &["cri-api"]),
    // Guests run the built binary, too; the tests speak CRI to it.
    ("vm", &["cri-api", "tests"]),
    // What strangers' bytes reach first.
    ("fuzz", &["cri-api", "cri-server", "image", "keeper", "runtime"]),
    ("xtask", &[]),
];

/// Compares [`MAY_USE`] with what the manifests say; returns what is wrong, a line each.
pub fn check() -> anyhow::Result<Vec<String>> {
    let output = Command::new("cargo")
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()
        .context("run cargo metadata")?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value =
        serde_json::from_slice(&output.stdout).context("read what cargo metadata printed")?;
    Ok(judge(&uses(&metadata)))
}

/// Each of our crates with the crates of ours that it names.
fn uses(metadata: &Value) -> BTreeMap<String, Vec<String>> {
    let packages = metadata["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let ours: Vec<_> = packages.iter().filter_map(|p| p["name"].as_str()).collect();
    let named = |package: &Value| {
        let all = package["dependencies"].as_array().map(Vec::as_slice).unwrap_or_default();
        let names = all.iter().filter_map(|d| d["name"].as_str());
        names.filter(|name| ours.contains(name)).map(str::to_owned).collect()
    };
    packages.iter().map(|p| (p["name"].as_str().unwrap_or_default().to_owned(), named(p))).collect()
}

fn judge(uses: &BTreeMap<String, Vec<String>>) -> Vec<String> {
    let mut wrong = Vec::new();
    for (package, used) in uses {
        let Some((_, allowed)) = MAY_USE.iter().find(|(name, _)| name == package) else {
            wrong.push(format!("{package}: a new crate needs a row in xtask/src/arrows.rs"));
            continue;
        };
        for name in used.iter().filter(|name| !allowed.contains(&name.as_str())) {
            wrong.push(format!("{package} must not use {name}"));
        }
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_forbidden_arrow_and_an_unknown_crate_are_found() {
        let uses = BTreeMap::from([
            ("image".to_owned(), vec!["sys".to_owned(), "cri-api".to_owned()]),
            ("shiny".to_owned(), vec![]),
        ]);
        let wrong = judge(&uses);
        assert_eq!(wrong[0], "image must not use cri-api");
        assert!(wrong[1].starts_with("shiny: a new crate"), "{wrong:?}");
    }
}
