//! Prints how long the runtime takes for what a pod needs (p50 and p99 in milliseconds), beside the budgets.
//!
//! `cargo run --release --example latency -- [rounds]`, as root, with Debian's busybox-static.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use runtime::{ContainerId, ContainerSpec, Options, Runtime, SandboxId, SandboxSpec};

#[tokio::main]
async fn main() {
    let rounds = std::env::args().nth(1).and_then(|text| text.parse().ok()).unwrap_or(100);
    let dir = PathBuf::from(format!("/tmp/orlop-latency-{}", std::process::id()));
    let options = Options::below(&dir, format!("orlop-latency-{}", std::process::id()));
    let image = image(&dir);
    let runtime = Runtime::open(options.clone()).await.expect("open");
    let mut times: Vec<(&str, Vec<Duration>)> = STEPS.iter().map(|name| (*name, Vec::new())).collect();
    for round in 0..rounds {
        let taken = pod(&runtime, &image, round).await;
        for ((_, all), one) in times.iter_mut().zip(taken) {
            all.push(one);
        }
    }
    println!("{:<24}{:>10}{:>10}{:>10}", "", "p50 ms", "p99 ms", "budget");
    for (name, all) in &mut times {
        all.sort_unstable();
        let at = |percent: usize| all[(all.len() - 1) * percent / 100].as_secs_f64() * 1000.0;
        let budget =
            BUDGETS.iter().find(|(of, _)| of == name).map_or(String::new(), |(_, ms)| format!("{ms}"));
        println!("{name:<24}{:>10.2}{:>10.2}{budget:>10}", at(50), at(99));
    }
    drop(runtime);
    runtime::destroy(options).await.expect("destroy");
    std::fs::remove_dir_all(&dir).expect("removed");
}

const STEPS: [&str; 8] = [
    "create_sandbox",
    "create_container",
    "start_container",
    "sum of the three",
    "exec_sync",
    "stop_container",
    "remove_sandbox",
    "stop + remove",
];
/// In milliseconds; the first with a network interface besides.
const BUDGETS: [(&str, f64); 3] = [("sum of the three", 8.0), ("exec_sync", 1.5), ("stop + remove", 12.0)];

async fn pod(runtime: &Runtime, image: &Path, round: usize) -> [Duration; STEPS.len()] {
    let mut at = Instant::now();
    let mut lap = || std::mem::replace(&mut at, Instant::now()).elapsed();
    let sandbox = SandboxId::new(&format!("pod-{round}")).expect("an id");
    runtime.create_sandbox(SandboxSpec::new(sandbox.clone())).await.expect("create the sandbox");
    let first = lap();
    let id = ContainerId::new(&format!("container-{round}")).expect("an id");
    let args = ["/bin/sleep", "1000"].map(str::to_owned).to_vec();
    let spec = ContainerSpec::new(id.clone(), sandbox.clone(), vec![image.to_owned()], args);
    runtime.create_container(spec).await.expect("create the container");
    let second = lap();
    runtime.start_container(&id).await.expect("start");
    let third = lap();
    let done = runtime.exec_sync(&id, vec!["/bin/true".into()], None).await.expect("exec");
    assert_eq!(done.status.code(), 0);
    let exec = lap();
    runtime.stop_container(&id, Duration::ZERO).await.expect("stop");
    let stop = lap();
    runtime.remove_sandbox(&sandbox).await.expect("remove");
    let remove = lap();
    [first, second, third, first + second + third, exec, stop, remove, stop + remove]
}

fn image(dir: &Path) -> PathBuf {
    let image = dir.join("image");
    std::fs::create_dir_all(image.join("bin")).expect("a directory");
    std::fs::copy("/bin/busybox", image.join("bin/busybox")).expect("busybox-static is installed");
    for applet in ["sleep", "true"] {
        std::os::unix::fs::symlink("busybox", image.join("bin").join(applet)).expect("a link");
    }
    image
}
