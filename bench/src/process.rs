//! Programs that the run starts, and waiting for what they do.
//!
//! Guarantees: a [`Daemon`] that is dropped is killed; only processes started here are ever signalled.
//! Assumes: what outlives its daemon (keeper, shims, containers) dies with the PID namespace of the script.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};

/// How much of a log an error shows.
const TAIL: usize = 25;

/// A program that serves until it is ended.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
    name: String,
}

impl Daemon {
    /// Starts it; its output goes to the end of `log`.
    ///
    /// # Errors
    /// It can't be started.
    pub fn start(name: &str, program: &Path, args: &[&str], log: &Path) -> anyhow::Result<Daemon> {
        let out = std::fs::File::options().create(true).append(true).open(log);
        let out = out.with_context(|| format!("open {}", log.display()))?;
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out).kill_on_drop(true);
        let child = command.spawn().with_context(|| format!("start {}", program.display()))?;
        Ok(Daemon { child, log: log.to_owned(), name: name.to_owned() })
    }

    /// Its process id.
    ///
    /// # Errors
    /// It has ended.
    pub fn pid(&self) -> anyhow::Result<u32> {
        self.child.id().with_context(|| format!("{} has ended; it said:\n{}", self.name, self.tail()))
    }

    /// Fails if it has ended.
    ///
    /// # Errors
    /// It has; the end of its log.
    pub fn still_runs(&mut self) -> anyhow::Result<()> {
        match self.child.try_wait()? {
            Some(status) => bail!("{} ended with {status}; it said:\n{}", self.name, self.tail()),
            None => Ok(()),
        }
    }

    /// Waits until `look` gives `Ok`, and returns that.
    ///
    /// # Errors
    /// It ended, or `patience` is over: what `look` said last, and the end of the log.
    pub async fn until<T, F>(
        &mut self,
        what: &str,
        patience: Duration,
        every: Duration,
        mut look: impl FnMut() -> F,
    ) -> anyhow::Result<T>
    where
        F: Future<Output = anyhow::Result<T>>,
    {
        let start = Instant::now();
        let mut looks = tokio::time::interval(every);
        loop {
            looks.tick().await;
            self.still_runs()?;
            match look().await {
                Ok(found) => return Ok(found),
                Err(last) if start.elapsed() > patience => {
                    bail!(
                        "waited {} s for {what}: {last:#}; the log ends:\n{}",
                        patience.as_secs(),
                        self.tail()
                    )
                }
                Err(_) => {}
            }
        }
    }

    /// Asks it to end and waits; kills it after ten seconds.
    ///
    /// # Errors
    /// It had ended before, or had to be killed.
    pub async fn end(mut self) -> anyhow::Result<()> {
        let pid = i32::try_from(self.pid()?).ok().and_then(Pid::from_raw).context("no process id")?;
        kill_process(pid, Signal::TERM).with_context(|| format!("end {}", self.name))?;
        match tokio::time::timeout(Duration::from_secs(10), self.child.wait()).await {
            Ok(status) => status.map(|_| ()).with_context(|| format!("wait for {}", self.name)),
            Err(_) => {
                self.child.kill().await.with_context(|| format!("kill {}", self.name))?;
                bail!("{} did not end within 10 s of SIGTERM", self.name)
            }
        }
    }

    /// SIGKILLs it and waits.
    ///
    /// # Errors
    /// It had ended before.
    pub async fn kill(mut self) -> anyhow::Result<()> {
        self.still_runs()?;
        self.child.kill().await.with_context(|| format!("kill {}", self.name))
    }

    fn tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<_> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL)..].join("\n")
    }
}

/// Runs a program to its end, and returns its standard output.
///
/// # Errors
/// It can't be started, or fails: what it said.
pub async fn run(program: &Path, args: &[&str]) -> anyhow::Result<String> {
    let mut command = Command::new(program);
    command.args(args).stdin(Stdio::null()).kill_on_drop(true);
    let line = || format!("{} {}", program.display(), args.join(" "));
    let output = command.output().await.with_context(|| format!("start {}", line()))?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "`{}` ended with {}: {}", line(), output.status, said.trim());
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Finds a program on PATH or in the places for administrators' programs.
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|dir| dir.join(name)).find(|file| file.is_file())
}
