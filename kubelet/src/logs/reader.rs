//! Reads a container's log as `kubectl logs` asks for it, across rotations, and follows it by inotify.
//!
//! Guarantees: memory is bounded whatever the log's size; a link in the log's place is refused; while
//! following, no line is lost when the file is rotated.

use std::collections::VecDeque;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use rustix::fs::inotify::WatchFlags;
use rustix::fs::{Mode, OFlags};

use super::format;
use crate::inotify::Inotify;

/// What part of a log is wanted.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    /// Wait for more until the container ends.
    pub follow: bool,
    /// The last so many lines.
    pub tail: Option<usize>,
    /// At most so many bytes.
    pub limit: Option<u64>,
    /// Nothing older.
    pub since: Option<Timestamp>,
    /// The time before each line.
    pub timestamps: bool,
    /// Only stdout (`false`) or stderr (`true`).
    pub only_stderr: Option<bool>,
}

/// Turns records into what the client sees.
#[derive(Debug)]
pub struct Writer {
    options: Options,
    left: Option<u64>,
    /// The last record of stdout and of stderr was partial.
    inside: [bool; 2],
}

impl Writer {
    /// For these options.
    pub fn new(options: Options) -> Writer {
        Writer { left: options.limit, inside: [false; 2], options }
    }

    /// Whether the byte limit is used up.
    pub fn full(&self) -> bool {
        self.left == Some(0)
    }

    /// Adds what one line of the log contributes.
    pub fn line(&mut self, line: &[u8], out: &mut Vec<u8>) {
        let Some(record) = format::parse(line) else { return };
        if self.options.only_stderr.is_some_and(|only| only != record.stderr)
            || self.options.since.is_some_and(|since| record.time.1 < since)
        {
            return;
        }
        let mut text = Vec::new();
        let inside = &mut self.inside[usize::from(record.stderr)];
        if self.options.timestamps && !*inside {
            text.extend_from_slice(record.time.0.as_bytes());
            text.push(b' ');
        }
        text.extend_from_slice(record.text);
        if !record.partial {
            text.push(b'\n');
        }
        *inside = record.partial;
        if let Some(left) = &mut self.left {
            text.truncate(usize::try_from(*left).unwrap_or(usize::MAX));
            *left -= text.len() as u64;
        }
        out.extend_from_slice(&text);
    }
}

/// A log opened for reading: its rotated parts, oldest first, and the live file.
pub struct Log {
    path: PathBuf,
    live: BufReader<File>,
    inode: u64,
    rest: Vec<u8>,
    start: VecDeque<Vec<u8>>,
}

/// Opens a regular file; a link or anything else is refused.
pub fn open_regular(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(fd) => File::from(fd),
        Err(rustix::io::Errno::LOOP) => {
            return Err(io::Error::new(
                io::ErrorKind::PermissionDenied,
                format!("{} is a symbolic link: refused", path.display()),
            ));
        }
        Err(err) => return Err(err.into()),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!("{} is not a regular file: refused", path.display()),
        ));
    }
    Ok(file)
}

/// Rotated, uncompressed parts of a log, oldest first: `0.log.20261121-090000`.
pub fn rotated(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(dir), Some(name)) = (path.parent(), path.file_name()) else { return Ok(Vec::new()) };
    let prefix = format!("{}.", name.to_string_lossy());
    let mut parts: Vec<PathBuf> = fs::read_dir(dir)?
        .filter_map(|e| e.ok().map(|e| e.path()))
        .filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with(&prefix)))
        .collect();
    parts.sort();
    Ok(parts)
}

impl Log {
    /// Opens the log and goes to where the options begin. Blocks on file I/O.
    pub fn open(path: &Path, options: &Options) -> io::Result<Log> {
        let live = open_regular(path)?;
        let inode = live.metadata()?.ino();
        let mut log = Log {
            path: path.into(),
            live: BufReader::with_capacity(64 << 10, live),
            inode,
            rest: Vec::new(),
            start: VecDeque::new(),
        };
        let mut files = Vec::new();
        for part in rotated(path)? {
            // One that goes away between list and open was rotated out.
            files.extend(open_regular(&part).ok());
        }
        match options.tail {
            Some(0) => {
                log.live.seek(SeekFrom::End(0))?;
            }
            Some(lines) => log.go_to_tail(files, lines)?,
            None => {
                for file in files {
                    let mut reader = BufReader::new(file);
                    while let Some(line) = read_line(&mut reader)? {
                        log.start.push_back(line);
                        if log.start.len() > 200_000 {
                            log.start.pop_front(); // Older lines than that are not worth the memory.
                        }
                    }
                }
            }
        }
        Ok(log)
    }

    fn go_to_tail(&mut self, files: Vec<File>, lines: usize) -> io::Result<()> {
        let (offset, found) = tail_offset(self.live.get_mut(), lines)?;
        self.live.seek(SeekFrom::Start(offset))?;
        let mut missing = lines - found;
        let mut before: VecDeque<Vec<u8>> = VecDeque::new();
        for mut file in files.into_iter().rev() {
            if missing == 0 {
                break;
            }
            let (offset, found) = tail_offset(&mut file, missing)?;
            file.seek(SeekFrom::Start(offset))?;
            let mut reader = BufReader::new(file);
            let mut part = VecDeque::new();
            while let Some(line) = read_line(&mut reader)? {
                part.push_back(line);
            }
            missing -= found;
            part.append(&mut before);
            before = part;
        }
        self.start = before;
        Ok(())
    }

