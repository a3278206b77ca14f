//! An operator's kubectl: nodes, tokens, bulk, streams over SPDY.

use std::os::unix::fs::PermissionsExt;

use anyhow::ensure;
use serde_json::Value;
use tests::{Node, NodeOptions, Running, command, eventually, run};

use crate::manifests::{IDLE, pod, pod_with};
use crate::needs_root;
use crate::pod_fields::node_name;

#[tokio::test(flavor = "multi_thread")]
async fn nodes_are_cordoned_drained_and_tainted() -> anyhow::Result<()> {
    needs_root!();
    let node = Node::start().await?;
    node.import("busybox").await?;
    let name = node_name(&node).await?;
    node.apply(&pod("a", IDLE)).await?;
    node.wait_ready("a").await?;
    node.kubectl(&["cordon", &name]).await?.ok()?;
    let listed = node.kubectl(&["get", "nodes"]).await?.ok()?;
    ensure!(listed.contains("SchedulingDisabled"), "{listed}");
    node.kubectl(&["drain", &name, "--force", "--timeout=30s"]).await?.ok()?;
    let left = node.kubectl(&["get", "pods", "-o", "name"]).await?.ok()?;
    ensure!(left.is_empty(), "{left}");
    node.apply(&pod("b", IDLE)).await?;
    eventually("the reason", || async {
        let described = node.kubectl(&["describe", "pod", "b"]).await?.ok()?;
        ensure!(described.contains("were unschedulable"), "{described}");
        Ok(())
    })
    .await?;
    node.kubectl(&["uncordon", &name]).await?.ok()?;
    node.wait_ready("b").await?;
    // A taint that nobody tolerates drives the pod out, and keeps the next one waiting.
    node.kubectl(&["taint", "node", &name, "busy=yes:NoExecute"]).await?.ok()?;
    node.kubectl(&["wait", "--for=delete", "pod/b", "--timeout=30s"]).await?.ok()?;
    node.apply(&pod("c", IDLE)).await?;
    let tolerates = "  tolerations: [{key: busy, operator: Exists}]\n";
    node.apply(&pod_with("d", IDLE, "", tolerates)).await?;
    node.wait_ready("d").await?;
    let c = node.kubectl(&["get", "pod", "c", "-o", "json"]).await?.json()?;
    ensure!(c["status"]["phase"] == "Pending", "{}", c["status"]);
    node.kubectl(&["taint", "node", &name, "busy-"]).await?.ok()?;
    node.wait_ready("c").await?;
    node.kubectl(&["delete", "pod", "--all", "--timeout=30s"]).await?.ok()?;
    node.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_let_in() -> anyhow::Result<()> {
    needs_root!();
    let node = Node::start().await?;
    let whoami = node.kubectl(&["auth", "whoami"]).await?.ok()?;
    ensure!(whoami.contains("admin") && whoami.contains("system:masters"), "{whoami}");
    ensure!(node.kubectl(&["auth", "can-i", "create", "pods"]).await?.ok()?.trim() == "yes");
    let token = node.kubectl(&["create", "token", "default", "--duration=10m"]).await?.ok()?;
    let token = token.trim();
    let get = |bearer: Option<String>, path: &'static str| {
        let mut curl = command(&node.netns, "curl");
        curl.args(["-sk", "--max-time", "10", "-w", "\n%{http_code}"]);
        if let Some(bearer) = bearer {
            curl.args(["-H", &format!("Authorization: Bearer {bearer}")]);
        }
        curl.arg(format!("https://127.0.0.1:6443{path}"));
        async move { run(curl, None).await?.ok() }
    };
    let said = get(Some(token.to_owned()), "/api/v1/namespaces/default").await?;
    ensure!(said.ends_with("\n200") && said.contains("\"default\""), "{said}");
    let review = r#"{"apiVersion":"authentication.k8s.io/v1","kind":"SelfSubjectReview"}"#;
    let mut curl = command(&node.netns, "curl");
    curl.args([
        "-sk",
        "-H",
        &format!("Authorization: Bearer {token}"),
        "-H",
        "Content-Type: application/json",
    ]);
    curl.args(["-d", review, "https://127.0.0.1:6443/apis/authentication.k8s.io/v1/selfsubjectreviews"]);
    let me = run(curl, None).await?.json()?;
    let user = &me["status"]["userInfo"]["username"];
    ensure!(user == "system:serviceaccount:default:default", "{me}");
    for bearer in [None, Some(format!("{token}x")), Some("nonsense".to_owned()), Some(String::new())] {
        let said = get(bearer.clone(), "/api/v1/namespaces").await?;
        ensure!(said.ends_with("\n401") && said.contains("Unauthorized"), "{bearer:?}: {said}");
    }
    for path in ["/healthz", "/livez", "/readyz", "/version"] {
        let said = get(None, path).await?;
        ensure!(said.ends_with("\n200"), "{path}: {said}");
    }
    // The kubelet API is closed too.
    let mut curl = command(&node.netns, "curl");
    curl.args(["-sk", "-o", "/dev/null", "-w", "%{http_code}", "https://127.0.0.1:10250/pods"]);
    let code = run(curl, None).await?.stdout;
    ensure!(code == "401", "{code}");
    // The token of a deleted account is worth nothing.
    node.kubectl(&["create", "serviceaccount", "short"]).await?.ok()?;
    let token = node.kubectl(&["create", "token", "short"]).await?.ok()?;
    node.kubectl(&["delete", "serviceaccount", "short"]).await?.ok()?;
    let said = get(Some(token.trim().to_owned()), "/api/v1/namespaces").await?;
    ensure!(said.ends_with("\n401"), "{said}");
    node.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn objects_in_bulk_and_of_every_kind() -> anyhow::Result<()> {
    needs_root!();
    let mut node = Node::start().await?;
    node.import("busybox").await?;
    let map = |name: &str| format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{{name}}}\ndata: {{a: b}}\n");
    let mut many = String::new();
    // kubectl allows itself a burst of 300 requests.
    for _ in 0..280 {
        many.push_str(&map("generateName: many-, labels: {many: yes-please}"));
        many.push_str("---\n");
    }
    node.kubectl_with(&["create", "-f", "-", "-o", "name"], &many).await?.ok()?;
    let listed =
        node.kubectl(&["get", "configmaps", "-l", "many", "--chunk-size=50", "-o", "name"]).await?.ok()?;
    ensure!(listed.lines().count() == 280, "{} listed", listed.lines().count());
    let page = node.kubectl(&["get", "--raw", "/api/v1/configmaps?limit=10"]).await?.json()?;
    ensure!(page["items"].as_array().is_some_and(|items| items.len() == 10), "{page}");
    ensure!(page["metadata"]["remainingItemCount"].as_u64().unwrap_or(0) >= 270, "{}", page["metadata"]);
    let all = "/api/v1/namespaces/default/configmaps?labelSelector=many";
    node.kubectl(&["delete", "--raw", all]).await?.ok()?;
    let left = node.kubectl(&["get", "configmaps", "-l", "many", "-o", "name"]).await?.ok()?;
    ensure!(left.is_empty(), "{left}");

    let too_big = node.root.join("too-big");
    std::fs::write(&too_big, "a".repeat(1_500_000))?;
    let from = format!("--from-file={}", too_big.display());
    let said = node.kubectl(&["create", "configmap", "big", &from]).await?.err()?;
    ensure!(said.contains("Too long: may not be more than 1048576 bytes"), "{said}");
    std::fs::write(&too_big, "a".repeat(1_000_000))?;
    node.kubectl(&["create", "configmap", "big", &from]).await?.ok()?;

    node.kubectl_with(&["create", "-f", "-"], &map("name: c")).await?.ok()?;
    let uid = ["get", "configmap", "c", "-o", "jsonpath={.metadata.uid}"];
    let before = node.kubectl(&uid).await?.ok()?;
    node.kubectl_with(&["replace", "--force", "-f", "-"], &map("name: c")).await?.ok()?;
    ensure!(node.kubectl(&uid).await?.ok()? != before, "replace --force kept the object");

    node.kubectl(&["run", "r", "--image=localhost/busybox:1", "--restart=Never", "--", "sleep", "1000"])
        .await?
        .ok()?;
    // It speaks when it was spoken to, so kubectl is attached by then.
    let run = ["run", "once", "--image=localhost/busybox:1", "--restart=Never", "--rm", "-i", "--"];
    let answer = ["sh", "-c", "read word && echo hi $word"];
    let said = node.kubectl_with(&[&run[..], &answer].concat(), "there\n").await?.ok()?;
    ensure!(said.contains("hi there\n"), "{said}");
    node.kubectl(&["wait", "--for=condition=Ready", "pod/r", "--timeout=30s"]).await?.ok()?;
    node.kubectl(&["expose", "pod", "r", "--port=80", "--target-port=8080"]).await?.ok()?;
    let service = node.kubectl(&["get", "service", "r", "-o", "json"]).await?.json()?;
    ensure!(service["spec"]["clusterIP"].as_str().is_some_and(|ip| ip.starts_with("10.43.")), "{service}");
    ensure!(service["spec"]["selector"]["run"] == "r", "{service}");
    node.kubectl(&["create", "deployment", "d", "--image=localhost/busybox:1", "--replicas=0"])
        .await?
        .ok()?;
    // What `kubectl autoscale` would make; its flags differ from version to version.
    let scaler = "apiVersion: autoscaling/v2\nkind: HorizontalPodAutoscaler\nmetadata: {name: d}\nspec: {maxReplicas: 3, \
                  scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: d}}\n";
    let said = node.kubectl_with(&["create", "--validate=false", "-f", "-"], scaler).await?.err()?;
    ensure!(said.contains("no matches for kind \"HorizontalPodAutoscaler\""), "{said}");
    let said = node.kubectl(&["debug", "r", "--image=localhost/busybox:1", "--", "true"]).await?.err()?;
    ensure!(said.contains("ephemeral containers are not supported"), "{said}");
    let said = node.kubectl(&["exec", "r", "-c", "nope", "--", "true"]).await?.err()?;
    ensure!(said.contains("nope"), "{said}");

    let kinds = node.kubectl(&["api-resources", "--verbs=list", "-o", "name"]).await?.ok()?;
    ensure!(kinds.lines().count() >= 11, "{kinds}");
    for kind in kinds.lines() {
        for format in ["json", "yaml", "wide", "name"] {
            node.kubectl(&["get", kind, "-A", "-o", format]).await?.ok()?;
        }
        node.kubectl(&["describe", kind, "-A"]).await?.ok()?;
    }

    // A watcher comes back by itself when the daemon does.
    let mut events = node.kubectl_running(&["get", "events", "-w", "-o", "name"])?;
    events.line_with("event").await?;
    drop(events);
    let version =
        node.kubectl(&["get", "configmap", "c", "-o", "jsonpath={.metadata.resourceVersion}"]).await?.ok()?;
    node.kill().await?;
    node.launch().await?;
    node.kubectl(&["label", "configmap", "c", "after=restart"]).await?.ok()?;
    let path = format!(
        "/api/v1/namespaces/default/configmaps?watch=1&fieldSelector=metadata.name%3Dc&resourceVersion={version}&timeoutSeconds=1"
    );
    let seen = node.kubectl(&["get", "--raw", &path]).await?.ok()?;
    ensure!(seen.contains("MODIFIED") && seen.contains("restart"), "{seen}");
    node.kubectl(&[
        "delete",
        "--all",
        "pod,deployment,service,configmap",
        "--grace-period=1",
        "--timeout=30s",
    ])
    .await?
    .ok()?;
    node.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_over_spdy() -> anyhow::Result<()> {
    needs_root!();
    let node = Node::start().await?;
    node.import("busybox").await?;
    let script = "mkdir /w; echo page > /w/index.html; httpd -p 8080 -h /w; echo up; exec cat";
    node.apply(&pod_with("s", script, "      stdin: true\n", "")).await?;
    node.wait_ready("s").await?;
    let spdy = |words: &[&str]| {
        let mut kubectl = node.kubectl_command(words);
        kubectl
            .env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", "false")
            .env("KUBECTL_PORT_FORWARD_WEBSOCKETS", "false");
        kubectl
    };
    let out = run(spdy(&["exec", "s", "--", "echo", "hello"]), None).await?.ok()?;
    ensure!(out == "hello\n", "{out:?}");
    let ran = run(spdy(&["exec", "s", "--", "sh", "-c", "echo oops >&2; exit 7"]), None).await?;
    ensure!(ran.code == 7 && ran.stderr.contains("oops"), "{ran:?}");
    let bytes: Vec<u8> = (0..2_000_000_u32).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
    let out = run(spdy(&["exec", "-i", "s", "--", "wc", "-c"]), Some(&bytes)).await?.ok()?;
    ensure!(out.trim() == "2000000", "{out:?}");
    let (there, back) = (node.root.join("there"), node.root.join("back"));
    std::fs::write(&there, &bytes)?;
    run(spdy(&["cp", &there.display().to_string(), "s:/tmp/x"]), None).await?.ok()?;
    run(spdy(&["cp", "s:/tmp/x", &back.display().to_string()]), None).await?.ok()?;
    ensure!(std::fs::read(&back)? == bytes, "the copy differs");
    let mut attached = Running::start(spdy(&["attach", "-i", "s"]))?;
    attached.type_in("echoed\n").await?;
    attached.line_with("echoed").await?;
    drop(attached);
    let mut forward = Running::start(spdy(&["port-forward", "pod/s", "18083:8080"]))?;
    forward.line_with("Forwarding from").await?;
    for _ in 0..3 {
        ensure!(node.curl(&["http://127.0.0.1:18083/"]).await? == "page\n");
    }
    drop(forward);
    // A terminal has the size of the user's, over either protocol, and follows it.
    for protocol in ["true", "false"] {
        // Sizes come over a stream of their own, some time after the start.
        let typed = node.root.join(format!("terminal-{protocol}"));
        let size = |is: &str| {
            format!(
                "i=0; until [ \"$(stty size)\" = \"{is}\" ] || [ $((i += 1)) = 200 ]; do sleep 0.1; done; echo it is $(stty size); "
            )
        };
        let line = format!(
            "stty rows 33 cols 77; (until grep -q 'it is 33 7[7]' {}; do sleep 0.1; done; stty rows 44 cols 88 < /dev/tty) & \
             KUBECTL_REMOTE_COMMAND_WEBSOCKETS={protocol} exec {} exec -it s -- sh -c '{}'",
            typed.display(),
            tests::clients_program("kubectl").display(),
            size("33 77") + &size("44 88"),
        );
        let mut terminal = command(&node.netns, "script");
        terminal.env("KUBECONFIG", node.kubeconfig()).args(["-qefc", &line]).arg(&typed);
        let out = run(terminal, None).await?.stdout;
        ensure!(out.contains("it is 33 77") && out.contains("it is 44 88"), "websockets={protocol}: {out:?}");
    }
    node.kubectl(&["delete", "pod", "s", "--grace-period=1"]).await?.ok()?;
    node.end().await
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_over_tls_on_the_node() -> anyhow::Result<()> {
    needs_root!();
    let directory = tempfile::tempdir()?;
    // An operator's certificate: its name is the node's, not that of the loopback.
    let made = rcgen::generate_simple_self_signed(["node.example".to_owned()])?;
    let (cert, key) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
    std::fs::write(&cert, made.cert.pem())?;
    std::fs::write(&key, made.signing_key.serialize_pem())?;
    let config =
        format!("streaming:\n  tlsCertFile: {}\n  tlsPrivateKeyFile: {}\n", cert.display(), key.display());
    let node = Node::start_with(NodeOptions { config, ..NodeOptions::default() }).await?;
    node.import("busybox").await?;
    let script = "mkdir /w; echo page > /w/index.html; httpd -p 8080 -h /w; exec cat";
    node.apply(&pod_with("s", script, "      stdin: true\n", "")).await?;
    node.wait_ready("s").await?;
    for websockets in ["true", "false"] {
        let mut kubectl = node.kubectl_command(&["exec", "-i", "s", "--", "wc", "-c"]);
        kubectl.env("KUBECTL_REMOTE_COMMAND_WEBSOCKETS", websockets);
        let out = run(kubectl, Some(&vec![b'x'; 300_000])).await?.ok()?;
        ensure!(out.trim() == "300000", "websockets={websockets}: {out:?}");
    }
    let mut forward = Running::start(node.kubectl_command(&["port-forward", "pod/s", "18084:8080"]))?;
    forward.line_with("Forwarding from").await?;
    ensure!(node.curl(&["http://127.0.0.1:18084/"]).await? == "page\n");
    drop(forward);
    let container = node.crictl(&["ps", "-q"]).await?.ok()?.trim().to_owned();
    let ca = cert.display().to_string();
    let key = key.display().to_string();
    // It won't check a server without being given a certificate of its own; ours doesn't ask for that.
    let tls = ["exec", "--tls-ca", &ca, "--tls-cert", &ca, "--tls-key", &key, "--tls-server-name"];
    let crictl =
        async |name: &str| node.crictl(&[&tls[..], &[name, &container, "echo", "hi"]].concat()).await;
    let out = crictl("node.example").await?.ok()?;
    ensure!(out == "hi\n", "{out:?}");
    let said = crictl("other.example").await?;
    ensure!(said.code != 0 && said.stderr.contains("certificate"), "{said:?}");
    // A checkpoint by the kubelet's API: made, or refused by CRIU or for want of it; the pod goes on.
    let proxy = format!("/api/v1/nodes/{}/proxy/checkpoint/default", node_name(&node).await?);
    let nothing = node.root.join("nothing");
    std::fs::write(&nothing, "")?;
    let nothing = nothing.display().to_string();
    let post = async |path: &str| {
        node.kubectl(&["create", "--raw", &format!("{proxy}/{path}"), "-f", &nothing]).await
    };
    let ran = post("s/main?timeout=60").await?;
    if ran.code == 0 {
        let file = ran.json()?["items"][0].as_str().unwrap_or_default().to_owned();
        ensure!(file.contains("/checkpoints/checkpoint-s_default-main-"), "{file}");
        ensure!(std::fs::metadata(&file)?.permissions().mode() & 0o777 == 0o600, "{file}");
    } else {
        println!("skipped: no checkpoint can be made here: {}", ran.stderr.trim());
        ensure!(ran.stderr.contains("CRIU"), "{ran:?}");
    }
    for path in ["s/other", "none/main"] {
        let said = post(path).await?.err()?;
        ensure!(said.contains("NotFound"), "{path}: {said}");
    }
    let out = node.kubectl(&["exec", "s", "--", "echo", "still"]).await?.ok()?;
    ensure!(out == "still\n", "{out:?}");
    node.kubectl(&["delete", "pod", "s", "--grace-period=1"]).await?.ok()?;
    node.end().await
}

/// Resident memory of a process, in KiB.
fn resident(pid: u32) -> anyhow::Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    Ok(line.split_whitespace().nth(1).unwrap_or_default().parse()?)
}

fn descriptors(pid: u32) -> anyhow::Result<usize> {
    Ok(std::fs::read_dir(format!("/proc/{pid}/fd"))?.count())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_pods_come_and_go_and_logs_are_rotated() -> anyhow::Result<()> {
    needs_root!();
    let config = "containerLogMaxSize: 10000\ncontainerLogMaxFiles: 3\n".to_owned();
    let node = Node::start_with(tests::NodeOptions { config, ..Default::default() }).await?;
    node.import("busybox").await?;
    let rounds = |from: u32, to: u32| {
        let node = &node;
        async move {
            for batch in (from..to).step_by(20) {
                let pods: Vec<String> = (batch..batch + 20)
                    .map(|n| {
                        pod(&format!("p{n}"), "exec true")
                            .replace("spec:\n", "spec:\n  restartPolicy: Never\n")
                    })
                    .collect();
                node.apply(&pods.join("---\n")).await?;
                eventually("the batch to end", || async {
                    let list = node.kubectl(&["get", "pods", "-l", "app", "-o", "json"]).await?.json()?;
                    let open = |pod: &&Value| pod["status"]["phase"] != "Succeeded";
                    let open = list["items"].as_array().into_iter().flatten().filter(open).count();
                    ensure!(open <= 1, "{open} go on"); // The one that talks.
                    Ok(())
                })
                .await?;
                let names: Vec<String> = (batch..batch + 20).map(|n| format!("pod/p{n}")).collect();
                let mut words = vec!["delete", "--timeout=60s"];
                words.extend(names.iter().map(String::as_str));
                node.kubectl(&words).await?.ok()?;
            }
            anyhow::Ok(())
        }
    };
    node.apply(&pod(
        "talk",
        "while :; do echo a line of some length to fill the file with; usleep 3000; done",
    ))
    .await?;
    rounds(0, 20).await?;
    let (daemon, keeper) = (node.daemon_pid(), node.keeper_pid()?);
    let before = (resident(daemon)?, resident(keeper)?, descriptors(daemon)?, descriptors(keeper)?);
    rounds(20, 100).await?;
    let after = (resident(daemon)?, resident(keeper)?, descriptors(daemon)?, descriptors(keeper)?);
    eprintln!("resident KiB and descriptors of daemon and keeper: {before:?}, then {after:?}");
    ensure!(after.0 < before.0 + 40_000 && after.1 < before.1 + 2_000, "{before:?} became {after:?}");
    ensure!(after.2 <= before.2 + 20 && after.3 <= before.3 + 5, "{before:?} became {after:?}");
    let logs = node.root.join("log/pods");
    eventually("the log to be rotated", || async {
        let mut parts = Vec::new();
        for pod in std::fs::read_dir(&logs)?.flatten() {
            for entry in std::fs::read_dir(pod.path().join("main")).into_iter().flatten().flatten() {
                parts.push(entry.file_name());
            }
        }
        ensure!((2..=3).contains(&parts.len()), "{parts:?}");
        Ok(())
    })
    .await?;
    let tail = node.kubectl(&["logs", "talk", "--tail=300"]).await?.ok()?;
    // It goes on talking while it is read.
    ensure!((300..350).contains(&tail.lines().count()), "{} lines over the parts", tail.lines().count());
    node.kubectl(&["delete", "pod", "--all", "--timeout=30s"]).await?.ok()?;
    node.end().await
}
