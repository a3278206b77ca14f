//! Overlay file systems of image layers, as detached mounts.
//!
//! Layers are named to the kernel by descriptor (`/proc/thread-self/fd/N`): short however deep the data directory
//! is, safe for any character in it, and nothing of the node's paths shows in the container's mountinfo.
//!
//! Guarantees: the mount is in no mount table, and is gone with its descriptor.
//! Caveats: the kernel takes 500 layers; before 6.7 all must fit into one page of options: about 150 of them, and with
//! more than about 14 the mount is in the mount table for a moment.

use std::ffi::{CStr, CString};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use sys::mount::FsOption;

use crate::error::RuntimeError;

/// Where a container's changes go.
#[derive(Debug, Clone)]
pub struct Writable {
    /// Changed files.
    pub upper: PathBuf,
    /// The kernel's scratch directory, on the same file system.
    pub work: PathBuf,
}

/// Most layers that overlayfs takes (OVL_MAX_STACK).
const MOST: usize = 500;

/// How files are shown.
#[derive(Debug, Clone, Copy, Default)]
pub struct Look<'a> {
    /// With the ids of this user namespace.
    pub ids: Option<BorrowedFd<'a>>,
    /// With this SELinux context.
    pub context: Option<&'a CStr>,
}

/// Mounts layers (topmost first), read-only without `writable`.
pub fn mount(
    lower: &[PathBuf],
    writable: Option<&Writable>,
    look: Look<'_>,
    scratch: &Path,
) -> Result<OwnedFd, RuntimeError> {
    let Look { ids, context } = look;
    if lower.is_empty() {
        return Err(RuntimeError::invalid("an image without layers cannot be mounted"));
    }
    if lower.len() > MOST {
        return Err(RuntimeError::invalid(format!(
            "the image has {} layers, and overlayfs takes {MOST}: squash the image",
            lower.len()
        )));
    }
    let open = |path: &Path| {
        rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|errno| RuntimeError::io(format!("open layer {}", path.display()))(errno.into()))
    };
    let mut layers = lower.iter().map(|layer| open(layer)).collect::<Result<Vec<_>, _>>()?;
    let _attached = match ids {
        Some(ids) => Some(map_layers(&mut layers, lower, ids, scratch)?),
        None => None,
    };
    if layers.len() == 1 && writable.is_none() {
        match context {
            // overlayfs wants two directories; of one layer a plain copy of its mount does.
            None => return plain(layers.remove(0)),
            // A context is only to be had with a mount of its own.
            Some(_) => layers.push(nothing(scratch)?),
        }
    }
    let changes = match writable {
        Some(writable) => Some((open(&writable.upper)?, open(&writable.work)?)),
        None => None,
    };
    if sys::features::get().overlay_lowerdir_append {
        one_by_one(&layers, changes.as_ref(), context)
    } else {
        all_at_once(&layers, changes.as_ref(), context, scratch)
    }
}

/// Replaces each layer by a copy of its mount that shows it with other ids.
fn map_layers(
    layers: &mut [OwnedFd],
    paths: &[PathBuf],
    ids: BorrowedFd<'_>,
    scratch: &Path,
) -> Result<Attached, RuntimeError> {
    let mut attached = Attached(Vec::new());
    for (layer, path) in layers.iter_mut().zip(paths) {
        let step = |what: &str| {
            let what = format!("{what} layer {}", path.display());
            move |errno: sys::Errno| RuntimeError::io(what)(errno.into())
        };
        let copy = sys::mount::clone_tree(&*layer, c"", false).map_err(step("copy the mount of"))?;
        sys::mount::set_attributes(&copy, false, 0, 0, Some(sys::mount::Propagation::Private))
            .map_err(step("make private"))?;
        crate::idmap::map(&copy, false, ids, &format!("layer {}", path.display()))?;
        // Before 6.15 overlayfs takes layers only of mounts in the mount table; it keeps copies of its own.
        if !sys::features::get().mount_on_detached {
            let place = scratch.join(format!("layer-{}", uuid::Uuid::new_v4()));
            std::fs::create_dir(&place).map_err(RuntimeError::io(format!("make {}", place.display())))?;
            attached.0.push(place.clone());
            sys::mount::attach_at(&copy, place.as_path()).map_err(step("attach"))?;
        }
        *layer = copy;
    }
    Ok(attached)
}

