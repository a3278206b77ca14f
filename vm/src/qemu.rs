//! QEMU's command line.

use std::ffi::OsString;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use tokio::process::Command;

use crate::accel::Accel;
use crate::image::Image;

/// A command that the kernel ends when the thread that starts it ends, however that happens.
pub fn mortal(program: &str) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", program]).kill_on_drop(true);
    command
}

/// How writes of a guest reach the host's disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// Flushes are ignored: for guests that are thrown away.
    Unsafe,
    /// A flush of the guest is an fsync here; what was not flushed may be lost when QEMU is killed.
    Writeback,
}

/// A disk of a guest.
#[derive(Debug, Clone)]
pub struct Drive {
    /// Its serial number, by which the guest finds it.
    pub serial: &'static str,
    /// QEMU's description of what is behind it: `file=…,format=…` or a node's name.
    pub backing: Backing,
}

/// What is behind a disk.
#[derive(Debug, Clone)]
pub enum Backing {
    /// A file.
    File {
        /// Where it is.
        path: PathBuf,
        /// `raw` or `qcow2`.
        format: &'static str,
        /// The guest can't write it.
        read_only: bool,
        /// How writes are treated.
        cache: Cache,
    },
    /// A file whose writes and flushes are also recorded, in order, in a log (dm-log-writes' format).
    Logged {
        /// The qcow2 file that the guest reads and writes.
        path: PathBuf,
        /// Where the log goes: a file that exists.
        log: PathBuf,
    },
}

/// A guest's place in the guests' common network.
#[derive(Debug, Clone)]
pub struct Lan {
    /// Multicast group and port by which the QEMUs of one network find each other, on the loopback only.
    pub group: (Ipv4Addr, u16),
    /// The guest's address; its last byte numbers the guest.
    pub address: Ipv4Addr,
}

/// All that decides a guest's hardware.
#[derive(Debug, Clone)]
pub struct Machine {
    /// How it runs.
    pub accel: Accel,
    /// Processors.
    pub cpus: u32,
    /// Memory, in MiB.
    pub memory_mib: u32,
    /// Disks, the root disk first.
    pub drives: Vec<Drive>,
    /// Port on 127.0.0.1 that leads to the guest's sshd.
    pub ssh_port: u16,
    /// Whether the guest reaches what this machine reaches.
    pub outside: bool,
    /// The common network.
    pub lan: Option<Lan>,
    /// The kernel's command line.
    pub kernel_line: String,
    /// Where QEMU listens for QMP.
    pub qmp: PathBuf,
    /// Where the serial console is written.
    pub console: PathBuf,
}

impl Machine {
    /// The arguments for `qemu-system-x86_64`.
    pub fn arguments(&self, image: &Image) -> Vec<OsString> {
        let mut line = Line(Vec::new());
        line.words(&self.accel.arguments());
        line.words(&["-smp", &self.cpus.to_string(), "-m", &self.memory_mib.to_string()]);
        line.words(&["-nodefaults", "-display", "none", "-no-user-config", "-device", "virtio-rng-pci"]);
        line.path("-kernel", "", &image.kernel(), "");
        line.path("-initrd", "", &image.initramfs(), "");
        line.words(&["-append", &self.kernel_line]);
        line.path("-serial", "file:", &self.console, "");
        line.path("-qmp", "unix:", &self.qmp, ",server=on,wait=off");
        for drive in &self.drives {
            line.drive(drive);
        }
        let restrict = if self.outside { "off" } else { "on" };
        let forward = format!("hostfwd=tcp:127.0.0.1:{}-:22", self.ssh_port);
        line.words(&["-netdev", &format!("user,id=host,restrict={restrict},{forward}")]);
        line.words(&["-device", "virtio-net-pci,netdev=host,id=nic-host,romfile=,mac=52:54:00:00:02:15"]);
        if let Some(lan) = &self.lan {
            let (group, port) = lan.group;
            line.words(&["-netdev", &format!("socket,id=lan,mcast={group}:{port},localaddr=127.0.0.1")]);
            let number = lan.address.octets()[3];
            let mac =
                format!("virtio-net-pci,netdev=lan,id=nic-lan,romfile=,mac=52:54:00:00:77:{number:02x}");
            line.words(&["-device", &mac]);
        }
        line.0
    }
}

/// An argument list in the making.
struct Line(Vec<OsString>);

impl Line {
    fn words(&mut self, words: &[&str]) {
        self.0.extend(words.iter().map(OsString::from));
    }

    /// An option whose value has a path in it; a comma in the path is doubled, as QEMU wants it.
    fn path(&mut self, option: &str, before: &str, path: &Path, after: &str) {
        let plain = matches!(option, "-kernel" | "-initrd");
        let text = path.to_string_lossy();
        let text = if plain { text.into_owned() } else { text.replace(',', ",,") };
        self.words(&[option, &format!("{before}{text}{after}")]);
    }

    fn drive(&mut self, drive: &Drive) {
        let serial = drive.serial;
        match &drive.backing {
            Backing::File { path, format, read_only, cache } => {
                let cache = match cache {
                    Cache::Unsafe => "unsafe",
                    Cache::Writeback => "writeback",
                };
                let read_only = if *read_only { "on" } else { "off" };
                let rest = format!(",if=none,id={serial},format={format},readonly={read_only},cache={cache}");
                self.path("-drive", "file=", path, &rest);
            }
            Backing::Logged { path, log } => {
                // Flushes are recorded; this machine's own disk need not wait for them.
                let file =
                    |part| format!("driver=file,cache.no-flush=on,node-name={serial}-{part},filename=");
                self.path("-blockdev", &file("log"), log, "");
                self.path("-blockdev", &file("file"), path, "");
                let data = format!("driver=qcow2,node-name={serial}-data,file={serial}-file");
                self.words(&["-blockdev", &data]);
                let logged = format!(
                    "driver=blklogwrites,node-name={serial},file={serial}-data,log={serial}-log,log-sector-size=512"
                );
                self.words(&["-blockdev", &logged]);
            }
        }
        self.words(&["-device", &format!("virtio-blk-pci,drive={serial},serial={serial}")]);
    }
}
