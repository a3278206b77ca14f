//! The CRI log format: pure line assembly, and the file.
//!
//! `<RFC3339Nano> stdout|stderr P|F <text>`: F ends a line, P is a piece of one: of 16 KiB in the
//! middle of a long line, or the rest without a newline at the end of the stream.

use std::os::fd::{AsFd, OwnedFd};

use serde::{Deserialize, Serialize};
use sys::Errno;

use crate::protocol::UnixNanos;

/// Longest piece of a line, in bytes.
pub const PIECE_MAX: usize = 16 * 1024;

/// Which stream a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stream {
    /// Standard output, and terminals.
    Stdout,
    /// Standard error.
    Stderr,
}

impl Stream {
    fn name(self) -> &'static [u8] {
        match self {
            Stream::Stdout => b"stdout",
            Stream::Stderr => b"stderr",
        }
    }
}

/// Turns one stream's bytes into log records.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lines {
    stream: Stream,
    // Bytes of an unfinished line; at most PIECE_MAX of them.
    rest: Vec<u8>,
}

impl Lines {
    /// For a new stream.
    pub fn new(stream: Stream) -> Lines {
        Lines { stream, rest: Vec::new() }
    }

    /// Takes bytes that arrived at `now` and appends every complete record to `out`.
    pub fn feed(&mut self, mut data: &[u8], now: UnixNanos, out: &mut Vec<u8>) {
        let mut stamp = [0; 30];
        format_time(now, &mut stamp);
        while !data.is_empty() {
            let room = PIECE_MAX - self.rest.len();
            let newline = data.iter().take(room + 1).position(|b| *b == b'\n');
            match newline {
                Some(end) => {
                    self.record(&stamp, b'F', &data[..end], out);
                    data = &data[end + 1..];
                }
                None if data.len() > room => {
                    self.record(&stamp, b'P', &data[..room], out);
                    data = &data[room..];
                }
                None => {
                    self.rest.extend_from_slice(data);
                    break;
                }
            }
        }
    }

    /// Appends the rest at the end of the stream.
    pub fn finish(&mut self, now: UnixNanos, out: &mut Vec<u8>) {
        if !self.rest.is_empty() {
            let mut stamp = [0; 30];
            format_time(now, &mut stamp);
            self.record(&stamp, b'P', b"", out);
        }
    }

    fn record(&mut self, stamp: &[u8; 30], tag: u8, data: &[u8], out: &mut Vec<u8>) {
        for part in [stamp, &b" "[..], self.stream.name(), b" ", &[tag], b" ", &self.rest, data, b"\n"] {
            out.extend_from_slice(part);
        }
        // Give memory back: most streams end every write with a newline and never need it.
        self.rest = Vec::new();
    }
}

/// Writes `2026-11-21T09:42:03.123456789Z`.
fn format_time(at: UnixNanos, out: &mut [u8; 30]) {
    let seconds = at.0.div_euclid(1_000_000_000);
    let nanos = at.0.rem_euclid(1_000_000_000);
    let (days, second) = (seconds.div_euclid(86_400), seconds.rem_euclid(86_400));
    let (year, month, day) = civil(days);
    let mut put = |at: usize, width: usize, mut value: i64| {
        for i in (at..at + width).rev() {
            out[i] = b'0' + (value % 10) as u8;
            value /= 10;
        }
    };
    put(0, 4, year);
    put(5, 2, month);
    put(8, 2, day);
    put(11, 2, second / 3600);
    put(14, 2, second / 60 % 60);
    put(17, 2, second % 60);
    put(20, 9, nanos);
    for (at, byte) in [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':'), (19, b'.'), (29, b'Z')] {
        out[at] = byte;
    }
}

/// Days since 1970-01-01 as year, month, day, by 400-year eras that begin on 1 March.
fn civil(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let era = days.div_euclid(146_097);
    let day_of_era = days.rem_euclid(146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + i64::from(month <= 2), month, day)
}

/// A log file that never makes the container wait.
#[derive(Debug)]
pub struct LogFile {
    file: OwnedFd,
    /// Bytes of records that could not be written.
    pub lost: u64,
    failing: bool,
}

