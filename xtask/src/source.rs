//! Rules about the text of source files.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, ensure};

/// Folders that may say `unsafe`.
const UNSAFE_HOMES: &[&str] = &["sys/", "runtime/keeper/"];
/// The forms in which `unsafe` opens something.
const UNSAFE: &[&str] = &[
    concat!("unsafe", " {"),
    concat!("unsafe", " fn"),
    concat!("unsafe", " impl"),
    concat!("unsafe", " extern"),
];
/// A file is split before it has this many lines, tests not counted.
const MOST_LINES: usize = 600;

/// A call that some folders must not make, and what to do instead.
struct Forbidden {
    text: &'static str,
    except: &'static [&'static str],
    instead: &'static str,
}

const FORBIDDEN: &[Forbidden] = &[
    Forbidden { text: concat!("todo", "!("), except: &[], instead: "finish it, or refuse with an error" },
    Forbidden {
        text: concat!("unimplemented", "!("),
        except: &[],
        instead: "finish it, or refuse with an error",
    },
    Forbidden { text: concat!("dbg", "!("), except: &[], instead: "use tracing" },
    Forbidden { text: concat!("thread::", "sleep"), except: &[], instead: "wait for a condition" },
    Forbidden {
        text: concat!("process::", "exit("),
        except: &["runtime/keeper/src/bin/", "runtime/keeper/src/main.rs"],
        instead: "return an error to main",
    },
    Forbidden {
        text: concat!("#[", "ignore"),
        except: &[],
        instead: "say `skipped: <why>` where a test can't run",
    },
];

/// Checks every Rust file that git knows; returns what is wrong, a line each.
pub fn check() -> anyhow::Result<Vec<String>> {
    let output = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "*.rs"])
        .output()
        .context("run git ls-files")?;
    ensure!(output.status.success(), "git ls-files: {}", String::from_utf8_lossy(&output.stderr));
    let mut wrong = Vec::new();
    for path in String::from_utf8(output.stdout).context("a file name is not UTF-8")?.lines() {
        // A file that git still lists may be gone from the tree.
        if Path::new(path).exists() {
            let text = std::fs::read_to_string(path).with_context(|| format!("read {path}"))?;
            wrong.extend(judge(path, &text));
        }
    }
    Ok(wrong)
}

fn judge(path: &str, text: &str) -> Vec<String> {
    let mut wrong = Vec::new();
    let code: Vec<&str> = text.lines().take_while(|line| line.trim() != "#[cfg(test)]").collect();
    if code.len() > MOST_LINES {
        wrong.push(format!("{path}: {} lines without its tests, at most {MOST_LINES}: split it", code.len()));
    }
    let allowed = UNSAFE_HOMES.iter().any(|home| path.starts_with(home));
    for (number, line) in text.lines().enumerate() {
        let number = number + 1;
        let line = line.split("//").next().unwrap_or_default();
        let opens = UNSAFE.iter().any(|form| line.contains(form));
        if opens && !allowed {
            wrong.push(format!("{path}:{number}: `unsafe` belongs into sys or the keeper"));
        }
        for rule in FORBIDDEN {
            if line.contains(rule.text) && !rule.except.iter().any(|home| path.starts_with(home)) {
                wrong.push(format!("{path}:{number}: {} is not used here: {}", rule.text, rule.instead));
            }
        }
    }
    let is_root = path.ends_with("src/lib.rs") || path.ends_with("src/main.rs");
    if is_root && !allowed && !text.contains("#![forbid(unsafe_code)]") {
        wrong.push(format!("{path}: lacks #![forbid(unsafe_code)]"));
    }
    wrong
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unsafe_outside_its_homes_is_found() {
        let text = concat!("fn f() {\n    unsafe", " { g() }\n}\n");
        assert_eq!(
            judge("image/src/x.rs", text),
            ["image/src/x.rs:2: `unsafe` belongs into sys or the keeper"]
        );
        assert!(judge("sys/src/x.rs", text).is_empty());
    }

    #[test]
    fn tests_do_not_count_as_length_and_comments_not_as_calls() {
        let long = format!("{}#[cfg(test)]\n{}", "\n".repeat(600), "\n".repeat(600));
        assert!(judge("a/src/x.rs", &long).is_empty());
        assert_eq!(judge("a/src/x.rs", &"\n".repeat(601)).len(), 1);
        assert!(judge("a/src/x.rs", concat!("// no thread::", "sleep here")).is_empty());
        assert_eq!(judge("a/src/x.rs", concat!("std::thread::", "sleep(d);")).len(), 1);
    }
}
