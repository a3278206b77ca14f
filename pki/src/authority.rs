//! The certificate authority and the service-account key of one cluster.
//!
//! Files: `ca.crt`, `ca.key` (signs certificates), `sa.key`, `sa.pub` (sign and check
//! service-account tokens). Names follow kubeadm's.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose,
};

use crate::files::{read_optional, write_private};

const DAY: std::time::Duration = std::time::Duration::from_secs(24 * 60 * 60);
/// How long the authority itself is valid: ten years.
const CA_DAYS: u32 = 3650;
/// How long a leaf certificate is valid: one year.
const LEAF_DAYS: u32 = 365;

/// A certificate with its private key, both in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The certificate.
    pub cert_pem: String,
    /// The private key (PKCS #8).
    pub key_pem: String,
}

/// What can go wrong with the authority.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs)]
pub enum PkiError {
    #[error("read {path}")]
    Read { path: PathBuf, source: std::io::Error },
    #[error("write {path}")]
    Write { path: PathBuf, source: std::io::Error },
    #[error(
        "{present} is there but {missing} is not: restore it from a backup, or remove both to make a new \
         authority (every certificate and token of this cluster then ends)"
    )]
    Incomplete { present: PathBuf, missing: PathBuf },
    #[error("{path} is not a usable key or certificate")]
    Damaged { path: PathBuf, source: rcgen::Error },
    #[error("issue the certificate of {name}")]
    Issue { name: String, source: rcgen::Error },
}

/// The authority of one cluster, loaded from its directory.
pub struct ClusterPki {
    ca_pem: String,
    issuer: Issuer<'static, KeyPair>,
    service_account: Identity,
}

impl ClusterPki {
    /// Loads the authority from `dir`, or makes one where there is none.
    ///
    /// # Errors
    /// A file that can't be read or written, is damaged, or is there without its other half.
    pub fn open_or_create(dir: &Path) -> Result<ClusterPki, PkiError> {
        let ca = pair(dir, "ca.crt", "ca.key", new_authority)?;
        let key_path = dir.join("ca.key");
        let damaged = |path: PathBuf| move |source| PkiError::Damaged { path, source };
        let key = KeyPair::from_pem(&ca.key_pem).map_err(damaged(key_path))?;
        let issuer = Issuer::from_ca_cert_pem(&ca.cert_pem, key).map_err(damaged(dir.join("ca.crt")))?;
        let service_account = pair(dir, "sa.pub", "sa.key", || {
            let key = KeyPair::generate()?;
            Ok(Identity { cert_pem: key.public_key_pem(), key_pem: key.serialize_pem() })
        })?;
        Ok(ClusterPki { ca_pem: ca.cert_pem, issuer, service_account })
    }

    /// The authority's certificate in PEM: what clients trust.
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The key pair that signs service-account tokens (ES256): `key_pem` is the private key in PKCS #8,
    /// `cert_pem` the public key in SPKI form.
    pub fn service_account_key(&self) -> &Identity {
        &self.service_account
    }

