//! What hostile content costs in memory. Each case runs in a process of its own, which tells its peak.

use std::io::Write;
use std::process::Command;

use image::{ErrorKind, Limits, Store};
use serde_json::json;

use crate::fixture::{Content, OCI_MANIFEST, Place, image_of, root};
use crate::server::Server;

const CASE: &str = "ORLOP_MEMORY_CASE";
const REGISTRY: &str = "ORLOP_MEMORY_REGISTRY";
/// Megabytes that a refusal may take beyond a process that does nothing. The program here is not optimised,
/// and its server shares no memory with it.
const MOST: u64 = 60;

/// Not a test by itself: pulls what it is told, and tells kind of error and peak memory.
#[tokio::test(flavor = "multi_thread")]
async fn child() {
    let (Ok(tag), Ok(registry)) = (std::env::var(CASE), std::env::var(REGISTRY)) else { return };
    let place = Place::new();
    let limits = Limits { free_bytes: 64 << 20, ..Limits::default() };
    let options = image::Options { limits, ..image::Options::default() };
    let store = Store::open_with(place.root(), Default::default(), options).expect("the store opens");
    let reference: image::Reference = format!("{registry}/app:{tag}").parse().expect("a name");
    let err = store.pull(&reference, None, None).await.expect_err("refused");
    assert_eq!(err.kind(), ErrorKind::Invalid, "{}", crate::fixture::chain(&err));
    let status = std::fs::read_to_string("/proc/self/status").expect("status");
    let peak = status.lines().find_map(|l| l.strip_prefix("VmHWM:")).expect("a peak");
    println!("peak{}", peak.trim().trim_end_matches(" kB"));
}

/// Peak memory in megabytes of pulling this tag.
fn peak(server: &Server, tag: &str) -> u64 {
    let output = Command::new(std::env::current_exe().expect("this program"))
        .args(["--exact", "memory::child", "--nocapture"])
        .env(CASE, tag)
        .env(REGISTRY, &server.address)
        .output()
        .expect("run");
    let said = String::from_utf8_lossy(&output.stdout);
    let found = said.lines().find_map(|l| l.split("peak").nth(1)?.trim().parse::<u64>().ok());
    found.unwrap_or_else(|| panic!("{tag}: {said}{}", String::from_utf8_lossy(&output.stderr))) >> 10
}

fn gzip_of(mut write: impl FnMut(&mut dyn Write)) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
    write(&mut encoder);
    encoder.finish().expect("written")
}

/// An entry with content that is as long as it says, all zeros.
fn zeros(out: &mut dyn Write, name: &str, megabytes: u64) {
    let mut header = tar::Header::new_gnu();
    header.set_path(name).expect("a path");
    header.set_size(megabytes << 20);
    header.set_mode(0o644);
    header.set_cksum();
    out.write_all(header.as_bytes()).expect("written");
    let piece = vec![0; 1 << 20];
    for _ in 0..megabytes {
        out.write_all(&piece).expect("written");
    }
}

fn manifest(content: &mut Content, document: Vec<u8>) {
    content.manifest = content.add_manifest(OCI_MANIFEST, document);
}

#[tokio::test(flavor = "multi_thread")]
async fn hostile_content_takes_bounded_memory() {
    if !root() {
        return;
    }
    let server = Server::start(Content::default()).await;
    // One part in a thousand: 300 MB of zeros in 300 kB.
    let bomb = gzip_of(|out| zeros(out, "bomb", 300));
    assert!(bomb.len() < 400 << 10, "{} bytes", bomb.len());
    server.add("gzip-bomb", image_of(&[(bomb, Vec::new())]));
    let mut frame = zstd::Encoder::new(Vec::new(), 19).expect("an encoder");
    zeros(&mut frame, "bomb", 300);
    let bomb = frame.finish().expect("written");
    assert!(bomb.len() < 300 << 10, "{} bytes", bomb.len());
    server.add("zstd-bomb", image_of(&[(bomb, Vec::new())]));
    // What follows the end of the archive, too.
    let trailing = gzip_of(|out| {
        for _ in 0..300 {
            out.write_all(&vec![0; 1 << 20]).expect("written");
        }
    });
    server.add("trailing", image_of(&[(trailing, Vec::new())]));
    // A manifest of a hundred thousand layers; configurations and manifests far beyond the limits.
    let layer = json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": image::Digest::of(b"x"), "size": 1 });
    let config = json!({ "mediaType": "application/vnd.oci.image.config.v1+json", "digest": image::Digest::of(b"c"), "size": 1 });
    let many = json!({ "schemaVersion": 2, "config": config, "layers": vec![layer.clone(); 100_000] });
    let mut content = Content::default();
    manifest(&mut content, serde_json::to_vec(&many).expect("plain data"));
    server.add("many-layers", content);
    let mut content = Content::default();
    manifest(&mut content, vec![b' '; 200 << 20]);
    server.add("large-manifest", content);
    let mut content = Content::default();
    let deep =
        format!(r#"{{"schemaVersion":2,"layers":{}{}}}"#, "[".repeat(1_000_000), "]".repeat(1_000_000));
    manifest(&mut content, deep.into_bytes());
    server.add("deep", content);
    let mut content = image_of(&[]);
    let large = vec![b' '; 200 << 20];
    let digest = image::Digest::of(&large).to_string();
    // It says that it is small.
    let lying = json!({ "schemaVersion": 2, "layers": [], "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": 100 } });
    content.blobs.insert(digest, large);
    manifest(&mut content, serde_json::to_vec(&lying).expect("plain data"));
    server.add("large-config", content);
    let both = json!({ "schemaVersion": 2, "config": config, "layers": [layer], "manifests": [] });
    let mut content = Content::default();
    manifest(&mut content, serde_json::to_vec(&both).expect("plain data"));
    server.add("both", content);

    // The cheapest refusal is what the process costs by itself.
    let base = peak(&server, "both");
    for tag in ["gzip-bomb", "zstd-bomb", "trailing", "many-layers", "large-manifest", "deep", "large-config"]
    {
        let peak = peak(&server, tag);
        println!("{tag}: {peak} MB, {base} MB by itself");
        assert!(peak < base + MOST, "{tag} takes {peak} MB; a process by itself {base} MB");
    }
}
