//! The containers that are compared: one row each.

use std::path::PathBuf;

use runtime::spec::{
    Capabilities, Device, GroupsPolicy, Mount, MountSource, NamespaceMode, Propagation, Rlimit, Seccomp, User,
};
use runtime::{ContainerSpec, SandboxSpec};

/// What the rows are made with.
pub struct World {
    /// A directory with `file` and a mount at `sub`.
    pub volume: PathBuf,
    /// A file.
    pub file: PathBuf,
    /// An image's layer.
    pub image: PathBuf,
}

/// One row.
pub struct Row {
    /// For messages.
    pub name: &'static str,
    /// Kind of sandbox: see `sandbox`.
    pub sandbox: &'static str,
    /// What is different from a plain container.
    pub change: fn(&mut ContainerSpec, &World),
}

/// Makes a sandbox of a kind.
pub fn sandbox(spec: &mut SandboxSpec, kind: &str) {
    let node = NamespaceMode::Node;
    spec.hostname = "web-0".into();
    match kind {
        "plain" => {}
        "node network" => (spec.namespaces.net, spec.namespaces.uts) = (node.clone(), node),
        "node ipc" => spec.namespaces.ipc = node,
        "shared pid" => spec.namespaces.pid = NamespaceMode::Pod,
        "sysctls" => {
            for (name, value) in [
                ("net.ipv4.ip_default_ttl", "77"),
                ("net.ipv4.ping_group_range", "0 100"),
                ("kernel.shm_rmid_forced", "1"),
                ("fs.mqueue.msg_max", "20"),
            ] {
                spec.sysctls.insert(name.into(), value.into());
            }
        }
        "shm" => spec.shm_size = Some(1 << 20),
        other => panic!("no sandbox of kind {other}"),
    }
}

fn row(name: &'static str, change: fn(&mut ContainerSpec, &World)) -> Row {
    Row { name, sandbox: "plain", change }
}

fn user(spec: &mut ContainerSpec, name: &str) {
    spec.user = User { user: name.into(), ..User::default() };
}

fn caps(spec: &mut ContainerSpec, add: &[&str], drop: &[&str], ambient: &[&str]) {
    let strings = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    spec.capabilities =
        Capabilities { add: strings(add), drop: strings(drop), add_ambient: strings(ambient) };
}

fn tmpfs(size: Option<u64>, mode: Option<u32>) -> Mount {
    Mount { source: MountSource::Tmpfs { size, mode }, ..Mount::bind("", "/tmpfs") }
}

fn limit(spec: &mut ContainerSpec, name: &str, soft: u64, hard: u64) {
    spec.rlimits.push(Rlimit { name: name.into(), soft, hard });
}

fn device(spec: &mut ContainerSpec, host: &str, inside: &str, permissions: &str) {
    spec.devices.push(Device::new(host, inside, permissions));
}

fn paths(list: &[&str]) -> Option<Vec<String>> {
    Some(list.iter().map(|path| (*path).to_owned()).collect())
}

/// All rows.
pub fn rows() -> Vec<Row> {
    let mut rows = users_and_rights();
    rows.extend(mounts());
    rows.extend(files_and_limits());
    rows.extend(surroundings());
    rows
}

