//! Writes a set of files into a volume so that readers see all of the old or all of the new.
//!
//! ```text
//! volume/..2026_11_21_09_00_00.123456789/key    the files
//! volume/..data -> ..2026_11_21_09_00_00.…      swapped by one rename
//! volume/key -> ..data/key                      what containers open
//! ```
//!
//! Guarantees: an unchanged payload writes nothing. A crash leaves a directory that the next write removes.
//! Assumes: nobody else writes to the volume (containers have it read-only).

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use jiff::Timestamp;

use super::payload::{File, Payload};

const DATA: &str = "..data";
const DATA_TMP: &str = "..data_tmp";

/// Makes `dir` hold exactly `files`. Returns whether anything changed.
pub fn write(dir: &Path, files: &Payload, gid: Option<u32>, now: Timestamp) -> io::Result<bool> {
    let current = fs::read_link(dir.join(DATA)).ok();
    if let Some(current) = &current
        && same(&dir.join(current), files, gid)
    {
        links(dir, files)?;
        return Ok(false);
    }
    let stamp = now.strftime("..%Y_%m_%d_%H_%M_%S.%9f").to_string();
    let fresh = dir.join(&stamp);
    remove(&fresh)?;
    fs::create_dir(&fresh)?;
    set(&fresh, 0o755, None, gid)?;
    for (path, file) in files {
        put(&fresh, path, file, gid)?;
    }
    let tmp = dir.join(DATA_TMP);
    remove(&tmp)?;
    symlink(&stamp, &tmp)?;
    fs::rename(&tmp, dir.join(DATA))?;
    links(dir, files)?;
    sweep(dir, &stamp)?;
    Ok(true)
}

fn put(root: &Path, path: &str, file: &File, gid: Option<u32>) -> io::Result<()> {
    let full = root.join(path);
    let mut parents: Vec<&Path> = full.ancestors().skip(1).take_while(|p| *p != root).collect();
    parents.reverse();
    for parent in parents {
        match fs::create_dir(parent) {
            Ok(()) => set(parent, 0o755, None, gid)?,
            Err(err) if err.kind() == io::ErrorKind::AlreadyExists => {}
            Err(err) => return Err(err),
        }
    }
    fs::write(&full, &file.data)?;
    set(&full, file_mode(file, gid), file.uid, gid)
}

/// With a group, the group may read.
fn file_mode(file: &File, gid: Option<u32>) -> u32 {
    if gid.is_some() { file.mode | 0o440 } else { file.mode }
}

fn set(path: &Path, mode: u32, uid: Option<u32>, gid: Option<u32>) -> io::Result<()> {
    if uid.is_some() || gid.is_some() {
        chown(path, uid, gid)?;
    }
    let setgid = if gid.is_some() && path.is_dir() { 0o2000 } else { 0 };
    fs::set_permissions(path, fs::Permissions::from_mode(mode | setgid))
}

/// Whether a directory holds exactly these files.
fn same(dir: &Path, files: &Payload, gid: Option<u32>) -> bool {
    let mut found = BTreeSet::new();
    if collect(dir, dir, &mut found).is_err() || found.len() != files.len() {
        return false;
    }
    files.iter().all(|(path, file)| {
        let full = dir.join(path);
        let Ok(meta) = fs::symlink_metadata(&full) else { return false };
        let owner = meta.uid() == file.uid.unwrap_or(0) || file.uid.is_none();
        meta.mode() & 0o777 == file_mode(file, gid)
            && owner
            && gid.is_none_or(|gid| meta.gid() == gid)
            && fs::read(&full).is_ok_and(|data| data == file.data)
    })
}

fn collect(root: &Path, dir: &Path, found: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            collect(root, &entry.path(), found)?;
        } else if let Ok(path) = entry.path().strip_prefix(root) {
            found.insert(path.to_path_buf());
        }
    }
    Ok(())
}

/// Makes the visible links and removes those that lead nowhere any more.
fn links(dir: &Path, files: &Payload) -> io::Result<()> {
    let tops: BTreeSet<&str> = files.keys().map(|p| p.split('/').next().unwrap_or(p)).collect();
    for top in &tops {
        let (link, target) = (dir.join(top), Path::new(DATA).join(top));
        if fs::read_link(&link).is_ok_and(|t| t == target) {
            continue;
        }
        remove(&link)?;
        symlink(&target, &link)?;
    }
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if !name.starts_with("..") && !tops.contains(name.as_ref()) {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes what older writes left.
fn sweep(dir: &Path, keep: &str) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        if name.starts_with("..") && name != DATA && name != keep {
            remove(&entry.path())?;
        }
    }
    Ok(())
}

/// Removes a file, link or tree without following links; what is not there is fine.
fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(err) if err.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(err) => Err(err),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(list: &[(&str, &str)]) -> Payload {
        list.iter()
            .map(|(p, d)| (p.to_string(), File { data: d.as_bytes().into(), mode: 0o640, uid: None }))
            .collect()
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).expect("in range")
    }

    #[test]
    fn swaps_all_files_at_once_and_leaves_nothing_old() {
        let dir = tempfile::tempdir().expect("temporary directory");
        let root = dir.path();
        assert!(write(root, &files(&[("a", "1"), ("d/b", "2")]), None, at(1)).expect("first"));
        assert_eq!(fs::read_to_string(root.join("a")).expect("a"), "1");
        assert_eq!(fs::read_to_string(root.join("d/b")).expect("b"), "2");
        assert_eq!(fs::metadata(root.join("a")).expect("a").mode() & 0o777, 0o640);
        assert!(!write(root, &files(&[("a", "1"), ("d/b", "2")]), None, at(2)).expect("same"));
        assert!(write(root, &files(&[("a", "3")]), None, at(3)).expect("changed"));
        assert_eq!(fs::read_to_string(root.join("a")).expect("a"), "3");
        let mut names: Vec<String> = fs::read_dir(root)
            .expect("list")
            .map(|e| e.expect("entry").file_name().into_string().expect("utf-8"))
            .collect();
        names.sort();
        assert_eq!(names, ["..1970_01_01_00_00_03.000000000", "..data", "a"]);
    }
}
