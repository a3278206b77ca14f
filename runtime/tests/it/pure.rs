//! Specs and plans, without the kernel.

use std::path::PathBuf;

use expect_test::{Expect, expect};
use runtime::oci::{self, Surroundings};
use runtime::plan::{self, Action, Draft, Origin};
use runtime::spec::{Capabilities, Mount, MountSource, Propagation, ResolvedUser, Rlimit};
use runtime::{ContainerId, ContainerSpec, SandboxId};

fn around() -> Surroundings<'static> {
    Surroundings {
        hostname: "web-0",
        net: Some("/run/ns/pod/net".into()),
        ipc: Some("/run/ns/pod/ipc".into()),
        uts: Some("/run/ns/pod/uts".into()),
        user: None,
        pid: Some(None),
        shm: "/run/ns/pod/shm".into(),
        cgroup: "/kubepods/pod/c",
        rootfs: "/data/c/upper".into(),
        available: runtime::caps::ALL,
        confinement: runtime::lsm::Confinement::default(),
        devices: Vec::new(),
    }
}

fn container() -> ContainerSpec {
    let (id, pod) = (ContainerId::new("c").expect("an id"), SandboxId::new("pod").expect("an id"));
    ContainerSpec::new(id, pod, vec!["/layers/1".into()], vec!["/bin/app".into(), "-v".into()])
}

fn user() -> ResolvedUser {
    ResolvedUser { uid: 1000, gid: 1001, groups: vec![1001, 2000], home: "/srv".into() }
}

/// The spec as JSON, with the sets of capabilities as bits.
fn check_spec(container: &ContainerSpec, want: Expect) {
    let spec = oci::spec(container, &user(), &around()).expect("a good spec");
    let mut json = serde_json::to_value(&spec).expect("JSON");
    if let Some(sets) = json.pointer_mut("/process/capabilities").and_then(|sets| sets.as_object_mut()) {
        for set in sets.values_mut() {
            let names = set.as_array().cloned().unwrap_or_default();
            let bits = names.iter().filter_map(|name| runtime::caps::bit_of(name.as_str()?));
            *set = format!("{:#x}", bits.fold(0, |all, bit| all | bit)).into();
        }
    }
    want.assert_eq(&serde_json::to_string_pretty(&json).expect("JSON"));
}

fn draft(container: &ContainerSpec) -> Draft {
    plan::draft(&oci::spec(container, &user(), &around()).expect("a good spec")).expect("a good draft")
}

fn check_draft(container: &ContainerSpec, want: Expect) {
    let draft = draft(container);
    let mut text = String::new();
    let process = &draft.process;
    let caps = process.capabilities;
    text += &format!("run {:?} in {:?} as {:?}\n", process.args, process.cwd, process.user);
    text += &format!("env {:?}\n", process.env);
    text += &format!("capabilities {:#x} ambient {:#x}\n", caps.effective, caps.ambient);
    text += &format!("rlimits {:?}\n", process.rlimits);
    text += &format!("namespaces {:?}\n", draft.namespaces);
    for action in &draft.actions {
        match action {
            Action::Step(step) => text += &format!("{step:?}\n"),
            other => text += &format!("{other:?}\n"),
        }
    }
    text += &format!(
        "masked {}, read-only {}, root {:?}\n",
        draft.masked_paths.len(),
        draft.readonly_paths.len(),
        draft.root_propagation
    );
    want.assert_eq(&text);
}

