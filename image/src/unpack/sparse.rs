//! Maps of sparse files, in the formats GNU tar writes. Pure.

use tar::{GnuExtSparseHeader, GnuHeader};

use super::UnpackError;
use super::archive::decimal;

/// Maps with more segments than this are refused.
const MAX_SEGMENTS: usize = 1 << 18;

/// A stretch of content within a file with holes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Segment {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// Reads the map of the old format: four segments in the header, then blocks with 21 each.
pub(super) fn read_gnu(
    header: &GnuHeader,
    mut next: impl FnMut(&mut [u8; 512]) -> Result<(), UnpackError>,
) -> Result<Result<Vec<Segment>, &'static str>, UnpackError> {
    let mut map = Vec::new();
    let mut push = |segments: &[tar::GnuSparseHeader]| {
        for segment in segments.iter().filter(|s| !s.is_empty()) {
            match (segment.offset(), segment.length()) {
                (Ok(offset), Ok(length)) => map.push(Segment { offset, length }),
                _ => return Err("bad number in a sparse map"),
            }
        }
        if map.len() > MAX_SEGMENTS { Err("sparse map is too long") } else { Ok(()) }
    };
    if let Err(reason) = push(&header.sparse) {
        return Ok(Err(reason));
    }
    let mut more = header.is_extended();
    while more {
        let mut extension = GnuExtSparseHeader::new();
        next(extension.as_mut_bytes())?;
        if let Err(reason) = push(extension.sparse()) {
            return Ok(Err(reason));
        }
        more = extension.is_extended();
    }
    Ok(Ok(map))
}

/// Parses the map of format 0.1: `offset,length,offset,length,…`.
pub(super) fn parse_list(text: &[u8]) -> Result<Vec<Segment>, &'static str> {
    let numbers = text
        .split(|b| *b == b',')
        .map(decimal)
        .collect::<Option<Vec<u64>>>()
        .ok_or("bad number in a sparse map")?;
    if numbers.len() % 2 != 0 || numbers.len() / 2 > MAX_SEGMENTS {
        return Err("bad length of a sparse map");
    }
    Ok(numbers.chunks(2).map(|pair| Segment { offset: pair[0], length: pair[1] }).collect())
}

/// Reads the map of format 1.0, block by block: a count, then pairs, each number on a line.
#[derive(Default)]
pub(super) struct MapReader {
    line: Vec<u8>,
    count: Option<u64>,
    numbers: Vec<u64>,
}

impl MapReader {
    /// Takes a block; gives the map once it is complete. The rest of the last block is padding.
    pub(super) fn push(&mut self, block: &[u8]) -> Result<Option<Vec<Segment>>, &'static str> {
        for byte in block {
            if *byte != b'\n' {
                self.line.push(*byte);
                if self.line.len() > 20 {
                    return Err("bad number in a sparse map");
                }
                continue;
            }
            let number = decimal(&self.line).ok_or("bad number in a sparse map")?;
            self.line.clear();
            match self.count {
                None if number > MAX_SEGMENTS as u64 => return Err("sparse map is too long"),
                None => self.count = Some(number),
                Some(_) => self.numbers.push(number),
            }
            if self.count.is_some_and(|count| self.numbers.len() as u64 == 2 * count) {
                let pairs = self.numbers.chunks(2);
                return Ok(Some(pairs.map(|p| Segment { offset: p[0], length: p[1] }).collect()));
            }
        }
        Ok(None)
    }
}

/// Checks that segments are in order, fit into the file, and use up the stored content.
pub(super) fn check(segments: &[Segment], stored: u64, size: u64) -> Result<(), &'static str> {
    let mut end = 0u64;
    let mut sum = 0u64;
    for segment in segments {
        if segment.offset < end {
            return Err("segments of a sparse map overlap");
        }
        end = segment.offset.checked_add(segment.length).ok_or("sparse map overflows")?;
        sum += segment.length;
    }
    if end > size {
        return Err("sparse map exceeds the file");
    }
    if sum != stored { Err("sparse map does not fit the content") } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps() {
        let two = vec![Segment { offset: 0, length: 3 }, Segment { offset: 10, length: 4 }];
        assert_eq!(parse_list(b"0,3,10,4"), Ok(two.clone()));
        assert_eq!(MapReader::default().push(b"2\n0\n3\n10\n4\n\0\0"), Ok(Some(two.clone())));
        assert_eq!(check(&two, 7, 14), Ok(()));
        assert!(check(&two, 6, 14).is_err());
        assert!(check(&two, 7, 13).is_err());
        assert!(check(&[two[1], two[0]], 7, 14).is_err());
        assert!(check(&[Segment { offset: u64::MAX, length: 2 }], 2, u64::MAX).is_err());
        assert!(parse_list(b"0,3,1").is_err());
        assert!(MapReader::default().push(b"99999999\n").is_err());
    }
}
