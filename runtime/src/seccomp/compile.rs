//! Profile → classic BPF.
//!
//! Per architecture the call numbers are cut into segments with one decision each, and found by binary
//! search: about eight comparisons for any call, where a list would take hundreds.
//!
//! Guarantees: a program of another architecture is killed; the first matching rule decides.

use std::collections::BTreeMap;

use super::profile::{Action, Condition, Operator, Profile, ProfileError};
use super::{Arch, number};

/// One instruction, laid out as the kernel's `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(C)]
pub struct Instruction {
    /// Operation.
    pub code: u16,
    /// Instructions to skip if true.
    pub jt: u8,
    /// Instructions to skip if false.
    pub jf: u8,
    /// Operand.
    pub k: u32,
}

const LOAD: u16 = 0x20; // BPF_LD | BPF_W | BPF_ABS
const AND: u16 = 0x54; // BPF_ALU | BPF_AND | BPF_K
const JUMP: u16 = 0x05; // BPF_JMP | BPF_JA
const JEQ: u16 = 0x15;
const JGT: u16 = 0x25;
const JGE: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NR: u32 = 0;
const ARCH: u32 = 4;
const ARGS: u32 = 16;

/// Bit of an x32 call.
const X32_BIT: u32 = 0x4000_0000;
const LONGEST: usize = 4096;

const AUDIT_X86_64: u32 = 0xc000_003e;
const AUDIT_I386: u32 = 0x4000_0003;
const AUDIT_AARCH64: u32 = 0xc000_00b7;

/// What happens to one call: conditional rules in order, then an end.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Decision {
    rules: Vec<(Vec<Condition>, Action)>,
    end: Action,
}

/// Translates a profile for these architectures.
pub fn compile(profile: &Profile, arches: &[Arch]) -> Result<Vec<Instruction>, ProfileError> {
    let section = |arch: Arch| arches.contains(&arch).then(|| search(&segments(profile, arch)));
    let mut program = vec![load(ARCH)];
    if let Some(native) = section(Arch::X86_64) {
        let mut body = vec![load(NR)];
        match section(Arch::X32) {
            Some(x32) => {
                body.extend(choose(JGE, X32_BIT, native, x32));
            }
            None => body.extend(choose(JGE, X32_BIT, native, vec![give(Action::KillProcess)])),
        }
        program.extend(only_if_arch(AUDIT_X86_64, body));
    }
    if let Some(native) = section(Arch::Aarch64) {
        let mut body = vec![load(NR)];
        body.extend(native);
        program.extend(only_if_arch(AUDIT_AARCH64, body));
    }
    if let Some(small) = section(Arch::X86) {
        let mut body = vec![load(NR)];
        body.extend(small);
        program.extend(only_if_arch(AUDIT_I386, body));
    }
    program.push(give(Action::KillProcess));
    if program.len() > LONGEST { Err(ProfileError::TooLong(program.len())) } else { Ok(program) }
}

/// Runs `body` (which always returns) when the loaded architecture is this one.
fn only_if_arch(arch: u32, body: Vec<Instruction>) -> Vec<Instruction> {
    let mut out = vec![jump(JEQ, arch, 1, 0), ins(JUMP, body.len() as u32)];
    out.extend(body);
    out
}

/// `if (loaded OP k) { yes } else { no }`, where both always return.
fn choose(code: u16, k: u32, no: Vec<Instruction>, yes: Vec<Instruction>) -> Vec<Instruction> {
    let mut out = Vec::with_capacity(no.len() + yes.len() + 2);
    match u8::try_from(no.len()) {
        Ok(skip) => out.push(jump(code, k, skip, 0)),
        Err(_) => {
            out.push(jump(code, k, 0, 1));
            out.push(ins(JUMP, no.len() as u32));
        }
    }
    out.extend(no);
    out.extend(yes);
    out
}

/// The decisions of one architecture as `(first number, decision)`, sorted, from 0 on.
fn segments(profile: &Profile, arch: Arch) -> Vec<(u32, Decision)> {
    let mut calls: BTreeMap<u32, Vec<(Vec<Condition>, Action)>> = BTreeMap::new();
    for rule in &profile.rules {
        for name in &rule.names {
            if let Some(number) = number(name, arch) {
                let number = if arch == Arch::X32 { number | X32_BIT } else { number };
                calls.entry(number).or_default().push((rule.conditions.clone(), rule.action));
            }
        }
    }
    let plain = |end| Decision { rules: Vec::new(), end };
    let mut cuts: Vec<(u32, Decision)> = vec![(0, plain(profile.default_action))];
    for (number, mut rules) in calls {
        let decision = match rules.iter().position(|(conditions, _)| conditions.is_empty()) {
            Some(first) => {
                let end = rules[first].1;
                rules.truncate(first);
                Decision { rules, end }
            }
            None => Decision { rules, end: profile.default_action },
        };
        // The cut after the previous call stands at its number + 1: replace it, or add one.
        match cuts.last_mut() {
            Some(last) if last.0 == number => last.1 = decision,
            _ => cuts.push((number, decision)),
        }
        cuts.push((number + 1, plain(profile.default_action)));
    }
    cuts.dedup_by(|next, kept| next.1 == kept.1);
    cuts
}

