//! Runs a small program that answers one question: credential helpers and provider plugins.
//!
//! Guarantees: it ends in time, with all that it started in its process group; what it says is bounded. Its
//! answer appears in no error.

use std::io;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

/// Most bytes of an answer.
const LONGEST: u64 = 1 << 20;
/// Most characters of what it complains about.
const COMPLAINT: usize = 500;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// It cannot be started, or its pipes break.
    #[error("run {program}")]
    Run {
        /// The program.
        program: String,
        /// The system's reason.
        source: io::Error,
    },
    /// It takes too long.
    #[error("{program} did not answer within {seconds} s and was killed")]
    Timeout {
        /// The program.
        program: String,
        /// The limit.
        seconds: u64,
    },
    /// It says no.
    #[error("{program} failed ({status}): {complaint}")]
    Failed {
        /// The program.
        program: String,
        /// How it ended.
        status: std::process::ExitStatus,
        /// Its standard error.
        complaint: String,
    },
    /// It says too much.
    #[error("{program} answers more than {LONGEST} bytes")]
    TooLong {
        /// The program.
        program: String,
    },
}

/// Ends a process group when it goes out of scope.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(pid) = self.0 {
            // Gone already, mostly: then there is nobody to end.
            let _ = kill_process_group(pid, Signal::KILL);
        }
    }
}

/// Asks `program` the question and returns what it answers.
pub async fn ask(
    program: &Path,
    args: &[String],
    env: &[(String, String)],
    question: &[u8],
    limit: Duration,
) -> Result<Vec<u8>, ExecError> {
    let name = || program.display().to_string();
    let failed = |source| ExecError::Run { program: name(), source };
    let mut command = Command::new(program);
    command.args(args).envs(env.iter().map(|(k, v)| (k, v))).current_dir("/").process_group(0);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().map_err(failed)?;
    let _group = Group(child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)));
    let (stdin, stdout, stderr) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
    let work = async {
        let write = async {
            let Some(mut stdin) = stdin else { return Ok(()) };
            match stdin.write_all(question).await {
                // It did not want to read: what it says counts.
                Err(err) if err.kind() != io::ErrorKind::BrokenPipe => Err(err),
                _ => Ok(()),
            }
        };
        let (written, answer, complaint) = tokio::join!(write, read(stdout), read(stderr));
        written?;
        Ok((answer?, complaint?, child.wait().await?))
    };
    let (answer, complaint, status) = match tokio::time::timeout(limit, work).await {
        Ok(done) => done.map_err(failed)?,
        Err(_) => return Err(ExecError::Timeout { program: name(), seconds: limit.as_secs() }),
    };
    if answer.len() as u64 > LONGEST {
        return Err(ExecError::TooLong { program: name() });
    }
    if !status.success() {
        // Docker's helpers complain on their standard output, which holds no secret when they fail.
        let said = if complaint.is_empty() { &answer } else { &complaint };
        let said: String = String::from_utf8_lossy(said).trim().chars().take(COMPLAINT).collect();
        return Err(ExecError::Failed { program: name(), status, complaint: said });
    }
    Ok(answer)
}

async fn read(from: Option<impl AsyncRead + Unpin>) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    if let Some(from) = from {
        from.take(LONGEST + 1).read_to_end(&mut bytes).await?;
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn sh(script: &str, question: &str, limit: Duration) -> Result<String, ExecError> {
        let args = ["-c".to_owned(), script.to_owned()];
        let env = [("WHO".to_owned(), "me".to_owned())];
        let answer = ask(Path::new("/bin/sh"), &args, &env, question.as_bytes(), limit).await?;
        Ok(String::from_utf8(answer).expect("text"))
    }

    #[tokio::test]
    async fn answers_and_complaints() {
        let long = Duration::from_secs(20);
        assert_eq!(sh("cat; echo $WHO", "you ", long).await.expect("an answer"), "you me\n");
        assert_eq!(sh("echo fine", &"x".repeat(1 << 20), long).await.expect("an answer"), "fine\n");
        let err = sh("echo no such thing >&2; exit 3", "", long).await.expect_err("failed").to_string();
        assert!(err.ends_with("no such thing") && err.contains("exit status: 3"), "{err}");
        let err = sh("head -c 3000000 /dev/zero", "", long).await.expect_err("too long");
        assert!(matches!(err, ExecError::TooLong { .. } | ExecError::Failed { .. }), "{err}");
        let none = ask(Path::new("/no/such"), &[], &[], b"", long).await.expect_err("no program");
        assert!(matches!(none, ExecError::Run { .. }));
    }

    #[tokio::test]
    async fn one_that_does_not_end_is_killed_with_its_children() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", file.display());
        let err = sh(&script, "", Duration::from_millis(500)).await.expect_err("too slow");
        assert!(matches!(err, ExecError::Timeout { .. }), "{err}");
        let child: i32 = std::fs::read_to_string(file).expect("a pid").trim().parse().expect("a number");
        let began = std::time::Instant::now();
        let alive = || {
            let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            !stat.is_empty() && !stat.contains(") Z ")
        };
        while alive() {
            assert!(began.elapsed() < Duration::from_secs(10), "its child lives on");
            tokio::task::yield_now().await;
        }
    }
}
