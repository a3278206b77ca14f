//! One guest: boot, commands, files, and the accidents that tests give it.
//!
//! Guarantees: QEMU ends when the guest is dropped, or with the process.
//! Assumes: the caller's thread lives as long as the guest (see the crate's words on that).

use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};
use serde_json::json;
use tokio::process::Child;
use tokio::sync::Mutex;

use crate::accel::Accel;
use crate::disk;
use crate::image::Image;
use crate::qemu::{Backing, Cache, Drive, Lan, Machine, mortal};
use crate::ssh::{Connection, Ran, Ssh};
use crate::{outage, place, qmp};

/// How long a guest may take to boot; with systemd and an emulated processor it is half a minute, on a machine that
/// has much other work several.
const BOOT: Duration = Duration::from_secs(480);
/// What a guest prints on its console when sshd listens.
const READY: &str = "guest: ready";
/// How long a command in a guest may take, unless said otherwise.
const COMMAND: Duration = Duration::from_secs(240);
/// How long a cut of the power waits for something that it can destroy.
const HOLD: Duration = Duration::from_secs(2);

/// The guest's first process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Init {
    /// A shell script: mounts, network, sshd. Boots in seconds.
    Plain,
    /// systemd, as on a Debian machine.
    Systemd,
}

/// What a guest is made of.
#[derive(Debug, Clone)]
pub struct GuestOptions {
    /// Its host name.
    pub name: String,
    /// Its first process.
    pub init: Init,
    /// Processors.
    pub cpus: u32,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// Swap, in MiB; 0 for none.
    pub swap_mib: u64,
    /// The disk that it sees at `/share`.
    pub share: Option<PathBuf>,
    /// The disk that it sees at `/data`.
    pub data: Option<Backing>,
    /// Its place in the guests' common network.
    pub lan: Option<Lan>,
    /// Whether it reaches what this machine reaches.
    pub outside: bool,
    /// Whether it keeps what it flushed to its root disk when it is killed.
    pub durable: bool,
    /// More words for the kernel.
    pub kernel: String,
}

impl Default for GuestOptions {
    fn default() -> Self {
        GuestOptions {
            name: "guest".into(),
            init: Init::Plain,
            cpus: 2,
            memory_mib: 2048,
            swap_mib: 256,
            share: None,
            data: None,
            lan: None,
            outside: false,
            durable: false,
            kernel: String::new(),
        }
    }
}

impl GuestOptions {
    /// A plain guest of this name.
    pub fn named(name: &str) -> GuestOptions {
        GuestOptions { name: name.into(), ..GuestOptions::default() }
    }
}

/// A network that only guests are in. Make one, give its places to guests.
#[derive(Debug, Clone)]
pub struct Network {
    group: (Ipv4Addr, u16),
}

impl Network {
    /// A network of this process's own.
    ///
    /// # Errors
    /// No free port.
    pub fn new() -> anyhow::Result<Network> {
        let id = std::process::id();
        let group = Ipv4Addr::new(239, 77, (id >> 8) as u8, id as u8);
        let port = std::net::UdpSocket::bind(("127.0.0.1", 0)).context("find a port")?.local_addr()?.port();
        Ok(Network { group: (group, port) })
    }

    /// The place number `number` (1 to 254): the address is 10.77.0.NUMBER in 10.77.0.0/24.
    pub fn place(&self, number: u8) -> Lan {
        Lan { group: self.group, address: Ipv4Addr::new(10, 77, 0, number) }
    }
}

/// A virtual machine that has booted.
pub struct Guest {
    options: GuestOptions,
    image: Image,
    machine: Machine,
    dir: PathBuf,
    ssh: Ssh,
    /// QEMU and the connection; `None` while it is off.
    running: Mutex<Option<(Child, Connection)>>,
}

