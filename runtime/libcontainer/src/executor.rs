//! The last steps of a container's first process: is there such a program, and run it.
//!
//! libcontainer's own executor refuses a program that only its owner may run, refuses containers without PATH, loses
//! the order of the environment, leaves SIGPIPE ignored, and a terminal without a size.

use std::collections::HashMap;
use std::convert::Infallible;
use std::ffi::CString;
use std::path::PathBuf;

use libcontainer::oci_spec::runtime::Spec;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use nix::errno::Errno;
use nix::unistd::{AccessFlags, access};

/// Where programs are looked for in a container without PATH.
const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Runs the program that the spec names.
#[derive(Debug, Clone, Default)]
pub struct Program;

impl Executor for Program {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        find(spec).map(drop).map_err(ExecutorValidationError::ArgValidationError)?;
        size_terminal(spec).map_err(|errno| {
            ExecutorValidationError::ArgValidationError(format!("set the terminal's size: {errno}"))
        })
    }

    /// Nothing is changed here: the environment goes to the program as it is given.
    fn setup_envs(&self, envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        drop(envs);
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let path = find(spec).map_err(ExecutorError::Other)?;
        let text = |text: &str| CString::new(text).map_err(|_| ExecutorError::InvalidArg);
        let (args, env) = words(spec);
        let args = args.iter().map(|arg| text(arg)).collect::<Result<Vec<_>, _>>()?;
        let env = env.iter().map(|one| text(one)).collect::<Result<Vec<_>, _>>()?;
        let program = text(path.to_str().ok_or(ExecutorError::InvalidArg)?)?;
        // This program ignores SIGPIPE, as all of its language do; its child must not.
        sys::process::reset_signals();
        let outcome: Result<Infallible, Errno> = nix::unistd::execve(&program, &args, &env);
        let Err(errno) = outcome;
        Err(ExecutorError::Other(format!("execve {}: {}", path.display(), errno.desc())))
    }
}

/// Arguments and environment of a spec's process.
fn words(spec: &Spec) -> (&[String], &[String]) {
    let process = spec.process().as_ref();
    let args = process.and_then(|process| process.args().as_deref()).unwrap_or_default();
    let env = process.and_then(|process| process.env().as_deref()).unwrap_or_default();
    (args, env)
}

/// The program's path: as it is given if it has a slash, else looked up in the container's PATH.
fn find(spec: &Spec) -> Result<PathBuf, String> {
    let (args, env) = words(spec);
    let name = args.first().map(String::as_str).unwrap_or_default();
    let path = env.iter().rev().find_map(|one| one.strip_prefix("PATH=")).unwrap_or(PATH);
    let mut worst = Errno::ENOENT;
    for place in places(name, path) {
        match runs(&place) {
            Ok(()) => return Ok(place),
            Err(Errno::ENOENT | Errno::ENOTDIR) => {}
            Err(errno) => worst = errno,
        }
    }
    Err(format!("executable file {name:?}: {}", worst.desc()))
}

fn places(name: &str, path: &str) -> Vec<PathBuf> {
    if name.is_empty() {
        return Vec::new();
    }
    if name.contains('/') {
        return vec![name.into()];
    }
    path.split(':')
        .map(|dir| if dir.is_empty() { "." } else { dir })
        .map(|dir| [dir, name].iter().collect())
        .collect()
}

fn size_terminal(spec: &Spec) -> rustix::io::Result<()> {
    let process = spec.process().as_ref().filter(|process| process.terminal() == Some(true));
    let Some(size) = process.and_then(|process| process.console_size()) else { return Ok(()) };
    let cells = |number: u64| u16::try_from(number).unwrap_or(u16::MAX);
    let size = rustix::termios::Winsize {
        ws_row: cells(size.height()),
        ws_col: cells(size.width()),
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    rustix::termios::tcsetwinsize(std::io::stdin(), size)
}

fn runs(place: &PathBuf) -> Result<(), Errno> {
    access(place, AccessFlags::X_OK)?;
    let found = rustix::fs::stat(place).map_err(|errno| Errno::from_raw(errno.raw_os_error()))?;
    match rustix::fs::FileType::from_raw_mode(found.st_mode) {
        rustix::fs::FileType::Directory => Err(Errno::EISDIR),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_looked_up_and_paths_are_not() {
        let all = |name, path| places(name, path).iter().map(|p| p.display().to_string()).collect::<Vec<_>>();
        assert_eq!(all("sh", "/bin::/x"), ["/bin/sh", "./sh", "/x/sh"]);
        assert_eq!(all("./sh", "/bin"), ["./sh"]);
        assert!(all("", "/bin").is_empty());
    }

    #[test]
    fn a_directory_is_no_program() {
        assert_eq!(runs(&"/tmp".into()), Err(Errno::EISDIR));
        assert_eq!(runs(&"/nowhere".into()), Err(Errno::ENOENT));
        assert_eq!(runs(&"/etc/passwd".into()), Err(Errno::EACCES));
    }
}
