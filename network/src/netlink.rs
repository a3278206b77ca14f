//! A blocking netlink socket that sends many requests at once.
//!
//! rtnetlink answers within the send, so there is nothing to wait for and nothing to schedule: a batch
//! costs two system calls and the kernel's own work. That is why the async client of the `rtnetlink` crate is not used.
//!
//! Guarantees: a socket stays in the network namespace that it was made in, whichever thread uses it.
//! Assumes: the caller may block (for the kernel's rtnl lock).

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::Duration;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NLMSG_DONE, NLMSG_ERROR, NetlinkBuffer, NetlinkMessage,
};
use netlink_packet_route::RouteNetlinkMessage;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt};

/// The kernel's dumps come in pieces of at most 32 KiB.
const BUFFER: usize = 64 * 1024;
/// An answer is there when the send returns; this only guards against a kernel that drops one.
const TIMEOUT: Duration = Duration::from_secs(10);

/// One change, and what to call it.
pub(crate) struct Request {
    /// What it is to achieve, for messages.
    pub(crate) what: &'static str,
    pub(crate) message: RouteNetlinkMessage,
    /// Besides `NLM_F_REQUEST` and `NLM_F_ACK`.
    pub(crate) flags: u16,
    /// Errors that mean that the goal is reached already.
    pub(crate) fine: &'static [i32],
}

/// A request that the kernel refused.
#[derive(Debug, thiserror::Error)]
#[error("{what}")]
pub(crate) struct Refused {
    pub(crate) what: &'static str,
    pub(crate) source: io::Error,
}

/// A message of a dump: its type and payload.
pub(crate) struct Reply {
    pub(crate) kind: u16,
    pub(crate) payload: Vec<u8>,
}

/// The socket.
pub(crate) struct Netlink {
    socket: OwnedFd,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// A socket for interfaces and routes in the namespace of the calling thread.
    pub(crate) fn open_here() -> io::Result<Netlink> {
        Netlink::open(None)
    }

    /// A socket for netfilter in the given namespace.
    pub(crate) fn open_netfilter(netns: BorrowedFd<'_>) -> io::Result<Netlink> {
        crate::netns::within(netns, || Netlink::open(Some(net::netlink::NETFILTER)))
    }

