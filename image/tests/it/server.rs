//! A registry that misbehaves on demand. Plain HTTP/1.1, one request per connection.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::fixture::Content;

#[derive(Default)]
pub struct Behaviour {
    pub content: Content,
    /// Tag to digest.
    pub tags: HashMap<String, String>,
    /// Blob digest to how many bytes are sent before the connection breaks, one number per request.
    pub cuts: HashMap<String, Vec<usize>>,
    /// Blob digest to content that is sent instead.
    pub forged: HashMap<String, Vec<u8>>,
    /// Blob digest to how many bytes are sent before nothing more comes, on an open connection.
    pub hangs: HashMap<String, usize>,
    /// Blob digest to what its requests have to pass first.
    pub gates: HashMap<String, Arc<tokio::sync::Semaphore>>,
    pub ignore_ranges: bool,
    /// Blobs are elsewhere: the start of a URL.
    pub redirect: Option<String>,
    pub auth: Option<Wants>,
    /// Statuses to answer with, before anything else works.
    pub failures: Vec<u16>,
    /// All requests: method, path, `Authorization`, `Range`.
    pub log: Vec<Request>,
}

#[derive(Clone)]
pub enum Wants {
    /// This `Authorization` value.
    Basic(String),
    /// Token `good`, from `/token` of this server, for those with this `Authorization` value.
    Bearer(Option<String>),
    /// Token `good`, for this refresh token.
    Refresh(String),
}

#[derive(Debug, Clone)]
pub struct Request {
    pub method: String,
    pub path: String,
    pub authorization: Option<String>,
    pub range: Option<String>,
    pub body: String,
}

pub struct Server {
    pub behaviour: Arc<Mutex<Behaviour>>,
    pub address: String,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Server {
    /// Serves an image as `app:1`.
    pub async fn start(content: Content) -> Server {
        Server::listen(content, None).await
    }

    /// The same over TLS; the second is the CA, in PEM.
    pub async fn start_tls(content: Content) -> (Server, String) {
        let pair =
            rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned(), "registry.test".to_owned()])
                .expect("a certificate");
        let key =
            rustls::pki_types::PrivateKeyDer::try_from(pair.signing_key.serialize_der()).expect("a key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![pair.cert.der().clone()], key)
            .expect("a pair");
        let acceptor = TlsAcceptor::from(Arc::new(config));
        (Server::listen(content, Some(acceptor)).await, pair.cert.pem())
    }

    async fn listen(content: Content, tls: Option<TlsAcceptor>) -> Server {
        let tags = [("1".to_owned(), content.manifest.clone())].into();
        let behaviour = Arc::new(Mutex::new(Behaviour { content, tags, ..Behaviour::default() }));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("bound").to_string();
        let (shared, host) = (behaviour.clone(), address.clone());
        let task = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (shared, host, tls) = (shared.clone(), host.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => serve(stream, shared, host).await,
                        Some(tls) => serve(tls.accept(stream).await?, shared, host).await,
                    }
                });
            }
        });
        Server { behaviour, address, task }
    }

    /// Serves another image, too, under another tag.
    pub fn add(&self, tag: &str, content: Content) {
        let mut behaviour = self.behaviour.lock();
        behaviour.tags.insert(tag.to_owned(), content.manifest.clone());
        behaviour.content.blobs.extend(content.blobs);
        behaviour.content.manifests.extend(content.manifests);
    }

    /// The blobs that were asked for, in this order.
    pub fn blobs_asked(&self) -> Vec<String> {
        let log = self.log();
        let blobs = log.iter().filter_map(|r| Some(r.path.split_once("/blobs/")?.1.to_owned()));
        blobs.collect()
    }

    pub fn reference(&self, rest: &str) -> image::Reference {
        format!("{}/{rest}", self.address).parse().expect("a reference")
    }

    pub fn log(&self) -> Vec<Request> {
        self.behaviour.lock().log.clone()
    }

    /// How often a blob was asked for.
    pub fn asked(&self, digest: &str) -> usize {
        self.log().iter().filter(|r| r.path.ends_with(digest)).count()
    }
}

struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Bytes of the body after which the connection breaks...
    cut: Option<usize>,
    /// ...or stays open without anything more.
    hang: bool,
}

fn plain(status: u16, body: &str) -> Answer {
    Answer { status, headers: Vec::new(), body: body.as_bytes().to_vec(), cut: None, hang: false }
}

