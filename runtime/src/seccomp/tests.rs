use expect_test::{Expect, expect};

use super::*;

/// Runs a filter as the kernel would, on one call.
fn run(filter: &[Instruction], arch: u32, nr: u32, args: [u64; 6]) -> u32 {
    let mut data = Vec::new();
    data.extend(nr.to_ne_bytes());
    data.extend(arch.to_ne_bytes());
    data.extend(0u64.to_ne_bytes());
    for arg in args {
        data.extend(arg.to_ne_bytes());
    }
    let word = |at: u32| u32::from_ne_bytes(data[at as usize..at as usize + 4].try_into().expect("in range"));
    let (mut accumulator, mut at) = (0u32, 0usize);
    for _ in 0..filter.len() {
        let Instruction { code, jt, jf, k } = filter[at];
        at += 1;
        let branch = |taken: bool| if taken { jt as usize } else { jf as usize };
        match code {
            0x20 => accumulator = word(k),
            0x54 => accumulator &= k,
            0x05 => at += k as usize,
            0x15 => at += branch(accumulator == k),
            0x25 => at += branch(accumulator > k),
            0x35 => at += branch(accumulator >= k),
            0x06 => return k,
            other => panic!("instruction {other:#x}"),
        }
    }
    panic!("the filter does not end");
}

const ARCHES: [(Arch, u32, u32, &str); 3] = [
    (Arch::X86_64, 0xc000_003e, 0, "x86_64"),
    (Arch::X86, 0x4000_0003, 0, "x86"),
    (Arch::X32, 0xc000_003e, 0x4000_0000, "x32"),
];

fn say(answer: u32) -> String {
    match answer & 0xffff_0000 {
        0x7fff_0000 => "allow".into(),
        0x7ffc_0000 => "log".into(),
        0x0005_0000 => format!("errno {}", answer & 0xffff),
        0x0003_0000 => "trap".into(),
        0 => "kill thread".into(),
        0x8000_0000 => "kill process".into(),
        other => format!("{other:#x}"),
    }
}

fn check(profile: &Profile, calls: &[(&str, u64)], want: Expect) {
    let filter =
        compile(profile, &[Arch::X86_64, Arch::X86, Arch::X32]).expect("the profile is short enough");
    let mut out = String::new();
    for (name, arg) in calls {
        out += &format!("{name}({arg:#x}):");
        for (arch, audit, bit, label) in ARCHES {
            let answer = match number(name, arch) {
                Some(nr) => say(run(&filter, audit, nr | bit, [*arg, 0, 0, 0, 0, 0])),
                None => "-".into(),
            };
            out += &format!(" {label} {answer};");
        }
        out += "\n";
    }
    want.assert_eq(&out);
}