    fn open(protocol: Option<net::Protocol>) -> io::Result<Netlink> {
        let socket =
            net::socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(TIMEOUT))?;
        Ok(Netlink { socket, sequence: 0, buffer: Vec::new() })
    }

    /// A socket in the given namespace.
    pub(crate) fn open_in(netns: BorrowedFd<'_>) -> io::Result<Netlink> {
        crate::netns::within(netns, Netlink::open_here)
    }

    /// Sends all requests at once. The kernel tries every one of them, in order, also after a failure.
    ///
    /// # Errors
    /// The first that was refused.
    pub(crate) fn batch(&mut self, requests: Vec<Request>) -> Result<(), Refused> {
        let Some(first) = requests.first() else { return Ok(()) };
        let io_error = |source: io::Error| Refused { what: first.what, source };
        let start = self.sequence + 1;
        let mut bytes = Vec::with_capacity(1024);
        for (index, request) in requests.iter().enumerate() {
            self.sequence += 1;
            // A failure is always reported; that of the last one, or its success, is the end of the answer.
            let ack = if index + 1 == requests.len() { NLM_F_ACK } else { 0 };
            encode(&mut bytes, request.message.clone(), request.flags | ack, self.sequence);
        }
        self.send(&bytes).map_err(io_error)?;
        let mut failed = None;
        let mut buffer = std::mem::take(&mut self.buffer);
        let mut finished = false;
        while !finished {
            let length = self.receive(&mut buffer).map_err(io_error)?;
            for message in Messages(&buffer[..length]) {
                let (kind, sequence, payload) = message.map_err(io_error)?;
                let Some(index) = sequence.checked_sub(start).map(|index| index as usize) else { continue };
                let (NLMSG_ERROR, Some(request)) = (kind, requests.get(index)) else { continue };
                finished |= index + 1 == requests.len();
                let code = error_code(payload);
                if code != 0 && !request.fine.contains(&code) && failed.is_none() {
                    failed = Some(Refused { what: request.what, source: io::Error::from_raw_os_error(code) });
                }
            }
        }
        self.buffer = buffer;
        failed.map_or(Ok(()), Err)
    }

    /// Asks for one object or, with `dump`, for all of a kind.
    pub(crate) fn query(&mut self, message: RouteNetlinkMessage, dump: bool) -> io::Result<Vec<Reply>> {
        self.sequence += 1;
        let mut bytes = Vec::with_capacity(64);
        encode(&mut bytes, message, if dump { NLM_F_DUMP } else { NLM_F_ACK }, self.sequence);
        self.exchange(&bytes)
    }

    /// Sends one message of any protocol, as a request for a dump or for a change.
    pub(crate) fn query_raw(&mut self, kind: u16, dump: bool, payload: &[u8]) -> io::Result<Vec<Reply>> {
        self.sequence += 1;
        let length = u32::try_from(16 + payload.len()).expect("a request is short");
        let flags = NLM_F_REQUEST | if dump { NLM_F_DUMP } else { NLM_F_ACK };
        let mut bytes = Vec::with_capacity(length as usize);
        bytes.extend(length.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend(self.sequence.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend(payload);
        self.exchange(&bytes)
    }

    fn exchange(&mut self, bytes: &[u8]) -> io::Result<Vec<Reply>> {
        self.send(bytes)?;
        let mut replies = Vec::new();
        let mut buffer = std::mem::take(&mut self.buffer);
        let outcome = 'answers: loop {
            let length = self.receive(&mut buffer)?;
            for message in Messages(&buffer[..length]) {
                let (kind, sequence, payload) = message?;
                match kind {
                    _ if sequence != self.sequence => {}
                    NLMSG_DONE => break 'answers Ok(replies),
                    NLMSG_ERROR => match error_code(payload) {
                        0 => break 'answers Ok(replies),
                        code => break 'answers Err(io::Error::from_raw_os_error(code)),
                    },
                    kind => replies.push(Reply { kind, payload: payload.to_vec() }),
                }
            }
        };
        self.buffer = buffer;
        outcome
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let sent = net::send(&self.socket, bytes, SendFlags::empty())?;
        if sent == bytes.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    }

    fn receive(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        if buffer.is_empty() {
            *buffer = vec![0; BUFFER];
        }
        loop {
            match net::recv(&self.socket, buffer.as_mut_slice(), RecvFlags::empty()) {
                Ok((length, _)) => return Ok(length),
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => {
                    return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer from the kernel"));
                }
                Err(err) => return Err(err.into()),
            }
        }
    }
}

fn encode(bytes: &mut Vec<u8>, message: RouteNetlinkMessage, flags: u16, sequence: u32) {
    let mut packet = NetlinkMessage::from(message);
    packet.header.flags = NLM_F_REQUEST | flags;
    packet.header.sequence_number = sequence;
    packet.finalize();
    let start = bytes.len();
    bytes.resize(start + packet.buffer_len().next_multiple_of(4), 0);
    packet.serialize(&mut bytes[start..start + packet.buffer_len()]);
}

/// The errno of an NLMSG_ERROR payload; 0 is an acknowledgement.
fn error_code(payload: &[u8]) -> i32 {
    payload.first_chunk::<4>().map_or(0, |code| i32::from_ne_bytes(*code)).saturating_neg()
}

/// The messages in a received buffer: type, sequence number, payload.
struct Messages<'a>(&'a [u8]);

impl<'a> Iterator for Messages<'a> {
    type Item = io::Result<(u16, u32, &'a [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let bytes = self.0;
        match NetlinkBuffer::new_checked(bytes) {
            Ok(message) => {
                let length = (message.length() as usize).next_multiple_of(4).min(bytes.len());
                self.0 = &bytes[length..];
                Some(Ok((message.message_type(), message.sequence_number(), message.payload())))
            }
            Err(err) => {
                self.0 = &[];
                Some(Err(io::Error::new(io::ErrorKind::InvalidData, err)))
            }
        }
    }
}
