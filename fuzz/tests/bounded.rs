//! Each target for some seconds over mutations of its seeds, the same ones in every run; and everything that once failed.
//!
//! `ORLOP_FUZZ_SECONDS` gives each target another time, `ORLOP_FUZZ_SEED` other mutations.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use fuzz::mutate::{Numbers, mutate};
use fuzz::{TARGETS, Target};

/// Seconds for each target.
const SECONDS: u64 = 7;
/// An input that takes longer fails.
const SLOW: Duration = Duration::from_secs(2);
/// One that takes this long hangs.
const HANGS: u64 = 30;
/// Peak memory of all targets together, in MiB.
const MEMORY: u64 = 600;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Keeps an input that failed, and says where.
fn keep(target: &Target, input: &[u8]) -> PathBuf {
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{}-failed", target.name));
    std::fs::write(&path, input).expect("written");
    path
}

/// What runs now, for the watch over what hangs.
#[derive(Default)]
struct Now {
    round: AtomicU64,
    input: Mutex<Vec<u8>>,
}

/// Ends this program when an input takes too long; nothing else ends a loop.
fn watch(target: Target, now: &Arc<Now>) {
    let now = Arc::downgrade(now);
    std::thread::spawn(move || {
        let mut seen = (0, Instant::now());
        while let Some(now) = now.upgrade() {
            let round = now.round.load(Ordering::Relaxed);
            if round != seen.0 {
                seen = (round, Instant::now());
            } else if seen.1.elapsed().as_secs() > HANGS {
                let input = now.input.lock().map(|input| input.clone()).unwrap_or_default();
                eprintln!("{} hangs on {}", target.name, keep(&target, &input).display());
                std::process::abort();
            }
            drop(now);
            std::thread::park_timeout(Duration::from_millis(200));
        }
    });
}

fn try_one(target: &Target, input: &[u8]) {
    let begin = Instant::now();
    let done = catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let failed = match done {
        Ok(()) if begin.elapsed() < SLOW => return,
        Ok(()) => format!("took {:?}", begin.elapsed()),
        Err(_) => "panicked".to_owned(),
    };
    panic!("{} {failed} on {} bytes: {}", target.name, input.len(), keep(target, input).display());
}

fn run(name: &str) {
    let target = *TARGETS.iter().find(|target| target.name == name).expect("a target of this name");
    if name == "layer" && !rustix::process::geteuid().is_root() {
        println!("skipped: only root makes what layers have in them");
        return;
    }
    let known = Path::new(env!("CARGO_MANIFEST_DIR")).join("regressions").join(name);
    let mut regressions = 0;
    for entry in std::fs::read_dir(known).into_iter().flatten() {
        try_one(&target, &std::fs::read(entry.expect("an entry").path()).expect("read"));
        regressions += 1;
    }
    let seeds = (target.seeds)();
    seeds.iter().for_each(|seed| try_one(&target, seed));
    let now = Arc::new(Now::default());
    watch(target, &now);
    let mut numbers = Numbers::new(number("ORLOP_FUZZ_SEED", 1));
    let until = Instant::now() + Duration::from_secs(number("ORLOP_FUZZ_SECONDS", SECONDS));
    while Instant::now() < until {
        let input = mutate(&seeds, &mut numbers);
        if let Ok(mut shown) = now.input.lock() {
            shown.clone_from(&input);
        }
        now.round.fetch_add(1, Ordering::Relaxed);
        try_one(&target, &input);
    }
    let rounds = now.round.load(Ordering::Relaxed);
    println!("{name}: {rounds} inputs, {} seeds, {regressions} that once failed", seeds.len());
    // A busy machine tries few; none would mean nothing.
    assert!(rounds > 20, "only {rounds} inputs were tried");
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("a peak");
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().expect("a number");
    assert!(peak >> 10 < MEMORY, "{} MiB of memory were taken", peak >> 10);
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test] fn $name() { run(stringify!($name)); })*

        #[test]
        fn every_target_is_run() {
            assert_eq!(TARGETS.map(|target| target.name).to_vec(), [$(stringify!($name)),*]);
        }
    };
}

targets!(layer manifest config reference spdy websocket cri seccomp keeper);

/// The loop finds what it is there for: a panic three changes away from a seed.
#[test]
fn the_loop_can_fail() {
    fn fragile(input: &[u8]) {
        assert!(!(input.len() > 4 && input[0] == 0xff && input[1] == 0xff), "found");
    }
    let target = Target { name: "fragile", run: fragile, seeds: || vec![b"an input".to_vec()] };
    let mut numbers = Numbers::new(1);
    let seeds = (target.seeds)();
    let found = (0..200_000).any(|_| {
        let input = mutate(&seeds, &mut numbers);
        catch_unwind(AssertUnwindSafe(|| (target.run)(&input))).is_err()
    });
    assert!(found, "nothing was found");
}