#[test]
fn the_default_spec() {
    check_spec(
        &container(),
        expect![[r#"
        {
          "annotations": {},
          "hostname": "web-0",
          "linux": {
            "cgroupsPath": "/kubepods/pod/c",
            "devices": [
              {
                "fileMode": 438,
                "gid": 0,
                "major": 1,
                "minor": 3,
                "path": "/dev/null",
                "type": "c",
                "uid": 0
              },
              {
                "fileMode": 438,
                "gid": 0,
                "major": 1,
                "minor": 5,
                "path": "/dev/zero",
                "type": "c",
                "uid": 0
              },
              {
                "fileMode": 438,
                "gid": 0,
                "major": 1,
                "minor": 7,
                "path": "/dev/full",
                "type": "c",
                "uid": 0
              },
              {
                "fileMode": 438,
                "gid": 0,
                "major": 1,
                "minor": 8,
                "path": "/dev/random",
                "type": "c",
                "uid": 0
              },
              {
                "fileMode": 438,
                "gid": 0,
                "major": 1,
                "minor": 9,
                "path": "/dev/urandom",
                "type": "c",
                "uid": 0
              },
              {
                "fileMode": 438,
                "gid": 0,
                "major": 5,
                "minor": 0,
                "path": "/dev/tty",
                "type": "c",
                "uid": 0
              }
            ],
            "maskedPaths": [
              "/proc/acpi",
              "/proc/asound",
              "/proc/interrupts",
              "/proc/kcore",
              "/proc/keys",
              "/proc/latency_stats",
              "/proc/sched_debug",
              "/proc/scsi",
              "/proc/timer_list",
              "/sys/devices/virtual/powercap",
              "/sys/firmware"
            ],
            "namespaces": [
              {
                "type": "mount"
              },
              {
                "type": "cgroup"
              },
              {
                "type": "pid"
              },
              {
                "path": "/run/ns/pod/net",
                "type": "network"
              },
              {
                "path": "/run/ns/pod/ipc",
                "type": "ipc"
              },
              {
                "path": "/run/ns/pod/uts",
                "type": "uts"
              }
            ],
            "readonlyPaths": [
              "/proc/bus",
              "/proc/fs",
              "/proc/irq",
              "/proc/sys",
              "/proc/sysrq-trigger"
            ],
            "resources": {
              "devices": []
            },
            "rootfsPropagation": "private"
          },
          "mounts": [
            {
              "destination": "/proc",
              "options": [
                "nosuid",
                "noexec",
                "nodev"
              ],
              "source": "proc",
              "type": "proc"
            },
            {
              "destination": "/dev",
              "options": [
                "nosuid",
                "strictatime",
                "mode=755",
                "size=65536k"
              ],
              "source": "tmpfs",
              "type": "tmpfs"
            },
            {
              "destination": "/dev/pts",
              "options": [
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5"
              ],
              "source": "devpts",
              "type": "devpts"
            },
            {
              "destination": "/dev/mqueue",
              "options": [
                "nosuid",
                "noexec",
                "nodev"
              ],
              "source": "mqueue",
              "type": "mqueue"
            },
            {
              "destination": "/sys",
              "options": [
                "nosuid",
                "noexec",
                "nodev",
                "ro"
              ],
              "source": "sysfs",
              "type": "sysfs"
            },
            {
              "destination": "/sys/fs/cgroup",
              "options": [
                "nosuid",
                "noexec",
                "nodev",
                "relatime",
                "ro"
              ],
              "source": "cgroup",
              "type": "cgroup2"
            },
            {
              "destination": "/dev/shm",
              "options": [
                "nosuid",
                "noexec",
                "nodev",
                "bind",
                "rprivate",
                "rw"
              ],
              "source": "/run/ns/pod/shm",
              "type": "bind"
            }
          ],
          "ociVersion": "1.2.0",
          "process": {
            "args": [
              "/bin/app",
              "-v"
            ],
            "capabilities": {
              "ambient": "0x0",
              "bounding": "0xa80425fb",
              "effective": "0xa80425fb",
              "inheritable": "0x0",
              "permitted": "0xa80425fb"
            },
            "cwd": "/",
            "env": [
              "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
              "HOSTNAME=web-0",
              "HOME=/srv"
            ],
            "noNewPrivileges": false,
            "rlimits": [],
            "terminal": false,
            "user": {
              "additionalGids": [
                1001,
                2000
              ],
              "gid": 1001,
              "uid": 1000
            }
          },
          "root": {
            "path": "/data/c/upper",
            "readonly": false
          }
        }"#]],
    );
}

#[test]
fn the_default_draft() {
    check_draft(
        &container(),
        expect![[r#"
            run ["/bin/app", "-v"] in "/" as User { uid: 1000, gid: 1001, groups: [1001, 2000], umask: None }
            env ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOSTNAME=web-0", "HOME=/srv"]
            capabilities 0xa80425fb ambient 0x0
            rlimits []
            namespaces Namespaces { pid: New, net: Join("/run/ns/pod/net"), ipc: Join("/run/ns/pod/ipc"), uts: Join("/run/ns/pod/uts"), cgroup: New }
            Filesystem { fstype: "proc", source: Some("proc"), options: [], attributes: 14, target: "/proc" }
            Filesystem { fstype: "tmpfs", source: Some("tmpfs"), options: [FsOption { key: "mode", value: Some("755") }, FsOption { key: "size", value: Some("65536k") }], attributes: 34, target: "/dev" }
            Filesystem { fstype: "devpts", source: Some("devpts"), options: [FsOption { key: "newinstance", value: None }, FsOption { key: "ptmxmode", value: Some("0666") }, FsOption { key: "mode", value: Some("0620") }, FsOption { key: "gid", value: Some("5") }], attributes: 10, target: "/dev/pts" }
            Filesystem { fstype: "mqueue", source: Some("mqueue"), options: [], attributes: 14, target: "/dev/mqueue" }
            Filesystem { fstype: "sysfs", source: Some("sysfs"), options: [], attributes: 15, target: "/sys" }
            Filesystem { fstype: "cgroup2", source: Some("cgroup"), options: [], attributes: 15, target: "/sys/fs/cgroup" }
            Bind(Bind { source: "/run/ns/pod/shm", recursive: false, set: 14, set_recursive: 0, propagation: Private, ids: None, target: "/dev/shm" })
            Device { path: "/dev/null", kind: Char, major: 1, minor: 3, mode: 438, uid: 0, gid: 0 }
            Device { path: "/dev/zero", kind: Char, major: 1, minor: 5, mode: 438, uid: 0, gid: 0 }
            Device { path: "/dev/full", kind: Char, major: 1, minor: 7, mode: 438, uid: 0, gid: 0 }
            Device { path: "/dev/random", kind: Char, major: 1, minor: 8, mode: 438, uid: 0, gid: 0 }
            Device { path: "/dev/urandom", kind: Char, major: 1, minor: 9, mode: 438, uid: 0, gid: 0 }
            Device { path: "/dev/tty", kind: Char, major: 5, minor: 0, mode: 438, uid: 0, gid: 0 }
            Symlink { path: "/dev/ptmx", to: "pts/ptmx" }
            Symlink { path: "/dev/fd", to: "/proc/self/fd" }
            Symlink { path: "/dev/stdin", to: "/proc/self/fd/0" }
            Symlink { path: "/dev/stdout", to: "/proc/self/fd/1" }
            Symlink { path: "/dev/stderr", to: "/proc/self/fd/2" }
            Symlink { path: "/dev/core", to: "/proc/kcore" }
            masked 11, read-only 5, root None
        "#]],
    );
}

#[test]
fn volumes_limits_and_privileges() {
    let mut spec = container();
    spec.capabilities = Capabilities {
        add: vec!["NET_ADMIN".into()],
        drop: vec!["ALL".into()],
        add_ambient: vec!["NET_BIND_SERVICE".into()],
    };
    spec.rlimits = vec![Rlimit { name: "nofile".into(), soft: 10, hard: 20 }];
    spec.tty = true;
    spec.masked_paths = Some(vec!["/proc/kcore".into()]);
    spec.readonly_paths = Some(Vec::new());
    spec.env = vec!["PATH=/x".into(), "HOME=/y".into(), "A=1".into(), "A=2".into()];
    spec.mounts = vec![
        Mount { propagation: Propagation::HostToContainer, ..Mount::bind("/host/deep", "/vol/deep") },
        Mount { recursive_readonly: true, noexec: true, ..Mount::bind("/host", "/vol").readonly() },
        Mount {
            source: MountSource::Tmpfs { size: Some(4096), mode: Some(0o700) },
            ..Mount::bind("", "/scratch")
        },
        Mount {
            source: MountSource::Image { lower: vec!["/layers/a".into()], sub_path: Some("sub".into()) },
            ..Mount::bind("", "/image")
        },
        Mount::bind("/host/shm", "/dev/shm"),
    ];
    check_draft(
        &spec,
        expect![[r#"
            run ["/bin/app", "-v"] in "/" as User { uid: 1000, gid: 1001, groups: [1001, 2000], umask: None }
            env ["PATH=/x", "HOME=/y", "A=2", "HOSTNAME=web-0", "TERM=xterm"]
            capabilities 0x1400 ambient 0x400
            rlimits [Rlimit { resource: 7, soft: 10, hard: 20 }]
            namespaces Namespaces { pid: New, net: Join("/run/ns/pod/net"), ipc: Join("/run/ns/pod/ipc"), uts: Join("/run/ns/pod/uts"), cgroup: New }
            Filesystem { fstype: "proc", source: Some("proc"), options: [], attributes: 14, target: "/proc" }
            Filesystem { fstype: "tmpfs", source: Some("tmpfs"), options: [FsOption { key: "mode", value: Some("755") }, FsOption { key: "size", value: Some("65536k") }], attributes: 34, target: "/dev" }
            Filesystem { fstype: "devpts", source: Some("devpts"), options: [FsOption { key: "newinstance", value: None }, FsOption { key: "ptmxmode", value: Some("0666") }, FsOption { key: "mode", value: Some("0620") }, FsOption { key: "gid", value: Some("5") }], attributes: 10, target: "/dev/pts" }
            Filesystem { fstype: "mqueue", source: Some("mqueue"), options: [], attributes: 14, target: "/dev/mqueue" }
            Filesystem { fstype: "sysfs", source: Some("sysfs"), options: [], attributes: 15, target: "/sys" }
            Filesystem { fstype: "cgroup2", source: Some("cgroup"), options: [], attributes: 15, target: "/sys/fs/cgroup" }
            Device { path: "/dev/null", kind: Char, major: 1, minor: 3, mode: 438, uid: 0, gid: 0 }
            Device { path: "/dev/zero", kind: Char, major: 1, minor: 5, mode: 438, uid: 0, gid: 0 }
            Device { path: "/dev/full", kind: Char, major: 1, minor: 7, mode: 438, uid: 0, gid: 0 }
            Device { path: "/dev/random", kind: Char, major: 1, minor: 8, mode: 438, uid: 0, gid: 0 }
            Device { path: "/dev/urandom", kind: Char, major: 1, minor: 9, mode: 438, uid: 0, gid: 0 }
            Device { path: "/dev/tty", kind: Char, major: 5, minor: 0, mode: 438, uid: 0, gid: 0 }
            Symlink { path: "/dev/ptmx", to: "pts/ptmx" }
            Symlink { path: "/dev/fd", to: "/proc/self/fd" }
            Symlink { path: "/dev/stdin", to: "/proc/self/fd/0" }
            Symlink { path: "/dev/stdout", to: "/proc/self/fd/1" }
            Symlink { path: "/dev/stderr", to: "/proc/self/fd/2" }
            Symlink { path: "/dev/core", to: "/proc/kcore" }
            Bind(Bind { source: "/host", recursive: true, set: 8, set_recursive: 1, propagation: Private, ids: None, target: "/vol" })
            Filesystem { fstype: "tmpfs", source: Some("tmpfs"), options: [FsOption { key: "mode", value: Some("700") }, FsOption { key: "size", value: Some("4096") }], attributes: 0, target: "/scratch" }
            Image { lower: ["/layers/a"], sub_path: Some("sub"), set: 1, target: "/image" }
            Bind(Bind { source: "/host/deep", recursive: true, set: 0, set_recursive: 0, propagation: Slave, ids: None, target: "/vol/deep" })
            Bind(Bind { source: "/host/shm", recursive: true, set: 0, set_recursive: 0, propagation: Private, ids: None, target: "/dev/shm" })
            masked 1, read-only 0, root Some(Slave)
        "#]],
    );
}

#[test]
fn privileged_containers_see_everything() {
    let mut spec = container();
    spec.privileged = true;
    let draft = draft(&spec);
    assert_eq!(draft.process.capabilities.effective, runtime::caps::ALL);
    assert!(draft.masked_paths.is_empty() && draft.readonly_paths.is_empty());
    let text = format!("{:?}", draft.actions);
    assert!(!text.contains("\"/sys\", attributes: 1"), "{text}");
}

#[test]
fn a_dev_of_the_host_is_left_alone() {
    let mut spec = container();
    spec.mounts = vec![Mount::bind("/dev", "/dev")];
    let text = format!("{:?}", draft(&spec).actions);
    assert!(!text.contains("Device {") && !text.contains("Symlink"), "{text}");
}

#[test]
fn the_node_can_be_shared() {
    let mut around = around();
    (around.net, around.ipc, around.uts, around.pid) = (None, None, None, None);
    around.shm = "/dev/shm".into();
    let spec = oci::spec(&container(), &user(), &around).expect("a good spec");
    let namespaces = plan::draft(&spec).expect("a good draft").namespaces;
    let want = plan::Namespaces { cgroup: Origin::New, ..plan::Namespaces::default() };
    assert_eq!(namespaces, want);
    around.pid = Some(Some(PathBuf::from("/proc/7/ns/pid")));
    let spec = oci::spec(&container(), &user(), &around).expect("a good spec");
    let pid = plan::draft(&spec).expect("a good draft").namespaces.pid;
    assert_eq!(pid, Origin::Join("/proc/7/ns/pid".into()));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let refused = |change: fn(&mut ContainerSpec)| -> String {
        let mut spec = container();
        change(&mut spec);
        let made = oci::spec(&spec, &user(), &around()).and_then(|spec| plan::draft(&spec));
        made.err().map_or("accepted".into(), |error| error.to_string())
    };
    let all = [
        refused(|spec| spec.args.clear()),
        refused(|spec| spec.cwd = "tmp".into()),
        refused(|spec| spec.mounts = vec![Mount::bind("/a", "/")]),
        refused(|spec| spec.mounts = vec![Mount::bind("/a", "b")]),
        refused(|spec| spec.mounts = vec![Mount { recursive_readonly: true, ..Mount::bind("/a", "/b") }]),
        refused(|spec| spec.mounts = vec![Mount::bind("/a", "/b/../proc")]),
        refused(|spec| spec.mounts = vec![Mount::bind("/a", "/proc")]),
        refused(|spec| spec.mounts = vec![Mount::bind("/a", "/proc/self/attr")]),
        refused(|spec| spec.mounts = vec![Mount::bind("/a", "/proc/meminfo")]),
        refused(|spec| spec.capabilities.add = vec!["CAP_EVERYTHING".into()]),
        refused(|spec| spec.rlimits = vec![Rlimit { name: "nofile".into(), soft: 2, hard: 1 }]),
        refused(|spec| spec.rlimits = vec![Rlimit { name: "files".into(), soft: 2, hard: 2 }]),
        refused(|spec| spec.env = vec!["A=\0".into()]),
    ];
    expect![[r#"
        there is no command: give the container a command, or use an image with an entrypoint
        working directory "tmp" is not absolute: start it with '/'
        mount target "/" is refused: an absolute path below '/' without '..' is wanted
        mount target "b" is refused: an absolute path below '/' without '..' is wanted
        mount "/b" is recursively read-only but not read-only: set both
        mount target "/b/../proc" is refused: an absolute path below '/' without '..' is wanted
        mount target "/proc" is refused: nothing may be mounted in /proc but single files such as /proc/cpuinfo
        mount target "/proc/self/attr" is refused: nothing may be mounted in /proc but single files such as /proc/cpuinfo
        accepted
        capability "CAP_EVERYTHING" is not known: use a name of capabilities(7), such as NET_ADMIN, or ALL
        limit nofile: soft 2 is above hard 1: lower the first
        limit "files" is not known: use a name of getrlimit(2), such as RLIMIT_NOFILE
        "A=\0" has a NUL byte in it: remove it"#]]
    .assert_eq(&all.join("\n"));
}
