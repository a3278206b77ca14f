//! `ContainerSpec` → OCI runtime spec. Pure.
//!
//! Guarantees: the result is what any OCI runtime would need for the same container, but for the seccomp
//! profile, which is compiled apart and cached (`seccomp`).
//! Assumes: the user is resolved and the sandbox known.

use std::collections::HashSet;
use std::path::PathBuf;

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capability, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxDevice, LinuxDeviceBuilder, LinuxDeviceType,
    LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType, Mount,
    MountBuilder, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, ProcessBuilder, RootBuilder,
    Spec, SpecBuilder, UserBuilder,
};

use crate::caps;
use crate::error::RuntimeError;
use crate::lsm::Confinement;
use crate::spec::{self, ContainerSpec, MountSource, NamespaceMode, Propagation, ResolvedUser};

/// Paths hidden from containers that are not privileged, unless the caller gives others.
pub const MASKED: [&str; 11] = [
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
    "/sys/firmware",
];

/// Paths that are read-only for containers that are not privileged.
pub const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Search path of a container that says none.
const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Mount option of ours: directory of an image volume that is mounted instead of its root.
pub const SUB_PATH: &str = "x-orlop.subpath=";

/// What is known about a container's surroundings.
#[derive(Debug, Clone)]
pub struct Surroundings<'a> {
    /// Host name in the container; empty: not set in the environment.
    pub hostname: &'a str,
    /// Files of the namespaces to join: net, ipc, uts. `None` is the node's.
    pub net: Option<PathBuf>,
    /// The same for ipc.
    pub ipc: Option<PathBuf>,
    /// The same for uts.
    pub uts: Option<PathBuf>,
    /// The pod's user namespace: its file and its ids.
    pub user: Option<(PathBuf, spec::UserNamespace)>,
    /// Process ids: `Some(None)` is a new namespace, `None` the node's.
    pub pid: Option<Option<PathBuf>>,
    /// Directory that becomes `/dev/shm`.
    pub shm: PathBuf,
    /// The container's cgroup from the root of the cgroup2 file system.
    pub cgroup: &'a str,
    /// Where the root file system would be for another OCI runtime.
    pub rootfs: PathBuf,
    /// Capabilities that this node can give.
    pub available: u64,
    /// Device nodes of the host, for privileged containers and for those that are asked for.
    pub devices: Vec<HostDevice>,
    /// What security modules confine it as.
    pub confinement: Confinement,
}

/// A device node found on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostDevice {
    /// Where the container sees it.
    pub path: PathBuf,
    /// Block device, or character device.
    pub block: bool,
    /// Major number.
    pub major: u32,
    /// Minor number.
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Of `r`, `w`, `m`.
    pub permissions: String,
}

/// Makes the OCI spec.
pub fn spec(
    container: &ContainerSpec,
    user: &ResolvedUser,
    around: &Surroundings<'_>,
) -> Result<Spec, RuntimeError> {
    check(container)?;
    build(container, user, around)?.map_err(|error| RuntimeError::invalid(format!("OCI spec: {error}")))
}

fn check(container: &ContainerSpec) -> Result<(), RuntimeError> {
    if container.args.first().is_none_or(String::is_empty) {
        return Err(RuntimeError::invalid(
            "there is no command: give the container a command, or use an image with an entrypoint",
        ));
    }
    if !container.cwd.is_empty() && !container.cwd.starts_with('/') {
        return Err(RuntimeError::invalid(format!(
            "working directory {:?} is not absolute: start it with '/'",
            container.cwd
        )));
    }
    for mount in &container.mounts {
        let up = mount.target.components().any(|part| part == std::path::Component::ParentDir);
        if !mount.target.is_absolute() || up || mount.target.as_os_str() == "/" {
            return Err(RuntimeError::invalid(format!(
                "mount target {:?} is refused: an absolute path below '/' without '..' is wanted",
                mount.target
            )));
        }
        check_proc(mount)?;
        if mount.recursive_readonly && !mount.readonly {
            return Err(RuntimeError::invalid(format!(
                "mount {:?} is recursively read-only but not read-only: set both",
                mount.target
            )));
        }
        if mount.recursive_readonly && mount.propagation != Propagation::Private {
            return Err(RuntimeError::invalid(format!(
                "mount {:?} is recursively read-only and propagates: mounts that arrive later would be writable; \
                 use propagation None",
                mount.target
            )));
        }
    }
    Ok(())
}

