//! Passing a request on to a kubelet, and, after an upgrade, bytes both ways.
//!
//! Guarantees: the client's credentials never reach the kubelet; a refused upgrade closes the
//! backend's connection and passes its answer on; one side's end of data is passed on while the
//! other side goes on.

use std::sync::Arc;

use api::status::Failure;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::Value;

use crate::{
    app::App,
    respond::{self, Answer},
};

/// What an upgrade needs, and no more.
const UPGRADE_HEADERS: &[&str] = &[
    "connection",
    "upgrade",
    "sec-websocket-key",
    "sec-websocket-version",
    "sec-websocket-protocol",
    "sec-websocket-extensions",
    "x-stream-protocol-version",
    "user-agent",
];
/// Browsers put their token where the protocol should be.
const TOKEN_PROTOCOL: &str = "base64url.bearer.authorization.k8s.io.";
/// Headers that end at a proxy, or that are the client's secrets.
const NOT_FORWARDED: &[&str] = &[
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "authorization",
    "cookie",
    "host",
    "accept-encoding",
];
const ERROR_LIMIT: usize = 64 << 10;

/// Whether a request asks for another protocol.
pub(crate) fn is_upgrade(headers: &HeaderMap) -> bool {
    let asks = |v: &HeaderValue| {
        v.to_str().is_ok_and(|v| v.split(',').any(|t| t.trim().eq_ignore_ascii_case("upgrade")))
    };
    headers.contains_key(header::UPGRADE) && headers.get_all(header::CONNECTION).iter().any(asks)
}

/// The headers of an upgrade for the kubelet.
fn upgrade_headers(from: &HeaderMap) -> HeaderMap {
    let mut out = HeaderMap::new();
    for name in UPGRADE_HEADERS.iter().map(|n| HeaderName::from_static(n)) {
        for value in from.get_all(&name) {
            let mut value = value.clone();
            if name == "sec-websocket-protocol" {
                let kept: Vec<&str> = value
                    .to_str()
                    .unwrap_or("")
                    .split(',')
                    .map(str::trim)
                    .filter(|p| !p.starts_with(TOKEN_PROTOCOL) && !p.is_empty())
                    .collect();
                let Ok(clean) = HeaderValue::from_str(&kept.join(", ")) else { continue };
                value = clean;
            }
            out.append(name.clone(), value);
        }
    }
    out
}

/// Forwards an upgrade to `path` on a node's kubelet.
pub(crate) async fn tunnel(
    app: &Arc<App>,
    node: &str,
    path: &str,
    mut request: Request<Incoming>,
) -> Result<Answer, Failure> {
    let address = app.kubelet_address(node)?;
    let mut outgoing = Request::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *outgoing.method_mut() = request.method().clone();
    *outgoing.uri_mut() = path.parse().map_err(|_| Failure::bad_request("the path cannot be passed on"))?;
    *outgoing.headers_mut() = upgrade_headers(request.headers());
    let mut backend = app.kubelets.send(address, outgoing).await?;
    if backend.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(refusal(backend).await);
    }
    let client_side = hyper::upgrade::on(&mut request);
    let backend_side = hyper::upgrade::on(&mut backend);
    let mut answer = Response::new(respond::full(Bytes::new()));
    *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for name in [
        "connection",
        "upgrade",
        "sec-websocket-accept",
        "sec-websocket-protocol",
        "x-stream-protocol-version",
    ] {
        for value in backend.headers().get_all(name) {
            answer.headers_mut().append(HeaderName::from_static(name), value.clone());
        }
    }
    let stop = app.stop.clone();
    tokio::spawn(async move {
        let copy = async {
            let (client, backend) = tokio::try_join!(client_side, backend_side)?;
            let (mut client, mut backend) = (TokioIo::new(client), TokioIo::new(backend));
            tokio::io::copy_bidirectional(&mut client, &mut backend).await?;
            Ok::<_, Box<dyn std::error::Error + Send + Sync>>(())
        };
        // Cancel-safe: when the server stops, both connections are simply closed.
        tokio::select! {
            done = copy => if let Err(err) = done {
                tracing::debug!(error = %err, "a stream into a pod broke");
            },
            () = stop.cancelled() => {}
        }
    });
    Ok(answer)
}

