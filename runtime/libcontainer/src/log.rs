//! What went wrong, for whoever called.

use std::fs::File;
use std::io::Write;
use std::path::Path;

use serde_json::json;

/// Writes an error with its causes, each once, to the log and to standard error.
pub fn error(log: Option<&Path>, error: &anyhow::Error) {
    let words = chain(error);
    eprintln!("orlop-libcontainer: {words}");
    let line = json!({ "level": "error", "msg": words });
    let written = log.map(|path| {
        File::options().append(true).create(true).open(path).and_then(|mut file| writeln!(file, "{line}"))
    });
    if let Some(Err(error)) = written {
        eprintln!("orlop-libcontainer: write the log: {error}");
    }
}

/// Causes whose text is in the one before already are left out: libcontainer's errors repeat theirs.
fn chain(error: &anyhow::Error) -> String {
    let mut words = String::new();
    for cause in error.chain() {
        let text = cause.to_string();
        if words.contains(&text) {
            continue;
        }
        if !words.is_empty() {
            words.push_str(": ");
        }
        words.push_str(&text);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn causes_are_said_once() {
        let error = anyhow::anyhow!("no such file").context("open x: no such file").context("create c");
        assert_eq!(chain(&error), "create c: open x: no such file");
    }
}
