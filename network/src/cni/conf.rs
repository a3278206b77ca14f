//! CNI configuration and results: reading and deriving, without running anything.

use std::collections::HashSet;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::CniError;
use crate::model::PodIps;

/// The versions that this runtime speaks, the newest last.
const VERSIONS: [&str; 6] = ["0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.0.1", "1.1.0"];

/// A list of plugins that makes one network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct NetworkList {
    pub(crate) name: String,
    pub(crate) version: String,
    pub(crate) file: PathBuf,
    pub(crate) disable_check: bool,
    pub(crate) disable_gc: bool,
    pub(crate) plugins: Vec<Plugin>,
}

/// One plugin of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plugin {
    /// The name of the executable.
    pub(crate) kind: String,
    /// The configuration as it is written.
    pub(crate) conf: Map<String, Value>,
}

impl NetworkList {
    /// Reads a list, or (where `single`) one plugin's configuration as a list of one. `Err` says what is wrong.
    pub(crate) fn parse(text: &str, file: &Path, single: bool) -> Result<NetworkList, String> {
        let root: Value = serde_json::from_str(text).map_err(|err| format!("not JSON: {err}"))?;
        let Value::Object(root) = root else { return Err("not a JSON object".to_owned()) };
        // Some write a list into a file with the extension of a single plugin.
        let plugins = match root.get("plugins") {
            Some(Value::Array(plugins)) => plugins.clone(),
            None if single => vec![Value::Object(root.clone())],
            _ => return Err("\"plugins\" is not a list".to_owned()),
        };
        if plugins.is_empty() {
            return Err("\"plugins\" is empty".to_owned());
        }
        let name = text_of(&root, "name").ok_or("\"name\" is missing")?.to_owned();
        if !is_name(&name) {
            return Err(format!("\"name\" {name:?} must be letters, digits, dots, - and _"));
        }
        Ok(NetworkList {
            version: version(&root)?,
            name,
            file: file.to_owned(),
            disable_check: flag(&root, "disableCheck"),
            disable_gc: flag(&root, "disableGC"),
            plugins: plugins.into_iter().map(plugin).collect::<Result<_, _>>()?,
        })
    }

    /// The configuration that a plugin reads from its stdin.
    pub(crate) fn stdin(
        &self,
        plugin: &Plugin,
        capabilities: &Map<String, Value>,
        previous: Option<&Value>,
    ) -> Value {
        let mut conf = plugin.conf.clone();
        let wants = conf.remove("capabilities");
        let wants = |name: &str| wants.as_ref().is_some_and(|wants| wants[name] == Value::Bool(true));
        let told: Map<String, Value> = capabilities
            .iter()
            .filter(|(name, _)| wants(name))
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect();
        if !told.is_empty() {
            conf.insert("runtimeConfig".to_owned(), Value::Object(told));
        }
        if let Some(previous) = previous {
            conf.insert("prevResult".to_owned(), previous.clone());
        }
        conf.insert("name".to_owned(), Value::String(self.name.clone()));
        conf.insert("cniVersion".to_owned(), Value::String(self.version.clone()));
        Value::Object(conf)
    }

    /// Whether the list is of this version or a later one.
    pub(crate) fn at_least(&self, major: u64, minor: u64) -> bool {
        let mut parts = self.version.split('.').map(|part| part.parse().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= (major, minor)
    }
}

fn plugin(conf: Value) -> Result<Plugin, String> {
    let Value::Object(conf) = conf else { return Err("a plugin is not a JSON object".to_owned()) };
    let kind = text_of(&conf, "type").ok_or("a plugin has no \"type\"")?.to_owned();
    if !is_name(&kind) {
        return Err(format!("the plugin type {kind:?} is no file name"));
    }
    Ok(Plugin { kind, conf })
}

/// The newest version that both the list and this runtime speak.
fn version(root: &Map<String, Value>) -> Result<String, String> {
    let mut offered: Vec<&str> = root
        .get("cniVersions")
        .and_then(Value::as_array)
        .map_or_else(Vec::new, |list| list.iter().filter_map(Value::as_str).collect());
    offered.extend(text_of(root, "cniVersion"));
    let best = VERSIONS.iter().rev().find(|version| offered.contains(*version));
    best.map(|version| (*version).to_owned())
        .ok_or_else(|| format!("its CNI version {offered:?} is none of {}", VERSIONS.join(", ")))
}

fn text_of<'a>(object: &'a Map<String, Value>, key: &str) -> Option<&'a str> {
    object.get(key).and_then(Value::as_str).filter(|text| !text.is_empty())
}

/// A boolean that may also be written as a string.
fn flag(object: &Map<String, Value>, key: &str) -> bool {
    match object.get(key) {
        Some(Value::Bool(value)) => *value,
        Some(Value::String(text)) => text.eq_ignore_ascii_case("true"),
        _ => false,
    }
}

fn is_name(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
}

/// The configuration files in the directory, in their order, with the times of their last change. A
/// directory that is missing has none.
pub(super) fn candidates(directory: &Path) -> Result<Vec<(PathBuf, SystemTime)>, CniError> {
    let error =
        |source| CniError::File { step: "read CNI configurations in", path: directory.to_owned(), source };
    let entries = match fs::read_dir(directory) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries.map_err(error)?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(error)?.path();
        let extension = path.extension().and_then(|extension| extension.to_str());
        if !matches!(extension, Some("conf" | "conflist" | "json")) {
            continue;
        }
        match fs::metadata(&path).and_then(|meta| meta.modified()) {
            Ok(changed) => files.push((path, changed)),
            // Deleted while we looked.
            Err(err) if err.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(CniError::File { step: "read", path, source }),
        }
    }
    files.sort();
    Ok(files)
}

