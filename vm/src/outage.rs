//! A disk that forgets, as a real one may when the power goes: what the guest wrote after its last flush is kept
//! or lost, write by write.
//!
//! QEMU records every write and flush of the disk, in order, in a log (the format of the kernel's dm-log-writes).
//! After the cut, the disk as it was at boot gets all writes up to the last flush, and of the later ones a
//! selection, some of them torn.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};

use crate::disk;
use crate::qemu::Backing;

/// The log's first eight bytes.
const MAGIC: u64 = 0x006a_7366_7773_6872;
/// Of the log and of the disk, in bytes.
const SECTOR: u64 = 512;
/// What a disk writes as a whole, in bytes. (Journals of file systems count on it: a disk that tears a block of theirs
/// can't be mounted.)
const BLOCK: u64 = 4096;
const FLUSH: u64 = 1;
const FUA: u64 = 2;
const DISCARD: u64 = 4;

/// A disk of a guest that loses what was not flushed when its power is cut.
#[derive(Debug)]
pub struct Disk {
    base: PathBuf,
    layer: PathBuf,
    log: PathBuf,
}

/// What became of a disk's writes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Writes up to the last flush: all kept.
    pub flushed: usize,
    /// Later writes that were kept.
    pub kept: usize,
    /// Later writes of which a part was kept.
    pub torn: usize,
    /// Later writes that were lost.
    pub lost: usize,
}

impl Outcome {
    /// The sum of two.
    pub fn and(self, other: Outcome) -> Outcome {
        Outcome {
            flushed: self.flushed + other.flushed,
            kept: self.kept + other.kept,
            torn: self.torn + other.torn,
            lost: self.lost + other.lost,
        }
    }
}

impl Disk {
    /// Makes an empty disk of `mib` MiB in the directory `dir`.
    ///
    /// # Errors
    /// The files can't be made.
    pub fn new(dir: &Path, mib: u64) -> anyhow::Result<Disk> {
        let new =
            Disk { base: dir.join("data.raw"), layer: dir.join("data.qcow2"), log: dir.join("data.log") };
        disk::empty(&new.base, mib)?;
        new.renew()?;
        Ok(new)
    }

    /// What QEMU is told of it.
    pub fn backing(&self) -> Backing {
        Backing::Logged { path: self.layer.clone(), log: self.log.clone() }
    }

    /// Makes the disk what the cut left of it. Which of the writes that were not flushed survive follows from `seed`.
    /// The guest must be off.
    ///
    /// # Errors
    /// The log can't be read, or is not one.
    pub fn settle(&self, seed: u64) -> anyhow::Result<Outcome> {
        let log = File::open(&self.log).context("open the log of writes")?;
        let (writes, whole) = entries(&log)?;
        ensure!(whole, "the log of writes has a hole: one was under way when the power was cut");
        let base = File::options().write(true).open(&self.base).context("open the disk")?;
        let mut outcome = Outcome::default();
        for (write, fate) in judge(&writes, seed) {
            let bytes = match fate {
                Fate::Flushed => {
                    outcome.flushed += 1;
                    write.bytes
                }
                Fate::Kept => {
                    outcome.kept += 1;
                    write.bytes
                }
                // The first half was done.
                Fate::Torn => {
                    outcome.torn += 1;
                    write.bytes / BLOCK / 2 * BLOCK
                }
                Fate::Lost => {
                    outcome.lost += 1;
                    0
                }
            };
            let mut data = vec![0; usize::try_from(bytes).context("a write is too large")?];
            log.read_exact_at(&mut data, write.data).context("read the log of writes")?;
            base.write_all_at(&data, write.offset).context("write to the disk")?;
        }
        base.sync_all().context("sync the disk")?;
        self.renew()?;
        Ok(outcome)
    }

    /// An empty layer and an empty log for the next boot.
    fn renew(&self) -> anyhow::Result<()> {
        disk::layer_above(&self.base, &self.layer)?;
        File::create(&self.log).map(|_| ()).context("empty the log of writes")
    }
}

/// An entry of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    flags: u64,
    /// Where on the disk.
    offset: u64,
    /// How much.
    bytes: u64,
    /// Where in the log its content is.
    data: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Flushed,
    Kept,
    Torn,
    Lost,
}

/// How many writes the log has after the last flush. `None` while one is under way: the log then has a hole, or breaks
/// off.
///
/// # Errors
/// The log can't be read, or is not one.
pub(crate) fn unflushed(log: &Path) -> anyhow::Result<Option<usize>> {
    let (writes, whole) = entries(&File::open(log).context("open the log of writes")?)?;
    let may_be_lost = |(_, fate): &(Entry, Fate)| *fate != Fate::Flushed;
    Ok(whole.then(|| judge(&writes, 0).iter().filter(|write| may_be_lost(write)).count()))
}

