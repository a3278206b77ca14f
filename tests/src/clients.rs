//! Programs that a test runs beside the node, in its network namespace.

use std::ffi::OsStr;
use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, bail, ensure};
use serde_json::Value;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};

/// What a program said, and how it ended.
#[derive(Debug, Clone)]
pub struct Ran {
    /// The command line, for messages.
    pub line: String,
    /// Exit code; -1 if a signal ended it.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// The output of a program that succeeded.
    ///
    /// # Errors
    /// It failed: all that it said.
    pub fn ok(self) -> anyhow::Result<String> {
        ensure!(self.code == 0, "`{}` ended with {}:\n{}{}", self.line, self.code, self.stdout, self.stderr);
        Ok(self.stdout)
    }

    /// What a program that failed said on standard error.
    ///
    /// # Errors
    /// It succeeded.
    pub fn err(self) -> anyhow::Result<String> {
        ensure!(self.code != 0, "`{}` succeeded but must not:\n{}", self.line, self.stdout);
        Ok(self.stderr)
    }

    /// The output of a program that succeeded, as JSON.
    ///
    /// # Errors
    /// It failed, or printed something else.
    pub fn json(self) -> anyhow::Result<Value> {
        let line = self.line.clone();
        serde_json::from_str(&self.ok()?).with_context(|| format!("`{line}` printed no JSON"))
    }
}

/// A command in the network namespace `netns`.
pub fn command(netns: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("nsenter");
    // Only the network: `ip netns exec` would also make a mount namespace, where nothing that the
    // daemon pins would outlive it.
    command.arg(format!("--net=/run/netns/{netns}")).arg("--").arg(program).kill_on_drop(true);
    command
}

/// Runs a command to its end, with `input` on its standard input.
pub async fn run(mut command: Command, input: Option<&[u8]>) -> anyhow::Result<Ran> {
    let std = command.as_std();
    let words: Vec<_> = std.get_args().skip(2).map(|word| word.to_string_lossy().into_owned()).collect();
    let line = words.join(" ");
    command.stdin(if input.is_some() { Stdio::piped() } else { Stdio::null() });
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("start `{line}`"))?;
    if let (Some(mut pipe), Some(input)) = (child.stdin.take(), input) {
        let input = input.to_vec();
        tokio::spawn(async move {
            // A program may end without reading everything.
            let _read_or_not = pipe.write_all(&input).await;
        });
    }
    let output = child.wait_with_output().await.with_context(|| format!("wait for `{line}`"))?;
    Ok(Ran {
        line,
        code: output.status.code().unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
    })
}

/// A program that goes on while the test does something else; killed when dropped.
pub struct Running {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
    seen: String,
}

impl Running {
    /// Starts it; its standard error goes where the test's goes.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(mut command: Command) -> anyhow::Result<Running> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().context("start a program")?;
        let stdout = child.stdout.take().context("its output is not ours")?;
        Ok(Running { child, lines: BufReader::new(stdout).lines(), seen: String::new() })
    }

    /// Waits for an output line that contains `text`, and returns it.
    ///
    /// # Errors
    /// The program ended, or twenty seconds passed, without one: what it printed.
    pub async fn line_with(&mut self, text: &str) -> anyhow::Result<String> {
        let find = async {
            while let Some(line) = self.lines.next_line().await? {
                self.seen.push_str(&line);
                self.seen.push('\n');
                if line.contains(text) {
                    return Ok(line);
                }
            }
            bail!("it ended")
        };
        let found = tokio::time::timeout(std::time::Duration::from_secs(20), find).await;
        match found {
            Ok(result) => {
                result.with_context(|| format!("no line with {text:?}; it printed:\n{}", self.seen))
            }
            Err(_) => bail!("no line with {text:?} in 20 s; it printed:\n{}", self.seen),
        }
    }

    /// Writes to its standard input.
    ///
    /// # Errors
    /// It reads no more.
    pub async fn type_in(&mut self, text: &str) -> anyhow::Result<()> {
        let pipe = self.child.stdin.as_mut().context("its standard input is closed")?;
        pipe.write_all(text.as_bytes()).await?;
        Ok(pipe.flush().await?)
    }

    /// Closes its standard input and waits for its end; returns the exit code.
    ///
    /// # Errors
    /// It can't be waited for.
    pub async fn finish(mut self) -> anyhow::Result<i32> {
        drop(self.child.stdin.take());
        Ok(self.child.wait().await?.code().unwrap_or(-1))
    }
}

/// Finds a program in `out/bin` of the checkout or on PATH.
pub fn program(name: &str) -> std::path::PathBuf {
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../out/bin").join(name);
    if built.exists() { built } else { name.into() }
}
