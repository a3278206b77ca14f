//! TLS of the streaming server: a certificate and a key from files.
//!
//! Guarantees: changed files are used from the next connection on; files that became unusable are told once and the
//! certificate before them stays in use.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use parking_lot::Mutex;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use crate::error::chain;

/// How long a client may take to let the end of a connection through.
const GOODBYE_IN: Duration = Duration::from_secs(5);

/// The files of a server's certificate, PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate, and those between it and its authority.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

/// Why TLS cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read, or holds something else.
    #[error("read {what} of the streaming server from {path}")]
    File {
        /// Certificate or key.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        source: rustls::pki_types::pem::Error,
    },
    /// A file cannot be looked at.
    #[error("look at {path}")]
    Look {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Certificate and key don't belong together, or are not usable.
    #[error("use the certificate {path} and its key for the streaming server")]
    Unusable {
        /// The certificate's file.
        path: PathBuf,
        /// Why.
        source: rustls::Error,
    },
}

/// What tells a file from its successor.
type Stamp = [(u64, u64, i64, i64); 2];

/// Accepts TLS with what the files hold.
pub struct Tls {
    files: TlsFiles,
    current: Mutex<(Stamp, TlsAcceptor)>,
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// See [`TlsError`].
    pub fn open(files: TlsFiles) -> Result<Tls, TlsError> {
        let current = Mutex::new((stamp(&files)?, load(&files)?));
        Ok(Tls { files, current })
    }

    /// What the next connection is accepted with. Reads the files only if they changed.
    pub fn acceptor(&self) -> TlsAcceptor {
        let mut current = self.current.lock();
        // A file that is gone is about to be replaced.
        if let Ok(stamp) = stamp(&self.files)
            && stamp != current.0
        {
            match load(&self.files) {
                Ok(acceptor) => *current = (stamp, acceptor),
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "keep the streaming server's certificate as it was");
                    current.0 = stamp;
                }
            }
        }
        current.1.clone()
    }
}

fn stamp(files: &TlsFiles) -> Result<Stamp, TlsError> {
    let of = |path: &Path| {
        let seen =
            std::fs::metadata(path).map_err(|source| TlsError::Look { path: path.to_owned(), source })?;
        Ok((seen.ino(), seen.len(), seen.mtime(), seen.mtime_nsec()))
    };
    Ok([of(&files.certificate)?, of(&files.key)?])
}

fn load(files: &TlsFiles) -> Result<TlsAcceptor, TlsError> {
    let file = |what, path: &Path| {
        let path = path.to_owned();
        move |source| TlsError::File { what, path, source }
    };
    let chain: Vec<CertificateDer<'static>> = CertificateDer::pem_file_iter(&files.certificate)
        .and_then(Iterator::collect)
        .map_err(file("the certificate", &files.certificate))?;
    let key = PrivateKeyDer::from_pem_file(&files.key).map_err(file("the key", &files.key))?;
    let unusable = |source| TlsError::Unusable { path: files.certificate.clone(), source };
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unusable)?
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .map_err(unusable)?;
    // Upgrades need HTTP/1.1.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(TlsAcceptor::from(Arc::new(config)))
}

/// A TLS connection that says that it ends, however it is dropped: without that, a client must take its end for an
/// attack that cut something off.
pub struct Polite(Option<TlsStream<TcpStream>>);

impl Polite {
    /// Wraps a connection after its handshake.
    pub fn new(stream: TlsStream<TcpStream>) -> Polite {
        Polite(Some(stream))
    }

    fn inner(self: Pin<&mut Self>) -> Pin<&mut TlsStream<TcpStream>> {
        Pin::new(self.get_mut().0.as_mut().expect("only dropping takes it out"))
    }
}

impl Drop for Polite {
    fn drop(&mut self) {
        let (Some(mut stream), Ok(runtime)) = (self.0.take(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        runtime.spawn(async move {
            // A client that is gone or won't take it has no use for it.
            let _ = tokio::time::timeout(GOODBYE_IN, stream.shutdown()).await;
        });
    }
}

impl AsyncRead for Polite {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_read(cx, buf)
    }
}

impl AsyncWrite for Polite {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.inner().poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_shutdown(cx)
    }
}
