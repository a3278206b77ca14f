//! One HTTP exchange: connections, TLS, redirects, time-outs.

use std::collections::HashMap;
use std::error::Error;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use ::http::{HeaderMap, Method, Request, Response, StatusCode, Uri, header};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::{GaiResolver, Name};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;
use rustls::ClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use tower::Service;

use super::hosts::{TlsOptions, bare_host, is_loopback};
use super::proxy::{Connector, Proxy};
use super::{RegistryConfig, RegistryError};

type HttpClient = Client<HttpsConnector<Connector>, Full<Bytes>>;

const REDIRECTS: usize = 5;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Connections to registries, one pool per set of TLS options.
pub(super) struct Http {
    clients: Mutex<HashMap<TlsOptions, HttpClient>>,
    provider: Arc<CryptoProvider>,
    user_agent: String,
    proxy: Option<Proxy>,
    pub(super) timeout: Duration,
}

/// An answer, and who gave it in the end.
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    pub(super) host: String,
}

impl Http {
    pub(super) fn new(config: &RegistryConfig) -> Http {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        Http {
            clients: Mutex::default(),
            provider,
            user_agent: config.user_agent.clone(),
            proxy: config.proxy.clone(),
            timeout: config.timeout,
        }
    }

    fn client(&self, tls: &TlsOptions) -> io::Result<HttpClient> {
        if let Some(client) = self.clients.lock().get(tls) {
            return Ok(client.clone());
        }
        let config = tls_config(tls, self.provider.clone())?;
        let mut connector = HttpConnector::new_with_resolver(Resolver(GaiResolver::new()));
        connector.enforce_http(false);
        connector.set_connect_timeout(Some(CONNECT_TIMEOUT));
        connector.set_nodelay(true);
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(config)
            .https_or_http()
            // HTTP/2 would put all layers of a pull on one connection and its flow-control window.
            .enable_http1()
            .wrap_connector(Connector::new(connector, self.proxy.as_ref()));
        let client = Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(Duration::from_secs(30))
            .build(connector);
        self.clients.lock().insert(tls.clone(), client.clone());
        Ok(client)
    }

    /// Sends a request and follows redirects. `credentials` (an `Authorization` value) go to the first
    /// host only.
    pub(super) async fn send(
        &self,
        method: Method,
        url: &str,
        headers: &HeaderMap,
        credentials: Option<&::http::HeaderValue>,
        body: Bytes,
        tls: &TlsOptions,
    ) -> Result<Answer, RegistryError> {
        let first = parse_url(url)?;
        let origin = authority(&first);
        let mut uri = first.clone();
        for _ in 0..=REDIRECTS {
            let host = authority(&uri);
            let same = host == origin && uri.scheme() == first.scheme();
            let mut request = Request::new(Full::new(body.clone()));
            *request.method_mut() = method.clone();
            *request.uri_mut() = uri.clone();
            *request.headers_mut() = headers.clone();
            if let Ok(agent) = self.user_agent.parse() {
                request.headers_mut().insert(header::USER_AGENT, agent);
            }
            if let Some(credentials) = credentials.filter(|_| same) {
                request.headers_mut().insert(header::AUTHORIZATION, credentials.clone());
            }
            // Another host's certificate is checked as anybody's.
            let options = if same { tls.clone() } else { TlsOptions::default() };
            let client =
                self.client(&options).map_err(|source| RegistryError::Tls { host: host.clone(), source })?;
            let response = match tokio::time::timeout(self.timeout, client.request(request)).await {
                Err(_) => return Err(self.timed_out(host)),
                Ok(Err(err)) if err.is_connect() => {
                    return Err(RegistryError::Connect { host, source: flatten(err) });
                }
                Ok(Err(err)) => return Err(RegistryError::Broken { host, source: Box::new(err) }),
                Ok(Ok(response)) => response,
            };
            let redirect = matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            if !redirect || method == Method::POST {
                return Ok(Answer { response, host });
            }
            let target = response.headers().get(header::LOCATION).and_then(|l| l.to_str().ok());
            uri = follow(&uri, target.unwrap_or_default(), &origin)
                .map_err(|(target, reason)| RegistryError::Redirect { host, target, reason })?;
        }
        Err(RegistryError::Redirect { host: origin, target: uri.to_string(), reason: "there are too many" })
    }

    pub(super) fn timed_out(&self, host: String) -> RegistryError {
        RegistryError::Timeout { host, seconds: self.timeout.as_secs() }
    }

