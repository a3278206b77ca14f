//! Prints how long it takes to connect and to disconnect a pod, in a private network namespace.
//!
//! `cargo run -p network --example network_latency [pods]`, as root.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::{Duration, Instant};

use network::{Config, PodInfo, PodNetwork};
use sys::namespace::{self, Kind};

fn main() -> anyhow::Result<()> {
    let pods = std::env::args().nth(1).map_or(Ok(200), |text| text.parse())?;
    namespace::unshare(rustix::thread::UnshareFlags::NEWNET)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(measure(pods))
}

async fn measure(pods: usize) -> anyhow::Result<()> {
    let _node = File::open("/proc/thread-self/ns/net")?;
    let state = tempfile::tempdir_in("/dev/shm")?;
    let start = Instant::now();
    let network = PodNetwork::open(Config::new(state.path())).await?;
    println!("open           {:>9.3} ms", ms(start.elapsed()));
    let mut namespaces: Vec<OwnedFd> = Vec::new();
    for _ in 0..pods {
        namespaces.extend(namespace::create(&[Kind::Net], || ())?.0);
    }
    let (mut add, mut remove) = (Vec::new(), Vec::new());
    for (n, netns) in namespaces.iter().enumerate() {
        let path = format!("/proc/self/fd/{}", netns.as_raw_fd());
        let start = Instant::now();
        network.add(&format!("pod-{n}"), path.as_ref(), &[], &PodInfo::default()).await?;
        add.push(start.elapsed());
    }
    print("add", &mut add);
    for n in 0..pods {
        let start = Instant::now();
        network.remove(&format!("pod-{n}"), None).await?;
        remove.push(start.elapsed());
    }
    print("remove", &mut remove);
    let start = Instant::now();
    network.close().await?;
    println!("all deleted    {:>9.3} ms later", ms(start.elapsed()));
    network.destroy().await?;
    Ok(())
}

fn print(what: &str, times: &mut [Duration]) {
    times.sort();
    let at = |share: usize| ms(times[(times.len() - 1) * share / 100]);
    println!("{what:<8} p50   {:>9.3} ms   p99 {:.3} ms   max {:.3} ms", at(50), at(99), at(100));
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
