//! Which accelerator QEMU can use here, found out by trying: `/dev/kvm` may exist and still hang every guest.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::sync::OnceCell;

use crate::image::Image;
use crate::qemu;

/// What the initramfs prints when the kernel's command line has `vm.probe`.
const ALIVE: &str = "the probe is alive";
/// With a usable KVM the probe takes about a second.
const PATIENCE: Duration = Duration::from_secs(6);

/// How QEMU runs a guest's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accel {
    /// The processor runs them.
    Kvm,
    /// QEMU translates them: ten to twenty times slower, works everywhere.
    Tcg,
}

impl Accel {
    /// The accelerator for this machine: tried once per process. `ORLOP_VM_ACCEL=kvm|tcg` decides without trying.
    ///
    /// # Errors
    /// The variable has another value.
    pub async fn chosen(image: &Image) -> anyhow::Result<Accel> {
        static CHOSEN: OnceCell<Accel> = OnceCell::const_new();
        CHOSEN.get_or_try_init(|| choose(image)).await.copied()
    }

    /// Its part of QEMU's command line.
    pub fn arguments(self) -> [&'static str; 4] {
        match self {
            Accel::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Accel::Tcg => ["-accel", "tcg,thread=multi", "-cpu", "max"],
        }
    }
}

async fn choose(image: &Image) -> anyhow::Result<Accel> {
    match std::env::var("ORLOP_VM_ACCEL").as_deref() {
        Ok("kvm") => return Ok(Accel::Kvm),
        Ok("tcg") => return Ok(Accel::Tcg),
        Ok(other) => bail!("ORLOP_VM_ACCEL={other} is neither kvm nor tcg"),
        Err(_) => {}
    }
    if !Path::new("/dev/kvm").exists() {
        return Ok(Accel::Tcg);
    }
    match probe(image).await {
        Ok(()) => Ok(Accel::Kvm),
        Err(err) => {
            eprintln!("vm: KVM is not used: {err:#}");
            Ok(Accel::Tcg)
        }
    }
}

/// Boots a guest that only says that it lives.
async fn probe(image: &Image) -> anyhow::Result<()> {
    let mut command = qemu::mortal("qemu-system-x86_64");
    command.args(Accel::Kvm.arguments());
    command.args(["-m", "256", "-nodefaults", "-display", "none", "-serial", "stdio", "-no-reboot"]);
    command.arg("-kernel").arg(image.kernel()).arg("-initrd").arg(image.initramfs());
    command.args(["-append", "console=ttyS0 quiet panic=-1 vm.probe"]);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().context("start QEMU")?;
    let output = child.stdout.take().context("QEMU has no output")?;
    let mut complaints = child.stderr.take().context("QEMU has no standard error")?;
    let seen = tokio::time::timeout(PATIENCE, async {
        let mut lines = BufReader::new(output).lines();
        while let Some(line) = lines.next_line().await.context("read the probe's console")? {
            if line.contains(ALIVE) {
                return Ok(());
            }
        }
        let mut said = String::new();
        complaints.read_to_string(&mut said).await.context("read what QEMU says")?;
        bail!("the guest of the probe ended at once: {}", said.lines().next().unwrap_or("without a word"))
    });
    let seen =
        seen.await.unwrap_or_else(|_| bail!("a trivial guest did not boot within {} s", PATIENCE.as_secs()));
    child.start_kill().ok();
    // A guest that hangs inside the kernel can be beyond SIGKILL; then it is told, not waited for.
    if tokio::time::timeout(Duration::from_secs(5), child.wait()).await.is_err() {
        eprintln!("vm: the probe's QEMU does not end; it is left to the kernel");
    }
    seen
}
