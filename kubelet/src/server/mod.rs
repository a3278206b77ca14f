//! The kubelet API: logs, exec, attach, port-forward, checkpoints, statistics; over TLS, for known clients.
//!
//! Guarantees: nothing but `/healthz` answers without a client certificate of the cluster's CA, and a
//! certificate that is not the apiserver's or a master's gets 403.

mod auth;
mod checkpoint;
mod logs;
mod runtime_stream;
mod stats;
mod tunnel;

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tracing::debug;

use crate::config::ApiConfig;
use crate::fleet::Fleet;
use crate::shared::Shared;
use auth::Identity;

/// The body of an answer.
type Body = BoxBody<Bytes, io::Error>;

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The PEM files don't hold what they should.
    #[error("read {0}")]
    Pem(&'static str, #[source] rustls::pki_types::pem::Error),
    /// Certificate and key don't fit, or are not usable.
    #[error("use the serving certificate")]
    Certificate(#[source] rustls::Error),
    /// The client CA is not usable.
    #[error("use the client CA: {0}")]
    ClientCa(String),
}

/// A TLS set-up.
pub struct Tls {
    acceptor: TlsAcceptor,
}

impl Tls {
    /// Reads certificates and keys.
    pub fn new(config: &ApiConfig) -> Result<Tls, TlsError> {
        let certs = |pem: &[u8], what| {
            let all: Result<Vec<CertificateDer<'static>>, _> = CertificateDer::pem_slice_iter(pem).collect();
            all.map_err(|err| TlsError::Pem(what, err))
        };
        let chain = certs(&config.tls_cert_pem, "the serving certificate")?;
        let key = PrivateKeyDer::from_pem_slice(&config.tls_key_pem)
            .map_err(|err| TlsError::Pem("the serving key", err))?;
        let mut roots = rustls::RootCertStore::empty();
        for ca in certs(&config.client_ca_pem, "the client CA")? {
            roots.add(ca).map_err(|err| TlsError::ClientCa(err.to_string()))?;
        }
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(
            Arc::new(roots),
            Arc::clone(&provider),
        )
        .allow_unauthenticated() // For /healthz; everything else asks for the certificate itself.
        .build()
        .map_err(|err| TlsError::ClientCa(err.to_string()))?;
        let mut server = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Certificate)?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain, key)
            .map_err(TlsError::Certificate)?;
        // Upgrades need HTTP/1.1.
        server.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(Tls { acceptor: TlsAcceptor::from(Arc::new(server)) })
    }
}

/// What handlers work with.
#[derive(Clone)]
struct State {
    shared: Arc<Shared>,
    fleet: Arc<Fleet>,
}

/// Serves for ever; ends by being dropped, and every connection with it.
pub async fn serve(shared: Arc<Shared>, fleet: Arc<Fleet>, listener: TcpListener, tls: Tls) {
    let state = State { shared, fleet };
    let mut connections = tokio::task::JoinSet::new();
    loop {
        // Cancel-safe: neither loses a connection.
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => {
                    connections.spawn(connection(state.clone(), tls.acceptor.clone(), stream));
                }
                // Out of descriptors, most likely: others have to end first.
                Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            },
            Some(_) = connections.join_next(), if !connections.is_empty() => {}
        }
    }
}

