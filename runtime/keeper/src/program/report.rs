//! What a child reports before its exec, and the words for it.
//!
//! A report is a few bytes on a seqpacket socket: the child allocates nothing. The parent still
//! has the plan and finds the words. The end of the socket without a failure is the success.

use sys::Errno;
use sys::process::ExitStatus;

use super::delegate;
use crate::delegate::DelegatePlan;
use crate::plan::{ExecPlan, Label, LaunchPlan, ProcessPlan, Step};
use crate::protocol::{Failure, FailureKind};

/// How serious a report is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Severity {
    /// The child ends.
    Failure,
    /// The child goes on without it.
    Warning,
    /// The master of the terminal comes with this report.
    Terminal,
    /// All is prepared; what follows is the program, or a failure.
    Ready,
    /// The child made another in its place, which belongs to another user namespace; its pidfd comes along.
    Born,
}

macro_rules! numbered {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident => $word:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            const ALL: &'static [$name] = &[$($name::$variant,)*];

            /// The word for it in messages.
            pub fn word(self) -> &'static str {
                match self { $($name::$variant => $word,)* }
            }

            fn from_number(number: u8) -> Option<$name> {
                Self::ALL.get(usize::from(number)).copied()
            }
        }
    };
}

numbered! {
    /// What the child was doing. Where the plan has a list, the report's index says which.
    Stage {
        /// The session keyring.
        Keyring => "make a session keyring",
        /// setsid and the controlling terminal.
        Session => "start a session",
        /// The OOM score.
        OomScore => "set oom_score_adj",
        /// Joining or making a namespace.
        Namespace => "enter a namespace",
        /// Finding the procfs of a pid namespace.
        Procfs => "find the procfs of the processes that it shares",
        /// Going into the pid namespace of others.
        Enter => "enter the process namespace",
        /// Joining a user namespace and becoming its root.
        Users => "enter the user namespace",
        /// The host name.
        Hostname => "set the host name",
        /// Attaching the root filesystem and pivoting.
        Rootfs => "enter the root filesystem",
        /// A kernel parameter.
        Sysctl => "set a sysctl",
        /// A step of the plan.
        Step => "carry out a step",
        /// The terminal and `/dev/console`.
        Console => "make the terminal",
        /// A masked path.
        Masked => "mask a path",
        /// A read-only path.
        Readonly => "make a path read-only",
        /// The root made read-only.
        RootReadonly => "make the root filesystem read-only",
        /// A resource limit.
        Rlimit => "set a resource limit",
        /// The standard streams.
        Stdio => "connect the standard streams",
        /// User and groups.
        User => "change to the user",
        /// Capability sets.
        Capabilities => "set capabilities",
        /// The working directory.
        Cwd => "enter the working directory",
        /// What a security module shall confine the program as.
        Label => "set the security label of the program",
        /// The seccomp filter.
        Seccomp => "install the seccomp filter",
        /// Running the program.
        Exec => "run the program",
        /// Closing what is not the program's.
        Descriptors => "close descriptors",
        /// The mounts that another runtime's commands see.
        Mounts => "prepare the mounts of the runtime",
        /// Another runtime's command.
        Command => "run the runtime",
    }
}

numbered! {
    /// The system call that failed.
    Op {
        /// No call: the plan asks for what cannot be.
        Check => "check",
        /// See its name.
        Setsid => "setsid",
        /// See its name.
        Ioctl => "ioctl",
        /// See its name.
        Open => "open",
        /// See its name.
        Write => "write",
        /// See its name.
        Setns => "setns",
        /// See its name.
        Unshare => "unshare",
        /// See its name.
        Clone => "clone3",
        /// See its name.
        Sethostname => "sethostname",
        /// See its name.
        Setdomainname => "setdomainname",
        /// See its name.
        MoveMount => "move_mount",
        /// See its name.
        PivotRoot => "pivot_root",
        /// See its name.
        Fsopen => "fsopen",
        /// See its name.
        Fsconfig => "fsconfig",
        /// See its name.
        Fsmount => "fsmount",
        /// See its name.
        OpenTree => "open_tree",
        /// See its name.
        MountSetattr => "mount_setattr",
        /// See its name.
        Mkdir => "mkdir",
        /// See its name.
        Mknod => "mknod",
        /// See its name.
        Chown => "chown",
        /// See its name.
        Symlink => "symlink",
        /// See its name.
        Setrlimit => "setrlimit",
        /// See its name.
        Dup => "dup3",
        /// See its name.
        Setgroups => "setgroups",
        /// See its name.
        Setgid => "setresgid",
        /// See its name.
        Setuid => "setresuid",
        /// See its name.
        Prctl => "prctl",
        /// See its name.
        Capset => "capset",
        /// See its name.
        Chdir => "fchdir",
        /// See its name.
        Seccomp => "seccomp",
        /// See its name.
        Execve => "execve",
        /// See its name.
        CloseRange => "close_range",
        /// See its name.
        Send => "sendmsg",
        /// See its name.
        Wait => "waitid",
        /// See its name.
        Accept => "accept",
        /// See its name.
        Keyctl => "keyctl",
    }
}

