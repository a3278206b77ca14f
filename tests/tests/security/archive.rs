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
    /// tar's type flag: `0` file, `1` hard link, `2` symbolic link, `3` character device, `5` directory, `6` pipe,
    /// `x` extensions of the next one.
    pub kind: u8,
    /// Permission bits.
    pub mode: u32,
    /// Where a link points.
    pub link: String,
    /// A file's content.
    pub data: Vec<u8>,
    /// The size that its header says, if not that of the content.
    pub size: Option<usize>,
}

impl Member {
    fn new(kind: u8, name: &str, mode: u32) -> Member {
        let name = name.to_owned();
        Member { name, kind, mode, link: String::new(), data: Vec::new(), size: None }
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

    /// A hard link.
    pub fn hard_link(name: &str, to: &str) -> Member {
        Member { link: to.to_owned(), ..Member::new(b'1', name, 0o644) }
    }

    /// A character device or a pipe; devices have the numbers of `/dev/zero`.
    pub fn special(kind: u8, name: &str) -> Member {
        Member::new(kind, name, 0o666)
    }

    /// Extensions of the member that follows.
    pub fn extensions(records: &[(&str, &str)]) -> Member {
        let record = |(key, value): &(&str, &str)| {
            // The length counts its own digits.
            let rest = key.len() + value.len() + 3;
            let whole = (1..).map(|digits| rest + digits).find(|all| rest + all.to_string().len() == *all);
            format!("{} {key}={value}\n", whole.unwrap_or_default())
        };
        let data = records.iter().map(record).collect::<String>().into_bytes();
        Member { data, ..Member::new(b'x', "extensions", 0o644) }
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
        put(124, format!("{:011o}", member.size.unwrap_or(member.data.len())).as_bytes());
        put(136, b"00000000000");
        put(148, b"        ");
        put(156, &[member.kind]);
        put(157, member.link.as_bytes());
        put(257, b"ustar\x0000");
        put(329, b"0000001\x000000005\0");
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
    let config = configuration(config, layers);
    let names: Vec<_> = (0..layers.len()).map(|number| format!("layer{number}.tar")).collect();
    let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": names}]);
    let mut members = vec![
        Member::file("manifest.json", manifest.to_string()),
        Member::file("config.json", config.to_string()),
    ];
    members.extend(layers.iter().zip(&names).map(|(layer, name)| Member::file(name, layer.clone())));
    tar(&members)
}

fn configuration(config: Value, layers: &[Vec<u8>]) -> Value {
    let diff_ids: Vec<_> = layers.iter().map(|layer| digest(layer)).collect();
    json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux",
        "config": config, "rootfs": {"type": "layers", "diff_ids": diff_ids}, "history": [],
    })
}

/// An OCI layout of the same, with these annotations on manifest and index.
pub fn layout(name: &str, config: Value, layers: &[Vec<u8>], annotations: &Value) -> Vec<u8> {
    let config = configuration(config, layers).to_string().into_bytes();
    let descriptor =
        |kind: &str, blob: &[u8]| json!({"mediaType": kind, "digest": digest(blob), "size": blob.len()});
    let of_layers: Vec<_> =
        layers.iter().map(|layer| descriptor("application/vnd.oci.image.layer.v1.tar", layer)).collect();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json", "layers": of_layers,
        "config": descriptor("application/vnd.oci.image.config.v1+json", &config), "annotations": annotations,
    })
    .to_string()
    .into_bytes();
    let mut entry = descriptor("application/vnd.oci.image.manifest.v1+json", &manifest);
    entry["annotations"] = annotations.clone();
    entry["annotations"]["io.containerd.image.name"] = name.into();
    let index = json!({"schemaVersion": 2, "manifests": [entry]}).to_string();
    let mut members = vec![
        Member::file("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#),
        Member::file("index.json", index),
    ];
    let blobs = layers.iter().chain([&config, &manifest]);
    members.extend(blobs.map(|blob| {
        let name = digest(blob).replace(':', "/");
        Member::file(&format!("blobs/{name}"), blob.clone())
    }));
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