fn users_and_rights() -> Vec<Row> {
    vec![
        row("plain", |_, _| {}),
        row("user by number", |spec, _| user(spec, "1000")),
        row("user and group", |spec, _| user(spec, "1000:2000")),
        row("user by name", |spec, _| user(spec, "web")),
        row("user by name, strict groups", |spec, _| {
            user(spec, "web");
            spec.user.policy = GroupsPolicy::Strict;
        }),
        row("group wins", |spec, _| {
            user(spec, "web");
            spec.user.group = Some(3000);
        }),
        row("more groups", |spec, _| {
            user(spec, "1000");
            spec.user.supplementary = vec![4000, 5000];
        }),
        row("root with more groups", |spec, _| spec.user.supplementary = vec![7]),
        row("capability added", |spec, _| caps(spec, &["NET_ADMIN"], &[], &[])),
        row("all capabilities added", |spec, _| caps(spec, &["ALL"], &[], &[])),
        row("all capabilities dropped", |spec, _| caps(spec, &[], &["ALL"], &[])),
        row("all dropped, one added", |spec, _| caps(spec, &["NET_BIND_SERVICE"], &["ALL"], &[])),
        row("some dropped", |spec, _| caps(spec, &[], &["MKNOD", "NET_RAW", "SETUID"], &[])),
        row("capabilities of another user", |spec, _| {
            user(spec, "1000");
            caps(spec, &["NET_ADMIN"], &[], &[]);
        }),
        row("ambient capabilities", |spec, _| {
            user(spec, "1000");
            caps(spec, &["NET_BIND_SERVICE"], &[], &["NET_BIND_SERVICE"]);
        }),
        row("no new privileges", |spec, _| spec.no_new_privs = true),
        row("no new privileges, another user", |spec, _| {
            spec.no_new_privs = true;
            user(spec, "1000");
        }),
        row("privileged", |spec, _| spec.privileged = true),
        row("privileged, another user", |spec, _| {
            spec.privileged = true;
            user(spec, "1000");
        }),
        row("no filter", |spec, _| spec.seccomp = Seccomp::Unconfined),
        row("no filter, no new privileges", |spec, _| {
            spec.seccomp = Seccomp::Unconfined;
            spec.no_new_privs = true;
        }),
        row("filter of a file", |spec, world| {
            spec.seccomp = Seccomp::Localhost(world.volume.join("seccomp.json"));
        }),
    ]
}

fn mounts() -> Vec<Row> {
    vec![
        row("a volume", |spec, world| spec.mounts = vec![Mount::bind(&world.volume, "/vol")]),
        row("a read-only volume", |spec, world| {
            spec.mounts = vec![Mount::bind(&world.volume, "/vol").readonly()];
        }),
        row("recursively read-only", |spec, world| {
            spec.mounts =
                vec![Mount { recursive_readonly: true, ..Mount::bind(&world.volume, "/vol").readonly() }];
        }),
        row("a volume for files only", |spec, world| {
            let mount = Mount::bind(&world.volume, "/vol");
            spec.mounts = vec![Mount { noexec: true, nosuid: true, nodev: true, ..mount }];
        }),
        row("a file as volume", |spec, world| spec.mounts = vec![Mount::bind(&world.file, "/vol")]),
        row("a file over a file", |spec, world| {
            spec.mounts = vec![Mount::bind(&world.file, "/etc/group").readonly()];
        }),
        row("a volume in a volume", |spec, world| {
            spec.mounts =
                vec![Mount::bind(&world.volume, "/work"), Mount::bind(&world.volume, "/work/sub").readonly()];
        }),
        row("a volume at a new place", |spec, world| {
            spec.mounts = vec![Mount::bind(&world.volume, "/new/deep")];
        }),
        row("from the node", |spec, world| {
            let propagation = Propagation::HostToContainer;
            spec.mounts = vec![Mount { propagation, ..Mount::bind(&world.volume, "/vol") }];
        }),
        row("both ways", |spec, world| {
            let propagation = Propagation::Bidirectional;
            spec.mounts = vec![Mount { propagation, ..Mount::bind(&world.volume, "/vol") }];
            spec.privileged = true;
        }),
        row("tmpfs", |spec, _| spec.mounts = vec![tmpfs(None, None)]),
        row("tmpfs with a size", |spec, _| spec.mounts = vec![tmpfs(Some(1 << 20), None)]),
        row("tmpfs with a mode", |spec, _| spec.mounts = vec![tmpfs(Some(1 << 20), Some(0o750))]),
        row("tmpfs for reading", |spec, _| spec.mounts = vec![tmpfs(Some(1 << 20), None).readonly()]),
        row("an image as volume", |spec, world| {
            let source = MountSource::Image { lower: vec![world.image.clone()], sub_path: None };
            spec.mounts = vec![Mount { source, ..Mount::bind("", "/image") }.readonly()];
        }),
        row("a directory of an image", |spec, world| {
            let source =
                MountSource::Image { lower: vec![world.image.clone()], sub_path: Some("etc".into()) };
            spec.mounts = vec![Mount { source, ..Mount::bind("", "/image") }.readonly()];
        }),
        row("own shm", |spec, world| spec.mounts = vec![Mount::bind(&world.volume, "/dev/shm")]),
        row("read-only root", |spec, _| spec.readonly_rootfs = true),
        row("read-only root with a volume", |spec, world| {
            spec.readonly_rootfs = true;
            spec.mounts = vec![Mount::bind(&world.volume, "/new/deep"), tmpfs(None, None)];
        }),
        row("writable cgroups", |spec, _| spec.writable_cgroup = true),
    ]
}

