//! `orlop stop` and `orlop reset`: ending a node for good, not only its daemon.

use std::io::ErrorKind;
use std::path::Path;

use anyhow::Context;
use image::Store;
use network::PodNetwork;

use crate::config::NodeConfig;
use crate::node::{network_config, registry_config, runtime_options};

/// Stops every pod and the keeper; images, objects and certificates stay.
///
/// # Errors
/// A daemon still runs on this root, or something can't be taken down; what could be, is.
pub async fn stop(config: NodeConfig) -> anyhow::Result<()> {
    // The runtime's lock refuses this while a daemon runs.
    let runtime = runtime::destroy(runtime_options(&config)).await.context("end the node's containers");
    let network = async {
        let network = PodNetwork::open(network_config(&config)).await?;
        network.destroy().await?;
        anyhow::Ok(())
    };
    // Without the lock nothing else may be touched.
    runtime?;
    let network = network.await.context("take down the pod network");
    let volumes = unmount_below(&config.paths.data.join("kubelet"));
    let leases = release_images(&config);
    let files = remove_files(&config);
    network.and(volumes).and(leases).and(files)
}

/// The containers are gone; an image that they alone kept may go with the next `prune`.
fn release_images(config: &NodeConfig) -> anyhow::Result<()> {
    let dir = config.paths.data.join("images");
    if !dir.exists() {
        return Ok(());
    }
    let store = Store::open(dir, registry_config(config)).context("release the containers' images")?;
    store.leases().iter().for_each(|lease| store.release(&lease.owner));
    Ok(())
}

/// The pods' resolver configurations, sockets that nobody serves, and then the directory if nothing else is in it.
fn remove_files(config: &NodeConfig) -> anyhow::Result<()> {
    let run = &config.paths.run;
    remove(&run.join("cri"))?;
    remove(&config.paths.admin_socket())?;
    // It can lie anywhere; another program's stays.
    if std::os::unix::net::UnixStream::connect(&config.cri_socket).is_err() {
        remove(&config.cri_socket)?;
    }
    for dir in [&run.join("network"), run] {
        match std::fs::remove_dir(dir) {
            Err(err) if !matches!(err.kind(), ErrorKind::NotFound | ErrorKind::DirectoryNotEmpty) => {
                return Err(err).with_context(|| format!("remove {}", dir.display()));
            }
            _ => {}
        }
    }
    Ok(())
}

/// The same, and removes all that the node kept. Without `yes` it only says what that is.
///
/// # Errors
/// As for [`stop`], or a directory that can't be removed.
pub async fn reset(config: NodeConfig, yes: bool) -> anyhow::Result<()> {
    let paths = config.paths.clone();
    let kept = [&paths.data, &paths.run, &paths.etc];
    if !yes {
        println!("This would stop every pod of the node and remove:");
        kept.iter().filter(|dir| dir.exists()).for_each(|dir| println!("  {}", dir.display()));
        println!("Nothing was done. Add --yes to do it.");
        return Ok(());
    }
    stop(config).await?;
    for dir in kept {
        match std::fs::remove_dir_all(dir) {
            Err(err) if err.kind() != ErrorKind::NotFound => {
                return Err(err).with_context(|| format!("remove {}", dir.display()));
            }
            _ => println!("removed {}", dir.display()),
        }
    }
    Ok(())
}

/// Removes a file or a directory with all that is in it; a missing one is fine.
fn remove(path: &Path) -> anyhow::Result<()> {
    let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    match removed {
        Err(err) if err.kind() != ErrorKind::NotFound => {
            Err(err).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Unmounts the volumes that the kubelet mounted, innermost first.
fn unmount_below(dir: &Path) -> anyhow::Result<()> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").context("read the mount table")?;
    let mut points: Vec<_> = table.lines().filter_map(|line| line.split(' ').nth(4)).map(unescape).collect();
    points.retain(|point| Path::new(point).starts_with(dir));
    points.sort_by_key(|point| std::cmp::Reverse(point.len()));
    for point in points {
        rustix::mount::unmount(&point, rustix::mount::UnmountFlags::DETACH)
            .with_context(|| format!("unmount {point}"))?;
    }
    Ok(())
}

/// The mount table writes space, tab, newline and backslash in octal (proc_pid_mountinfo(5)).
fn unescape(field: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(field.to_owned(), |text, (code, plain)| text.replace(code, plain))
}