/// Files of procfs that tools such as lxcfs put their own in the place of.
const PROC_FILES: [&str; 9] =
    ["cpuinfo", "diskstats", "loadavg", "meminfo", "slabinfo", "stat", "swaps", "uptime", "net/dev"];

/// What looks like procfs must be procfs: the runtime itself and the container's programs trust it.
fn check_proc(mount: &spec::Mount) -> Result<(), RuntimeError> {
    let Ok(below) = mount.target.strip_prefix("/proc") else { return Ok(()) };
    let host_proc = matches!(&mount.source, MountSource::Path(source) if source.as_os_str() == "/proc");
    let good = match below.to_str() {
        Some("") => host_proc,
        Some(file) => PROC_FILES.contains(&file),
        None => false,
    };
    if good {
        return Ok(());
    }
    Err(RuntimeError::invalid(format!(
        "mount target {:?} is refused: nothing may be mounted in /proc but single files such as /proc/cpuinfo",
        mount.target
    )))
}

fn build(
    container: &ContainerSpec,
    user: &ResolvedUser,
    around: &Surroundings<'_>,
) -> Result<Result<Spec, OciSpecError>, RuntimeError> {
    let process = process(container, user, around.hostname, around.available, &around.confinement)?;
    let paths = |chosen: &Option<Vec<String>>, default: &[&str]| -> Vec<String> {
        match chosen {
            _ if container.privileged => Vec::new(),
            Some(paths) => paths.clone(),
            None => default.iter().map(|path| (*path).to_owned()).collect(),
        }
    };
    let masked = paths(&container.masked_paths, &MASKED);
    let readonly = paths(&container.readonly_paths, &READ_ONLY);
    let own_dev = container.mounts.iter().all(|mount| mount.target.as_os_str() != "/dev");
    let make = || -> Result<Spec, OciSpecError> {
        let mut linux = LinuxBuilder::default()
            .namespaces(namespaces(around)?)
            .cgroups_path(around.cgroup)
            .devices(if own_dev { devices(container, around)? } else { Vec::new() })
            .masked_paths(masked)
            .readonly_paths(readonly)
            .rootfs_propagation(rootfs_propagation(container));
        if let Some((_, ids)) = &around.user {
            linux = linux.uid_mappings(vec![mapping(ids.users)?]).gid_mappings(vec![mapping(ids.groups)?]);
        }
        if let Some(label) = &around.confinement.mount_label {
            linux = linux.mount_label(label);
        }
        let linux = linux.build()?;
        let mut spec = SpecBuilder::default()
            .version("1.2.0")
            .process(process)
            .root(RootBuilder::default().path(&around.rootfs).readonly(container.readonly_rootfs).build()?)
            .mounts(mounts(container, around)?)
            .linux(linux);
        if around.uts.is_some() && !around.hostname.is_empty() {
            spec = spec.hostname(around.hostname);
        }
        spec.build()
    };
    Ok(make())
}

fn mapping(range: spec::IdRange) -> Result<LinuxIdMapping, OciSpecError> {
    LinuxIdMappingBuilder::default().container_id(0u32).host_id(range.host).size(range.length).build()
}

