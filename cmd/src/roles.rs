//! What each daemon role runs: thin mains.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use apiserver::Server;
use cri_api::Cri;
use kube::Client;
use kubelet::{ApiConfig, Kubelet};
use pki::{ClusterPki, Identity, Kubeconfig};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::config::NodeConfig;
use crate::flags::KubeletFlags;
use crate::node::Node;
use runtime::options::CgroupDriver;

/// `orlop server`: store, apiserver, scheduler, controllers, and the node.
pub async fn server(config: NodeConfig) -> anyhow::Result<()> {
    let shutdown = until_signal()?;
    shut(&config)?;
    let pki =
        ClusterPki::open_or_create(&config.paths.etc.join("pki")).context("open the cluster's authority")?;
    let (api, node) = tokio::join!(bind_api(&config, &pki), Node::open(&config));
    // The node's error is the plainer one when another daemon runs on this root.
    let node = node?;
    let api = api?;
    let address = SocketAddr::new(config.node_ips[0], api.local_addr().port());
    write_admin_kubeconfig(&config, &pki, address)?;
    info!(%address, kubeconfig = %config.paths.admin_kubeconfig().display(), "serve the Kubernetes API");
    let local = format!("https://127.0.0.1:{}", address.port());
    let as_user = |identity: &Identity| {
        let kubeconfig =
            Kubeconfig { server: &local, ca_pem: pki.ca_pem(), identity, user: "self" }.to_yaml();
        async move { client::connect_yaml(&kubeconfig).await }
    };
    let node_user = format!("system:node:{}", config.node_name);
    let kubelet_client = as_user(&pki.client(&node_user, "system:nodes")?).await?;
    let scheduler_client = as_user(&pki.client("system:kube-scheduler", "system:masters")?).await?;
    let controller_client = as_user(&pki.client("system:kube-controller-manager", "system:masters")?).await?;

    let serving = pki.serving(&node_user, &names(&config, &[]))?;
    let kubelet_api = api_config(&config, &serving, pki.ca_pem());
    let kubelet = new_kubelet(&config, kubelet_api, Some(kubelet_client), Runtime::Own(&node), None).await?;
    let controllers = controllers::Config { ca_pem: pki.ca_pem().to_owned() };

    // The API goes last, so that the others can say goodbye to it.
    let upper = shutdown.child_token();
    let api_stop = CancellationToken::new();
    let api_task = tokio::spawn(api.run(api_stop.clone().cancelled_owned()));
    let ((), (), (), node) = tokio::join!(
        scheduler::run(scheduler_client, upper.clone()),
        controllers::run(controller_client, controllers, upper.clone()),
        kubelet.run(upper.clone().cancelled_owned()),
        node.serve(upper),
    );
    api_stop.cancel();
    api_task.await.context("the apiserver's task failed")?;
    info!("the daemon ends; pods go on");
    node
}

/// `orlop kubelet`: the node alone.
pub async fn kubelet(config: NodeConfig, flags: &KubeletFlags) -> anyhow::Result<()> {
    let shutdown = until_signal()?;
    shut(&config)?;
    let config =
        NodeConfig { kubelet_address: flags.kubelet_address.unwrap_or(config.kubelet_address), ..config };
    let client = match &flags.kubeconfig {
        Some(path) => Some(client::connect(path).await?),
        None => None,
    };
    let read =
        |path: &Path| std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()));
    // Without a certificate of its own, the kubelet API gets one from an authority of this node.
    let own =
        ClusterPki::open_or_create(&config.paths.etc.join("pki")).context("open the node's authority")?;
    let serving = match (&flags.tls_cert_file, &flags.tls_private_key_file) {
        (Some(cert), Some(key)) => Identity { cert_pem: read(cert)?, key_pem: read(key)? },
        _ => own.serving(&config.node_name, &names(&config, &[]))?,
    };
    let ca =
        flags.client_ca_file.as_deref().map(read).transpose()?.unwrap_or_else(|| own.ca_pem().to_owned());
    let api = api_config(&config, &serving, &ca);
    let manifests = flags.manifests.as_deref();
    if let Some(socket) = &flags.container_runtime_endpoint {
        let cri: Arc<dyn Cri> = Arc::new(cri_api::GrpcClient::connect(socket).await?);
        let kubelet = new_kubelet(&config, api, client, Runtime::Other(cri), manifests).await?;
        kubelet.run(shutdown.cancelled_owned()).await;
        return Ok(());
    }
    let node = Node::open(&config).await?;
    let kubelet = new_kubelet(&config, api, client, Runtime::Own(&node), manifests).await?;
    let ((), node) = tokio::join!(kubelet.run(shutdown.clone().cancelled_owned()), node.serve(shutdown));
    node
}

/// `orlop cri`: the CRI socket alone.
pub async fn cri(config: NodeConfig) -> anyhow::Result<()> {
    let shutdown = until_signal()?;
    shut(&config)?;
    Node::open(&config).await?.serve(shutdown).await
}

/// Before anything lies in them.
fn shut(config: &NodeConfig) -> anyhow::Result<()> {
    config.paths.shut().context("make the node's directories and shut them for others")
}

/// Cancelled by SIGTERM and SIGINT.
fn until_signal() -> anyhow::Result<CancellationToken> {
    let shutdown = CancellationToken::new();
    let mut term = signal(SignalKind::terminate()).context("wait for SIGTERM")?;
    let mut int = signal(SignalKind::interrupt()).context("wait for SIGINT")?;
    let told = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            // Cancel-safe: the other signal is no longer of interest.
            _ = term.recv() => (),
            _ = int.recv() => (),
        }
        told.cancel();
    });
    Ok(shutdown)
}