fn files_and_limits() -> Vec<Row> {
    vec![
        row("nothing masked", |spec, _| spec.masked_paths = Some(Vec::new())),
        row("other paths masked", |spec, _| {
            spec.masked_paths = paths(&["/etc/group", "/srv", "/not/there"]);
        }),
        row("nothing read-only", |spec, _| spec.readonly_paths = Some(Vec::new())),
        row("other paths read-only", |spec, _| spec.readonly_paths = paths(&["/tmp", "/not/there"])),
        row("a device", |spec, _| device(spec, "/dev/zero", "/dev/mine", "rw")),
        row("a device for reading", |spec, _| device(spec, "/dev/zero", "/dev/mine", "r")),
        row("a device far away", |spec, _| device(spec, "/dev/zero", "/dev/deep/mine", "rwm")),
        row("open files", |spec, _| limit(spec, "RLIMIT_NOFILE", 100, 200)),
        row("several limits", |spec, _| {
            limit(spec, "RLIMIT_CORE", 0, 0);
            limit(spec, "nproc", 1000, 1000);
            limit(spec, "RLIMIT_STACK", 4 << 20, 8 << 20);
            limit(spec, "RLIMIT_FSIZE", 1 << 30, 1 << 30);
        }),
        row("a higher OOM score", |spec, _| spec.resources.oom_score_adj = Some(500)),
        row("environment", |spec, _| {
            spec.env =
                ["A=1", "B=two words", "A=2", "EMPTY=", "PATH=/bin", "UTF=\u{fc}"].map(str::to_owned).into();
        }),
        row("a large environment", |spec, _| {
            spec.env = (0..200).map(|n| format!("V{n}={}", "x".repeat(500))).collect();
        }),
        row("working directory", |spec, _| spec.cwd = "/tmp".into()),
        row("a new working directory", |spec, _| spec.cwd = "/new/deep".into()),
        row("working directory of another user", |spec, _| {
            spec.cwd = "/srv".into();
            user(spec, "web");
        }),
        row("a terminal", |spec, _| spec.tty = true),
        row("a terminal of another user", |spec, _| {
            spec.tty = true;
            user(spec, "1000");
        }),
        row("input", |spec, _| spec.stdin = true),
        row("no program", |spec, _| spec.args = vec!["/nowhere/at-all".into()]),
        row("a directory as program", |spec, _| spec.args = vec!["/etc".into()]),
        row("a file that is no program", |spec, _| spec.args = vec!["/etc/passwd".into()]),
        row("a file as working directory", |spec, _| spec.cwd = "/etc/passwd".into()),
    ]
}

fn surroundings() -> Vec<Row> {
    let plain: fn(&mut ContainerSpec, &World) = |_, _| {};
    vec![
        Row { name: "the node's network", sandbox: "node network", change: plain },
        Row { name: "the node's ipc", sandbox: "node ipc", change: plain },
        Row {
            name: "the node's processes",
            sandbox: "plain",
            change: |spec, _| spec.namespaces.pid = NamespaceMode::Node,
        },
        Row {
            name: "the pod's processes",
            sandbox: "shared pid",
            change: |spec, _| spec.namespaces.pid = NamespaceMode::Pod,
        },
        Row { name: "sysctls", sandbox: "sysctls", change: plain },
        Row { name: "a small shm", sandbox: "shm", change: plain },
    ]
}
