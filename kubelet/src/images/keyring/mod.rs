//! Where credentials for an image come from: the pod's secrets first, then what the node has.

pub mod docker;
mod exec;
pub mod plugin;

use std::path::PathBuf;

use cri_api::v1::AuthConfig;
use k8s_openapi::api::core::v1::Secret;
use sha2::{Digest, Sha256};

use super::credentials;
use plugin::Plugins;

/// The node's own sources of credentials.
#[derive(Default)]
pub struct Keyring {
    /// Docker configurations.
    pub docker: Vec<PathBuf>,
    /// Credential provider plugins.
    pub plugins: Plugins,
}

/// Credentials, and whose they are.
#[derive(Clone)]
pub struct Credential {
    /// For the runtime.
    pub auth: AuthConfig,
    /// The secret they come from; `None`: they are the node's, for all pods on it.
    pub secret: Option<SecretName>,
}

/// Which secret.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct SecretName {
    /// Its uid.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl Credential {
    /// Tells whether credentials are the same, without telling them.
    pub fn hash(&self) -> String {
        let a = &self.auth;
        let parts = [&a.username, &a.password, &a.auth, &a.identity_token, &a.registry_token];
        let text = serde_json::to_vec(&parts).unwrap_or_default();
        Sha256::digest(&text).iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// Credentials in a pod's secrets for an image, the closest first.
pub fn of_secrets(image: &str, secrets: &[&Secret]) -> Vec<Credential> {
    let each = |secret: &&Secret| {
        let meta = &secret.metadata;
        let name = SecretName {
            uid: meta.uid.clone().unwrap_or_default(),
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        };
        let found = credentials::weighed(image, &[secret]);
        found.into_iter().map(move |(weight, auth)| (weight, Credential { auth, secret: Some(name.clone()) }))
    };
    let mut all: Vec<(usize, Credential)> = secrets.iter().flat_map(each).collect();
    all.sort_by_key(|(weight, _)| std::cmp::Reverse(*weight));
    all.into_iter().map(|(_, credential)| credential).collect()
}

impl Keyring {
    /// What to try for an image, in this order: the secrets' credentials, docker configurations, plugins.
    pub async fn lookup(&self, image: &str, secrets: Vec<Credential>) -> Vec<Credential> {
        let mut found = secrets;
        let node = docker::lookup(&self.docker, image).await.into_iter();
        let node = node.chain(self.plugins.lookup(image).await);
        found.extend(node.map(|auth| Credential { auth, secret: None }));
        found
    }
}
