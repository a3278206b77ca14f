//! A hostile container changes a shared volume while containers are made that mount things into it.
//!
//! Each race runs [`ROUNDS`] rounds: a container is made, started, looks at itself, and ends. What lies at a
//! mount's target changes under the runtime's hands all the time; whatever it finds there, the result must
//! be a refusal or a container that is what it should be.
//!
//! A round tells whether the runtime met the attacker's link or what the link was exchanged for; a race in which
//! it met one of them only shows nothing, and fails.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::time::Instant;

use anyhow::ensure;
use cri_api::v1::*;
use futures::StreamExt;

use crate::needs_root;
use crate::world::{Ended, Pod, World, bind};

/// Rounds of each race.
const ROUNDS: u32 = 1000;
/// Containers that are made at the same time.
const AT_ONCE: usize = 4;
/// In so many rounds at least the runtime must have met the link, and in so many what it was exchanged for.
const MET: u32 = 20;

/// What a round's container came to, or that there was none.
pub enum Round<'a> {
    /// It ran.
    Ended(&'a Ended),
    /// It was refused, with this message.
    Refused(&'a str),
}

/// What the runtime met at a mount's target in a round.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Met {
    /// What the mount was meant for.
    Target,
    /// The attacker's link.
    Link,
}

/// Makes [`ROUNDS`] containers; `judge` looks at what came of each and tells what the runtime met.
pub async fn race(
    world: &World,
    pod: &Pod,
    words: &[&str],
    change: impl Fn(&mut ContainerConfig) + Copy,
    judge: impl Fn(Round<'_>) -> anyhow::Result<Met> + Copy,
) -> anyhow::Result<()> {
    let begin = Instant::now();
    let rounds = futures::stream::iter(0..ROUNDS).map(|_| world.run(pod, words, change));
    let mut rounds = rounds.buffer_unordered(AT_ONCE);
    let (mut started, mut links, mut refusals) = (0, 0, BTreeMap::<String, u32>::new());
    while let Some(round) = rounds.next().await {
        let met = match round? {
            Ok(ended) => {
                started += 1;
                judge(Round::Ended(&ended))?
            }
            Err(status) => {
                let met = judge(Round::Refused(status.message()))?;
                *refusals.entry(plain(status.message())).or_default() += 1;
                met
            }
        };
        links += u32::from(met == Met::Link);
    }
    println!(
        "{ROUNDS} rounds in {:.1} s: the link was there in {links}, {started} containers started, refused: \
         {refusals:?}",
        begin.elapsed().as_secs_f64()
    );
    ensure!(
        links >= MET && ROUNDS - links >= MET,
        "the link was met in {links} of {ROUNDS} rounds: that is no race"
    );
    Ok(())
}

/// The link was met if the refusal has one of these words in it; any other refusal is an error.
pub fn because(why: &str, words: &[&str]) -> anyhow::Result<Met> {
    ensure!(words.iter().any(|word| why.contains(word)), "refused for another reason: {why}");
    Ok(Met::Link)
}

/// A message without what differs in every round: ids and numbers.
fn plain(message: &str) -> String {
    let words = message.split(' ').map(|word| {
        if word.len() > 60 { "ID".to_owned() } else { word.replace(|c: char| c.is_ascii_digit(), "#") }
    });
    words.collect::<Vec<_>>().join(" ")
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
    world.serve(&pod, &["race", "300", "/shared/mount", "/shared/link"], shared).await?;
    let root = world.node.root.to_string_lossy().into_owned();
    let good: BTreeSet<_> = [
        "/shared",
        "/shared/mount/deep/er",
        "/shared/link/deep/er",
        "/deep/er",
        "/etc/hosts",
        "/etc/resolv.conf",
        "/etc/hostname",
        "/dev/shm",
    ]
    .into_iter()
    .collect();
    let both = |config: &mut ContainerConfig| {
        config.mounts = vec![bind(&volume, "/shared"), bind(&other, "/shared/mount/deep/er")];
    };
    race(&world, &pod, &["where", &root], both, |round| match round {
        // Names were exchanged between two steps of the way: nothing to be mounted on.
        Round::Refused(why) => because(why, &["mount /shared/mount/deep/er"]),
        Round::Ended(ended) => {
            ensure!(ended.code == 0, "{ended:?}");
            let points: BTreeSet<_> = ended.points().collect();
            ensure!(points.is_subset(&good), "{ended:?}");
            // Upwards from where it lies, the link leads to the container's own root.
            Ok(if points.contains("/deep/er") { Met::Link } else { Met::Target })
        }
    })
    .await?;
    // Where the link led, in the container's own root, directories were made; on the host nothing was.
    ensure!(!Path::new("/deep").exists(), "/deep was made on the host");
    ensure!(std::fs::read(other.join("mark"))? == b"other", "the other volume was changed");
    world.end().await
}