/// The process of a container, which is also the pattern of every exec in it.
pub fn process(
    container: &ContainerSpec,
    user: &ResolvedUser,
    hostname: &str,
    available: u64,
    confinement: &Confinement,
) -> Result<Process, RuntimeError> {
    let sets = caps::sets(&container.capabilities, container.privileged, available)?;
    let names = |set: u64| -> Result<HashSet<Capability>, RuntimeError> {
        caps::names(set)
            .map(|name| {
                name.trim_start_matches("CAP_")
                    .parse::<Capability>()
                    .map_err(|_| RuntimeError::invalid(format!("capability {name} has no OCI name")))
            })
            .collect()
    };
    let (all, ambient) = (names(sets.effective)?, names(sets.ambient)?);
    let rlimits = container.rlimits.iter().map(rlimit).collect::<Result<Vec<_>, _>>()?;
    let make = || -> Result<Process, OciSpecError> {
        let process = ProcessBuilder::default()
            .terminal(container.tty)
            .user(
                UserBuilder::default()
                    .uid(user.uid)
                    .gid(user.gid)
                    .additional_gids(user.groups.clone())
                    .build()?,
            )
            .args(container.args.clone())
            .env(environment(container, user, hostname))
            .cwd(if container.cwd.is_empty() { "/".into() } else { PathBuf::from(&container.cwd) })
            .capabilities(
                LinuxCapabilitiesBuilder::default()
                    .bounding(all.clone())
                    .effective(all.clone())
                    .permitted(all)
                    .inheritable(ambient.clone())
                    .ambient(ambient)
                    .build()?,
            )
            .rlimits(rlimits)
            .no_new_privileges(container.no_new_privs);
        let process = match container.resources.oom_score_adj {
            Some(score) => process.oom_score_adj(score.clamp(-1000, 1000)),
            None => process,
        };
        let process = match &confinement.apparmor {
            Some(profile) => process.apparmor_profile(profile),
            None => process,
        };
        match &confinement.process_label {
            Some(label) => process.selinux_label(label),
            None => process,
        }
        .build()
    };
    make().map_err(|error| RuntimeError::invalid(format!("OCI process: {error}")))
}

/// The environment with what every container has: `PATH`, `HOSTNAME`, `HOME`, and `TERM` for terminals.
fn environment(container: &ContainerSpec, user: &ResolvedUser, hostname: &str) -> Vec<String> {
    let mut env: Vec<String> = Vec::with_capacity(container.env.len() + 4);
    for one in &container.env {
        let name = one.split('=').next().unwrap_or_default();
        // A later value replaces an earlier one, in its place.
        match env.iter_mut().find(|old| old.split('=').next() == Some(name)) {
            Some(old) => old.clone_from(one),
            None => env.push(one.clone()),
        }
    }
    let has = |env: &[String], name: &str| env.iter().any(|one| one.split('=').next() == Some(name));
    if !has(&env, "PATH") {
        env.insert(0, PATH.to_owned());
    }
    if !hostname.is_empty() && !has(&env, "HOSTNAME") {
        env.push(format!("HOSTNAME={hostname}"));
    }
    if container.tty && !has(&env, "TERM") {
        env.push("TERM=xterm".to_owned());
    }
    if !has(&env, "HOME") {
        env.push(format!("HOME={}", user.home));
    }
    env
}

fn namespaces(around: &Surroundings<'_>) -> Result<Vec<LinuxNamespace>, OciSpecError> {
    use LinuxNamespaceType::{Cgroup, Ipc, Mount, Network, Pid, User, Uts};
    let new = |typ| LinuxNamespaceBuilder::default().typ(typ).build();
    let join = |typ, path: &PathBuf| LinuxNamespaceBuilder::default().typ(typ).path(path).build();
    let mut all = vec![new(Mount)?, new(Cgroup)?];
    if let Some((path, _)) = &around.user {
        all.push(join(User, path)?);
    }
    match &around.pid {
        Some(Some(path)) => all.push(join(Pid, path)?),
        Some(None) => all.push(new(Pid)?),
        None => {}
    }
    for (typ, path) in [(Network, &around.net), (Ipc, &around.ipc), (Uts, &around.uts)] {
        if let Some(path) = path {
            all.push(join(typ, path)?);
        }
    }
    Ok(all)
}

