//! Unix seqpacket sockets that carry descriptors.
//!
//! Guarantees: a received descriptor is close-on-exec and owned by the returned message; a packet
//! that lost bytes or descriptors on the way is an error, never cut short silently.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};

use crate::{Errno, Result};

/// Most descriptors in one packet (the kernel's `SCM_MAX_FD`).
pub const MAX_FDS: usize = 253;

const ANCILLARY: usize = rustix::cmsg_space!(ScmRights(MAX_FDS));

/// Listens on `path` (an existing socket file is replaced), reachable by its owner only.
///
/// # Errors
/// Those of socket(2), bind(2), chmod(2) and listen(2). The path may have 107 bytes at most
/// (`ENAMETOOLONG`).
pub fn listen(path: &Path) -> Result<OwnedFd> {
    listen_on(seqpacket()?, path)
}

fn listen_on(socket: OwnedFd, path: &Path) -> Result<OwnedFd> {
    match rustix::fs::unlink(path) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(e) => return Err(e),
    }
    // fchmod before bind sets the mode that the file is made with, so it is never open to others.
    rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(0o600))?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    rustix::net::listen(&socket, 16)?;
    Ok(socket)
}

/// Listens on `path` for stream connections, as OCI runtimes make one to send a terminal; else as [`listen`].
///
/// # Errors
/// As [`listen`].
pub fn listen_stream(path: &Path) -> Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    listen_on(rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?, path)
}

/// Connects to a socket that [`listen`] made. The socket is non-blocking.
///
/// # Errors
/// Those of connect(2): `ENOENT` without the file, `ECONNREFUSED` when nobody listens any more.
pub fn connect(path: &Path) -> Result<OwnedFd> {
    let socket = seqpacket()?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    Ok(socket)
}

fn seqpacket() -> Result<OwnedFd> {
    rustix::net::socket_with(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
}

/// A connected pair of non-blocking seqpacket sockets.
///
/// # Errors
/// Those of socketpair(2).
pub fn pair() -> Result<(OwnedFd, OwnedFd)> {
    rustix::net::socketpair(
        AddressFamily::UNIX,
        SocketType::SEQPACKET,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
        None,
    )
}

/// Accepts a connection; the new socket is non-blocking.
///
/// # Errors
/// Those of accept4(2); `EAGAIN` when nobody waits.
pub fn accept(listener: impl AsFd) -> Result<OwnedFd> {
    rustix::net::accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)
}

/// Who is at the other end of a connected unix socket (as of connect time).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Process id.
    pub pid: i32,
    /// Effective user id.
    pub uid: u32,
    /// Effective group id.
    pub gid: u32,
}

/// Credentials of the peer.
///
/// # Errors
/// Those of getsockopt(2).
pub fn peer(socket: impl AsFd) -> Result<Peer> {
    let cred = rustix::net::sockopt::socket_peercred(socket)?;
    Ok(Peer { pid: cred.pid.as_raw_nonzero().get(), uid: cred.uid.as_raw(), gid: cred.gid.as_raw() })
}

/// Sends one packet with descriptors.
///
/// # Errors
/// Those of sendmsg(2): `EAGAIN` when the buffer is full, `EMSGSIZE` when the packet is larger
/// than the buffer, `EPIPE` when the peer is gone (never SIGPIPE). More than [`MAX_FDS`]
/// descriptors are `E2BIG`.
pub fn send(socket: impl AsFd, body: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    if fds.len() > MAX_FDS {
        return Err(Errno::TOOBIG);
    }
    let mut space = [MaybeUninit::uninit(); ANCILLARY];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(Errno::TOOBIG);
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let sent = rustix::net::sendmsg(socket, &[IoSlice::new(body)], &mut control, flags)?;
    // A seqpacket is sent whole or not at all.
    if sent == body.len() { Ok(()) } else { Err(Errno::MSGSIZE) }
}

/// Receives one packet into `buffer`. Returns the length (0 at the end of the connection) and
/// the descriptors.
///
/// # Errors
/// Those of recvmsg(2); `EAGAIN` when nothing waits; `EMSGSIZE` when the packet did not fit.
pub fn receive(socket: impl AsFd, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); ANCILLARY];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
    let got = rustix::net::recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, flags)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(Errno::MSGSIZE);
    }
    Ok((got.bytes, fds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_carries_descriptors() {
        let (a, b) = pair().unwrap();
        let (r, w) = rustix::pipe::pipe().unwrap();
        send(&a, b"hello", &[w.as_fd()]).unwrap();
        drop(w);
        let mut buffer = [0; 64];
        let (len, fds) = receive(&b, &mut buffer).unwrap();
        assert_eq!(&buffer[..len], b"hello");
        rustix::io::write(&fds[0], b"x").unwrap();
        drop(fds);
        let mut one = [0; 2];
        assert_eq!(rustix::io::read(&r, &mut one).unwrap(), 1);
        drop(a);
        assert_eq!(receive(&b, &mut buffer).unwrap().0, 0);
    }

    #[test]
    fn a_packet_that_does_not_fit_is_an_error() {
        let (a, b) = pair().unwrap();
        send(&a, &[7; 100], &[]).unwrap();
        assert_eq!(receive(&b, &mut [0; 10]).unwrap_err(), Errno::MSGSIZE);
    }
}
