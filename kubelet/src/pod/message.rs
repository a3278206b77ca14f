//! Termination messages: what a container left behind to say why it ended.
//!
//! Guarantees: reads a bounded piece of a regular file; a link in its place is refused.

use std::fs::File;
use std::io::Read;

use rustix::fs::{Mode, OFlags};

use super::observed::Seen;
use super::view::{self, PodKey};
use crate::logs;
use crate::shared::Shared;

/// Longest message from a file, in bytes.
const FROM_FILE: u64 = 4096;
/// Longest message from a log: bytes and lines.
const FROM_LOG: (usize, usize) = (2048, 80);

/// The message of an ended container. Blocks on file I/O.
pub fn read(shared: &Shared, pod: &k8s_openapi::api::core::v1::Pod, key: &PodKey, c: &Seen) -> String {
    let path = shared.pod_dir(key).join("containers").join(&c.name).join(c.attempt.to_string());
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let mut text = Vec::new();
    if let Ok(fd) = rustix::fs::open(&path, flags, Mode::empty()) {
        let file = File::from(fd);
        if file.metadata().is_ok_and(|m| m.is_file()) {
            // What can't be read leaves the message empty: there is nobody to tell.
            let _read = file.take(FROM_FILE).read_to_end(&mut text);
        }
    }
    if !text.is_empty() {
        return String::from_utf8_lossy(&text).into_owned();
    }
    let member = view::member(view::spec(pod), &c.name);
    let fallback =
        member.is_some_and(|m| m.spec.termination_message_policy.as_deref() == Some("FallbackToLogsOnError"));
    if fallback && c.exit() != Some(0) {
        let log = logs::paths::run(&shared.config, key, &c.name, c.attempt);
        return logs::tail_text(&log, FROM_LOG.0, FROM_LOG.1);
    }
    String::new()
}
