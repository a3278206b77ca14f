//! Which devices the processes of a cgroup may use: a small BPF program attached to the group.
//!
//! Guarantees: what no rule names is refused (`EPERM` from open(2) and mknod(2)); the program lives as long as the
//! cgroup does, whoever loaded it.
//! Assumes: CAP_BPF or CAP_SYS_ADMIN, and a kernel with CONFIG_CGROUP_BPF.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use crate::{Result, check};

/// Kind of device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Block device.
    Block,
    /// Character device.
    Char,
}

/// What may be done, as bits of a [`Rule`].
pub mod access {
    /// Make a node.
    pub const MKNOD: u32 = 1;
    /// Read.
    pub const READ: u32 = 2;
    /// Write.
    pub const WRITE: u32 = 4;
    /// All of them.
    pub const ALL: u32 = MKNOD | READ | WRITE;
}

/// Devices that are allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Rule {
    /// Kind.
    pub kind: Kind,
    /// Major number; `None` is any.
    pub major: Option<u32>,
    /// Minor number; `None` is any.
    pub minor: Option<u32>,
    /// Bits of [`access`].
    pub access: u32,
}

/// One instruction, as `struct bpf_insn`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

// Operation codes of bpf(2), written out: class | source or size | operation.
const LOAD_WORD: u8 = 0x61;
const MOVE: u8 = 0xbc; // 32-bit, from a register
const MOVE_NUMBER: u8 = 0xb4; // 32-bit, from the instruction
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const JUMP_UNLESS: u8 = 0x55; // != number
const JUMP_UNLESS_REGISTER: u8 = 0x5d; // != register
const EXIT: u8 = 0x95;

// Registers: the answer, the context and scratch, and the four facts.
const ANSWER: u8 = 0;
const CONTEXT: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// Translates rules. The context is `struct bpf_cgroup_dev_ctx`: access and kind in one word, major, minor.
fn compile(rules: &[Rule]) -> Vec<Instruction> {
    let ins = |code, to: u8, from: u8, offset, immediate| Instruction {
        code,
        registers: if cfg!(target_endian = "little") { to | from << 4 } else { to << 4 | from },
        offset,
        immediate,
    };
    let mut program = vec![
        ins(LOAD_WORD, KIND, CONTEXT, 0, 0),
        ins(AND, KIND, 0, 0, 0xffff),
        ins(LOAD_WORD, ACCESS, CONTEXT, 0, 0),
        ins(SHIFT_RIGHT, ACCESS, 0, 0, 16),
        ins(LOAD_WORD, MAJOR, CONTEXT, 4, 0),
        ins(LOAD_WORD, MINOR, CONTEXT, 8, 0),
    ];
    for rule in rules {
        let kind = match rule.kind {
            Kind::Block => 1,
            Kind::Char => 2,
        };
        let mut tests = vec![ins(JUMP_UNLESS, KIND, 0, 0, kind)];
        if rule.access & access::ALL != access::ALL {
            // All that is wanted must be among what is allowed.
            tests.push(ins(MOVE, CONTEXT, ACCESS, 0, 0));
            tests.push(ins(AND, CONTEXT, 0, 0, rule.access as i32));
            tests.push(ins(JUMP_UNLESS_REGISTER, CONTEXT, ACCESS, 0, 0));
        }
        for (register, number) in [(MAJOR, rule.major), (MINOR, rule.minor)] {
            if let Some(number) = number {
                tests.push(ins(JUMP_UNLESS, register, 0, 0, number as i32));
            }
        }
        let end = tests.len() + 2;
        for (at, test) in tests.iter_mut().enumerate() {
            if matches!(test.code, JUMP_UNLESS | JUMP_UNLESS_REGISTER) {
                test.offset = (end - at - 1) as i16;
            }
        }
        program.extend(tests);
        program.push(ins(MOVE_NUMBER, ANSWER, 0, 0, 1));
        program.push(ins(EXIT, 0, 0, 0, 0));
    }
    program.push(ins(MOVE_NUMBER, ANSWER, 0, 0, 0));
    program.push(ins(EXIT, 0, 0, 0, 0));
    program
}

