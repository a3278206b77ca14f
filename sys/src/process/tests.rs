use super::*;

fn open(path: &CStr) -> OwnedFd {
    use rustix::fs::{Mode, OFlags};
    rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).unwrap()
}

fn run(script: &str, fds: Vec<BorrowedFd<'_>>, detached: bool) -> Result<OwnedFd> {
    let shell = open(c"/bin/sh");
    let args = ["sh", "-c", script].map(|s| CString::new(s).unwrap()).to_vec();
    let env = vec![CString::new("A=b").unwrap()];
    spawn(Command { program: shell.as_fd(), args, env, fds, new_session: true, cgroup: None, detached })
}

#[test]
fn a_program_has_only_the_descriptors_and_environment_named() {
    let (r, w) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let null = open(c"/dev/null");
    let script =
        "echo $A-$HOME >&3; for n in 4 5 6 7 8 9; do [ -e /proc/$$/fd/$n ] && echo fd $n >&3; done; exit 0";
    let pidfd = run(script, vec![null.as_fd(), null.as_fd(), null.as_fd(), w.as_fd()], false).unwrap();
    drop(w);
    assert_eq!(wait(&pidfd).unwrap(), ExitStatus::Code(0));
    let mut out = [0; 200];
    let len = rustix::io::read(&r, &mut out).unwrap();
    assert_eq!(std::str::from_utf8(&out[..len]).unwrap().trim(), "b-");
}

#[test]
fn a_detached_program_is_no_child() {
    let (r, w) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap();
    let null = open(c"/dev/null");
    let pidfd =
        run("read x <&3; exit 7", vec![null.as_fd(), null.as_fd(), null.as_fd(), r.as_fd()], true).unwrap();
    assert_eq!(reap(&pidfd).unwrap_err(), Errno::CHILD);
    pidfd_signal(&pidfd, 0).unwrap();
    drop(w);
}

#[test]
fn a_program_that_cannot_run_is_an_error() {
    let file = crate::memfd::sealed(c"junk", b"not a program").unwrap();
    let command = Command {
        program: file.as_fd(),
        args: vec![],
        env: vec![],
        fds: vec![],
        new_session: false,
        cgroup: None,
        detached: true,
    };
    assert_eq!(spawn(command).unwrap_err(), Errno::NOEXEC);
}

#[test]
fn start_time_counts_from_the_last_parenthesis() {
    let stat = "7 (a) b) c) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4711 12 13";
    assert_eq!(start_time_of(stat), Some(4711));
}

#[test]
fn wait_statuses_decode() {
    assert_eq!(decode_wait_status(3 << 8), ExitStatus::Code(3));
    assert_eq!(decode_wait_status(9), ExitStatus::Signal(9));
}
