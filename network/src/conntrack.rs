//! Forgets UDP flows that a change of host ports has made wrong.
//!
//! The kernel translates only the first packet of a flow by the rules, and remembers. A UDP client that never
//! pauses would keep sending to a pod that is gone, or to the node although a pod has the port now.
//!
//! Guarantees: only flows to or from the given ports and pods are forgotten.

use std::io;
use std::net::IpAddr;
use std::os::fd::BorrowedFd;

use netlink_packet_core::NlasIterator;

use crate::link;
use crate::model::{PodIps, PortMapping, Protocol};
use crate::netlink::Netlink;

const CT_GET: u16 = 1 << 8 | 1;
const CT_DELETE: u16 = 1 << 8 | 2;
const UDP: u8 = 17;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_ID: u16 = 12;
const NESTED: u16 = 0x8000;

/// A flow: how it began, and how its answers look.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Flow {
    asked: IpAddr,
    port: u16,
    answered_by: IpAddr,
    /// The attributes that name it.
    name: Vec<u8>,
}

/// Forgets flows through the pod's UDP ports, and those to the same ports of the node itself. Blocks.
pub(crate) fn forget_udp(netns: BorrowedFd<'_>, ips: &PodIps, ports: &[PortMapping]) -> io::Result<()> {
    let ports: Vec<u16> =
        ports.iter().filter(|port| port.protocol == Protocol::Udp).map(|port| port.host_port).collect();
    if ports.is_empty() {
        return Ok(());
    }
    let node = link::every_address(&Netlink::open_in(netns)?.query(link::all_addresses(), true)?);
    let mut netlink = Netlink::open_netfilter(netns)?;
    for family in [AF_INET, AF_INET6] {
        let header = [family, 0, 0, 0];
        let replies = netlink.query_raw(CT_GET, true, &header)?;
        for flow in replies.iter().filter_map(|reply| flow(reply.payload.get(4..)?)) {
            if is_wrong(&flow, &node, ips, &ports) {
                let payload = [&header[..], &flow.name].concat();
                match netlink.query_raw(CT_DELETE, false, &payload) {
                    // Over by itself.
                    Err(err) if err.kind() == io::ErrorKind::NotFound => {}
                    outcome => drop(outcome?),
                }
            }
        }
    }
    Ok(())
}

fn is_wrong(flow: &Flow, node: &[IpAddr], pod: &PodIps, ports: &[u16]) -> bool {
    ports.contains(&flow.port)
        && node.contains(&flow.asked)
        && (flow.answered_by == flow.asked || pod.iter().any(|ip| ip == flow.answered_by))
}

/// Reads a UDP flow; `None` for anything else.
fn flow(attributes: &[u8]) -> Option<Flow> {
    let (mut asked, mut answers, mut name) = (None, None, Vec::new());
    for attribute in NlasIterator::new(attributes).map_while(Result::ok) {
        let value = attribute.value();
        match attribute.kind() {
            CTA_TUPLE_ORIG => {
                asked = tuple(value);
                push(&mut name, CTA_TUPLE_ORIG | NESTED, value);
            }
            CTA_TUPLE_REPLY => answers = tuple(value),
            CTA_ID => push(&mut name, CTA_ID, value),
            _ => {}
        }
    }
    let ((_, asked, port), (answered_by, ..)) = (asked?, answers?);
    Some(Flow { asked, port, answered_by, name })
}

/// Source, destination and destination port of a UDP tuple.
fn tuple(value: &[u8]) -> Option<(IpAddr, IpAddr, u16)> {
    let (mut source, mut destination, mut port, mut protocol) = (None, None, None, None);
    for part in NlasIterator::new(value).map_while(Result::ok) {
        for field in NlasIterator::new(part.value()).map_while(Result::ok) {
            let value = field.value();
            match (part.kind(), field.kind()) {
                (1, 1 | 3) => source = address(value),
                (1, 2 | 4) => destination = address(value),
                (2, 1) => protocol = value.first().copied(),
                (2, 3) => port = value.first_chunk().map(|bytes| u16::from_be_bytes(*bytes)),
                _ => {}
            }
        }
    }
    (protocol == Some(UDP)).then_some((source?, destination?, port?))
}

fn address(value: &[u8]) -> Option<IpAddr> {
    match value.len() {
        4 => value.first_chunk::<4>().map(|bytes| IpAddr::from(*bytes)),
        16 => value.first_chunk::<16>().map(|bytes| IpAddr::from(*bytes)),
        _ => None,
    }
}

fn push(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).expect("a tuple is short");
    bytes.extend(length.to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}