    /// Issues a serving certificate for `names` (DNS names and IP addresses).
    ///
    /// # Errors
    /// A name that is neither an address nor a DNS name.
    pub fn serving(&self, common_name: &str, names: &[String]) -> Result<Identity, PkiError> {
        self.issue(common_name, None, names, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// Issues a client certificate: `user` becomes the user name (CN), `group` its group (O);
    /// rcgen's subject holds one value of a kind, and no component of ours needs two.
    ///
    /// # Errors
    /// A name that doesn't fit into a certificate.
    pub fn client(&self, user: &str, group: &str) -> Result<Identity, PkiError> {
        self.issue(user, Some(group), &[], ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn issue(
        &self,
        user: &str,
        group: Option<&str>,
        names: &[String],
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<Identity, PkiError> {
        let issue = |source| PkiError::Issue { name: user.to_owned(), source };
        let mut params = CertificateParams::new(names.to_vec()).map_err(issue)?;
        params.distinguished_name = subject(user, group);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![usage];
        valid_days(&mut params, LEAF_DAYS);
        let key = KeyPair::generate().map_err(issue)?;
        let cert = params.signed_by(&key, &self.issuer).map_err(issue)?;
        Ok(Identity { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }
}

/// Loads the two halves of an identity, or makes and stores them when both are absent.
fn pair(
    dir: &Path,
    public: &str,
    private: &str,
    make: impl FnOnce() -> Result<Identity, rcgen::Error>,
) -> Result<Identity, PkiError> {
    let (public, private) = (dir.join(public), dir.join(private));
    let read =
        |path: &Path| read_optional(path).map_err(|source| PkiError::Read { path: path.to_owned(), source });
    match (read(&public)?, read(&private)?) {
        (Some(cert_pem), Some(key_pem)) => Ok(Identity { cert_pem, key_pem }),
        (Some(_), None) => Err(PkiError::Incomplete { present: public, missing: private }),
        // The private half is written first, so this is a crash between the two: nothing was signed yet
        // only if nobody ever saw the public half, which we can't know. Ask.
        (None, Some(_)) => Err(PkiError::Incomplete { present: private, missing: public }),
        (None, None) => {
            let made = make().map_err(|source| PkiError::Damaged { path: private.clone(), source })?;
            let write = |path: &Path, text: &str, mode| {
                write_private(path, text.as_bytes(), mode)
                    .map_err(|source| PkiError::Write { path: path.to_owned(), source })
            };
            write(&private, &made.key_pem, 0o600)?;
            write(&public, &made.cert_pem, 0o644)?;
            Ok(made)
        }
    }
}

fn new_authority() -> Result<Identity, rcgen::Error> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = subject("orlop-ca", None);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    valid_days(&mut params, CA_DAYS);
    let key = KeyPair::generate()?;
    let cert = params.self_signed(&key)?;
    Ok(Identity { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
}

fn subject(user: &str, group: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(group) = group {
        name.push(DnType::OrganizationName, group);
    }
    name.push(DnType::CommonName, user);
    name
}

/// Valid from an hour ago (clocks differ a little) for `days`.
fn valid_days(params: &mut CertificateParams, days: u32) {
    let now = SystemTime::now();
    params.not_before = (now - std::time::Duration::from_secs(3600)).into();
    params.not_after = (now + DAY * days).into();
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn an_authority_survives_and_its_keys_are_private() {
        let dir = tempfile::tempdir().unwrap();
        let first = ClusterPki::open_or_create(dir.path()).unwrap();
        let again = ClusterPki::open_or_create(dir.path()).unwrap();
        assert_eq!(first.ca_pem(), again.ca_pem());
        assert!(first.service_account_key() == again.service_account_key());
        for key in ["ca.key", "sa.key"] {
            let mode = dir.path().join(key).metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{key}");
        }
    }

    #[test]
    fn a_lost_half_is_named_and_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        ClusterPki::open_or_create(dir.path()).unwrap();
        std::fs::remove_file(dir.path().join("ca.key")).unwrap();
        let err = ClusterPki::open_or_create(dir.path()).err().unwrap().to_string();
        assert!(err.contains("ca.crt is there but") && err.contains("ca.key is not"), "{err}");
    }

    #[test]
    fn a_client_certificate_carries_user_and_groups() {
        let dir = tempfile::tempdir().unwrap();
        let pki = ClusterPki::open_or_create(dir.path()).unwrap();
        let node = pki.client("system:node:a", "system:nodes").unwrap();
        let (_, pem) = x509_parser::pem::parse_x509_pem(node.cert_pem.as_bytes()).unwrap();
        let subject = pem.parse_x509().unwrap().subject().to_string();
        assert_eq!(subject, "O=system:nodes, CN=system:node:a");
    }
}
