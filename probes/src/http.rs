//! The HTTP probe.
//!
//! Guarantees: follows redirects to the same host only, ten at most; reads 10 KiB of a body and no more; one
//! connection per request, so that a server that is full is seen as one.

use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use http::header::{ACCEPT, CONNECTION, HOST, HeaderName, HeaderValue, LOCATION, REFERER, USER_AGENT};
use http::{Request, Response};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::TlsConnector;

use crate::model::{Outcome, Scheme};
use crate::url::Url;
use crate::{tcp, words};

/// How much of a body is read.
const MAX_BODY: usize = 10 * 1024;
const MAX_REDIRECTS: usize = 10;

/// Asks, and follows redirects.
pub(crate) async fn probe(first: &Url, headers: &[(String, String)]) -> Outcome {
    let mut url = first.clone();
    let mut referer = None;
    let mut keep_host = true;
    let failed = |url: &Url, why: &str| Outcome::Failure { message: format!("Get \"{url}\": {why}") };
    for _ in 0..=MAX_REDIRECTS {
        let response = match get(&url, headers, keep_host, referer.as_deref()).await {
            Ok(response) => response,
            Err(why) => return failed(&url, &why),
        };
        let next = match redirect(&url, &response) {
            Redirect::None => return judge(response).await,
            Redirect::To(next, same_host) => {
                keep_host &= same_host;
                next
            }
            Redirect::Nowhere(location) => {
                return failed(&url, &format!("failed to parse Location header {location:?}"));
            }
        };
        if next.host != first.host {
            // The server answers, and what is elsewhere is not this container's business.
            return judge(response).await;
        }
        referer = Some(url.to_string());
        url = next;
    }
    failed(&url, "stopped after 10 redirects")
}

/// What it is when the time is over.
pub(crate) fn timed_out(url: &Url) -> Outcome {
    let message =
        format!("Get \"{url}\": context deadline exceeded (Client.Timeout exceeded while awaiting headers)");
    Outcome::Failure { message }
}

enum Redirect {
    None,
    To(Url, bool),
    Nowhere(String),
}

fn redirect(url: &Url, response: &Response<Incoming>) -> Redirect {
    if !matches!(response.status().as_u16(), 301 | 302 | 303 | 307 | 308) {
        return Redirect::None;
    }
    let Some(location) = response.headers().get(LOCATION) else { return Redirect::None };
    let location = String::from_utf8_lossy(location.as_bytes()).into_owned();
    match url.join(&location) {
        Some((next, same_host)) => Redirect::To(next, same_host),
        None => Redirect::Nowhere(location),
    }
}

async fn judge(response: Response<Incoming>) -> Outcome {
    let status = response.status().as_u16();
    let mut body = response.into_body();
    let mut text: Vec<u8> = Vec::new();
    while text.len() < MAX_BODY {
        match body.frame().await {
            Some(Ok(frame)) => text.extend_from_slice(frame.data_ref().map_or(&[][..], Bytes::as_ref)),
            Some(Err(err)) => {
                return Outcome::Failure { message: format!("read body: {}", words::root_cause(&err)) };
            }
            None => break,
        }
    }
    let body = words::clip(&text, MAX_BODY);
    match status {
        200..300 => Outcome::Success { message: body },
        300..400 => {
            Outcome::Warning { message: format!("Probe terminated redirects, Response body: {body}") }
        }
        _ => Outcome::Failure { message: format!("HTTP probe failed with statuscode: {status}") },
    }
}

async fn get(
    url: &Url,
    headers: &[(String, String)],
    keep_host: bool,
    referer: Option<&str>,
) -> Result<Response<Incoming>, String> {
    let request = request(url, headers, keep_host, referer)?;
    let stream = tcp::connect(&url.host, url.port).await?;
    match url.scheme {
        Scheme::Http => send(stream, request).await,
        Scheme::Https => {
            let name = ServerName::try_from(url.host.clone()).map_err(|err| format!("tls: {err}"))?;
            let stream = TlsConnector::from(Arc::clone(&TLS)).connect(name, stream).await;
            send(stream.map_err(|err| format!("tls: {}", words::root_cause(&err)))?, request).await
        }
    }
}

/// The request: the probe's own headers win over the defaults.
fn request(
    url: &Url,
    headers: &[(String, String)],
    keep_host: bool,
    referer: Option<&str>,
) -> Result<Request<Empty<Bytes>>, String> {
    let mut request = Request::get(&url.path)
        .body(Empty::new())
        .map_err(|err| format!("net/http: invalid path {:?}: {err}", url.path))?;
    let all = request.headers_mut();
    let mut host = None;
    for (name, value) in headers {
        let bad = || format!("net/http: invalid header field {name:?}");
        let key = HeaderName::try_from(name.as_str()).map_err(|_| bad())?;
        let value = HeaderValue::try_from(value.as_str()).map_err(|_| bad())?;
        if key == HOST {
            host = Some(value);
        } else {
            all.append(key, value);
        }
    }
    let own = HeaderValue::try_from(url.authority())
        .map_err(|_| format!("net/http: invalid host {:?}", url.authority()))?;
    let host = host.filter(|host| keep_host && !host.is_empty()).unwrap_or(own);
    all.insert(HOST, host);
    all.insert(CONNECTION, HeaderValue::from_static("close"));
    for (name, default) in [(USER_AGENT, words::USER_AGENT), (ACCEPT, "*/*")] {
        match all.get(&name) {
            None => drop(all.insert(name, HeaderValue::from_static(default))),
            // Written as empty: not wanted at all.
            Some(value) if value.is_empty() => drop(all.remove(name)),
            Some(_) => {}
        }
    }
    if let Some(referer) = referer.and_then(|referer| HeaderValue::try_from(referer).ok()) {
        all.entry(REFERER).or_insert(referer);
    }
    Ok(request)
}

async fn send(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Empty<Bytes>>,
) -> Result<Response<Incoming>, String> {
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|err| word(&err))?;
    // Ends with the answer's body, or when the answer is dropped.
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(|err| word(&err))
}

fn word(err: &hyper::Error) -> String {
    if err.is_incomplete_message() {
        return "EOF".to_owned();
    }
    if err.is_parse() {
        return "net/http: HTTP/1.x transport connection broken: malformed HTTP response".to_owned();
    }
    words::root_cause(err)
}

/// One configuration for all probes: any certificate will do.
static TLS: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("the provider has the default versions")
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
        .with_no_client_auth();
    Arc::new(config)
});

/// Kubernetes promises that HTTPS probes do not verify: pods have certificates for their own names and purposes.
#[derive(Debug)]
struct AnyCertificate(Arc<CryptoProvider>);

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