/// Places of mounts that go away with this.
struct Attached(Vec<PathBuf>);

impl Drop for Attached {
    fn drop(&mut self) {
        for place in &self.0 {
            // One that was never attached is not mounted; what is left goes with the tmpfs that it is on.
            let _ = sys::mount::unmount(place.as_path(), sys::mount::UnmountFlags::DETACH);
            let _ = std::fs::remove_dir(place);
        }
    }
}

/// An empty directory.
fn nothing(scratch: &Path) -> Result<OwnedFd, RuntimeError> {
    let place = scratch.join("nothing");
    let step = || RuntimeError::io(format!("make {}", place.display()));
    match std::fs::create_dir(&place) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(step()(error)),
        _ => {}
    }
    rustix::fs::open(&place, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| step()(errno.into()))
}

fn name(fd: &OwnedFd) -> CString {
    CString::new(format!("/proc/thread-self/fd/{}", fd.as_raw_fd())).expect("a number has no NUL byte")
}

fn plain(layer: OwnedFd) -> Result<OwnedFd, RuntimeError> {
    let step = "copy the mount of a layer";
    let copy =
        sys::mount::clone_tree(&layer, c"", false).map_err(|errno| RuntimeError::io(step)(errno.into()))?;
    sys::mount::set_attributes(
        &copy,
        false,
        sys::mount::attr::RDONLY,
        0,
        Some(sys::mount::Propagation::Private),
    )
    .map_err(|errno| RuntimeError::io(step)(errno.into()))?;
    Ok(copy)
}

fn one_by_one(
    layers: &[OwnedFd],
    changes: Option<&(OwnedFd, OwnedFd)>,
    context: Option<&CStr>,
) -> Result<OwnedFd, RuntimeError> {
    let names: Vec<CString> = layers.iter().map(name).collect();
    let mut options: Vec<FsOption<'_>> =
        names.iter().map(|name| FsOption::Value(c"lowerdir+", name.as_c_str())).collect();
    let changed = changes.map(|(upper, work)| (name(upper), name(work)));
    if let Some((upper, work)) = &changed {
        options.push(FsOption::Value(c"upperdir", upper));
        options.push(FsOption::Value(c"workdir", work));
    }
    options.extend(context.map(|context| FsOption::Value(c"context", context)));
    sys::mount::create_explained(c"overlay", Some(c"overlay"), &options, 0).map_err(explained)
}

fn explained((errno, words): (sys::Errno, String)) -> RuntimeError {
    let step = if words.is_empty() {
        "mount the image's layers".to_owned()
    } else {
        format!("mount the image's layers (the kernel says: {words})")
    };
    RuntimeError::io(step)(errno.into())
}

/// Longest value of an option of the new mount API (fsconfig(2)), with its NUL byte.
const LONGEST_VALUE: usize = 256;

