//! A file of the Container Device Interface: what a vendor says a container needs to use a device. Pure.
//!
//! Guarantees: a document that is taken has names of the form that CDI wants and no field that we don't know: nothing
//! of it is dropped silently.

use serde::Deserialize;

/// Versions of the format; later ones only add fields.
const VERSIONS: [&str; 10] =
    ["0.1.0", "0.2.0", "0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0"];

/// One file.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Document {
    /// Version of the format.
    pub cdi_version: String,
    /// `vendor/class` of its devices.
    pub kind: String,
    /// For people.
    #[serde(default, rename = "annotations")]
    _annotations: serde_json::Value,
    /// The devices.
    #[serde(default)]
    pub devices: Vec<Device>,
    /// What each of them needs.
    #[serde(default)]
    pub container_edits: Edits,
}

/// A device.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Device {
    /// Its name within its kind.
    pub name: String,
    /// For people.
    #[serde(default, rename = "annotations")]
    _annotations: serde_json::Value,
    /// What it needs besides.
    #[serde(default)]
    pub container_edits: Edits,
}

/// Changes to a container.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Edits {
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Device nodes.
    pub device_nodes: Vec<Node>,
    /// Programs to run; refused.
    pub hooks: Vec<serde_json::Value>,
    /// Files and directories.
    pub mounts: Vec<Mount>,
    /// Shares of the processor's caches; refused.
    pub intel_rdt: Option<serde_json::Value>,
    /// Further groups.
    pub additional_gids: Vec<u32>,
    /// Network interfaces; refused.
    pub net_devices: Vec<serde_json::Value>,
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Node {
    /// Where the container sees it.
    pub path: String,
    /// Where it is; the same place when not given.
    #[serde(default)]
    pub host_path: String,
    /// `b`, `c`, `u`, `p`; the node's own when not given.
    #[serde(default)]
    pub r#type: String,
    /// Major number; the node's own when not given.
    pub major: Option<i64>,
    /// Minor number.
    pub minor: Option<i64>,
    /// Permission bits; the node's own when not given.
    pub file_mode: Option<u32>,
    /// Of `r`, `w`, `m`; all when not given.
    #[serde(default)]
    pub permissions: String,
    /// Owner; the node's own when not given.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
}

/// A mount.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Mount {
    /// What is mounted.
    pub host_path: String,
    /// Where.
    pub container_path: String,
    /// As of mount(8).
    #[serde(default)]
    pub options: Vec<String>,
    /// Type of file system; a bind mount when not given.
    #[serde(default)]
    pub r#type: String,
}

impl Document {
    /// Reads a document; JSON is YAML, too.
    ///
    /// # Errors
    /// A sentence.
    pub fn parse(text: &str) -> Result<Document, String> {
        let document: Document = serde_yaml_ng::from_str(text).map_err(|error| error.to_string())?;
        document.check()?;
        Ok(document)
    }

    fn check(&self) -> Result<(), String> {
        let version = self.cdi_version.trim_start_matches('v');
        if !VERSIONS.contains(&version) {
            return Err(format!(
                "cdiVersion {:?} is not known: {} to {} are",
                self.cdi_version,
                VERSIONS[0],
                VERSIONS[VERSIONS.len() - 1]
            ));
        }
        check_kind(&self.kind)?;
        if self.devices.is_empty() {
            return Err("it has no devices".to_owned());
        }
        let mut names = std::collections::HashSet::new();
        for device in &self.devices {
            check_device(&device.name)?;
            if !names.insert(&device.name) {
                return Err(format!("it has two devices {:?}", device.name));
            }
        }
        Ok(())
    }
}

/// `vendor/class=name` taken apart.
///
/// # Errors
/// A sentence.
pub fn parse_name(text: &str) -> Result<(&str, &str), String> {
    let say = |why: String| format!("the CDI device {text:?} is not of the form vendor/class=name: {why}");
    let (kind, name) = text.split_once('=').ok_or_else(|| say("it has no '='".to_owned()))?;
    check_kind(kind).map_err(say)?;
    check_device(name).map_err(say)?;
    Ok((kind, name))
}

fn check_kind(kind: &str) -> Result<(), String> {
    let (vendor, class) =
        kind.split_once('/').ok_or_else(|| format!("the kind {kind:?} is not of the form vendor/class"))?;
    for (what, text) in [("vendor", vendor), ("class", class)] {
        if !named(text, char::is_alphabetic, "_-.") {
            return Err(format!(
                "the {what} {text:?} must begin with a letter, end with a letter or digit, and hold only those, '_', \
                 '-' and '.'"
            ));
        }
    }
    Ok(())
}

fn check_device(name: &str) -> Result<(), String> {
    if named(name, char::is_alphanumeric, "_-.:") {
        return Ok(());
    }
    Err(format!(
        "the name {name:?} must begin and end with a letter or digit, and hold only those, '_', '-', '.' and ':'"
    ))
}

fn named(text: &str, first: fn(char) -> bool, between: &str) -> bool {
    text.is_ascii()
        && text.starts_with(first)
        && text.ends_with(char::is_alphanumeric)
        && text.chars().all(|c| c.is_alphanumeric() || between.contains(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_have_a_form() {
        assert_eq!(parse_name("vendor.com/net=nic-0"), Ok(("vendor.com/net", "nic-0")));
        assert_eq!(parse_name("v/c=GPU-1:2"), Ok(("v/c", "GPU-1:2")));
        for bad in [
            "", "v/c", "v=c", "v/c=", "1v/c=d", "v/1c=d", "v-/c=d", "v/c=d-", "v/c=a b", "v/c/d=e",
            "v/c=../d",
        ] {
            assert!(parse_name(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn both_forms_of_a_document_are_read() {
        let json = r#"{"cdiVersion": "0.6.0", "kind": "v.com/gpu", "annotations": {"a": "b"}, "devices": [
            {"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/x", "fileMode": 384}]}}]}"#;
        let yaml = "cdiVersion: 0.6.0\nkind: v.com/gpu\ndevices:\n- name: '0'\n  containerEdits:\n    \
                    deviceNodes:\n    - {path: /dev/x, fileMode: 384}\n";
        let (one, two) = (Document::parse(json).expect("JSON"), Document::parse(yaml).expect("YAML"));
        assert_eq!(one.devices[0].container_edits, two.devices[0].container_edits);
        assert_eq!(one.devices[0].container_edits.device_nodes[0].file_mode, Some(0o600));
    }

    #[test]
    fn what_is_wrong_with_a_document_is_said() {
        let wrong = |text: &str, part: &str| {
            let error = Document::parse(text).expect_err("refused");
            assert!(error.contains(part), "{error}");
        };
        wrong("cdiVersion: 9.0.0\nkind: v/c\ndevices: [{name: a}]\n", "9.0.0");
        wrong("cdiVersion: 0.5.0\nkind: vc\ndevices: [{name: a}]\n", "vendor/class");
        wrong("cdiVersion: 0.5.0\nkind: v/c\n", "no devices");
        wrong("cdiVersion: 0.5.0\nkind: v/c\ndevices: [{name: a}, {name: a}]\n", "two devices");
        wrong("cdiVersion: 0.5.0\nkind: v/c\ndevices: [{name: 'a/b'}]\n", "a/b");
        wrong("cdiVersion: 0.5.0\nkind: v/c\ndevices: [{name: a, containerEdit: {}}]\n", "containerEdit");
        wrong("{", "");
    }
}
