//! Pods with users of their own, on the kernel of a stable release.

use anyhow::{Context, ensure};
use vm::pods::Container;
use vm::{Lab, Node, eventually};

vm::cases![a_pod_has_users_of_its_own];

const MANIFEST: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: mapped, labels: {app: mapped}}
spec:
  hostUsers: false
  terminationGracePeriodSeconds: 1
  volumes: [{name: v, emptyDir: {}}, {name: c, configMap: {name: page}}]
  containers:
    - name: main
      image: localhost/busybox:1
      command: [sh, -c, 'touch /mine; sleep 100000']
      volumeMounts: [{name: v, mountPath: /v}, {name: c, mountPath: /c}]
---
apiVersion: v1
kind: ConfigMap
metadata: {name: page}
data: {key: value}
";

async fn a_pod_has_users_of_its_own(lab: &Lab) -> anyhow::Result<()> {
    let guest = lab.plain().await?;
    let config = "bridge: users\npodCIDRs: [10.49.0.0/24]\n";
    let node = Node::start_as(&guest, "/nodes/users", "server", config).await?;
    node.wait_ready().await?;
    guest.write("/nodes/users/mapped.yaml", MANIFEST.as_bytes()).await?;
    node.orlop("apply -f /nodes/users/mapped.yaml").await?.ok()?;
    let (_, found) = eventually("the container to run", || async {
        node.running("mapped").await?.into_iter().next().context("no container runs")
    })
    .await?;
    let container = Container { node: &node, id: found.id.clone() };

    let map = container.exec("cat /proc/self/uid_map").await?;
    let numbers: Vec<u32> = map.split_ascii_whitespace().map(str::parse).collect::<Result<_, _>>()?;
    ensure!(numbers.len() == 3 && numbers[0] == 0 && numbers[2] == 65_536, "{map}");
    let base = numbers[1];
    ensure!(base >= 65_536, "{map}: the host's own users");
    // Inside, all is root's: what the image brought, volumes, what the node wrote.
    let said = container
        .exec("id -u; stat -c %u /bin/busybox /mine /v /c/key /etc/hosts; cat /c/key; touch /v/made")
        .await?;
    ensure!(said == "0\n0\n0\n0\n0\n0\nvalue", "{said}");
    // Outside, its processes and the files of its own are nobody's.
    let pid = container.pid().await?;
    let owner = guest.ok(&format!("stat -c %u /proc/{pid}")).await?;
    ensure!(owner == base.to_string(), "the process belongs to {owner}, not to {base}");
    let find =
        format!("find /nodes/users/data -path '*/{}/*' -name mine -exec stat -c %u {{}} +", container.id);
    let owner = guest.ok(&find).await?;
    ensure!(owner == base.to_string(), "its file belongs to {owner:?}, not to {base}");
    // A volume is seen through a mapped mount: its content keeps the node's ids.
    let find = "find /nodes/users/data -path '*volumes*' -name made -exec stat -c %u {} +";
    let owner = guest.ok(find).await?;
    ensure!(owner == "0", "the volume's file belongs to {owner:?}");
    // Its root is not the node's root.
    let refused = container.exec("echo 1 > /proc/sys/kernel/sysrq").await;
    ensure!(refused.is_err(), "it can write the node's sysctls");
    node.stop().await
}
