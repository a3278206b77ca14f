//! What comes out of good layers.

use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use image::Store;

use crate::fixture::{Item, Place, dir, file, gzip, hard_link, image_of, root, symlink, tar_of};
use crate::server::Server;

/// Pulls an image of one layer; the second is its tree.
async fn pulled(place: &Place, tar: Vec<u8>) -> (Store, PathBuf) {
    let server = Server::start(image_of(&[(gzip(&tar), tar)])).await;
    let store = place.open();
    let image = store.pull(&server.reference("app:1"), None, None).await.expect("pulled");
    let tree = store.lease(&image.id, "test").expect("leased").lower[0].clone();
    (store, tree)
}

fn attribute(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 256];
    let n = rustix::fs::lgetxattr(path, name, &mut value[..]).ok()?;
    value.truncate(n);
    Some(value)
}

#[tokio::test]
async fn all_kinds_of_entries() {
    if !root() {
        return;
    }
    let place = Place::new();
    let capability: &[u8] =
        b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    let pax: Vec<(&str, &[u8])> = vec![
        ("SCHILY.xattr.security.capability", capability),
        ("SCHILY.xattr.user.note", b"two\nlines"),
        ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ("mtime", b"1600000000.5"),
        ("path", b"bin/tool"),
    ];
    let long = format!("long/{}", "n".repeat(200));
    let long_pax: Vec<(&str, &[u8])> = vec![("path", long.as_bytes())];
    let items = [
        dir("./", 0o711),
        dir("bin/", 0o755),
        Item { pax: &pax, mode: 0o4755, owner: (1000, 100), ..file("x", "tool") },
        hard_link("bin/again", "bin/tool"),
        dir("usr/lib/", 0o755),
        symlink("lib", "usr/lib"),
        file("lib/merged", "yes"),
        symlink("abs", "/etc/passwd"),
        Item { kind: tar::EntryType::Fifo, mode: 0o600, ..file("fifo", "") },
        Item { kind: tar::EntryType::Char, ..file("null", "") },
        Item { pax: &long_pax, ..file("y", "") },
        file("twice", "first"),
        file("twice", "second"),
        dir("was-dir/", 0o755),
        file("was-dir/child", ""),
        file("was-dir", "now a file"),
        file("etc/.wh.gone", ""),
        file("opaque/.wh..wh..opq", ""),
        file("opaque/kept", ""),
        file("both/.wh.d", ""),
        dir("both/d", 0o700),
        file("back/.wh.d", ""),
        file("back/d/e", ""),
    ];
    let (_store, tree) = pulled(&place, tar_of(&items)).await;
    let meta = |path: &str| std::fs::symlink_metadata(tree.join(path)).expect("there");
    let read = |path: &str| std::fs::read_to_string(tree.join(path)).expect("there");
    let whiteout = |path: &str| meta(path).file_type().is_char_device() && meta(path).rdev() == 0;
    let opaque = |path: &str| attribute(&tree.join(path), "trusted.overlay.opaque").as_deref() == Some(b"y");
    assert_eq!(meta("").mode() & 0o7777, 0o711);
    let tool = meta("bin/tool");
    assert_eq!((tool.mode() & 0o7777, tool.uid(), tool.gid(), tool.nlink()), (0o4755, 1000, 100, 2));
    assert_eq!((tool.mtime(), tool.mtime_nsec()), (1_600_000_000, 500_000_000));
    assert_eq!(attribute(&tree.join("bin/tool"), "security.capability").as_deref(), Some(capability));
    assert_eq!(attribute(&tree.join("bin/tool"), "trusted.overlay.opaque"), None);
    if let Some(note) = attribute(&tree.join("bin/tool"), "user.note") {
        assert_eq!(note, b"two\nlines");
    }
    assert_eq!((read("bin/again").as_str(), read("usr/lib/merged").as_str()), ("tool", "yes"));
    assert!(meta("lib").is_symlink());
    assert_eq!(std::fs::read_link(tree.join("abs")).expect("a link"), Path::new("/etc/passwd"));
    assert!(meta("fifo").file_type().is_fifo() && meta("null").file_type().is_char_device());
    assert!(meta(&long).is_file());
    assert_eq!((read("twice").as_str(), read("was-dir").as_str()), ("second", "now a file"));
    assert!(whiteout("etc/gone") && opaque("opaque") && meta("opaque/kept").is_file());
    assert!(meta("both/d").is_dir() && opaque("both/d"));
    assert!(meta("back/d/e").is_file() && opaque("back/d"));
    assert_eq!(meta("usr/lib").mtime(), 1_700_000_000);
}

/// Describes a tree: types, modes, owners, times, sizes, links, contents.
fn describe(tree: &Path) -> String {
    let script = "find . -mindepth 1 -printf '%p %y %m %U:%G %l %n\\n' | LC_ALL=C sort; \
        find . -mindepth 1 ! -type d -printf '%p %T@\\n' | LC_ALL=C sort; \
        find . -type f -print0 | LC_ALL=C sort -z | xargs -0 sha256sum; getfattr -dR -m- . 2>/dev/null";
    let output = Command::new("sh").args(["-c", script]).current_dir(tree).output().expect("sh runs");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// A real tree, archived by GNU tar in each of its formats, comes out as GNU tar would unpack it.
#[tokio::test]
async fn agrees_with_gnu_tar() {
    if !root() {
        return;
    }
    let place = Place::new();
    let work = place.dir.path();
    let source = work.join("source");
    std::fs::create_dir(&source).expect("created");
    let sh = |script: &str| {
        let status = Command::new("sh").args(["-ec", script]).current_dir(work).status().expect("sh runs");
        assert!(status.success(), "{script}");
    };
    // A package's tree, holes, long names, links, odd owners.
    sh("cp -a /etc/alternatives /usr/share/zoneinfo/Europe /usr/lib/os-release source/ 2>/dev/null || true
        truncate -s 5M source/holes; printf x | dd of=source/holes bs=1 seek=3000000 conv=notrunc 2>/dev/null
        printf y | dd of=source/holes bs=1 seek=1000000 conv=notrunc 2>/dev/null
        mkdir -p source/$(printf 'd%.0s' $(seq 150))/$(printf 'e%.0s' $(seq 150))
        ln source/holes source/linked; chown 12345:54321 source/os-release; mkfifo source/fifo; chmod 1777 source/Europe || true");
    for format in
        ["gnu", "pax", "posix --sparse-version=0.1", "posix --sparse-version=1.0", "ustar-less-sparse"]
    {
        let (flags, archive) = match format {
            "ustar-less-sparse" => ("--format=gnu".to_owned(), "plain.tar"),
            format => (format!("--format={format} --sparse"), "sparse.tar"),
        };
        sh(&format!(
            "tar {flags} -C source -cf {archive} . && rm -rf expected && mkdir expected && tar -C expected -xpf {archive}"
        ));
        let tar = std::fs::read(work.join(archive)).expect("archived");
        let inner = Place::new();
        let (_store, tree) = pulled(&inner, tar).await;
        assert_eq!(describe(&tree), describe(&work.join("expected")), "{format}");
        if format != "ustar-less-sparse" {
            let blocks = std::fs::metadata(tree.join("holes")).expect("there").blocks();
            assert!(blocks < 1000, "holes stay holes in {format}");
        }
    }
}
