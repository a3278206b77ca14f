//! Runs tests in guests: shares guests among tests, prints what happened, and brings back why a test failed.

use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::pin::Pin;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use futures::FutureExt;
use tokio::sync::Mutex;

use crate::accel::Accel;
use crate::disk::Share;
use crate::guest::Init;
use crate::image::Image;
use crate::node::Node;
use crate::{Guest, GuestOptions, place};

/// A test's future, which may borrow the laboratory.
pub type Running<'a> = Pin<Box<dyn Future<Output = anyhow::Result<()>> + 'a>>;

/// A test: its name and what it does.
pub struct Case {
    /// `module::function`.
    pub name: &'static str,
    /// The function.
    pub test: for<'a> fn(&'a Lab) -> Running<'a>,
}

/// Lists tests: functions of the form `async fn(&Lab) -> anyhow::Result<()>` in this module.
#[macro_export]
macro_rules! cases {
    ($($function:ident),* $(,)?) => {
        /// The tests of this module.
        pub const CASES: &[$crate::Case] = &[$($crate::Case {
            name: concat!(module_path!(), "::", stringify!($function)),
            test: |lab| Box::pin($function(lab)),
        }),*];
    };
}

/// What a test gets: guests that it shares with others, and guests of its own.
pub struct Lab {
    share: PathBuf,
    plain: Mutex<Option<Arc<Guest>>>,
    systemd: Mutex<Option<Arc<Guest>>>,
    node: Mutex<Option<Arc<Node>>>,
    /// All guests of this test: the shared ones, and those of its own, which live until its logs are saved.
    guests: Mutex<Vec<Arc<Guest>>>,
}

impl Lab {
    fn new(share: PathBuf) -> Lab {
        Lab {
            share,
            plain: Mutex::new(None),
            systemd: Mutex::new(None),
            node: Mutex::new(None),
            guests: Mutex::new(Vec::new()),
        }
    }

    /// The guest with the plain init, shared by the tests. They run one after another.
    ///
    /// # Errors
    /// It does not boot.
    pub async fn plain(&self) -> anyhow::Result<Arc<Guest>> {
        self.shared_guest(&self.plain, self.options("plain")).await
    }

    /// The guest with systemd, shared by the tests.
    ///
    /// # Errors
    /// It does not boot.
    pub async fn systemd(&self) -> anyhow::Result<Arc<Guest>> {
        let options = GuestOptions { init: Init::Systemd, ..self.options("systemd") };
        self.shared_guest(&self.systemd, options).await
    }

    /// Options for a guest of a test's own that has the usual share.
    pub fn options(&self, name: &str) -> GuestOptions {
        GuestOptions { share: Some(self.share.clone()), ..GuestOptions::named(name) }
    }

    /// Boots a guest.
    ///
    /// # Errors
    /// It does not boot.
    pub async fn boot(&self, options: GuestOptions) -> anyhow::Result<Arc<Guest>> {
        let start = Instant::now();
        let guest = Arc::new(Guest::boot(options).await?);
        self.guests.lock().await.push(Arc::clone(&guest));
        println!(
            "  (guest {} booted in {:.1} s, {:?})",
            guest.name(),
            start.elapsed().as_secs_f64(),
            guest.accel()
        );
        Ok(guest)
    }

    /// The node (`orlop cri`) that tests share, on the plain guest. They leave it as they found it.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn node(&self) -> anyhow::Result<Arc<Node>> {
        let mut place = self.node.lock().await;
        if let Some(node) = &*place {
            return Ok(Arc::clone(node));
        }
        let node = Arc::new(Node::start(&self.plain().await?, "shared").await?);
        *place = Some(Arc::clone(&node));
        Ok(node)
    }

    /// A node (`orlop cri`) of a test's own, on the plain guest.
    ///
    /// # Errors
    /// It does not come up.
    pub async fn own_node(&self, name: &str) -> anyhow::Result<Node> {
        Node::start(&self.plain().await?, name).await
    }

    async fn shared_guest(
        &self,
        place: &Mutex<Option<Arc<Guest>>>,
        options: GuestOptions,
    ) -> anyhow::Result<Arc<Guest>> {
        let mut place = place.lock().await;
        if let Some(guest) = &*place {
            return Ok(Arc::clone(guest));
        }
        let guest = self.boot(options).await?;
        *place = Some(Arc::clone(&guest));
        Ok(guest)
    }

    async fn guests(&self) -> Vec<Arc<Guest>> {
        self.guests.lock().await.clone()
    }

    /// Ends the guests of the test that has ended, but not the shared ones.
    async fn keep_only_shared(&self) {
        let (plain, systemd) = tokio::join!(self.plain.lock(), self.systemd.lock());
        let shared = |guest: &Arc<Guest>| plain.iter().chain(systemd.iter()).any(|s| Arc::ptr_eq(s, guest));
        self.guests.lock().await.retain(shared);
    }

    /// The next test gets fresh guests: nobody knows what a failed one left in them.
    async fn forget_guests(&self) {
        self.node.lock().await.take();
        self.plain.lock().await.take();
        self.systemd.lock().await.take();
    }

    /// Core dumps since the last call.
    async fn cores(&self) -> anyhow::Result<Vec<String>> {
        let mut all = Vec::new();
        for guest in self.guests().await {
            let list = guest
                .ok("ls /cores && mkdir -p /cores/seen && mv /cores/core.* /cores/seen 2>/dev/null; :")
                .await?;
            all.extend(list.lines().filter(|name| name.starts_with("core.orlop")).map(str::to_owned));
        }
        Ok(all)
    }

    async fn save(&self, name: &str) -> anyhow::Result<PathBuf> {
        let target = place::results().join(name.replace("::", "-"));
        for guest in self.guests().await {
            let logs = [
                "/nodes/*/*.log",
                "/nodes/*/critest.json",
                "/nodes/*/etc/config.yaml",
                "/nodes/*/run/orlop",
                "/nodes/*/log",
                "/data/node/daemon.log",
            ];
            guest.save(&logs, &target.join(guest.name())).await?;
        }
        Ok(target)
    }
}