async fn serve<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    shared: Arc<Mutex<Behaviour>>,
    host: String,
) -> std::io::Result<()> {
    let mut data = Vec::new();
    let end = loop {
        if let Some(at) = data.windows(4).position(|w| w == b"\r\n\r\n") {
            break at;
        }
        if stream.read_buf(&mut data).await? == 0 {
            return Ok(());
        }
    };
    let head = String::from_utf8_lossy(&data[..end]).into_owned();
    let mut lines = head.lines();
    let mut first = lines.next().unwrap_or_default().split(' ').map(str::to_owned);
    let headers: HashMap<String, String> = lines
        .filter_map(|l| l.split_once(": "))
        .map(|(key, value)| (key.to_lowercase(), value.to_owned()))
        .collect();
    let length: usize = headers.get("content-length").and_then(|l| l.parse().ok()).unwrap_or(0);
    while data.len() < end + 4 + length {
        if stream.read_buf(&mut data).await? == 0 {
            return Ok(());
        }
    }
    let request = Request {
        method: first.next().unwrap_or_default(),
        path: first.next().unwrap_or_default(),
        authorization: headers.get("authorization").cloned(),
        range: headers.get("range").cloned(),
        body: String::from_utf8_lossy(&data[end + 4..]).into_owned(),
    };
    let gate = {
        let mut behaviour = shared.lock();
        behaviour.log.push(request.clone());
        let digest = request.path.rsplit('/').next().unwrap_or_default();
        behaviour.gates.get(digest).cloned()
    };
    if let Some(gate) = gate {
        gate.acquire().await.expect("never closed").forget();
    }
    let answer = answer(&mut shared.lock(), &request, &host);
    let mut head = format!("HTTP/1.1 {} X\r\nconnection: close\r\n", answer.status);
    for (key, value) in &answer.headers {
        head.push_str(&format!("{key}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", answer.body.len()));
    stream.write_all(head.as_bytes()).await?;
    if request.method != "HEAD" {
        stream.write_all(&answer.body[..answer.cut.unwrap_or(answer.body.len())]).await?;
    }
    if answer.hang {
        stream.flush().await?;
        // Until the other side gives up.
        return stream.read_u8().await.map(|_| ());
    }
    stream.shutdown().await
}

fn answer(behaviour: &mut Behaviour, request: &Request, host: &str) -> Answer {
    let path = request.path.split('?').next().unwrap_or_default().to_owned();
    if path == "/token" {
        let fine = match &behaviour.auth {
            Some(Wants::Bearer(wanted)) => *wanted == request.authorization,
            Some(Wants::Refresh(token)) => request.body.contains(&format!("refresh_token={token}")),
            _ => false,
        };
        return if fine { plain(200, r#"{"token":"good"}"#) } else { plain(401, "{}") };
    }
    if let Some(status) = behaviour.failures.pop() {
        return plain(status, r#"{"errors":[{"message":"as you wished"}]}"#);
    }
    let challenge = match &behaviour.auth {
        Some(Wants::Basic(wanted)) if request.authorization.as_ref() != Some(wanted) => {
            Some("Basic realm=\"x\"".to_owned())
        }
        Some(Wants::Bearer(_) | Wants::Refresh(_))
            if request.authorization.as_deref() != Some("Bearer good") =>
        {
            Some(format!(
                "Bearer realm=\"http://{host}/token\",service=\"here\",scope=\"repository:app:pull\""
            ))
        }
        _ => None,
    };
    if let Some(challenge) = challenge {
        let mut answer =
            plain(401, r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#);
        answer.headers.push(("www-authenticate".into(), challenge));
        return answer;
    }
    if let Some(name) = path.strip_prefix("/v2/app/manifests/") {
        let digest = behaviour.tags.get(name).cloned().unwrap_or(name.to_owned());
        return match behaviour.content.manifests.get(&digest) {
            None => plain(404, r#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#),
            Some((media_type, bytes)) => Answer {
                status: 200,
                headers: vec![
                    ("content-type".into(), media_type.clone()),
                    ("docker-content-digest".into(), digest),
                ],
                body: bytes.clone(),
                cut: None,
                hang: false,
            },
        };
    }
    let Some(digest) = path.strip_prefix("/v2/app/blobs/") else { return plain(404, "{}") };
    if let Some(elsewhere) = &behaviour.redirect {
        let mut answer = plain(307, "");
        answer.headers.push(("location".into(), format!("{elsewhere}{path}")));
        return answer;
    }
    let Some(blob) = behaviour.forged.get(digest).or(behaviour.content.blobs.get(digest)).cloned() else {
        return plain(404, r#"{"errors":[{"code":"BLOB_UNKNOWN","message":"blob unknown"}]}"#);
    };
    let start =
        request.range.as_deref().and_then(|r| r.strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok());
    let start: usize = start.filter(|_| !behaviour.ignore_ranges).unwrap_or(0);
    let mut answer = plain(200, "");
    if start > 0 {
        if start >= blob.len() {
            return plain(416, "");
        }
        answer.status = 206;
        let range = format!("bytes {start}-{}/{}", blob.len() - 1, blob.len());
        answer.headers.push(("content-range".into(), range));
    }
    answer.body = blob[start..].to_vec();
    if let Some(bytes) = behaviour.hangs.get(digest) {
        (answer.cut, answer.hang) = (Some((*bytes).min(answer.body.len())), true);
    }
    if let Some(cuts) = behaviour.cuts.get_mut(digest)
        && !cuts.is_empty()
    {
        answer.cut = Some(cuts.remove(0).min(answer.body.len()));
    }
    answer
}

/// An HTTP proxy that knows one host. Gives its address and what it was asked for.
pub async fn proxy(target: String) -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let address = listener.local_addr().expect("bound").to_string();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let log = asked.clone();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let (log, target) = (log.clone(), target.clone());
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    head.push(stream.read_u8().await?);
                }
                log.lock().push(String::from_utf8_lossy(&head).into_owned());
                let mut other = tokio::net::TcpStream::connect(target).await?;
                stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
                tokio::io::copy_bidirectional(&mut stream, &mut other).await
            });
        }
    });
    (address, asked)
}
