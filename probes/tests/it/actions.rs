//! What each kind of probe says about each kind of server.

use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use probes::{Action, Exec, ExecError, ExecOutput, Outcome, Probe, Scheme, Target, Thresholds, run};
use tokio::net::TcpListener;

use crate::servers::{answer, grpc, one, raw};

/// Answers every command with the same.
pub struct Canned(pub Result<ExecOutput, ExecError>, pub AtomicU32);

impl Exec for Canned {
    fn exec<'a>(
        &'a self,
        _command: &'a [String],
        _timeout: Duration,
    ) -> Pin<Box<dyn Future<Output = Result<ExecOutput, ExecError>> + Send + 'a>> {
        self.1.fetch_add(1, Ordering::Relaxed);
        Box::pin(std::future::ready(self.0.clone()))
    }
}

pub fn no_exec() -> Canned {
    Canned(Err(ExecError::CannotRun("no container".to_owned())), AtomicU32::new(0))
}

async fn ask(action: Action, timeout: Duration) -> String {
    let thresholds = Thresholds { timeout, ..Thresholds::default() };
    let target = Target { pod_ip: "127.0.0.1".parse().unwrap() };
    word(run(&Probe { action, thresholds }, target, &no_exec()).await)
}

fn word(outcome: Outcome) -> String {
    let kind = match &outcome {
        Outcome::Success { .. } => "success",
        Outcome::Warning { .. } => "warning",
        Outcome::Failure { .. } => "failure",
        Outcome::Unknown { .. } => "unknown",
    };
    format!("{kind}: {}", outcome.message())
}

fn http(address: SocketAddr, path: &str) -> Action {
    Action::Http {
        scheme: Scheme::Http,
        host: None,
        port: address.port(),
        path: path.to_owned(),
        headers: Vec::new(),
    }
}

const SOON: Duration = Duration::from_secs(5);
const SHORT: Duration = Duration::from_millis(200);

/// A port where nobody listens.
async fn nobody() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

#[tokio::test]
async fn http_judges_by_the_status() {
    let (server, mut requests) = raw(|request| match request.split(' ').nth(1).unwrap() {
        "/ok" => answer("200 OK", "", "fine"),
        "/none" => Some("HTTP/1.1 204 No Content\r\n\r\n".to_owned()),
        "/not-modified" => Some("HTTP/1.1 304 Not Modified\r\n\r\n".to_owned()),
        "/missing" => answer("404 Not Found", "", ""),
        "/broken" => answer("500 Internal Server Error", "", "secret"),
        "/garbage" => Some("no http\r\n\r\n".to_owned()),
        "/closed" => Some(String::new()),
        _ => None,
    })
    .await;
    let port = server.port();
    assert_eq!(ask(http(server, "/ok"), SOON).await, "success: fine");
    let request = requests.recv().await.unwrap().to_ascii_lowercase();
    let mut lines: Vec<&str> = request.trim_end().split("\r\n").collect();
    lines[1..].sort_unstable();
    let host = format!("host: 127.0.0.1:{port}");
    assert_eq!(
        lines,
        ["get /ok http/1.1", "accept: */*", "connection: close", &host, "user-agent: kube-probe/1.36"]
    );
    assert_eq!(ask(http(server, "none"), SOON).await, "success: ");
    assert_eq!(
        ask(http(server, "/not-modified"), SOON).await,
        "warning: Probe terminated redirects, Response body: "
    );
    assert_eq!(ask(http(server, "/missing"), SOON).await, "failure: HTTP probe failed with statuscode: 404");
    assert_eq!(ask(http(server, "/broken"), SOON).await, "failure: HTTP probe failed with statuscode: 500");
    let failed = |path: &str, why: &str| format!("failure: Get \"http://127.0.0.1:{port}{path}\": {why}");
    assert_eq!(ask(http(server, "/closed"), SOON).await, failed("/closed", "EOF"));
    let malformed = "net/http: HTTP/1.x transport connection broken: malformed HTTP response";
    assert_eq!(ask(http(server, "/garbage"), SOON).await, failed("/garbage", malformed));
    let late = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)";
    assert_eq!(ask(http(server, "/hangs"), SHORT).await, failed("/hangs", late));
    let gone = nobody().await;
    assert_eq!(
        ask(http(gone, ""), SOON).await,
        format!("failure: Get \"http://{gone}/\": dial tcp {gone}: connect: connection refused")
    );
}

