//! SELinux where the kernel has it: contexts are in force, volumes are relabelled, and what can't be given is refused.
//!
//! The guest enforces a policy of a few types (`selinux.cil`), which is loaded when it has booted: no machine's whole
//! policy, but what Orlop needs of one.

use std::fmt::Write as _;
use std::process::Command;
use std::sync::Arc;

use anyhow::{Context, ensure};
use cri_api::v1::*;
use vm::pods::{Container, Pod, Wanted};
use vm::{Guest, GuestOptions, Lab, Node, eventually};

vm::cases![contexts_are_in_force, without_selinux_labels_are_refused];

const POLICY: &str = include_str!("selinux.cil");
/// Objects that the kernel has before any policy, in the kernel's order.
const INITIAL: &str = "kernel security unlabeled fs file file_labels init any_socket port netif netmsg node igmp_packet \
                       icmp_socket tcp_socket sysctl_modprobe sysctl sysctl_fs sysctl_kernel sysctl_net sysctl_net_unix \
                       sysctl_vm sysctl_dev kmod policy scmp_packet devnull";
const MANIFEST: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: labelled, labels: {app: labelled}}
spec:
  hostUsers: false
  terminationGracePeriodSeconds: 1
  securityContext: {seLinuxOptions: {level: 's0:c7,c8'}}
  volumes:
    - {name: v, emptyDir: {}}
    - {name: c, configMap: {name: page}}
    - {name: i, image: {reference: 'localhost/busybox:1'}}
  containers:
    - name: main
      image: localhost/busybox:1
      command: [sleep, '100000']
      volumeMounts: [{name: v, mountPath: /v}, {name: c, mountPath: /c}, {name: i, mountPath: /i}]
---
apiVersion: v1
kind: Pod
metadata: {name: privileged, labels: {app: privileged}}
spec:
  terminationGracePeriodSeconds: 1
  containers:
    - name: main
      image: localhost/busybox:1
      command: [sleep, '100000']
      securityContext: {privileged: true}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: page}
data: {key: value}
";
const CURRENT: &str = "cat /proc/self/attr/current";

/// The policy as the kernel reads it.
fn policy() -> anyhow::Result<Vec<u8>> {
    let mut text = POLICY.to_owned();
    let categories: Vec<String> = (0..1024).map(|number| format!("c{number}")).collect();
    for category in &categories {
        writeln!(text, "(category {category})")?;
    }
    writeln!(text, "(categoryorder ({}))", categories.join(" "))?;
    for name in INITIAL.split(' ') {
        let context = if ["kernel", "init"].contains(&name) { "host" } else { "files" };
        writeln!(text, "(sid {name})\n(sidcontext {name} {context})")?;
    }
    writeln!(text, "(sidorder ({INITIAL}))")?;
    let dir = tempfile::tempdir().context("make a directory for the policy")?;
    std::fs::write(dir.path().join("policy.cil"), text).context("write the policy")?;
    let mut compiler = Command::new("secilc");
    compiler.args(["-c", "33", "-M", "true", "-f", "/dev/null", "-o", "policy", "policy.cil"]);
    let compiled =
        compiler.current_dir(&dir).output().context("start secilc (scripts/setup.sh test installs it)")?;
    ensure!(compiled.status.success(), "secilc: {}", String::from_utf8_lossy(&compiled.stderr));
    std::fs::read(dir.path().join("policy")).context("read the policy")
}

/// A guest that enforces it.
async fn guest(lab: &Lab) -> anyhow::Result<Arc<Guest>> {
    let kernel = "security=selinux selinux=1".to_owned();
    let guest = lab.boot(GuestOptions { kernel, ..lab.options("selinux") }).await?;
    guest.ok("mount -t selinuxfs selinuxfs /sys/fs/selinux").await.context("does the kernel run SELinux?")?;
    // Without a configuration there, sshd doesn't look for contexts of its users, and the policy's name is the default.
    guest
        .write(
            "/etc/selinux/targeted/contexts/lxc_contexts",
            b"process = \"system_u:system_r:container_t:s0\"\nfile = \"system_u:object_r:container_file_t:s0\"\n\
              ro_file = \"system_u:object_r:container_ro_file_t:s0\"\n",
        )
        .await?;
    guest.write("/tmp/policy", &policy()?).await?;
    // All of it in one write.
    guest.ok("dd if=/tmp/policy of=/sys/fs/selinux/load bs=16M && echo 1 > /sys/fs/selinux/enforce").await?;
    let mode = guest.ok("cat /sys/fs/selinux/enforce").await?;
    ensure!(mode == "1", "enforce: {mode}");
    Ok(guest)
}

