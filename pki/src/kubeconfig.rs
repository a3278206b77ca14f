//! Kubeconfig files: how a client finds the cluster and proves who it is.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use crate::Identity;

/// One cluster, one user, one context.
pub struct Kubeconfig<'a> {
    /// `https://host:port` of the apiserver.
    pub server: &'a str,
    /// The authority that signed the apiserver's certificate, in PEM.
    pub ca_pem: &'a str,
    /// The user's client certificate.
    pub identity: &'a Identity,
    /// The name under which the user stands in the file.
    pub user: &'a str,
}

impl Kubeconfig<'_> {
    /// The file's text (YAML), with certificates and key inside.
    pub fn to_yaml(&self) -> String {
        let b64 = |pem: &str| STANDARD.encode(pem);
        let file = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{ "name": "orlop", "cluster": {
                "server": self.server, "certificate-authority-data": b64(self.ca_pem) } }],
            "users": [{ "name": self.user, "user": {
                "client-certificate-data": b64(&self.identity.cert_pem),
                "client-key-data": b64(&self.identity.key_pem) } }],
            "contexts": [{ "name": "orlop", "context": { "cluster": "orlop", "user": self.user } }],
            "current-context": "orlop",
        });
        serde_yaml_ng::to_string(&file).expect("a tree of strings can be written as YAML")
    }
}

/// Whether the kubeconfig `text` still serves: same server and authority, and a client certificate
/// that is valid for `days` more. A user's copy then keeps working across restarts.
pub fn valid_for(text: &str, server: &str, ca_pem: &str, days: u32) -> bool {
    let check = || -> Option<bool> {
        let file: serde_json::Value = serde_yaml_ng::from_str(text).ok()?;
        let cluster = file.pointer("/clusters/0/cluster")?;
        let same =
            cluster["server"] == server && cluster["certificate-authority-data"] == STANDARD.encode(ca_pem);
        let cert = STANDARD.decode(file.pointer("/users/0/user/client-certificate-data")?.as_str()?).ok()?;
        let (_, pem) = x509_parser::pem::parse_x509_pem(&cert).ok()?;
        let left = pem.parse_x509().ok()?.validity().time_to_expiration()?;
        Some(same && left.whole_days() >= i64::from(days))
    };
    check().unwrap_or(false)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ClusterPki;

    #[test]
    fn a_kubeconfig_is_kept_until_something_in_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let pki = ClusterPki::open_or_create(dir.path()).unwrap();
        let identity = pki.client("admin", "system:masters").unwrap();
        let server = "https://127.0.0.1:6443";
        let text = Kubeconfig { server, ca_pem: pki.ca_pem(), identity: &identity, user: "admin" }.to_yaml();
        assert!(valid_for(&text, server, pki.ca_pem(), 90));
        assert!(!valid_for(&text, server, pki.ca_pem(), 400));
        assert!(!valid_for(&text, "https://127.0.0.1:1", pki.ca_pem(), 90));
        assert!(!valid_for("not: a kubeconfig", server, pki.ca_pem(), 90));
    }
}
