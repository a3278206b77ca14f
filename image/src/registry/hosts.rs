//! Where a registry's content can be had: containerd's `hosts.toml`, or the registry itself. Pure but for
//! reading the file.

use std::io;
use std::path::{Path, PathBuf};

use ::http::Uri;
use serde::Deserialize;

/// Why a `hosts.toml` cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum HostsError {
    /// It cannot be read.
    #[error("read {path}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It is no TOML of the expected shape.
    #[error("parse {path}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What the parser says.
        source: Box<toml::de::Error>,
    },
    /// A server or host is no URL.
    #[error("{path}: `{url}` is not an http or https URL")]
    Url {
        /// The file.
        path: PathBuf,
        /// The value.
        url: String,
    },
    /// An unknown capability.
    #[error("{path}: unknown capability `{capability}`; expected pull, resolve or push")]
    Capability {
        /// The file.
        path: PathBuf,
        /// The value.
        capability: String,
    },
}

/// One place to ask, in the order of asking.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Endpoint {
    pub(super) https: bool,
    /// Host, with the port if it is not the scheme's.
    pub(super) authority: String,
    /// Path prefix, `/v2` mostly; no slash at the end.
    pub(super) prefix: String,
    /// May turn tags into digests.
    pub(super) resolve: bool,
    /// May deliver content.
    pub(super) pull: bool,
    /// Asked in another registry's stead: it is told which one.
    pub(super) mirror: bool,
    pub(super) tls: TlsOptions,
}

/// How TLS differs from the default for one endpoint.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub(super) struct TlsOptions {
    pub(super) skip_verify: bool,
    pub(super) ca: Vec<PathBuf>,
    /// Certificate and key.
    pub(super) client: Vec<(PathBuf, PathBuf)>,
}

#[derive(Deserialize, Default)]
struct HostsFile {
    server: Option<String>,
    #[serde(default)]
    host: toml::map::Map<String, toml::Value>,
    #[serde(flatten)]
    settings: HostSettings,
}

