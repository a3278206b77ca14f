//! `hostPath` volumes: the seven types and what each demands.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

/// Checks that `path` is what `kind` says, or makes it. The error is the event's message.
pub fn check(path: &str, kind: &str) -> Result<(), String> {
    let at = Path::new(path);
    if path.split('/').any(|part| part == "..") {
        return Err(format!("hostPath {path:?} must not contain '..'"));
    }
    let meta = fs::metadata(at);
    let is = |what: &str, fine: fn(&fs::FileType) -> bool| match &meta {
        Ok(meta) if fine(&meta.file_type()) => Ok(()),
        Ok(_) | Err(_) => Err(format!("hostPath type check failed: {path} is not {what}")),
    };
    let absent = matches!(&meta, Err(err) if err.kind() == io::ErrorKind::NotFound);
    let made = |result: io::Result<()>| result.map_err(|err| format!("make hostPath {path}: {err}"));
    match kind {
        "" => Ok(()),
        "DirectoryOrCreate" if absent => made(make_dir(at)),
        "FileOrCreate" if absent => made(make_file(at)),
        "DirectoryOrCreate" | "Directory" => is("a directory", fs::FileType::is_dir),
        "FileOrCreate" | "File" => is("a file", fs::FileType::is_file),
        "Socket" => is("a socket file", FileTypeExt::is_socket),
        "CharDevice" => is("a character device", FileTypeExt::is_char_device),
        "BlockDevice" => is("a block device", FileTypeExt::is_block_device),
        other => Err(format!("{other:?} is not a valid hostPath type")),
    }
}

fn make_dir(path: &Path) -> io::Result<()> {
    fs::create_dir_all(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755))
}

fn make_file(path: &Path) -> io::Result<()> {
    fs::File::create_new(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o644))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_type_is_checked_or_made() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let at = |name: &str| dir.path().join(name).display().to_string();
        assert!(check(&at("d"), "Directory").is_err());
        assert_eq!(check(&at("d"), "DirectoryOrCreate"), Ok(()));
        assert_eq!(check(&at("d"), "Directory"), Ok(()));
        assert_eq!(
            check(&at("d"), "File"),
            Err(format!("hostPath type check failed: {} is not a file", at("d")))
        );
        assert_eq!(check(&at("f"), "FileOrCreate"), Ok(()));
        assert_eq!(check(&at("f"), "File"), Ok(()));
        assert_eq!(check(&at("nothing"), ""), Ok(()));
        assert_eq!(check("/dev/null", "CharDevice"), Ok(()));
        assert!(check("/dev/null", "BlockDevice").is_err());
        assert!(check("/tmp/../etc", "").is_err());
    }
}
