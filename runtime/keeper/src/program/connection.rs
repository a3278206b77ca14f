//! The daemon's end of the keeper's socket.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use sys::Errno;

use crate::protocol::ToDaemon;
use crate::wire::{Packet, WireError};

/// One connected daemon.
#[derive(Debug)]
pub struct Connection {
    /// The socket.
    pub socket: OwnedFd,
    /// Tells connections apart, for replies to requests of an earlier one.
    pub serial: u32,
    /// Whether it has said hello, so that events may be sent.
    pub greeted: bool,
    /// Whether the epoll set tells when the socket takes more.
    pub watched_for_room: bool,
    queue: VecDeque<(Packet, Vec<OwnedFd>)>,
}

impl Connection {
    /// For an accepted socket.
    pub fn new(socket: OwnedFd, serial: u32, greeted: bool) -> Connection {
        Connection { socket, serial, greeted, watched_for_room: false, queue: VecDeque::new() }
    }

    /// Sends a message, or queues it while the socket is full. Returns whether the connection
    /// still stands.
    pub fn send(&mut self, message: &ToDaemon, fds: Vec<OwnedFd>) -> bool {
        match Packet::new(message) {
            Ok(packet) => self.queue.push_back((packet, fds)),
            // Only memory or descriptors can be short; the daemon connects again and asks.
            Err(_) => return false,
        }
        self.flush()
    }

    /// Sends what is queued as far as the socket takes it. Returns whether the connection stands.
    pub fn flush(&mut self) -> bool {
        while let Some((packet, fds)) = self.queue.front() {
            let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
            match packet.send(&self.socket, &fds) {
                Ok(()) => drop(self.queue.pop_front()),
                Err(WireError::Send(Errno::AGAIN)) => return true,
                Err(_) => return false,
            }
        }
        true
    }

    /// Whether something waits for the socket to take it.
    pub fn is_waiting(&self) -> bool {
        !self.queue.is_empty()
    }
}
