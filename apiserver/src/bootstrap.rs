//! The objects that every cluster has.
//!
//! Guarantees: made only if they are missing; what is there is left alone.

use api::{defaults, meta, registry, status::Failure, strategy};
use serde_json::{Value, json};
use store::{Store, Txn};

use crate::{
    admission,
    config::Config,
    keys,
    objects::{encode, store_failure, with_claims},
    write,
};

const NAMESPACES: &[&str] = &["default", "kube-system", "kube-public", "kube-node-lease"];

/// Makes what is missing.
pub(crate) async fn run(config: &Config, store: &dyn Store) -> Result<(), Failure> {
    for name in NAMESPACES {
        let object = json!({"metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}}});
        let (key, object) = complete("namespaces", object);
        let txn = admission::namespace_companions(&config.ca_pem, name)
            .into_iter()
            .fold(Txn::create(key, encode(&object)), |txn, (key, o)| txn.and_create(key, encode(&o)));
        // A conflict means that it is there already.
        store.txn(txn).await.map_err(store_failure)?;
    }
    let ip = config.kubernetes_service_ip().to_string();
    let service = json!({
        "metadata": {"name": "kubernetes", "namespace": "default",
            "labels": {"component": "apiserver", "provider": "kubernetes"}},
        "spec": {
            "type": "ClusterIP", "clusterIP": ip, "clusterIPs": [ip], "ipFamilyPolicy": "SingleStack",
            "ipFamilies": [if config.service_cidr.addr().is_ipv6() { "IPv6" } else { "IPv4" }],
            "ports": [{"name": "https", "protocol": "TCP", "port": 443, "targetPort": config.advertise.port()}],
        },
    });
    let (key, service) = complete("services", service);
    let row = registry::find("", "v1", "services").expect("core resources are served");
    let txn = with_claims(Txn::create(key, encode(&service)), row, None, Some(&service));
    store.txn(txn).await.map_err(store_failure)?;
    Ok(())
}

/// Fills in what the request path fills in.
fn complete(plural: &str, mut object: Value) -> (String, Value) {
    let row = registry::find("", "v1", plural).expect("core resources are served");
    object["apiVersion"] = json!(row.api_version());
    object["kind"] = json!(row.kind);
    meta::set(&mut object, "uid", uuid::Uuid::new_v4().to_string());
    meta::set(&mut object, "creationTimestamp", write::now());
    defaults::apply(row, &mut object);
    strategy::prepare_create(row, &mut object);
    (keys::object(row, meta::namespace(&object), meta::name(&object)), object)
}