fn label(kind: &str, level: &str) -> SeLinuxOption {
    SeLinuxOption { r#type: kind.into(), level: level.into(), ..Default::default() }
}

fn with(context: LinuxContainerSecurityContext, mounts: Vec<Mount>) -> Wanted {
    let linux = LinuxContainerConfig { security_context: Some(context), ..Default::default() };
    let config = ContainerConfig { linux: Some(linux), mounts, ..Default::default() };
    Wanted { config, ..Wanted::script("exec sleep 10000") }
}

fn volume(host: &str, selinux_relabel: bool) -> Mount {
    Mount { container_path: "/v".into(), host_path: host.into(), selinux_relabel, ..Default::default() }
}

/// The level of a container's main process, an exec and its files; they must be the same.
async fn level(container: &Container<'_>) -> anyhow::Result<String> {
    let guest = &container.node.guest;
    let pid = container.pid().await?;
    let process = guest.ok(&format!("tr -d '\\0' < /proc/{pid}/attr/current")).await?;
    let level = process
        .strip_prefix("system_u:system_r:container_t:")
        .with_context(|| format!("its process is {process}"))?;
    let exec = container.exec(CURRENT).await?;
    ensure!(exec.trim_end_matches('\0') == process, "the exec is {exec}, the process {process}");
    let want = format!("system_u:object_r:container_file_t:{level}");
    container.exec("echo x > /new; echo x > /dev/shm/new").await?;
    let seen = "/bin /new /dev /dev/null /dev/pts /dev/shm /dev/shm/new /etc/resolv.conf";
    let seen: Vec<String> = seen.split(' ').map(|path| format!("/proc/{pid}/root{path}")).collect();
    let files = guest.ok(&format!("stat -c '%C %n' {}", seen.join(" "))).await?;
    ensure!(files.lines().all(|line| line.starts_with(&format!("{want} "))), "wanted {want}:\n{files}");
    Ok(level.to_owned())
}

async fn contexts_are_in_force(lab: &Lab) -> anyhow::Result<()> {
    let node = Node::start(&guest(lab).await?, "selinux").await?;
    let guest = &node.guest;
    let plain = LinuxContainerSecurityContext::default;
    let pod = Pod::start(&node).await?;

    // Containers of a pod share a level; giving up privileges keeps nobody from getting the context.
    let first = pod.container(with(plain(), vec![])).await?;
    let strict = LinuxContainerSecurityContext { no_new_privs: true, ..plain() };
    let second = pod.container(with(strict, vec![])).await?;
    let own = level(&first).await?;
    ensure!(own.starts_with("s0:c") && level(&second).await? == own, "{own}");
    let other = Pod::start(&node).await?;
    let stranger = other.container(with(plain(), vec![])).await?;
    let foreign = level(&stranger).await?;
    ensure!(foreign != own, "two pods have {own}");

    // The node's files are shut, the pod's are open to it, and to nobody else.
    guest
        .ok("mkdir -p /volumes/shut /volumes/own/deep && echo x | tee /volumes/shut/f /volumes/own/deep/f")
        .await?;
    let shut = pod.container(with(plain(), vec![volume("/volumes/shut", false)])).await?;
    let said = shut.exec("cat /v/f 2>&1 || true").await?;
    ensure!(said.contains("Permission denied"), "a volume of the node's: {said}");
    let open = pod.container(with(plain(), vec![volume("/volumes/own", true)])).await?;
    ensure!(open.exec("cat /v/deep/f; echo y > /v/new").await? == "x", "its own volume");
    let files = guest.ok("stat -c %C /volumes/own /volumes/own/deep/f /volumes/own/new").await?;
    let want = format!("system_u:object_r:container_file_t:{own}");
    ensure!(files.lines().all(|line| line == want), "wanted {want}:\n{files}");
    let thief = other.container(with(plain(), vec![volume("/volumes/own", false)])).await?;
    let said = thief.exec("cat /v/deep/f 2>&1 || true").await?;
    ensure!(said.contains("Permission denied"), "another pod's volume: {said}");

    // By request, or not at all. What its pod's containers share has its level then, so it's the last one there.
    let asked = LinuxContainerSecurityContext { selinux_options: Some(label("", "s0:c7,c8")), ..plain() };
    let asked = other.container(with(asked, vec![])).await?;
    let process = guest.ok(&format!("tr -d '\\0' < /proc/{}/attr/current", asked.pid().await?)).await?;
    ensure!(process == "system_u:system_r:container_t:s0:c7,c8", "{process}");
    let unknown = LinuxContainerSecurityContext { selinux_options: Some(label("no_such_t", "")), ..plain() };
    let refused = pod.container(with(unknown, vec![])).await.err().map(|error| format!("{error:#}"));
    let refused = refused.context("a type that the policy doesn't have was accepted")?;
    ensure!(refused.contains("is not in this node's policy"), "{refused}");

    // What all containers share is labelled once, and an image's content is what it was.
    let layers = guest.ok("cd /nodes/selinux/data/images/l && stat -c %C */d/bin */d/bin/.. | uniq").await?;
    ensure!(layers == "system_u:object_r:container_ro_file_t:s0", "{layers}");
    node.orlop("image verify").await?.ok()?;

    // A daemon that restarts gives the same ones.
    node.kill(&[node.daemon_pid().await?]).await?;
    node.launch().await?;
    ensure!(level(&first).await? == own);
    ensure!(level(&pod.container(with(plain(), vec![])).await?).await? == own, "after a restart");

    for pod in [pod, other] {
        pod.remove().await?;
    }
    guest.ok("rm -r /volumes").await?;
    let guest = Arc::clone(guest);
    node.stop().await?;
    from_a_manifest(&guest).await
}

/// A pod with a level, users of its own and volumes, through the apiserver and the kubelet; and a privileged one.
async fn from_a_manifest(guest: &Arc<Guest>) -> anyhow::Result<()> {
    let config = "bridge: selinux\npodCIDRs: [10.48.0.0/24]\n";
    let node = Node::start_as(guest, "/nodes/selinux", "server", config).await?;
    node.wait_ready().await?;
    guest.write("/nodes/selinux/pods.yaml", MANIFEST.as_bytes()).await?;
    node.orlop("apply -f /nodes/selinux/pods.yaml").await?.ok()?;
    let running = async |app: &'static str| {
        eventually("the container to run", || async {
            node.running(app).await?.into_iter().next().context("no container runs")
        })
        .await
    };
    let container = Container { node: &node, id: running("labelled").await?.1.id.clone() };
    ensure!(level(&container).await? == "s0:c7,c8");
    ensure!(container.exec("cat /c/key; echo; echo x > /v/new; cat /v/new").await? == "value\nx");
    let pid = container.pid().await?;
    ensure!(container.exec("/i/bin/echo hello").await? == "hello", "a program of the image volume");
    let files = format!("cd /proc/{pid}/root && stat -c %C v v/new c/key i i/bin | uniq");
    let files = guest.ok(&files).await?;
    ensure!(files == "system_u:object_r:container_file_t:s0:c7,c8", "{files}");
    let open = Container { node: &node, id: running("privileged").await?.1.id.clone() };
    let context = open.exec(CURRENT).await?;
    ensure!(context.starts_with("system_u:system_r:host_t:"), "{context}");
    node.stop().await
}

async fn without_selinux_labels_are_refused(lab: &Lab) -> anyhow::Result<()> {
    let node = lab.node().await?;
    let pod = Pod::start(&node).await?;
    let asked =
        LinuxContainerSecurityContext { selinux_options: Some(label("spc_t", "")), ..Default::default() };
    let refused = pod.container(with(asked, vec![])).await.err().map(|error| format!("{error:#}"));
    let refused = refused.context("a label was accepted")?;
    ensure!(refused.contains("runs without SELinux"), "{refused}");
    pod.remove().await
}