    /// The next piece of a body; `None` at its end.
    pub(super) async fn frame(
        &self,
        body: &mut Incoming,
        host: &str,
    ) -> Result<Option<Bytes>, RegistryError> {
        loop {
            match tokio::time::timeout(self.timeout, body.frame()).await {
                Err(_) => return Err(self.timed_out(host.to_owned())),
                Ok(None) => return Ok(None),
                Ok(Some(Err(err))) => {
                    return Err(RegistryError::Broken { host: host.to_owned(), source: Box::new(err) });
                }
                Ok(Some(Ok(frame))) => {
                    if let Ok(data) = frame.into_data() {
                        return Ok(Some(data));
                    }
                }
            }
        }
    }

    /// A whole body of at most `limit` bytes.
    pub(super) async fn body(&self, answer: Answer, limit: u64) -> Result<Vec<u8>, RegistryError> {
        let mut body = answer.response.into_body();
        let mut bytes = Vec::new();
        while let Some(data) = self.frame(&mut body, &answer.host).await? {
            if (bytes.len() + data.len()) as u64 > limit {
                return Err(RegistryError::TooLong { expected: limit });
            }
            bytes.extend_from_slice(&data);
        }
        Ok(bytes)
    }

    /// Turns an answer that is no success into an error with the registry's own words.
    pub(super) async fn refusal(&self, answer: Answer, what: &str) -> RegistryError {
        let (status, host) = (answer.response.status(), answer.host.clone());
        let body = self.body(answer, 64 << 10).await.unwrap_or_default();
        let (what, detail) = (what.to_owned(), words(&body));
        match status {
            StatusCode::NOT_FOUND => RegistryError::NotFound { what, host, detail },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                RegistryError::Unauthorized { what, host, detail }
            }
            StatusCode::TOO_MANY_REQUESTS => RegistryError::RateLimit { host, detail },
            status => RegistryError::Status { what, host, status: status.as_u16(), detail },
        }
    }
}

/// The connect error without hyper's wrapping: its own words are only "client error (Connect)".
fn flatten(err: hyper_util::client::legacy::Error) -> Box<dyn Error + Send + Sync> {
    let mut words = Vec::new();
    let mut source = err.source();
    while let Some(err) = source {
        words.push(err.to_string());
        source = err.source();
    }
    words.dedup();
    if words.is_empty() { Box::new(err) } else { words.join(": ").into() }
}

/// The messages of a registry's error answer, bounded.
fn words(body: &[u8]) -> String {
    let value: serde_json::Value = serde_json::from_slice(body).unwrap_or_default();
    let errors = value["errors"].as_array().cloned().unwrap_or_default();
    let each = errors.iter().filter_map(|e| e["message"].as_str().or(e["code"].as_str()));
    each.take(3).collect::<Vec<_>>().join("; ").chars().filter(|c| !c.is_control()).take(300).collect()
}

fn parse_url(url: &str) -> Result<Uri, RegistryError> {
    url.parse().map_err(|_| RegistryError::Protocol {
        host: url.chars().take(200).collect(),
        reason: "not a URL".into(),
    })
}

pub(super) fn authority(uri: &Uri) -> String {
    uri.authority().map(|a| a.as_str().to_owned()).unwrap_or_default()
}

/// Where a redirect leads, if we go there.
pub(super) fn follow(from: &Uri, location: &str, origin: &str) -> Result<Uri, (String, &'static str)> {
    let shown: String = location.split('?').next().unwrap_or_default().chars().take(200).collect();
    let refuse = |reason| Err((shown.clone(), reason));
    let absolute = if location.starts_with('/') && !location.starts_with("//") {
        format!("{}://{}{location}", from.scheme_str().unwrap_or("https"), authority(from))
    } else {
        location.to_owned()
    };
    let Ok(uri) = absolute.parse::<Uri>() else { return refuse("it is no URL") };
    match uri.scheme_str() {
        Some("https") => (),
        Some("http") if from.scheme_str() == Some("http") => (),
        Some("http") => return refuse("it would leave HTTPS"),
        _ => return refuse("it is neither HTTP nor HTTPS"),
    }
    let target = authority(&uri);
    if target.is_empty() || target.contains('@') {
        return refuse("it has no plain host");
    }
    if is_loopback(&target) && !is_loopback(origin) {
        return refuse("it leads to this machine");
    }
    if bare_host(&target).parse::<IpAddr>().is_ok_and(forbidden) {
        return refuse("it leads to a link-local address");
    }
    Ok(uri)
}

