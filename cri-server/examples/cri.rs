//! The CRI socket alone, everything below one directory: for crictl by hand.
//!
//! `cargo run -p cri-server --example cri -- --root /tmp/orlop [--import archive.tar]...`, and with `--destroy` to
//! remove all of it

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, bail};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt().with_env_filter(tracing_subscriber::EnvFilter::from_default_env()).init();
    let (mut root, mut archives, mut bridge) = (None, Vec::new(), "orlopcri0".to_owned());
    let mut destroy = false;
    let mut args = std::env::args().skip(1);
    while let Some(flag) = args.next() {
        if flag == "--destroy" {
            destroy = true;
            continue;
        }
        let value = args.next().with_context(|| format!("{flag} needs a value"))?;
        match flag.as_str() {
            "--root" => root = Some(PathBuf::from(value)),
            "--import" => archives.push(PathBuf::from(value)),
            "--bridge" => bridge = value,
            _ => bail!("unknown flag {flag}: --root, --import, --bridge and --destroy are known"),
        }
    }
    let root = root.context("--root DIR is needed")?;
    let options = runtime::Options::below(&root, "orlop-cri");
    let mut net = network::Config::new(root.join("run/network"));
    net.bridge = bridge;
    net.pod_cidrs = vec!["10.99.0.0/24".parse()?];
    if destroy {
        network::PodNetwork::open(net).await?.destroy().await?;
        runtime::destroy(options).await?;
        return Ok(());
    }
    std::fs::create_dir_all(root.join("run"))?;
    let images = image::Store::open(root.join("data/images"), image::RegistryConfig::default())?;
    for archive in archives {
        for image in images.import(&archive, None).await? {
            println!("imported {:?} {}", image.repo_tags, image.id);
        }
    }
    let runtime = runtime::Runtime::open(options).await?;
    let network = network::PodNetwork::open(net).await?;
    let config = cri_server::Config::new(root.join("run/cri"), root.join("data/containers"));
    let server = cri_server::CriServer::new(runtime, images, network.clone(), config).await?;
    let socket = root.join("run/cri.sock");
    let _ = std::fs::remove_file(&socket);
    let listener = tokio::net::UnixListener::bind(&socket)?;
    println!("serving {}, streams on {}", socket.display(), server.streaming_address());
    let stop = async {
        // Where no signal can be waited for, it ends at once.
        let _ = tokio::signal::ctrl_c().await;
    };
    cri_api::serve(Arc::new(server), listener, stop).await?;
    network.close().await?;
    Ok(())
}
