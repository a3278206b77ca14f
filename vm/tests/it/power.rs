//! The power goes while images are pulled and pods started, again and again: what is stored verifies, and the
//! node comes up. `ORLOP_VM_POWER_ROUNDS` says how often.

use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, ensure};
use cri_api::v1::*;
use cri_api::{Cri, GrpcClient};
use vm::outage::Disk;
use vm::pods::{Pod, Wanted};
use vm::{GuestOptions, Lab, Node, place};

vm::cases![a_power_cut_leaves_a_node_that_comes_up];

/// Where the guest's registry has the image.
const NGINX: &str = "127.0.0.1:5000/nginx:1";

/// Puts the nginx archive into a registry's storage, on the disk that is not under test. A registry keeps blobs
/// by digest, and links to them from repositories.
const FILL: &str = r#"
set -e
root=/srv/registry/docker/registry/v2 work=/srv/work
[ ! -d $root ] || exit 0
mkdir -p $work && tar -xf /share/images/nginx.tar -C $work
manifest=$(jq -r '.manifests[0].digest' $work/index.json)
link() { mkdir -p "$1" && printf %s "$2" > "$1/link"; }
for blob in $work/blobs/sha256/*; do
  name=${blob##*/}
  mkdir -p $root/blobs/sha256/${name:0:2}/$name && cp $blob $root/blobs/sha256/${name:0:2}/$name/data
  link $root/repositories/nginx/_layers/sha256/$name sha256:$name
done
link $root/repositories/nginx/_manifests/revisions/sha256/${manifest#sha256:} $manifest
link $root/repositories/nginx/_manifests/tags/1/current $manifest
link $root/repositories/nginx/_manifests/tags/1/index/sha256/${manifest#sha256:} $manifest
printf 'version: 0.1\nstorage: {filesystem: {rootdirectory: /srv/registry}}\nhttp: {addr: "127.0.0.1:5000"}\n' > /srv/registry.yml
rm -rf $work && sync
"#;

const SERVE: &str = "\
setsid docker-registry serve /srv/registry.yml < /dev/null > /run/registry.log 2>&1 &
for ((n = 0; n < 600; n++)); do curl -fs http://127.0.0.1:5000/v2/ > /dev/null && exit 0; sleep 0.1; done; exit 1";

fn image(name: &str) -> Option<ImageSpec> {
    Some(ImageSpec { image: name.into(), ..Default::default() })
}

/// Pulls and removes for ever.
async fn pulls(cri: &GrpcClient) -> anyhow::Result<()> {
    loop {
        let request = PullImageRequest { image: image(NGINX), ..Default::default() };
        cri.pull_image(request).await.context("PullImage")?;
        cri.remove_image(RemoveImageRequest { image: image(NGINX) }).await.context("RemoveImage")?;
    }
}

/// Starts and removes pods for ever.
async fn pods(node: &Node) -> anyhow::Result<()> {
    loop {
        let pod = Pod::start(node).await?;
        pod.container(Wanted::script("echo x > /file; sleep 100000")).await?;
        pod.remove().await?;
    }
}

async fn a_power_cut_leaves_a_node_that_comes_up(lab: &Lab) -> anyhow::Result<()> {
    let rounds = std::env::var("ORLOP_VM_POWER_ROUNDS").unwrap_or_else(|_| "3".into());
    let rounds: u64 = rounds.parse().context("read ORLOP_VM_POWER_ROUNDS")?;
    let disk = Disk::new(&place::run_directory()?, 2048)?;
    let options = GuestOptions { durable: true, data: Some(disk.backing()), ..lab.options("power") };
    let guest = lab.boot(options).await?;
    guest.ok("mountpoint -q /data").await.context("the disk that forgets is not mounted")?;
    guest.ok(FILL).await.context("fill the registry")?;
    guest.ok(SERVE).await.context("start the registry")?;
    let config = "registryConfigDir: /data/hosts\n";
    guest.write("/data/hosts/127.0.0.1:5000/hosts.toml", b"server = \"http://127.0.0.1:5000\"\n").await?;
    guest.ok("sync").await?;
    let node = Node::start_as(&guest, "/data/node", "cri", config).await?;
    for round in 1..=rounds {
        let cri = node.cri().await?;
        // Later and later, so that every step of a pull and of a start has its turn.
        let late = Duration::from_millis(300 + round * 397 % 6000);
        // What is under way is not given up before the cut, only no longer followed.
        let (mut pulling, mut starting) = (pin!(pulls(&cri)), pin!(pods(&node)));
        tokio::select! {
            () = tokio::time::sleep(late) => (),
            failed = &mut pulling => failed.context("before the power was cut")?,
            failed = &mut starting => failed.context("before the power was cut")?,
        }
        guest.cut_power().await?;
        let outcome = disk.settle(round)?;
        ensure!(outcome != vm::outage::Outcome::default(), "round {round}: nothing was written");
        guest.power_on().await?;
        node.launch().await.with_context(|| format!("round {round}, cut after {late:?}: {outcome:?}"))?;
        let verified = node.orlop("image verify").await?;
        ensure!(
            verified.code == 0,
            "round {round}, cut after {late:?}, {outcome:?}: image verify: {}{}",
            verified.stdout,
            verified.stderr
        );
        println!("  round {round}: cut after {late:?}, {outcome:?}");
        if round == 1 || round == rounds {
            // The image that was imported before the first cut is there, and runs.
            let pod = Pod::start(&node).await?;
            pod.container(Wanted::script("sleep 100000")).await?.exec("true").await?;
            pod.remove().await?;
        }
        guest.ok(SERVE).await.context("start the registry")?;
    }
    node.stop().await
}