#[tokio::test]
async fn http_sends_the_probes_own_headers() {
    let (server, mut requests) = raw(|_| answer("200 OK", "", "")).await;
    let headers =
        [("Host", "web.example"), ("X-A", "1"), ("X-A", "2"), ("User-Agent", ""), ("Accept", "text/x")];
    let headers = headers.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
    let Action::Http { port, .. } = http(server, "/") else { unreachable!() };
    let action = |headers| Action::Http {
        scheme: Scheme::Http,
        host: Some("localhost".to_owned()),
        port,
        path: "/a b?c=d".to_owned(),
        headers,
    };
    assert_eq!(ask(action(headers), SOON).await, "success: ");
    let request = requests.recv().await.unwrap().to_ascii_lowercase();
    let mut lines: Vec<&str> = request.trim_end().split("\r\n").collect();
    lines[1..].sort_unstable();
    assert_eq!(
        lines,
        [
            "get /a%20b?c=d http/1.1",
            "accept: text/x",
            "connection: close",
            "host: web.example",
            "x-a: 1",
            "x-a: 2"
        ]
    );
    let bad = ask(action(vec![("X".to_owned(), "a\r\nb: c".to_owned())]), SOON).await;
    assert!(bad.ends_with("net/http: invalid header field \"X\""), "{bad}");
}

#[tokio::test]
async fn redirects_stay_on_the_host() {
    let (server, mut requests) = raw(|request| match request.split(' ').nth(1).unwrap() {
        "/here" => answer("302 Found", "Location: /ok\r\n", ""),
        "/other" => answer("301 Moved", "Location: http://192.0.2.1/\r\n", "bye"),
        "/loop" => answer("307 Again", "Location: loop\r\n", ""),
        "/odd" => answer("302 Found", "Location: ftp://x/\r\n", ""),
        "/nowhere" => answer("302 Found", "", ""),
        _ => answer("200 OK", "", "fine"),
    })
    .await;
    assert_eq!(ask(http(server, "/here"), SOON).await, "success: fine");
    requests.recv().await.unwrap();
    let second = requests.recv().await.unwrap();
    assert!(second.to_ascii_lowercase().contains(&format!("referer: http://{server}/here")), "{second}");
    assert_eq!(
        ask(http(server, "/other"), SOON).await,
        "warning: Probe terminated redirects, Response body: bye"
    );
    assert_eq!(
        ask(http(server, "/nowhere"), SOON).await,
        "warning: Probe terminated redirects, Response body: "
    );
    let looped = ask(http(server, "/loop"), SOON).await;
    assert_eq!(looped, format!("failure: Get \"http://{server}/loop\": stopped after 10 redirects"));
    let odd = ask(http(server, "/odd"), SOON).await;
    assert!(odd.ends_with("failed to parse Location header \"ftp://x/\""), "{odd}");
}

#[tokio::test]
async fn an_endless_body_is_cut() {
    let (server, _requests) = raw(|_| answer("200 OK", "", &"x".repeat(1 << 20))).await;
    let outcome = ask(http(server, "/"), SOON).await;
    assert_eq!(outcome.len(), "success: ".len() + 10 * 1024);
}

#[tokio::test]
async fn https_takes_any_certificate() {
    let key = rcgen::generate_simple_self_signed(vec!["somebody.else".to_owned()]).unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![key.cert.der().clone()],
            rustls::pki_types::PrivateKeyDer::try_from(key.signing_key.serialize_der()).unwrap(),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            let (seen, _requests) = tokio::sync::mpsc::unbounded_channel();
            if let Ok(stream) = acceptor.accept(stream).await {
                one(stream, &|_: &str| answer("200 OK", "", "safe"), &seen).await;
            }
        }
    });
    let https = |port| Action::Http {
        scheme: Scheme::Https,
        host: None,
        port,
        path: "/".to_owned(),
        headers: Vec::new(),
    };
    assert_eq!(ask(https(address.port()), SOON).await, "success: safe");
    let (plain, _requests) = raw(|_| answer("400 Bad Request", "", "")).await;
    // A plain server waits for a request's end, which a TLS hello does not have.
    assert!(ask(https(plain.port()), SHORT).await.starts_with("failure: Get \"https://"));
}

