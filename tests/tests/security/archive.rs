//! Images that nobody should make.

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, ensure};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

/// One member of a layer, as raw as it needs to be.
#[derive(Debug, Clone)]
pub struct Member {
    /// Its name, unchecked.
    pub name: String,
    /// tar's type flag: `0` file, `2` symbolic link, `5` directory.
    pub kind: u8,
    /// Permission bits.
    pub mode: u32,
    /// Where a link points.
    pub link: String,
    /// A file's content.
    pub data: Vec<u8>,
}

impl Member {
    fn new(kind: u8, name: &str, mode: u32) -> Member {
        let name = name.to_owned();
        Member { name, kind, mode, link: String::new(), data: Vec::new() }
    }

    /// A file.
    pub fn file(name: &str, data: impl Into<Vec<u8>>) -> Member {
        Member { data: data.into(), ..Member::new(b'0', name, 0o755) }
    }

    /// A directory.
    pub fn dir(name: &str) -> Member {
        Member::new(b'5', name, 0o755)
    }

    /// A symbolic link.
    pub fn symlink(name: &str, to: &str) -> Member {
        Member { link: to.to_owned(), ..Member::new(b'2', name, 0o777) }
    }

    /// The same with other permission bits.
    pub fn mode(self, mode: u32) -> Member {
        Member { mode, ..self }
    }
}

/// A tar archive of these members.
pub fn tar(members: &[Member]) -> Vec<u8> {
    let mut out = Vec::new();
    for member in members {
        let mut header = [0_u8; 512];
        let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
        put(0, member.name.as_bytes());
        put(100, format!("{:07o}", member.mode).as_bytes());
        put(108, b"0000000");
        put(116, b"0000000");
        put(124, format!("{:011o}", member.data.len()).as_bytes());
        put(136, b"00000000000");
        put(148, b"        ");
        put(156, &[member.kind]);
        put(157, member.link.as_bytes());
        put(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        out.extend_from_slice(&header);
        out.extend_from_slice(&member.data);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

/// `sha256:<hex>`.
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A docker-save archive: an image of these layers, with this `config` (`Env`, `User`, …).
pub fn saved(name: &str, config: Value, layers: &[Vec<u8>]) -> Vec<u8> {
    let diff_ids: Vec<_> = layers.iter().map(|layer| digest(layer)).collect();
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
        "config": config, "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": [],
    });
    let names: Vec<_> = (0..layers.len()).map(|number| format!("layer{number}.tar")).collect();
    let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": names}]);
    let mut members = vec![
        Member::file("manifest.json", manifest.to_string()),
        Member::file("config.json", config.to_string()),
    ];
    members.extend(layers.iter().zip(&names).map(|(layer, name)| Member::file(name, layer.clone())));
    tar(&members)
}

/// The attack program, compiled once for each run.
pub fn program() -> anyhow::Result<&'static Path> {
    static PROGRAM: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let made = PROGRAM.get_or_init(|| compile().map_err(|error| format!("{error:#}")));
    made.as_deref().map_err(|error| anyhow::anyhow!(error.clone()))
}

fn compile() -> anyhow::Result<PathBuf> {
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/security/attack.c");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("attack-{}", std::process::id()));
    let mut gcc = std::process::Command::new("gcc");
    gcc.args(["-O2", "-static", "-Wall", "-Wno-format-truncation", "-o"]).arg(&program).arg(source);
    let said = gcc.output().context("start gcc (`make test` installs build-essential)")?;
    ensure!(said.status.success(), "gcc: {}", String::from_utf8_lossy(&said.stderr));
    Ok(program)
}

/// The layer that every hostile image begins with: the attack program, a user, some directories.
pub fn base() -> anyhow::Result<Vec<Member>> {
    let passwd = "root:x:0:0:root:/:/attack\nweb:x:1000:1000::/:/attack\n1001:x:0:0::/:/attack\n";
    Ok(vec![
        Member::dir("etc"),
        Member::file("etc/passwd", passwd).mode(0o644),
        Member::file("etc/group", "root:x:0:\nweb:x:1000:\n").mode(0o644),
        Member::dir("tmp").mode(0o1777),
        Member::file("attack", std::fs::read(program()?)?),
    ])
}
