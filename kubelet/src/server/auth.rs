//! Who may use the kubelet API: the cluster's masters and its apiserver, by client certificate.

use rustls::pki_types::CertificateDer;
use x509_parser::prelude::{FromDer, X509Certificate};

/// A client as its certificate names it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// Common name: the user.
    pub user: String,
    /// Organisations: the groups.
    pub groups: Vec<String>,
}

/// Reads the identity off a verified certificate; `None` if it can't be read.
pub fn identity(certificate: &CertificateDer<'_>) -> Option<Identity> {
    let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
    let subject = parsed.subject();
    let text = |value: &x509_parser::x509::AttributeTypeAndValue<'_>| value.as_str().ok().map(str::to_owned);
    Some(Identity {
        user: subject.iter_common_name().next().and_then(text).unwrap_or_default(),
        groups: subject.iter_organization().filter_map(text).collect(),
    })
}

/// Whether this client may use everything the kubelet API offers (it is all or nothing).
pub fn allowed(who: &Identity) -> bool {
    who.user == "kube-apiserver-kubelet-client" || who.groups.iter().any(|group| group == "system:masters")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_masters_and_the_apiserver() {
        let who = |user: &str, group: &str| Identity { user: user.into(), groups: vec![group.into()] };
        assert!(allowed(&who("admin", "system:masters")));
        assert!(allowed(&who("kube-apiserver-kubelet-client", "")));
        assert!(!allowed(&who("system:node:a", "system:nodes")));
        assert!(!allowed(&Identity::default()));
    }
}