#[tokio::test]
async fn tcp_only_connects() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    assert_eq!(ask(Action::Tcp { host: None, port }, SOON).await, "success: ");
    let gone = nobody().await;
    let refused = ask(Action::Tcp { host: None, port: gone.port() }, SOON).await;
    assert_eq!(refused, format!("failure: dial tcp {gone}: connect: connection refused"));
    let host = Some("no-such-host.invalid".to_owned());
    let lookup = ask(Action::Tcp { host, port }, SOON).await;
    assert_eq!(lookup, "failure: dial tcp: lookup no-such-host.invalid: no such host");
}

#[tokio::test]
async fn grpc_asks_for_health() {
    let server = grpc(|path, body| {
        assert_eq!(path, "/grpc.health.v1.Health/Check");
        match body {
            [] => Some((vec![8, 1], 0)),
            // Field 1, length-delimited.
            [10, _, name @ ..] => match name {
                b"down" => Some((vec![8, 2], 0)),
                b"odd" => Some((vec![8, 77], 0)),
                b"old" => Some((Vec::new(), 12)),
                b"late" => None,
                _ => Some((Vec::new(), 5)),
            },
            _ => unreachable!(),
        }
    })
    .await;
    let check = async |service: &str, timeout| {
        ask(Action::Grpc { port: server.port(), service: service.to_owned() }, timeout).await
    };
    assert_eq!(check("", SOON).await, "success: service healthy");
    assert_eq!(check("down", SOON).await, "failure: service unhealthy (responded with \"NOT_SERVING\")");
    assert_eq!(check("odd", SOON).await, "failure: service unhealthy (responded with \"77\")");
    assert_eq!(
        check("old", SOON).await,
        "failure: error: this server does not implement the grpc health protocol (grpc.health.v1.Health): so it is"
    );
    assert_eq!(
        check("unknown", SOON).await,
        "failure: error: health rpc probe failed: rpc error: code = NotFound desc = so it is"
    );
    assert_eq!(check("late", SHORT).await, "failure: timeout: health rpc did not complete within 200ms");
    let gone = nobody().await;
    let refused = ask(Action::Grpc { port: gone.port(), service: String::new() }, SOON).await;
    let dial = format!("dial tcp {gone}: connect: connection refused");
    assert_eq!(refused, format!("failure: error: failed to connect service at \"{gone}\": {dial}"));
}

#[tokio::test]
async fn exec_judges_by_the_exit_code() {
    let ask = async |result| {
        let exec = Canned(result, AtomicU32::new(0));
        let action = Action::Exec { command: vec!["cat".to_owned(), "/ready".to_owned()] };
        let probe = Probe { action, thresholds: Thresholds::default() };
        let target = Target { pod_ip: "127.0.0.1".parse().unwrap() };
        let outcome = run(&probe, target, &exec).await;
        (word(outcome), exec.1.into_inner())
    };
    let output = |exit_code, text: &str| Ok(ExecOutput { exit_code, output: text.into() });
    assert_eq!(ask(output(0, "yes")).await, ("success: yes".to_owned(), 1));
    assert_eq!(ask(output(1, "cat: /ready: no")).await, ("failure: cat: /ready: no".to_owned(), 1));
    let timed_out = ask(Err(ExecError::TimedOut)).await;
    assert_eq!(timed_out, ("failure: command \"cat /ready\" timed out".to_owned(), 1));
    // What says nothing is asked again.
    let broken = ask(Err(ExecError::CannotRun("no container".to_owned()))).await;
    assert_eq!(broken, ("unknown: no container".to_owned(), 3));
}