/// A failure or warning with its place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trouble {
    /// What was being done.
    pub stage: Stage,
    /// The call.
    pub op: Op,
    /// Which one of the plan's list.
    pub index: u32,
    /// What the kernel said.
    pub errno: Errno,
}

/// Names the place of an error.
pub trait At<T> {
    /// For stages that happen once.
    fn at(self, stage: Stage, op: Op) -> Result<T, Trouble>;
}

impl<T> At<T> for sys::Result<T> {
    fn at(self, stage: Stage, op: Op) -> Result<T, Trouble> {
        self.map_err(|errno| Trouble { stage, op, index: 0, errno })
    }
}

/// The end of a command as the lower half of a report's index.
pub fn exit_bits(ended: ExitStatus) -> u32 {
    match ended {
        ExitStatus::Code(code) => code as u32 & 0xff,
        ExitStatus::Signal(signal) => 0x100 | signal as u32 & 0xff,
    }
}

/// What [`exit_bits`] encoded.
pub fn exit_of(bits: u32) -> ExitStatus {
    let number = (bits & 0xff) as i32;
    if bits & 0x100 == 0 { ExitStatus::Code(number) } else { ExitStatus::Signal(number) }
}

/// Bytes of an encoded report.
pub const LEN: usize = 12;

/// Encodes a report.
pub fn encode(severity: Severity, trouble: Trouble) -> [u8; LEN] {
    let mut bytes = [severity as u8, trouble.stage as u8, trouble.op as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    bytes[4..8].copy_from_slice(&trouble.index.to_ne_bytes());
    bytes[8..].copy_from_slice(&trouble.errno.raw_os_error().to_ne_bytes());
    bytes
}

/// Decodes a report; `None` when it makes no sense.
pub fn decode(bytes: &[u8]) -> Option<(Severity, Trouble)> {
    let bytes: &[u8; LEN] = bytes.try_into().ok()?;
    let severity = match bytes[0] {
        0 => Severity::Failure,
        1 => Severity::Warning,
        2 => Severity::Terminal,
        3 => Severity::Ready,
        4 => Severity::Born,
        _ => return None,
    };
    let word = |at: usize| [bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]];
    let trouble = Trouble {
        stage: Stage::from_number(bytes[1])?,
        op: Op::from_number(bytes[2])?,
        index: u32::from_ne_bytes(word(4)),
        errno: Errno::from_raw_os_error(i32::from_ne_bytes(word(8))),
    };
    Some((severity, trouble))
}

/// The plan that a report is about.
#[derive(Debug)]
pub enum Plan {
    /// A container.
    Launch(Box<LaunchPlan>),
    /// An exec.
    Exec(Box<ExecPlan>),
    /// An init, by its id.
    Init(String),
    /// Something that another runtime makes.
    Delegate(Box<DelegatePlan>),
}

impl Plan {
    fn process(&self) -> Option<&ProcessPlan> {
        match self {
            Plan::Launch(plan) => Some(&plan.process),
            Plan::Exec(plan) => Some(&plan.process),
            Plan::Init(_) | Plan::Delegate(_) => None,
        }
    }
}

/// The failure that a report means, in words.
pub fn failure(plan: &Plan, trouble: Trouble) -> Failure {
    if let Plan::Delegate(plan) = plan {
        return delegate::failure(plan, trouble);
    }
    if let Plan::Exec(plan) = plan
        && (trouble.stage, trouble.errno) == (Stage::Namespace, Errno::SRCH)
    {
        let message = format!("exec in {}: the container has exited", plan.container);
        return Failure { kind: FailureKind::WrongState, message };
    }
    if trouble.stage == Stage::Exec
        && let Some(process) = plan.process()
    {
        return exec_failure(process, trouble.errno);
    }
    let message = sentence(plan, trouble);
    Failure { kind: FailureKind::Os(trouble.errno.raw_os_error()), message }
}

