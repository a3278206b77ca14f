//! How keys and records are laid out on disk.
//!
//! Guarantees: `kv` sorts by key and then by revision; `log` sorts by revision; encoding and
//! decoding are inverse.
//! Assumes: keys hold no zero byte, which [`check`] refuses, so `key 0x00` is a prefix of no
//! other key's entries.

use std::collections::HashSet;

use bytes::Bytes;

use crate::{KeyValue, StoreError, Txn};

const TOMBSTONE: u8 = 0;
const PUT: u8 = 1;
const HEADER: usize = 1 + 8 + 8;

/// One version of one key, as stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Record {
    Tombstone,
    Put { create_revision: u64, version: u64, value: Bytes },
}

impl Record {
    /// The state that this record describes, if it is not a deletion.
    pub(crate) fn into_kv(self, key: Bytes, mod_revision: u64) -> Option<KeyValue> {
        match self {
            Record::Tombstone => None,
            Record::Put { create_revision, version, value } => {
                Some(KeyValue { key, value, create_revision, mod_revision, version })
            }
        }
    }
}

pub(crate) fn encode_record(record: &Record) -> Vec<u8> {
    match record {
        Record::Tombstone => vec![TOMBSTONE],
        Record::Put { create_revision, version, value } => {
            let mut out = Vec::with_capacity(HEADER + value.len());
            out.push(PUT);
            out.extend_from_slice(&create_revision.to_be_bytes());
            out.extend_from_slice(&version.to_be_bytes());
            out.extend_from_slice(value);
            out
        }
    }
}

pub(crate) fn decode_record(raw: &[u8]) -> Option<Record> {
    match *raw.first()? {
        TOMBSTONE => Some(Record::Tombstone),
        PUT if raw.len() >= HEADER => Some(Record::Put {
            create_revision: number(&raw[1..9])?,
            version: number(&raw[9..17])?,
            value: Bytes::copy_from_slice(&raw[HEADER..]),
        }),
        _ => None,
    }
}

/// The `kv` key of one version.
pub(crate) fn kv_key(key: &[u8], revision: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(key.len() + 9);
    out.extend_from_slice(key);
    out.push(0);
    out.extend_from_slice(&revision.to_be_bytes());
    out
}

/// The inverse of [`kv_key`].
pub(crate) fn split_kv_key(raw: &[u8]) -> Option<(&[u8], u64)> {
    let (head, revision) = raw.split_at_checked(raw.len().checked_sub(8)?)?;
    Some((head.strip_suffix(&[0])?, number(revision)?))
}

/// The `log` key of one change.
pub(crate) fn log_key(revision: u64, key: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(8 + key.len());
    out.extend_from_slice(&revision.to_be_bytes());
    out.extend_from_slice(key);
    out
}

/// The inverse of [`log_key`].
pub(crate) fn split_log_key(raw: &[u8]) -> Option<(u64, &[u8])> {
    let (revision, key) = raw.split_at_checked(8)?;
    Some((number(revision)?, key))
}

/// Reads eight bytes, big end first.
pub(crate) fn number(raw: &[u8]) -> Option<u64> {
    raw.try_into().ok().map(u64::from_be_bytes)
}

/// The least byte string greater than all that start with `prefix`; none if there is no such.
pub(crate) fn prefix_end(prefix: &[u8]) -> Option<Vec<u8>> {
    let last = prefix.iter().rposition(|b| *b != 0xff)?;
    let mut end = prefix[..=last].to_vec();
    end[last] += 1;
    Some(end)
}

/// Refuses transactions whose keys cannot be stored.
pub(crate) fn check(txn: &Txn) -> Result<(), StoreError> {
    let bad = |key: &Bytes, why| StoreError::BadKey { key: String::from_utf8_lossy(key).into_owned(), why };
    let mut seen = HashSet::new();
    for key in txn.compares.iter().map(|c| &c.key).chain(txn.ops.iter().map(|o| o.key())) {
        if key.is_empty() {
            return Err(bad(key, "it is empty"));
        }
        if key.contains(&0) {
            return Err(bad(key, "it holds a zero byte"));
        }
        if key.len() > 4096 {
            return Err(bad(key, "it is longer than 4096 bytes"));
        }
    }
    for op in &txn.ops {
        if !seen.insert(op.key()) {
            return Err(bad(op.key(), "it is changed twice in one transaction"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn keys_round_trip(key in proptest::collection::vec(1u8..=255, 1..40), revision: u64) {
            let kv = kv_key(&key, revision);
            prop_assert_eq!(split_kv_key(&kv), Some((&key[..], revision)));
            let log = log_key(revision, &key);
            prop_assert_eq!(split_log_key(&log), Some((revision, &key[..])));
        }

        #[test]
        fn versions_of_a_key_are_neighbours(
            a in proptest::collection::vec(1u8..=255, 1..6), b in proptest::collection::vec(1u8..=255, 1..6),
            r1: u64, r2: u64,
        ) {
            prop_assume!(a < b);
            prop_assert!(kv_key(&a, r1) < kv_key(&b, r2));
        }

        #[test]
        fn records_round_trip(create_revision: u64, version: u64, value: Vec<u8>) {
            let record = Record::Put { create_revision, version, value: value.into() };
            prop_assert_eq!(decode_record(&encode_record(&record)), Some(record));
        }
    }

    #[test]
    fn odd_records_are_refused() {
        assert_eq!(decode_record(&[]), None);
        assert_eq!(decode_record(&[PUT, 0]), None);
        assert_eq!(decode_record(&[7]), None);
        assert_eq!(decode_record(&encode_record(&Record::Tombstone)), Some(Record::Tombstone));
    }

    #[test]
    fn prefix_ends() {
        assert_eq!(prefix_end(b"ab"), Some(b"ac".to_vec()));
        assert_eq!(prefix_end(b"a\xff"), Some(b"b".to_vec()));
        assert_eq!(prefix_end(b"\xff"), None);
        assert_eq!(prefix_end(b""), None);
    }
}
