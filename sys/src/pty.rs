//! Pseudo-terminals.

use std::os::fd::{AsFd, OwnedFd};

use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

use crate::Result;

/// Both sides of a terminal.
#[derive(Debug)]
pub struct Pty {
    /// The side of the terminal emulator. Blocking.
    pub master: OwnedFd,
    /// The side of the programs.
    pub slave: OwnedFd,
}

/// Makes a terminal on the host's devpts.
///
/// # Errors
/// Those of open(/dev/ptmx) and the ioctls TIOCSPTLCK and TIOCGPTPEER.
pub fn open(columns: u16, rows: u16) -> Result<Pty> {
    let master = rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    rustix::pty::unlockpt(&master)?;
    let slave = peer(&master)?;
    resize(&master, columns, rows)?;
    Ok(Pty { master, slave })
}

/// Opens the slave of a master without going through a path.
///
/// # Errors
/// Those of ioctl(TIOCGPTPEER).
pub fn peer(master: impl AsFd) -> Result<OwnedFd> {
    rustix::pty::ioctl_tiocgptpeer(master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
}

/// Sets the size; the foreground process group gets SIGWINCH.
///
/// # Errors
/// Those of ioctl(TIOCSWINSZ).
pub fn resize(terminal: impl AsFd, columns: u16, rows: u16) -> Result<()> {
    let size = Winsize { ws_col: columns, ws_row: rows, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(terminal, size)
}

/// The size, columns and rows.
///
/// # Errors
/// Those of ioctl(TIOCGWINSZ).
pub fn size(terminal: impl AsFd) -> Result<(u16, u16)> {
    let size = rustix::termios::tcgetwinsize(terminal)?;
    Ok((size.ws_col, size.ws_row))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_terminal_has_the_size_it_was_given() {
        let pty = open(100, 40).unwrap();
        assert_eq!(size(&pty.slave).unwrap(), (100, 40));
        resize(&pty.master, 80, 24).unwrap();
        assert_eq!(size(&pty.slave).unwrap(), (80, 24));
    }
}
