//! The profile of containers that ask for `RuntimeDefault`.
//!
//! The facts are those of the profile that Docker, containerd and CRI-O share: an allow-list, some calls that
//! come with a capability, `clone` without new namespaces, `clone3` answered with ENOSYS (its flags cannot be
//! seen by a filter, and C libraries fall back to `clone`).

use super::profile::{Action, Condition, Operator, Profile, Rule};

const ENOSYS: u16 = 38;
const EPERM: u16 = 1;

/// Bits of capabilities that change the profile.
pub const RELEVANT: u64 = bit(2)
    | bit(16)
    | bit(17)
    | bit(18)
    | bit(19)
    | bit(20)
    | bit(21)
    | bit(22)
    | bit(23)
    | bit(25)
    | bit(26)
    | bit(34)
    | bit(38)
    | bit(39);

const SYS_ADMIN: u32 = 21;

/// Allowed for everybody.
const ALWAYS: &str = "
    _llseek _newselect accept accept4 access adjtimex alarm bind brk cachestat capget capset chdir chmod
    chown chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 clock_gettime
    clock_gettime64 clock_nanosleep clock_nanosleep_time64 close close_range connect copy_file_range
    creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait epoll_pwait2
    epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat faccessat2
    fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown fchown32
    fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr fstat
    fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue futex_time64
    futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu getcwd getdents
    getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 getitimer
    getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 getresuid
    getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid getuid32
    getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel
    io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl ioprio_get
    ioprio_set ipc kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32
    lgetxattr link linkat listen listmount listxattr listxattrat llistxattr lremovexattr lseek lsetxattr
    lstat lstat64 madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat
    mknod mknodat mlock mlock2 mlockall mmap mmap2 mprotect mq_getsetattr mq_notify mq_open
    mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal
    msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat
    open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect
    poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease process_vm_readv
    process_vm_writev pselect6 pselect6_time64 ptrace pwrite64 pwritev pwritev2 read readahead readlink
    readlinkat readv recv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr
    removexattrat rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending
    rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64
    rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr
    sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64
    sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl
    semget semop semtimedop semtimedop_time64 send sendfile sendfile64 sendmmsg sendmsg sendto
    set_robust_list set_thread_area set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid
    setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid
    setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid setuid32
    setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask
    sigreturn socketcall socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat
    sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun
    timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime
    timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask
    uname unlink unlinkat uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid
    waitpid write writev";

/// Allowed for everybody where the architecture has them.
const ARCH_ALWAYS: &str = if cfg!(target_arch = "aarch64") {
    "arm_fadvise64_64 arm_sync_file_range sync_file_range2 breakpoint cacheflush set_tls"
} else {
    "arch_prctl modify_ldt"
};

/// Allowed to those who have the capability (by number).
const WITH: &[(u32, &str)] = &[
    (2, "open_by_handle_at"),
    (16, "delete_module finit_module init_module"),
    (17, "ioperm iopl"),
    (18, "chroot"),
    (19, "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace"),
    (20, "acct"),
    (
        SYS_ADMIN,
        "bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie lsm_get_self_attr \
         lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount open_tree perf_event_open quotactl \
         quotactl_fd setdomainname sethostname setns syslog umount umount2 unshare",
    ),
    (22, "reboot"),
    (23, "get_mempolicy mbind set_mempolicy set_mempolicy_home_node"),
    (25, "clock_settime clock_settime64 settimeofday stime"),
    (26, "vhangup"),
    (34, "syslog"),
    (38, "perf_event_open"),
    (39, "bpf"),
];

/// Address families that containers may open sockets of, as inclusive ranges. Left out are those that are
/// hardly used and have a record of kernel bugs (AF_ALG, DECnet, ATM, IrDA, CAIF), and AF_VSOCK, which
/// reaches the hypervisor past every network rule.
const FAMILIES: &[(u64, u64)] =
    &[(0, 11), (13, 18), (21, 22), (24, 24), (26, 33), (35, 36), (39, 39), (41, 45)];

/// Values of `personality` that are harmless.
const PERSONALITIES: &[u64] = &[0x0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// The `CLONE_NEW*` bits of `clone`.
const NEW_NAMESPACES: u64 = 0x7e02_0000;

const fn bit(capability: u32) -> u64 {
    1 << capability
}

/// The profile for a process with these capabilities (bit n: capability n).
pub fn default_profile(capabilities: u64) -> Profile {
    let has = |capability: u32| capabilities & bit(capability) != 0;
    let allow = |names: &str, conditions: Vec<Condition>| Rule {
        names: names.split_whitespace().map(str::to_owned).collect(),
        action: Action::Allow,
        conditions,
    };
    let first = |op, value, value_two| Condition { index: 0, value, value_two, op };
    let mut rules = vec![allow(ALWAYS, Vec::new()), allow(ARCH_ALWAYS, Vec::new())];
    for (low, high) in FAMILIES {
        rules.push(allow("socket", vec![first(Operator::Ge, *low, 0), first(Operator::Le, *high, 0)]));
    }
    for value in PERSONALITIES {
        rules.push(allow("personality", vec![first(Operator::Eq, *value, 0)]));
    }
    for (capability, names) in WITH {
        if has(*capability) {
            rules.push(allow(names, Vec::new()));
        }
    }
    if !has(SYS_ADMIN) {
        rules.push(allow("clone", vec![first(Operator::MaskedEq, NEW_NAMESPACES, 0)]));
        let clone3 = vec!["clone3".to_owned()];
        rules.push(Rule { names: clone3, action: Action::Errno(ENOSYS), conditions: Vec::new() });
    }
    Profile { default_action: Action::Errno(EPERM), rules }
}
