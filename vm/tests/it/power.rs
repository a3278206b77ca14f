//! The power goes while images are pulled and pods start, again and again: what is stored verifies, the node becomes
//! Ready, what was acknowledged is remembered, and pods run. `ORLOP_VM_POWER_ROUNDS` says how often.
//!
//! The node's disk is one that forgets (`vm::outage`): of what the guest wrote after its last flush, a random part is
//! lost or torn.

use std::cell::Cell;
use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cri_api::v1::*;
use cri_api::{Cri, GrpcClient};
use vm::outage::{Disk, Outcome};
use vm::{Guest, GuestOptions, Lab, Node, eventually, place};

vm::cases![what_was_flushed_outlives_a_power_cut, a_power_cut_leaves_a_node_that_comes_up];

/// Rounds of `make test`; `make vm-power` has fifty.
const ROUNDS: u64 = 8;
/// The image that is pulled: of the registry in critest's directory.
const PULLED: &str = "registry.k8s.io/e2e-test-images/nginx:1.14-2";
const ROOT: &str = "/data/node";

const SERVE: &str = "\
printf 'version: 0.1\\nlog: {level: error}\\nstorage: {filesystem: {rootdirectory: /share/critest/registry}, maintenance: \
{readonly: {enabled: true}}}\\nhttp: {addr: \"127.0.0.1:5000\"}\\n' > /run/registry.yml
OTEL_TRACES_EXPORTER=none setsid docker-registry serve /run/registry.yml < /dev/null > /run/registry.log 2>&1 &
for ((n = 0; n < 600; n++)); do curl -fs http://127.0.0.1:5000/v2/ > /dev/null && exit 0; sleep 0.1; done; exit 1";

/// A pod that the node itself keeps running, whatever the store says.
const STEADY: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: steady, labels: {app: steady}}
spec:
  terminationGracePeriodSeconds: 0
  containers: [{name: main, image: 'localhost/busybox:1', command: [sh, -c, 'echo x > /file; sleep 100000']}]
";

/// The `number`th state of a deployment: every one replaces the pods of the one before.
fn deployment(number: u64) -> String {
    format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: rolling}}\nspec:\n  replicas: 2\n  \
         selector: {{matchLabels: {{app: rolling}}}}\n  template:\n    \
         metadata: {{labels: {{app: rolling}}, annotations: {{number: '{number}'}}}}\n    spec:\n      \
         terminationGracePeriodSeconds: 0\n      containers: [{{name: main, image: 'localhost/busybox:1', \
         env: [{{name: NUMBER, value: '{number}'}}], command: [sh, -c, 'echo $NUMBER > /file; sleep 100000']}}]\n"
    )
}

async fn what_was_flushed_outlives_a_power_cut(lab: &Lab) -> anyhow::Result<()> {
    let directory = place::run_directory()?.join("forgets");
    std::fs::create_dir_all(&directory)?;
    let disk = Disk::new(&directory, 256)?;
    let data = Some(disk.backing());
    let options =
        GuestOptions { durable: true, cpus: 1, memory_mib: 512, swap_mib: 0, data, ..lab.options("forgets") };
    let guest = lab.boot(options).await?;
    for round in 1..=2 {
        guest.ok("mountpoint -q /data || { lsblk; dmesg | tail; false; }").await?;
        let write =
            "seq 100000 > /data/kept && sync && dd if=/dev/zero of=/data/lost bs=64k count=64 oflag=direct";
        guest.ok(write).await?;
        guest.cut_power().await?;
        let outcome = disk.settle(round)?;
        println!("  {outcome:?}");
        ensure!(outcome.flushed > 0 && outcome.lost > 0, "{outcome:?}");
        guest.power_on().await?;
        ensure!(guest.ok("wc -l < /data/kept").await? == "100000");
    }
    Ok(())
}

fn image() -> Option<ImageSpec> {
    Some(ImageSpec { image: PULLED.into(), ..Default::default() })
}

/// Pulls the image and removes it.
async fn pull(cri: &GrpcClient, pulled: &Cell<u64>) -> anyhow::Result<()> {
    let request = PullImageRequest { image: image(), ..Default::default() };
    cri.pull_image(request).await.context("PullImage")?;
    pulled.set(pulled.get() + 1);
    cri.remove_image(RemoveImageRequest { image: image() }).await.context("RemoveImage").map(|_| ())
}

/// Rolls the deployment out; `acknowledged` is the last number that the apiserver said yes to.
async fn roll_out(node: &Node, acknowledged: &Cell<u64>) -> anyhow::Result<()> {
    let number = acknowledged.get() + 1;
    node.guest.write("/run/deployment.yaml", deployment(number).as_bytes()).await?;
    node.orlop("apply -f /run/deployment.yaml").await?.ok()?;
    acknowledged.set(number);
    rolled_out(node, number).await
}

/// Does something again and again; returns only when it fails.
async fn forever<F: Future<Output = anyhow::Result<()>>>(mut what: impl FnMut() -> F) -> anyhow::Error {
    loop {
        if let Err(err) = what().await {
            return err;
        }
    }
}

/// Waits until two pods of the deployment run that are not older than `number`.
async fn rolled_out(node: &Node, number: u64) -> anyhow::Result<()> {
    eventually("the deployment's pods", || async {
        let numbers = node
            .running("rolling")
            .await?
            .into_iter()
            .map(|(pod, _)| pod.annotations.get("number")?.parse().ok());
        let seen: Vec<u64> = numbers.collect::<Option<_>>().context("a pod without its number")?;
        ensure!(
            seen.iter().filter(|seen| **seen >= number).count() >= 2,
            "want {number} twice, see {seen:?}"
        );
        Ok(())
    })
    .await
}