impl LogFile {
    /// Takes a file opened for appending.
    pub fn new(file: OwnedFd, lost: u64) -> LogFile {
        LogFile { file, lost, failing: false }
    }

    /// The file.
    pub fn fd(&self) -> &OwnedFd {
        &self.file
    }

    /// Goes on in another file.
    pub fn reopen(&mut self, file: OwnedFd) {
        self.file = file;
        self.failing = false;
    }

    /// Writes whole records. What cannot be written is counted as lost; the error is returned
    /// once until writing works again.
    pub fn write(&mut self, records: &[u8]) -> Option<Errno> {
        let mut done = 0;
        while done < records.len() {
            match rustix::io::write(&self.file, &records[done..]) {
                Ok(0) => return self.failed(records, done, Errno::IO),
                Ok(n) => done += n,
                Err(Errno::INTR) => {}
                Err(errno) => return self.failed(records, done, errno),
            }
        }
        self.failing = false;
        None
    }

    fn failed(&mut self, records: &[u8], done: usize, errno: Errno) -> Option<Errno> {
        // Take a torn record out again, so that the file holds whole records only.
        let whole = records[..done].iter().rposition(|b| *b == b'\n').map_or(0, |end| end + 1);
        if let Ok(stat) = rustix::fs::fstat(self.file.as_fd())
            && done > whole
            && let Ok(len) = u64::try_from(stat.st_size)
        {
            let _ = rustix::fs::ftruncate(&self.file, len.saturating_sub((done - whole) as u64));
        }
        self.lost += (records.len() - whole) as u64;
        (!std::mem::replace(&mut self.failing, true)).then_some(errno)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const T: UnixNanos = UnixNanos(1_795_255_323_123_456_789);

    fn feed(chunks: &[&[u8]]) -> String {
        let mut lines = Lines::new(Stream::Stdout);
        let mut out = Vec::new();
        for chunk in chunks {
            lines.feed(chunk, T, &mut out);
        }
        lines.finish(T, &mut out);
        String::from_utf8(out).unwrap().replace("2026-11-21T10:02:03.123456789Z stdout ", "")
    }

    #[test]
    fn lines_are_whole_whatever_the_chunks() {
        assert_eq!(feed(&[b"a\nb", b"c\n", b"\nd"]), "F a\nF bc\nF \nP d\n");
    }

    #[test]
    fn long_lines_come_in_pieces() {
        let long = vec![b'x'; PIECE_MAX + 3];
        let exact = vec![b'y'; PIECE_MAX];
        let x = "x".repeat(PIECE_MAX);
        let y = "y".repeat(PIECE_MAX);
        assert_eq!(feed(&[&long, b"\n"]), format!("P {x}\nF xxx\n"));
        assert_eq!(feed(&[&exact, b"\n"]), format!("F {y}\n"));
        assert_eq!(feed(&[&exact, b"z\n"]), format!("P {y}\nF z\n"));
        assert_eq!(feed(&[&exact]), format!("P {y}\n"));
    }

    #[test]
    fn time_is_right_at_the_edges() {
        let format = |nanos| {
            let mut out = [0; 30];
            format_time(UnixNanos(nanos), &mut out);
            String::from_utf8(out.to_vec()).unwrap()
        };
        assert_eq!(format(0), "1970-01-01T00:00:00.000000000Z");
        assert_eq!(format(1_709_164_800_000_000_001), "2024-02-29T00:00:00.000000001Z");
        assert_eq!(format(4_102_444_799_999_999_999), "2099-12-31T23:59:59.999999999Z");
    }

    #[test]
    fn a_full_disk_loses_lines_but_tears_none() {
        // /dev/full refuses every write; the count and the single message are what matters.
        let full =
            rustix::fs::open("/dev/full", rustix::fs::OFlags::WRONLY, rustix::fs::Mode::empty()).unwrap();
        let mut log = LogFile::new(full, 0);
        assert_eq!(log.write(b"one\n"), Some(Errno::NOSPC));
        assert_eq!(log.write(b"two\n"), None);
        assert_eq!(log.lost, 8);
    }
}
