//! A hostile container changes a shared volume while containers are made that mount things into it.
//!
//! Each race runs [`ROUNDS`] rounds: a container is made, started, looks at itself, and ends. What lies at a
//! mount's target changes under the runtime's hands all the time; whatever it finds there, the result must
//! be a refusal or a container that is what it should be.

use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use anyhow::ensure;
use cri_api::v1::*;
use futures::StreamExt;

use crate::needs_root;
use crate::world::{Ended, Pod, World, bind};

/// Rounds of each race.
const ROUNDS: u32 = 1000;
/// Containers that are made at the same time.
const AT_ONCE: usize = 6;

/// What came of a race.
#[derive(Debug, Default)]
pub struct Tally {
    /// Containers that ran.
    pub started: AtomicU32,
    /// Containers that were refused.
    pub refused: AtomicU32,
}

/// Makes [`ROUNDS`] containers; `check` judges what each printed. A refusal is good, too.
pub async fn race(
    world: &World,
    pod: &Pod,
    words: &[&str],
    change: impl Fn(&mut ContainerConfig) + Copy,
    check: impl Fn(&Ended) -> anyhow::Result<()> + Copy,
) -> anyhow::Result<Tally> {
    let tally = Tally::default();
    let begin = Instant::now();
    let rounds = futures::stream::iter(0..ROUNDS).map(|_| async {
        match world.run(pod, words, change).await? {
            Ok(ended) => {
                tally.started.fetch_add(1, Ordering::Relaxed);
                check(&ended)
            }
            Err(_) => {
                tally.refused.fetch_add(1, Ordering::Relaxed);
                Ok(())
            }
        }
    });
    let mut rounds = rounds.buffer_unordered(AT_ONCE);
    while let Some(round) = rounds.next().await {
        round?;
    }
    drop(rounds);
    println!("{ROUNDS} rounds in {:.1} s: {tally:?}", begin.elapsed().as_secs_f64());
    Ok(tally)
}

/// A mount's target was checked by name and then mounted on by name; a link put there in between led to the host.
#[tokio::test(flavor = "multi_thread")]
async fn cve_2021_30465_target_exchanged_for_a_link() -> anyhow::Result<()> {
    needs_root!();
    let world = World::start().await?;
    let pod = world.pod(|_| {}).await?;
    let volume = world.volume("shared")?;
    let other = world.volume("other")?;
    std::fs::write(other.join("mark"), "other")?;
    // As in the exploit: a directory, and a link that climbs, exchanged as fast as can be.
    std::fs::create_dir(volume.join("mount"))?;
    symlink("../../../../../../../../../../../..", volume.join("link"))?;
    let shared = |config: &mut ContainerConfig| config.mounts.push(bind(&volume, "/shared"));
    world.serve(&pod, &["exchange", "/shared/mount", "/shared/link"], shared).await?;
    world.serve(&pod, &["exchange-slowly", "/shared/mount", "/shared/link", "200"], shared).await?;
    let root = world.node.root.to_string_lossy().into_owned();
    let verify = [
        "mounts",
        &root,
        "/shared",
        "/shared/mount",
        "/shared/link",
        "/shared/mount/deep/er",
        "/shared/link/deep/er",
        "/deep/er",
        "/etc/hosts",
        "/etc/resolv.conf",
        "/etc/hostname",
        "/dev/shm",
    ];
    let tally = race(
        &world,
        &pod,
        &verify,
        |config| {
            config.mounts = vec![bind(&volume, "/shared"), bind(&other, "/shared/mount/deep/er")];
        },
        |ended| {
            ended.no_loot()?;
            ensure!(ended.code == 0, "{ended:?}");
            Ok(())
        },
    )
    .await?;
    ensure!(tally.started.into_inner() > 0, "no container was started");
    // Where the link led, in the container's own root, directories were made; on the host nothing was.
    ensure!(!Path::new("/deep").exists(), "/deep was made on the host");
    ensure!(std::fs::read(other.join("mark"))? == b"other", "the other volume was changed");
    world.end().await
}
