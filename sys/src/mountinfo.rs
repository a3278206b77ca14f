//! Reading `/proc/PID/mountinfo`.

use std::path::{Path, PathBuf};

/// One line of mountinfo (proc(5)).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountEntry {
    /// Mount id.
    pub id: u32,
    /// Parent's mount id.
    pub parent: u32,
    /// Device, `major:minor`.
    pub device: String,
    /// The directory within the filesystem that is the root of this mount.
    pub root: PathBuf,
    /// Where it is, relative to the reader's root.
    pub target: PathBuf,
    /// Options of this mount.
    pub options: String,
    /// Optional fields, e.g. `shared:1`.
    pub tags: Vec<String>,
    /// Filesystem type.
    pub fstype: String,
    /// Source.
    pub source: String,
    /// Options of the filesystem.
    pub super_options: String,
}

/// The mounts of the calling process.
///
/// # Errors
/// When `/proc/thread-self/mountinfo` cannot be read.
pub fn read() -> std::io::Result<Vec<MountEntry>> {
    Ok(parse(&std::fs::read_to_string("/proc/thread-self/mountinfo")?))
}

/// Parses a mountinfo file; lines that make no sense are left out.
pub fn parse(text: &str) -> Vec<MountEntry> {
    text.lines().filter_map(parse_line).collect()
}

/// The entry that holds `path`: the last one with the longest target that is a prefix of it.
pub fn containing<'a>(entries: &'a [MountEntry], path: &Path) -> Option<&'a MountEntry> {
    entries.iter().filter(|e| path.starts_with(&e.target)).max_by_key(|e| e.target.as_os_str().len())
}

fn parse_line(line: &str) -> Option<MountEntry> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ');
    let mut right = right.split(' ');
    Some(MountEntry {
        id: left.next()?.parse().ok()?,
        parent: left.next()?.parse().ok()?,
        device: left.next()?.to_owned(),
        root: unescape(left.next()?).into(),
        target: unescape(left.next()?).into(),
        options: left.next()?.to_owned(),
        tags: left.map(str::to_owned).collect(),
        fstype: right.next()?.to_owned(),
        source: unescape(right.next()?),
        super_options: right.next().unwrap_or_default().to_owned(),
    })
}

/// Undoes the kernel's `\040` escapes. Bytes that are not UTF-8 become U+FFFD.
fn unescape(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let octal = bytes.get(i + 1..i + 4).filter(|d| d.iter().all(|b| (b'0'..=b'7').contains(b)));
        match octal {
            Some(d) if bytes[i] == b'\\' => {
                out.push(d.iter().fold(0u8, |n, b| n.wrapping_mul(8).wrapping_add(b - b'0')));
                i += 4;
            }
            _ => {
                out.push(bytes[i]);
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_with_escapes_and_tags() {
        let line =
            r"36 35 98:0 /mnt1 /a\040b rw,noatime master:1 shared:2 - ext3 /dev/root rw,errors=continue";
        let entry = &parse(line)[0];
        assert_eq!(entry.target, Path::new("/a b"));
        assert_eq!(entry.root, Path::new("/mnt1"));
        assert_eq!(entry.tags, ["master:1", "shared:2"]);
        assert_eq!((entry.fstype.as_str(), entry.super_options.as_str()), ("ext3", "rw,errors=continue"));
    }

    #[test]
    fn the_longest_target_holds_a_path() {
        let text = "1 0 0:1 / / rw - tmpfs none rw\n2 1 0:2 / /a rw - tmpfs none rw\n";
        let entries = parse(text);
        assert_eq!(containing(&entries, Path::new("/a/b")).unwrap().id, 2);
        assert_eq!(containing(&entries, Path::new("/ab")).unwrap().id, 1);
    }
}
