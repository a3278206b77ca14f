//! Docker's `config.json`: credentials in it, or with helpers (`credHelpers`, `credsStore`).

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cri_api::v1::AuthConfig;
use serde::Deserialize;
use tracing::warn;

use super::exec;
use crate::images::credentials::{Entry, auth, split, weight};

/// How long a helper may think.
const LIMIT: Duration = Duration::from_secs(20);
/// A configuration has no more bytes.
const LARGEST: u64 = 1 << 20;
/// How helpers know docker's own registry.
const DOCKER_SERVER: &str = "https://index.docker.io/v1/";

#[derive(Deserialize, Default)]
#[serde(default, rename_all = "camelCase")]
struct DockerFile {
    auths: BTreeMap<String, Entry>,
    creds_store: String,
    cred_helpers: BTreeMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    #[serde(default)]
    username: String,
    #[serde(default)]
    secret: String,
}

/// Credentials for an image, from the files that exist; the closest entry first. What cannot be read is
/// told in the log and skipped.
pub async fn lookup(files: &[PathBuf], image: &str) -> Vec<AuthConfig> {
    let mut found = Vec::new();
    for file in files {
        match read(file) {
            Ok(Some(config)) => found.extend(of(&config, image).await),
            Ok(None) => {}
            Err(err) => warn!(file = %file.display(), %err, "skip a docker configuration"),
        }
    }
    found
}

fn read(path: &Path) -> io::Result<Option<DockerFile>> {
    let size = match std::fs::metadata(path) {
        Ok(meta) => meta.len(),
        Err(err) if err.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(err) => return Err(err),
    };
    if size > LARGEST {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    // What the parser says may quote a secret.
    let unreadable = |_| io::Error::new(io::ErrorKind::InvalidData, "it is no docker configuration");
    serde_json::from_slice(&std::fs::read(path)?).map(Some).map_err(unreadable)
}

async fn of(config: &DockerFile, image: &str) -> Vec<AuthConfig> {
    let (registry, path) = split(image);
    let helper = helper(config, &registry);
    let mut found: Vec<(usize, AuthConfig)> = Vec::new();
    for (server, entry) in &config.auths {
        if let Some(weight) = weight(server, &registry, &path)
            && let Some(auth) = auth(&registry, entry)
        {
            found.push((weight, auth));
        }
    }
    found.sort_by_key(|(weight, _)| std::cmp::Reverse(*weight));
    let mut found: Vec<AuthConfig> = found.into_iter().map(|(_, auth)| auth).collect();
    if let Some(helper) = helper
        && let Some(auth) = ask(helper, &registry).await
    {
        found.insert(0, auth);
    }
    found
}

/// The helper that answers for a registry: its own, else the store of all.
fn helper<'a>(config: &'a DockerFile, registry: &str) -> Option<&'a str> {
    let own = config.cred_helpers.iter().find(|(server, _)| weight(server, registry, "") == Some(0));
    own.map(|(_, helper)| helper.as_str()).or(Some(config.creds_store.as_str())).filter(|h| !h.is_empty())
}

/// Asks a helper for a registry's credentials.
async fn ask(helper: &str, registry: &str) -> Option<AuthConfig> {
    if !helper.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.')) {
        warn!(helper, "skip a credential helper whose name is not one");
        return None;
    }
    ask_program(Path::new(&format!("docker-credential-{helper}")), registry).await
}

async fn ask_program(program: &Path, registry: &str) -> Option<AuthConfig> {
    let server = if registry == "docker.io" { DOCKER_SERVER } else { registry };
    let answer = match exec::ask(program, &["get".to_owned()], &[], server.as_bytes(), LIMIT).await {
        Ok(answer) => answer,
        // This is how they say that they have none.
        Err(exec::ExecError::Failed { complaint, .. }) if complaint.contains("credentials not found") => {
            return None;
        }
        Err(err) => {
            warn!(err = %client::describe(&err), registry, "a credential helper gives nothing");
            return None;
        }
    };
    let Ok(answer) = serde_json::from_slice::<Answer>(&answer) else {
        warn!(program = %program.display(), registry, "a credential helper answers nonsense");
        return None;
    };
    let server_address = registry.to_owned();
    Some(if answer.username == "<token>" {
        AuthConfig { identity_token: answer.secret, server_address, ..Default::default() }
    } else {
        AuthConfig {
            username: answer.username,
            password: answer.secret,
            server_address,
            ..Default::default()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(json: &str) -> DockerFile {
        serde_json::from_str(json).expect("a configuration")
    }

    #[test]
    fn a_registry_has_its_own_helper_or_the_store_of_all() {
        let both = config(
            r#"{"credsStore":"all","credHelpers":{"r.io":"own","https://index.docker.io/v1/":"hub"}}"#,
        );
        assert_eq!(helper(&both, "r.io"), Some("own"));
        assert_eq!(helper(&both, "docker.io"), Some("hub"));
        assert_eq!(helper(&both, "other.io"), Some("all"));
        assert_eq!(helper(&config("{}"), "r.io"), None);
    }

    #[tokio::test]
    async fn entries_are_for_their_registry() {
        let file = config(r#"{"auths":{"r.io":{"auth":"dTpw"},"empty.io":{}}}"#);
        assert_eq!(of(&file, "r.io/a").await[0].username, "u");
        assert!(of(&file, "empty.io/a").await.is_empty());
        assert!(of(&file, "other.io/a").await.is_empty());
        assert!(ask("../../bin/sh", "r.io").await.is_none());
    }

    #[tokio::test]
    async fn helpers_are_asked_by_their_protocol() {
        let dir = tempfile::tempdir().expect("a directory");
        let helper = dir.path().join("docker-credential-test");
        let script = r#"#!/bin/sh
[ "$1" = get ] || exit 9
read -r server
case "$server" in
r.io) echo '{"ServerURL":"r.io","Username":"u","Secret":"p"}' ;;
token.io) echo '{"ServerURL":"token.io","Username":"<token>","Secret":"t"}' ;;
https://index.docker.io/v1/) echo '{"Username":"hub","Secret":"p"}' ;;
*) echo "credentials not found in native keychain"; exit 1 ;;
esac
"#;
        std::fs::write(&helper, script).expect("written");
        std::fs::set_permissions(&helper, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("set");
        let user = ask_program(&helper, "r.io").await.expect("credentials");
        assert_eq!(
            (user.username.as_str(), user.password.as_str(), user.server_address.as_str()),
            ("u", "p", "r.io")
        );
        assert_eq!(ask_program(&helper, "token.io").await.expect("a token").identity_token, "t");
        assert_eq!(ask_program(&helper, "docker.io").await.expect("credentials").username, "hub");
        assert!(ask_program(&helper, "other.io").await.is_none());
    }

    #[tokio::test]
    async fn files_that_are_not_there_are_fine() {
        let dir = tempfile::tempdir().expect("a directory");
        let (good, bad) = (dir.path().join("good"), dir.path().join("bad"));
        std::fs::write(&good, r#"{"auths":{"r.io":{"auth":"dTpw"}}}"#).expect("written");
        std::fs::write(&bad, "{").expect("written");
        assert_eq!(lookup(&[dir.path().join("none"), bad, good], "r.io/a").await.len(), 1);
    }
}