/// For kernels that take the layers in one option only. When it is too long for the new mount API: the old call,
/// whose options may fill a page, on a directory that is unmounted again at once.
fn all_at_once(
    layers: &[OwnedFd],
    changes: Option<&(OwnedFd, OwnedFd)>,
    context: Option<&CStr>,
    scratch: &Path,
) -> Result<OwnedFd, RuntimeError> {
    // The old call is made in this thread, so the shorter name serves.
    let short = |fd: &OwnedFd| format!("/proc/self/fd/{}", fd.as_raw_fd());
    let lower = layers.iter().map(short).collect::<Vec<_>>().join(":");
    if lower.len() < LONGEST_VALUE {
        return in_one_option(&lower, changes, context);
    }
    let mut options = format!("lowerdir={lower}");
    if let Some((upper, work)) = changes {
        options += &format!(",upperdir={},workdir={}", short(upper), short(work));
    }
    if let Some(context) = context {
        options += &format!(",context=\"{}\"", context.to_string_lossy());
    }
    if options.len() > 4095 {
        return Err(RuntimeError::invalid(format!(
            "the image has {} layers, more than this kernel can mount: use Linux 6.7 or newer, or squash the image",
            layers.len()
        )));
    }
    let options = CString::new(options).expect("numbers have no NUL byte");
    let place = scratch.join(format!("overlay-{}", uuid::Uuid::new_v4()));
    let step = || "mount the image's layers".to_owned();
    std::fs::create_dir(&place).map_err(RuntimeError::io(step()))?;
    let made = old_mount(&place, &options);
    let copy = made.and_then(|()| {
        let copy = sys::mount::clone_tree(rustix::fs::CWD, place.as_path(), false);
        sys::mount::unmount(place.as_path(), sys::mount::UnmountFlags::DETACH)?;
        copy
    });
    let _ = std::fs::remove_dir(&place);
    copy.map_err(|errno| RuntimeError::io(step())(errno.into()))
}

fn in_one_option(
    lower: &str,
    changes: Option<&(OwnedFd, OwnedFd)>,
    context: Option<&CStr>,
) -> Result<OwnedFd, RuntimeError> {
    let lower = CString::new(lower).expect("numbers have no NUL byte");
    let changed = changes.map(|(upper, work)| (name(upper), name(work)));
    let mut options = vec![FsOption::Value(c"lowerdir", &lower)];
    if let Some((upper, work)) = &changed {
        options.push(FsOption::Value(c"upperdir", upper));
        options.push(FsOption::Value(c"workdir", work));
    }
    options.extend(context.map(|context| FsOption::Value(c"context", context)));
    sys::mount::create_explained(c"overlay", Some(c"overlay"), &options, 0).map_err(explained)
}

fn old_mount(place: &Path, options: &CStr) -> sys::Result<()> {
    rustix::mount::mount(c"overlay", place, c"overlay", rustix::mount::MountFlags::empty(), options)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn both_ways_show_the_same_files() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let dir = tempfile::tempdir().expect("a directory");
        let sub = |name: &str| {
            let path = dir.path().join(name);
            fs::create_dir_all(&path).expect("a directory");
            path
        };
        // The temporary directory may itself be on an overlay, which cannot be an upper directory.
        let (one, two) = (sub("one,a:b"), sub("two"));
        fs::write(one.join("top"), "1").expect("written");
        fs::write(two.join("bottom"), "2").expect("written");
        let layers: Vec<OwnedFd> = [&one, &two]
            .iter()
            .map(|path| rustix::fs::open(path.as_path(), OFlags::PATH, Mode::empty()).expect("opened"))
            .collect();
        // The old call serves only when there are many; the others are empty. Images have 128 at most, as builders see it.
        let some = |count: usize| -> Vec<OwnedFd> {
            (0..count - 2)
                .map(|number| sub(&format!("empty-{number}")))
                .chain([one.clone(), two.clone()])
                .map(|path| rustix::fs::open(path.as_path(), OFlags::PATH, Mode::empty()).expect("opened"))
                .collect()
        };
        let many = some(128);
        let error = all_at_once(&some(400), None, None, &sub("scratch")).expect_err("refused").to_string();
        assert!(error.contains("400 layers") && error.contains("Linux 6.7"), "{error}");
        let mut mounts = vec![
            all_at_once(&layers, None, None, &sub("scratch")).expect("mounted with one option"),
            all_at_once(&many, None, None, &sub("scratch")).expect("mounted the old way"),
        ];
        if sys::features::get().overlay_lowerdir_append {
            mounts.push(one_by_one(&layers, None, None).expect("mounted"));
        }
        for mount in mounts {
            for (file, want) in [("top", "1"), ("bottom", "2")] {
                assert_eq!(sys::fs::read_small(&mount, file).expect("read"), want);
            }
        }
        let text = fs::read_to_string("/proc/self/mountinfo").expect("read");
        assert!(!text.contains(&*dir.path().to_string_lossy()), "nothing is left mounted");
    }
}