/// The first file that holds a valid list. If there are files and none is valid, the first one's error.
pub(super) fn first_valid<'a>(
    files: impl Iterator<Item = &'a Path>,
) -> Result<Option<NetworkList>, CniError> {
    let mut first = Ok(None);
    for file in files {
        let single = file.extension().is_some_and(|extension| extension != "conflist");
        let list = fs::read_to_string(file).map_err(|err| err.to_string());
        match list.and_then(|text| NetworkList::parse(&text, file, single)) {
            Ok(list) => return Ok(Some(list)),
            Err(why) => {
                tracing::warn!(file = %file.display(), why, "skip a CNI configuration");
                if first.is_ok() {
                    first = Err(CniError::Config { file: file.to_owned(), why });
                }
            }
        }
    }
    first
}

/// The pod's addresses in a result: those of interfaces in the sandbox, or of none in particular.
pub(super) fn ips(result: &Value) -> PodIps {
    let in_sandbox = |index: &Value| match index.as_u64() {
        Some(index) => {
            let interface = &result["interfaces"][usize::try_from(index).unwrap_or(usize::MAX)];
            interface.is_null() || interface["sandbox"].as_str().is_some_and(|sandbox| !sandbox.is_empty())
        }
        None => true,
    };
    let mut seen = HashSet::new();
    let all = result["ips"].as_array().into_iter().flatten();
    let ips = all.filter(|ip| in_sandbox(&ip["interface"])).filter_map(|ip| {
        let text = ip["address"].as_str()?;
        text.parse::<IpNet>().map(|net| net.addr()).or_else(|_| text.parse::<IpAddr>()).ok()
    });
    PodIps(ips.filter(|ip| seen.insert(*ip)).collect())
}

/// The versions in the answer to VERSION.
pub(super) fn supported_versions(answer: &Value) -> Vec<String> {
    let versions = answer["supportedVersions"].as_array().into_iter().flatten();
    versions.filter_map(Value::as_str).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};
    use serde_json::json;

    use super::*;

    fn check(text: &str, single: bool, expected: Expect) {
        let actual = match NetworkList::parse(text, Path::new("10-net.conflist"), single) {
            Ok(list) => {
                let kinds: Vec<&str> = list.plugins.iter().map(|plugin| plugin.kind.as_str()).collect();
                format!("{} {} {}", list.name, list.version, kinds.join(" "))
            }
            Err(why) => why,
        };
        expected.assert_eq(&actual);
    }

    #[test]
    fn lists_are_read_or_refused_with_a_reason() {
        let plugins = r#""plugins":[{"type":"bridge"},{"type":"portmap"}]"#;
        check(
            &format!(r#"{{"cniVersion":"1.0.0","name":"net",{plugins}}}"#),
            false,
            expect!["net 1.0.0 bridge portmap"],
        );
        check(
            &format!(r#"{{"cniVersion":"1.0.0","cniVersions":["1.1.0","2.0.0"],"name":"net",{plugins}}}"#),
            false,
            expect!["net 1.1.0 bridge portmap"],
        );
        check(r#"{"cniVersion":"0.3.1","name":"one","type":"ptp"}"#, true, expect!["one 0.3.1 ptp"]);
        check(
            r#"{"cniVersion":"0.3.1","name":"one","type":"ptp"}"#,
            false,
            expect![[r#""plugins" is not a list"#]],
        );
        check(
            r#"{"cniVersion":"9.0.0","name":"one","type":"ptp"}"#,
            true,
            expect![[r#"its CNI version ["9.0.0"] is none of 0.3.0, 0.3.1, 0.4.0, 1.0.0, 1.0.1, 1.1.0"#]],
        );
        check(
            r#"{"cniVersion":"1.0.0","name":"one","type":"../sh"}"#,
            true,
            expect![[r#"the plugin type "../sh" is no file name"#]],
        );
        check(r#"{"cniVersion":"1.0.0","plugins":[]}"#, false, expect![[r#""plugins" is empty"#]]);
        check("[]", false, expect!["not a JSON object"]);
    }

    #[test]
    fn a_plugin_is_told_only_what_it_asks_for() {
        let text = r#"{"cniVersion":"1.0.0","name":"net","type":"portmap","snat":true,"capabilities":{"portMappings":true}}"#;
        let list = NetworkList::parse(text, Path::new("x.conf"), true).unwrap();
        let told = json!({"portMappings": [1], "dns": {}});
        let stdin = list.stdin(&list.plugins[0], told.as_object().unwrap(), Some(&json!({"ips": []})));
        expect![[r#"{"cniVersion":"1.0.0","name":"net","prevResult":{"ips":[]},"runtimeConfig":{"portMappings":[1]},"snat":true,"type":"portmap"}"#]]
            .assert_eq(&stdin.to_string());
    }

    #[test]
    fn addresses_of_the_nodes_side_are_not_the_pods() {
        let result = json!({
            "interfaces": [{"name": "br0"}, {"name": "eth0", "sandbox": "/run/netns/x"}],
            "ips": [
                {"address": "10.0.0.1/24", "interface": 0},
                {"address": "10.0.0.5/24", "interface": 1},
                {"address": "fd00::5/64"},
                {"address": "10.0.0.5/24"},
            ],
        });
        let ips = ips(&result);
        assert_eq!(ips.0, ["10.0.0.5".parse::<IpAddr>().unwrap(), "fd00::5".parse().unwrap()]);
    }
}