#[derive(Deserialize, Default)]
struct HostSettings {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<Client>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    override_path: bool,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(PathBuf),
    Many(Vec<PathBuf>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Client {
    One(PathBuf),
    Many(Vec<PathBuf>),
    Pairs(Vec<Vec<PathBuf>>),
}

/// Finds the endpoints of a registry, mirrors first.
pub(super) fn endpoints(directory: Option<&Path>, domain: &str) -> Result<Vec<Endpoint>, HostsError> {
    let Some(path) = directory.and_then(|dir| find(dir, domain)) else { return Ok(vec![origin(domain)]) };
    let text =
        std::fs::read_to_string(&path).map_err(|source| HostsError::Read { path: path.clone(), source })?;
    parse(&text, &path, domain)
}

/// The file for a registry: named after it, or the default one.
fn find(directory: &Path, domain: &str) -> Option<PathBuf> {
    let with_port = domain.rsplit_once(':').map(|(host, port)| format!("{host}_{port}_"));
    let names = [Some(domain.to_owned()), with_port, Some("_default".to_owned())];
    names.into_iter().flatten().map(|name| directory.join(name).join("hosts.toml")).find(|path| path.exists())
}

/// The registry itself: HTTPS, but plain HTTP on the loopback interface.
fn origin(domain: &str) -> Endpoint {
    let authority = match domain {
        "docker.io" => "registry-1.docker.io",
        other => other,
    };
    Endpoint {
        https: !is_loopback(authority),
        authority: authority.to_owned(),
        prefix: "/v2".to_owned(),
        resolve: true,
        pull: true,
        mirror: false,
        tls: TlsOptions::default(),
    }
}

fn parse(text: &str, path: &Path, domain: &str) -> Result<Vec<Endpoint>, HostsError> {
    let fail =
        |source: toml::de::Error| HostsError::Parse { path: path.to_owned(), source: Box::new(source) };
    let file: HostsFile = toml::from_str(text).map_err(fail)?;
    let mut endpoints = Vec::new();
    for (url, settings) in file.host {
        let settings: HostSettings = settings.try_into().map_err(fail)?;
        endpoints.push(endpoint(&url, settings, path, true)?);
    }
    endpoints.push(match file.server {
        Some(url) => endpoint(&url, file.settings, path, false)?,
        None => origin(domain),
    });
    Ok(endpoints)
}

fn endpoint(url: &str, settings: HostSettings, path: &Path, mirror: bool) -> Result<Endpoint, HostsError> {
    let bad = || HostsError::Url { path: path.to_owned(), url: url.to_owned() };
    let with_scheme = if url.contains("://") {
        url.to_owned()
    } else if is_loopback(url.split('/').next().unwrap_or_default()) {
        format!("http://{url}")
    } else {
        format!("https://{url}")
    };
    let uri: Uri = with_scheme.parse().map_err(|_| bad())?;
    let https = match uri.scheme_str() {
        Some("https") => true,
        Some("http") => false,
        _ => return Err(bad()),
    };
    let authority = uri.authority().ok_or_else(bad)?.as_str();
    if authority.contains('@') {
        return Err(bad());
    }
    let authority = if authority == "docker.io" { "registry-1.docker.io" } else { authority };
    let base = uri.path().trim_end_matches('/');
    let prefix =
        if settings.override_path || base.ends_with("/v2") { base.to_owned() } else { format!("{base}/v2") };
    let (mut pull, mut resolve) = (settings.capabilities.is_none(), settings.capabilities.is_none());
    for capability in settings.capabilities.iter().flatten() {
        match capability.as_str() {
            "pull" => pull = true,
            "resolve" => resolve = true,
            "push" | "referrers" => (),
            other => {
                let (path, capability) = (path.to_owned(), other.to_owned());
                return Err(HostsError::Capability { path, capability });
            }
        }
    }
    let base = path.parent().unwrap_or(Path::new("/"));
    let ca = match settings.ca {
        None => Vec::new(),
        Some(OneOrMany::One(path)) => vec![base.join(path)],
        Some(OneOrMany::Many(paths)) => paths.into_iter().map(|p| base.join(p)).collect(),
    };
    let same = |path: PathBuf| (base.join(&path), base.join(&path));
    let client = match settings.client {
        None => Vec::new(),
        Some(Client::One(path)) => vec![same(path)],
        Some(Client::Many(paths)) => paths.into_iter().map(same).collect(),
        Some(Client::Pairs(pairs)) => pairs
            .into_iter()
            .filter_map(|pair| match pair.as_slice() {
                [both] => Some(same(both.clone())),
                [certificate, key] => Some((base.join(certificate), base.join(key))),
                _ => None,
            })
            .collect(),
    };
    let tls = TlsOptions { skip_verify: settings.skip_verify, ca, client };
    Ok(Endpoint { https, authority: authority.to_owned(), prefix, resolve, pull, mirror, tls })
}

/// Whether a host (with or without a port) is this machine.
pub(super) fn is_loopback(authority: &str) -> bool {
    let host = bare_host(authority);
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The host of an authority, without port and brackets.
pub(super) fn bare_host(authority: &str) -> &str {
    match authority.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or(rest),
        None => authority.split(':').next().unwrap_or(authority),
    }
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn check(text: &str, domain: &str, expect: Expect) {
        let shown = match parse(text, Path::new("/etc/certs.d/x/hosts.toml"), domain) {
            Err(err) => format!("error: {err}"),
            Ok(endpoints) => endpoints
                .iter()
                .map(|e| {
                    let scheme = if e.https { "https" } else { "http" };
                    let flags = [(e.resolve, " resolve"), (e.pull, " pull"), (e.mirror, " mirror")];
                    let flags: String = flags.iter().filter(|f| f.0).map(|f| f.1).collect();
                    let skip = if e.tls.skip_verify { " insecure" } else { "" };
                    format!("{scheme}://{}{}{flags}{skip} ca={:?}", e.authority, e.prefix, e.tls.ca)
                })
                .collect::<Vec<_>>()
                .join("\n"),
        };
        expect.assert_eq(&shown);
    }

    #[test]
    fn mirrors_come_first_in_their_order() {
        check(
            r#"
server = "https://registry-1.docker.io"
[host."https://z.example"]
  capabilities = ["pull", "resolve"]
  skip_verify = true
[host."http://a.example:5000/proxy"]
  capabilities = ["pull"]
  ca = "ca.pem"
[host."https://b.example/v2/hub"]
  override_path = true
"#,
            "docker.io",
            expect![[r#"
                https://z.example/v2 resolve pull mirror insecure ca=[]
                http://a.example:5000/proxy/v2 pull mirror ca=["/etc/certs.d/x/ca.pem"]
                https://b.example/v2/hub resolve pull mirror ca=[]
                https://registry-1.docker.io/v2 resolve pull ca=[]"#]],
        );
    }

    #[test]
    fn without_a_server_the_registry_is_last() {
        check("", "localhost:5000", expect!["http://localhost:5000/v2 resolve pull ca=[]"]);
        check("", "ghcr.io", expect!["https://ghcr.io/v2 resolve pull ca=[]"]);
    }

    #[test]
    fn errors_name_the_file() {
        check(
            "server = 'ftp://x'",
            "x",
            expect!["error: /etc/certs.d/x/hosts.toml: `ftp://x` is not an http or https URL"],
        );
        check("server = [", "x", expect!["error: parse /etc/certs.d/x/hosts.toml"]);
        check(
            "[host.'https://x']\ncapabilities=['fly']",
            "x",
            expect![
                "error: /etc/certs.d/x/hosts.toml: unknown capability `fly`; expected pull, resolve or push"
            ],
        );
    }

    #[test]
    fn loopback() {
        for yes in ["localhost", "localhost:5000", "127.0.0.1:1", "127.8.8.8", "[::1]:5000"] {
            assert!(is_loopback(yes), "{yes}");
        }
        for no in ["localhost.example", "10.0.0.1", "[::2]:1", "docker.io"] {
            assert!(!is_loopback(no), "{no}");
        }
    }
}
