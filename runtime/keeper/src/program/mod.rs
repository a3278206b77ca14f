//! The keeper program itself: one thread, one epoll loop.
//!
//! Guarantees: a container's life depends on this process only for its log and its exit code;
//! no request of the daemon blocks the loop.
//! Assumes: it is started as root by `client::spawn`, with nothing but standard streams.

pub mod child;
pub mod connection;
pub mod container;
pub mod delegate;
pub mod handover;
pub mod indexes;
pub mod isolate;
pub mod launch;
pub mod leaving;
pub mod log;
pub mod orders;
pub mod report;
pub mod requests;
pub mod server;
pub mod upgrade;
pub mod usher;

use std::ffi::OsString;
use std::path::PathBuf;

use sys::Errno;

/// Why the keeper could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    /// The command line makes no sense.
    #[error("usage: orlop-keeper --socket PATH | init DESCRIPTOR | usher DESCRIPTOR | hold")]
    Usage,
    /// Another keeper answers at the socket.
    #[error("a keeper already listens at {0}")]
    AlreadyRunning(PathBuf),
    /// A kernel call failed.
    #[error("{step}")]
    Os {
        /// What was tried.
        step: &'static str,
        /// Why.
        source: Errno,
    },
    /// The state of the keeper before the upgrade could not be understood.
    #[error("resume after an upgrade")]
    Resume(#[source] postcard::Error),
}

/// Adds the step to a kernel error.
pub(crate) fn step<T>(step: &'static str, result: sys::Result<T>) -> Result<T, ProgramError> {
    result.map_err(|source| ProgramError::Os { step, source })
}

/// What the command line asks for.
#[derive(Debug, PartialEq, Eq)]
enum Mode {
    Listen(PathBuf),
    Resume(i32),
    Init(i32),
    Usher(i32),
    /// Be a process, so that a scope of systemd has one, and do nothing.
    Hold,
}

fn parse(args: &[OsString]) -> Result<Mode, ProgramError> {
    match args {
        [word] if word == "hold" => Ok(Mode::Hold),
        [flag, path] if flag == "--socket" => Ok(Mode::Listen(path.into())),
        // The socket is only there for whoever looks at the process list.
        [flag, fd, ..] if flag == "--resume" => {
            fd.to_str().and_then(|fd| fd.parse().ok()).map(Mode::Resume).ok_or(ProgramError::Usage)
        }
        [word, fd] if word == "init" || word == "usher" => {
            let mode = if word == "init" { Mode::Init } else { Mode::Usher };
            fd.to_str().and_then(|fd| fd.parse().ok()).map(mode).ok_or(ProgramError::Usage)
        }
        _ => Err(ProgramError::Usage),
    }
}

/// Runs the program with its arguments (without the name). Returns when a daemon asked it to quit.
///
/// # Errors
/// See [`ProgramError`].
pub fn run(args: &[OsString]) -> Result<(), ProgramError> {
    let mode = parse(args)?;
    // Nobody may look into this process, nor into its children before their exec.
    let not_dumpable = rustix::process::DumpableBehavior::NotDumpable;
    step("forbid core dumps", rustix::process::set_dumpable_behavior(not_dumpable))?;
    match mode {
        Mode::Listen(path) => {
            step("set the name", rustix::thread::set_name(c"orlop-keeper"))?;
            if sys::socket::connect(&path).is_ok() {
                return Err(ProgramError::AlreadyRunning(path));
            }
            let listener = step("listen", sys::socket::listen(&path))?;
            step("enter an empty mount namespace", isolate::enter_empty_namespace())?;
            server::Server::new(listener)?.run()
        }
        Mode::Resume(fd) => {
            step("set the name", rustix::thread::set_name(c"orlop-keeper"))?;
            upgrade::resume(fd)?.run()
        }
        Mode::Usher(fd) => {
            step("set the name", rustix::thread::set_name(c"orlop-usher"))?;
            usher::run(fd)
        }
        Mode::Hold => {
            step("set the name", rustix::thread::set_name(c"orlop-hold"))?;
            become_nobody()?;
            sys::process::reap_for_ever()
        }
        Mode::Init(report) => {
            // SAFETY: the keeper gave this program the number, and nothing else here has used it yet.
            let report = step("take the report", unsafe { sys::process::inherited(report) })?;
            step("set the name", rustix::thread::set_name(c"orlop-init"))?;
            become_nobody()?;
            // Only now others may come into the namespace, who could trace this process.
            drop(report);
            sys::process::reap_for_ever()
        }
    }
}

/// The init of a shared pid namespace and a placeholder need no right at all.
fn become_nobody() -> Result<(), ProgramError> {
    let nobody = 65534;
    step("limit capabilities", sys::caps::limit_bounding(0))?;
    step("drop groups", sys::process::set_groups(&[]))?;
    let gid = rustix::process::Gid::from_raw(nobody);
    step("change the group", rustix::thread::set_thread_res_gid(gid, gid, gid))?;
    let uid = rustix::process::Uid::from_raw(nobody);
    step("change the user", rustix::thread::set_thread_res_uid(uid, uid, uid))?;
    step("drop capabilities", sys::caps::set(sys::caps::Sets::default()))?;
    step("forbid new privileges", rustix::thread::set_no_new_privs(true))?;
    // Changing the user made it dumpable by the system's setting.
    let not_dumpable = rustix::process::DumpableBehavior::NotDumpable;
    step("forbid core dumps", rustix::process::set_dumpable_behavior(not_dumpable))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line() {
        let args = |words: &[&str]| words.iter().map(OsString::from).collect::<Vec<_>>();
        assert_eq!(parse(&args(&["--socket", "/run/s"])).unwrap(), Mode::Listen("/run/s".into()));
        assert_eq!(parse(&args(&["--resume", "7", "--socket", "/run/s"])).unwrap(), Mode::Resume(7));
        assert_eq!(parse(&args(&["init", "5"])).unwrap(), Mode::Init(5));
        assert_eq!(parse(&args(&["usher", "4"])).unwrap(), Mode::Usher(4));
        assert_eq!(parse(&args(&["hold"])).unwrap(), Mode::Hold);
        assert!(parse(&args(&["init"])).is_err());
        assert!(parse(&args(&["--resume", "x", "--socket", "/run/s"])).is_err());
        assert!(parse(&[]).is_err());
    }
}