const PROG_LOAD: libc::c_long = 5;
const PROG_ATTACH: libc::c_long = 8;
const PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

/// The first fields of `union bpf_attr` for BPF_PROG_LOAD.
#[repr(C)]
struct LoadAttributes {
    program_type: u32,
    instruction_count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// Those for BPF_PROG_ATTACH.
#[repr(C)]
struct AttachAttributes {
    target: RawFd,
    program: RawFd,
    kind: u32,
    flags: u32,
}

/// Loads a program that allows what the rules name. It can be attached to any number of groups.
///
/// # Errors
/// Those of bpf(2): `EPERM` without the capability, `EINVAL` where the kernel lacks CONFIG_CGROUP_BPF.
pub fn load(rules: &[Rule]) -> Result<OwnedFd> {
    let program = compile(rules);
    let license = c"GPL";
    let attributes = LoadAttributes {
        program_type: PROG_TYPE_CGROUP_DEVICE,
        instruction_count: program.len() as u32,
        instructions: program.as_ptr() as u64,
        license: license.as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    // SAFETY: the attributes, the instructions and the license live through the call, and their exact sizes are
    // passed; the kernel only reads them.
    let fd = check(unsafe {
        libc::syscall(libc::SYS_bpf, PROG_LOAD, &raw const attributes, size_of::<LoadAttributes>())
    })?;
    // SAFETY: the kernel just made this descriptor (close-on-exec); nothing else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Attaches a program to a cgroup's directory. Programs of the groups above stay in force.
///
/// # Errors
/// Those of bpf(2): `EBADF` when it is no cgroup2 directory, `EPERM`.
pub fn attach(cgroup: impl AsFd, program: impl AsFd) -> Result<()> {
    let attributes = AttachAttributes {
        target: cgroup.as_fd().as_raw_fd(),
        program: program.as_fd().as_raw_fd(),
        kind: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: the attributes live through the call and their exact size is passed; the kernel only reads them.
    check(unsafe {
        libc::syscall(libc::SYS_bpf, PROG_ATTACH, &raw const attributes, size_of::<AttachAttributes>())
    })
    .map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::{Cloned, ExitStatus};

    #[test]
    fn only_named_devices_can_be_opened() {
        if !rustix::process::geteuid().is_root() {
            println!("skipped: needs root");
            return;
        }
        let null = Rule { kind: Kind::Char, major: Some(1), minor: Some(3), access: access::ALL };
        let zero = Rule { minor: Some(5), access: access::READ, ..null };
        let program = match load(&[null, zero]) {
            Ok(program) => program,
            Err(errno) => {
                println!("skipped: bpf(2) is not possible here: {errno}");
                return;
            }
        };
        let (root, _) = crate::cgroup::root().unwrap();
        let name = format!("orlop-test-devices-{}", std::process::id());
        let group = root.create(&name).unwrap();
        attach(group.fd(), &program).unwrap();
        // SAFETY: the child makes system calls only.
        let Cloned::Parent { pidfd, .. } =
            (unsafe { crate::process::clone3(0, Some(group.fd()), false) }).unwrap()
        else {
            use rustix::fs::{Mode, OFlags, open};
            let allowed = |path: &std::ffi::CStr, flags| open(path, flags, Mode::empty()).is_ok();
            let code = i32::from(allowed(c"/dev/null", OFlags::RDWR))
                | i32::from(allowed(c"/dev/zero", OFlags::RDONLY)) << 1
                | i32::from(allowed(c"/dev/zero", OFlags::WRONLY)) << 2
                | i32::from(allowed(c"/dev/full", OFlags::RDONLY)) << 3;
            crate::process::exit_now(code)
        };
        assert_eq!(crate::process::wait(&pidfd).unwrap(), ExitStatus::Code(0b0011));
        root.destroy(&name, std::time::Duration::from_secs(5)).unwrap();
    }
}
