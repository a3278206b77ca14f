//! OCI spec → the `config.json` of a bundle for another OCI runtime. Pure.
//!
//! The spec is the one that the native launcher takes; what stands here is what it leaves to its own parts: the
//! seccomp profile, the device rules, and mounts that no other runtime knows.
//!
//! Guarantees: limits are not in it: the node writes them to the cgroup by itself, whoever launches.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Mount, Spec};
use serde_json::{Value, json};
use sys::devices::{Kind, Rule, access};

use crate::error::RuntimeError;
use crate::plan::{self, Action};

/// What the spec doesn't say.
#[derive(Debug)]
pub struct Parts<'a> {
    /// Where the root file system is mounted for the runtime.
    pub rootfs: &'a Path,
    /// Where image volumes may be mounted: each gets a number appended.
    pub images: &'a Path,
    /// The process id namespace that is joined, where the spec joins one.
    pub pid: Option<&'a Path>,
    /// The seccomp profile as `linux.seccomp`.
    pub seccomp: Option<Value>,
    /// Allowed devices; `None` allows all.
    pub devices: Option<Vec<Rule>>,
    /// Whether negative OOM scores can be set.
    pub sys_resource: bool,
}

/// An image volume that must be mounted before the runtime is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageMount {
    /// Layers, topmost first.
    pub lower: Vec<PathBuf>,
    /// Directory beneath their root.
    pub sub_path: Option<PathBuf>,
    /// Mount attributes besides read-only.
    pub set: u64,
    /// Where it goes.
    pub place: PathBuf,
}

/// Makes the `config.json`, and tells what must be mounted for it.
pub fn config(spec: &Spec, parts: &Parts<'_>) -> Result<(Value, Vec<ImageMount>), RuntimeError> {
    let mut config = serde_json::to_value(spec)
        .map_err(|error| RuntimeError::invalid(format!("OCI spec as JSON: {error}")))?;
    // Older runtimes refuse newer versions, and nothing here is newer.
    config["ociVersion"] = "1.0.2".into();
    config["root"]["path"] = text(parts.rootfs)?.into();
    // The library's default is a name of its own, and runtimes refuse one in the node's namespace.
    let uts = list(&mut config["linux"]["namespaces"]).any(|namespace| namespace["type"] == "uts");
    if !uts && let Some(fields) = config.as_object_mut() {
        fields.remove("hostname");
    }
    let mut images = Vec::new();
    for (mount, document) in spec.mounts().iter().flatten().zip(list(&mut config["mounts"])) {
        match mount.typ().as_deref() {
            // The name that runtimes know, whatever version the node has.
            Some("cgroup2") => document["type"] = "cgroup".into(),
            Some("overlay") => {
                let place = PathBuf::from(format!("{}{}", text(parts.images)?, images.len()));
                images.push(image(mount, &place)?);
                *document = json!({
                    "destination": mount.destination(),
                    "type": "bind",
                    "source": place,
                    "options": ["bind", "rprivate", "ro"],
                });
            }
            _ => {}
        }
    }
    if let Some(pid) = parts.pid {
        for namespace in list(&mut config["linux"]["namespaces"]) {
            if namespace["type"] == "pid" {
                namespace["path"] = text(pid)?.into();
            }
        }
    }
    if let Some(seccomp) = &parts.seccomp {
        config["linux"]["seccomp"] = seccomp.clone();
    }
    config["linux"]["resources"] = json!({ "devices": devices(parts.devices.as_deref()) });
    adapt_process(&mut config["process"], parts.sys_resource);
    Ok((config, images))
}

/// What a process document (of a container or of an exec) needs besides.
pub fn adapt_process(process: &mut Value, sys_resource: bool) {
    if process["terminal"] == true {
        process["consoleSize"] = json!({ "width": 80, "height": 24 });
    }
    // To libcontainer `false` is not the same as nothing: it loads the seccomp filter too late then, and fails.
    if process["noNewPrivileges"] == false
        && let Some(fields) = process.as_object_mut()
    {
        fields.remove("noNewPrivileges");
    }
    // Native launches go on with a warning; other runtimes refuse to start.
    if !sys_resource
        && process["oomScoreAdj"].as_i64().is_some_and(|score| score < 0)
        && let Some(fields) = process.as_object_mut()
    {
        fields.remove("oomScoreAdj");
    }
}

fn list(value: &mut Value) -> impl Iterator<Item = &mut Value> {
    value.as_array_mut().into_iter().flatten()
}

fn image(mount: &Mount, place: &Path) -> Result<ImageMount, RuntimeError> {
    match plan::action(mount)? {
        Action::Image { lower, sub_path, set, .. } => {
            Ok(ImageMount { lower, sub_path, set, place: place.to_owned() })
        }
        other => Err(RuntimeError::invalid(format!("{other:?} is no image volume"))),
    }
}

fn devices(rules: Option<&[Rule]>) -> Vec<Value> {
    let Some(rules) = rules else { return vec![json!({ "allow": true, "access": "rwm" })] };
    let mut all = vec![json!({ "allow": false, "access": "rwm" })];
    for rule in rules {
        let letters = [(access::READ, 'r'), (access::WRITE, 'w'), (access::MKNOD, 'm')];
        let access: String =
            letters.iter().filter(|(bit, _)| rule.access & bit != 0).map(|(_, letter)| *letter).collect();
        let mut document = json!({
            "allow": true,
            "type": match rule.kind { Kind::Block => "b", Kind::Char => "c" },
            "access": access,
        });
        for (name, number) in [("major", rule.major), ("minor", rule.minor)] {
            if let Some(number) = number {
                document[name] = number.into();
            }
        }
        all.push(document);
    }
    all
}

/// Paths of ours are text, and a document can hold nothing else.
fn text(path: &Path) -> Result<&str, RuntimeError> {
    path.to_str().ok_or_else(|| {
        RuntimeError::invalid(format!("path {path:?} is not UTF-8, which other runtimes can't be told"))
    })
}
