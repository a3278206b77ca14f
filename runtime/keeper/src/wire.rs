//! Packets: encoding, the detour through a memfd, sending and receiving.
//!
//! The first byte of a packet says where the body is: 0 in the packet, 1 in a sealed memfd that
//! is the first descriptor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sys::Errno;

use crate::protocol::{INLINE_MAX, MAX_FDS};

const INLINE: u8 = 0;
const IN_MEMFD: u8 = 1;

/// Bytes that a receive buffer needs.
pub const BUFFER: usize = INLINE_MAX + 1;

/// Why a packet could not be sent or understood.
#[derive(Debug, thiserror::Error)]
pub enum WireError {
    /// More descriptors than the kernel passes in one message.
    #[error("a message carries {0} descriptors, the kernel passes {MAX_FDS} at most")]
    TooManyFds(usize),
    /// The message could not be encoded.
    #[error("encode a message")]
    Encode(#[source] postcard::Error),
    /// The packet makes no sense.
    #[error("decode a message")]
    Decode(#[source] postcard::Error),
    /// The packet has no or an unknown first byte, or lacks its memfd.
    #[error("a packet is malformed")]
    Malformed,
    /// The memfd could not be made or read.
    #[error("carry a large message in a memfd")]
    Memfd(#[source] Errno),
    /// sendmsg failed.
    #[error("send a message")]
    Send(#[source] Errno),
    /// recvmsg failed.
    #[error("receive a message")]
    Receive(#[source] Errno),
}

/// An encoded packet, ready to be sent (again, when the socket is full).
#[derive(Debug)]
pub struct Packet {
    bytes: Vec<u8>,
    memfd: Option<OwnedFd>,
}

impl Packet {
    /// Encodes a message.
    ///
    /// # Errors
    /// [`WireError::Encode`] and [`WireError::Memfd`].
    pub fn new(message: &impl Serialize) -> Result<Packet, WireError> {
        let bytes = postcard::to_extend(message, vec![INLINE]).map_err(WireError::Encode)?;
        if bytes.len() <= INLINE_MAX {
            return Ok(Packet { bytes, memfd: None });
        }
        let memfd = sys::memfd::sealed(c"orlop-message", &bytes[1..]).map_err(WireError::Memfd)?;
        Ok(Packet { bytes: vec![IN_MEMFD], memfd: Some(memfd) })
    }

    /// Sends it with descriptors.
    ///
    /// # Errors
    /// [`WireError::TooManyFds`]; [`WireError::Send`] with `EAGAIN` when the socket is full.
    pub fn send(&self, socket: impl AsFd, fds: &[BorrowedFd<'_>]) -> Result<(), WireError> {
        let all: Vec<BorrowedFd<'_>> =
            self.memfd.iter().map(AsFd::as_fd).chain(fds.iter().copied()).collect();
        if all.len() > MAX_FDS {
            return Err(WireError::TooManyFds(fds.len()));
        }
        sys::socket::send(socket, &self.bytes, &all).map_err(WireError::Send)
    }
}

/// Receives a message with its descriptors; `None` when the peer has gone.
///
/// # Errors
/// [`WireError::Receive`] with `EAGAIN` when nothing waits; the others when the packet makes no
/// sense.
pub fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
    buffer: &mut [u8],
) -> Result<Option<(T, Vec<OwnedFd>)>, WireError> {
    let (len, mut fds) = sys::socket::receive(socket, buffer).map_err(WireError::Receive)?;
    match buffer[..len].split_first() {
        None => Ok(None),
        Some((&INLINE, body)) => Ok(Some((postcard::from_bytes(body).map_err(WireError::Decode)?, fds))),
        Some((&IN_MEMFD, _)) if !fds.is_empty() => {
            let body = sys::memfd::read(&fds.remove(0)).map_err(WireError::Memfd)?;
            Ok(Some((postcard::from_bytes(&body).map_err(WireError::Decode)?, fds)))
        }
        Some(_) => Err(WireError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_and_large_messages_arrive_with_their_descriptors() {
        let (a, b) = sys::socket::pair().unwrap();
        let (r, w) = rustix::pipe::pipe().unwrap();
        for size in [10, 300_000] {
            let message = vec![7u8; size];
            Packet::new(&message).unwrap().send(&a, &[w.as_fd()]).unwrap();
            let (got, fds): (Vec<u8>, _) = receive(&b, &mut vec![0; BUFFER]).unwrap().unwrap();
            assert_eq!((got.len(), fds.len()), (size, 1));
        }
        drop((a, r));
        assert!(receive::<Vec<u8>>(&b, &mut vec![0; BUFFER]).unwrap().is_none());
    }
}
