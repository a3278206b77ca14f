//! SPDY/3.1 frames: bytes to values and back. Pure.
//!
//! Guarantees: what is parsed has the length that its kind demands; header blocks stay compressed here,
//! because their compression has a state per connection (see `headers`).

use bytes::{BufMut, Bytes, BytesMut};

/// Length of what precedes every payload.
pub const HEAD: usize = 8;
/// The longest control frame that we take; header blocks of our clients have some hundred bytes.
pub const MAX_CONTROL: usize = 64 << 10;
/// The longest data frame that we send.
pub const MAX_DATA: usize = 32 << 10;

/// `RST_STREAM` status: the peer broke the protocol.
pub const PROTOCOL_ERROR: u32 = 1;
/// `RST_STREAM` status: not accepted.
pub const REFUSED_STREAM: u32 = 3;
/// `RST_STREAM` status: no longer wanted.
pub const CANCEL: u32 = 5;
/// The setting that holds the initial window of a stream, in bytes.
pub const SETTING_INITIAL_WINDOW: u32 = 7;

const FLAG_FIN: u8 = 1;
const FLAG_UNIDIRECTIONAL: u8 = 2;

/// A frame that breaks the protocol.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not version 3.
    #[error("SPDY frame of version {0}; only 3 is spoken here")]
    Version(u16),
    /// A payload shorter or longer than its kind.
    #[error("SPDY control frame of kind {kind} has {length} bytes")]
    Length {
        /// The kind's number.
        kind: u16,
        /// The payload's length.
        length: usize,
    },
}

/// The first eight bytes of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Head {
    /// Bytes of a stream follow.
    Data {
        /// The stream.
        id: u32,
        /// The last ones.
        fin: bool,
        /// How many.
        length: usize,
    },
    /// A control frame follows.
    Control {
        /// Its kind's number.
        kind: u16,
        /// Its flags.
        flags: u8,
        /// Its payload's length.
        length: usize,
    },
}

/// One frame; header blocks are compressed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    SynStream { id: u32, priority: u8, fin: bool, unidirectional: bool, block: Bytes },
    SynReply { id: u32, fin: bool, block: Bytes },
    Reset { id: u32, status: u32 },
    Settings(Vec<(u32, u32)>),
    Ping(u32),
    GoAway { last: u32, status: u32 },
    Headers { id: u32, fin: bool, block: Bytes },
    WindowUpdate { id: u32, delta: u32 },
    Data { id: u32, fin: bool, data: Bytes },
}

fn word(bytes: &[u8]) -> u32 {
    bytes.iter().take(4).fold(0, |number, byte| number << 8 | u32::from(*byte))
}

fn id(bytes: &[u8]) -> u32 {
    word(bytes) & 0x7fff_ffff
}

impl Head {
    /// Reads the first eight bytes of a frame.
    pub fn parse(bytes: [u8; HEAD]) -> Result<Head, FrameError> {
        let length = (word(&bytes[4..]) & 0x00ff_ffff) as usize;
        let flags = bytes[4];
        if bytes[0] & 0x80 == 0 {
            return Ok(Head::Data { id: id(&bytes), fin: flags & FLAG_FIN != 0, length });
        }
        let version = u16::from_be_bytes([bytes[0] & 0x7f, bytes[1]]);
        if version != 3 {
            return Err(FrameError::Version(version));
        }
        Ok(Head::Control { kind: u16::from_be_bytes([bytes[2], bytes[3]]), flags, length })
    }
}

impl Frame {
    /// Reads a control frame's payload. Kinds that we have no use for are `None`.
    pub fn parse_control(kind: u16, flags: u8, payload: Bytes) -> Result<Option<Frame>, FrameError> {
        let length = payload.len();
        let wrong = || FrameError::Length { kind, length };
        let need = |least: usize| if length < least { Err(wrong()) } else { Ok(()) };
        let exact = |all: usize| if length != all { Err(wrong()) } else { Ok(()) };
        let fin = flags & FLAG_FIN != 0;
        Ok(Some(match kind {
            1 => {
                need(10)?;
                Frame::SynStream {
                    id: id(&payload),
                    priority: payload[8] >> 5,
                    fin,
                    unidirectional: flags & FLAG_UNIDIRECTIONAL != 0,
                    block: payload.slice(10..),
                }
            }
            2 => {
                need(4)?;
                Frame::SynReply { id: id(&payload), fin, block: payload.slice(4..) }
            }
            3 => {
                exact(8)?;
                Frame::Reset { id: id(&payload), status: word(&payload[4..]) }
            }
            4 => {
                need(4)?;
                let entries = payload[4..].chunks_exact(8);
                if entries.len() as u32 != word(&payload) || !entries.remainder().is_empty() {
                    return Err(wrong());
                }
                Frame::Settings(entries.map(|e| (word(e) & 0x00ff_ffff, word(&e[4..]))).collect())
            }
            6 => {
                exact(4)?;
                Frame::Ping(word(&payload))
            }
            7 => {
                exact(8)?;
                Frame::GoAway { last: id(&payload), status: word(&payload[4..]) }
            }
            8 => {
                need(4)?;
                Frame::Headers { id: id(&payload), fin, block: payload.slice(4..) }
            }
            9 => {
                exact(8)?;
                Frame::WindowUpdate { id: id(&payload), delta: id(&payload[4..]) }
            }
            _ => return Ok(None),
        }))
    }

