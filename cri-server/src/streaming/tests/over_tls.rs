//! The streaming server with a certificate: real handshakes, and what becomes of plain clients and new files.

use std::path::Path;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::*;
use crate::error::chain;

/// Writes a certificate for 127.0.0.1 that is its own authority; gives it back.
fn certificate(directory: &Path) -> CertificateDer<'static> {
    let made = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).expect("a certificate");
    let write = |name: &str, text: String| {
        let aside = directory.join("aside");
        std::fs::write(&aside, text).expect("written");
        std::fs::rename(aside, directory.join(name)).expect("in its place");
    };
    write("key.pem", made.signing_key.serialize_pem());
    write("cert.pem", made.cert.pem());
    CertificateDer::from_pem_file(directory.join("cert.pem")).expect("a certificate")
}

fn files(directory: &Path) -> TlsFiles {
    TlsFiles { certificate: directory.join("cert.pem"), key: directory.join("key.pem") }
}

async fn secured(directory: &Path) -> StreamingServer {
    let tls = Tls::open(files(directory)).expect("a usable certificate");
    let any = "127.0.0.1:0".parse().expect("an address");
    StreamingServer::bind(any, Some(tls), Arc::new(Node)).await.expect("listens")
}

/// A handshake with a client that trusts `root` alone.
async fn connect(
    server: &StreamingServer,
    root: &CertificateDer<'static>,
) -> io::Result<TlsStream<TcpStream>> {
    let mut roots = RootCertStore::empty();
    roots.add(root.clone()).expect("a root");
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_root_certificates(roots)
        .with_no_client_auth();
    // A client that would rather have HTTP/2 must be talked out of it.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let name = ServerName::try_from("127.0.0.1").expect("a name");
    let socket = TcpStream::connect(server.address()).await?;
    TlsConnector::from(Arc::new(config)).connect(name, socket).await
}

#[tokio::test]
async fn a_command_over_tls() {
    let directory = tempfile::tempdir().expect("a directory");
    let root = certificate(directory.path());
    let server = secured(directory.path()).await;
    let url = server.url(exec(&["sh", "-c", "cat; exit 7"], true, false)).expect("a URL");
    assert!(url.starts_with("https://127.0.0.1:"), "{url}");
    let stream = connect(&server, &root).await.expect("a handshake");
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let mut request = url.replace("https:", "wss:").into_client_request().expect("a request");
    request.headers_mut().insert("Sec-WebSocket-Protocol", "v5.channel.k8s.io".parse().expect("a header"));
    let mut socket = client_async(request, stream).await.expect("upgrades").0;
    // More than one record of TLS each way.
    let data = vec![b'x'; 100_000];
    send(&mut socket, 0, &data).await;
    send(&mut socket, 255, &[0]).await;
    let channels = read_all(&mut socket).await;
    assert_eq!(channels[&1], data);
    assert_eq!(status(&channels[&3])["details"]["causes"][0]["message"], "7");
    // The token was used up.
    let mut stream = connect(&server, &root).await.expect("a handshake");
    let again = format!("POST {} HTTP/1.1\r\nHost: x\r\n\r\n", path(&url));
    stream.write_all(again.as_bytes()).await.expect("sends");
    let mut head = [0; 12];
    stream.read_exact(&mut head).await.expect("an answer");
    assert_eq!(&head, b"HTTP/1.1 404");
}

#[tokio::test]
async fn ports_are_forwarded_over_spdy_and_tls() {
    let directory = tempfile::tempdir().expect("a directory");
    let root = certificate(directory.path());
    let (server, port) = (secured(directory.path()).await, reverser().await);
    let url = server.url(forwarding(port)).expect("a URL");
    let mut stream = connect(&server, &root).await.expect("a handshake");
    let request = format!(
        "POST {} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: SPDY/3.1\r\n\
         X-Stream-Protocol-Version: portforward.k8s.io\r\n\r\n",
        path(&url)
    );
    stream.write_all(request.as_bytes()).await.expect("sends");
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.expect("an answer"));
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    forward(&mut Client::new(stream), port).await;
}

#[tokio::test]
async fn plain_and_distrustful_clients_are_not_served_and_keep_their_token() {
    let (directory, other) = (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("two"));
    let root = certificate(directory.path());
    let server = secured(directory.path()).await;
    let url = server.url(exec(&["true"], false, false)).expect("a URL");
    let mut plain = TcpStream::connect(server.address()).await.expect("connects");
    let request = format!("GET {} HTTP/1.1\r\nHost: x\r\n\r\n", path(&url));
    plain.write_all(request.as_bytes()).await.expect("sends");
    let mut answer = Vec::new();
    // A reset is as good an end as any.
    let _ = plain.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&answer));
    connect(&server, &certificate(other.path())).await.expect_err("another authority");
    let stream = connect(&server, &root).await.expect("a handshake");
    let request = url.replace("https:", "wss:").into_client_request().expect("a request");
    client_async(request, stream).await.expect("the token is still good");
}

#[tokio::test]
async fn changed_files_are_used_and_broken_ones_are_not() {
    let directory = tempfile::tempdir().expect("a directory");
    let first = certificate(directory.path());
    let server = secured(directory.path()).await;
    connect(&server, &first).await.expect("the first");
    let second = certificate(directory.path());
    connect(&server, &second).await.expect("the second");
    connect(&server, &first).await.expect_err("no longer");
    std::fs::write(directory.path().join("cert.pem"), "nothing").expect("written");
    connect(&server, &second).await.expect("as it was");
    let error = |files| Tls::open(files).err().map(|error| chain(&error)).expect("refused");
    let text = error(files(directory.path()));
    assert!(text.contains("certificate"), "{text}");
    certificate(directory.path());
    let elsewhere = tempfile::tempdir().expect("a directory");
    certificate(elsewhere.path());
    let mixed = TlsFiles { key: elsewhere.path().join("key.pem"), ..files(directory.path()) };
    let text = error(mixed);
    assert!(text.contains("cert.pem") && text.to_lowercase().contains("key"), "{text}");
}