impl Guest {
    /// Boots a guest and waits until commands can run in it.
    ///
    /// # Errors
    /// QEMU does not start, or nobody answers in time; the end of the serial console is in the error.
    pub async fn boot(options: GuestOptions) -> anyhow::Result<Guest> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let image = Image::ready()?;
        let accel = Accel::chosen(&image).await?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let dir = place::run_directory()?.join(format!("{}-{number}", options.name));
        std::fs::create_dir_all(&dir).with_context(|| format!("make {}", dir.display()))?;
        let port = free_port()?;
        let ssh = Ssh::new(image.key(), port)?;
        let machine = Machine {
            accel,
            cpus: options.cpus,
            memory_mib: options.memory_mib,
            drives: drives(&options, &image, &dir)?,
            ssh_port: port,
            outside: options.outside,
            lan: options.lan.clone(),
            kernel_line: kernel_line(&options),
            qmp: ssh.sockets().join("qmp"),
            console: dir.join("console"),
        };
        let guest = Guest { options, image, machine, dir, ssh, running: Mutex::new(None) };
        guest.power_on().await?;
        Ok(guest)
    }

    /// Its host name.
    pub fn name(&self) -> &str {
        &self.options.name
    }

    /// How it runs.
    pub fn accel(&self) -> Accel {
        self.machine.accel
    }

    /// Runs a bash script as root; any exit code will do. `/share/bin` is in the path.
    ///
    /// # Errors
    /// The guest does not answer, or not within four minutes.
    pub async fn run(&self, script: &str) -> anyhow::Result<Ran> {
        self.ssh.run(script, &[], COMMAND).await
    }

    /// Runs a bash script that has to end with 0, and returns what it printed.
    ///
    /// # Errors
    /// As for [`Guest::run`], or the script's failure.
    pub async fn ok(&self, script: &str) -> anyhow::Result<String> {
        let short: String = script.chars().take(200).collect();
        self.run(script).await?.ok().with_context(|| format!("on {}: {short}", self.name()))
    }

    /// The same with another patience.
    ///
    /// # Errors
    /// As for [`Guest::ok`].
    pub async fn ok_within(&self, patience: Duration, script: &str) -> anyhow::Result<String> {
        let short: String = script.chars().take(200).collect();
        self.ssh
            .run(script, &[], patience)
            .await?
            .ok()
            .with_context(|| format!("on {}: {short}", self.name()))
    }

    /// Reads a file as a number.
    ///
    /// # Errors
    /// There is no such file, or something else in it.
    pub async fn number(&self, path: &str) -> anyhow::Result<u64> {
        let text = self.ok(&format!("cat '{path}'")).await?;
        text.parse().with_context(|| format!("{path} says {text:?}"))
    }

    /// Reads a file in a directory as a number.
    ///
    /// # Errors
    /// As for [`Guest::number`].
    pub async fn number_in(&self, directory: &str, file: &str) -> anyhow::Result<u64> {
        self.number(&format!("{directory}/{file}")).await
    }

    /// Writes a file (and makes its directory).
    ///
    /// # Errors
    /// The guest's words.
    pub async fn write(&self, path: &str, bytes: &[u8]) -> anyhow::Result<()> {
        let script = format!("mkdir -p \"$(dirname '{path}')\" && cat > '{path}'");
        self.ssh.run(&script, bytes, COMMAND).await?.ok().map(|_| ()).with_context(|| format!("write {path}"))
    }

    /// Brings files and directories here, below `target`. What does not exist is left out.
    ///
    /// # Errors
    /// They can't be read or written.
    pub async fn fetch(&self, paths: &[&str], target: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(target).with_context(|| format!("make {}", target.display()))?;
        let list = paths.join(" ");
        let script = format!("tar -C / -cz --ignore-failed-read {list} 2>/dev/null | base64 -w0");
        let text = self.ssh.run(&script, &[], COMMAND).await?.stdout;
        let archive = target.join("fetched.tar.gz");
        std::fs::write(target.join("fetched.b64"), text).context("write what was fetched")?;
        place::tool(std::process::Command::new("bash").current_dir(target).args([
            "-c",
            "base64 -d fetched.b64 > fetched.tar.gz && tar -xzf fetched.tar.gz --no-same-owner && rm fetched.*",
        ]))
        .with_context(|| format!("unpack {}", archive.display()))
        .map(|_| ())
    }

    /// Makes a unix socket here that leads to the one at `remote` in the guest. It lasts until the guest's next boot.
    ///
    /// # Errors
    /// The guest does not answer.
    pub async fn forward(&self, remote: &str) -> anyhow::Result<PathBuf> {
        self.ssh.forward(remote).await
    }

    /// A shell, or another command, on this terminal; returns when it ends.
    ///
    /// # Errors
    /// ssh can't be started.
    pub fn shell(&self, script: &str) -> anyhow::Result<std::process::ExitStatus> {
        self.ssh.interactive(script).status().context("start ssh")
    }

    /// Reboots it in good order and waits for it.
    ///
    /// # Errors
    /// It does not come up again.
    pub async fn reboot(&self) -> anyhow::Result<()> {
        let (before, boots) = (self.boot_id().await?, self.boots());
        let word = match self.options.init {
            Init::Plain => "kill -TERM 1",
            Init::Systemd => "systemctl reboot",
        };
        // The connection may end before the answer.
        self.run(&format!("({word}) >/dev/null 2>&1 &")).await.ok();
        let mut running = self.running.lock().await;
        let (qemu, old) = running.take().context("the guest is off")?;
        let connection = self.connect(boots + 1).await?;
        drop(old);
        *running = Some((qemu, connection));
        ensure!(self.boot_id().await? != before, "it is still the old boot");
        Ok(())
    }

    /// Pulls the plug: QEMU is killed. What the guest did not flush may be lost; on a disk that forgets, this waits up
    /// to two seconds for something to lose.
    ///
    /// # Errors
    /// It is off already, was not booted as durable, or QEMU does not end.
    pub async fn cut_power(&self) -> anyhow::Result<()> {
        ensure!(self.options.durable, "{} would lose its root disk: boot it as durable", self.name());
        let (mut qemu, connection) = self.running.lock().await.take().context("the guest is off")?;
        if let Some(Backing::Logged { log, .. }) = &self.options.data {
            let pid =
                qemu.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?)).context("QEMU has ended")?;
            hold(pid, log).await?;
        }
        qemu.kill().await.context("kill QEMU")?;
        drop(connection);
        Ok(())
    }

    /// Starts it after [`Guest::cut_power`], on the same disks.
    ///
    /// # Errors
    /// As for [`Guest::boot`].
    pub async fn power_on(&self) -> anyhow::Result<()> {
        let mut running = self.running.lock().await;
        ensure!(running.is_none(), "{} is on", self.name());
        let mut command = mortal("qemu-system-x86_64");
        command.args(self.machine.arguments(&self.image)).stdin(Stdio::null()).stdout(Stdio::null());
        let said = self.dir.join("qemu.log");
        command.stderr(std::fs::File::create(&said).context("make QEMU's log")?);
        // What the last boot said must not be read as this one's; the first has none.
        std::fs::remove_file(&self.machine.console).ok();
        let mut qemu = command.spawn().context("start QEMU")?;
        let connection = tokio::select! {
            connection = self.connect(1) => connection?,
            status = qemu.wait() => {
                let said = std::fs::read_to_string(&said).unwrap_or_default();
                anyhow::bail!("QEMU ended: {}: {}; {}", status.context("wait for QEMU")?, said.trim(), self.console_end());
            }
        };
        *running = Some((qemu, connection));
        Ok(())
    }

    /// Stops its processors; nothing in it goes on until [`Guest::thaw`].
    ///
    /// # Errors
    /// QEMU says no.
    pub async fn freeze(&self) -> anyhow::Result<()> {
        qmp::command(&self.machine.qmp, "stop", json!({})).await.map(|_| ())
    }

    /// Lets a frozen guest go on.
    ///
    /// # Errors
    /// QEMU says no.
    pub async fn thaw(&self) -> anyhow::Result<()> {
        qmp::command(&self.machine.qmp, "cont", json!({})).await.map(|_| ())
    }

    /// Plugs the cable to the common network in or out. Commands and files have a way of their own.
    ///
    /// # Errors
    /// QEMU says no, or it is in no such network.
    pub async fn set_link(&self, up: bool) -> anyhow::Result<()> {
        ensure!(self.options.lan.is_some(), "{} is in no common network", self.name());
        qmp::command(&self.machine.qmp, "set_link", json!({ "name": "nic-lan", "up": up })).await.map(|_| ())
    }

    /// What identifies this boot.
    ///
    /// # Errors
    /// The guest does not answer.
    pub async fn boot_id(&self) -> anyhow::Result<String> {
        self.ok("cat /proc/sys/kernel/random/boot_id").await
    }

    /// Saves what helps to see why a test failed: serial console, kernel log, core dumps, files of the caller's
    /// choice.
    ///
    /// # Errors
    /// The console can't be copied. A guest that does not answer is no error here.
    pub async fn save(&self, files: &[&str], target: &Path) -> anyhow::Result<()> {
        std::fs::create_dir_all(target).with_context(|| format!("make {}", target.display()))?;
        let console = &self.machine.console;
        std::fs::copy(console, target.join("console"))
            .with_context(|| format!("copy {}", console.display()))?;
        let saved = async {
            let seen =
                self.run("dmesg; ps axf -o pid,ppid,stat,wchan:20,rss,args; cat /proc/mounts; df").await?;
            std::fs::write(target.join("system"), seen.stdout).context("write the system's state")?;
            let mut all = vec!["/cores"];
            all.extend_from_slice(files);
            self.fetch(&all, target).await
        };
        if let Err(err) =
            tokio::time::timeout(Duration::from_secs(60), saved).await.unwrap_or_else(|err| Err(err.into()))
        {
            eprintln!("vm: {}: not all could be saved: {err:#}", self.name());
        }
        Ok(())
    }

    /// Waits until the guest has said `boots` times since QEMU started that it is ready, then connects.
    async fn connect(&self, boots: usize) -> anyhow::Result<Connection> {
        let ready = crate::eventually_within("the guest to boot", BOOT, || async {
            ensure!(self.boots() >= boots, "it is not ready");
            Ok(())
        });
        ready.await.with_context(|| self.console_end())?;
        self.ssh.connect(BOOT).await.with_context(|| self.console_end())
    }

    /// Whether its kernel found that a processor stood still. An emulated guest with several processors may do so on a
    /// machine that has much other work; then nothing that runs in it is to blame.
    pub fn stalled(&self) -> bool {
        let console = self.console();
        ["soft lockup", "detected stalls"].iter().any(|words| console.contains(words))
    }

    /// How often it has become ready since QEMU started.
    fn boots(&self) -> usize {
        self.console().matches(READY).count()
    }

    /// All that it said on its serial console; nothing before QEMU made the file.
    fn console(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.machine.console).unwrap_or_default()).into_owned()
    }

    fn console_end(&self) -> String {
        let text = self.console();
        let lines: Vec<_> = text.lines().collect();
        format!("the console of {}:\n{}", self.name(), lines[lines.len().saturating_sub(20)..].join("\n"))
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // QEMU is killed by its handle's drop. Its files take much room.
        std::fs::remove_dir_all(&self.dir).ok();
    }
}

