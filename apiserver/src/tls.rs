//! TLS, as server and as the kubelets' client.
//!
//! Guarantees: client certificates are checked against the cluster's authority, and so are the
//! serving certificates of kubelets.

use std::sync::Arc;

use rustls::{
    ClientConfig, RootCertStore, ServerConfig, crypto::CryptoProvider, server::WebPkiClientVerifier,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::config::{Config, StartError};

fn failed<E: std::error::Error + Send + Sync + 'static>(what: &'static str) -> impl FnOnce(E) -> StartError {
    move |source| StartError::Tls { what, source: Box::new(source) }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn certificates(pem: &str, what: &'static str) -> Result<Vec<CertificateDer<'static>>, StartError> {
    CertificateDer::pem_slice_iter(pem.as_bytes()).collect::<Result<_, _>>().map_err(failed(what))
}

fn roots(pem: &str) -> Result<RootCertStore, StartError> {
    let what = "the cluster's authority";
    let mut roots = RootCertStore::empty();
    for cert in certificates(pem, what)? {
        roots.add(cert).map_err(failed(what))?;
    }
    Ok(roots)
}

/// For those who call us. A client may show a certificate; if it does, it must be a good one.
pub(crate) fn server(config: &Config) -> Result<ServerConfig, StartError> {
    let authority = "the cluster's authority";
    let serving = "the serving certificate and its key";
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&config.ca_pem)?), provider())
        .allow_unauthenticated()
        .build()
        .map_err(failed(authority))?;
    let key = PrivateKeyDer::from_pem_slice(config.key_pem.as_bytes()).map_err(failed(serving))?;
    let mut tls = ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(failed(serving))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&config.cert_pem, serving)?, key)
        .map_err(failed(serving))?;
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(tls)
}

/// For calling kubelets. HTTP/1.1 only: streams into pods are HTTP/1.1 upgrades.
pub(crate) fn kubelet_client(config: &Config) -> Result<ClientConfig, StartError> {
    let what = "the kubelet client certificate and its key";
    let key =
        PrivateKeyDer::from_pem_slice(config.kubelet_client_key_pem.as_bytes()).map_err(failed(what))?;
    let mut tls = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(failed(what))?
        .with_root_certificates(roots(&config.ca_pem)?)
        .with_client_auth_cert(certificates(&config.kubelet_client_cert_pem, what)?, key)
        .map_err(failed(what))?;
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(tls)
}
