//! Registry credentials.
//!
//! Guarantees: `Debug` never shows a secret.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::Deserialize;

/// Credentials for one registry, as image pull secrets and the CRI hand them over.
#[derive(Clone, PartialEq, Eq, Hash)]
pub enum Auth {
    /// User name and password; sent as basic authentication, or to the token server.
    Basic {
        /// The user.
        username: String,
        /// The password or access token.
        password: String,
    },
    /// An OAuth2 refresh token that the token server exchanges for an access token.
    IdentityToken(String),
    /// A bearer token that is sent to the registry as it is.
    RegistryToken(String),
}

impl fmt::Debug for Auth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Auth::Basic { username, .. } => write!(f, "Basic({username}, …)"),
            Auth::IdentityToken(_) => f.write_str("IdentityToken(…)"),
            Auth::RegistryToken(_) => f.write_str("RegistryToken(…)"),
        }
    }
}

/// Why a docker configuration file gives no credentials.
#[derive(Debug, thiserror::Error)]
pub enum AuthError {
    /// The file is not the JSON we expect.
    #[error("parse docker config JSON")]
    Json(#[source] serde_json::Error),
    /// `auth` of an entry is not base64 of `user:password`.
    #[error("docker config entry for `{0}`: `auth` is not base64 of `user:password`")]
    Entry(String),
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: std::collections::BTreeMap<String, DockerEntry>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct DockerEntry {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl Auth {
    /// Decodes the `auth` field of docker's configuration and of the CRI: base64 of `user:password`.
    /// Gives `None` if it is neither.
    pub fn from_basic_field(auth: &str) -> Option<Auth> {
        let bytes = STANDARD.decode(auth.trim()).ok()?;
        let text = String::from_utf8(bytes).ok()?;
        let (username, password) = text.split_once(':')?;
        // Some tools pad the password with zero bytes.
        let password = password.trim_end_matches('\0');
        Some(Auth::Basic { username: username.to_owned(), password: password.to_owned() })
    }

    /// Finds the credentials for a registry (`docker.io`, `localhost:5000`) and repository in a docker
    /// `config.json`. Entries may have a scheme and a path; the one with the longest matching path wins.
    pub fn from_docker_config(
        json: &[u8],
        domain: &str,
        repository: &str,
    ) -> Result<Option<Auth>, AuthError> {
        let config: DockerConfig = serde_json::from_slice(json).map_err(AuthError::Json)?;
        let found = config
            .auths
            .into_iter()
            .filter_map(|(key, entry)| matched_path(&key, domain, repository).map(|n| (n, key, entry)))
            .max_by_key(|(n, _, _)| *n);
        let Some((_, key, entry)) = found else { return Ok(None) };
        if let Some(token) = entry.registrytoken.filter(|t| !t.is_empty()) {
            return Ok(Some(Auth::RegistryToken(token)));
        }
        if let Some(token) = entry.identitytoken.filter(|t| !t.is_empty()) {
            return Ok(Some(Auth::IdentityToken(token)));
        }
        if let Some(auth) = entry.auth.filter(|a| !a.is_empty()) {
            return Auth::from_basic_field(&auth).map(Some).ok_or(AuthError::Entry(key));
        }
        Ok(match (entry.username, entry.password) {
            (Some(username), Some(password)) => Some(Auth::Basic { username, password }),
            _ => None,
        })
    }
}

/// How long a path of a docker config key matches; `None` if the key is for something else.
fn matched_path(key: &str, domain: &str, repository: &str) -> Option<usize> {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let (host, path) = key.split_once('/').unwrap_or((key, ""));
    let host = match host {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => "docker.io",
        other => other,
    };
    if host != domain {
        return None;
    }
    let path = path.trim_end_matches('/');
    if path.is_empty() || path == "v1" || path == "v2" {
        return Some(0);
    }
    let rest = repository.strip_prefix(path)?;
    (rest.is_empty() || rest.starts_with('/')).then_some(path.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn basic(user: &str) -> Option<Auth> {
        Some(Auth::Basic { username: user.into(), password: "secret".into() })
    }

    #[test]
    fn finds_the_closest_entry() {
        let json = format!(
            r#"{{"auths":{{"https://index.docker.io/v1/":{{"auth":"{}"}},"r.io":{{"username":"b","password":"secret"}},"r.io/team/app":{{"username":"c","password":"secret"}}}}}}"#,
            STANDARD.encode("a:secret")
        );
        let find = |d, r| Auth::from_docker_config(json.as_bytes(), d, r).expect("parses");
        assert_eq!(find("docker.io", "library/nginx"), basic("a"));
        assert_eq!(find("r.io", "other"), basic("b"));
        assert_eq!(find("r.io", "team/app"), basic("c"));
        assert_eq!(find("r.io", "team/apple"), basic("b"));
        assert_eq!(find("x.io", "a"), None);
    }

    #[test]
    fn debug_hides_secrets() {
        assert_eq!(format!("{:?}", basic("a")), "Some(Basic(a, …))");
    }

    #[test]
    fn refuses_a_broken_entry() {
        let json = br#"{"auths":{"r.io":{"auth":"!!!"}}}"#;
        assert!(matches!(Auth::from_docker_config(json, "r.io", "a"), Err(AuthError::Entry(_))));
    }
}