/// Addresses where no registry is: metadata services live there.
fn forbidden(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => ip.is_link_local() || ip.is_unspecified() || ip.is_multicast() || ip.is_broadcast(),
        IpAddr::V6(ip) => match ip.to_ipv4_mapped() {
            Some(mapped) => forbidden(IpAddr::V4(mapped)),
            None => ip.is_unicast_link_local() || ip.is_unspecified() || ip.is_multicast(),
        },
    }
}

/// The system's resolver, without addresses where no registry is.
#[derive(Clone)]
pub(super) struct Resolver(GaiResolver);

impl Service<Name> for Resolver {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Service::poll_ready(&mut self.0, context)
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let lookup = self.0.call(name);
        Box::pin(async move {
            let all: Vec<SocketAddr> = lookup.await?.collect();
            let allowed: Vec<SocketAddr> = all.iter().copied().filter(|a| !forbidden(a.ip())).collect();
            if allowed.is_empty() && !all.is_empty() {
                return Err(io::Error::other("the name has only link-local addresses, which are refused"));
            }
            Ok(allowed.into_iter())
        })
    }
}

/// Builds the TLS settings: the machine's CAs, and what `hosts.toml` adds.
fn tls_config(options: &TlsOptions, provider: Arc<CryptoProvider>) -> io::Result<ClientConfig> {
    let invalid = |err: rustls::Error| io::Error::new(io::ErrorKind::InvalidData, err);
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .map_err(invalid)?;
    let builder = if options.skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(AcceptAny(provider)))
    } else {
        let mut roots = rustls::RootCertStore::empty();
        // A machine without CAs can still pull from loopback and from registries with a CA of their own.
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        for path in &options.ca {
            for certificate in CertificateDer::pem_file_iter(path).map_err(io::Error::other)? {
                roots.add(certificate.map_err(io::Error::other)?).map_err(invalid)?;
            }
        }
        builder.with_root_certificates(roots)
    };
    match options.client.first() {
        None => Ok(builder.with_no_client_auth()),
        Some((certificate, key)) => {
            let chain = CertificateDer::pem_file_iter(certificate)
                .and_then(Iterator::collect::<Result<Vec<_>, _>>)
                .map_err(io::Error::other)?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(io::Error::other)?;
            builder.with_client_auth_cert(chain, key).map_err(invalid)
        }
    }
}

/// For `skip_verify`: the administrator asked not to check who answers.
#[derive(Debug)]
struct AcceptAny(Arc<CryptoProvider>);

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.0.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn redirect(from: &str, to: &str) -> Result<String, &'static str> {
        let from: Uri = from.parse().expect("a URL");
        follow(&from, to, &authority(&from)).map(|uri| uri.to_string()).map_err(|(_, reason)| reason)
    }

    #[test]
    fn redirects() {
        let hub = "https://r.io/v2/a/blobs/x";
        assert_eq!(redirect(hub, "https://cdn.io/x?sig=1").as_deref(), Ok("https://cdn.io/x?sig=1"));
        assert_eq!(redirect(hub, "/other").as_deref(), Ok("https://r.io/other"));
        assert_eq!(redirect(hub, "http://cdn.io/x"), Err("it would leave HTTPS"));
        assert_eq!(redirect(hub, "file:///etc/passwd"), Err("it is no URL"));
        assert_eq!(redirect(hub, "https://169.254.169.254/latest"), Err("it leads to a link-local address"));
        assert_eq!(
            redirect(hub, "https://[::ffff:169.254.169.254]/"),
            Err("it leads to a link-local address")
        );
        assert_eq!(redirect(hub, "https://localhost:2379/"), Err("it leads to this machine"));
        assert_eq!(redirect(hub, "https://u:p@x.io/"), Err("it has no plain host"));
        assert_eq!(
            redirect("http://127.0.0.1:5000/v2", "http://localhost:1/").as_deref(),
            Ok("http://localhost:1/")
        );
        assert_eq!(redirect(hub, ""), Err("it is no URL"));
    }

    #[test]
    fn takes_the_registrys_words() {
        let body = br#"{"errors":[{"code":"DENIED","message":"no such luck"}]}"#;
        assert_eq!(words(body), "no such luck");
        assert_eq!(words(b"<html>"), "");
    }
}