/// Binary search over the segments, with the number loaded.
fn search(cuts: &[(u32, Decision)]) -> Vec<Instruction> {
    match cuts {
        [] => vec![give(Action::KillProcess)],
        [(_, decision)] => decide(decision),
        _ => {
            let (low, high) = cuts.split_at(cuts.len() / 2);
            choose(JGE, high[0].0, search(low), search(high))
        }
    }
}

fn decide(decision: &Decision) -> Vec<Instruction> {
    let mut out = Vec::new();
    for (conditions, action) in &decision.rules {
        // Of each rule: the tests, which jump behind `give` when they fail, and `give`.
        let tests: Vec<Test> = conditions.iter().flat_map(test).collect();
        let end = tests.len() + 1;
        let mut condition_end = 0;
        for (at, one) in tests.iter().enumerate() {
            condition_end = condition_end.max(at + one.left);
            let target = |to: To| -> u8 {
                let to = match to {
                    To::Next => at + 1,
                    To::Pass => at + one.left,
                    To::Fail => end,
                };
                // A rule has at most six conditions of five instructions.
                u8::try_from(to - at - 1).expect("a rule is shorter than 255 instructions")
            };
            out.push(Instruction { code: one.code, jt: target(one.yes), jf: target(one.no), k: one.k });
        }
        out.push(give(*action));
    }
    out.push(give(decision.end));
    out
}

#[derive(Clone, Copy)]
enum To {
    Next,
    /// Behind this condition.
    Pass,
    /// Behind this rule.
    Fail,
}

/// One instruction of a condition; `left` counts from it to the condition's end.
#[derive(Clone, Copy)]
struct Test {
    code: u16,
    k: u32,
    yes: To,
    no: To,
    left: usize,
}

fn test(condition: &Condition) -> Vec<Test> {
    let offset = ARGS + 8 * u32::from(condition.index);
    let (low_at, high_at) =
        if cfg!(target_endian = "little") { (offset, offset + 4) } else { (offset + 4, offset) };
    let (low, high) = (condition.value as u32, (condition.value >> 32) as u32);
    let step = |code, k| Test { code, k, yes: To::Next, no: To::Next, left: 0 };
    let branch = |code, k, yes, no| Test { code, k, yes, no, left: 0 };
    let (load_low, load_high) = (step(LOAD, low_at), step(LOAD, high_at));
    let mut tests = match condition.op {
        Operator::Eq => vec![
            load_high,
            branch(JEQ, high, To::Next, To::Fail),
            load_low,
            branch(JEQ, low, To::Pass, To::Fail),
        ],
        Operator::Ne => vec![
            load_high,
            branch(JEQ, high, To::Next, To::Pass),
            load_low,
            branch(JEQ, low, To::Fail, To::Pass),
        ],
        Operator::Gt => greater(load_high, load_low, high, branch(JGT, low, To::Pass, To::Fail)),
        Operator::Ge => greater(load_high, load_low, high, branch(JGE, low, To::Pass, To::Fail)),
        Operator::Lt => less(load_high, load_low, high, branch(JGE, low, To::Fail, To::Pass)),
        Operator::Le => less(load_high, load_low, high, branch(JGT, low, To::Fail, To::Pass)),
        Operator::MaskedEq => vec![
            load_high,
            step(AND, high),
            branch(JEQ, (condition.value_two >> 32) as u32, To::Next, To::Fail),
            load_low,
            step(AND, low),
            branch(JEQ, condition.value_two as u32, To::Pass, To::Fail),
        ],
    };
    let length = tests.len();
    for (at, test) in tests.iter_mut().enumerate() {
        test.left = length - at;
    }
    tests
}

fn greater(load_high: Test, load_low: Test, high: u32, last: Test) -> Vec<Test> {
    let more = Test { code: JGT, k: high, yes: To::Pass, no: To::Next, left: 0 };
    let same = Test { code: JEQ, k: high, yes: To::Next, no: To::Fail, left: 0 };
    vec![load_high, more, same, load_low, last]
}

fn less(load_high: Test, load_low: Test, high: u32, last: Test) -> Vec<Test> {
    let more = Test { code: JGT, k: high, yes: To::Fail, no: To::Next, left: 0 };
    let same = Test { code: JEQ, k: high, yes: To::Next, no: To::Pass, left: 0 };
    vec![load_high, more, same, load_low, last]
}

fn give(action: Action) -> Instruction {
    ins(
        RETURN,
        match action {
            Action::Allow => 0x7fff_0000,
            Action::Log => 0x7ffc_0000,
            Action::Errno(errno) => 0x0005_0000 | u32::from(errno),
            Action::Trap => 0x0003_0000,
            Action::Trace(data) => 0x7ff0_0000 | u32::from(data),
            Action::KillThread => 0,
            Action::KillProcess => 0x8000_0000,
        },
    )
}

fn load(offset: u32) -> Instruction {
    ins(LOAD, offset)
}

fn ins(code: u16, k: u32) -> Instruction {
    Instruction { code, jt: 0, jf: 0, k }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> Instruction {
    Instruction { code, jt, jf, k }
}
