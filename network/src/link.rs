//! The rtnetlink messages that this crate sends and reads: pure functions.
//!
//! Replies are read leniently: an attribute of a newer kernel is skipped, not an error.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, NlasIterator};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoBridge, InfoBridgePort, InfoData, InfoKind, InfoPortData,
    InfoPortKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rustix::io::Errno;

use crate::model::InterfaceStats;
use crate::netlink::{Reply, Request};

/// The index of loopback in every namespace.
const LOOPBACK: u32 = 1;
const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const EXISTS: &[i32] = &[Errno::EXIST.raw_os_error()];
const GONE: &[i32] = &[Errno::NODEV.raw_os_error()];
const NO_IPV6: &[i32] = &[Errno::AFNOSUPPORT.raw_os_error()];
const NO_ADDRESS: &[i32] = &[Errno::ADDRNOTAVAIL.raw_os_error()];

/// The MAC address of whoever has this address: stable over restarts, in the locally administered range.
pub(crate) fn mac(ip: IpAddr) -> [u8; 6] {
    let last = match ip {
        IpAddr::V4(ip) => ip.octets(),
        IpAddr::V6(ip) => *ip.octets().last_chunk::<4>().expect("16 octets have a last 4"),
    };
    [0x0a, 0x58, last[0], last[1], last[2], last[3]]
}

/// Makes the bridge, down and without addresses.
pub(crate) fn new_bridge(name: &str, mac: [u8; 6], mtu: u32, alias: &str) -> Request {
    let mut link = named(name);
    link.attributes.extend([
        LinkAttribute::Mtu(mtu),
        LinkAttribute::Address(mac.to_vec()),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Bridge),
            // Nothing on this bridge queries for group members: snooping would only lose packets.
            LinkInfo::Data(InfoData::Bridge(vec![InfoBridge::MulticastSnooping(false)])),
        ]),
        LinkAttribute::IfAlias(alias.to_owned()),
    ]);
    request("make the bridge", RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL, &[])
}

/// Names the bridge's owner and its MTU, and takes it up.
pub(crate) fn set_bridge(index: u32, mtu: u32, alias: &str) -> Request {
    let mut link = up(index);
    link.attributes.extend([LinkAttribute::Mtu(mtu), LinkAttribute::IfAlias(alias.to_owned())]);
    request("take the bridge up", RouteNetlinkMessage::SetLink(link), 0, &[])
}

/// A pod's pair of interfaces: `host_if` on the bridge, `eth0` in the pod's namespace. Both down.
pub(crate) fn new_veth(
    host_if: &str,
    bridge: u32,
    mtu: u32,
    pod_netns: BorrowedFd<'_>,
    pod_mac: [u8; 6],
) -> Request {
    let mut peer = named("eth0");
    peer.attributes.extend([
        LinkAttribute::Mtu(mtu),
        LinkAttribute::Address(pod_mac.to_vec()),
        LinkAttribute::NetNsFd(pod_netns.as_raw_fd()),
    ]);
    let mut link = named(host_if);
    link.attributes.extend([
        LinkAttribute::Mtu(mtu),
        LinkAttribute::Controller(bridge),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::Veth),
            LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(peer))),
        ]),
    ]);
    request("make the veth pair", RouteNetlinkMessage::NewLink(link), NLM_F_CREATE | NLM_F_EXCL, &[])
}

/// Takes a bridge port up as a pod's. It may send back what it received: where bridged packets pass
/// through netfilter (bridge-nf-call-iptables), a pod that asks for its own host port is answered that way.
pub(crate) fn set_port(host_if: &str, alias: &str) -> Request {
    let mut link = named(host_if);
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    link.attributes.extend([
        LinkAttribute::LinkInfo(vec![
            LinkInfo::PortKind(InfoPortKind::Bridge),
            LinkInfo::PortData(InfoPortData::BridgePort(vec![InfoBridgePort::HairpinMode(true)])),
        ]),
        LinkAttribute::IfAlias(alias.to_owned()),
    ]);
    request("take the bridge port up", RouteNetlinkMessage::NewLink(link), 0, &[])
}

/// Keeps the kernel from giving a bridge port an IPv6 address, which nobody would use. Where the kernel has
/// no IPv6 for it, that is so already.
pub(crate) fn no_own_address(host_if: &str) -> Request {
    let mut link = named(host_if);
    let mode = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    link.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![mode])]));
    request("keep the bridge port without addresses", RouteNetlinkMessage::SetLink(link), 0, NO_IPV6)
}

