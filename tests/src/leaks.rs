//! What a node must not leave behind.

use std::collections::BTreeSet;
use std::path::Path;

use crate::clients::{command, run};
use crate::node::{OUTSIDE, OUTSIDE_ADDRESSES};

/// Everything of a node that is still there: mounts, processes, cgroups, interfaces, addresses, nftables rules, files
/// below the run directory, writable layers, leases of images.
pub async fn find(root: &Path, netns: &str) -> Vec<String> {
    let mut found = mounts(root);
    found.extend(processes(root));
    found.extend(cgroups(root));
    found.extend(interfaces(netns).await);
    found.extend(rules(netns).await);
    found.extend(below(&root.join("run"), "file"));
    found.extend(entries(&root.join("data/containers"), "writable layer"));
    found.extend(entries(&root.join("data/images/s"), "lease"));
    found
}

/// What pods have in the kernel while a node runs: mounts, cgroups, ports of bridges, nftables rules. To be compared
/// with what there was before the pods.
pub async fn in_kernel(root: &Path, netns: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::from_iter(mounts(root));
    for cgroup in cgroups(root) {
        // The prefix is a word and a space.
        let top = cgroup.split_once(' ').map_or(cgroup.as_str(), |(_, path)| path);
        found.extend(directories(Path::new(top)));
    }
    let mut links = command(netns, "ip");
    links.args(["-o", "link", "show"]);
    match run(links, None).await {
        Ok(listed) => {
            let ports = listed.stdout.lines().filter(|line| line.contains(" master "));
            found.extend(ports.filter_map(|line| line.split(": ").nth(1)).map(|port| format!("port {port}")));
        }
        Err(err) => drop(found.insert(format!("interfaces can't be listed: {err:#}"))),
    }
    let mut nft = command(netns, "nft");
    nft.args(["list", "ruleset"]);
    match run(nft, None).await {
        Ok(listed) => found.extend(listed.stdout.lines().map(|line| format!("nftables {}", line.trim()))),
        Err(err) => drop(found.insert(format!("nftables can't be listed: {err:#}"))),
    }
    found
}

/// Every directory below `dir`, at any depth.
fn directories(dir: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.push(format!("cgroup {}", entry.path().display()));
            found.extend(directories(&entry.path()));
        }
    }
    found
}

/// Logs and volumes of pods that no longer exist; `pods` are the uids of those that do.
pub fn of_pods(root: &Path, pods: &[String]) -> Vec<String> {
    let mut found = entries(&root.join("data/kubelet/pods"), "volumes of a pod");
    found.extend(entries(&root.join("log/pods"), "logs of a pod"));
    found.retain(|path| !pods.iter().any(|uid| path.contains(uid.as_str())));
    found.extend(dangling_links(&root.join("log/containers")));
    found
}

fn mounts(root: &Path) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let root = root.to_string_lossy();
    let points = table.lines().filter_map(|line| line.split(' ').nth(4));
    points.filter(|point| point.starts_with(&*root)).map(|point| format!("mount {point}")).collect()
}

/// Processes that name the root in their command line; a keeper's does.
fn processes(root: &Path) -> Vec<String> {
    let root = root.to_string_lossy();
    let Ok(all) = std::fs::read_dir("/proc") else { return Vec::new() };
    let mut found = Vec::new();
    for entry in all.flatten() {
        let pid = entry.file_name().to_string_lossy().into_owned();
        let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if pid.bytes().all(|b| b.is_ascii_digit())
            && line.contains(&*root)
            && pid != std::process::id().to_string()
        {
            found.push(format!("process {pid}: {line}"));
        }
    }
    found
}

/// The node's cgroup, which is named after its root.
fn cgroups(root: &Path) -> Vec<String> {
    let name = root.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let points =
        table.lines().filter(|line| line.contains(" - cgroup2 ")).filter_map(|line| line.split(' ').nth(4));
    let mut found = Vec::new();
    for point in points {
        for entry in std::fs::read_dir(point).into_iter().flatten().flatten() {
            if entry.file_name().to_string_lossy().contains(&name) {
                found.push(format!("cgroup {}", entry.path().display()));
            }
        }
    }
    found
}

/// Interfaces but `lo` and the harness' own `outside`, and addresses other than theirs.
async fn interfaces(netns: &str) -> Vec<String> {
    let mut ip = command(netns, "ip");
    ip.args(["-o", "address", "show"]);
    let mut links = command(netns, "ip");
    links.args(["-o", "link", "show"]);
    let (addresses, links) = match (run(ip, None).await, run(links, None).await) {
        (Ok(addresses), Ok(links)) => (addresses.stdout, links.stdout),
        (Err(err), _) | (_, Err(err)) => return vec![format!("interfaces can't be listed: {err:#}")],
    };
    let links = links.lines().filter_map(|line| line.split(": ").nth(1));
    let links = links.filter(|link| !matches!(*link, "lo" | OUTSIDE)).map(|link| format!("interface {link}"));
    let addresses = addresses.lines().filter(|line| {
        ![" 127.0.0.1/8 ", " ::1/128 ", OUTSIDE_ADDRESSES, " fe80::"].iter().any(|known| line.contains(known))
    });
    links.chain(addresses.map(|line| format!("address {line}"))).collect()
}

/// nftables rules in the node's network namespace, where nobody else makes any.
async fn rules(netns: &str) -> Vec<String> {
    let mut nft = command(netns, "nft");
    nft.args(["list", "tables"]);
    match run(nft, None).await {
        Ok(listed) => listed.stdout.lines().map(|table| format!("nftables {table}")).collect(),
        Err(err) => vec![format!("nftables can't be listed: {err:#}")],
    }
}

/// Links to logs that are gone.
fn dangling_links(dir: &Path) -> Vec<String> {
    let links = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    links.filter(|link| !link.exists()).map(|link| format!("link to no log {}", link.display())).collect()
}

/// Every file and directory below `dir`, at any depth.
fn below(dir: &Path, what: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        found.push(format!("{what} {}", entry.path().display()));
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            found.extend(below(&entry.path(), what));
        }
    }
    found
}

fn entries(dir: &Path, what: &str) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| format!("{what} {}", entry.path().display())).collect()
}
