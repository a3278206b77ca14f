//! The connection to the URL that a runtime answers exec, attach and port-forward with: plain, or TLS.
//!
//! Guarantees: with TLS the other end is known: by the node's own certificate where this daemon is the runtime, by
//! the machine's authorities else.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use http::Uri;
use http::uri::Authority;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// How long connecting may take, the handshake included.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection of either kind.
pub(super) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectError {
    #[error("{url} is not an http or https URL with a host and a port")]
    Url { url: String },
    #[error("connect to {host}")]
    Connect { host: String, source: io::Error },
    #[error("it did not answer in {} s", PATIENCE.as_secs())]
    Slow,
    #[error("read the streaming server's certificate")]
    Certificate(#[source] rustls::pki_types::pem::Error),
    #[error("agree on TLS with {host}")]
    Handshake { host: String, source: io::Error },
}

impl ConnectError {
    /// The text of this error and of its causes.
    pub(super) fn chain(&self) -> String {
        let mut text = self.to_string();
        let mut next = std::error::Error::source(self);
        while let Some(cause) = next {
            text.push_str(&format!(": {cause}"));
            next = cause.source();
        }
        text
    }
}

/// Connects to what a URL names. `own` is the certificate of this daemon's own runtime.
pub(super) async fn connect(url: &Uri, own: Option<&Path>) -> Result<Box<dyn Stream>, ConnectError> {
    let bad = || ConnectError::Url { url: url.to_string() };
    let secure = match url.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(bad()),
    };
    let authority = url.authority().filter(|authority| authority.port().is_some()).ok_or_else(bad)?;
    let config = if secure { Some(client_config(own)?) } else { None };
    tokio::time::timeout(PATIENCE, open(authority, config)).await.map_err(|_elapsed| ConnectError::Slow)?
}

async fn open(authority: &Authority, config: Option<ClientConfig>) -> Result<Box<dyn Stream>, ConnectError> {
    let host = || authority.to_string();
    let connect = |source| ConnectError::Connect { host: host(), source };
    let stream = TcpStream::connect(authority.as_str()).await.map_err(connect)?;
    let _nodelay = stream.set_nodelay(true);
    let Some(config) = config else { return Ok(Box::new(stream)) };
    let name = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
    let name = ServerName::try_from(name).map_err(|_| ConnectError::Url { url: host() })?;
    let connected = TlsConnector::from(Arc::new(config)).connect(name, stream).await;
    Ok(Box::new(connected.map_err(|source| ConnectError::Handshake { host: host(), source })?))
}

fn client_config(own: Option<&Path>) -> Result<ClientConfig, ConnectError> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .expect("the provider has TLS 1.2 and 1.3");
    let mut config = match own {
        Some(path) => {
            // Read each time: the server takes up a changed file as well.
            let certificate = CertificateDer::from_pem_file(path).map_err(ConnectError::Certificate)?;
            let verifier = Arc::new(TheOne { certificate, provider });
            builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth()
        }
        None => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            builder.with_root_certificates(roots).with_no_client_auth()
        }
    };
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Trusts one certificate, whatever names are in it: it is read from the file that the server reads it from.
#[derive(Debug)]
struct TheOne {
    certificate: CertificateDer<'static>,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for TheOne {
    fn verify_server_cert(
        &self,
        shown: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if *shown == self.certificate {
            return Ok(ServerCertVerified::assertion());
        }
        Err(rustls::Error::General("it shows another certificate than the node's own".to_owned()))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &rustls::DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        rustls::crypto::verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<rustls::SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use rustls::pki_types::PrivateKeyDer;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// A server with a certificate for another name; its URL, and the certificate's file.
    async fn server(directory: &Path) -> (Uri, PathBuf) {
        let made = rcgen::generate_simple_self_signed(["elsewhere".to_owned()]).expect("a certificate");
        let path = directory.join("cert.pem");
        std::fs::write(&path, made.cert.pem()).expect("written");
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("usable");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("listens");
        let address = listener.local_addr().expect("an address");
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                // A client that refuses the certificate ends its connection.
                let Ok(mut stream) = acceptor.accept(socket).await else { continue };
                let _ = stream.write_all(b"hello").await;
            }
        });
        (format!("https://{address}/exec/x").parse().expect("a URL"), path)
    }

    #[tokio::test]
    async fn our_own_certificate_is_known_and_no_other() {
        let directory = tempfile::tempdir().expect("a directory");
        let (url, path) = server(directory.path()).await;
        let mut stream = connect(&url, Some(&path)).await.expect("connects");
        let mut text = [0; 5];
        stream.read_exact(&mut text).await.expect("reads");
        assert_eq!(&text, b"hello");
        // Changed under way: the server still shows the old one.
        let other = rcgen::generate_simple_self_signed(["elsewhere".to_owned()]).expect("a certificate");
        std::fs::write(&path, other.cert.pem()).expect("written");
        let error = connect(&url, Some(&path)).await.err().expect("refused");
        assert!(matches!(error, ConnectError::Handshake { .. }), "{error:?}");
        let error = connect(&url, None).await.err().expect("no authority of this machine signed it");
        assert!(matches!(error, ConnectError::Handshake { .. }), "{error:?}");
    }

    #[tokio::test]
    async fn strange_urls_are_refused() {
        for url in ["ftp://127.0.0.1:1/x", "/exec/x", "https://127.0.0.1/x"] {
            let error = connect(&url.parse().expect("a URL"), None).await.err().expect("refused");
            assert!(matches!(error, ConnectError::Url { .. }), "{error:?}");
        }
    }
}
