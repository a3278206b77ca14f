//! One pull's conversation with a registry and its mirrors.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use ::http::{HeaderMap, HeaderValue, Method, StatusCode, Uri, header};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use hyper::body::Incoming;
use parking_lot::Mutex;
use serde::Deserialize;
use tracing::{debug, info};

use super::challenge::{self, Challenge};
use super::hosts::{Endpoint, TlsOptions, bare_host, endpoints, is_loopback};
use super::http::{Answer, Http, authority, follow};
use super::{ConfigError, RegistryConfig, RegistryError};
use crate::auth::Auth;
use crate::digest::Digest;
use crate::manifest::ACCEPT;
use crate::reference::Reference;

/// Places of a foreign layer that are asked at most.
const FOREIGN_PLACES: usize = 5;

/// The registry client of a store.
pub(crate) struct Registries {
    config: RegistryConfig,
    http: Arc<Http>,
}

impl Registries {
    pub(crate) fn new(config: RegistryConfig) -> Result<Registries, ConfigError> {
        let http = Arc::new(Http::new(&config));
        Ok(Registries { config, http })
    }

    /// Starts a conversation about one repository.
    pub(crate) fn session(&self, of: &Reference, auth: Option<Auth>) -> Result<Session, RegistryError> {
        let endpoints = endpoints(self.config.hosts.as_deref(), of.domain()).map_err(RegistryError::Hosts)?;
        Ok(Session(Arc::new(Inner {
            http: self.http.clone(),
            domain: of.domain().to_owned(),
            repository: of.repository().to_owned(),
            endpoints,
            auth,
            granted: Mutex::default(),
        })))
    }
}

/// A conversation. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Session(Arc<Inner>);

struct Inner {
    http: Arc<Http>,
    domain: String,
    repository: String,
    /// Mirrors first.
    endpoints: Vec<Endpoint>,
    auth: Option<Auth>,
    /// `Authorization` values that worked, by endpoint.
    granted: Mutex<HashMap<String, HeaderValue>>,
}

/// A manifest or index as served.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) bytes: Vec<u8>,
    pub(crate) media_type: String,
    pub(crate) digest: Digest,
}

/// A blob on its way.
pub(crate) struct Blob {
    /// Where in the blob the data starts.
    pub(crate) start: u64,
    http: Arc<Http>,
    host: String,
    body: Incoming,
}

impl Blob {
    /// The next piece; `None` at the end.
    pub(crate) async fn frame(&mut self) -> Result<Option<Bytes>, RegistryError> {
        self.http.frame(&mut self.body, &self.host).await
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Resolve,
    Pull,
}

impl Session {
    /// Asks what a tag or digest is now, without its content. `None` if the registry does not say.
    pub(crate) async fn head(&self, name: &str) -> Result<Option<Digest>, RegistryError> {
        let what = format!("{}:{name}", self.0.repository);
        let headers = accept();
        let path = format!("manifests/{name}");
        let answer = self.ask(Method::HEAD, &path, &what, &headers, Need::Resolve).await?;
        let digest = answer.response.headers().get("docker-content-digest").and_then(|d| d.to_str().ok());
        Ok(digest.and_then(|d| d.parse().ok()))
    }

    /// Gets a manifest or an index, and verifies it against its digest.
    pub(crate) async fn manifest(&self, name: &str, limit: u64) -> Result<Served, RegistryError> {
        let what = format!("{}:{name}", self.0.repository);
        let by_digest: Option<Digest> = name.parse().ok();
        let need = if by_digest.is_some() { Need::Pull } else { Need::Resolve };
        let answer = self.ask(Method::GET, &format!("manifests/{name}"), &what, &accept(), need).await?;
        let header = |name: &str| {
            let value = answer.response.headers().get(name).and_then(|v| v.to_str().ok());
            value.unwrap_or_default().to_owned()
        };
        let media_type = header("content-type");
        let told: Option<Digest> = header("docker-content-digest").parse().ok();
        let host = answer.host.clone();
        let bytes = self.0.http.body(answer, limit).await?;
        let digest = Digest::of(&bytes);
        match by_digest.or(told) {
            Some(expected) if expected != digest => {
                Err(RegistryError::WrongDigest { host, what, expected, actual: digest })
            }
            _ => Ok(Served { bytes, media_type, digest }),
        }
    }

