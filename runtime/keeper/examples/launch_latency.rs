//! Measures what the keeper needs to start a container: `/bin/true` with the default mounts, from
//! the request until its program runs and until its end is told.
//!
//! Run as root: `cargo run -p keeper --example launch_latency [ROUNDS] [STATIC-KEEPER]`. Without a
//! binary an unoptimised one is built.

#[path = "../tests/common/mod.rs"]
#[allow(dead_code, reason = "shared with the tests")]
mod common;

use std::time::{Duration, Instant};

use common::Fixture;

fn main() {
    if let Some(why) = common::obstacle() {
        println!("skipped: {why}");
        return;
    }
    let rounds: usize = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(200);
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().expect("start a runtime");
    runtime.block_on(measure(rounds));
}

async fn measure(rounds: usize) {
    let mut f = Fixture::new().await;
    use sys::namespace::Kind;
    let (sandbox, ()) =
        sys::namespace::create(&[Kind::Net, Kind::Ipc, Kind::Uts], || ()).expect("namespaces");
    let (mut prepared, mut launched, mut ended) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..rounds {
        let id = format!("true-{round}");
        let start = Instant::now();
        let (mut plan, mut fds) = f.plan_args(&id, &["/bin/true"]);
        // As in a pod: the sandbox's namespaces are there already.
        let mut join = |at: usize| {
            let namespace = rustix::io::dup(&sandbox[at]).expect("duplicate");
            keeper::plan::Namespace::Join(fds.add(namespace))
        };
        (plan.namespaces.net, plan.namespaces.ipc, plan.namespaces.uts) = (join(0), join(1), join(2));
        let plan = (plan, fds);
        prepared.push(start.elapsed());
        let start = Instant::now();
        let _reply = f.start(plan).await;
        launched.push(start.elapsed());
        f.exit().await;
        ended.push(start.elapsed());
        f.keeper.forget(&id).await.expect("forget");
    }
    print("prepared (overlay, cgroup, log)", &mut prepared);
    print("launched (program runs)", &mut launched);
    print("ended (exit told)", &mut ended);
    f.start(f.plan("box", "sleep 1000")).await;
    let mut execs = Vec::new();
    for round in 0..rounds {
        let plan = keeper::plan::ExecPlan {
            container: "box".to_owned(),
            id: format!("x{round}"),
            process: common::process(&["true"]),
            stdio: keeper::plan::ExecStdio::Streams { stdin: None, stdout: None, stderr: None },
            cgroup: None,
            oom_score_adj: None,
            stream_owner: None,
            patience: None,
        };
        let start = Instant::now();
        f.keeper.exec(plan, keeper::plan::Fds::default()).await.expect("exec");
        f.exit().await;
        execs.push(start.elapsed());
    }
    print("exec true (exit told)", &mut execs);
    let status =
        std::fs::read_to_string(format!("/proc/{}/status", f.keeper_pid())).expect("the keeper runs");
    println!("keeper {}", status.lines().find(|l| l.starts_with("VmRSS")).unwrap_or_default());
}

fn print(what: &str, times: &mut [Duration]) {
    times.sort();
    let at = |part: usize| times[(times.len() * part / 100).min(times.len() - 1)];
    println!("{what:32} p50 {:?}  p99 {:?}", at(50), at(99));
}
