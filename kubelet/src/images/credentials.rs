//! Registry credentials from `imagePullSecrets`.
//!
//! Guarantees: credentials are only offered to the registry they were written for; they appear in no
//! log and in no error.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use cri_api::v1::AuthConfig;
use k8s_openapi::api::core::v1::Secret;
use serde::Deserialize;

use crate::container::env::secret_data;

#[derive(Deserialize)]
struct DockerConfig {
    auths: BTreeMap<String, Entry>,
}

/// Credentials as docker writes them.
#[derive(Deserialize, Clone)]
pub(super) struct Entry {
    #[serde(default)]
    username: String,
    #[serde(default)]
    password: String,
    #[serde(default)]
    auth: String,
    #[serde(default, rename = "identitytoken")]
    identity_token: String,
    #[serde(default, rename = "registrytoken")]
    registry_token: String,
}

/// The credentials for an image, most specific path first.
#[cfg(test)]
fn matching(image: &str, secrets: &[&Secret]) -> Vec<AuthConfig> {
    weighed(image, secrets).into_iter().map(|(_, auth)| auth).collect()
}

/// The credentials for an image with the length of the path that they are for, most specific first.
pub(super) fn weighed(image: &str, secrets: &[&Secret]) -> Vec<(usize, AuthConfig)> {
    let (registry, path) = split(image);
    let mut found: Vec<(usize, AuthConfig)> = Vec::new();
    for (server, entry) in secrets.iter().flat_map(|s| entries(s)) {
        if let Some(weight) = weight(&server, &registry, &path)
            && let Some(auth) = auth(&registry, &entry)
        {
            found.push((weight, auth));
        }
    }
    found.sort_by_key(|(weight, _)| std::cmp::Reverse(*weight));
    found
}

fn entries(secret: &Secret) -> Vec<(String, Entry)> {
    let data = secret_data(secret);
    let new = data.get(".dockerconfigjson").and_then(|d| serde_json::from_slice::<DockerConfig>(d).ok());
    let old = data.get(".dockercfg").and_then(|d| serde_json::from_slice::<BTreeMap<String, Entry>>(d).ok());
    new.map(|c| c.auths).or(old).unwrap_or_default().into_iter().collect()
}

/// The credentials of an entry, for this registry; `None` if it has none.
pub(super) fn auth(registry: &str, entry: &Entry) -> Option<AuthConfig> {
    if [&entry.username, &entry.auth, &entry.identity_token, &entry.registry_token]
        .iter()
        .all(|f| f.is_empty())
    {
        return None;
    }
    let (mut username, mut password) = (entry.username.clone(), entry.password.clone());
    if username.is_empty() && !entry.auth.is_empty() {
        let bytes = STANDARD.decode(entry.auth.trim()).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (user, pass) = text.split_once(':')?;
        (username, password) = (user.into(), pass.into());
    }
    Some(AuthConfig {
        username,
        password,
        server_address: registry.into(),
        identity_token: entry.identity_token.clone(),
        registry_token: entry.registry_token.clone(),
        ..Default::default()
    })
}

/// Registry and repository path of an image, with Docker's defaults.
pub fn split(image: &str) -> (String, String) {
    let name = image.split('@').next().unwrap_or(image);
    match name.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => {
            (first.to_lowercase(), rest.split(':').next().unwrap_or(rest).into())
        }
        _ => {
            let path = name.split(':').next().unwrap_or(name);
            let path = if path.contains('/') { path.to_owned() } else { format!("library/{path}") };
            ("docker.io".into(), path)
        }
    }
}

/// How specifically a server entry names the image's repository; `None` if it doesn't.
pub(super) fn weight(server: &str, registry: &str, path: &str) -> Option<usize> {
    let bare = server.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/');
    let (host, prefix) = bare.split_once('/').unwrap_or((bare, ""));
    let host = host.to_lowercase();
    let prefix = match prefix {
        "v1" | "v2" => "",
        other => other,
    };
    let same_host = match host.as_str() {
        "index.docker.io" | "docker.io" | "registry-1.docker.io" => registry == "docker.io",
        _ => glob_host(&host, registry),
    };
    let inside = prefix.is_empty() || path == prefix || path.starts_with(&format!("{prefix}/"));
    (same_host && inside).then_some(prefix.len())
}

/// `*` matches within one part of a host name.
fn glob_host(pattern: &str, host: &str) -> bool {
    let (p, h): (Vec<&str>, Vec<&str>) = (pattern.split('.').collect(), host.split('.').collect());
    p.len() == h.len() && p.iter().zip(&h).all(|(p, h)| part_matches(p, h))
}

fn part_matches(pattern: &str, part: &str) -> bool {
    match pattern.split_once('*') {
        None => pattern == part,
        Some((head, tail)) => {
            part.len() >= head.len() + tail.len() && part.starts_with(head) && part.ends_with(tail)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(json: &str) -> Secret {
        let data = [(".dockerconfigjson".to_owned(), json.to_owned())].into_iter().collect();
        Secret { string_data: Some(data), ..Secret::default() }
    }

    #[test]
    fn credentials_go_to_their_registry_only() {
        let one = secret(
            r#"{"auths": {"r.example:5000": {"username": "u", "password": "p"},
                "https://index.docker.io/v1/": {"auth": "aHViOnB3"},
                "r.example:5000/team": {"username": "t", "password": "p"},
                "*.wild.example": {"username": "w", "password": "p"}}}"#,
        );
        let users = |image: &str| -> Vec<String> {
            matching(image, &[&one]).into_iter().map(|a| a.username).collect()
        };
        assert_eq!(users("r.example:5000/a"), ["u"]);
        assert_eq!(users("r.example:5000/team/a:1"), ["t", "u"]);
        assert_eq!(users("r.example:5000/teamwork"), ["u"]);
        assert_eq!(users("r.example/a"), [""; 0]);
        assert_eq!(users("nginx"), ["hub"]);
        assert_eq!(users("docker.io/me/app@sha256:00"), ["hub"]);
        assert_eq!(users("a.wild.example/x"), ["w"]);
        assert_eq!(users("a.b.wild.example/x"), [""; 0]);
        // A runtime takes credentials for the image's registry only, and knows no patterns.
        assert_eq!(matching("a.wild.example/x", &[&one])[0].server_address, "a.wild.example");
    }
}
