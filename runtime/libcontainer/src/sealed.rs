//! This program as a sealed copy in memory.
//!
//! A container's first process is a copy of this one until it runs the container's program, and an image may say that
//! its program is `/proc/self/exe`: whoever can write to that file would change the node's.

use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;

use anyhow::Context;
use rustix::fs::{Mode, OFlags, SealFlags};

/// Runs this program again from a sealed copy, unless it is one.
///
/// # Errors
/// If the program can't be read, copied or run; it returns only then, or if it is sealed already.
pub fn ensure() -> anyhow::Result<()> {
    let here = rustix::fs::open("/proc/self/exe", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .context("open this program's file")?;
    // Only a file in memory has seals; others refuse the question.
    if rustix::fs::fcntl_get_seals(&here)
        .is_ok_and(|seals| seals.contains(SealFlags::WRITE | SealFlags::SEAL))
    {
        return Ok(());
    }
    let content = sys::memfd::read(&here).context("read this program's file")?;
    let copy =
        sys::memfd::sealed(c"orlop-libcontainer", &content).context("copy this program into memory")?;
    drop((here, content));
    let text = |text: &OsStr| CString::new(text.as_bytes()).context("an argument has a zero byte");
    let args = std::env::args_os().map(|arg| text(&arg)).collect::<Result<Vec<_>, _>>()?;
    let env = std::env::vars_os()
        .map(|(name, value)| text(&[name, value].join(OsStr::new("="))))
        .collect::<Result<Vec<_>, _>>()?;
    let Err(errno) = nix::unistd::fexecve(copy, &args, &env);
    Err(errno).context("run the copy of this program in memory")
}
