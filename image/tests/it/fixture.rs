//! Images made for a test, and a place for a store.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use image::{Digest, Limits, Options, Platform, RegistryConfig, Store};
use serde_json::json;

/// One entry of a layer.
pub struct Item<'a> {
    pub name: &'a str,
    pub kind: tar::EntryType,
    pub mode: u32,
    pub owner: (u64, u64),
    pub link: &'a str,
    pub content: &'a [u8],
    pub pax: &'a [(&'a str, &'a [u8])],
}

pub fn file<'a>(name: &'a str, content: &'a str) -> Item<'a> {
    let content = content.as_bytes();
    Item { name, kind: tar::EntryType::Regular, mode: 0o644, owner: (0, 0), link: "", content, pax: &[] }
}

pub fn dir(name: &str, mode: u32) -> Item<'_> {
    Item { kind: tar::EntryType::Directory, mode, ..file(name, "") }
}

pub fn symlink<'a>(name: &'a str, link: &'a str) -> Item<'a> {
    Item { kind: tar::EntryType::Symlink, link, mode: 0o777, ..file(name, "") }
}

pub fn hard_link<'a>(name: &'a str, link: &'a str) -> Item<'a> {
    Item { kind: tar::EntryType::Link, link, ..file(name, "") }
}

/// A header with exactly these bytes as its name: the `tar` crate refuses hostile ones.
pub fn raw_header(item: &Item, size: u64) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    {
        let gnu = header.as_gnu_mut().expect("made so");
        gnu.name[..item.name.len()].copy_from_slice(item.name.as_bytes());
        gnu.linkname[..item.link.len()].copy_from_slice(item.link.as_bytes());
    }
    header.set_entry_type(item.kind);
    header.set_mode(item.mode);
    header.set_uid(item.owner.0);
    header.set_gid(item.owner.1);
    header.set_mtime(1_700_000_000);
    header.set_size(size);
    if item.kind == tar::EntryType::Char {
        header.set_device_major(1).expect("a GNU header");
        header.set_device_minor(3).expect("a GNU header");
    }
    header.set_cksum();
    header
}

/// An uncompressed layer.
pub fn tar_of(items: &[Item]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for item in items {
        if !item.pax.is_empty() {
            builder.append_pax_extensions(item.pax.iter().copied()).expect("written");
        }
        builder.append(&raw_header(item, item.content.len() as u64), item.content).expect("written");
    }
    builder.into_inner().expect("written")
}

pub fn gzip(data: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(data).expect("written");
    encoder.finish().expect("written")
}

pub fn zstd(data: &[u8]) -> Vec<u8> {
    zstd::encode_all(data, 1).expect("compressed")
}

pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// An image as a registry has it.
#[derive(Default, Clone)]
pub struct Content {
    /// Digest to content: layers and configurations.
    pub blobs: BTreeMap<String, Vec<u8>>,
    /// Digest to media type and content: manifests and indexes.
    pub manifests: BTreeMap<String, (String, Vec<u8>)>,
    pub config: String,
    pub manifest: String,
    /// Digests of the layers as they are served, lowest first.
    pub layers: Vec<String>,
}

/// Makes an image of layers: each as it is served, and the archive in it.
pub fn image_of(layers: &[(Vec<u8>, Vec<u8>)]) -> Content {
    let mut content = Content::default();
    let host = Platform::host();
    let diff_ids: Vec<String> = layers.iter().map(|(_, tar)| Digest::of(tar).to_string()).collect();
    let config = json!({
        "architecture": host.architecture, "os": "linux",
        "config": { "Cmd": ["/bin/hello"], "Env": ["A=b"] },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
    });
    let config = serde_json::to_vec(&config).expect("plain data");
    let mut descriptors = Vec::new();
    for (served, _) in layers {
        let digest = Digest::of(served).to_string();
        descriptors.push(json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": served.len(),
        }));
        content.layers.push(digest.clone());
        content.blobs.insert(digest, served.clone());
    }
    content.config = Digest::of(&config).to_string();
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": content.config, "size": config.len() },
        "layers": descriptors,
    });
    content.blobs.insert(content.config.clone(), config);
    content.manifest = content.add_manifest(OCI_MANIFEST, serde_json::to_vec(&manifest).expect("plain data"));
    content
}

impl Content {
    pub fn add_manifest(&mut self, media_type: &str, bytes: Vec<u8>) -> String {
        let digest = Digest::of(&bytes).to_string();
        self.manifests.insert(digest.clone(), (media_type.to_owned(), bytes));
        digest
    }
}

/// A small image of two layers.
pub fn two_layers() -> Content {
    let lower =
        tar_of(&[dir("etc/", 0o755), file("etc/a", "one"), file("etc/b", "two"), dir("tmp/", 0o1777)]);
    let upper =
        tar_of(&[dir("etc/", 0o755), file("etc/.wh.b", ""), file("etc/c", "three"), file("tmp/x", "y")]);
    image_of(&[(gzip(&lower), lower), (zstd(&upper), upper)])
}

