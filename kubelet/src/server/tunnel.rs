//! exec, attach and port-forward: asks the runtime for a URL, connects to it, and copies bytes.
//!
//! Guarantees: nothing is interpreted on the way, so every protocol that client and runtime agree on
//! works; a failed upgrade closes the connection to the runtime.

use cri_api::v1 as cri;
use http::{HeaderName, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use tracing::debug;

use super::{Body, State, flag, runtime_stream, text};
use crate::labels;
use crate::pod::view::PodKey;

type Answer = Response<Body>;

pub(super) async fn exec(
    state: &State,
    ns: &str,
    pod: &str,
    container: &str,
    query: &[(String, String)],
    request: Request<Incoming>,
) -> Answer {
    let id = match running(state, ns, pod, container) {
        Ok(id) => id,
        Err(answer) => return *answer,
    };
    let cmd: Vec<String> = query.iter().filter(|(k, _)| k == "command").map(|(_, v)| v.clone()).collect();
    if cmd.is_empty() {
        return text(StatusCode::BAD_REQUEST, "you must specify at least one command for the container");
    }
    let (stdin, stdout, stderr, tty) = match streams(query) {
        Ok(streams) => streams,
        Err(why) => return text(StatusCode::BAD_REQUEST, why),
    };
    let asked = cri::ExecRequest { container_id: id, cmd, tty, stdin, stdout, stderr };
    match state.shared.cri.exec(asked).await {
        Ok(answer) => forward(state, &answer.url, request).await,
        Err(err) => runtime_error(&err),
    }
}

pub(super) async fn attach(
    state: &State,
    ns: &str,
    pod: &str,
    container: &str,
    query: &[(String, String)],
    request: Request<Incoming>,
) -> Answer {
    let id = match running(state, ns, pod, container) {
        Ok(id) => id,
        Err(answer) => return *answer,
    };
    let (stdin, stdout, stderr, tty) = match streams(query) {
        Ok(streams) => streams,
        Err(why) => return text(StatusCode::BAD_REQUEST, why),
    };
    let asked = cri::AttachRequest { container_id: id, stdin, tty, stdout, stderr };
    match state.shared.cri.attach(asked).await {
        Ok(answer) => forward(state, &answer.url, request).await,
        Err(err) => runtime_error(&err),
    }
}

pub(super) async fn port_forward(
    state: &State,
    ns: &str,
    pod: &str,
    query: &[(String, String)],
    request: Request<Incoming>,
) -> Answer {
    let Some((key, _)) = state.fleet.find(ns, pod) else { return no_pod(pod) };
    let sandbox = match sandbox(state, &key).await {
        Ok(Some(id)) => id,
        Ok(None) => {
            return text(
                StatusCode::BAD_REQUEST,
                format!("unable to forward port because pod \"{pod}\" has no running sandbox"),
            );
        }
        Err(err) => return runtime_error(&err),
    };
    let ports = query.iter().filter(|(k, _)| k == "port" || k == "ports");
    let ports: Result<Vec<i32>, String> = ports
        .flat_map(|(_, v)| v.split(','))
        .map(|p| p.parse::<u16>().map(i32::from).map_err(|_| format!("invalid port {p:?}")))
        .collect();
    let port = match ports {
        Ok(ports) => ports,
        Err(why) => return text(StatusCode::BAD_REQUEST, why),
    };
    match state.shared.cri.port_forward(cri::PortForwardRequest { pod_sandbox_id: sandbox, port }).await {
        Ok(answer) => forward(state, &answer.url, request).await,
        Err(err) => runtime_error(&err),
    }
}

/// stdin, stdout, stderr, tty under the kubelet's names and the apiserver's.
fn streams(query: &[(String, String)]) -> Result<(bool, bool, bool, bool), &'static str> {
    let tty = flag(query, &["tty"]);
    let stdin = flag(query, &["input", "stdin"]);
    let stdout = flag(query, &["output", "stdout"]);
    // A terminal has one output.
    let stderr = flag(query, &["error", "stderr"]) && !tty;
    if !stdin && !stdout && !stderr {
        return Err("you must specify at least 1 of stdin, stdout, stderr");
    }
    Ok((stdin, stdout, stderr, tty))
}

/// Id of a running container.
pub(super) fn running(state: &State, ns: &str, pod: &str, container: &str) -> Result<String, Box<Answer>> {
    let (_, object) = state.fleet.find(ns, pod).ok_or_else(|| Box::new(no_pod(pod)))?;
    id_of(&object, container).ok_or_else(|| {
        Box::new(text(StatusCode::NOT_FOUND, format!("container not found (\"{container}\")")))
    })
}