async fn connection(state: State, acceptor: TlsAcceptor, stream: TcpStream) {
    // Small writes (an exec's echo, a log line) must not wait for each other.
    let _nodelay = stream.set_nodelay(true);
    let handshake = tokio::time::timeout(Duration::from_secs(10), acceptor.accept(stream)).await;
    let stream = match handshake {
        Ok(Ok(stream)) => stream,
        Ok(Err(err)) => return debug!(%err, "TLS handshake"),
        Err(_elapsed) => return,
    };
    let who = stream.get_ref().1.peer_certificates().and_then(|c| c.first()).and_then(auth::identity);
    let service = service_fn(move |request| {
        let (state, who) = (state.clone(), who.clone());
        async move { Ok::<_, Infallible>(handle(state, who, request).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(Duration::from_secs(30))
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(err) = served {
        debug!(%err, "kubelet API connection");
    }
}

async fn handle(state: State, who: Option<Identity>, request: Request<Incoming>) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let get = request.method() == Method::GET;
    if parts == ["healthz"] && get {
        return text(StatusCode::OK, "ok");
    }
    let Some(who) = who else {
        return text(
            StatusCode::UNAUTHORIZED,
            "Unauthorized: a client certificate of the cluster's CA is needed\n",
        );
    };
    if !auth::allowed(&who) {
        let message = format!(
            "Forbidden (user={}, verb={}, path={path}): only system:masters and the apiserver may use the kubelet API\n",
            who.user,
            request.method()
        );
        return text(StatusCode::FORBIDDEN, message);
    }
    let query: Vec<(String, String)> = query(request.uri().query().unwrap_or(""));
    let post_or_get = get || request.method() == Method::POST;
    match parts.as_slice() {
        ["pods"] if get => json_answer(
            &json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": state.fleet.list()}),
        ),
        ["runningpods"] if get => running_pods(&state),
        ["configz"] if get => json_answer(&configz(&state.shared)),
        ["metrics"] if get => text(StatusCode::OK, state.shared.metrics.render()),
        ["stats", "summary"] if get => stats::summary(&state).await,
        ["containerLogs", ns, pod, container] if get => logs::serve(&state, ns, pod, container, &query).await,
        ["exec", ns, pod, container] | ["exec", ns, pod, _, container] if post_or_get => {
            tunnel::exec(&state, ns, pod, container, &query, request).await
        }
        ["attach", ns, pod, container] | ["attach", ns, pod, _, container] if post_or_get => {
            tunnel::attach(&state, ns, pod, container, &query, request).await
        }
        ["portForward", ns, pod] | ["portForward", ns, pod, _] if post_or_get => {
            tunnel::port_forward(&state, ns, pod, &query, request).await
        }
        ["checkpoint", ns, pod, container] if request.method() == Method::POST => {
            checkpoint::checkpoint(&state, ns, pod, container, &query).await
        }
        ["run", ..] => text(StatusCode::GONE, "/run is not served: it was deprecated long ago; use /exec\n"),
        _ => text(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

fn running_pods(state: &State) -> Response<Body> {
    let mut pods = state.fleet.list();
    pods.retain(|p| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running"));
    json_answer(&json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": pods}))
}

fn configz(shared: &Shared) -> serde_json::Value {
    let c = &shared.config;
    json!({"kubeletconfig": {
        "staticPodPath": c.manifests_dir, "podLogsDir": c.pod_logs_dir, "maxPods": c.max_pods,
        "clusterDomain": c.cluster_domain, "clusterDNS": c.cluster_dns,
        "crashLoopBackOff": {"maxContainerRestartPeriod": format!("{}s", c.crash_loop.max.as_secs())},
        "nodeStatusReportFrequency": format!("{}s", c.node_status_report_frequency.as_secs()),
        "nodeLeaseDurationSeconds": c.node_lease_duration.as_secs(),
        "containerLogMaxSize": c.container_log_max_size.to_string(), "containerLogMaxFiles": c.container_log_max_files,
        "allowedUnsafeSysctls": c.allowed_unsafe_sysctls, "cgroupRoot": c.cgroup_root,
        "systemReserved": c.resources.system_reserved, "kubeReserved": c.resources.kube_reserved,
        "enforceNodeAllocatable": if c.resources.enforce_pods { ["pods"] } else { ["none"] },
        "podPidsLimit": c.resources.pod_pids_limit.unwrap_or(-1),
        "memoryThrottlingFactor": c.resources.memory_throttling_factor,
        "memoryReservationPolicy": if c.resources.memory_reservation { "TieredReservation" } else { "None" },
        "memorySwap": {"swapBehavior": if c.resources.limited_swap { "LimitedSwap" } else { "NoSwap" }},
        "singleProcessOOMKill": c.resources.single_process_oom_kill,
        "userNamespaces": {"idsPerPod": c.user_ids.per_pod()},
        "enableServer": true, "authentication": {"anonymous": {"enabled": false}},
    }})
}

/// Takes a query apart, with its escapes undone.
fn query(text: &str) -> Vec<(String, String)> {
    let pairs = text.split('&').filter(|p| !p.is_empty());
    pairs
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(k, v)| (unescape(k), unescape(v)))
        .collect()
}

fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = bytes.get(i + 1..i + 3).and_then(|h| std::str::from_utf8(h).ok());
        match (bytes[i], hex.and_then(|h| u8::from_str_radix(h, 16).ok())) {
            (b'%', Some(byte)) => {
                out.push(byte);
                i += 3;
            }
            (b'+', _) => {
                out.push(b' ');
                i += 1;
            }
            (byte, _) => {
                out.push(byte);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Whether a query parameter is set under any of its names.
fn flag(query: &[(String, String)], names: &[&str]) -> bool {
    query.iter().any(|(k, v)| names.contains(&k.as_str()) && (v == "1" || v.eq_ignore_ascii_case("true")))
}

fn value<'a>(query: &'a [(String, String)], name: &str) -> Option<&'a str> {
    query.iter().find(|(k, v)| k == name && !v.is_empty()).map(|(_, v)| v.as_str())
}

/// A short plain-text answer.
fn text(status: StatusCode, message: impl Into<Bytes>) -> Response<Body> {
    let body = Full::new(message.into()).map_err(|never| match never {}).boxed();
    let mut answer = Response::new(body);
    *answer.status_mut() = status;
    let plain = http::HeaderValue::from_static("text/plain; charset=utf-8");
    answer.headers_mut().insert(http::header::CONTENT_TYPE, plain);
    answer
}

fn json_answer(value: &serde_json::Value) -> Response<Body> {
    let mut answer = text(StatusCode::OK, value.to_string());
    let json = http::HeaderValue::from_static("application/json");
    answer.headers_mut().insert(http::header::CONTENT_TYPE, json);
    answer
}
