//! Container logs: where they are, how they are read, when they are rotated.

pub mod format;
pub mod paths;
pub mod reader;
pub mod rotate;

use std::path::Path;

/// The last lines of a log as text, without times; for termination messages. Empty if unreadable.
pub fn tail_text(path: &Path, bytes: usize, lines: usize) -> String {
    let options = reader::Options { tail: Some(lines), ..reader::Options::default() };
    let Ok(mut log) = reader::Log::open(path, &options) else { return String::new() };
    let (mut writer, mut out) = (reader::Writer::new(options), Vec::new());
    while let Ok(Some(line)) = log.next() {
        writer.line(&line, &mut out);
    }
    let from = out.len().saturating_sub(bytes);
    String::from_utf8_lossy(&out[from..]).into_owned()
}
