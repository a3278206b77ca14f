//! The bridge and the pods' interfaces on it. Blocking: every function is for a blocking thread.
//!
//! A pod has a /32 (or /128) address and reaches everything through the bridge's address. So traffic between pods is
//! routed by the node, and host ports and Services work from any pod to any pod, with bridge-nf-call-iptables or without.
//!
//! Guarantees: what `connect` has half made is taken down again; "already there" and "already gone" are success.
//! Assumes: the bridge is this node's own (its alias says so).
//! Caveat: ports are not isolated, because netfilter on bridges sends translated packets from port to port: a pod that
//! forges frames can reach its neighbours past the node's rules.

use std::fs;
use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;

use ipnet::IpNet;
use parking_lot::Mutex;
use rustix::io::Errno;
use tracing::{debug, info, warn};

use crate::error::OpenError;
use crate::link::{self, Link};
use crate::netlink::{Netlink, Refused};
use crate::netns;

/// What Ethernet carries where nothing else is known.
const DEFAULT_MTU: u32 = 1500;
/// The group that interfaces are put in to be deleted together; nothing else is in it.
const DOOMED: u32 = 0x6f72_6c70;
/// The kinds of devices that the kernel may make in every namespace by itself.
const FALLBACK_TUNNELS: [&str; 9] =
    ["ipip", "sit", "gre", "gretap", "erspan", "vti", "vti6", "ip6tnl", "ip6gre"];
/// The kernel's limit for an alias, with room to spare.
const ALIAS: usize = 200;

/// How the bridge is to be.
pub(crate) struct BridgeSpec<'a> {
    pub(crate) name: &'a str,
    pub(crate) owner: String,
    /// Each range with the bridge's address in it.
    pub(crate) gateways: Vec<(IpAddr, IpNet)>,
    pub(crate) mtu: Option<u32>,
}

/// The node's end of the pod network.
pub(crate) struct Wire {
    netns: Arc<OwnedFd>,
    netlink: Mutex<Netlink>,
    /// Deleting takes the kernel long: it has a socket of its own, so that adding does not wait.
    deleting: Mutex<Netlink>,
    bridge: String,
    index: u32,
    mtu: u32,
    gateways: Vec<IpAddr>,
}

/// What a pod's interface is to be.
pub(crate) struct PodLink<'a> {
    pub(crate) host_if: &'a str,
    pub(crate) ips: &'a [IpAddr],
    pub(crate) alias: String,
}