/// Takes the interface up.
pub(crate) fn set_up(index: u32) -> Request {
    request("take the interface up", RouteNetlinkMessage::SetLink(up(index)), 0, &[])
}

/// Takes loopback up.
pub(crate) fn loopback_up() -> Request {
    request("take loopback up", RouteNetlinkMessage::SetLink(up(LOOPBACK)), 0, &[])
}

/// Deletes the interface with this name.
pub(crate) fn delete_link(name: &str) -> Request {
    request("delete the interface", RouteNetlinkMessage::DelLink(named(name)), 0, GONE)
}

/// Puts the interface in a group of interfaces.
pub(crate) fn set_group(name: &str, group: u32) -> Request {
    let mut link = named(name);
    link.attributes.push(LinkAttribute::Group(group));
    request("mark the interface for deletion", RouteNetlinkMessage::SetLink(link), 0, GONE)
}

/// Deletes all interfaces of a group at once, for the price of one.
pub(crate) fn delete_group(group: u32) -> Request {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::Group(group));
    request("delete the marked interfaces", RouteNetlinkMessage::DelLink(link), 0, GONE)
}

/// Gives the interface an address that is usable at once (no duplicate address detection).
pub(crate) fn add_address(index: u32, ip: IpAddr, prefix: u8) -> Request {
    let mut address = AddressMessage::default();
    address.header.family = family(ip);
    address.header.prefix_len = prefix;
    address.header.index = index;
    address.header.scope = AddressScope::Universe;
    address.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    if ip.is_ipv6() {
        address.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    let message = RouteNetlinkMessage::NewAddress(address);
    request("give the interface its address", message, NLM_F_CREATE | NLM_F_REPLACE, EXISTS)
}

/// Takes an address away.
pub(crate) fn delete_address(index: u32, ip: IpAddr, prefix: u8) -> Request {
    let mut address = AddressMessage::default();
    address.header.family = family(ip);
    address.header.prefix_len = prefix;
    address.header.index = index;
    address.attributes = vec![AddressAttribute::Local(ip), AddressAttribute::Address(ip)];
    request("take an old address away", RouteNetlinkMessage::DelAddress(address), 0, NO_ADDRESS)
}

/// Makes the gateway reachable on the interface.
pub(crate) fn gateway_route(index: u32, gateway: IpAddr) -> Request {
    let mut route = route(gateway, RouteScope::Link);
    route.header.destination_prefix_length = if gateway.is_ipv4() { 32 } else { 128 };
    route.attributes =
        vec![RouteAttribute::Destination(RouteAddress::from(gateway)), RouteAttribute::Oif(index)];
    let message = RouteNetlinkMessage::NewRoute(route);
    request("add the route to the gateway", message, NLM_F_CREATE | NLM_F_REPLACE, EXISTS)
}

/// Sends everything else through the gateway.
pub(crate) fn default_route(index: u32, gateway: IpAddr) -> Request {
    let mut route = route(gateway, RouteScope::Universe);
    route.attributes = vec![RouteAttribute::Gateway(RouteAddress::from(gateway)), RouteAttribute::Oif(index)];
    let message = RouteNetlinkMessage::NewRoute(route);
    request("add the default route", message, NLM_F_CREATE | NLM_F_REPLACE, EXISTS)
}

/// The question for the interface with this name.
pub(crate) fn get_link(name: &str) -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetLink(named(name))
}

/// The question for all interfaces.
pub(crate) fn all_links() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetLink(LinkMessage::default())
}

/// The question for all addresses.
pub(crate) fn all_addresses() -> RouteNetlinkMessage {
    RouteNetlinkMessage::GetAddress(AddressMessage::default())
}

fn request(what: &'static str, message: RouteNetlinkMessage, flags: u16, fine: &'static [i32]) -> Request {
    Request { what, message, flags, fine }
}

fn named(name: &str) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.attributes.push(LinkAttribute::IfName(name.to_owned()));
    link
}

fn up(index: u32) -> LinkMessage {
    let mut link = LinkMessage::default();
    link.header.index = index;
    link.header.flags = LinkFlags::Up;
    link.header.change_mask = LinkFlags::Up;
    link
}