    /// Gets a small blob as a whole, and verifies it.
    pub(crate) async fn small_blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, RegistryError> {
        let what = format!("{}@{digest}", self.0.repository);
        let path = format!("blobs/{digest}");
        let answer = self.ask(Method::GET, &path, &what, &HeaderMap::new(), Need::Pull).await?;
        let host = answer.host.clone();
        let bytes = self.0.http.body(answer, limit).await?;
        let actual = Digest::of(&bytes);
        if actual != *digest {
            return Err(RegistryError::WrongDigest { host, what, expected: digest.clone(), actual });
        }
        Ok(bytes)
    }

    /// Gets a blob from `offset` on; servers without ranges give it from the start.
    pub(crate) async fn blob(&self, digest: &Digest, offset: u64) -> Result<Blob, RegistryError> {
        let what = format!("{}@{digest}", self.0.repository);
        let path = format!("blobs/{digest}");
        let mut headers = HeaderMap::new();
        if offset > 0 {
            let range = format!("bytes={offset}-").parse().expect("digits are a header value");
            headers.insert(header::RANGE, range);
        }
        let answer = match self.ask(Method::GET, &path, &what, &headers, Need::Pull).await {
            Err(RegistryError::Status { status: 416, .. }) => {
                self.ask(Method::GET, &path, &what, &HeaderMap::new(), Need::Pull).await?
            }
            other => other?,
        };
        self.data(answer, offset)
    }

    /// Gets a blob from one of the other places that its manifest names. No credentials are sent there, and
    /// the rules are those for redirects.
    pub(crate) async fn foreign(
        &self,
        urls: &[String],
        digest: &Digest,
        offset: u64,
    ) -> Result<Blob, RegistryError> {
        let origin = self.0.endpoints.last().map_or("https", |e| if e.https { "https" } else { "http" });
        let host = self.0.endpoints.last().map_or(self.0.domain.as_str(), |e| e.authority.as_str());
        let mut headers = HeaderMap::new();
        if offset > 0 {
            let range = format!("bytes={offset}-").parse().expect("digits are a header value");
            headers.insert(header::RANGE, range);
        }
        let mut last = None;
        for url in urls.iter().take(FOREIGN_PLACES) {
            let from: Uri = format!("{origin}://{host}/").parse().map_err(|_| RegistryError::Protocol {
                host: host.to_owned(),
                reason: "its name is no host".into(),
            })?;
            let target = follow(&from, url, host).map_err(|(target, reason)| RegistryError::Redirect {
                host: host.to_owned(),
                target,
                reason,
            });
            let answer = match target {
                Err(err) => Err(err),
                Ok(target) => {
                    let (url, tls) = (target.to_string(), TlsOptions::default());
                    let sent = self.0.http.send(Method::GET, &url, &headers, None, Bytes::new(), &tls);
                    match sent.await {
                        Ok(answer) if answer.response.status().is_success() => Ok(answer),
                        Ok(answer) => Err(self.0.http.refusal(answer, digest.as_str()).await),
                        Err(err) => Err(err),
                    }
                }
            };
            match answer {
                Ok(answer) => return self.data(answer, offset),
                Err(err) => last = Some(err),
            }
        }
        Err(last.unwrap_or_else(|| RegistryError::Protocol {
            host: host.to_owned(),
            reason: "a foreign layer without any place".into(),
        }))
    }

    /// The registry's name, for messages.
    pub(crate) fn domain(&self) -> &str {
        &self.0.domain
    }