/// Reads the log up to its end or its first hole, and says whether that was its end. (QEMU counts the entries only now
/// and then.)
fn entries(log: &File) -> anyhow::Result<(Vec<Entry>, bool)> {
    let length = log.metadata().context("look at the log of writes")?.len();
    let word = |at: u64| -> anyhow::Result<u64> {
        let mut bytes = [0; 8];
        log.read_exact_at(&mut bytes, at).context("read the log of writes")?;
        Ok(u64::from_le_bytes(bytes))
    };
    if length == 0 {
        return Ok((Vec::new(), true));
    }
    ensure!(length < SECTOR || word(0)? == MAGIC || word(0)? == 0, "this is no log of writes");
    let mut found = Vec::new();
    let mut at = SECTOR;
    while at + SECTOR <= length {
        let (sector, count, flags) = (word(at)?, word(at + 8)?, word(at + 16)?);
        if count == 0 && flags == 0 {
            return Ok((found, false));
        }
        if flags & !(FLUSH | FUA | DISCARD) != 0 {
            bail!("an entry of the log has unknown flags: {flags:#x}");
        }
        let discard = flags & DISCARD != 0;
        let bytes = count * SECTOR;
        let data = at + SECTOR;
        at = if discard { data } else { data + bytes };
        if at > length {
            return Ok((found, false));
        }
        // What was discarded may stay as it was.
        let bytes = if discard { 0 } else { bytes };
        found.push(Entry { flags, offset: sector * SECTOR, bytes, data });
    }
    Ok((found, at == length))
}

/// Which writes survive. Pure.
fn judge(entries: &[Entry], seed: u64) -> Vec<(Entry, Fate)> {
    let flushed = entries.iter().rposition(|entry| entry.flags & FLUSH != 0).unwrap_or(0);
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut fates = Vec::new();
    for (index, entry) in entries.iter().enumerate().filter(|(_, entry)| entry.bytes > 0) {
        // xorshift64: any sequence will do, as long as a seed repeats it.
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let fate = match state >> 32 & 7 {
            _ if index < flushed || entry.flags & FUA != 0 => Fate::Flushed,
            0..=2 => Fate::Kept,
            3 => Fate::Torn,
            _ => Fate::Lost,
        };
        fates.push((*entry, fate));
    }
    fates
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(flags: u64, sector: u64, count: u64) -> Vec<u8> {
        let words = [sector, count, flags, 0];
        let mut bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        bytes.resize(512, 0);
        if flags & DISCARD == 0 {
            bytes
                .extend(vec![u8::try_from(sector).unwrap_or(255); usize::try_from(count * 512).unwrap_or(0)]);
        }
        bytes
    }

    fn log(parts: &[Vec<u8>]) -> Vec<u8> {
        let mut all = MAGIC.to_le_bytes().to_vec();
        all.resize(512, 0);
        parts.iter().for_each(|part| all.extend(part));
        all
    }

    #[test]
    fn flushed_writes_are_kept_and_later_ones_may_be_lost() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("log");
        let mut parts = vec![entry(0, 1, 2), entry(FLUSH, 0, 0)];
        parts.extend((10..74).map(|sector| entry(0, sector, 1)));
        parts.push(entry(FUA, 5, 1));
        std::fs::write(&path, log(&parts))?;
        let (found, whole) = entries(&File::open(&path)?)?;
        assert_eq!((found.len(), whole), (67, true));
        assert_eq!(unflushed(&path)?, Some(64));
        assert_eq!((found[0].offset, found[0].bytes, found[0].data), (512, 1024, 1024));
        let fates = judge(&found, 7);
        assert_eq!(fates, judge(&found, 7), "a seed repeats itself");
        let count = |wanted| fates.iter().filter(|(_, fate)| *fate == wanted).count();
        assert_eq!(count(Fate::Flushed), 2, "before the flush, and forced");
        assert!(count(Fate::Kept) > 5 && count(Fate::Lost) > 5 && count(Fate::Torn) > 0);
        Ok(())
    }

    #[test]
    fn a_log_that_breaks_off_is_read_to_its_end() -> anyhow::Result<()> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join("log");
        let mut bytes = log(&[entry(0, 1, 1), entry(0, 2, 4)]);
        bytes.truncate(bytes.len() - 600);
        std::fs::write(&path, &bytes)?;
        let (found, whole) = entries(&File::open(&path)?)?;
        assert_eq!((found.len(), whole), (1, false));
        assert_eq!(unflushed(&path)?, None, "a write is under way");
        // One that began later is there already.
        std::fs::write(&path, log(&[entry(0, 1, 1), vec![0; 1024], entry(FLUSH, 0, 0)]))?;
        assert_eq!(unflushed(&path)?, None, "a hole");
        std::fs::write(&path, log(&[entry(0, 1, 1), entry(FLUSH, 0, 0)]))?;
        assert_eq!(unflushed(&path)?, Some(0), "the guest was told that all is on the disk");
        std::fs::write(&path, [1; 1024])?;
        assert!(entries(&File::open(&path)?).is_err(), "something else");
        Ok(())
    }
}
