//! Clients that give up while a call is at work, and ask again: they get what the first attempt makes.

use std::path::Path;

use anyhow::{Context, ensure};
use cri_api::v1::NamespaceMode;
use tests::{Node, NodeOptions, eventually};

use crate::pods::*;

/// Lets the daemon wait when it passes `step` next.
fn hold(faults: &Path, step: &str) -> anyhow::Result<()> {
    let pipe = faults.join("hold");
    if !pipe.exists() {
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0)?;
    }
    // In one go: the daemon must not read half of it.
    std::fs::write(faults.join("arming"), format!("wait 1 {step}"))?;
    Ok(std::fs::rename(faults.join("arming"), faults.join("armed"))?)
}

/// Waits until the daemon is there.
async fn held(faults: &Path) -> anyhow::Result<()> {
    eventually("the step to be reached", || async {
        std::fs::remove_file(faults.join("struck")).context("not yet")
    })
    .await
}

/// Lets it go on.
async fn release(faults: &Path) -> anyhow::Result<()> {
    let pipe = faults.join("hold");
    tokio::task::spawn_blocking(move || std::fs::File::options().write(true).open(pipe)).await??;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_again_gets_the_first_result() -> anyhow::Result<()> {
    if !tests::can_run() {
        return Ok(());
    }
    let options = NodeOptions { role: vec!["cri".into()], faults: true, ..NodeOptions::default() };
    let node = Node::start_with(options).await?;
    node.import("busybox").await?;
    let faults = node.faults();
    let cri = client(&node).await?;

    // The second attempt comes while the first is at work, and a third with it.
    let config = pod(&node, "meanwhile", NamespaceMode::Pod, Some(18080));
    hold(&faults, "RunPodSandbox: connect it")?;
    tokio::select! {
        made = run_pod(&cri, &config) => ensure!(false, "it did not wait: {made:?}"),
        reached = held(&faults) => reached?,
    }
    ensure!(sandboxes(&cri).await?.is_empty(), "half of a pod is listed");
    let (second, third, ()) = tokio::try_join!(run_pod(&cri, &config), run_pod(&cri, &config), async {
        tokio::task::yield_now().await;
        release(&faults).await
    })?;
    let listed = sandboxes(&cri).await?;
    ensure!(second == third && listed.len() == 1 && listed[0].id == second, "{second} {third} {listed:?}");

    hold(&faults, "CreateContainer: make the container")?;
    tokio::select! {
        made = create(&cri, &second, &config) => ensure!(false, "it did not wait: {made:?}"),
        reached = held(&faults) => reached?,
    }
    ensure!(containers(&cri).await?.is_empty(), "half of a container is listed");
    let (again, too, ()) =
        tokio::try_join!(create(&cri, &second, &config), create(&cri, &second, &config), async {
            tokio::task::yield_now().await;
            release(&faults).await
        })?;
    let listed = containers(&cri).await?;
    ensure!(again == too && listed.len() == 1 && listed[0].id == again, "{again} {too} {listed:?}");
    start(&cri, &again).await?;

    // The second attempt comes when the first is over, of which nobody heard.
    let config = pod(&node, "after", NamespaceMode::Pod, Some(18081));
    hold(&faults, "RunPodSandbox: answer")?;
    tokio::select! {
        made = run_pod(&cri, &config) => ensure!(false, "it did not wait: {made:?}"),
        reached = held(&faults) => reached?,
    }
    release(&faults).await?;
    let first = eventually("the pod to be made", || async {
        let mut listed = sandboxes(&cri).await?;
        listed.retain(|row| row.id != second);
        Ok(listed.pop().context("not yet")?.id.clone())
    })
    .await?;
    ensure!(run_pod(&cri, &config).await? == first, "another pod");
    hold(&faults, "container: plan its process")?;
    tokio::select! {
        made = create(&cri, &first, &config) => ensure!(false, "it did not wait: {made:?}"),
        reached = held(&faults) => reached?,
    }
    release(&faults).await?;
    let made = eventually("the container to be made", || async {
        let mut listed = containers(&cri).await?;
        listed.retain(|row| row.pod_sandbox_id == first);
        Ok(listed.pop().context("not yet")?.id.clone())
    })
    .await?;
    ensure!(create(&cri, &first, &config).await? == made, "another container");

    for id in [second, first] {
        stop_pod(&cri, &id).await?;
        // Names are free once, however often they are released.
        remove_pod(&cri, &id).await?;
        remove_pod(&cri, &id).await?;
    }
    let anew = run_pod(&cri, &config).await?;
    ensure!(sandboxes(&cri).await?.len() == 1, "the removed ones are listed");
    stop_pod(&cri, &anew).await?;
    remove_pod(&cri, &anew).await?;
    eventually("nothing to be left", || async {
        let left = left(&node);
        ensure!(left.is_empty(), "{}", left.join("\n"));
        Ok(())
    })
    .await?;
    node.end().await
}
