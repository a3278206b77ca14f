//! Layers made to escape, to exhaust or to confuse.

use std::io::Write;

use expect_test::{Expect, expect};
use image::{AbsoluteNames, ErrorKind, Limits};

use crate::fixture::{
    Item, Place, chain, dir, file, gzip, hard_link, image_of, names, root, symlink, tar_of, zstd,
};
use crate::server::Server;

/// Pulls a layer that must be refused. Returns what the error says about it.
async fn refusal(tar: Vec<u8>, limits: Limits) -> (ErrorKind, String) {
    let served = gzip(&tar);
    let server = Server::start(image_of(&[(served, tar)])).await;
    let place = Place::new();
    let store = place.open_with(limits);
    let err = store.pull(&server.reference("app:1"), None, None).await.expect_err("refused");
    place.settled().await;
    assert_eq!(place.names("l"), ["0"], "nothing of a refused layer is left");
    assert!(place.names("p").is_empty() && place.names("i").is_empty() && place.names("b").is_empty());
    assert_eq!(names(place.dir.path()), ["images"], "nothing is written beside the store");
    for aim in ["/evil", "/etc/evil", "/tmp/evil", "/tmp/deep", "/etc/.wh.passwd"] {
        assert!(!std::path::Path::new(aim).exists(), "{aim}");
    }
    let text = chain(&err);
    let (_, reason) = text.split_once("unpack layer ").unwrap_or(("", &text));
    (err.kind(), reason.split_once(": ").map_or(reason, |r| r.1).to_owned())
}