struct Round<'a> {
    guest: &'a Guest,
    disk: &'a Disk,
    node: &'a Node,
}

impl Round<'_> {
    /// Cuts the power and boots again; what became of the writes.
    async fn cut(&self, seed: u64) -> anyhow::Result<Outcome> {
        self.guest.cut_power().await?;
        let outcome = self.disk.settle(seed)?;
        self.guest.power_on().await?;
        self.guest.ok("mountpoint -q /data || { dmesg | tail; false; }").await.context("mount the disk")?;
        Ok(outcome)
    }

    /// Everything is as it should be.
    async fn check(&self, acknowledged: u64) -> anyhow::Result<()> {
        let node = self.node;
        node.wait_ready().await?;
        let verified = node.orlop("image verify").await?;
        ensure!(verified.code == 0, "image verify: {}{}", verified.stdout, verified.stderr);
        eventually("the static pod", || async {
            let running = node.running("steady").await?;
            ensure!(running.len() == 1, "{} run: {running:?}", running.len());
            Ok(())
        })
        .await?;
        if acknowledged > 0 {
            rolled_out(node, acknowledged).await.context("what was acknowledged before the cut")?;
        }
        Ok(())
    }
}

async fn a_power_cut_leaves_a_node_that_comes_up(lab: &Lab) -> anyhow::Result<()> {
    let rounds = std::env::var("ORLOP_VM_POWER_ROUNDS").ok();
    let rounds: u64 =
        rounds.map_or(Ok(ROUNDS), |rounds| rounds.parse()).context("read ORLOP_VM_POWER_ROUNDS")?;
    let disk = Disk::new(&place::run_directory()?, 2048)?;
    // One processor: of hundreds of boots, none must wait for another processor of an emulator.
    let options = GuestOptions { durable: true, cpus: 1, data: Some(disk.backing()), ..lab.options("power") };
    let guest = lab.boot(options).await?;
    guest
        .ok("mountpoint -q /data && test -f /share/critest/stamp")
        .await
        .context("no disk, or no registry")?;
    guest.ok(SERVE).await.context("start the registry")?;
    guest.write(&format!("{ROOT}/etc/manifests/steady.yaml"), STEADY.as_bytes()).await?;
    guest.ok("sync").await?;
    let config = "registryConfigDir: /share/critest/certs.d\n";
    let node = Node::start_as(&guest, ROOT, "server", config).await?;
    let (acknowledged, pulled) = (Cell::new(0), Cell::new(0));
    let cycle = cycle(&node, &acknowledged, &pulled).await?;
    let mut total = Outcome::default();
    for number in 1..=rounds {
        let begin = Instant::now();
        let round = Round { guest: &guest, disk: &disk, node: &node };
        round.check(acknowledged.get()).await.with_context(|| format!("before round {number}"))?;
        let ready = begin.elapsed();
        // Later and later, so that every step of a pull and of a start has its turn.
        let late = cycle * (50 + u32::try_from(number)? * 397 % 1000) / 1000;
        under_way(&node, late, &acknowledged, &pulled).await.with_context(|| format!("in round {number}"))?;
        let mut outcome = round.cut(number * 2).await?;
        if number % 4 == 0 {
            // Once more, while it comes up.
            node.launch().await.with_context(|| format!("round {number}, {outcome:?}"))?;
            tokio::time::sleep(late / 2).await;
            outcome = outcome.and(round.cut(number * 2 + 1).await?);
        }
        ensure!(outcome != Outcome::default(), "round {number}: nothing was written");
        let (serve, launch) = tokio::join!(guest.ok(SERVE), node.launch());
        serve.context("start the registry")?;
        launch.with_context(|| format!("round {number}, cut after {late:?}: {outcome:?}"))?;
        println!(
            "  round {number}: good after {:.1} s, cut {:.1} s later, {} pulls and {} rollouts so far; {outcome:?}; {:.1} s",
            ready.as_secs_f64(),
            late.as_secs_f64(),
            pulled.get(),
            acknowledged.get(),
            begin.elapsed().as_secs_f64()
        );
        total = total.and(outcome);
    }
    let last = Round { guest: &guest, disk: &disk, node: &node };
    last.check(acknowledged.get()).await.context("after the last round")?;
    println!("  {rounds} power cuts: {total:?}");
    ensure!(total.lost > 0, "the disk never forgot anything: {total:?}");
    node.stop().await
}

/// How long a pull and a rollout take here, both at the same time.
async fn cycle(node: &Node, acknowledged: &Cell<u64>, pulled: &Cell<u64>) -> anyhow::Result<Duration> {
    node.wait_ready().await?;
    let cri = node.cri().await?;
    let begin = Instant::now();
    tokio::try_join!(pull(&cri, pulled), roll_out(node, acknowledged))?;
    let took = begin.elapsed();
    println!("  a pull and a rollout take {:.1} s", took.as_secs_f64());
    // On a machine that has other work, too, fifty rounds have to end.
    Ok(took.min(Duration::from_secs(20)))
}

/// Pulls and starts for a while.
async fn under_way(
    node: &Node,
    late: Duration,
    acknowledged: &Cell<u64>,
    pulled: &Cell<u64>,
) -> anyhow::Result<()> {
    let cri = node.cri().await?;
    let pulling = forever(|| pull(&cri, pulled));
    let rolling = forever(|| roll_out(node, acknowledged));
    tokio::select! {
        () = tokio::time::sleep(late) => Ok(()),
        failed = pulling => Err(failed),
        failed = rolling => Err(failed),
    }
}
