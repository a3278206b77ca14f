//! crictl against `orlop cri`: every command that it has for pods, containers and images.

use anyhow::{Context, ensure};
use tests::{Node, NodeOptions, Registry, Running, clients_program, command, eventually, image};

use crate::needs_root;

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_by_hand() -> anyhow::Result<()> {
    needs_root!();
    let node = Node::start_with(NodeOptions { role: vec!["cri".into()], ..NodeOptions::default() }).await?;
    let registry = Registry::start(&node, 5000).await?;
    let reference = registry.push(&image("busybox"), "tools:1").await?;
    node.crictl(&["pull", &reference]).await?.ok()?;
    let images = node.crictl(&["images"]).await?.ok()?;
    ensure!(images.contains("tools"), "{images}");
    let inspected = node.crictl(&["inspecti", &reference]).await?.json()?;
    ensure!(inspected["status"]["repoTags"][0] == reference.as_str(), "{inspected}");

    let pod_file = node.root.join("pod.json");
    let logs = node.root.join("log/byhand");
    std::fs::write(
        &pod_file,
        format!(
            r#"{{"metadata":{{"name":"p","namespace":"d","uid":"u1","attempt":0}},"log_directory":"{}","linux":{{}}}}"#,
            logs.display()
        ),
    )?;
    let container_file = node.root.join("container.json");
    let serve = "echo begin; mkdir /www; echo page > /www/index.html; httpd -p 8080 -h /www; exec cat";
    std::fs::write(
        &container_file,
        format!(
            r#"{{"metadata":{{"name":"c"}},"image":{{"image":"{reference}"}},"command":["sh","-c","{serve}"],"stdin":true,"log_path":"c.log","linux":{{}}}}"#
        ),
    )?;
    let path = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let pod = node.crictl(&["runp", &path(&pod_file)]).await?.ok()?.trim().to_owned();
    let container = node
        .crictl(&["create", &pod, &path(&container_file), &path(&pod_file)])
        .await?
        .ok()?
        .trim()
        .to_owned();
    node.crictl(&["start", &container]).await?.ok()?;
    let pods = node.crictl(&["pods"]).await?.ok()?;
    ensure!(pods.contains("Ready"), "{pods}");
    let listed = node.crictl(&["ps"]).await?.ok()?;
    ensure!(listed.contains("Running"), "{listed}");
    let inspected = node.crictl(&["inspect", &container]).await?.json()?;
    ensure!(inspected["status"]["state"] == "CONTAINER_RUNNING", "{inspected}");
    let inspected = node.crictl(&["inspectp", &pod]).await?.json()?;
    let ip = inspected["status"]["network"]["ip"].as_str().context("no address")?.to_owned();
    let out = node.crictl(&["exec", &container, "echo", "hi"]).await?.ok()?;
    ensure!(out == "hi\n", "{out:?}");
    let out = node.crictl(&["exec", "--sync", &container, "echo", "hi"]).await?.ok()?;
    ensure!(out.trim() == "hi", "{out:?}");
    eventually("the log", || async {
        let log = node.crictl(&["logs", &container]).await?.ok()?;
        ensure!(log == "begin\n", "{log:?}");
        Ok(())
    })
    .await?;
    eventually("the page", || async { node.curl(&[&format!("http://{ip}:8080/")]).await }).await?;
    let crictl = |words: &[&str]| {
        let mut crictl = command(&node.netns, clients_program("crictl"));
        crictl
            .arg("--runtime-endpoint")
            .arg(format!("unix://{}/run/cri.sock", node.root.display()))
            .args(words);
        Running::start(crictl)
    };
    let mut attached = crictl(&["attach", "-i", &container])?;
    attached.type_in("echoed\n").await?;
    attached.line_with("echoed").await?;
    drop(attached);
    let mut forward = crictl(&["port-forward", &pod, "18082:8080"])?;
    forward.line_with("Forwarding from").await?;
    let page = node.curl(&["http://127.0.0.1:18082/"]).await?;
    ensure!(page == "page\n", "{page:?}");
    drop(forward);
    for words in [
        &["info"][..],
        &["version"],
        &["stats"],
        &["statsp"],
        &["imagefsinfo"],
        &["runtime-config"],
        &["update", "--memory", "67108864", &container],
    ] {
        node.crictl(words).await?.ok().with_context(|| words.join(" "))?;
    }
    node.crictl(&["stop", &container]).await?.ok()?;
    node.crictl(&["rm", &container]).await?.ok()?;
    node.crictl(&["stopp", &pod]).await?.ok()?;
    node.crictl(&["rmp", &pod]).await?.ok()?;
    node.crictl(&["rmi", &reference]).await?.ok()?;
    let left = node.crictl(&["pods", "-q"]).await?.ok()?;
    ensure!(left.is_empty(), "{left}");
    drop(registry);
    node.end().await
}
