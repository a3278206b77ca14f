//! A profile as the OCI spec's `linux.seccomp`, for runtimes that compile it by themselves. Pure.
//!
//! Those take several conditions on one argument as alternatives, where ours all must hold: a range becomes
//! one rule for each of its values.

use serde_json::{Value, json};

use super::Arch;
use super::profile::{Action, Condition, Operator, Profile};

/// The profile as JSON.
pub fn document(profile: &Profile, architectures: &[Arch]) -> Value {
    let (default_action, default_errno) = action(profile.default_action);
    let rules: Vec<Value> = profile
        .rules
        .iter()
        .flat_map(|rule| alternatives(&rule.conditions).into_iter().map(move |conditions| (rule, conditions)))
        .map(|(rule, conditions)| {
            let (action, errno) = action(rule.action);
            let args: Vec<Value> = conditions
                .iter()
                .map(|condition| {
                    json!({
                        "index": condition.index,
                        "value": condition.value,
                        "valueTwo": condition.value_two,
                        "op": operator(condition.op),
                    })
                })
                .collect();
            let mut document = json!({ "names": rule.names, "action": action });
            if let Some(errno) = errno {
                document["errnoRet"] = errno.into();
            }
            if !args.is_empty() {
                document["args"] = args.into();
            }
            document
        })
        .collect();
    let architectures: Vec<&str> = architectures.iter().map(|arch| name(*arch)).collect();
    let mut document =
        json!({ "defaultAction": default_action, "architectures": architectures, "syscalls": rules });
    if let Some(errno) = default_errno {
        document["defaultErrnoRet"] = errno.into();
    }
    document
}

/// The conditions as alternatives of which none names an argument twice.
fn alternatives(conditions: &[Condition]) -> Vec<Vec<Condition>> {
    match conditions {
        [low, high] if low.index == high.index && (low.op, high.op) == (Operator::Ge, Operator::Le) => {
            (low.value..=high.value)
                .map(|value| vec![Condition { value, op: Operator::Eq, ..*low }])
                .collect()
        }
        conditions => vec![conditions.to_vec()],
    }
}

fn action(action: Action) -> (&'static str, Option<u16>) {
    match action {
        Action::Allow => ("SCMP_ACT_ALLOW", None),
        Action::Log => ("SCMP_ACT_LOG", None),
        Action::Errno(number) => ("SCMP_ACT_ERRNO", Some(number)),
        Action::Trap => ("SCMP_ACT_TRAP", None),
        Action::Trace(number) => ("SCMP_ACT_TRACE", Some(number)),
        Action::KillThread => ("SCMP_ACT_KILL", None),
        Action::KillProcess => ("SCMP_ACT_KILL_PROCESS", None),
    }
}

fn operator(operator: Operator) -> &'static str {
    match operator {
        Operator::Ne => "SCMP_CMP_NE",
        Operator::Lt => "SCMP_CMP_LT",
        Operator::Le => "SCMP_CMP_LE",
        Operator::Eq => "SCMP_CMP_EQ",
        Operator::Ge => "SCMP_CMP_GE",
        Operator::Gt => "SCMP_CMP_GT",
        Operator::MaskedEq => "SCMP_CMP_MASKED_EQ",
    }
}

fn name(arch: Arch) -> &'static str {
    match arch {
        Arch::X86_64 => "SCMP_ARCH_X86_64",
        Arch::X86 => "SCMP_ARCH_X86",
        Arch::X32 => "SCMP_ARCH_X32",
        Arch::Aarch64 => "SCMP_ARCH_AARCH64",
    }
}