/// Forwards a plain request to `path` on a node's kubelet, and its answer back as it comes.
pub(crate) async fn pass(
    app: &Arc<App>,
    node: &str,
    path: &str,
    request: Request<Incoming>,
) -> Result<Answer, Failure> {
    let address = app.kubelet_address(node)?;
    let (parts, body) = request.into_parts();
    let mut outgoing = Request::new(body.boxed_unsync());
    *outgoing.method_mut() = parts.method;
    *outgoing.uri_mut() = path.parse().map_err(|_| Failure::bad_request("the path cannot be passed on"))?;
    *outgoing.headers_mut() = forwarded(&parts.headers);
    let backend = app.kubelets.send(address, outgoing).await?;
    let (parts, body) = backend.into_parts();
    let mut answer = Response::new(body.map_err(std::io::Error::other).boxed_unsync());
    *answer.status_mut() = parts.status;
    *answer.headers_mut() = forwarded(&parts.headers);
    Ok(answer)
}

fn forwarded(from: &HeaderMap) -> HeaderMap {
    let mut out = from.clone();
    for name in NOT_FORWARDED {
        out.remove(*name);
    }
    out
}

/// GETs `path` from a node's kubelet as a stream of text.
pub(crate) async fn text(app: &Arc<App>, node: &str, path: &str) -> Result<Answer, Failure> {
    let address = app.kubelet_address(node)?;
    let mut outgoing = Request::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *outgoing.method_mut() = Method::GET;
    *outgoing.uri_mut() = path.parse().map_err(|_| Failure::bad_request("the path cannot be passed on"))?;
    let backend = app.kubelets.send(address, outgoing).await?;
    if !backend.status().is_success() {
        return Err(refusal(backend).await);
    }
    let stop = app.stop.clone();
    let stream = http_body_util::BodyStream::new(backend.into_body().map_err(std::io::Error::other));
    let until_stop = futures::StreamExt::take_until(stream, async move { stop.cancelled().await });
    let body = http_body_util::StreamBody::new(until_stop).boxed_unsync();
    Ok(respond::streamed(200, "text/plain; charset=utf-8", body))
}

/// A kubelet's refusal as ours.
async fn refusal(backend: Response<Incoming>) -> Failure {
    let code = backend.status();
    let body = Limited::new(backend.into_body(), ERROR_LIMIT).collect().await;
    let raw = body.map(|b| b.to_bytes()).unwrap_or_default();
    let status: Option<Value> = serde_json::from_slice(&raw).ok();
    let said = status.as_ref().and_then(|s| s.get("message")?.as_str());
    let message = said.map_or_else(|| String::from_utf8_lossy(&raw).trim().to_owned(), str::to_owned);
    // A redirect, or success without an upgrade, is no answer to pass on.
    let (code, reason) = match code.as_u16() {
        400 => (400, "BadRequest"),
        403 => (403, "Forbidden"),
        404 => (404, "NotFound"),
        405 => (405, "MethodNotAllowed"),
        409 => (409, "Conflict"),
        429 => (429, "TooManyRequests"),
        500 => (500, "InternalError"),
        503 => (503, "ServiceUnavailable"),
        504 => (504, "Timeout"),
        other => {
            return Failure::new(502, "BadGateway", format!("the kubelet answered {other}: {message}"));
        }
    };
    let message = if message.is_empty() { format!("the kubelet answered {code}") } else { message };
    Failure::new(code, reason, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_stay_here() {
        let mut from = HeaderMap::new();
        for (name, value) in [
            ("authorization", "Bearer secret"),
            ("cookie", "a=b"),
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-protocol", "base64url.bearer.authorization.k8s.io.c2VjcmV0, v5.channel.k8s.io"),
            ("x-custom", "1"),
        ] {
            from.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        assert!(is_upgrade(&from));
        let out = upgrade_headers(&from);
        assert_eq!(out.get("sec-websocket-protocol").unwrap(), "v5.channel.k8s.io");
        assert_eq!(out.len(), 3);
        let plain = forwarded(&from);
        assert!(!plain.contains_key("authorization") && !plain.contains_key("cookie"));
        assert!(plain.contains_key("x-custom"));
    }
}
