//! Commands in a guest, files to and from it, and its unix sockets, all over one ssh connection.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use crate::qemu::mortal;

/// What a command in a guest did.
#[derive(Debug, Clone)]
pub struct Ran {
    /// Its exit code; a signal's number is 128 and more.
    pub code: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Ran {
    /// Its output, without space around it, if it ended with 0.
    ///
    /// # Errors
    /// It ended with another code; all that it printed.
    pub fn ok(self) -> anyhow::Result<String> {
        ensure!(self.code == 0, "exit code {}: {}{}", self.code, self.stdout, self.stderr);
        Ok(self.stdout.trim().to_owned())
    }
}

/// The way into one guest.
#[derive(Debug)]
pub struct Ssh {
    key: PathBuf,
    port: u16,
    /// A directory with a short name, as a socket's path has at most 107 bytes.
    sockets: tempfile::TempDir,
    next: AtomicU32,
}

/// An open connection; it is closed when this is dropped.
#[derive(Debug)]
pub struct Connection(#[expect(dead_code, reason = "held for its drop")] Child);

impl Ssh {
    /// For a guest whose sshd is behind `port` of 127.0.0.1.
    ///
    /// # Errors
    /// No directory for the sockets.
    pub fn new(key: PathBuf, port: u16) -> anyhow::Result<Ssh> {
        let sockets = tempfile::Builder::new().prefix("orlop-vm-").tempdir_in("/tmp");
        Ok(Ssh {
            key,
            port,
            sockets: sockets.context("make a directory for sockets")?,
            next: AtomicU32::new(0),
        })
    }

    /// Connects to the guest's sshd, which listens. Gives up when `patience` is over.
    ///
    /// # Errors
    /// Nobody answers, or not to this key.
    pub async fn connect(&self, patience: Duration) -> anyhow::Result<Connection> {
        let deadline = Instant::now() + patience;
        let mut looks = tokio::time::interval(Duration::from_millis(100));
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while let Err(err) = banner(self.port).await {
            if Instant::now() > deadline {
                return Err(err.context(format!("no ssh within {} s", patience.as_secs())));
            }
            looks.tick().await;
        }
        let control = self.control();
        // A former connection's socket may be left.
        std::fs::remove_file(&control).ok();
        let mut command = mortal("ssh");
        command.args(["-M", "-N"]).args(self.options()).arg("root@127.0.0.1");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start ssh")?;
        while !control.exists() {
            looks.tick().await;
            if let Some(status) = child.try_wait().context("look after ssh")? {
                let mut said = String::new();
                if let Some(mut stderr) = child.stderr.take() {
                    stderr.read_to_string(&mut said).await.context("read what ssh said")?;
                }
                bail!("ssh: {status}: {}", said.trim());
            }
            ensure!(Instant::now() < deadline, "ssh did not log in within {} s", patience.as_secs());
        }
        Ok(Connection(child))
    }

    /// A directory for the sockets of this guest.
    pub fn sockets(&self) -> &Path {
        self.sockets.path()
    }

    /// Runs a bash script in the guest with `input` on its standard input.
    ///
    /// # Errors
    /// The connection is gone, or the script is not done within `patience`.
    pub async fn run(&self, script: &str, input: &[u8], patience: Duration) -> anyhow::Result<Ran> {
        let mut command = Command::new("ssh");
        command.args(self.options()).args(["root@127.0.0.1", script]).kill_on_drop(true);
        command.stdin(if input.is_empty() { Stdio::null() } else { Stdio::piped() });
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().context("start ssh")?;
        let stdin = child.stdin.take();
        let work = async {
            let feed = async {
                if let Some(mut stdin) = stdin {
                    // A script that does not read its input to the end is no failure.
                    stdin.write_all(input).await.ok();
                }
            };
            let (output, ()) = tokio::join!(child.wait_with_output(), feed);
            output.context("wait for ssh")
        };
        let begin = Instant::now();
        let output = tokio::time::timeout(patience, work).await;
        let short: String = script.chars().take(200).collect();
        let Ok(output) = output else { bail!("not done within {} s: {short}", patience.as_secs()) };
        let output = output?;
        if std::env::var_os("ORLOP_VM_VERBOSE").is_some() {
            eprintln!("  {:.2} s: {}", begin.elapsed().as_secs_f64(), short.replace('\n', " "));
        }
        let code = output.status.code().context("ssh was killed")?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let ran = Ran { code, stdout: text(&output.stdout), stderr: text(&output.stderr) };
        // ssh's own failures.
        ensure!(ran.code != 255, "ssh: {} (running: {short})", ran.stderr.trim());
        Ok(ran)
    }

    /// Makes a unix socket here that leads to the one at `remote` in the guest.
    ///
    /// # Errors
    /// The connection is gone.
    pub async fn forward(&self, remote: &str) -> anyhow::Result<PathBuf> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let local = self.sockets.path().join(format!("f{number}"));
        let mut command = Command::new("ssh");
        command.args(self.options()).args(["-O", "forward", "-L"]);
        command.arg(format!("{}:{remote}", local.display())).arg("root@127.0.0.1").stdin(Stdio::null());
        let output = command.output().await.context("start ssh")?;
        ensure!(output.status.success(), "forward {remote}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(local)
    }

    /// A command line for an interactive shell.
    pub fn interactive(&self, script: &str) -> std::process::Command {
        let mut command = std::process::Command::new("ssh");
        command.args(self.options()).args(["-t", "root@127.0.0.1", script]);
        command
    }

    fn control(&self) -> PathBuf {
        self.sockets.path().join("ctl")
    }

    fn options(&self) -> Vec<String> {
        let mut options: Vec<String> = vec!["-i".into(), self.key.display().to_string()];
        options.extend(["-p".into(), self.port.to_string()]);
        options.extend(["-S".into(), self.control().display().to_string()]);
        for option in [
            "UserKnownHostsFile=/dev/null",
            "StrictHostKeyChecking=no",
            "LogLevel=ERROR",
            "BatchMode=yes",
            "IdentitiesOnly=yes",
            "ServerAliveInterval=0",
            // The least work for an emulated processor.
            "Ciphers=aes128-ctr,chacha20-poly1305@openssh.com",
            "Compression=no",
        ] {
            options.extend(["-o".into(), option.into()]);
        }
        options
    }
}

/// Whether an sshd answers. QEMU accepts connections long before there is one; and each needs a process in the guest,
/// so they are few.
async fn banner(port: u16) -> anyhow::Result<()> {
    let look = async {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).await?;
        let mut start = [0; 4];
        stream.read_exact(&mut start).await?;
        anyhow::Ok(start)
    };
    let start = tokio::time::timeout(Duration::from_secs(60), look).await.context("sshd is silent")??;
    ensure!(&start == b"SSH-", "not an sshd");
    Ok(())
}