impl Wire {
    /// Makes the bridge, or takes over the one of an earlier run, in the given namespace.
    pub(crate) fn open(netns: Arc<OwnedFd>, spec: &BridgeSpec<'_>) -> Result<Wire, OpenError> {
        let kernel = |step: &str| {
            let step = step.to_owned();
            move |source| OpenError::Kernel { step, source }
        };
        let open = || Netlink::open_in(netns.as_fd()).map_err(kernel("open a netlink socket"));
        let (mut netlink, deleting) = (open()?, open()?);
        let links = list(&mut netlink).map_err(kernel("list the node's interfaces"))?;
        let route = netns::within(netns.as_fd(), || fs::read_to_string("/proc/thread-self/net/route"))
            .unwrap_or_default();
        let mtu = spec.mtu.unwrap_or_else(|| default_mtu(&route, &links));
        let refused = |err: Refused| OpenError::Kernel {
            step: format!("{} {}", err.what, spec.name),
            source: err.source,
        };
        match links.iter().find(|link| link.name == spec.name) {
            Some(link) if link.kind == "bridge" && link.alias == spec.owner => {}
            Some(link) => {
                let found = match (link.kind.as_str(), link.alias.as_str()) {
                    ("", "") => "a network card".to_owned(),
                    (kind, "") => format!("a {kind} that nobody has marked"),
                    (kind, alias) => format!("a {kind} of {alias:?}"),
                };
                return Err(OpenError::ForeignBridge { bridge: spec.name.to_owned(), found });
            }
            None => {
                let mac = spec.gateways.first().map_or([0x0a, 0x58, 0, 0, 0, 1], |(ip, _)| link::mac(*ip));
                let bridge = link::new_bridge(spec.name, mac, mtu, &spec.owner);
                netlink.batch(vec![bridge]).map_err(refused)?;
                debug!(bridge = spec.name, mtu, "made the pod bridge");
            }
        }
        let found = find(&mut netlink, spec.name).map_err(kernel("find the bridge"))?;
        let index = found.ok_or_else(|| kernel("find the bridge")(Errno::NODEV.into()))?.index;
        let replies =
            netlink.query(link::all_addresses(), true).map_err(kernel("list the bridge's addresses"))?;
        let wanted: Vec<(IpAddr, u8)> =
            spec.gateways.iter().map(|(ip, net)| (*ip, net.prefix_len())).collect();
        let mut requests = vec![link::set_bridge(index, mtu, &spec.owner)];
        for (ip, prefix) in link::addresses(&replies, index) {
            if !wanted.contains(&(ip, prefix)) {
                requests.push(link::delete_address(index, ip, prefix));
            }
        }
        requests.extend(wanted.iter().map(|(ip, prefix)| link::add_address(index, *ip, *prefix)));
        let v6 = spec.gateways.iter().any(|(ip, _)| ip.is_ipv6());
        netns::within(netns.as_fd(), || prepare_node(spec.name, v6))
            .map_err(kernel("set the node's forwarding sysctls"))?;
        netlink.batch(requests).map_err(refused)?;
        Ok(Wire {
            netns,
            netlink: Mutex::new(netlink),
            deleting: Mutex::new(deleting),
            bridge: spec.name.to_owned(),
            index,
            mtu,
            gateways: spec.gateways.iter().map(|(ip, _)| *ip).collect(),
        })
    }

    /// Connects the pod: loopback up, `eth0` with addresses and routes. Repeating it repairs.
    pub(crate) fn connect(&self, pod_netns: &OwnedFd, pod: &PodLink<'_>) -> Result<(), Refused> {
        let v6 = pod.ips.iter().any(IpAddr::is_ipv6);
        let mut inside =
            netns::within(pod_netns.as_fd(), || prepare_pod(v6).and_then(|()| Netlink::open_here()))
                .map_err(|source| Refused { what: "enter the pod's network namespace", source })?;
        let mac = link::mac(*pod.ips.first().expect("a pod has an address"));
        let alias: String = pod.alias.chars().take(ALIAS).collect();
        let make = || {
            self.netlink.lock().batch(vec![
                link::new_veth(pod.host_if, self.index, self.mtu, pod_netns.as_fd(), mac),
                link::no_own_address(pod.host_if),
                link::set_port(pod.host_if, &alias),
            ])
        };
        let made = match make() {
            // Left by an attempt that a crash cut short, or half of one: begin anew.
            Err(err) if err.source.raw_os_error() == Some(Errno::EXIST.raw_os_error()) => {
                self.delete(&[pod.host_if.to_owned()])?;
                make()
            }
            made => made,
        };
        let step = "network: configure the interface";
        let made =
            made.and_then(|()| sys::fault::point(step).map_err(|source| Refused { what: step, source }));
        let done = made.and_then(|()| self.configure(&mut inside, pod.ips));
        if done.is_err()
            && let Err(err) = self.delete(&[pod.host_if.to_owned()])
        {
            warn!(interface = pod.host_if, step = err.what, err = %err.source, "cannot take back a pod's interface");
        }
        done
    }

