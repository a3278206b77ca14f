//! What a pod may ask of Linux: kernel settings, limits, groups, signals, all of /proc, images of many layers.

use std::path::Path;

use anyhow::{Context, ensure};
use serde_json::Value;
use tests::archive::{Member, saved_image_of, tar};
use tests::{Node, NodeOptions, eventually};

use crate::manifests::{BUSYBOX, IDLE, pod_with};
use crate::needs_root;
use crate::pod_fields::node_name;

/// A small system: busybox, users, and groups that the users are members of.
fn system() -> anyhow::Result<Vec<u8>> {
    let busybox = std::fs::read("/bin/busybox").context("busybox-static is missing: run scripts/setup.sh")?;
    let file = |name, data| Member { name, kind: b'0', link: "", data };
    let mut members = vec![
        file("bin/busybox", &busybox[..]),
        file("etc/passwd", b"root:x:0:0::/:/bin/sh\napp:x:1000:1000::/:/bin/sh\n"),
        file("etc/group", b"root:x:0:\napp:x:1000:\nextra:x:2000:app\n"),
        Member { name: "tmp/", kind: b'5', link: "", data: b"" },
    ];
    for name in ["bin/sh", "bin/id", "bin/sleep", "bin/ls", "bin/wc", "bin/cat", "bin/echo", "bin/true"] {
        members.push(Member { name, kind: b'2', link: "busybox", data: b"" });
    }
    Ok(tar(&members))
}

/// Imports an image of these layers.
async fn import(node: &Node, name: &str, says: &str, layers: &[Vec<u8>]) -> anyhow::Result<String> {
    let reference = format!("localhost/{name}:1");
    let archive = node.root.join(format!("{name}.tar"));
    std::fs::write(&archive, saved_image_of(&reference, says, layers))?;
    let archive = archive.to_str().context("the archive's path is not UTF-8")?;
    node.orlop(&["image", "import", archive]).await?.ok()?;
    Ok(reference)
}