/// `what: call: why`.
pub fn sentence(plan: &Plan, trouble: Trouble) -> String {
    let what = subject(plan, trouble).unwrap_or_else(|| trouble.stage.word().to_owned());
    let why = match (trouble.stage, trouble.errno) {
        (Stage::Masked, Errno::NODEV) => "/dev/null is not the null device".to_owned(),
        (Stage::Stdio, Errno::NODEV) => "/dev/null in the container is not the null device".to_owned(),
        (Stage::Console, Errno::NODEV) => "/dev/pts is not a devpts filesystem".to_owned(),
        (Stage::Step, Errno::PERM) if trouble.op == Op::Check => {
            "it leads into procfs, where only single files such as /proc/cpuinfo may be covered".to_owned()
        }
        (Stage::Cwd, Errno::NOTDIR) => "is not a directory".to_owned(),
        (Stage::Procfs, Errno::NODEV) => "their own /proc is hidden, or is of other processes".to_owned(),
        (Stage::Enter, Errno::NOMEM) => "no memory, or its first process has ended".to_owned(),
        (_, errno) => words(errno),
    };
    if trouble.op == Op::Check {
        format!("{what}: {why}")
    } else {
        format!("{what}: {}: {why}", trouble.op.word())
    }
}

/// What the stage was about, with its name from the plan.
fn subject(plan: &Plan, trouble: Trouble) -> Option<String> {
    let index = trouble.index as usize;
    let text = |s: &std::ffi::CStr| s.to_string_lossy().into_owned();
    if let Some(process) = plan.process() {
        match trouble.stage {
            Stage::Label => {
                return Some(match process.label.as_ref()? {
                    Label::AppArmor(command) => format!("tell AppArmor {:?}", text(command)),
                    Label::Selinux(context) => format!("set the SELinux context {:?}", text(context)),
                });
            }
            Stage::Cwd => return Some(format!("enter the working directory {:?}", text(&process.cwd))),
            Stage::User => return Some(format!("change to user {}:{}", process.user.uid, process.user.gid)),
            Stage::Rlimit => {
                let limit = process.rlimits.get(index)?;
                return Some(format!(
                    "set resource limit {} to {}:{}",
                    limit.resource, limit.soft, limit.hard
                ));
            }
            Stage::Capabilities if trouble.op == Op::Check => {
                return Some(format!("capability {index} is not available to this node, so it was left out"));
            }
            _ => {}
        }
    }
    let Plan::Launch(plan) = plan else { return None };
    Some(match trouble.stage {
        Stage::Sysctl => format!("set sysctl {}", text(&plan.sysctls.get(index)?.path)),
        Stage::Masked => format!("mask {}", text(plan.masked_paths.get(index)?)),
        Stage::Readonly => format!("make {} read-only", text(plan.readonly_paths.get(index)?)),
        Stage::OomScore => format!("set oom_score_adj to {}", plan.oom_score_adj?),
        Stage::Namespace => {
            format!("enter the {} namespace", ["pid", "net", "ipc", "uts", "cgroup"].get(index)?)
        }
        Stage::Step => match plan.steps.get(index)? {
            Step::Attach { target, .. } => format!("mount {}", text(target)),
            Step::Filesystem { fstype, target, .. } => format!("mount {} on {}", text(fstype), text(target)),
            Step::Attributes { target, .. } => format!("change the mount {}", text(target)),
            Step::Directory { path, .. } => format!("make directory {}", text(path)),
            Step::Device { path, .. } => format!("make device {}", text(path)),
            Step::Symlink { path, .. } => format!("make link {}", text(path)),
        },
        _ => return None,
    })
}

fn exec_failure(process: &ProcessPlan, errno: Errno) -> Failure {
    let name = process.args.first().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
    let (kind, why) = match errno {
        Errno::NOENT if !name.contains('/') => {
            (FailureKind::CommandNotFound, "executable file not found in $PATH".to_owned())
        }
        Errno::NOENT | Errno::NOTDIR => (FailureKind::CommandNotFound, words(errno)),
        // The child tells these apart: see `child::run_program`.
        Errno::LIBBAD => (FailureKind::CommandNotFound, "the interpreter it names does not exist".to_owned()),
        Errno::ISDIR
        | Errno::ACCESS
        | Errno::PERM
        | Errno::NOEXEC
        | Errno::LOOP
        | Errno::INVAL
        | Errno::TXTBSY => (FailureKind::CommandNotExecutable, words(errno)),
        _ => (FailureKind::Os(errno.raw_os_error()), words(errno)),
    };
    Failure { kind, message: format!("exec {name:?}: {why}") }
}

/// What an error number means, in lower case and without its number.
pub fn words(errno: Errno) -> String {
    let text = std::io::Error::from(errno).to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut chars = text.chars();
    chars.next().map(|first| first.to_lowercase().chain(chars).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reports_survive_the_way() {
        let trouble = Trouble { stage: Stage::Descriptors, op: Op::Send, index: 70_000, errno: Errno::NOENT };
        assert_eq!(decode(&encode(Severity::Warning, trouble)), Some((Severity::Warning, trouble)));
        assert_eq!(decode(&[9; LEN]), None);
        assert_eq!(decode(&[0; 3]), None);
    }

    #[test]
    fn words_have_no_number() {
        assert_eq!(words(Errno::NOENT), "no such file or directory");
    }
}