fn route(gateway: IpAddr, scope: RouteScope) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header = RouteHeader {
        address_family: family(gateway),
        table: RouteHeader::RT_TABLE_MAIN,
        protocol: RouteProtocol::Boot,
        scope,
        kind: RouteType::Unicast,
        ..RouteHeader::default()
    };
    route
}

fn family(ip: IpAddr) -> AddressFamily {
    if ip.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

/// What is read of an interface.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    /// The kernel's name of the type: `bridge`, `veth`; empty for hardware and loopback.
    pub(crate) kind: String,
    pub(crate) alias: String,
    pub(crate) mtu: u32,
    pub(crate) master: Option<u32>,
    pub(crate) stats: InterfaceStats,
}

/// The interfaces in the answers to [`get_link`] or [`all_links`].
pub(crate) fn links(replies: &[Reply]) -> Vec<Link> {
    let payloads = replies.iter().filter(|reply| reply.kind == RTM_NEWLINK);
    payloads.filter_map(|reply| link(&reply.payload)).collect()
}

fn link(payload: &[u8]) -> Option<Link> {
    // struct ifinfomsg is 16 bytes; the index stands at 4.
    let index = u32::from_ne_bytes(*payload.get(4..8)?.first_chunk()?);
    let mut link = Link { index, ..Link::default() };
    for attribute in NlasIterator::new(payload.get(16..)?).map_while(Result::ok) {
        let value = attribute.value();
        match attribute.kind() {
            3 => link.name = text(value),
            4 => link.mtu = number(value).unwrap_or_default(),
            10 => link.master = number(value),
            18 => {
                let infos = NlasIterator::new(value).map_while(Result::ok);
                link.kind = infos.filter(|info| info.kind() == 1).map(|info| text(info.value())).collect();
            }
            20 => link.alias = text(value),
            23 => link.stats = stats64(value),
            _ => {}
        }
    }
    link.stats.name.clone_from(&link.name);
    Some(link)
}

/// The first fields of struct rtnl_link_stats64, which have never moved.
fn stats64(value: &[u8]) -> InterfaceStats {
    let field = |index: usize| {
        let bytes = value.get(index * 8..).and_then(<[u8]>::first_chunk);
        bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
    };
    InterfaceStats {
        name: String::new(),
        rx_packets: field(0),
        tx_packets: field(1),
        rx_bytes: field(2),
        tx_bytes: field(3),
        rx_errors: field(4),
        tx_errors: field(5),
        rx_dropped: field(6),
        tx_dropped: field(7),
    }
}

/// The addresses of the interface in the answers to [`all_addresses`], with their prefix lengths; without
/// the link-local ones that the kernel makes.
pub(crate) fn addresses(replies: &[Reply], index: u32) -> Vec<(IpAddr, u8)> {
    let payloads = replies.iter().filter(|reply| reply.kind == RTM_NEWADDR);
    payloads.filter_map(|reply| address(&reply.payload, index)).collect()
}

/// All addresses in the answers to [`all_addresses`].
pub(crate) fn every_address(replies: &[Reply]) -> Vec<IpAddr> {
    let payloads = replies.iter().filter(|reply| reply.kind == RTM_NEWADDR);
    payloads.filter_map(|reply| Some(any_address(&reply.payload)?.0)).collect()
}

fn address(payload: &[u8], index: u32) -> Option<(IpAddr, u8)> {
    // struct ifaddrmsg: family, prefix length, flags, scope, then the index.
    if u32::from_ne_bytes(*payload.get(4..8)?.first_chunk()?) != index || payload[3] != 0 {
        return None;
    }
    any_address(payload)
}

fn any_address(payload: &[u8]) -> Option<(IpAddr, u8)> {
    let attributes = NlasIterator::new(payload.get(8..)?).map_while(Result::ok);
    // IFA_ADDRESS; IFA_LOCAL, where there is one, says the same on anything but point-to-point links.
    let mut ips = attributes.filter(|attribute| attribute.kind() == 1).filter_map(|attribute| {
        let value = attribute.value();
        match value.len() {
            4 => Some(IpAddr::from(*value.first_chunk::<4>()?)),
            16 => Some(IpAddr::from(*value.first_chunk::<16>()?)),
            _ => None,
        }
    });
    Some((ips.next()?, payload[1]))
}

fn text(value: &[u8]) -> String {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    String::from_utf8_lossy(&value[..end]).into_owned()
}

fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}