async fn exec(node: &Node, pod: &str, script: &str) -> anyhow::Result<String> {
    node.kubectl(&["exec", pod, "--", "sh", "-c", script]).await?.ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn settings_of_the_node_and_of_the_kernel() -> anyhow::Result<()> {
    needs_root!();
    let config = "allowedUnsafeSysctls: [net.core.somaxconn, kernel.msg*]\n\
                  defaultUlimits: ['nofile=1234:2345', core=0]\nuserNamespaces: {idsPerPod: 131072}\n\
                  systemReserved: {memory: 64Mi, cpu: 100m}\nkubeReserved: {cpu: 200m}\npodPidsLimit: 500\n";
    let node = Node::start_with(NodeOptions { config: config.into(), ..NodeOptions::default() }).await?;
    node.import("busybox").await?;
    let sysctls = |list: &[(&str, &str)]| {
        let each: Vec<String> =
            list.iter().map(|(name, value)| format!("{{name: {name}, value: {value:?}}}")).collect();
        format!("  securityContext: {{sysctls: [{}]}}\n", each.join(", "))
    };
    let safe = [("net.ipv4.ip_local_port_range", "1024 65000"), ("kernel.shm_rmid_forced", "1")];
    let allowed = [("net.core.somaxconn", "777"), ("kernel.msgmax", "4096")];
    let on_node = format!("  nodeName: {}\n", node_name(&node).await?);
    let refused = [
        ("unsafe", sysctls(&[("net.ipv4.ip_forward", "1")])),
        ("of-node", sysctls(&[("vm.swappiness", "1")])),
        ("host-network", format!("  hostNetwork: true\n{}", sysctls(&safe[..1]))),
        ("host-ipc", format!("  hostIPC: true\n{}", sysctls(&safe[1..]))),
    ];
    let mut all = vec![
        pod_with("tuned", IDLE, "", &sysctls(&[&safe[..], &allowed[..]].concat())),
        pod_with("own-users", IDLE, "", "  hostUsers: false\n"),
    ];
    all.extend(refused.iter().map(|(name, spec)| pod_with(name, IDLE, "", &format!("{on_node}{spec}"))));
    node.apply(&all.join("---\n")).await?;

    node.wait_ready("tuned").await?;
    let files = "cd /proc/sys; cat net/ipv4/ip_local_port_range kernel/shm_rmid_forced net/core/somaxconn kernel/msgmax";
    ensure!(exec(&node, "tuned", files).await? == "1024\t65000\n1\n777\n4096\n");
    // In the container and in what enters it.
    let limits = "for p in 1 self; do grep -E 'open files|core file' /proc/$p/limits | tr -s ' '; done; ulimit -n; ulimit -Hn";
    let said = exec(&node, "tuned", limits).await?;
    let both = "Max core file size 0 0 bytes \nMax open files 1234 2345 files \n";
    ensure!(said == format!("{both}{both}1234\n2345\n"), "{said}");
    // Best effort: the first to be killed.
    ensure!(exec(&node, "tuned", "cat /proc/1/oom_score_adj").await? == "1000\n");

    node.wait_ready("own-users").await?;
    let map = exec(&node, "own-users", "cat /proc/self/uid_map").await?;
    let numbers: Vec<&str> = map.split_ascii_whitespace().collect();
    ensure!(numbers.len() == 3 && numbers[2] == "131072", "{map}");

    for (name, _) in &refused {
        let failed = |pod: &Value| pod["status"]["phase"] == "Failed";
        let pod = node.wait_for(&format!("pod/{name}"), "Failed", failed).await?;
        ensure!(pod["status"]["reason"] == "SysctlForbidden", "{name}: {}", pod["status"]);
    }
    let told = node.kubectl(&["get", "nodes", "-o", "json"]).await?.json()?;
    let status = &told["items"][0]["status"];
    let amount = |list: &str, kind: &str| -> anyhow::Result<i64> {
        let text = status[list][kind].as_str().context("an amount")?;
        let (number, scale) = match (text.strip_suffix("Ki"), text.strip_suffix('m')) {
            (Some(number), _) => (number, 1024),
            (_, Some(number)) => (number, 1),
            _ if kind == "cpu" => (text, 1000),
            _ => (text, 1),
        };
        Ok(number.parse::<i64>()? * scale)
    };
    ensure!(amount("capacity", "cpu")? - amount("allocatable", "cpu")? == 300, "{status}");
    ensure!(amount("capacity", "memory")? - amount("allocatable", "memory")? >= 64 << 20, "{status}");
    node.kubectl(&["delete", "pod", "--all", "--timeout=30s"]).await?.ok()?;
    node.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_signals_proc_and_layers() -> anyhow::Result<()> {
    needs_root!();
    if !Path::new("/bin/busybox").exists() {
        println!("skipped: needs /bin/busybox (package busybox-static)");
        return Ok(());
    }
    let node = Node::start().await?;
    node.import("busybox").await?;
    let image = import(&node, "system", r#"{"StopSignal": "SIGUSR1"}"#, &[system()?]).await?;
    let with = |manifest: String, image: &str| manifest.replace(BUSYBOX, image);

    // Groups: those of the image's files, or only those that were asked for.
    let groups = |name: &str, policy: &str| {
        let context = format!(
            "  securityContext: {{runAsUser: 1000, supplementalGroups: [3000], supplementalGroupsPolicy: {policy}}}\n"
        );
        with(pod_with(name, "id -G; exec sleep 1000", "", &context), &image)
    };
    // Signals: the image's, or the pod's own.
    let out = node.root.join("out");
    std::fs::create_dir(&out)?;
    let volume = format!("  volumes: [{{name: out, hostPath: {{path: {}}}}}]\n", out.display());
    let mounts = "      volumeMounts: [{name: out, mountPath: /out}]\n";
    let script = |name: &str| {
        let trap = |signal: &str| format!("trap 'echo {signal} > /out/{name}; exit 0' {signal}; ");
        ["TERM", "USR1", "USR2"].map(trap).concat() + "echo ready; while :; do sleep 1000 & wait $!; done"
    };
    let own = format!("{mounts}      lifecycle: {{stopSignal: SIGUSR2}}\n");
    let plain = pod_with("plain-signal", &script("plain"), mounts, &volume);
    let own = pod_with("own-signal", &script("own"), &own, &format!("  os: {{name: linux}}\n{volume}"));
    // All of /proc: only for pods with users of their own.
    let unmasked = |seccomp: &str| {
        format!("      securityContext: {{procMount: Unmasked, seccompProfile: {{type: {seccomp}}}}}\n")
    };
    let bare = pod_with("bare", IDLE, &unmasked("Unconfined"), "  hostUsers: false\n");
    let hidden = pod_with("hidden", IDLE, "", "  hostUsers: false\n");
    let many: Vec<Vec<u8>> = (0..127)
        .map(|number| {
            let name = format!("many/{number}");
            tar(&[Member { name: &name, kind: b'0', link: "", data: b"" }])
        })
        .collect();
    let layers = import(&node, "many", "{}", &[vec![system()?], many].concat()).await?;
    let deep = with(pod_with("deep", "ls /many | wc -l; exec sleep 1000", "", ""), &layers);
    let all = [
        groups("merge", "Merge"),
        groups("strict", "Strict"),
        with(plain, &image),
        with(own, &image),
        bare,
        hidden,
        deep,
    ];
    node.apply(&all.join("---\n")).await?;
    for (pod, want) in [("merge", "1000 2000 3000\n"), ("strict", "1000 3000\n"), ("deep", "127\n")] {
        node.wait_ready(pod).await?;
        eventually("the output", || async {
            let said = node.kubectl(&["logs", pod]).await?.ok()?;
            let mut words: Vec<&str> = said.split_whitespace().collect();
            words.sort_unstable();
            ensure!(words.join(" ") + "\n" == want, "{pod}: {said}");
            Ok(())
        })
        .await?;
    }
    let inside = node.kubectl(&["exec", "strict", "--", "id", "-G"]).await?.ok()?;
    ensure!(inside.split_whitespace().all(|group| group != "2000"), "an exec has other groups: {inside}");
    let path = "jsonpath={.status.containerStatuses[0].user.linux.supplementalGroups}";
    let told = node.kubectl(&["get", "pod", "strict", "-o", path]).await?.ok()?;
    ensure!(told == "[1000,3000]", "{told}");

    let below = "grep -c ' /proc/' /proc/self/mountinfo; true";
    for pod in ["bare", "hidden"] {
        node.wait_ready(pod).await?;
        let count: u32 = exec(&node, pod, below).await?.trim().parse()?;
        ensure!((count == 0) == (pod == "bare"), "{pod}: {count} mounts below /proc");
    }
    // What it is for: a container in the container has a /proc of its own.
    let nested = "unshare -U -r -m -p -f sh -c 'mount -t proc proc /proc && cat /proc/self/comm' 2>&1; true";
    ensure!(exec(&node, "bare", nested).await?.trim() == "cat", "a nested /proc is not to be had");
    let refused = pod_with("refused", IDLE, &unmasked("RuntimeDefault"), "");
    let said = node.kubectl_with(&["create", "-f", "-"], &refused).await?.err()?;
    ensure!(said.contains("`hostUsers` must be false"), "{said}");

    for (pod, file, signal) in [("plain-signal", "plain", "USR1"), ("own-signal", "own", "USR2")] {
        eventually("the traps", || async {
            let said = node.kubectl(&["logs", pod]).await?.ok()?;
            ensure!(said == "ready\n", "{said}");
            Ok(())
        })
        .await?;
        let path = "jsonpath={.status.containerStatuses[0].stopSignal}";
        let told = node.kubectl(&["get", "pod", pod, "-o", path]).await?.ok()?;
        ensure!(told == format!("SIG{signal}"), "{pod} tells {told:?}");
        node.kubectl(&["delete", "pod", pod, "--timeout=30s"]).await?.ok()?;
        let got = std::fs::read_to_string(out.join(file)).with_context(|| format!("{pod} got no signal"))?;
        ensure!(got.trim() == signal, "{pod} got {got}");
    }
    node.kubectl(&["delete", "pod", "--all", "--timeout=30s"]).await?.ok()?;
    node.end().await
}
