//! A profile: what happens to which system call, and how one is read from an OCI seccomp file.
//!
//! Guarantees: unknown system calls are skipped (they exist on other kernels); unknown actions, operators
//! and architectures are errors, so that no rule is silently weaker than written.

use serde::Deserialize;

/// What the kernel does with a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Lets it through.
    Allow,
    /// Lets it through and logs it.
    Log,
    /// Fails it with an errno.
    Errno(u16),
    /// Sends SIGSYS.
    Trap,
    /// Asks a tracer.
    Trace(u16),
    /// Kills the thread.
    KillThread,
    /// Kills the process.
    KillProcess,
}

/// How an argument is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
pub enum Operator {
    /// Not equal.
    #[serde(rename = "SCMP_CMP_NE")]
    Ne,
    /// Less.
    #[serde(rename = "SCMP_CMP_LT")]
    Lt,
    /// Less or equal.
    #[serde(rename = "SCMP_CMP_LE")]
    Le,
    /// Equal.
    #[serde(rename = "SCMP_CMP_EQ")]
    Eq,
    /// Greater or equal.
    #[serde(rename = "SCMP_CMP_GE")]
    Ge,
    /// Greater.
    #[serde(rename = "SCMP_CMP_GT")]
    Gt,
    /// Equal to `value_two` after masking with `value`.
    #[serde(rename = "SCMP_CMP_MASKED_EQ")]
    MaskedEq,
}

/// One comparison of one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Condition {
    /// Which argument, 0 to 5.
    pub index: u8,
    /// With what.
    pub value: u64,
    /// Second operand of `MaskedEq`.
    #[serde(default)]
    pub value_two: u64,
    /// How.
    pub op: Operator,
}

/// An action for some calls, if all conditions hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// Names of the calls.
    pub names: Vec<String>,
    /// What happens.
    pub action: Action,
    /// All must hold.
    pub conditions: Vec<Condition>,
}

/// A whole profile. Of the rules for one call, the first that matches decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Profile {
    /// For calls that no rule matches.
    pub default_action: Action,
    /// In order.
    pub rules: Vec<Rule>,
}

/// What is wrong with a profile.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    /// Not the JSON of a profile.
    #[error("not a seccomp profile: {0}")]
    Syntax(String),
    /// An action this node does not support.
    #[error("action {0} is not supported")]
    Action(String),
    /// An argument number above 5.
    #[error("system calls have arguments 0 to 5, not {0}")]
    Index(u8),
    /// The kernel takes at most 4096 instructions.
    #[error("the filter has {0} instructions, the kernel takes at most 4096: shorten the profile")]
    TooLong(usize),
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct File {
    default_action: String,
    default_errno_ret: Option<u16>,
    #[serde(default)]
    flags: Vec<String>,
    listener_path: Option<String>,
    #[serde(default)]
    syscalls: Vec<FileRule>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct FileRule {
    names: Vec<String>,
    action: String,
    errno_ret: Option<u16>,
    args: Option<Vec<Condition>>,
    #[serde(default, rename = "comment")]
    _comment: Option<String>,
}

/// Reads a profile in the OCI format.
pub fn parse(text: &str) -> Result<Profile, ProfileError> {
    let file: File = serde_json::from_str(text).map_err(|error| ProfileError::Syntax(error.to_string()))?;
    if file.listener_path.is_some_and(|path| !path.is_empty()) {
        return Err(ProfileError::Action("SCMP_ACT_NOTIFY (listenerPath)".into()));
    }
    if let Some(flag) = file.flags.iter().find(|flag| !known_flag(flag)) {
        return Err(ProfileError::Syntax(format!("flag {flag} is not known")));
    }
    let default_action = action(&file.default_action, file.default_errno_ret)?;
    let mut rules = Vec::new();
    for rule in file.syscalls {
        let action = action(&rule.action, rule.errno_ret)?;
        let conditions = rule.args.unwrap_or_default();
        if let Some(bad) = conditions.iter().find(|condition| condition.index > 5) {
            return Err(ProfileError::Index(bad.index));
        }
        // As in runc: several conditions on one argument are alternatives, since together they
        // could be said more simply; on different arguments all must hold.
        let repeated = (0..6).any(|index| conditions.iter().filter(|one| one.index == index).count() > 1);
        if repeated {
            for condition in conditions {
                rules.push(Rule { names: rule.names.clone(), action, conditions: vec![condition] });
            }
        } else {
            rules.push(Rule { names: rule.names, action, conditions });
        }
    }
    Ok(Profile { default_action, rules })
}

/// Flags that change logging or speculation only; they are not passed on.
fn known_flag(flag: &str) -> bool {
    matches!(flag, "SECCOMP_FILTER_FLAG_LOG" | "SECCOMP_FILTER_FLAG_SPEC_ALLOW" | "SECCOMP_FILTER_FLAG_TSYNC")
}

fn action(name: &str, errno: Option<u16>) -> Result<Action, ProfileError> {
    const EPERM: u16 = 1;
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_LOG" => Action::Log,
        "SCMP_ACT_ERRNO" => Action::Errno(errno.unwrap_or(EPERM)),
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_TRACE" => Action::Trace(errno.unwrap_or(EPERM)),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        other => return Err(ProfileError::Action(other.into())),
    })
}
