//! The wire format: numbered fields, each a number or a run of bytes.

use super::ReadError;

/// A field's content.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Item<'a> {
    /// A varint or a fixed number.
    Number(u64),
    /// Text, bytes, or a message.
    Bytes(&'a [u8]),
}

impl<'a> Item<'a> {
    pub(super) fn bytes(self, name: &str) -> Result<&'a [u8], ReadError> {
        match self {
            Item::Bytes(b) => Ok(b),
            Item::Number(_) => Err(ReadError::WireType(name.to_owned())),
        }
    }

    pub(super) fn number(self, name: &str) -> Result<u64, ReadError> {
        match self {
            Item::Number(n) => Ok(n),
            Item::Bytes(_) => Err(ReadError::WireType(name.to_owned())),
        }
    }
}

/// The fields of a message, in the order they stand; ends after the first error.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn new(message: &'a [u8]) -> Fields<'a> {
        Fields { rest: message }
    }

    fn read(&mut self) -> Option<(u32, Item<'a>)> {
        let tag = varint(&mut self.rest)?;
        let number = u32::try_from(tag >> 3).ok().filter(|n| *n > 0)?;
        let item = match tag & 7 {
            0 => Item::Number(varint(&mut self.rest)?),
            1 => Item::Number(u64::from_le_bytes(self.rest.split_off(..8)?.try_into().ok()?)),
            2 => {
                let length = usize::try_from(varint(&mut self.rest)?).ok()?;
                Item::Bytes(self.rest.split_off(..length)?)
            }
            5 => Item::Number(u64::from(u32::from_le_bytes(self.rest.split_off(..4)?.try_into().ok()?))),
            _ => return None,
        };
        Some((number, item))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Item<'a>), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        match self.read() {
            Some(field) => Some(Ok(field)),
            None => {
                self.rest = &[];
                Some(Err(ReadError::Malformed))
            }
        }
    }
}

/// Numbers one after another.
pub(super) fn packed(mut bytes: &[u8]) -> impl Iterator<Item = Result<u64, ReadError>> {
    std::iter::from_fn(move || {
        if bytes.is_empty() {
            return None;
        }
        let n = varint(&mut bytes).ok_or(ReadError::Malformed);
        if n.is_err() {
            bytes = &[];
        }
        Some(n)
    })
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut out = 0u64;
    for i in 0..10 {
        let byte = *rest.split_off_first()?;
        out |= u64::from(byte & 0x7f).checked_shl(7 * i)?;
        if byte & 0x80 == 0 {
            return Some(out);
        }
    }
    None
}