    fn configure(&self, inside: &mut Netlink, ips: &[IpAddr]) -> Result<(), Refused> {
        let eth0 = find(inside, "eth0")
            .and_then(|link| link.ok_or_else(|| Errno::NODEV.into()))
            .map_err(|source| Refused { what: "find eth0 in the pod", source })?;
        let index = eth0.index;
        let mut requests = vec![link::loopback_up()];
        for ip in ips {
            requests.push(link::add_address(index, *ip, if ip.is_ipv4() { 32 } else { 128 }));
        }
        requests.push(link::set_up(index));
        for gateway in &self.gateways {
            if ips.iter().any(|ip| ip.is_ipv4() == gateway.is_ipv4()) {
                requests.push(link::gateway_route(index, *gateway));
                requests.push(link::default_route(index, *gateway));
            }
        }
        inside.batch(requests)
    }

    /// Whether the pod has its interface, with these addresses.
    pub(crate) fn is_connected(&self, pod_netns: &OwnedFd, pod: &PodLink<'_>) -> io::Result<bool> {
        let outside = find(&mut self.netlink.lock(), pod.host_if)?;
        if outside.is_none_or(|link| link.master != Some(self.index)) {
            return Ok(false);
        }
        let mut inside = Netlink::open_in(pod_netns.as_fd())?;
        let Some(eth0) = find(&mut inside, "eth0")? else { return Ok(false) };
        let has = link::addresses(&inside.query(link::all_addresses(), true)?, eth0.index);
        Ok(pod.ips.iter().all(|ip| has.iter().any(|(have, _)| have == ip)))
    }

    /// The names of all pods' interfaces on the bridge.
    pub(crate) fn ports(&self) -> io::Result<Vec<String>> {
        let links = list(&mut self.netlink.lock())?;
        let ours = links.into_iter().filter(|link| link.master == Some(self.index));
        Ok(ours.map(|link| link.name).collect())
    }

    /// Deletes interfaces together: the kernel's waiting, some 16 ms, is then paid once.
    pub(crate) fn delete(&self, names: &[String]) -> Result<(), Refused> {
        let mut netlink = self.deleting.lock();
        let step = "network: delete interfaces";
        sys::fault::point(step).map_err(|source| Refused { what: step, source })?;
        if let [name] = names {
            return netlink.batch(vec![link::delete_link(name)]);
        }
        let mut requests: Vec<_> = names.iter().map(|name| link::set_group(name, DOOMED)).collect();
        requests.push(link::delete_group(DOOMED));
        netlink.batch(requests)
    }

    /// Lets processes of the node reach host ports by 127.0.0.1. The ruleset's guard must be there.
    pub(crate) fn route_localnet(&self) -> io::Result<()> {
        let path = format!("/proc/sys/net/ipv4/conf/{}/route_localnet", self.bridge);
        netns::within(self.netns.as_fd(), || set_sysctl(&path, "1").map(drop))
    }
}

/// The interfaces in the pod's namespace, without loopback.
pub(crate) fn pod_links(pod_netns: &OwnedFd) -> io::Result<Vec<Link>> {
    let mut links = list(&mut Netlink::open_in(pod_netns.as_fd())?)?;
    // Some kernels put unused tunnel devices into every namespace.
    links.retain(|link| link.name != "lo" && !FALLBACK_TUNNELS.contains(&link.kind.as_str()));
    Ok(links)
}

/// Takes loopback in the pod's namespace up: the runtime's part where CNI plugins do the rest.
pub(crate) fn loopback_up(pod_netns: &OwnedFd) -> Result<(), Refused> {
    let mut inside = Netlink::open_in(pod_netns.as_fd())
        .map_err(|source| Refused { what: "enter the pod's network namespace", source })?;
    inside.batch(vec![link::loopback_up()])
}

fn list(netlink: &mut Netlink) -> io::Result<Vec<Link>> {
    Ok(link::links(&netlink.query(link::all_links(), true)?))
}

fn find(netlink: &mut Netlink, name: &str) -> io::Result<Option<Link>> {
    match netlink.query(link::get_link(name), false) {
        Ok(replies) => Ok(link::links(&replies).into_iter().next()),
        Err(err) if err.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => Ok(None),
        Err(err) => Err(err),
    }
}