    /// Appends the frame's bytes.
    pub fn write(&self, out: &mut BytesMut) {
        let fin_flag = |fin: &bool| if *fin { FLAG_FIN } else { 0 };
        match self {
            Frame::Data { id, fin, data } => {
                out.put_u32(*id);
                out.put_u32(u32::from(fin_flag(fin)) << 24 | data.len() as u32);
                out.put_slice(data);
            }
            Frame::SynStream { id, priority, fin, unidirectional, block } => {
                let flags = fin_flag(fin) | if *unidirectional { FLAG_UNIDIRECTIONAL } else { 0 };
                control(out, 1, flags, 10 + block.len());
                out.put_u32(*id);
                out.put_u32(0);
                out.put_u8(priority << 5);
                out.put_u8(0);
                out.put_slice(block);
            }
            Frame::SynReply { id, fin, block } => {
                control(out, 2, fin_flag(fin), 4 + block.len());
                out.put_u32(*id);
                out.put_slice(block);
            }
            Frame::Reset { id, status } => {
                control(out, 3, 0, 8);
                out.put_u32(*id);
                out.put_u32(*status);
            }
            Frame::Settings(entries) => {
                control(out, 4, 0, 4 + 8 * entries.len());
                out.put_u32(entries.len() as u32);
                for (setting, value) in entries {
                    out.put_u32(*setting);
                    out.put_u32(*value);
                }
            }
            Frame::Ping(number) => {
                control(out, 6, 0, 4);
                out.put_u32(*number);
            }
            Frame::GoAway { last, status } => {
                control(out, 7, 0, 8);
                out.put_u32(*last);
                out.put_u32(*status);
            }
            Frame::Headers { id, fin, block } => {
                control(out, 8, fin_flag(fin), 4 + block.len());
                out.put_u32(*id);
                out.put_slice(block);
            }
            Frame::WindowUpdate { id, delta } => {
                control(out, 9, 0, 8);
                out.put_u32(*id);
                out.put_u32(*delta);
            }
        }
    }
}

fn control(out: &mut BytesMut, kind: u16, flags: u8, length: usize) {
    out.put_u16(0x8003);
    out.put_u16(kind);
    out.put_u32(u32::from(flags) << 24 | length as u32);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(frame: Frame, expected: &[u8]) {
        let mut out = BytesMut::new();
        frame.write(&mut out);
        assert_eq!(out, expected, "{frame:?}");
        let head = Head::parse(out[..HEAD].try_into().expect("eight bytes")).expect("a head");
        let payload = out.freeze().slice(HEAD..);
        match head {
            Head::Data { id, fin, length } => {
                assert_eq!(length, payload.len());
                assert_eq!(Frame::Data { id, fin, data: payload }, frame);
            }
            Head::Control { kind, flags, length } => {
                assert_eq!(length, payload.len());
                assert_eq!(Frame::parse_control(kind, flags, payload), Ok(Some(frame)));
            }
        }
    }

    #[test]
    fn frames_are_byte_exact() {
        let block = Bytes::from_static(b"zz");
        check(Frame::Data { id: 5, fin: true, data: Bytes::from_static(b"hi") }, b"\0\0\0\x05\x01\0\0\x02hi");
        check(
            Frame::SynStream { id: 1, priority: 2, fin: false, unidirectional: true, block: block.clone() },
            b"\x80\x03\0\x01\x02\0\0\x0c\0\0\0\x01\0\0\0\0\x40\0zz",
        );
        check(
            Frame::SynReply { id: 3, fin: true, block: block.clone() },
            b"\x80\x03\0\x02\x01\0\0\x06\0\0\0\x03zz",
        );
        check(Frame::Reset { id: 3, status: CANCEL }, b"\x80\x03\0\x03\0\0\0\x08\0\0\0\x03\0\0\0\x05");
        check(
            Frame::Settings(vec![(SETTING_INITIAL_WINDOW, 65536)]),
            b"\x80\x03\0\x04\0\0\0\x0c\0\0\0\x01\0\0\0\x07\0\x01\0\0",
        );
        check(Frame::Ping(7), b"\x80\x03\0\x06\0\0\0\x04\0\0\0\x07");
        check(Frame::GoAway { last: 9, status: 0 }, b"\x80\x03\0\x07\0\0\0\x08\0\0\0\x09\0\0\0\0");
        check(Frame::Headers { id: 3, fin: false, block }, b"\x80\x03\0\x08\0\0\0\x06\0\0\0\x03zz");
        check(Frame::WindowUpdate { id: 3, delta: 1 << 16 }, b"\x80\x03\0\x09\0\0\0\x08\0\0\0\x03\0\x01\0\0");
    }

    #[test]
    fn what_breaks_the_protocol_is_refused() {
        assert_eq!(Head::parse(*b"\x80\x02\0\x06\0\0\0\x04"), Err(FrameError::Version(2)));
        for (kind, payload) in
            [(1, &b"short"[..]), (3, b"1234567"), (4, b"\0\0\0\x01"), (6, b"12345"), (9, b"")]
        {
            let length = payload.len();
            assert_eq!(
                Frame::parse_control(kind, 0, Bytes::copy_from_slice(payload)),
                Err(FrameError::Length { kind, length })
            );
        }
        assert_eq!(Frame::parse_control(10, 0, Bytes::new()), Ok(None));
    }
}
