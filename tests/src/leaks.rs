//! What a node must not leave behind.

use std::path::Path;

use crate::clients::{command, run};

/// Everything of a node that is still there: mounts, processes, cgroups, interfaces, pinned namespaces.
pub async fn find(root: &Path, netns: &str) -> Vec<String> {
    let mut found = mounts(root);
    found.extend(processes(root));
    found.extend(cgroups(root));
    found.extend(interfaces(netns).await);
    found.extend(entries(&root.join("run/ns"), "pinned namespace"));
    found.extend(entries(&root.join("data/containers"), "writable layer"));
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

async fn interfaces(netns: &str) -> Vec<String> {
    let mut ip = command(netns, "ip");
    ip.args(["-o", "link", "show"]);
    let Ok(listed) = run(ip, None).await else { return Vec::new() };
    let links = listed.stdout.lines().filter_map(|line| line.split(": ").nth(1)).map(str::to_owned);
    links.filter(|link| link != "lo").map(|link| format!("interface {link}")).collect()
}

fn entries(dir: &Path, what: &str) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.map(|entry| format!("{what} {}", entry.path().display())).collect()
}