/// An artifact with these files; its configuration is the empty one, which no registry needs to have.
pub fn artifact_of(files: &[(&str, &[u8])]) -> Content {
    let mut content = Content::default();
    let mut layers = Vec::new();
    for (title, bytes) in files {
        let digest = Digest::of(bytes).to_string();
        layers.push(json!({
            "mediaType": "application/octet-stream", "digest": digest, "size": bytes.len(),
            "annotations": { "org.opencontainers.image.title": title },
        }));
        content.layers.push(digest.clone());
        content.blobs.insert(digest, bytes.to_vec());
    }
    let manifest = json!({
        "schemaVersion": 2, "mediaType": OCI_MANIFEST, "artifactType": "application/vnd.example.model",
        "config": { "mediaType": "application/vnd.oci.empty.v1+json", "digest": Digest::of(b"{}"), "size": 2 },
        "layers": layers,
    });
    content.manifest = content.add_manifest(OCI_MANIFEST, serde_json::to_vec(&manifest).expect("plain data"));
    content
}

/// An image whose layers have most of what a layer can have.
pub fn motley() -> Content {
    let big: [(&str, &[u8]); 3] =
        [("GNU.sparse.map", b"4096,3,20000,2"), ("GNU.sparse.size", b"30000"), ("GNU.sparse.name", b"holes")];
    let lower = tar_of(&[
        dir("./", 0o755),
        dir("etc/", 0o750),
        Item { owner: (1000, 70000), mode: 0o4755, ..file("etc/a", "one") },
        file("etc/empty", ""),
        symlink("lib", "usr/lib"),
        dir("usr/lib/", 0o755),
        file("lib/through", "a link"),
        hard_link("etc/hard", "etc/a"),
        Item { pax: &big, ..file("x", "abcde") },
        Item { pax: &[("SCHILY.xattr.user.a", b"b"), ("mtime", b"12.5")], ..file("attributed", "x") },
        Item { kind: tar::EntryType::Char, ..file("null", "") },
        Item { kind: tar::EntryType::Fifo, ..file("pipe", "") },
        dir("tmp/", 0o1777),
    ]);
    let upper = tar_of(&[
        file("etc/.wh.a", ""),
        dir("usr/", 0o700),
        file("usr/.wh..wh..opq", ""),
        file("tmp/implied", "y"),
        file("gone", ""),
    ]);
    // The same name twice: what came first is not in the tree.
    let twice =
        tar_of(&[file("twice", "first"), file("twice", "second"), dir("d", 0o755), file("d", "file")]);
    let served = (gzip(&upper), upper);
    image_of(&[(gzip(&lower), lower), served, (zstd(&twice), twice)])
}

/// Bytes that do not compress.
pub fn noise(length: usize) -> Vec<u8> {
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state as u8
    };
    (0..length).map(|_| next()).collect()
}

/// A store in a directory that goes away with it.
pub struct Place {
    pub dir: tempfile::TempDir,
}

impl Place {
    pub fn new() -> Place {
        Place { dir: tempfile::tempdir().expect("a temporary directory") }
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("images")
    }

    pub fn open(&self) -> Store {
        self.open_with(Limits::default())
    }

    pub fn open_with(&self, limits: Limits) -> Store {
        self.open_as(Options { limits, ..Options::default() })
    }

    /// Opens the store once nobody has it any more: a process that another test is just starting has copies of
    /// this program's descriptors, the lock's among them, until it runs its own program.
    pub fn open_as(&self, options: Options) -> Store {
        let config = RegistryConfig {
            hosts: Some(self.dir.path().join("certs.d")),
            timeout: std::time::Duration::from_secs(5),
            ..RegistryConfig::default()
        };
        let mut opened = None;
        wait_for("the store's lock", || {
            opened = Some(Store::open_with(self.root(), config.clone(), options.clone()));
            !matches!(opened, Some(Err(image::OpenError::Busy { .. })))
        });
        opened.expect("tried").expect("the store opens")
    }

    /// Names in a directory of the store.
    pub fn names(&self, below: &str) -> Vec<String> {
        names(&self.root().join(below))
    }

    /// Waits until staging and trash are empty.
    pub async fn settled(&self) {
        let started = std::time::Instant::now();
        while !self.names("t").is_empty() {
            assert!(started.elapsed().as_secs() < 10, "staging is not emptied");
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    }
}

pub fn names(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).expect("a directory");
    let mut names: Vec<String> =
        entries.map(|e| e.expect("an entry").file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Polls until something is true, ten seconds at most.
pub fn wait_for(what: &str, mut test: impl FnMut() -> bool) {
    let started = std::time::Instant::now();
    while !test() {
        assert!(started.elapsed().as_secs() < 10, "waited in vain for {what}");
        std::thread::yield_now();
    }
}

/// An error with its causes.
pub fn chain(err: &dyn std::error::Error) -> String {
    let mut text = err.to_string();
    let mut source = err.source();
    while let Some(err) = source {
        text = format!("{text}: {err}");
        source = err.source();
    }
    text
}

/// Whether tests that make devices and trusted attributes can run; says so if not.
pub fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        println!("skipped: not root");
    }
    root
}