    /// The data of an answer to a request from `offset` on.
    fn data(&self, answer: Answer, offset: u64) -> Result<Blob, RegistryError> {
        let start = match answer.response.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = answer.response.headers().get(header::CONTENT_RANGE);
                let start = range.and_then(|r| r.to_str().ok()).and_then(range_start);
                start.filter(|start| *start <= offset).ok_or_else(|| RegistryError::Protocol {
                    host: answer.host.clone(),
                    reason: "it sends another range than the one asked for".into(),
                })?
            }
            _ => 0,
        };
        let Answer { response, host } = answer;
        Ok(Blob { start, http: self.0.http.clone(), host, body: response.into_body() })
    }

    /// Asks each endpoint in turn until one has it.
    async fn ask(
        &self,
        method: Method,
        path: &str,
        what: &str,
        headers: &HeaderMap,
        need: Need,
    ) -> Result<Answer, RegistryError> {
        let fits = |e: &&Endpoint| if need == Need::Resolve { e.resolve } else { e.pull };
        let mut last = None;
        for endpoint in self.0.endpoints.iter().filter(fits) {
            if let Some(err) = last.take() {
                let err: RegistryError = err;
                info!(%err, "a mirror does not help; ask the next");
            }
            match self.try_endpoint(endpoint, &method, path, what, headers).await {
                Ok(answer) => return Ok(answer),
                Err(err) => last = Some(err),
            }
        }
        Err(last.unwrap_or_else(|| RegistryError::Protocol {
            host: self.0.domain.clone(),
            reason: "no endpoint in its hosts.toml may be asked for this".into(),
        }))
    }

    /// Asks one endpoint; what passes by itself is tried a few times.
    async fn try_endpoint(
        &self,
        endpoint: &Endpoint,
        method: &Method,
        path: &str,
        what: &str,
        headers: &HeaderMap,
    ) -> Result<Answer, RegistryError> {
        let mut pause = Duration::from_millis(200);
        for _ in 0..2 {
            match self.authorised(endpoint, method, path, what, headers).await {
                Err(err @ (RegistryError::Broken { .. } | RegistryError::Status { status: 500.., .. })) => {
                    debug!(%err, "try again");
                }
                other => return other,
            }
            tokio::time::sleep(pause).await;
            pause *= 4;
        }
        self.authorised(endpoint, method, path, what, headers).await
    }

    /// One request, and another one if the first is answered with a challenge.
    async fn authorised(
        &self,
        endpoint: &Endpoint,
        method: &Method,
        path: &str,
        what: &str,
        headers: &HeaderMap,
    ) -> Result<Answer, RegistryError> {
        let scheme = if endpoint.https { "https" } else { "http" };
        let query = if endpoint.mirror { format!("?ns={}", escape(&self.0.domain)) } else { String::new() };
        let (host, prefix) = (&endpoint.authority, &endpoint.prefix);
        let url = format!("{scheme}://{host}{prefix}/{}/{path}{query}", self.0.repository);
        let key = format!("{scheme}://{host}");
        let send = async |credentials: Option<&HeaderValue>| {
            let http = &self.0.http;
            http.send(method.clone(), &url, headers, credentials, Bytes::new(), &endpoint.tls).await
        };
        let known = self.0.granted.lock().get(&key).cloned();
        let answer = send(known.as_ref()).await?;
        if answer.response.status().is_success() {
            return Ok(answer);
        }
        // A challenge of a redirect's target is none of the registry's.
        let challenged = answer.response.status() == StatusCode::UNAUTHORIZED && answer.host == *host;
        let offers = answer.response.headers().get_all(header::WWW_AUTHENTICATE);
        let offers: Vec<&str> = offers.iter().filter_map(|v| v.to_str().ok()).collect();
        let credentials = match challenge::parse(&offers.join(", ")) {
            Some(challenge) if challenged => self.credentials(endpoint, &challenge, what).await?,
            _ => None,
        };
        let Some(credentials) = credentials else {
            return Err(self.0.http.refusal(answer, what).await);
        };
        let answer = send(Some(&credentials)).await?;
        if !answer.response.status().is_success() {
            return Err(self.0.http.refusal(answer, what).await);
        }
        self.0.granted.lock().insert(key, credentials);
        Ok(answer)
    }

    /// Answers a challenge; `None` if we have nothing to answer it with.
    async fn credentials(
        &self,
        endpoint: &Endpoint,
        challenge: &Challenge,
        what: &str,
    ) -> Result<Option<HeaderValue>, RegistryError> {
        // Credentials are for the registry itself, not for those that stand in for it.
        let auth = self.0.auth.as_ref().filter(|_| !endpoint.mirror);
        let value = match (challenge, auth) {
            (Challenge::Basic, Some(Auth::Basic { username, password })) => basic(username, password),
            (Challenge::Basic, _) => return Ok(None),
            (Challenge::Bearer { .. }, Some(Auth::RegistryToken(token))) => format!("Bearer {token}"),
            (Challenge::Bearer { realm, service, scope }, auth) => {
                let scope = scope.clone().unwrap_or_else(|| format!("repository:{}:pull", self.0.repository));
                let token = self.token(endpoint, realm, service.as_deref(), &scope, auth, what).await?;
                format!("Bearer {token}")
            }
        };
        let mut value = HeaderValue::try_from(value).map_err(|_| RegistryError::Protocol {
            host: endpoint.authority.clone(),
            reason: "the credentials cannot be sent in a header".into(),
        })?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    /// Gets a token from the server that the registry names.
    async fn token(
        &self,
        endpoint: &Endpoint,
        realm: &str,
        service: Option<&str>,
        scope: &str,
        auth: Option<&Auth>,
        what: &str,
    ) -> Result<String, RegistryError> {
        let shown: String = realm.split('?').next().unwrap_or_default().chars().take(200).collect();
        let bad = |reason: &str| RegistryError::Token {
            host: endpoint.authority.clone(),
            realm: shown.clone(),
            reason: reason.to_owned(),
        };
        let uri: Uri = realm.parse().map_err(|_| bad("not a URL"))?;
        let server = authority(&uri);
        match uri.scheme_str() {
            Some("https") => (),
            Some("http") if !endpoint.https => (),
            Some("http") => return Err(bad("refused, it would leave HTTPS")),
            _ => return Err(bad("refused, it is neither HTTP nor HTTPS")),
        }
        if server.is_empty() || server.contains('@') {
            return Err(bad("it has no plain host"));
        }
        if is_loopback(&server) && !is_loopback(&endpoint.authority) {
            return Err(bad("refused, it is on this machine"));
        }
        let mut fields = vec![("scope", scope)];
        fields.extend(service.map(|service| ("service", service)));
        let mut headers = HeaderMap::new();
        let mut credentials = None;
        let (method, url, body) = match auth {
            Some(Auth::IdentityToken(token)) => {
                fields.extend([
                    ("grant_type", "refresh_token"),
                    ("client_id", "orlop"),
                    ("refresh_token", token),
                ]);
                let form = HeaderValue::from_static("application/x-www-form-urlencoded");
                headers.insert(header::CONTENT_TYPE, form);
                (Method::POST, realm.to_owned(), Bytes::from(form_encode(&fields)))
            }
            other => {
                if let Some(Auth::Basic { username, password }) = other {
                    fields.push(("account", username));
                    credentials = HeaderValue::try_from(basic(username, password)).ok();
                }
                let separator = if uri.query().is_some() { '&' } else { '?' };
                (Method::GET, format!("{realm}{separator}{}", form_encode(&fields)), Bytes::new())
            }
        };
        let same = server == endpoint.authority;
        let tls = if same { endpoint.tls.clone() } else { TlsOptions::default() };
        // Literal addresses pass no resolver.
        if bare_host(&server).parse::<std::net::Ipv4Addr>().is_ok_and(|ip| ip.is_link_local()) {
            return Err(bad("refused, it is a link-local address"));
        }
        let http = &self.0.http;
        let answer = http.send(method, &url, &headers, credentials.as_ref(), body, &tls).await?;
        if !answer.response.status().is_success() {
            return Err(http.refusal(answer, what).await);
        }
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        let bytes = http.body(answer, 1 << 20).await?;
        let token: Token = serde_json::from_slice(&bytes).map_err(|_| bad("its answer is no token"))?;
        token
            .token
            .or(token.access_token)
            .filter(|t| !t.is_empty())
            .ok_or_else(|| bad("its answer has no token"))
    }
}

fn accept() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(header::ACCEPT, HeaderValue::from_static(ACCEPT));
    headers
}

fn basic(username: &str, password: &str) -> String {
    format!("Basic {}", STANDARD.encode(format!("{username}:{password}")))
}

/// The first byte of `bytes 5-9/10`.
fn range_start(range: &str) -> Option<u64> {
    range.strip_prefix("bytes ")?.split('-').next()?.trim().parse().ok()
}

fn form_encode(fields: &[(&str, &str)]) -> String {
    fields.iter().map(|(key, value)| format!("{key}={}", escape(value))).collect::<Vec<_>>().join("&")
}

/// Percent-encodes all but the unreserved characters.
fn escape(text: &str) -> String {
    use std::fmt::Write;
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~') {
            escaped.push(char::from(byte));
        } else {
            write!(escaped, "%{byte:02X}").expect("writing to a string cannot fail");
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_things() {
        assert_eq!(escape("repository:a/b:pull"), "repository%3Aa%2Fb%3Apull");
        assert_eq!(range_start("bytes 100-199/200"), Some(100));
        assert_eq!(range_start("bytes */200"), None);
    }
}