/// Stops QEMU itself in a moment in which its log of writes has no hole, and has writes that were not flushed if such a
/// moment comes soon. (QEMU's own way to stop a guest flushes its disks, which the guest never asked for.)
async fn hold(qemu: Pid, log: &Path) -> anyhow::Result<()> {
    let begin = Instant::now();
    let mut moments = tokio::time::interval(Duration::from_millis(5));
    moments.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        moments.tick().await;
        stop(qemu).await?;
        match outage::unflushed(log)? {
            Some(1..) => return Ok(()),
            Some(0) if begin.elapsed() > HOLD => return Ok(()),
            None if begin.elapsed() > 2 * HOLD => bail!("QEMU's log of writes has a hole that stays"),
            _ => kill_process(qemu, Signal::CONT).context("let QEMU go on")?,
        }
    }
}

/// Stops a child process; returns when all its threads stand still.
async fn stop(child: Pid) -> anyhow::Result<()> {
    let begin = Instant::now();
    kill_process(child, Signal::STOP).context("stop QEMU")?;
    let options = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG;
    while waitid(WaitId::Pid(child), options).context("wait for QEMU to stop")?.is_none() {
        ensure!(begin.elapsed() < HOLD, "QEMU does not stop; has it ended?");
        tokio::task::yield_now().await;
    }
    Ok(())
}

