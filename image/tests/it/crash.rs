//! A process with the store is killed again and again, whatever it does: afterwards everything verifies and
//! nothing is left over. The child is this test program, run with another name of a test.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use image::{Form, OpenError, Priority, PullOptions, Store};

use crate::fixture::{Content, Place, artifact_of, dir, file, gzip, image_of, motley, noise, root, tar_of};
use crate::server::Server;

/// Where the child's store is; without it, the child's test does nothing.
const PLACE: &str = "ORLOP_CRASH_PLACE";
const REGISTRY: &str = "ORLOP_CRASH_REGISTRY";
const ROUNDS: u32 = 40;

/// Enough to be killed in the middle of.
fn sizeable() -> Content {
    let text: String = noise(3 << 20).iter().map(|b| char::from(b'!' + b % 90)).collect();
    let names: Vec<String> = (0..300).map(|n| format!("d/{n}")).collect();
    let mut items = vec![dir("d", 0o755), file("large", &text)];
    items.extend(names.iter().map(|name| file(name, &text[..500])));
    let lower = tar_of(&items);
    let upper = tar_of(&[file("d/7", "changed"), file("tmp/x", "y")]);
    image_of(&[(gzip(&lower), lower), (gzip(&upper), upper)])
}

/// Not a test by itself: what the child does until it is killed.
#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let (Ok(place), Ok(registry)) = (std::env::var(PLACE), std::env::var(REGISTRY)) else { return };
    let place = PathBuf::from(place);
    // A process that another test is just starting may have our lock's descriptor until it runs its program.
    let mut opened = Store::open(place.join("images"), Default::default());
    let began = Instant::now();
    while matches!(opened, Err(OpenError::Busy { .. })) && began.elapsed().as_secs() < 5 {
        opened = Store::open(place.join("images"), Default::default());
    }
    let store = opened.expect("the store opens");
    let reference = |tag: &str| format!("{registry}/app:{tag}").parse::<image::Reference>().expect("a name");
    for n in 0.. {
        let tag = ["1", "motley", "artifact"][n % 3];
        let options = PullOptions { priority: Priority::Prefetch, ..PullOptions::default() };
        let pulled = store.pull_with(&reference(tag), options).await.expect("pulled");
        let owner = format!("c{}", n % 5);
        store.volume_lease(&pulled.id, &owner).expect("leased");
        let archive = place.join("out.tar");
        store.export(&[pulled.id.to_string()], &archive, Form::Oci).await.expect("exported");
        store.release(&owner);
        match n % 4 {
            0 => drop(store.prune(true).await.expect("pruned")),
            1 => drop(store.remove(pulled.id.as_str()).await.expect("removed")),
            2 => {
                store.remove(pulled.id.as_str()).await.expect("removed");
                store.import(&archive, None).await.expect("imported");
            }
            _ => store.pin(pulled.id.as_str(), n % 8 == 3).await.expect("pinned"),
        }
    }
}

fn start(place: &Path, registry: &str) -> Child {
    Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "crash::child", "--nocapture"])
        .env(PLACE, place)
        .env(REGISTRY, registry)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .expect("started")
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_at_any_moment_nothing_is_broken_or_left() {
    if !root() {
        return;
    }
    let server = Server::start(sizeable()).await;
    server.add("motley", motley());
    server.add("artifact", artifact_of(&[("a", &noise(200 << 10)), ("b/c", b"small")]));
    let place = Place::new();
    let mut found = BTreeSet::new();
    for round in 0..ROUNDS {
        let mut child = start(place.dir.path(), &server.address);
        // Up to some 600 ms, each round another moment.
        let until = Instant::now() + Duration::from_millis(u64::from(round * 7919 % 600) + 20);
        let ended = loop {
            match child.try_wait().expect("asked") {
                Some(status) => break Some(status),
                None if Instant::now() >= until => break None,
                None => tokio::time::sleep(Duration::from_millis(2)).await,
            }
        };
        if ended.is_some() {
            let said = child.wait_with_output().expect("its words");
            panic!("the child ended by itself: {}", String::from_utf8_lossy(&said.stderr));
        }
        child.kill().expect("killed");
        child.wait().expect("gone");
        let store = place.open();
        assert!(store.damaged().is_empty(), "round {round}: {:?}", store.damaged());
        for lease in store.leases() {
            store.release(&lease.owner);
        }
        place.settled().await;
        let report = store.verify(None).await.expect("verified");
        assert_eq!(report.problems, [], "round {round}");
        place.settled().await;
        found.insert(store.list().len());
        // What is on the disk is what images need, and nothing else.
        let layers = store.verify(None).await.expect("verified").layers;
        assert_eq!(place.names("l").len(), layers + 1, "round {round}: a layer that nobody knows");
        assert_eq!(place.names("b").len(), report.blobs, "round {round}: a blob that nobody needs");
        assert_eq!(place.names("i").len(), store.list().len(), "round {round}");
        assert!(place.names("s").is_empty(), "round {round}");
        drop(store);
    }
    assert!(found.len() > 1, "the child was never killed in the middle of anything: {found:?}");
}