/// The main function of a test binary. Each lane is a list of modules' cases that run one after another on guests of
/// the lane's own; lanes run at the same time, as most tests wait most of the time. Only cases whose names contain one
/// of the words on the command line are run. `--list` prints their names.
pub fn main(lanes: &[&[&'static [Case]]]) -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let list = words.iter().any(|word| word == "--list");
    // What cargo passes to every test binary means nothing here.
    let words: Vec<_> = words.into_iter().filter(|word| !word.starts_with('-')).collect();
    let wanted =
        |case: &&Case| words.is_empty() || words.iter().any(|word| case.name.contains(word.as_str()));
    let wanted = |lane: &&[&'static [Case]]| -> Vec<_> {
        lane.iter().flat_map(|cases| cases.iter()).filter(wanted).collect()
    };
    let lanes: Vec<_> = lanes.iter().map(wanted).filter(|lane| !lane.is_empty()).collect();
    if list {
        lanes.iter().flatten().for_each(|case| println!("{}", case.name));
        return ExitCode::SUCCESS;
    }
    if let Some(why) = place::obstacle() {
        println!("skipped: {} tests in guests: {why}", lanes.iter().flatten().count());
        return ExitCode::SUCCESS;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = runtime.context("start tokio").and_then(|runtime| runtime.block_on(run(&lanes)));
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("vm: {err:#}");
            ExitCode::FAILURE
        }
    }
}

async fn run(lanes: &[Vec<&Case>]) -> anyhow::Result<()> {
    let start = Instant::now();
    let count = lanes.iter().flatten().count();
    println!("running {count} tests in guests");
    let image = Image::ready()?;
    Accel::chosen(&image).await?;
    let share = place::run_directory()?.join("share");
    Share::usual()?.make(&share)?;
    println!("the image is ready after {:.0} s", start.elapsed().as_secs_f64());
    let lanes = lanes.iter().map(|cases| lane(Lab::new(share.clone()), cases));
    let failed: Vec<_> = futures::future::join_all(lanes).await.into_iter().flatten().collect();
    let seconds = start.elapsed().as_secs();
    let passed = count - failed.len();
    println!("vm: {passed} passed, {} failed, in {} min {} s", failed.len(), seconds / 60, seconds % 60);
    ensure!(failed.is_empty(), "failed: {}", failed.join(", "));
    Ok(())
}

/// Runs tests one after another; the names of those that failed.
async fn lane(lab: Lab, cases: &[&Case]) -> Vec<&'static str> {
    let mut failed = Vec::new();
    for case in cases {
        let begin = Instant::now();
        let mut result = one(&lab, case).await;
        if let Err(err) = &result
            && lab.guests().await.iter().any(|guest| guest.stalled())
        {
            // Once. What stalls a kernel by itself does so again.
            println!("test {}: its guest's processors stood still; again, in another: {err:#}", case.name);
            lab.forget_guests().await;
            lab.keep_only_shared().await;
            result = one(&lab, case).await;
        }
        let seconds = begin.elapsed().as_secs_f64();
        match result {
            Ok(()) => println!("test {} ... ok ({seconds:.1} s)", case.name),
            Err(err) => {
                println!("test {} ... FAILED ({seconds:.1} s)\n{err:#}", case.name);
                match lab.save(case.name).await {
                    Ok(place) => println!("logs are in {}", place.display()),
                    Err(err) => println!("its logs could not be saved: {err:#}"),
                }
                lab.forget_guests().await;
                failed.push(case.name);
            }
        }
        lab.keep_only_shared().await;
    }
    failed
}

async fn one(lab: &Lab, case: &Case) -> anyhow::Result<()> {
    let result = AssertUnwindSafe((case.test)(lab)).catch_unwind().await;
    let result = result.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("(no text)");
        Err(anyhow::anyhow!("panicked: {text}"))
    });
    let cores = lab.cores().await;
    result?;
    let cores = cores.context("look for core dumps")?;
    ensure!(cores.is_empty(), "the test passed, but something died: {}", cores.join(", "));
    Ok(())
}