fn mount(target: &str, kind: &str, source: &str, options: &[&str]) -> Result<Mount, OciSpecError> {
    MountBuilder::default()
        .destination(target)
        .typ(kind)
        .source(source)
        .options(options.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
        .build()
}

fn mounts(container: &ContainerSpec, around: &Surroundings<'_>) -> Result<Vec<Mount>, OciSpecError> {
    let sys = if container.privileged { "rw" } else { "ro" };
    let cgroup = if container.privileged || container.writable_cgroup { "rw" } else { "ro" };
    let safe = ["nosuid", "noexec", "nodev"];
    let with = |more: &[&'static str]| -> Vec<&str> { safe.iter().chain(more).copied().collect() };
    let shm = around.shm.to_string_lossy();
    let mut all = vec![
        mount("/proc", "proc", "proc", &safe)?,
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"])?,
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        )?,
        mount("/dev/mqueue", "mqueue", "mqueue", &safe)?,
        mount("/sys", "sysfs", "sysfs", &with(&[sys]))?,
        mount("/sys/fs/cgroup", "cgroup2", "cgroup", &with(&["relatime", cgroup]))?,
        mount("/dev/shm", "bind", &shm, &with(&["bind", "rprivate", "rw"]))?,
    ];
    // A volume in the place of a default mount replaces it.
    all.retain(|default| container.mounts.iter().all(|mount| mount.target != *default.destination()));
    let mut asked: Vec<&spec::Mount> = container.mounts.iter().collect();
    asked.sort_by_key(|mount| mount.target.components().count());
    for one in asked {
        all.push(volume(one)?);
    }
    Ok(all)
}

fn volume(mount: &spec::Mount) -> Result<Mount, OciSpecError> {
    let mut options = Vec::new();
    let (kind, source) = match &mount.source {
        MountSource::Path(source) => {
            options.push("rbind".to_owned());
            ("bind", source.clone())
        }
        MountSource::Tmpfs { size, mode } => {
            options.push(format!("mode={:o}", mode.unwrap_or(0o1777)));
            options.extend(size.map(|size| format!("size={size}")));
            ("tmpfs", "tmpfs".into())
        }
        MountSource::Image { lower, sub_path } => {
            options.extend(lower.iter().map(|layer| format!("lowerdir+={}", layer.display())));
            options.extend(sub_path.iter().map(|path| format!("{SUB_PATH}{}", path.display())));
            ("overlay", "overlay".into())
        }
    };
    let image = matches!(mount.source, MountSource::Image { .. });
    options.push(
        match mount.propagation {
            Propagation::Private => "rprivate",
            Propagation::HostToContainer => "rslave",
            Propagation::Bidirectional => "rshared",
        }
        .to_owned(),
    );
    options.push(
        match (mount.readonly || image, mount.recursive_readonly) {
            (_, true) => "rro",
            (true, false) => "ro",
            (false, false) => "rw",
        }
        .to_owned(),
    );
    for (set, option) in [(mount.noexec, "noexec"), (mount.nosuid, "nosuid"), (mount.nodev, "nodev")] {
        if set {
            options.push(option.to_owned());
        }
    }
    let mut built = MountBuilder::default();
    if let Some(ids) = mount.ids {
        options.push("ridmap".to_owned());
        built = built.uid_mappings(vec![mapping(ids.users)?]).gid_mappings(vec![mapping(ids.groups)?]);
    }
    built.destination(&mount.target).typ(kind).source(source).options(options).build()
}

/// Volumes that propagate to the container need a root that is a slave, those that propagate back a shared one.
fn rootfs_propagation(container: &ContainerSpec) -> String {
    let strongest =
        container.mounts.iter().map(|mount| mount.propagation).max_by_key(|propagation| match propagation {
            Propagation::Private => 0,
            Propagation::HostToContainer => 1,
            Propagation::Bidirectional => 2,
        });
    match strongest.unwrap_or_default() {
        Propagation::Private => "private",
        Propagation::HostToContainer => "slave",
        Propagation::Bidirectional => "shared",
    }
    .to_owned()
}

/// Whether a path is one of the devices that every container has.
pub fn is_default_device(path: &std::path::Path) -> bool {
    ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty"]
        .iter()
        .any(|known| path == std::path::Path::new(known))
}

fn devices(container: &ContainerSpec, around: &Surroundings<'_>) -> Result<Vec<LinuxDevice>, OciSpecError> {
    let default = |path: &str, major: i64, minor: i64| {
        LinuxDeviceBuilder::default()
            .path(path)
            .typ(LinuxDeviceType::C)
            .major(major)
            .minor(minor)
            .file_mode(0o666u32)
            .uid(0u32)
            .gid(0u32)
            .build()
    };
    let mut all = vec![
        default("/dev/null", 1, 3)?,
        default("/dev/zero", 1, 5)?,
        default("/dev/full", 1, 7)?,
        default("/dev/random", 1, 8)?,
        default("/dev/urandom", 1, 9)?,
        default("/dev/tty", 5, 0)?,
    ];
    if container.privileged {
        // The container's own terminal and queues are mounted there.
        let own = |path: &PathBuf| {
            ["/dev/pts", "/dev/shm", "/dev/mqueue", "/dev/console", "/dev/ptmx"]
                .iter()
                .any(|prefix| path.starts_with(prefix))
        };
        all.retain(|device| around.devices.iter().all(|host| host.path != *device.path()));
        for device in around.devices.iter().filter(|device| !own(&device.path)) {
            all.push(host_device(device)?);
        }
    } else {
        all.retain(|device| around.devices.iter().all(|host| host.path != *device.path()));
        for device in &around.devices {
            all.push(host_device(device)?);
        }
    }
    Ok(all)
}

fn host_device(device: &HostDevice) -> Result<LinuxDevice, OciSpecError> {
    LinuxDeviceBuilder::default()
        .path(&device.path)
        .typ(if device.block { LinuxDeviceType::B } else { LinuxDeviceType::C })
        .major(i64::from(device.major))
        .minor(i64::from(device.minor))
        .file_mode(device.mode)
        .uid(device.uid)
        .gid(device.gid)
        .build()
}

/// Whether this is the name of a POSIX limit: `RLIMIT_NOFILE`, or `nofile`.
pub fn is_rlimit(name: &str) -> bool {
    rlimit_type(name).is_some()
}

fn rlimit_type(name: &str) -> Option<PosixRlimitType> {
    use PosixRlimitType as T;
    let upper = name.to_ascii_uppercase();
    Some(match upper.strip_prefix("RLIMIT_").unwrap_or(&upper) {
        "CPU" => T::RlimitCpu,
        "FSIZE" => T::RlimitFsize,
        "DATA" => T::RlimitData,
        "STACK" => T::RlimitStack,
        "CORE" => T::RlimitCore,
        "RSS" => T::RlimitRss,
        "NPROC" => T::RlimitNproc,
        "NOFILE" => T::RlimitNofile,
        "MEMLOCK" => T::RlimitMemlock,
        "AS" => T::RlimitAs,
        "LOCKS" => T::RlimitLocks,
        "SIGPENDING" => T::RlimitSigpending,
        "MSGQUEUE" => T::RlimitMsgqueue,
        "NICE" => T::RlimitNice,
        "RTPRIO" => T::RlimitRtprio,
        "RTTIME" => T::RlimitRttime,
        _ => return None,
    })
}

fn rlimit(limit: &spec::Rlimit) -> Result<PosixRlimit, RuntimeError> {
    let typ = rlimit_type(&limit.name).ok_or_else(|| {
        RuntimeError::invalid(format!(
            "limit {:?} is not known: use a name of getrlimit(2), such as RLIMIT_NOFILE",
            limit.name
        ))
    })?;
    if limit.soft > limit.hard {
        return Err(RuntimeError::invalid(format!(
            "limit {}: soft {} is above hard {}: lower the first",
            limit.name, limit.soft, limit.hard
        )));
    }
    PosixRlimitBuilder::default()
        .typ(typ)
        .soft(limit.soft)
        .hard(limit.hard)
        .build()
        .map_err(|error| RuntimeError::invalid(format!("limit {}: {error}", limit.name)))
}

/// Checks that a container's idea of namespaces fits its sandbox's; gives where process ids come from.
pub fn check_namespaces(
    container: &ContainerSpec,
    sandbox: &spec::SandboxSpec,
) -> Result<NamespaceMode, RuntimeError> {
    let pid = container.namespaces.pid.clone();
    if pid == NamespaceMode::Pod && sandbox.namespaces.pid != NamespaceMode::Pod {
        return Err(RuntimeError::invalid(format!(
            "container {} shares process ids with its pod, but sandbox {} was made without a shared namespace: \
             ask for it when the sandbox is made",
            container.id, sandbox.id
        )));
    }
    Ok(pid)
}
