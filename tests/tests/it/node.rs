//! The node itself: start, check, a second daemon, the empty cluster.

use anyhow::ensure;
use tests::{Node, binary};

use crate::needs_root;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_registers_and_an_empty_cluster_is_in_order() -> anyhow::Result<()> {
    needs_root!();
    let node = Node::start().await?;
    let nodes = node.kubectl(&["get", "nodes", "-o", "wide"]).await?.ok()?;
    ensure!(nodes.contains("Ready") && nodes.contains("orlop://"), "{nodes}");
    let all = node.kubectl(&["get", "all", "-A"]).await?.ok()?;
    ensure!(all.contains("service/kubernetes"), "{all}");
    let lease = node.kubectl(&["get", "leases", "-n", "kube-node-lease", "-o", "name"]).await?.ok()?;
    ensure!(lease.contains("lease"), "{lease}");
    let described = node.kubectl(&["describe", "node"]).await?.ok()?;
    for expected in ["Conditions:", "KubeletReady", "Capacity:", "Allocatable:", "System Info:", "Lease:"] {
        ensure!(described.contains(expected), "{expected} is missing:\n{described}");
    }
    node.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_daemon_on_the_same_root_is_refused() -> anyhow::Result<()> {
    needs_root!();
    let node = Node::start().await?;
    let said = node.orlop(&["server"]).await?.err()?;
    ensure!(said.contains(&node.daemon_pid().to_string()), "it should name the daemon:\n{said}");
    node.kubectl(&["get", "nodes"]).await?.ok()?;
    node.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn check_explains_everything_at_once() -> anyhow::Result<()> {
    needs_root!();
    let checked = tokio::process::Command::new(binary()).arg("check").output().await?;
    let text = String::from_utf8_lossy(&checked.stdout).into_owned();
    for expected in ["root", "kernel", "overlay", "cgroup v2", "seccomp", "nft"] {
        ensure!(text.contains(expected), "{expected} is missing:\n{text}");
    }
    ensure!(checked.status.success(), "{text}");
    // As nobody: the same list, and a verdict.
    let nobody = tokio::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(copy_for_everyone()?.path().join("orlop"))
        .arg("check")
        .output()
        .await?;
    let text = String::from_utf8_lossy(&nobody.stdout).into_owned();
    ensure!(
        !nobody.status.success() && text.contains("not root") && text.contains("can't be a node"),
        "{text}"
    );
    Ok(())
}

/// Where no cgroup2 is mounted (in a mount namespace of the test's own) and none can be.
const WITHOUT_CGROUP2: &str = r#"awk '$3 == "cgroup2" { print $2 }' /proc/mounts | xargs -r umount -l
    exec setpriv --bounding-set=-sys_admin "$0" "$@""#;

#[tokio::test(flavor = "multi_thread")]
async fn a_machine_without_cgroup_v2_is_told_so() -> anyhow::Result<()> {
    needs_root!();
    let root = tempfile::tempdir()?;
    let orlop = |words: &[&str]| {
        let mut orlop = tokio::process::Command::new("unshare");
        orlop.args(["--mount", "sh", "-c", WITHOUT_CGROUP2]).arg(binary());
        orlop.arg("--root").arg(root.path()).args(words);
        orlop
    };
    let checked = orlop(&["check"]).output().await?;
    let text = String::from_utf8_lossy(&checked.stdout).into_owned();
    ensure!(!checked.status.success(), "{text}");
    let failing: Vec<_> = text.lines().filter(|line| line.starts_with("FAILS")).collect();
    ensure!(
        failing
            .iter()
            .any(|line| line.contains("cgroup v2") && line.contains("neither mounted nor mountable"))
            && failing.iter().any(|line| line.contains("capabilities"))
            && text.contains("systemd.unified_cgroup_hierarchy=1")
            && text.contains("seccomp")
            && text.contains("can't be a node: 2 of the points"),
        "{text}"
    );
    let started = orlop(&["cri"]).output().await?;
    let said = String::from_utf8_lossy(&started.stderr).into_owned();
    ensure!(
        !started.status.success() && said.contains("cgroup v2") && said.contains("orlop check"),
        "{said}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_is_not_root_says_so() -> anyhow::Result<()> {
    needs_root!();
    let dir = copy_for_everyone()?;
    let nobody = tokio::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(dir.path().join("orlop"))
        .arg("server")
        .output()
        .await?;
    let said = String::from_utf8_lossy(&nobody.stderr).into_owned();
    ensure!(!nobody.status.success() && said.contains("not root") && said.contains("orlop check"), "{said}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_in_use_is_named() -> anyhow::Result<()> {
    needs_root!();
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = taken.local_addr()?.port();
    let root = tempfile::tempdir()?;
    let started = tokio::process::Command::new(binary())
        .arg("--root")
        .arg(root.path())
        .args(["server", "--bridge", "orlop-t-port", "--api-address", &format!("127.0.0.1:{port}")])
        .output()
        .await?;
    let said = String::from_utf8_lossy(&started.stderr).into_owned();
    ensure!(!started.status.success() && said.contains(&port.to_string()), "{said}");
    let stopped = tokio::process::Command::new(binary())
        .arg("--root")
        .arg(root.path())
        .args(["stop", "--bridge", "orlop-t-port"])
        .output()
        .await?;
    ensure!(stopped.status.success(), "{}", String::from_utf8_lossy(&stopped.stderr));
    Ok(())
}

/// The binary in a directory that everybody may read; the checkout need not be.
fn copy_for_everyone() -> anyhow::Result<tempfile::TempDir> {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir()?;
    std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755))?;
    std::fs::copy(binary(), dir.path().join("orlop"))?;
    Ok(dir)
}
