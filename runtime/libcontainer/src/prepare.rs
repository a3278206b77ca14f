//! What libcontainer leaves to its caller: streams that the container's user can open, and a working directory.

use std::path::{Component, Path, PathBuf};

use anyhow::Context;
use libcontainer::oci_spec::runtime::Spec;
use rustix::fd::AsFd;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

/// Gives the terminal of a container that was made but not started to its user.
///
/// # Errors
/// If the spec can't be read, or the terminal can't be given.
pub fn give_terminal(bundle: &Path, pid: i32) -> anyhow::Result<()> {
    let Some(user) = spec(bundle)?.process().as_ref().map(|process| process.user().uid()) else {
        return Ok(());
    };
    // What is open there now is what libcontainer put there: none of the container's own programs runs yet.
    let place = format!("/proc/{pid}/fd/0");
    let terminal = rustix::fs::open(place.as_str(), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .with_context(|| format!("open {place}"))?;
    if FileType::from_raw_mode(rustix::fs::fstat(&terminal)?.st_mode) == FileType::CharacterDevice {
        let user = Some(Uid::from_raw(user));
        rustix::fs::chownat(&terminal, "", user, None::<Gid>, AtFlags::EMPTY_PATH)
            .with_context(|| format!("change the owner of {place}"))?;
    }
    Ok(())
}

fn spec(bundle: &Path) -> anyhow::Result<Spec> {
    let file = bundle.join("config.json");
    Spec::load(&file).with_context(|| format!("read {}", file.display()))
}

/// Does both for the spec of a bundle.
///
/// # Errors
/// If the spec can't be read, or a step fails; a working directory that can't be made is libcontainer's to refuse.
pub fn bundle(bundle: &Path) -> anyhow::Result<()> {
    let spec = spec(bundle)?;
    let Some(process) = spec.process() else { return Ok(()) };
    give_streams(process.user().uid()).context("give the streams to the container's user")?;
    let root = spec.root().as_ref().map(|root| bundle.join(root.path()));
    match root {
        Some(root) => make_directory(&root, process.cwd())
            .with_context(|| format!("make the working directory {}", process.cwd().display())),
        None => Ok(()),
    }
}

/// Gives standard output and error to a user, who may open them anew as `/dev/stdout`; only where they are pipes.
fn give_streams(user: u32) -> rustix::io::Result<()> {
    let (stdin, stdout, stderr) = (std::io::stdin(), std::io::stdout(), std::io::stderr());
    for stream in [stdin.as_fd(), stdout.as_fd(), stderr.as_fd()] {
        let kind = FileType::from_raw_mode(rustix::fs::fstat(stream)?.st_mode);
        if kind == FileType::Fifo {
            rustix::fs::fchown(stream, Some(Uid::from_raw(user)), None::<Gid>)?;
        }
    }
    Ok(())
}

/// Makes the directories of a path that are missing below `root`, with what links mean there.
fn make_directory(root: &Path, path: &Path) -> rustix::io::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags, Mode::empty())?;
    let mut done = PathBuf::from(".");
    for part in path.components() {
        let Component::Normal(name) = part else { continue };
        let parent = match sys::fs::open_in_root(&root, done.as_path(), flags) {
            Ok(parent) => parent,
            // No directory: libcontainer says so when it goes there.
            Err(Errno::NOTDIR | Errno::LOOP) => return Ok(()),
            Err(errno) => return Err(errno),
        };
        match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Ok(()) => {
                // The mask of this process took bits away.
                rustix::fs::chmodat(&parent, name, Mode::from_raw_mode(0o755), AtFlags::empty())?;
            }
            Err(Errno::EXIST) => {}
            Err(Errno::ROFS | Errno::NOENT) => return Ok(()),
            Err(errno) => return Err(errno),
        }
        done.push(name);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn directories_are_made_below_the_root_only() {
        let dir = tempfile::tempdir().expect("a directory");
        let root = dir.path().join("root");
        std::fs::create_dir_all(root.join("there")).expect("made");
        symlink("/there", root.join("absolute")).expect("a link");
        symlink("../../..", root.join("up")).expect("a link");
        for path in ["/a/b/c", "/absolute/x", "/up/y"] {
            make_directory(&root, Path::new(path)).expect(path);
        }
        for made in ["a/b/c", "there/x", "y"] {
            assert!(root.join(made).is_dir(), "{made}");
        }
        assert!(!dir.path().join("y").exists() && !dir.path().join("there").exists());
        std::fs::write(root.join("file"), "").expect("written");
        make_directory(&root, Path::new("/file/x")).expect("left to libcontainer");
    }
}
