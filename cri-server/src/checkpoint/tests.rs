//! What can be seen without CRIU: the archive's parts, the layer's changes, refusals.

use std::collections::BTreeMap;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, symlink};

use rustix::fs::FileType;

use super::*;

fn entries(bytes: &[u8]) -> BTreeMap<String, (tar::EntryType, Vec<u8>, Option<String>)> {
    let mut archive = tar::Archive::new(bytes);
    let entries = archive.entries().expect("an archive");
    entries
        .map(|entry| {
            let mut entry = entry.expect("an entry");
            let path = entry.path().expect("a path").display().to_string();
            let link = entry.link_name().expect("a link").map(|link| link.display().to_string());
            let kind = entry.header().entry_type();
            let mut data = Vec::new();
            entry.read_to_end(&mut data).expect("data");
            (path, (kind, data, link))
        })
        .collect()
}

fn packed(upper: &Path, lower: &[PathBuf]) -> (Vec<u8>, Vec<String>) {
    let go = AtomicBool::new(false);
    let mut packer = Packer::new(Vec::new(), lower, None, &go);
    packer.add_tree(upper).expect("packs");
    packer.finish().expect("packs")
}

#[test]
fn changes_are_packed_and_what_was_deleted_is_listed() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: device nodes and overlayfs' attributes need root");
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    let (upper, lower) = (dir.path().join("upper"), dir.path().join("lower"));
    let make = |path: PathBuf, text: &str| {
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("made");
        std::fs::write(path, text).expect("written");
    };
    make(upper.join("etc/new"), "new");
    let long = format!("{}/{}", "d".repeat(150), "f".repeat(150));
    make(upper.join(&long), "long");
    std::fs::hard_link(upper.join("etc/new"), upper.join("linked")).expect("linked");
    symlink("/etc/shadow", upper.join("link")).expect("linked");
    let node = |path: &str, kind, device| {
        rustix::fs::mknodat(rustix::fs::CWD, upper.join(path), kind, 0o600.into(), device).expect("made");
    };
    node("etc/gone", FileType::CharacterDevice, 0);
    node("null", FileType::CharacterDevice, rustix::fs::makedev(1, 3));
    node("pipe", FileType::Fifo, 0);
    let _socket = std::os::unix::net::UnixListener::bind(upper.join("socket")).expect("bound");
    let attribute = |path: &str, name: &str, value: &[u8]| {
        rustix::fs::setxattr(upper.join(path), name, value, rustix::fs::XattrFlags::empty())
    };
    // A directory that was removed and made again, with one of its old names.
    make(upper.join("opt/again"), "2");
    make(upper.join("opt/sub/mine"), "2");
    attribute("opt", "trusted.overlay.opaque", b"y").expect("set");
    make(lower.join("opt/again"), "1");
    make(lower.join("opt/old"), "1");
    make(lower.join("opt/sub/theirs"), "1");
    make(lower.join("etc/kept"), "1");
    let with_attributes = attribute("etc/new", "user.note", b"hi").is_ok();

    let (bytes, deleted) = packed(&upper, &[lower]);
    assert_eq!(deleted, ["/etc/gone", "/opt/old", "/opt/sub/theirs"]);
    let seen = entries(&bytes);
    let data = |path: &str| String::from_utf8(seen[path].1.clone()).expect("text");
    assert_eq!(data("etc/new"), "new");
    assert_eq!(data(&long), "long");
    assert_eq!(seen["linked"].2.as_deref(), Some("etc/new"));
    assert_eq!(seen["link"].2.as_deref(), Some("/etc/shadow"));
    assert_eq!((seen["null"].0, seen["pipe"].0), (tar::EntryType::Char, tar::EntryType::Fifo));
    assert!(!seen.contains_key("socket") && !seen.contains_key("etc/gone"));
    assert!(!seen.keys().any(|path| path.contains("kept") || path.contains("theirs")));
    assert_eq!(with_attributes, String::from_utf8_lossy(&bytes).contains("SCHILY.xattr.user.note=hi"));
    assert!(!String::from_utf8_lossy(&bytes).contains("trusted.overlay"));
}

#[test]
fn a_file_that_shrinks_keeps_the_archive_whole() {
    let mut text = String::new();
    changes::Exactly::new(&b"abc"[..], 5).read_to_string(&mut text).expect("reads");
    assert_eq!(text, "abc\0\0");
    let mut text = String::new();
    changes::Exactly::new(&b"abcdef"[..], 5).read_to_string(&mut text).expect("reads");
    assert_eq!(text, "abcde");
}

#[test]
fn giving_up_ends_the_work() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("a"), "a").expect("written");
    let go = AtomicBool::new(true);
    let mut packer = Packer::new(Vec::new(), &[], None, &go);
    let error = packer.add_tree(dir.path()).expect_err("given up");
    assert!(error.to_string().contains("too long"), "{error}");
}

#[test]
fn the_ids_are_those_that_the_container_sees() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("a"), "a").expect("written");
    let owner = std::fs::metadata(dir.path().join("a")).expect("there").uid();
    let go = AtomicBool::new(false);
    let range = runtime::spec::IdRange { host: owner, length: 65_536 };
    let ids = runtime::spec::UserNamespace { users: range, groups: range };
    let mut packer = Packer::new(Vec::new(), &[], Some(ids), &go);
    packer.add_tree(dir.path()).expect("packs");
    let (bytes, _) = packer.finish().expect("packs");
    let mut archive = tar::Archive::new(&bytes[..]);
    let entry = archive.entries().expect("an archive").next().expect("an entry").expect("whole");
    assert_eq!(entry.header().uid().expect("an id"), 0);
}

#[test]
fn a_checkpoint_is_known_by_its_parts() {
    let dir = tempfile::tempdir().expect("a directory");
    for name in ["config.dump", "spec.dump"] {
        std::fs::write(dir.path().join(name), "{}").expect("written");
    }
    assert!(!is_checkpoint(dir.path()));
    std::fs::create_dir(dir.path().join("checkpoint")).expect("made");
    assert!(is_checkpoint(dir.path()));
    assert_eq!(no_restore("a").code(), tonic::Code::Unimplemented);
}

#[test]
fn places_and_times_are_checked() {
    assert_eq!(location("/tmp/a.tar").expect("good"), Path::new("/tmp/a.tar"));
    for bad in ["", "a.tar", "localhost/image:latest", "/tmp/", "/", "/tmp/.."] {
        let error = location(bad).expect_err("refused");
        assert!(error.message().contains("absolute path of a file"), "{error}");
    }
    assert_eq!(patience(0).expect("good"), PATIENCE);
    assert_eq!(patience(7).expect("good"), Duration::from_secs(7));
    assert!(patience(-1).is_err() && patience(i64::MAX).is_err());
}
