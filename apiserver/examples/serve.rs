//! Runs the API server alone, with a fresh authority and store, and writes an admin kubeconfig.
//!
//! `cargo run -p apiserver --example serve -- DIR [ADDRESS]`, then `kubectl --kubeconfig DIR/admin.kubeconfig ...`.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Context;
use apiserver::{Config, Server};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let mut args = std::env::args().skip(1);
    let dir: PathBuf = args.next().context("usage: serve DIR [ADDRESS]")?.into();
    let listen: SocketAddr = args.next().as_deref().unwrap_or("127.0.0.1:0").parse()?;
    let pki = pki::ClusterPki::open_or_create(&dir.join("pki"))?;
    let names = ["127.0.0.1", "10.96.0.1", "localhost", "kubernetes"].map(str::to_owned);
    let serving = pki.serving("kube-apiserver", &names)?;
    let kubelet = pki.client("kube-apiserver-kubelet-client", "system:masters")?;
    let config = Config {
        listen,
        cert_pem: serving.cert_pem,
        key_pem: serving.key_pem,
        ca_pem: pki.ca_pem().to_owned(),
        service_account_key_pem: pki.service_account_key().key_pem.clone(),
        service_account_public_pem: pki.service_account_key().cert_pem.clone(),
        issuer: Config::DEFAULT_ISSUER.to_owned(),
        kubelet_client_cert_pem: kubelet.cert_pem,
        kubelet_client_key_pem: kubelet.key_pem,
        service_cidr: "10.96.0.0/16".parse()?,
        advertise: listen,
    };
    let store = store::open_embedded(&dir.join("store"))?;
    let server = Server::bind(config, store).await?;
    let url = format!("https://{}", server.local_addr());
    let admin = pki.client("admin", "system:masters")?;
    let file = pki::Kubeconfig { server: &url, ca_pem: pki.ca_pem(), identity: &admin, user: "admin" };
    pki::write_private(&dir.join("admin.kubeconfig"), file.to_yaml().as_bytes(), 0o600)?;
    println!("{url}");
    server.run(async { drop(tokio::signal::ctrl_c().await) }).await;
    Ok(())
}