async fn bind_api(config: &NodeConfig, pki: &ClusterPki) -> anyhow::Result<Server> {
    let store = {
        let path = config.paths.data.join("store");
        tokio::task::spawn_blocking(move || store::open_embedded(&path)).await.context("open the store")??
    };
    let service_ip = apiserver::kubernetes_service_ip(&config.service_cidr);
    let serving = pki.serving("kube-apiserver", &names(config, &[service_ip]))?;
    let calling = pki.client("kube-apiserver-kubelet-client", "system:masters")?;
    let account = pki.service_account_key();
    let settings = apiserver::Config {
        listen: config.api_address,
        cert_pem: serving.cert_pem,
        key_pem: serving.key_pem,
        ca_pem: pki.ca_pem().to_owned(),
        service_account_key_pem: account.key_pem.clone(),
        service_account_public_pem: account.cert_pem.clone(),
        issuer: apiserver::Config::DEFAULT_ISSUER.to_owned(),
        kubelet_client_cert_pem: calling.cert_pem,
        kubelet_client_key_pem: calling.key_pem,
        service_cidr: config.service_cidr,
        advertise: SocketAddr::new(config.node_ips[0], config.api_address.port()),
    };
    Ok(Server::bind(settings, store).await?)
}

/// The names under which this machine is reached, for certificates.
fn names(config: &NodeConfig, more: &[IpAddr]) -> Vec<String> {
    let mut names: Vec<String> = config.node_ips.iter().chain(more).map(ToString::to_string).collect();
    names.push(config.node_name.clone());
    names.extend(
        [
            "127.0.0.1",
            "::1",
            "localhost",
            "kubernetes",
            "kubernetes.default",
            "kubernetes.default.svc",
            "kubernetes.default.svc.cluster.local",
        ]
        .map(str::to_owned),
    );
    names.dedup();
    names
}

fn api_config(config: &NodeConfig, serving: &Identity, client_ca: &str) -> ApiConfig {
    ApiConfig {
        listen: config.kubelet_address,
        tls_cert_pem: serving.cert_pem.clone().into_bytes(),
        tls_key_pem: serving.key_pem.clone().into_bytes(),
        client_ca_pem: client_ca.as_bytes().to_vec(),
    }
}

/// What a kubelet runs its pods with.
enum Runtime<'a> {
    Own(&'a Node),
    Other(Arc<dyn Cri>),
}

async fn new_kubelet(
    config: &NodeConfig,
    api: ApiConfig,
    client: Option<Client>,
    runtime: Runtime<'_>,
    manifests: Option<&Path>,
) -> anyhow::Result<Kubelet> {
    let paths = &config.paths;
    let mut settings = kubelet::Config::new(config.node_name.clone(), &paths.data);
    let cri = match runtime {
        Runtime::Own(node) => {
            match config.cgroup_driver {
                CgroupDriver::Cgroupfs => {
                    settings.cgroup_base = Some(format!("/{}", config.cgroup_parent()));
                }
                // A slice's name says where it is; its pods are told apart from those of other nodes by a prefix.
                CgroupDriver::Systemd => {
                    config.resources.fits_systemd()?;
                    settings.systemd_cgroups = true;
                    settings.cgroup_root = config.cgroup_parent();
                }
            }
            settings.streaming_certificate = config.streaming_tls.clone().map(|files| files.certificate);
            Arc::clone(&node.cri)
        }
        Runtime::Other(cri) => {
            config.resources.fits_another_runtime()?;
            cri
        }
    };
    settings.node_ips = config.node_ips.clone();
    settings.root_dir = paths.data.join("kubelet");
    settings.pod_logs_dir = paths.log.join("pods");
    settings.container_logs_dir = paths.log.join("containers");
    let manifests = manifests.map_or_else(|| paths.etc.join("manifests"), Path::to_owned);
    std::fs::create_dir_all(&manifests).with_context(|| format!("make {}", manifests.display()))?;
    settings.manifests_dir = Some(manifests);
    settings.api = Some(api);
    settings.max_pods = config.max_pods.unwrap_or(settings.max_pods);
    settings.container_log_max_size =
        config.container_log_max_size.unwrap_or(settings.container_log_max_size);
    settings.container_log_max_files =
        config.container_log_max_files.unwrap_or(settings.container_log_max_files);
    settings.images = config.images.kubelet.clone();
    settings.resources = config.resources.kubelet.clone();
    settings.allowed_unsafe_sysctls = config.resources.allowed_unsafe_sysctls.clone();
    settings.user_ids = kubelet::UserIds::of_node(config.resources.ids_per_pod, settings.max_pods)
        .map_err(|why| anyhow::anyhow!("choose the user ids of pods: {why}"))?;
    settings.crash_loop.base = config.crash_loop_initial.unwrap_or(settings.crash_loop.base);
    settings.crash_loop.max = config.crash_loop_max.unwrap_or(settings.crash_loop.max);
    Ok(Kubelet::new(settings, client, cri).await?)
}

/// Writes the administrator's kubeconfig, unless the one that is there still serves.
fn write_admin_kubeconfig(config: &NodeConfig, pki: &ClusterPki, address: SocketAddr) -> anyhow::Result<()> {
    let path = config.paths.admin_kubeconfig();
    // On this machine loopback always works; elsewhere the user names an address of the node.
    let server = format!("https://127.0.0.1:{}", address.port());
    let there = std::fs::read_to_string(&path).unwrap_or_default();
    if pki::valid_for(&there, &server, pki.ca_pem(), 90) {
        return Ok(());
    }
    let identity = pki.client("admin", "system:masters")?;
    let text =
        Kubeconfig { server: &server, ca_pem: pki.ca_pem(), identity: &identity, user: "admin" }.to_yaml();
    pki::write_private(&path, text.as_bytes(), 0o600).with_context(|| format!("write {}", path.display()))
}
