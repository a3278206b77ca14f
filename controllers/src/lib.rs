//! The loops that make the cluster what its objects say.
//!
//! Each controller is a pure `plan(view, now)` and the one shell that watches, plans and writes (`shell`).
//! Controllers: deployments, replica sets, garbage collection, namespaces, the life of nodes, service
//! accounts.
//!
//! Guarantees: a write that is lost, refused or doubled is planned again from what is there; nothing is
//! remembered that a restart would lose, but which of its own writes a watch hasn't shown yet.
//! Assumes: one set of controllers per cluster.
#![forbid(unsafe_code)]

mod deployment;
mod garbage;
mod metadata;
mod namespace;
mod node_life;
mod replica_set;
mod service_account;
mod shell;
mod write;

use api::k8s::{apps, coordination, core};
use client::Cache;
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

/// What the controllers are told.
#[derive(Debug, Clone)]
pub struct Config {
    /// The cluster's authority in PEM, published in every namespace as `kube-root-ca.crt`.
    pub ca_pem: String,
}

/// Runs every controller until `shutdown`.
pub async fn run(client: Client, config: Config, shutdown: CancellationToken) {
    fn watch<K>(client: &Client, shutdown: &CancellationToken) -> Cache<K>
    where
        K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + Sync + 'static,
        K::DynamicType: Default,
    {
        Cache::start(Api::all(client.clone()), Default::default(), shutdown.clone())
    }
    let pods: Cache<core::Pod> = watch(&client, &shutdown);
    let sets: Cache<apps::ReplicaSet> = watch(&client, &shutdown);
    let deployments: Cache<apps::Deployment> = watch(&client, &shutdown);
    let nodes: Cache<core::Node> = watch(&client, &shutdown);
    let leases: Cache<coordination::Lease> = watch(&client, &shutdown);
    let namespaces: Cache<core::Namespace> = watch(&client, &shutdown);
    let accounts: Cache<core::ServiceAccount> = watch(&client, &shutdown);
    let maps: Cache<core::ConfigMap> = watch(&client, &shutdown);

    let all = async {
        let metadata = metadata::Metadata::start(&client, &shutdown).await;
        tokio::join!(
            shell::run(&client, deployment::Controller::new(deployments, sets.clone(), pods.clone())),
            shell::run(&client, replica_set::Controller::new(sets, pods.clone())),
            shell::run(&client, node_life::Controller::new(nodes, leases, pods)),
            shell::run(
                &client,
                service_account::Controller::new(namespaces.clone(), accounts, maps, config.ca_pem)
            ),
            garbage::run(&client, metadata.clone()),
            namespace::run(&client, namespaces, metadata),
        )
    };
    // Cancel-safe: a round that is dropped is planned again by the next daemon.
    let _ended = shutdown.run_until_cancelled(all).await;
}