#[test]
fn the_default_profile_answers_as_expected() {
    check(
        &default_profile(0),
        &[
            ("openat", 0),
            ("read", 0),
            ("write", 0),
            ("exit_group", 0),
            ("ptrace", 0),
            ("mount", 0),
            ("keyctl", 0),
            ("add_key", 0),
            ("bpf", 0),
            ("unshare", 0),
            ("setns", 0),
            ("clone", 0x0011),
            ("clone", 0x1000_0011),
            ("clone", 0x0002_0011),
            ("clone3", 0),
            ("socket", 2),
            ("socket", 16),
            ("socket", 38),
            ("socket", 40),
            ("socket", 46),
            ("socket", u64::MAX),
            ("personality", 0),
            ("personality", 0x4_0000),
            ("personality", 0xffff_ffff),
            ("io_uring_setup", 0),
            ("userfaultfd", 0),
            ("reboot", 0),
            ("syslog", 0),
            ("socketcall", 0),
            ("arch_prctl", 0),
        ],
        expect![[r#"
            openat(0x0): x86_64 allow; x86 allow; x32 allow;
            read(0x0): x86_64 allow; x86 allow; x32 allow;
            write(0x0): x86_64 allow; x86 allow; x32 allow;
            exit_group(0x0): x86_64 allow; x86 allow; x32 allow;
            ptrace(0x0): x86_64 allow; x86 allow; x32 allow;
            mount(0x0): x86_64 errno 1; x86 errno 1; x32 errno 1;
            keyctl(0x0): x86_64 errno 1; x86 errno 1; x32 errno 1;
            add_key(0x0): x86_64 errno 1; x86 errno 1; x32 errno 1;
            bpf(0x0): x86_64 errno 1; x86 errno 1; x32 errno 1;
            unshare(0x0): x86_64 errno 1; x86 errno 1; x32 errno 1;
            setns(0x0): x86_64 errno 1; x86 errno 1; x32 errno 1;
            clone(0x11): x86_64 allow; x86 allow; x32 allow;
            clone(0x10000011): x86_64 errno 1; x86 errno 1; x32 errno 1;
            clone(0x20011): x86_64 errno 1; x86 errno 1; x32 errno 1;
            clone3(0x0): x86_64 errno 38; x86 errno 38; x32 errno 38;
            socket(0x2): x86_64 allow; x86 allow; x32 allow;
            socket(0x10): x86_64 allow; x86 allow; x32 allow;
            socket(0x26): x86_64 errno 1; x86 errno 1; x32 errno 1;
            socket(0x28): x86_64 errno 1; x86 errno 1; x32 errno 1;
            socket(0x2e): x86_64 errno 1; x86 errno 1; x32 errno 1;
            socket(0xffffffffffffffff): x86_64 errno 1; x86 errno 1; x32 errno 1;
            personality(0x0): x86_64 allow; x86 allow; x32 allow;
            personality(0x40000): x86_64 errno 1; x86 errno 1; x32 errno 1;
            personality(0xffffffff): x86_64 allow; x86 allow; x32 allow;
            io_uring_setup(0x0): x86_64 errno 1; x86 errno 1; x32 errno 1;
            userfaultfd(0x0): x86_64 errno 1; x86 errno 1; x32 errno 1;
            reboot(0x0): x86_64 errno 1; x86 errno 1; x32 errno 1;
            syslog(0x0): x86_64 errno 1; x86 errno 1; x32 errno 1;
            socketcall(0x0): x86_64 -; x86 allow; x32 -;
            arch_prctl(0x0): x86_64 allow; x86 allow; x32 allow;
        "#]],
    );
}

#[test]
fn capabilities_open_their_calls() {
    let admin = 1 << 21;
    check(
        &default_profile(admin),
        &[("mount", 0), ("clone3", 0), ("clone", 0x1000_0011), ("reboot", 0), ("keyctl", 0)],
        expect![[r#"
            mount(0x0): x86_64 allow; x86 allow; x32 allow;
            clone3(0x0): x86_64 allow; x86 allow; x32 allow;
            clone(0x10000011): x86_64 allow; x86 allow; x32 allow;
            reboot(0x0): x86_64 errno 1; x86 errno 1; x32 errno 1;
            keyctl(0x0): x86_64 errno 1; x86 errno 1; x32 errno 1;
        "#]],
    );
    check(
        &default_profile(1 << 25),
        &[("settimeofday", 0), ("mount", 0)],
        expect![[r#"
        settimeofday(0x0): x86_64 allow; x86 allow; x32 allow;
        mount(0x0): x86_64 errno 1; x86 errno 1; x32 errno 1;
    "#]],
    );
}

#[test]
fn another_architecture_is_killed() {
    let filter = compile(&default_profile(0), &[Arch::X86_64]).expect("short");
    assert_eq!(say(run(&filter, 0xc000_00b7, 56, [0; 6])), "kill process");
    assert_eq!(say(run(&filter, 0x4000_0003, 1, [0; 6])), "kill process");
    assert_eq!(say(run(&filter, 0xc000_003e, 0x4000_0001, [0; 6])), "kill process");
}

#[test]
fn every_operator_compares_all_64_bits() {
    let value = 0x1_0000_0005u64;
    let around = [0, 5, 6, value - 1, value, value + 1, 0x2_0000_0000, 0x2_0000_0004, u64::MAX];
    type Truth = fn(u64, u64) -> bool;
    let operators: [(Operator, Truth); 6] = [
        (Operator::Eq, |a, b| a == b),
        (Operator::Ne, |a, b| a != b),
        (Operator::Lt, |a, b| a < b),
        (Operator::Le, |a, b| a <= b),
        (Operator::Gt, |a, b| a > b),
        (Operator::Ge, |a, b| a >= b),
    ];
    for (op, truth) in operators {
        let condition = Condition { index: 2, value, value_two: 0, op };
        let rule = Rule { names: vec!["read".into()], action: Action::Allow, conditions: vec![condition] };
        let profile = Profile { default_action: Action::Trap, rules: vec![rule] };
        let filter = compile(&profile, &[Arch::X86_64]).expect("short");
        for arg in around {
            let answer = say(run(&filter, 0xc000_003e, 0, [9, 9, arg, 9, 9, 9]));
            assert_eq!(answer, if truth(arg, value) { "allow" } else { "trap" }, "{op:?} {arg:#x}");
        }
    }
}

#[test]
fn a_profile_file_is_read() {
    let text = r#"{
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            {"names": ["mkdir", "no_such_call"], "action": "SCMP_ACT_ERRNO", "errnoRet": 22},
            {"names": ["chmod"], "action": "SCMP_ACT_KILL_PROCESS",
             "args": [{"index": 1, "value": 4095, "valueTwo": 511, "op": "SCMP_CMP_MASKED_EQ"}]}
        ]}"#;
    let profile = parse(text).expect("a good profile");
    let filter = compile(&profile, &[Arch::X86_64]).expect("short");
    let answer = |nr, second| say(run(&filter, 0xc000_003e, nr, [0, second, 0, 0, 0, 0]));
    assert_eq!(answer(83, 0), "errno 22");
    assert_eq!(answer(90, 0o777), "kill process");
    assert_eq!(answer(90, 0o755), "allow");
    assert_eq!(answer(0, 0), "allow");
}

#[test]
fn what_cannot_be_kept_is_refused() {
    for (text, want) in [
        ("", "not a seccomp profile"),
        (r#"{"defaultAction":"SCMP_ACT_NOTIFY"}"#, "SCMP_ACT_NOTIFY"),
        (r#"{"defaultAction":"SCMP_ACT_ALLOW","flags":["SECCOMP_FILTER_FLAG_WAIT"]}"#, "flag"),
        (
            r#"{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["a"],"action":"SCMP_ACT_ALLOW",
                "args":[{"index":6,"value":0,"op":"SCMP_CMP_EQ"}]}]}"#,
            "not 6",
        ),
    ] {
        let error = parse(text).expect_err(text).to_string();
        assert!(error.contains(want), "{error}");
    }
    assert!(localhost_path(Path::new("/etc/seccomp"), Path::new("")).is_err());
    assert!(localhost_path(Path::new("/etc/seccomp"), Path::new("../shadow")).is_err());
}

#[test]
fn a_document_allows_what_its_profile_allows() {
    for capabilities in [0, u64::MAX] {
        let profile = default_profile(capabilities);
        let text = document(&profile, Arch::native()).to_string();
        let read = parse(&text).expect("our own document");
        let ours = compile(&profile, &[Arch::X86_64]).expect("the profile is short enough");
        let theirs = compile(&read, &[Arch::X86_64]).expect("the document is short enough");
        for nr in 0..600 {
            for argument in (0..64).chain([0x2_0000, 0x4_0000, 0x1000_0011, 0xffff_ffff, u64::MAX]) {
                let arguments = [argument, 0, 0, 0, 0, 0];
                let [ours, theirs] = [&ours, &theirs].map(|filter| run(filter, 0xc000_003e, nr, arguments));
                assert_eq!(ours, theirs, "call {nr} of {argument:#x}");
            }
        }
        // No rule names an argument twice: other runtimes would take that as alternatives.
        assert!(read.rules.iter().all(|rule| rule.conditions.len() <= 1));
        assert_eq!(read, parse(&document(&read, Arch::native()).to_string()).expect("again"));
    }
}