async fn check(items: &[Item<'_>], expect: Expect) {
    if !root() {
        return;
    }
    let (kind, text) = refusal(tar_of(items), Limits::default()).await;
    assert_eq!(kind, ErrorKind::Invalid);
    expect.assert_eq(&text);
}

#[tokio::test]
async fn names_that_leave_the_layer() {
    check(&[file("../evil", "x")], expect!["layer entry `../evil`: refused, its name has `..`"]).await;
    check(&[file("a/../../evil", "x")], expect!["layer entry `a/../../evil`: refused, its name has `..`"])
        .await;
    check(&[file("/etc/evil", "x")], expect!["layer entry `/etc/evil`: refused, its name is absolute"]).await;
    check(&[file("a/.wh...", "")], expect!["layer entry `a/.wh...`: refused, its name has `..`"]).await;
    check(&[file("..", "")], expect!["layer entry `..`: refused, its name has `..`"]).await;
}

#[tokio::test]
async fn symbolic_links_that_leave_the_layer() {
    let out = "layer entry `out/evil`: refused, `out` goes through a symbolic link that leaves the layer";
    for target in ["/tmp", "../..", "/proc/self/cwd", "a/../../../.."] {
        if !root() {
            return;
        }
        let items = [dir("a", 0o755), symlink("out", target), file("out/evil", "x")];
        assert_eq!(refusal(tar_of(&items), Limits::default()).await.1, out, "{target}");
    }
    check(
        &[symlink("out", "/tmp"), dir("out/deep/dir", 0o755)],
        expect!["layer entry `out/deep/dir`: refused, `out/deep` goes through a symbolic link that leaves the layer"],
    )
    .await;
    check(
        &[symlink("out", "/etc"), file("out/.wh.passwd", "")],
        expect![
            "layer entry `out/.wh.passwd`: refused, `out` goes through a symbolic link that leaves the layer"
        ],
    )
    .await;
    check(
        &[symlink("out", "/etc"), file("out/.wh..wh..opq", "")],
        expect!["layer entry `out/.wh..wh..opq`: refused, `out` goes through a symbolic link that leaves the layer"],
    )
    .await;
    check(
        &[symlink("one", "two"), symlink("two", "one"), file("one/x", "")],
        expect!["layer entry `one/x`: refused, `one` goes through a symbolic link that leaves the layer"],
    )
    .await;
    check(
        &[symlink("gone", "nowhere"), file("gone/x", "")],
        expect!["layer entry `gone/x`: malformed archive: `gone` is not a directory"],
    )
    .await;
}

#[tokio::test]
async fn hard_links_to_the_host() {
    check(
        &[hard_link("shadow", "/etc/shadow")],
        expect!["layer entry `shadow`: refused, its hard link target `/etc/shadow` is not a file of the same layer"],
    )
    .await;
    check(
        &[hard_link("shadow", "../../../etc/shadow")],
        expect!["layer entry `shadow`: refused, its hard link target `../../../etc/shadow` is not a file of the same layer"],
    )
    .await;
    check(
        &[symlink("etc", "/etc"), hard_link("shadow", "etc/shadow")],
        expect![
            "layer entry `shadow`: refused, `etc/shadow` goes through a symbolic link that leaves the layer"
        ],
    )
    .await;
    check(
        &[dir("d", 0o755), hard_link("l", "d")],
        expect!["layer entry `l`: refused, its hard link target `d` is not a file of the same layer"],
    )
    .await;
}

#[tokio::test]
async fn malformed_archives() {
    let size = |size: &'static str| [("size", size.as_bytes())];
    let mut odd = file("x", "123");
    let wrong = size("2");
    odd.pax = &wrong;
    check(
        &[odd],
        expect!["layer entry `x`: malformed archive: its size is 3 in the header and 2 in the extension"],
    )
    .await;
    let negative = size("-1");
    check(
        &[Item { pax: &negative, ..file("x", "") }],
        expect!["layer entry `x`: malformed archive: its extension has a bad `size`"],
    )
    .await;
    check(
        &[Item { content: b"hidden", ..dir("d", 0o755) }],
        expect!["layer entry `d`: malformed archive: it has content, but its type has none"],
    )
    .await;
    check(
        &[file("a", ""), file("a/b", "")],
        expect!["layer entry `a/b`: malformed archive: `a` is not a directory"],
    )
    .await;
    check(
        &[Item { pax: &[("GNU.sparse.major", b"7")], ..file("x", "") }],
        expect!["layer entry `x`: malformed archive: unknown sparse format"],
    )
    .await;
    check(
        &[symlink("./", "/")],
        expect!["layer entry `./`: malformed archive: the layer's root is not a directory"],
    )
    .await;
    if !root() {
        return;
    }
    let mut broken = tar_of(&[file("x", "1")]);
    broken[0] = b'y';
    assert_eq!(
        refusal(broken, Limits::default()).await.1,
        "layer entry `y`: malformed archive: wrong checksum of its header"
    );
    let whole = tar_of(&[file("x", &"1".repeat(2000))]);
    assert_eq!(
        refusal(whole[..1024].to_vec(), Limits::default()).await.1,
        "read layer: truncated or corrupt: unexpected end of file"
    );
}

#[tokio::test]
async fn bombs() {
    if !root() {
        return;
    }
    let limits = Limits { free_bytes: 1 << 20, ratio: 10, entries: 100, ..Limits::default() };
    let zeros = "\0".repeat(4 << 20);
    let large = refusal(tar_of(&[file("zeros", &zeros)]), limits.clone()).await.1;
    assert_eq!(large, "layer entry `zeros`: refused, the unpacked size exceeds the limit of 1048576");
    let names: Vec<String> = (0..200).map(|n| n.to_string()).collect();
    let many: Vec<Item> = names.iter().map(|name| file(name, "")).collect();
    let many = refusal(tar_of(&many), limits.clone()).await.1;
    assert_eq!(many, "layer entry `.`: refused, the number of entries exceeds the limit of 100");
    let value = vec![b'x'; 300 << 10];
    let attribute = [("SCHILY.xattr.user.big", value.as_slice())];
    let heavy = refusal(tar_of(&[Item { pax: &attribute, ..file("x", "") }]), limits.clone()).await.1;
    assert_eq!(heavy, "layer entry `x`: refused, the size of its attributes exceeds the limit of 262144");
    // A size in the header that a sparse file would make true without any content.
    let sparse: [(&str, &[u8]); 3] =
        [("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", b"99999999999"), ("GNU.sparse.name", b"holes")];
    let holes = refusal(tar_of(&[Item { pax: &sparse, ..file("x", "1") }]), limits).await.1;
    assert_eq!(holes, "layer entry `holes`: refused, the unpacked size exceeds the limit of 1048576");
}

#[tokio::test]
async fn a_zstd_bomb_takes_no_memory() {
    if !root() {
        return;
    }
    // Four gigabytes of zeros in a few hundred kilobytes; nothing of it is written.
    let mut served = Vec::new();
    let mut encoder = zstd::Encoder::new(&mut served, 1).expect("an encoder");
    let mut header = tar::Header::new_gnu();
    header.set_path("bomb").expect("a path");
    header.set_size(1 << 32);
    header.set_cksum();
    encoder.write_all(header.as_bytes()).expect("written");
    let piece = vec![0; 1 << 20];
    for _ in 0..64 {
        encoder.write_all(&piece).expect("written");
    }
    encoder.finish().expect("written");
    let server = Server::start(image_of(&[(served, Vec::new())])).await;
    let place = Place::new();
    let store = place.open();
    let err = store.pull(&server.reference("app:1"), None, None).await.expect_err("refused");
    assert!(chain(&err).contains("`bomb`: refused, the unpacked size exceeds"), "{}", chain(&err));
}

#[tokio::test]
async fn absolute_names_can_be_allowed() {
    if !root() {
        return;
    }
    let tar = tar_of(&[file("/app/run", "x"), symlink("/app/etc", "/etc")]);
    let server = Server::start(image_of(&[(zstd(&tar), tar)])).await;
    let place = Place::new();
    let store = place.open_with(Limits { absolute_names: AbsoluteNames::Strip, ..Limits::default() });
    let image = store.pull(&server.reference("app:1"), None, None).await.expect("pulled");
    let rootfs = store.lease(&image.id, "c").expect("leased");
    assert_eq!(std::fs::read_to_string(rootfs.lower[0].join("app/run")).expect("there"), "x");
}

#[tokio::test]
async fn a_full_disk_is_told_and_cleaned_up() {
    if !root() {
        return;
    }
    let place = Place::new();
    let disk = place.dir.path().join("images");
    std::fs::create_dir(&disk).expect("created");
    let mount = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=4m", "tmpfs"])
        .arg(&disk)
        .status();
    if !mount.is_ok_and(|status| status.success()) {
        println!("skipped: cannot mount a tmpfs");
        return;
    }
    struct Mounted(std::path::PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
        }
    }
    let _mounted = Mounted(disk.clone());
    let zeros = "\0".repeat(16 << 20);
    let tar = tar_of(&[file("small", "x"), file("large", &zeros)]);
    let server = Server::start(image_of(&[(gzip(&tar), tar)])).await;
    let store = place.open();
    let err = store.pull(&server.reference("app:1"), None, None).await.expect_err("the disk is full");
    assert_eq!(err.kind(), ErrorKind::NoSpace);
    assert!(
        chain(&err).contains("no space left on the image disk while unpacking `large`"),
        "{}",
        chain(&err)
    );
    place.settled().await;
    assert!(place.names("p").is_empty());
    assert_eq!(place.names("l"), ["0"]);
}