/// The MTU of the interface with the default route, by the text of /proc/net/route.
fn default_mtu(routes: &str, links: &[Link]) -> u32 {
    let default = routes.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let (name, destination) = (words.next()?, words.next()?);
        (destination == "00000000").then_some(name)
    });
    let link = links.iter().find(|link| Some(link.name.as_str()) == default);
    link.map_or(DEFAULT_MTU, |link| link.mtu)
}

/// Makes the node a router, and the bridge a quiet interface. In the node's namespace.
fn prepare_node(bridge: &str, v6: bool) -> io::Result<()> {
    if set_sysctl("/proc/sys/net/ipv4/ip_forward", "1")? {
        info!(sysctl = "net.ipv4.ip_forward", value = 1, "enabled forwarding for the pod network");
    }
    set_sysctl(format!("/proc/sys/net/ipv4/conf/{bridge}/send_redirects"), "0")?;
    let own = format!("/proc/sys/net/ipv6/conf/{bridge}");
    for (name, value) in [("accept_ra", "0"), ("accept_dad", "0")] {
        set_sysctl_if_there(&format!("{own}/{name}"), value)?;
    }
    if !v6 {
        return Ok(());
    }
    let forwarding = "/proc/sys/net/ipv6/conf/all/forwarding";
    if fs::read_to_string(forwarding)?.trim() != "1" {
        // A router ignores router advertisements, and the node would lose its own default route, unless told otherwise.
        for entry in fs::read_dir("/proc/sys/net/ipv6/conf")? {
            let path = entry?.path().join("accept_ra");
            if fs::read_to_string(&path).is_ok_and(|value| value.trim() == "1") {
                set_sysctl(&path, "2")?;
            }
        }
        set_sysctl_if_there(&format!("{own}/accept_ra"), "0")?;
        set_sysctl(forwarding, "1")?;
        info!(sysctl = "net.ipv6.conf.all.forwarding", value = 1, "enabled forwarding for the pod network");
    }
    Ok(())
}

/// The settings of a pod's interfaces-to-be. In the pod's namespace.
fn prepare_pod(v6: bool) -> io::Result<()> {
    // The node routes from and to the same bridge: a redirect would lead pods past the node's rules.
    for scope in ["all", "default"] {
        write_sysctl(format!("/proc/sys/net/ipv4/conf/{scope}/accept_redirects").as_ref(), "0")?;
    }
    if v6 {
        for name in ["accept_redirects", "accept_ra", "accept_dad"] {
            write_sysctl(format!("/proc/sys/net/ipv6/conf/default/{name}").as_ref(), "0")?;
        }
    }
    Ok(())
}

/// Writes the value unless it stands there; says whether it wrote.
fn set_sysctl(path: impl AsRef<Path>, value: &str) -> io::Result<bool> {
    let path = path.as_ref();
    if fs::read_to_string(path).map_err(|err| named(path, &err))?.trim() == value {
        return Ok(false);
    }
    write_sysctl(path, value).map(|()| true)
}

fn write_sysctl(path: &Path, value: &str) -> io::Result<()> {
    let file = fs::OpenOptions::new().write(true).open(path);
    file.and_then(|mut file| file.write_all(value.as_bytes())).map_err(|err| named(path, &err))
}

fn named(path: &Path, err: &io::Error) -> io::Error {
    io::Error::new(err.kind(), format!("{}: {err}", path.display()))
}

fn set_sysctl_if_there(path: &str, value: &str) -> io::Result<bool> {
    match set_sysctl(path, value) {
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(false),
        outcome => outcome,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mtu_is_that_of_the_default_route() {
        let link = |name: &str, mtu| Link { name: name.to_owned(), mtu, ..Link::default() };
        let links = [link("lo", 65536), link("eth1", 9000)];
        let routes = "Iface\tDestination\tGateway\neth0\t0000A8C0\t00000000\neth1\t00000000\t0100A8C0\n";
        assert_eq!(default_mtu(routes, &links), 9000);
        assert_eq!(default_mtu("", &links), 1500);
    }
}
