//! What we unpack is what GNU tar unpacks; where the two could differ, we refuse.

use std::collections::BTreeMap;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use image::Store;

use crate::fixture::{Place, file, gzip, image_of, noise, root, tar_of};
use crate::server::Server;

/// Everything in a tree: type, mode, owner, size or target, content's digest.
fn listing(root: &Path) -> BTreeMap<PathBuf, String> {
    let mut found = BTreeMap::new();
    let mut left = vec![root.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in std::fs::read_dir(&dir).expect("a directory") {
            let path = entry.expect("an entry").path();
            let meta = path.symlink_metadata().expect("there");
            let kind = meta.file_type();
            let what = if kind.is_dir() {
                left.push(path.clone());
                "directory".to_owned()
            } else if kind.is_symlink() {
                format!("link to {}", std::fs::read_link(&path).expect("a link").display())
            } else if kind.is_file() {
                let content = std::fs::read(&path).expect("read");
                format!("{} bytes {} links {}", content.len(), image::Digest::of(&content), meta.nlink())
            } else {
                format!("special {} {:x}", kind.is_fifo(), meta.rdev())
            };
            let text = format!("{what} {:o} {}:{} {}", meta.mode(), meta.uid(), meta.gid(), meta.mtime());
            found.insert(path.strip_prefix(root).expect("below").to_owned(), text);
        }
    }
    found
}

fn tar(args: &[&str], dir: &Path) -> bool {
    let run = Command::new("tar").args(args).current_dir(dir).stderr(Stdio::null()).status();
    run.is_ok_and(|status| status.success())
}

async fn unpacked(archive: &[u8], place: &Place) -> Result<(Store, PathBuf), image::PullError> {
    let server = Server::start(image_of(&[(gzip(archive), archive.to_vec())])).await;
    let store = place.open();
    let image = store.pull(&server.reference("app:1"), None, None).await?;
    let lower = store.lease(&image.id, "c").expect("leased").lower;
    Ok((store, lower[0].clone()))
}

#[tokio::test]
async fn we_see_what_gnu_tar_sees() {
    if !root() {
        return;
    }
    let source = tempfile::tempdir().expect("a directory");
    if !tar(&["--version"], source.path()) {
        println!("skipped: no GNU tar");
        return;
    }
    let at = |name: &str| source.path().join("tree").join(name);
    let long = format!("{}/{}", "long".repeat(30), "name".repeat(40));
    std::fs::create_dir_all(at(&long)).expect("created");
    std::fs::write(at(&format!("{long}/file")), noise(5000)).expect("written");
    std::fs::write(at("größe ✓ \n\"'\\"), "odd").expect("written");
    std::fs::write(at("empty"), "").expect("written");
    std::fs::hard_link(at("empty"), at("hard")).expect("linked");
    std::os::unix::fs::symlink("x".repeat(200), at("link")).expect("linked");
    std::os::unix::fs::chown(at("empty"), Some(3_000_000), Some(70_000)).expect("given");
    let holes = std::fs::File::create(at("holes")).expect("created");
    std::os::unix::fs::FileExt::write_all_at(&holes, &noise(3000), 1 << 20).expect("written");
    holes.set_len(5 << 20).expect("extended");
    assert!(Command::new("mkfifo").arg(at("pipe")).status().expect("run").success());
    for format in [
        &["--format=gnu"][..],
        &["--format=pax"],
        &["--format=oldgnu"],
        &["--format=gnu", "--sparse"],
        &["--format=pax", "--sparse", "--sparse-version=0.0"],
        &["--format=pax", "--sparse", "--sparse-version=0.1"],
        &["--format=pax", "--sparse", "--sparse-version=1.0"],
    ] {
        let args = [&["-cf", "out.tar", "-C", "tree"], format, &["."]].concat();
        assert!(tar(&args, source.path()), "{format:?}");
        let archive = std::fs::read(source.path().join("out.tar")).expect("an archive");
        let theirs = tempfile::tempdir().expect("a directory");
        let path = source.path().join("out.tar");
        let args = ["-xpf", path.to_str().expect("plain"), "--same-owner", "--numeric-owner"];
        assert!(tar(&args, theirs.path()), "{format:?}");
        let place = Place::new();
        let (_store, ours) = match unpacked(&archive, &place).await {
            Ok(done) => done,
            // It repeats keys, of which no two readers make the same.
            Err(err) if format.contains(&"--sparse-version=0.0") => {
                assert!(crate::fixture::chain(&err).contains("unknown sparse format"));
                continue;
            }
            Err(err) => panic!("{format:?}: {}", crate::fixture::chain(&err)),
        };
        assert_eq!(listing(&ours), listing(theirs.path()), "{format:?}");
    }
}

/// Sets the right checksum, so that more than the checksum is tested.
fn repair(archive: &mut [u8], at: usize) {
    let block = &mut archive[at..at + 512];
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}

#[tokio::test]
async fn what_we_accept_damaged_tar_reads_alike() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().expect("a directory");
    if !tar(&["--version"], dir.path()) {
        println!("skipped: no GNU tar");
        return;
    }
    // An archive within an archive: a wrong size makes its entries ours.
    let inner = tar_of(&[file("evil", "inner")]);
    let inner = String::from_utf8(inner).expect("plain text");
    let size = [("size", b"2048".as_slice()), ("path", b"renamed")];
    let items =
        [file("first", "1"), crate::fixture::Item { pax: &size, ..file("outer", &inner) }, file("last", "2")];
    let good = tar_of(&items);
    let mut seed = 88172645463325252u64;
    let mut next = |below: usize| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        (seed % below as u64) as usize
    };
    let (mut accepted, mut refused) = (0, 0);
    for _ in 0..150 {
        let mut archive = good.clone();
        for _ in 0..=next(3) {
            let at = next(archive.len() / 512) * 512;
            // Fields that matter: name, mode, size, type, magic, and content of extensions.
            let offset = [0, 1, 100, 124, 125, 130, 134, 135, 156, 157, 257, 263][next(12)];
            archive[at + offset] = b"0123457 /ax\0\x80\xff5L"[next(16)];
            if archive[at + 257..at + 262] == *b"ustar" {
                repair(&mut archive, at);
            }
        }
        let place = Place::new();
        match unpacked(&archive, &place).await {
            Err(_) => refused += 1,
            Ok((_store, ours)) => {
                let path = dir.path().join("a.tar");
                std::fs::write(&path, &archive).expect("written");
                let theirs = tempfile::tempdir().expect("a directory");
                let args = ["-xpf", path.to_str().expect("plain"), "--same-owner", "--numeric-owner"];
                if tar(&args, theirs.path()) {
                    accepted += 1;
                    assert_eq!(listing(&ours), listing(theirs.path()), "of {}", keep(&archive));
                }
            }
        }
    }
    println!("{accepted} accepted and alike, {refused} refused");
    assert!(accepted > 20 && refused > 20, "{accepted} accepted, {refused} refused");
}

/// Keeps an archive for whoever looks into a failure.
fn keep(archive: &[u8]) -> String {
    let path = std::env::temp_dir().join(format!("orlop-differs-{}.tar", std::process::id()));
    std::fs::write(&path, archive).map_or_else(|err| err.to_string(), |()| path.display().to_string())
}
