//! The CRI log format: `<RFC 3339 time> stdout|stderr P|F <text>`, one record a line.

use std::borrow::Cow;

use jiff::Timestamp;

/// One record. A line of output longer than the writer's limit is several: all but the last partial.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record<'a> {
    /// The time as it is written, and as it is meant.
    pub time: (Cow<'a, str>, Timestamp),
    /// From stderr, not stdout.
    pub stderr: bool,
    /// The line goes on in the next record of its stream.
    pub partial: bool,
    /// The text, without a line feed.
    pub text: &'a [u8],
}

/// Reads one line of a log, without its line feed. `None` for what is no record.
pub fn parse(line: &[u8]) -> Option<Record<'_>> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let time = std::str::from_utf8(parts.next()?).ok()?;
    let stderr = match parts.next()? {
        b"stdout" => false,
        b"stderr" => true,
        _ => return None,
    };
    let tag = parts.next()?;
    let partial = tag.split(|b| *b == b':').next()? == b"P";
    Some(Record {
        time: (time.into(), time.parse().ok()?),
        stderr,
        partial,
        text: parts.next().unwrap_or_default(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_told_from_rubbish() {
        let text = b"2026-11-21T09:00:00.123456789Z stderr P half a line";
        let record = parse(text).expect("a record");
        assert!(record.stderr && record.partial);
        assert_eq!(record.text, b"half a line");
        assert_eq!(record.time.0, "2026-11-21T09:00:00.123456789Z");
        assert_eq!(parse(b"2026-11-21T09:00:00Z stdout F ").map(|r| r.text.len()), Some(0));
        assert_eq!(parse(b"2026-11-21T09:00:00Z stdout F").map(|r| r.text.len()), Some(0));
        for bad in [&b""[..], b"hello", b"x stdout F y", b"2026-11-21T09:00:00Z other F y"] {
            assert_eq!(parse(bad), None);
        }
    }
}
