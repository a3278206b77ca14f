//! Credential provider plugins, by `CredentialProviderConfig` (kubelet.config.k8s.io/v1): programs that know the
//! credentials of a cloud's registries.
//!
//! Guarantees: a plugin is asked only for images that its `matchImages` name; what it answers is used only for
//! the registries that the answer names. An answer is kept as long as it says, or its configuration does.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cri_api::v1::AuthConfig;
use parking_lot::Mutex;
use serde::Deserialize;
use tokio::time::Instant;
use tracing::warn;

use super::exec;
use crate::images::credentials::{split, weight};

/// How long a plugin may think.
const LIMIT: Duration = Duration::from_secs(60);
/// No more answers than this are kept.
const KEPT: usize = 1000;
/// What plugins speak.
const API: &str = "credentialprovider.kubelet.k8s.io";

/// Why the plugins cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PluginError {
    /// The configuration cannot be read.
    #[error("read {path}")]
    Read {
        /// The file or directory.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It is not what it should be.
    #[error("understand {path}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        source: serde_yaml_ng::Error,
    },
    /// A provider makes no sense.
    #[error("{path}: provider `{provider}`: {reason}")]
    Provider {
        /// The file.
        path: PathBuf,
        /// Its name.
        provider: String,
        /// What is wrong.
        reason: String,
    },
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ConfigFile {
    api_version: String,
    kind: String,
    providers: Vec<ProviderFile>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct ProviderFile {
    name: String,
    match_images: Vec<String>,
    default_cache_duration: String,
    api_version: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<Variable>,
    token_attributes: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Variable {
    name: String,
    value: String,
}

#[derive(Debug)]
struct Provider {
    program: PathBuf,
    match_images: Vec<String>,
    keep: Duration,
    api_version: String,
    args: Vec<String>,
    env: Vec<(String, String)>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    kind: String,
    api_version: String,
    cache_key_type: CacheKeyType,
    cache_duration: Option<String>,
    #[serde(default)]
    auth: Option<BTreeMap<String, Pair>>,
}

#[derive(Deserialize, Clone, Copy)]
enum CacheKeyType {
    Image,
    Registry,
    Global,
}

#[derive(Deserialize, Clone)]
struct Pair {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
}

type Pairs = BTreeMap<String, Pair>;

/// The plugins of a node.
#[derive(Default)]
pub struct Plugins {
    providers: Vec<Provider>,
    /// By provider and what the answer is for.
    kept: Mutex<HashMap<(usize, String), (Instant, Pairs)>>,
}

impl Plugins {
    /// Reads the configuration: a file, or a directory of them, in the order of their names. Plugins are
    /// programs in `programs`.
    ///
    /// # Errors
    /// The first file or provider that makes no sense, or whose program is missing.
    pub fn open(config: &Path, programs: &Path) -> Result<Plugins, PluginError> {
        let read = |source| PluginError::Read { path: config.to_owned(), source };
        let mut files = vec![config.to_owned()];
        if std::fs::metadata(config).map_err(read)?.is_dir() {
            let entries = std::fs::read_dir(config).and_then(Iterator::collect::<io::Result<Vec<_>>>);
            files = entries.map_err(read)?.into_iter().map(|e| e.path()).collect();
            let known =
                |path: &PathBuf| path.extension().is_some_and(|e| e == "yaml" || e == "yml" || e == "json");
            files.retain(known);
            files.sort();
        }
        let mut providers: Vec<Provider> = Vec::new();
        for path in files {
            let text = std::fs::read_to_string(&path)
                .map_err(|source| PluginError::Read { path: path.clone(), source })?;
            for provider in parse(&text, &path, programs)? {
                if providers.iter().any(|p| p.program == provider.program) {
                    let name =
                        provider.program.file_name().unwrap_or_default().to_string_lossy().into_owned();
                    let reason = "there is another one of that name".to_owned();
                    return Err(PluginError::Provider { path, provider: name, reason });
                }
                providers.push(provider);
            }
        }
        Ok(Plugins { providers, kept: Mutex::default() })
    }

    /// Credentials for an image, the closest first. A plugin that fails is told in the log and skipped.
    pub async fn lookup(&self, image: &str) -> Vec<AuthConfig> {
        let (registry, path) = split(image);
        let mut found: Vec<(usize, AuthConfig)> = Vec::new();
        for (at, provider) in self.providers.iter().enumerate() {
            if !provider.match_images.iter().any(|pattern| weight(pattern, &registry, &path).is_some()) {
                continue;
            }
            let pairs = match self.kept(at, image, &registry) {
                Some(pairs) => pairs,
                None => match self.ask(at, provider, image, &registry).await {
                    Ok(pairs) => pairs,
                    Err(err) => {
                        warn!(err = %client::describe(err.as_ref()), image, "a credential provider gives nothing");
                        continue;
                    }
                },
            };
            for (server, pair) in pairs {
                if let Some(weight) = weight(&server, &registry, &path) {
                    let auth = AuthConfig {
                        username: pair.username,
                        password: pair.password,
                        server_address: registry.clone(),
                        ..Default::default()
                    };
                    found.push((weight, auth));
                }
            }
        }
        found.sort_by_key(|(weight, _)| std::cmp::Reverse(*weight));
        found.into_iter().map(|(_, auth)| auth).collect()
    }

    fn kept(&self, provider: usize, image: &str, registry: &str) -> Option<Pairs> {
        let mut kept = self.kept.lock();
        let now = Instant::now();
        kept.retain(|_, (until, _)| *until > now);
        let of = |key: &str| kept.get(&(provider, key.to_owned())).map(|(_, pairs)| pairs.clone());
        of(image).or_else(|| of(registry)).or_else(|| of(""))
    }

    async fn ask(
        &self,
        at: usize,
        provider: &Provider,
        image: &str,
        registry: &str,
    ) -> Result<Pairs, Box<dyn std::error::Error + Send + Sync>> {
        let question = serde_json::json!({
            "kind": "CredentialProviderRequest", "apiVersion": provider.api_version, "image": image,
        });
        let question = question.to_string();
        let said =
            exec::ask(&provider.program, &provider.args, &provider.env, question.as_bytes(), LIMIT).await?;
        let name = provider.program.display();
        // What the parser says may quote a secret.
        let answer: Answer = serde_json::from_slice(&said)
            .map_err(|_| format!("{name} answers no CredentialProviderResponse"))?;
        if answer.kind != "CredentialProviderResponse" || answer.api_version != provider.api_version {
            return Err(format!("{name} answers {} of {}", answer.kind, answer.api_version).into());
        }
        let keep = match answer.cache_duration.as_deref() {
            None => provider.keep,
            Some(text) => duration(text).ok_or_else(|| format!("{name} has a bad cacheDuration"))?,
        };
        let pairs = answer.auth.unwrap_or_default();
        let key = match answer.cache_key_type {
            CacheKeyType::Image => image,
            CacheKeyType::Registry => registry,
            CacheKeyType::Global => "",
        };
        let mut kept = self.kept.lock();
        if keep > Duration::ZERO && kept.len() < KEPT {
            kept.insert((at, key.to_owned()), (Instant::now() + keep, pairs.clone()));
        }
        Ok(pairs)
    }
}

fn parse(text: &str, path: &Path, programs: &Path) -> Result<Vec<Provider>, PluginError> {
    let file: ConfigFile = serde_yaml_ng::from_str(text)
        .map_err(|source| PluginError::Parse { path: path.to_owned(), source })?;
    let bad = |provider: &str, reason: &str| PluginError::Provider {
        path: path.to_owned(),
        provider: provider.to_owned(),
        reason: reason.to_owned(),
    };
    let group = file.api_version.strip_prefix("kubelet.config.k8s.io/");
    if file.kind != "CredentialProviderConfig" || !matches!(group, Some("v1" | "v1beta1")) {
        return Err(bad("", "the file is no CredentialProviderConfig of kubelet.config.k8s.io/v1"));
    }
    let one = |p: ProviderFile| {
        let plain =
            !p.name.is_empty() && !p.name.contains(['/', ' ']) && !matches!(p.name.as_str(), "." | "..");
        if !plain {
            return Err(bad(&p.name, "its name is no program's name"));
        }
        if p.match_images.is_empty() {
            return Err(bad(&p.name, "matchImages is empty"));
        }
        if !matches!(p.api_version.strip_prefix(API), Some("/v1" | "/v1beta1")) {
            return Err(bad(&p.name, "apiVersion must be credentialprovider.kubelet.k8s.io/v1"));
        }
        if p.token_attributes.is_some() {
            let why = "tokenAttributes (tokens of service accounts for plugins) is not supported; remove it";
            return Err(bad(&p.name, why));
        }
        let keep = duration(&p.default_cache_duration)
            .ok_or_else(|| bad(&p.name, "defaultCacheDuration is no duration like 12h or 90s"))?;
        let program = programs.join(&p.name);
        if !program.is_file() {
            return Err(bad(&p.name, &format!("there is no program {}", program.display())));
        }
        let env = p.env.into_iter().map(|v| (v.name, v.value)).collect();
        let (match_images, api_version, args) = (p.match_images, p.api_version, p.args);
        Ok(Provider { program, match_images, keep, api_version, args, env })
    };
    file.providers.into_iter().map(one).collect()
}

/// A duration as Go writes it, e.g. `1h30m` or `1.5s`; never negative.
pub(crate) fn duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut sum = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit()).unwrap_or(rest.len());
        let seconds = match &rest[..unit_end] {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            "us" | "µs" => 1e-6,
            "ns" => 1e-9,
            _ => return None,
        };
        rest = &rest[unit_end..];
        sum = sum.checked_add(Duration::try_from_secs_f64(number * seconds).ok()?)?;
    }
    (!text.is_empty()).then_some(sum)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    struct Place(tempfile::TempDir);

    impl Place {
        /// A plugin that notes each question in `asked` and answers with `answer`.
        fn new(answer: &str) -> Place {
            let dir = tempfile::tempdir().expect("a directory");
            let program = dir.path().join("cloud");
            let script = format!(
                "#!/bin/sh\ncat >> {0}/asked; echo >> {0}/asked\n[ \"$REGION $1\" = \"here get\" ] || exit 4\ncat <<'E'\n{answer}\nE\n",
                dir.path().display()
            );
            std::fs::write(&program, script).expect("written");
            std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("set");
            Place(dir)
        }

        fn open(&self, keep: &str) -> Plugins {
            let config = self.0.path().join("config.yaml");
            let text = format!(
                "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- name: cloud\n  matchImages: ['*.cloud.example', 'hub.example/team']\n  defaultCacheDuration: {keep}\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n  args: [get]\n  env: [{{name: REGION, value: here}}]\n"
            );
            std::fs::write(&config, text).expect("written");
            Plugins::open(&config, self.0.path()).expect("a good configuration")
        }

        fn asked(&self) -> Vec<String> {
            let text = std::fs::read_to_string(self.0.path().join("asked")).unwrap_or_default();
            text.lines().map(str::to_owned).collect()
        }
    }

    fn answer(key: &str, more: &str) -> String {
        format!(
            r#"{{"kind":"CredentialProviderResponse","apiVersion":"credentialprovider.kubelet.k8s.io/v1","cacheKeyType":"{key}",{more}"auth":{{"*.cloud.example":{{"username":"u","password":"p"}},"evil.example":{{"username":"x","password":"y"}}}}}}"#
        )
    }

    #[tokio::test]
    async fn asks_and_keeps_by_registry() {
        let place = Place::new(&answer("Registry", ""));
        let plugins = place.open("1h");
        let found = plugins.lookup("a.cloud.example/x:1").await;
        assert_eq!(found.len(), 1);
        assert_eq!((found[0].username.as_str(), found[0].server_address.as_str()), ("u", "a.cloud.example"));
        plugins.lookup("a.cloud.example/other").await;
        assert_eq!(place.asked().len(), 1);
        plugins.lookup("b.cloud.example/x").await;
        let asked = place.asked();
        assert_eq!(asked.len(), 2);
        let question: serde_json::Value = serde_json::from_str(&asked[0]).expect("JSON");
        assert_eq!(question["image"], "a.cloud.example/x:1");
        assert_eq!(question["kind"], "CredentialProviderRequest");
        // Not one of its images; and what it says of others counts for nothing.
        assert!(plugins.lookup("evil.example/x").await.is_empty());
        assert!(plugins.lookup("hub.example/team/x").await.is_empty());
        assert_eq!(place.asked().len(), 3);
    }

    #[tokio::test]
    async fn keeps_as_long_as_the_answer_says() {
        for (key, more, keep, questions) in [
            ("Image", "", "1h", 2),
            ("Global", "", "1h", 1),
            ("Global", "", "0s", 3),
            ("Global", r#""cacheDuration":"0s","#, "1h", 3),
            ("Global", r#""cacheDuration":"5m","#, "0s", 1),
        ] {
            let place = Place::new(&answer(key, more));
            let plugins = place.open(keep);
            for image in ["a.cloud.example/x", "a.cloud.example/x", "b.cloud.example/y"] {
                assert_eq!(plugins.lookup(image).await.len(), 1);
            }
            assert_eq!(place.asked().len(), questions, "{key} {more} {keep}");
        }
    }

    #[tokio::test]
    async fn nonsense_gives_nothing() {
        for wrong in ["", "[]", r#"{"kind":"Other","apiVersion":"x","cacheKeyType":"Image"}"#] {
            assert!(Place::new(wrong).open("1h").lookup("a.cloud.example/x").await.is_empty(), "{wrong}");
        }
    }

    #[test]
    fn mistakes_are_named() {
        let wrong = |providers: &str| {
            let text = format!(
                "apiVersion: kubelet.config.k8s.io/v1\nkind: CredentialProviderConfig\nproviders:\n- {providers}\n"
            );
            parse(&text, Path::new("f"), Path::new("/bin")).expect_err("wrong").to_string()
        };
        let rest = "defaultCacheDuration: 1h, apiVersion: credentialprovider.kubelet.k8s.io/v1";
        assert!(wrong(&format!("{{name: sh, matchImages: [], {rest}}}")).contains("matchImages is empty"));
        assert!(wrong(&format!("{{name: ../sh, matchImages: [x], {rest}}}")).contains("no program's name"));
        assert!(
            wrong(&format!("{{name: nothing-here, matchImages: [x], {rest}}}")).contains("/bin/nothing-here")
        );
        assert!(wrong("{name: sh, matchImages: [x], defaultCacheDuration: soon, apiVersion: credentialprovider.kubelet.k8s.io/v1}").contains("12h"));
        let tokens = format!("{{name: sh, matchImages: [x], {rest}, tokenAttributes: {{}}}}");
        assert!(wrong(&tokens).contains("tokenAttributes"));
    }

    #[test]
    fn durations() {
        assert_eq!(duration("1h30m"), Some(Duration::from_secs(5400)));
        assert_eq!(duration("1.5s"), Some(Duration::from_millis(1500)));
        assert_eq!(duration("0"), Some(Duration::ZERO));
        for bad in ["", "5", "-1s", "1x", "h"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }
}
