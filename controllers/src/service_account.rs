//! Gives every namespace its `default` service account and the cluster's authority as `kube-root-ca.crt`.

use api::k8s::core::{ConfigMap, Namespace, ServiceAccount};
use client::Cache;
use jiff::Timestamp;
use kube::ResourceExt;
use serde_json::json;
use tokio::sync::watch;

use crate::shell::{Decide, Plan};
use crate::write::{Write, kind};

const ACCOUNT: &str = "default";
const ROOT_CA: &str = "kube-root-ca.crt";

pub struct Controller {
    namespaces: Cache<Namespace>,
    accounts: Cache<ServiceAccount>,
    maps: Cache<ConfigMap>,
    ca_pem: String,
}

impl Controller {
    pub fn new(
        namespaces: Cache<Namespace>,
        accounts: Cache<ServiceAccount>,
        maps: Cache<ConfigMap>,
        ca_pem: String,
    ) -> Self {
        Controller { namespaces, accounts, maps, ca_pem }
    }
}

impl Decide for Controller {
    const NAME: &'static str = "serviceaccount-controller";

    fn changed(&self) -> Vec<watch::Receiver<u64>> {
        vec![self.namespaces.changed(), self.accounts.changed(), self.maps.changed()]
    }

    fn plan(&mut self, _now: Timestamp) -> Plan {
        let mut plan = Plan::default();
        for namespace in self.namespaces.list() {
            if namespace.metadata.deletion_timestamp.is_some() {
                continue;
            }
            let name = namespace.name_any();
            if self.accounts.get(&name, ACCOUNT).is_none() {
                let object = json!({ "apiVersion": "v1", "kind": "ServiceAccount",
                    "metadata": { "name": ACCOUNT, "namespace": name } });
                plan.writes.push(Write::Create { kind: kind::<ServiceAccount>(), object });
            }
            plan.writes.extend(root_ca(&name, self.maps.get(&name, ROOT_CA).as_deref(), &self.ca_pem));
        }
        plan
    }
}

/// Makes the namespace's copy of the authority, or mends one that was changed.
fn root_ca(namespace: &str, there: Option<&ConfigMap>, ca_pem: &str) -> Option<Write> {
    let data = json!({ "ca.crt": ca_pem });
    match there {
        None => {
            let object = json!({ "apiVersion": "v1", "kind": "ConfigMap", "data": data, "metadata": {
                "name": ROOT_CA, "namespace": namespace,
                "annotations": { "kubernetes.io/description": "The authority that signed the apiserver's certificate." } } });
            Some(Write::Create { kind: kind::<ConfigMap>(), object })
        }
        Some(map) if json!(map.data) == data => None,
        Some(_) => Some(Write::Merge {
            kind: kind::<ConfigMap>(),
            namespace: namespace.to_owned(),
            name: ROOT_CA.to_owned(),
            patch: json!({ "data": data }),
            subresource: None,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_changed_copy_is_mended_and_a_right_one_left_alone() {
        let map =
            |pem: &str| serde_json::from_value::<ConfigMap>(json!({ "data": { "ca.crt": pem } })).unwrap();
        assert!(matches!(root_ca("d", None, "x"), Some(Write::Create { .. })));
        assert!(matches!(root_ca("d", Some(&map("y")), "x"), Some(Write::Merge { .. })));
        assert_eq!(root_ca("d", Some(&map("x")), "x"), None);
    }
}