    /// The next complete line that is there now.
    pub fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        if let Some(line) = self.start.pop_front() {
            return Ok(Some(line));
        }
        self.live.read_until(b'\n', &mut self.rest)?;
        if self.rest.last() != Some(&b'\n') {
            return Ok(None); // The rest of the line is still to come.
        }
        let mut line = std::mem::take(&mut self.rest);
        line.pop();
        Ok(Some(line))
    }

    /// If the file was rotated, goes on with its successor.
    pub fn reopen_if_rotated(&mut self) -> io::Result<bool> {
        let Ok(meta) = fs::symlink_metadata(&self.path) else { return Ok(false) };
        if meta.ino() == self.inode {
            return Ok(false);
        }
        let file = open_regular(&self.path)?;
        self.inode = file.metadata()?.ino();
        self.live = BufReader::with_capacity(64 << 10, file);
        self.rest.clear();
        Ok(true)
    }
}

fn read_line(reader: &mut impl BufRead) -> io::Result<Option<Vec<u8>>> {
    let mut line = Vec::new();
    if reader.read_until(b'\n', &mut line)? == 0 {
        return Ok(None);
    }
    if line.last() == Some(&b'\n') {
        line.pop();
    }
    Ok(Some(line))
}

/// Where the last `lines` full lines of a file begin, and how many there are. Lines are counted by full
/// records: a line in several records counts once.
fn tail_offset(file: &mut File, lines: usize) -> io::Result<(u64, usize)> {
    let size = file.metadata()?.len();
    let (mut end, mut found, mut offset) = (size, 0, size);
    let mut tail: Vec<u8> = Vec::new();
    // Reads backwards in blocks; `tail` is the part of a line whose beginning is in an earlier block.
    while end > 0 {
        let begin = end.saturating_sub(64 << 10);
        let mut block = vec![0; usize::try_from(end - begin).unwrap_or(0)];
        file.seek(SeekFrom::Start(begin))?;
        file.read_exact(&mut block)?;
        block.extend_from_slice(&tail);
        let mut upto = block.len();
        while let Some(at) = block[..upto.saturating_sub(1)].iter().rposition(|b| *b == b'\n') {
            if !step(&block[at + 1..upto], begin + at as u64 + 1, lines, &mut found, &mut offset) {
                return Ok((offset, found));
            }
            upto = at + 1;
        }
        tail = block[..upto].to_vec();
        end = begin;
    }
    step(&tail, 0, lines, &mut found, &mut offset);
    Ok((offset, found))
}

/// Counts the record that begins at `at`; false once there are enough lines.
fn step(record: &[u8], at: u64, lines: usize, found: &mut usize, offset: &mut u64) -> bool {
    if record.is_empty() {
        return true;
    }
    let line = record.strip_suffix(b"\n").unwrap_or(record);
    let partial = format::parse(line).is_some_and(|r| r.partial);
    if !partial {
        if *found == lines {
            return false;
        }
        *found += 1;
    }
    *offset = at;
    true
}

/// Watches the directory of a log for new lines and rotations.
pub fn watch(path: &Path) -> io::Result<Inotify> {
    let dir = path.parent().unwrap_or(path);
    Inotify::new(dir, WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVED_TO)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(path: &Path, options: Options) -> String {
        let mut log = Log::open(path, &options).expect("open");
        let (mut writer, mut out) = (Writer::new(options), Vec::new());
        while let Some(line) = log.next().expect("read") {
            writer.line(&line, &mut out);
        }
        String::from_utf8(out).expect("utf-8")
    }

    #[test]
    fn tails_reach_into_rotated_parts_and_partial_lines_count_once() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("0.log");
        let t = "2026-11-21T09:00:0";
        fs::write(
            dir.path().join("0.log.20261121-090000"),
            format!("{t}1Z stdout F one\n{t}2Z stderr F two\n"),
        )
        .expect("write");
        fs::write(
            &path,
            format!("{t}3Z stdout P th\n{t}3Z stdout F ree\n{t}4Z stdout F four\n{t}5Z stdout F unfin"),
        )
        .expect("write");
        let all = Options::default();
        assert_eq!(read(&path, all.clone()), "one\ntwo\nthree\nfour\n");
        assert_eq!(read(&path, Options { tail: Some(4), ..all.clone() }), "two\nthree\nfour\n");
        assert_eq!(read(&path, Options { tail: Some(0), ..all.clone() }), "");
        assert_eq!(read(&path, Options { limit: Some(5), ..all.clone() }), "one\nt");
        assert_eq!(read(&path, Options { only_stderr: Some(true), ..all.clone() }), "two\n");
        assert_eq!(
            read(&path, Options { timestamps: true, tail: Some(3), ..all.clone() }),
            format!("{t}3Z three\n{t}4Z four\n")
        );
        let since = Some("2026-11-21T09:00:04Z".parse().expect("a time"));
        assert_eq!(read(&path, Options { since, ..all }), "four\n");
    }

    #[test]
    fn links_are_refused() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let path = dir.path().join("0.log");
        std::os::unix::fs::symlink("/etc/passwd", &path).expect("link");
        let err = Log::open(&path, &Options::default()).err().expect("refused");
        assert_eq!(err.kind(), io::ErrorKind::PermissionDenied);
    }
}
