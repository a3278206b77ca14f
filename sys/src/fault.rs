//! Steps that a test can make fail, or at which it can make this process die.
//!
//! With debug assertions only, and only where `ORLOP_FAULTS` names a directory when the process starts: each step that
//! is passed is appended to its file `passed`, a name a line, and the one that its file `armed` names fails. That file
//! holds `error <n> <name>`, `kill <n> <name>` or `wait <n> <name>`: the n-th passing of that step from then on fails,
//! or the process kills itself there, or it stays there until somebody opens the named pipe `hold` for writing. What has
//! struck is taken off: `armed` becomes `struck`. Where a step may be told to wait, its thread must be one that may block.
//!
//! Guarantees: nothing of it is in a release build.

/// A step called `name` is about to be made.
///
/// # Errors
/// A test asked for one here; it names the step.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn point(_name: &'static str) -> std::io::Result<()> {
    Ok(())
}

/// Whether a step can fail at all: that is a build with debug assertions that was told where faults are armed.
#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn possible() -> bool {
    false
}

#[cfg(debug_assertions)]
pub use armed::{point, possible};

#[cfg(debug_assertions)]
mod armed {
    use std::collections::HashMap;
    use std::io::{self, Write};
    use std::path::{Path, PathBuf};
    use std::sync::{Mutex, OnceLock, PoisonError};

    /// How often each step was passed since something was armed, by what stood in the file.
    type Passed = HashMap<String, u32>;

    static DIRECTORY: OnceLock<Option<PathBuf>> = OnceLock::new();
    static PASSED: Mutex<Option<Passed>> = Mutex::new(None);

    /// A step called `name` is about to be made.
    ///
    /// # Errors
    /// A test asked for one here; it names the step.
    pub fn point(name: &'static str) -> io::Result<()> {
        match directory() {
            None => Ok(()),
            Some(directory) => {
                let strike = {
                    let mut passed = PASSED.lock().unwrap_or_else(PoisonError::into_inner);
                    passing(directory, name, passed.get_or_insert_default())?
                };
                match strike {
                    Strike::Nothing => Ok(()),
                    Strike::Wait => std::fs::File::open(directory.join("hold")).map(drop),
                    Strike::Error => Err(io::Error::other(format!("a test let this fail: {name}"))),
                    Strike::Kill => {
                        // Whatever comes of it, the process must not go on.
                        let _ = rustix::process::kill_process(
                            rustix::process::getpid(),
                            rustix::process::Signal::KILL,
                        );
                        std::process::abort();
                    }
                }
            }
        }
    }

    /// Whether a step can fail at all: that is a build with debug assertions that was told where faults are armed.
    pub fn possible() -> bool {
        directory().is_some()
    }

    fn directory() -> Option<&'static Path> {
        DIRECTORY.get_or_init(|| std::env::var_os("ORLOP_FAULTS").map(PathBuf::from)).as_deref()
    }

    enum Strike {
        Nothing,
        Error,
        Kill,
        Wait,
    }

    fn passing(directory: &Path, name: &str, passed: &mut Passed) -> io::Result<Strike> {
        let mut trace = std::fs::File::options().create(true).append(true).open(directory.join("passed"))?;
        writeln!(trace, "{name}")?;
        let armed = directory.join("armed");
        let wanted = match std::fs::read_to_string(&armed) {
            Ok(wanted) => wanted,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                passed.clear();
                return Ok(Strike::Nothing);
            }
            Err(error) => return Err(error),
        };
        let mut words = wanted.trim_end().splitn(3, ' ');
        let (what, number, step) = (words.next(), words.next(), words.next());
        if step != Some(name) {
            return Ok(Strike::Nothing);
        }
        let count = passed.entry(wanted.clone()).or_default();
        *count += 1;
        if number.and_then(|number| number.parse().ok()) != Some(*count) {
            return Ok(Strike::Nothing);
        }
        passed.clear();
        std::fs::rename(&armed, directory.join("struck"))?;
        Ok(match what {
            Some("kill") => Strike::Kill,
            Some("wait") => Strike::Wait,
            _ => Strike::Error,
        })
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn the_nth_passing_is_struck_once() {
            let dir = tempfile::tempdir().expect("a directory");
            let mut passed = Passed::new();
            let mut pass = |name| matches!(passing(dir.path(), name, &mut passed), Ok(Strike::Error));
            assert!(!pass("a b"));
            std::fs::write(dir.path().join("armed"), "error 2 a b\n").expect("write");
            assert!(!pass("a b") && !pass("c") && pass("a b") && !pass("a b"));
            assert!(dir.path().join("struck").exists());
            std::fs::write(dir.path().join("armed"), "error 1 a b").expect("write");
            assert!(pass("a b"), "counted anew");
            let trace = std::fs::read_to_string(dir.path().join("passed")).expect("read");
            assert_eq!(trace, "a b\na b\nc\na b\na b\na b\n");
            assert!(point("nobody asked").is_ok());
        }
    }
}