fn id_of(pod: &Pod, container: &str) -> Option<String> {
    let status = pod.status.as_ref()?;
    let all = status.container_statuses.iter().chain(&status.init_container_statuses).flatten();
    let found = all.into_iter().find(|s| s.name == container)?;
    found.state.as_ref()?.running.as_ref()?;
    Some(found.container_id.as_deref()?.split_once("://")?.1.to_owned())
}

async fn sandbox(state: &State, key: &PodKey) -> Result<Option<String>, tonic::Status> {
    let filter = cri::PodSandboxFilter {
        label_selector: [(labels::POD_UID.to_owned(), key.uid.to_string())].into(),
        state: Some(cri::PodSandboxStateValue { state: cri::PodSandboxState::SandboxReady as i32 }),
        ..Default::default()
    };
    let list = state.shared.cri.list_pod_sandbox(cri::ListPodSandboxRequest { filter: Some(filter) }).await?;
    Ok(list.items.first().map(|s| s.id.clone()))
}

pub(super) fn no_pod(pod: &str) -> Answer {
    text(StatusCode::NOT_FOUND, format!("pod \"{pod}\" not found"))
}

fn runtime_error(err: &tonic::Status) -> Answer {
    let status = match err.code() {
        tonic::Code::NotFound => StatusCode::NOT_FOUND,
        tonic::Code::InvalidArgument | tonic::Code::FailedPrecondition => StatusCode::BAD_REQUEST,
        _ => StatusCode::INTERNAL_SERVER_ERROR,
    };
    text(status, err.message().to_owned())
}

/// Sends the request on to the runtime's URL and joins the two connections if both upgrade.
async fn forward(state: &State, url: &str, request: Request<Incoming>) -> Answer {
    let bad = |what: String| {
        text(StatusCode::BAD_GATEWAY, format!("connect to the runtime's streaming server: {what}"))
    };
    let Ok(url) = url.parse::<Uri>() else { return bad(format!("{url:?} is no URL")) };
    let own = state.shared.config.streaming_certificate.as_deref();
    let stream = match runtime_stream::connect(&url, own).await {
        Ok(stream) => stream,
        Err(err) => return bad(err.chain()),
    };
    let (mut sender, connection) = match hyper::client::conn::http1::handshake(TokioIo::new(stream)).await {
        Ok(pair) => pair,
        Err(err) => return bad(err.to_string()),
    };
    tokio::spawn(async move {
        if let Err(err) = connection.with_upgrades().await {
            debug!(%err, "connection to the streaming server");
        }
    });
    let mut onward = Request::new(Empty::<bytes::Bytes>::new());
    *onward.method_mut() = request.method().clone();
    *onward.uri_mut() = url.path_and_query().map(|p| Uri::from(p.clone())).unwrap_or_default();
    for (name, value) in request.headers() {
        if passes(name) {
            onward.headers_mut().append(name, value.clone());
        }
    }
    if let Ok(host) = http::HeaderValue::from_str(url.authority().map_or("", |host| host.as_str())) {
        onward.headers_mut().insert(header::HOST, host);
    }
    let mut answer = match sender.send_request(onward).await {
        Ok(answer) => answer,
        Err(err) => return bad(err.to_string()),
    };
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        return refusal(answer).await;
    }
    let theirs = hyper::upgrade::on(&mut answer);
    let ours = hyper::upgrade::on(request);
    tokio::spawn(async move {
        let (Ok(ours), Ok(theirs)) = (ours.await, theirs.await) else { return };
        // Passes each side's end on to the other, so half-closed streams work.
        let copied = tokio::io::copy_bidirectional(&mut TokioIo::new(ours), &mut TokioIo::new(theirs)).await;
        if let Err(err) = copied {
            debug!(%err, "stream ended");
        }
    });
    let (head, _) = answer.into_parts();
    let mut upgraded = text(StatusCode::SWITCHING_PROTOCOLS, "");
    *upgraded.headers_mut() = head.headers;
    upgraded
}

/// Hop-by-hop headers of an upgrade go on; credentials and lengths do not.
fn passes(name: &HeaderName) -> bool {
    !matches!(
        *name,
        header::HOST
            | header::AUTHORIZATION
            | header::COOKIE
            | header::CONTENT_LENGTH
            | header::TRANSFER_ENCODING
    )
}

/// The runtime's answer when it didn't upgrade.
async fn refusal(answer: Response<Incoming>) -> Answer {
    let status = answer.status();
    let body = Limited::new(answer.into_body(), 64 << 10).collect().await;
    match body {
        Ok(body) => text(status, body.to_bytes()),
        Err(err) => text(StatusCode::BAD_GATEWAY, format!("read the streaming server's answer: {err}")),
    }
}