fn drives(options: &GuestOptions, image: &Image, dir: &Path) -> anyhow::Result<Vec<Drive>> {
    let root = dir.join("root.qcow2");
    disk::layer(image, &root)?;
    let cache = if options.durable { Cache::Writeback } else { Cache::Unsafe };
    let file =
        |path: &Path, format, read_only, cache| Backing::File { path: path.into(), format, read_only, cache };
    let mut drives = vec![Drive { serial: "root", backing: file(&root, "qcow2", false, cache) }];
    if let Some(share) = &options.share {
        drives.push(Drive { serial: "share", backing: file(share, "raw", true, Cache::Unsafe) });
    }
    if options.swap_mib > 0 {
        let swap = dir.join("swap");
        disk::empty(&swap, options.swap_mib)?;
        drives.push(Drive { serial: "swap", backing: file(&swap, "raw", false, Cache::Unsafe) });
    }
    if let Some(data) = &options.data {
        drives.push(Drive { serial: "data", backing: data.clone() });
    }
    Ok(drives)
}

fn kernel_line(options: &GuestOptions) -> String {
    let init = match options.init {
        Init::Plain => "/sbin/plain-init",
        Init::Systemd => "/sbin/init",
    };
    // A dead kernel must not reboot by itself: the console's last words would be followed by a new boot.
    let mut line = format!("console=ttyS0 quiet panic=0 init={init} apparmor=1 security=apparmor psi=1");
    line += &format!(" vm.name={}", options.name);
    if let Some(lan) = &options.lan {
        line += &format!(" vm.lan={}/24", lan.address);
    }
    if !options.kernel.is_empty() {
        line += &format!(" {}", options.kernel);
    }
    line
}

/// A port that nobody has now.
fn free_port() -> anyhow::Result<u16> {
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("find a free port")?;
    Ok(listener.local_addr().context("find a free port")?.port())
}
