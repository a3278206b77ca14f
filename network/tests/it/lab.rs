//! A private machine for one test.

use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use network::{Config, PodInfo, PodIps, PodNetwork, PortMapping, Protocol};
use rustix::thread::UnshareFlags;
use sys::namespace::{self, Kind};

/// How long what must work may take.
const SOON: Duration = Duration::from_secs(5);
/// How long is waited for what must not work: dropped packets make no sound.
const NEVER: Duration = Duration::from_millis(400);

/// A network namespace.
pub struct Netns(OwnedFd);

impl Netns {
    pub fn new() -> Netns {
        let (mut fds, ()) = namespace::create(&[Kind::Net], || ()).unwrap();
        Netns(fds.remove(0))
    }

    /// Where it can be opened, also by other processes.
    pub fn path(&self) -> PathBuf {
        format!("/proc/{}/fd/{}", std::process::id(), self.0.as_raw_fd()).into()
    }

    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        namespace::in_netns(self.0.as_fd(), work).unwrap()
    }

    /// Runs a command that must succeed; returns its output.
    pub fn sh(&self, script: &str) -> String {
        let output = self.run(|| Command::new("sh").args(["-ec", script]).output()).unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{script}: {stderr}");
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn listen(&self, address: &str) -> TcpListener {
        self.run(|| TcpListener::bind(address)).unwrap()
    }

    pub fn udp(&self, address: &str) -> UdpSocket {
        let socket = self.run(|| UdpSocket::bind(address)).unwrap();
        socket.set_read_timeout(Some(SOON)).unwrap();
        socket
    }

    pub fn connect(&self, ip: IpAddr, port: u16) -> io::Result<TcpStream> {
        self.run(|| TcpStream::connect_timeout(&SocketAddr::new(ip, port), SOON))
    }

    /// Whether a connection comes about that must not.
    pub fn reaches(&self, ip: IpAddr, port: u16) -> bool {
        self.run(|| TcpStream::connect_timeout(&SocketAddr::new(ip, port), NEVER)).is_ok()
    }
}

/// Connects to `ip:port` from `from`; returns who the server believes that it was.
pub fn seen_by(server: &TcpListener, from: &Netns, ip: &str, port: u16) -> IpAddr {
    let client = from.connect(ip.parse().unwrap(), port).unwrap_or_else(|err| panic!("{ip}:{port}: {err}"));
    let (_, peer) = server.accept().unwrap();
    drop(client);
    peer.ip().to_canonical()
}

/// The machine: the node's namespace, one outside world beyond a link, a state directory.
pub struct Lab {
    pub node: Netns,
    pub outside: Netns,
    pub state: tempfile::TempDir,
}

/// The node's address on the link to the outside.
pub const NODE: &str = "192.0.2.1";
/// The outside's address.
pub const OUTSIDE: &str = "192.0.2.2";

impl Lab {
    pub fn config(&self) -> Config {
        Config {
            pod_cidrs: vec!["10.42.0.0/24".parse().unwrap(), "fd42::/64".parse().unwrap()],
            ..Config::new(self.state.path().join("network"))
        }
    }

    /// What is left in the node's namespace besides the link to the outside: nothing, it should be.
    pub fn leftovers(&self) -> String {
        let links = self.node.sh("ip -o link | cut -d: -f2 | cut -d@ -f1");
        let links: Vec<&str> =
            links.split_whitespace().filter(|name| !["lo", "out0"].contains(name)).collect();
        let files = std::fs::read_dir(self.state.path().join("network")).into_iter().flatten();
        let files: Vec<String> = files
            .map(|file| file.unwrap().file_name().into_string().unwrap())
            .filter(|name| name != "cni")
            .collect();
        let tables = self.node.sh("nft list tables");
        format!("{}{}{}", links.join(" "), files.join(" "), tables.trim())
    }
}

/// Runs a test on a machine of its own, whose namespace is that of the test's thread.
pub fn lab<F: Future<Output = ()>>(test: impl FnOnce(Lab) -> F + Send + 'static) {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: needs root for network namespaces");
        return;
    }
    for program in ["ip", "nft"] {
        if Command::new(program).arg("-V").output().is_err() {
            println!("skipped: the program {program} is missing");
            return;
        }
    }
    let thread = std::thread::spawn(|| {
        namespace::unshare(UnshareFlags::NEWNET).unwrap();
        let node = Netns(File::open("/proc/thread-self/ns/net").unwrap().into());
        let lab = Lab { node, outside: Netns::new(), state: tempfile::tempdir().unwrap() };
        lab.node.sh(&format!(
            "ip link set lo up; ip link add out0 type veth peer name in0 netns {}
             ip addr add {NODE}/24 dev out0; ip addr add fd99::1/64 dev out0 nodad; ip link set out0 up",
            lab.outside.path().display(),
        ));
        lab.outside.sh(&format!(
            "ip link set lo up; ip addr add {OUTSIDE}/24 dev in0; ip addr add fd99::2/64 dev in0 nodad; ip link set in0 up"
        ));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test(lab));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// A pod of a test.
pub struct Pod {
    pub netns: Netns,
    pub ips: PodIps,
}

impl Pod {
    pub async fn start(network: &PodNetwork, id: &str, ports: &[PortMapping]) -> Pod {
        let netns = Netns::new();
        let ips = network.add(id, &netns.path(), ports, &info(id)).await.unwrap_or_else(|err| {
            panic!("{err}: {:?}", std::error::Error::source(&err).map(ToString::to_string))
        });
        Pod { netns, ips }
    }

    pub fn v4(&self) -> String {
        self.ips.iter().find(IpAddr::is_ipv4).unwrap().to_string()
    }

    pub fn v6(&self) -> String {
        self.ips.iter().find(IpAddr::is_ipv6).unwrap().to_string()
    }
}

pub fn info(name: &str) -> PodInfo {
    PodInfo {
        namespace: "default".to_owned(),
        name: name.to_owned(),
        uid: "u1".to_owned(),
        ..PodInfo::default()
    }
}

pub fn port(host_port: u16, container_port: u16) -> PortMapping {
    PortMapping { host_ip: None, host_port, container_port, protocol: Protocol::Tcp }
}
