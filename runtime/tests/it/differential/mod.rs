//! The same containers through our launcher and through other runtimes: what they see must be the same, but for
//! differences that are explained.

mod explained;
mod probe;
mod specs;

use std::collections::{BTreeMap, BTreeSet};

use runtime::{SandboxId, SandboxSpec, StartError};

use crate::handlers::{handler, installed, say_missing};
use crate::node::Node;
use probe::Names;
use specs::{Row, World};

/// Name of the native handler.
const OURS: &str = "orlop";

#[tokio::test(flavor = "multi_thread")]
async fn every_launcher_makes_the_same_container() {
    let others = installed();
    say_missing(&others);
    if others.is_empty() {
        return;
    }
    let configured = others.clone();
    let node = Node::open_with("differential", move |options| {
        for (name, path) in configured {
            options.handlers.named.insert(name.to_owned(), handler(name, &path));
        }
    })
    .await;
    let Some(node) = node else { return };
    let world = world(&node);
    let mut comparison = Comparison::default();
    let only = std::env::var("ONLY").unwrap_or_default();
    let rows: Vec<Row> = specs::rows().into_iter().filter(|row| row.name.contains(&only)).collect();
    let count = rows.len();
    let names: Vec<&str> = others.iter().map(|(name, _)| *name).collect();
    let mut sandboxes = BTreeMap::new();
    for row in rows {
        for name in [OURS].iter().chain(&names) {
            make_sandbox(&node, &mut sandboxes, row.sandbox, name).await;
        }
        // At once: most of a container's time is waiting.
        let theirs = names.iter().map(|name| seen(&node, &world, &sandboxes, &row, name));
        let (ours, theirs) =
            tokio::join!(seen(&node, &world, &sandboxes, &row, OURS), futures::future::join_all(theirs));
        assert!(!ours.iter().any(|line| line.starts_with("broke off")), "{}: {ours:#?}", row.name);
        for (name, theirs) in names.iter().zip(&theirs) {
            comparison.compare(&row, name, &ours, theirs);
        }
    }
    println!("{count} containers, each by {OURS} and by {:?}: {comparison}", names);
    let unexplained = comparison.unexplained.join("\n");
    drop(world);
    node.close().await;
    assert!(unexplained.is_empty(), "differences that nobody explained:\n{unexplained}");
}

/// Files that the rows share.
fn world(node: &Node) -> World {
    let dir = node.dir.path();
    let volume = dir.join("volume");
    std::fs::create_dir_all(volume.join("sub")).expect("a directory");
    std::fs::write(volume.join("file"), "from the node\n").expect("written");
    std::fs::write(dir.join("a-file"), "root:x:0:\n").expect("written");
    let profile = r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["mknod","mknodat"],"action":"SCMP_ACT_ERRNO","errnoRet":1}]}"#;
    std::fs::write(volume.join("seccomp.json"), profile).expect("written");
    std::fs::write(node.image.join("etc/hostname-probe"), "web-0\n").expect("written");
    std::fs::create_dir_all(node.image.join("work")).expect("a directory");
    // The volume is a shared mount of its own, with another one below.
    let tree = sys::mount::clone_tree(rustix::fs::CWD, volume.as_path(), false).expect("copied");
    sys::mount::attach_at(&tree, volume.as_path()).expect("attached");
    sys::mount::set_attributes(&tree, false, 0, 0, Some(sys::mount::Propagation::Private)).expect("private");
    sys::mount::set_attributes(&tree, false, 0, 0, Some(sys::mount::Propagation::Shared)).expect("shared");
    let tmpfs = sys::mount::create(c"tmpfs", Some(c"below"), &[], 0).expect("a tmpfs");
    sys::mount::attach_at(&tmpfs, volume.join("sub").as_path()).expect("attached");
    World { volume, file: dir.join("a-file"), image: node.image.clone() }
}

impl Drop for World {
    fn drop(&mut self) {
        let gone = sys::mount::unmount(self.volume.as_path(), sys::mount::UnmountFlags::DETACH);
        if let Err(errno) = gone {
            println!("unmount {}: {errno}", self.volume.display());
        }
    }
}

/// Sandboxes by handler and kind.
type Sandboxes = BTreeMap<(String, &'static str), SandboxId>;

async fn make_sandbox(node: &Node, sandboxes: &mut Sandboxes, kind: &'static str, handler: &str) {
    let key = (handler.to_owned(), kind);
    if sandboxes.contains_key(&key) {
        return;
    }
    let id = SandboxId::new(format!("pod-{handler}-{}", sandboxes.len()).as_str()).expect("an id");
    let mut spec = SandboxSpec::new(id.clone());
    spec.handler = handler.to_owned();
    specs::sandbox(&mut spec, kind);
    node.runtime().create_sandbox(spec).await.expect("create the sandbox");
    sandboxes.insert(key, id);
}

/// Runs the probe in a container of a row by a handler.
async fn seen(
    node: &Node,
    world: &World,
    sandboxes: &Sandboxes,
    row: &Row,
    handler: &str,
) -> BTreeSet<String> {
    let sandbox = &sandboxes[&(handler.to_owned(), row.sandbox)];
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' };
    let id = format!("c-{handler}-{}", row.name.chars().map(plain).collect::<String>());
    let mut spec = node.spec(sandbox, &id, probe::SCRIPT);
    (row.change)(&mut spec, world);
    let what = format!("{} by {handler}", row.name);
    let spec_id = spec.id.clone();
    node.runtime().create_container(spec).await.unwrap_or_else(|error| panic!("{what}: {error:?}"));
    let lines = match node.runtime().start_container(&spec_id).await {
        Ok(()) => {
            node.ended(&spec_id).await;
            let names = Names { id: &id, sandbox: sandbox.as_str(), dir: node.dir.path() };
            probe::view(&node.output(&id), &names)
        }
        Err(StartError::NotFound { .. }) => BTreeSet::from(["start: no such program".to_owned()]),
        Err(error) => {
            println!("{what}: {error:?}");
            BTreeSet::from(["start: refused".to_owned()])
        }
    };
    node.runtime().remove_container(&spec_id).await.expect("remove");
    lines
}

/// What was found.
#[derive(Default)]
struct Comparison {
    /// Uses of each explanation.
    used: BTreeMap<&'static str, usize>,
    /// Lines that nobody explained.
    unexplained: Vec<String>,
}

impl Comparison {
    fn compare(&mut self, row: &Row, by: &str, ours: &BTreeSet<String>, theirs: &BTreeSet<String>) {
        let only_ours = ours.difference(theirs).map(|line| ('-', line));
        let only_theirs = theirs.difference(ours).map(|line| ('+', line));
        for (side, line) in only_ours.chain(only_theirs) {
            match explained::why(row.name, by, side, line) {
                Some(why) => *self.used.entry(why).or_default() += 1,
                None => {
                    let line = format!("{:24} {by}: {side} {line}", row.name);
                    println!("{line}");
                    self.unexplained.push(line);
                }
            }
        }
    }
}

impl std::fmt::Display for Comparison {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let all: usize = self.used.values().sum();
        writeln!(f, "{all} lines differ for {} reasons", self.used.len())?;
        for (why, uses) in &self.used {
            writeln!(f, "{uses:6} {why}")?;
        }
        Ok(())
    }
}
