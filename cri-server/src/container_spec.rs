//! A container's configuration, and its image's, as the runtime wants them. Pure.
//!
//! Guarantees: a field that we would have to ignore is refused, unless ignoring it changes nothing.
//! Caveat: an image's volumes are directories of the writable layer; with a read-only root they are tmpfs, so
//! that they can be written to.

use std::path::{Component, Path, PathBuf};

use cri_api::v1::{
    ContainerConfig, LinuxContainerSecurityContext, Mount as CriMount, MountPropagation,
    NamespaceMode as Mode, NamespaceOption, PodSandboxConfig, SecurityProfile, Signal,
    SupplementalGroupsPolicy, security_profile::ProfileType,
};
use oci_spec::image::Config as ImageConfig;
use runtime::spec::{
    Capabilities, Device, GroupsPolicy, Mount, MountSource, NamespaceMode, Namespaces, Propagation, Rlimit,
    Seccomp, User,
};
use runtime::{ContainerId, ContainerSpec, SandboxId};
use tonic::Status;

use crate::error::invalid;
use crate::sandbox_spec::{apparmor, ids, resources, selinux, user_namespace};

/// What a container is made from.
pub struct Parts<'a> {
    /// Its id.
    pub id: ContainerId,
    /// Its sandbox's id.
    pub sandbox: SandboxId,
    /// As the kubelet gave it.
    pub config: &'a ContainerConfig,
    /// Its sandbox's configuration.
    pub sandbox_config: &'a PodSandboxConfig,
    /// What the image says.
    pub image: Option<&'a ImageConfig>,
    /// The image's layers, topmost first.
    pub rootfs: Vec<PathBuf>,
    /// Layers of the images among its mounts, in the order of those mounts.
    pub image_mounts: Vec<Vec<PathBuf>>,
    /// Files of the sandbox (resolv.conf and others): target and source.
    pub sandbox_files: Vec<(&'static str, PathBuf)>,
    /// The container whose processes it joins, if it names one.
    pub target: Option<ContainerId>,
    /// POSIX limits of every container.
    pub default_rlimits: &'a [Rlimit],
}

/// Translates a container. The caller adds `meta`, and what devices by name need.
#[expect(deprecated, reason = "old kubelets still set the paths of profiles")]
pub fn container_spec(parts: Parts<'_>) -> Result<ContainerSpec, Status> {
    let config = parts.config;
    if config.windows.is_some() {
        return Err(invalid("a container with Windows settings cannot run on Linux"));
    }
    let linux = config.linux.clone().unwrap_or_default();
    let context = linux.security_context.unwrap_or_default();
    let pod = crate::sandbox_spec::context(parts.sandbox_config);
    if context.privileged && !pod.is_some_and(|pod| pod.privileged) {
        return Err(invalid("a privileged container needs a privileged sandbox"));
    }
    if context.run_as_user.is_some() && !context.run_as_username.is_empty() {
        return Err(invalid("run_as_user and run_as_username are both given: only one of them can be meant"));
    }
    let log_path = log_path(parts.sandbox_config, config)?;
    let image = parts.image;
    let args = args(config, image)?;
    let mut spec = ContainerSpec::new(parts.id, parts.sandbox, parts.rootfs, args);
    spec.env = env(config, image)?;
    spec.cwd = cwd(config, image);
    spec.user = user(&context, image)?;
    spec.readonly_rootfs = context.readonly_rootfs;
    spec.mounts = mounts(config, parts.image_mounts, parts.sandbox_files)?;
    if context.readonly_rootfs {
        let volumes = image.and_then(|image| image.volumes().as_ref()).into_iter().flatten();
        spec.mounts.extend(volume_mounts(volumes, config));
    }
    for device in &config.devices {
        let device = Device::new(&device.host_path, &device.container_path, &device.permissions);
        spec.devices.push(device);
    }
    let capabilities = context.capabilities.clone().unwrap_or_default();
    spec.capabilities = Capabilities {
        add: capabilities.add_capabilities,
        drop: capabilities.drop_capabilities,
        add_ambient: capabilities.add_ambient_capabilities,
    };
    spec.privileged = context.privileged;
    spec.seccomp = seccomp(context.seccomp.as_ref(), &context.seccomp_profile_path)?;
    spec.apparmor = apparmor(context.apparmor.as_ref(), &context.apparmor_profile)?;
    spec.selinux = context.selinux_options.as_ref().map(selinux);
    spec.no_new_privs = context.no_new_privs;
    // Over gRPC an empty list and none are the same. A pod with users of its own may see all of /proc (`procMount:
    // Unmasked`, which Kubernetes allows to no other); else both mean the default, the safe one.
    let own_users =
        pod.and_then(|pod| pod.namespace_options.as_ref()).map(user_namespace).transpose()?.flatten();
    let paths = |list: &[String]| Some(list.to_vec()).filter(|list| !list.is_empty() || own_users.is_some());
    spec.masked_paths = paths(&context.masked_paths);
    spec.readonly_paths = paths(&context.readonly_paths);
    spec.rlimits = parts.default_rlimits.to_vec();
    spec.tty = config.tty;
    spec.stdin = config.stdin;
    spec.stdin_once = config.stdin_once;
    spec.log_path = log_path;
    spec.resources = linux.resources.as_ref().map(resources).transpose()?.unwrap_or_default();
    spec.stop_signal = stop_signal(config.stop_signal, image)?;
    spec.namespaces = namespaces(context.namespace_options.as_ref(), parts.sandbox_config, parts.target)?;
    Ok(spec)
}

/// Where the log goes: beneath the sandbox's directory, if both names are given.
pub fn log_path(sandbox: &PodSandboxConfig, config: &ContainerConfig) -> Result<Option<PathBuf>, Status> {
    if config.log_path.is_empty() || sandbox.log_directory.is_empty() {
        return Ok(None);
    }
    let relative = Path::new(&config.log_path);
    if !relative.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
        return Err(invalid(format!("log_path {:?} leads out of the log directory", config.log_path)));
    }
    let directory = Path::new(&sandbox.log_directory);
    if !directory.is_absolute() {
        return Err(invalid(format!("log_directory {:?} is not absolute", sandbox.log_directory)));
    }
    Ok(Some(directory.join(relative)))
}

/// Command and arguments: a command replaces the image's entrypoint and cmd, arguments its cmd alone.
fn args(config: &ContainerConfig, image: Option<&ImageConfig>) -> Result<Vec<String>, Status> {
    let entrypoint = image.and_then(|i| i.entrypoint().clone()).unwrap_or_default();
    let cmd = image.and_then(|i| i.cmd().clone()).unwrap_or_default();
    let args = match (config.command.is_empty(), config.args.is_empty()) {
        (false, _) => [config.command.clone(), config.args.clone()].concat(),
        (true, false) => [entrypoint, config.args.clone()].concat(),
        (true, true) => [entrypoint, cmd].concat(),
    };
    if args.is_empty() {
        return Err(invalid("no command: neither the container nor its image names one"));
    }
    Ok(args)
}

/// The image's environment, then the container's, each name once.
fn env(config: &ContainerConfig, image: Option<&ImageConfig>) -> Result<Vec<String>, Status> {
    let mut env: Vec<String> = image.and_then(|i| i.env().clone()).unwrap_or_default();
    for pair in &config.envs {
        let value = std::str::from_utf8(&pair.value)
            .map_err(|_| invalid(format!("the value of the variable {:?} is not UTF-8", pair.key)))?;
        let head = format!("{}=", pair.key);
        env.retain(|old| !old.starts_with(&head));
        env.push(head + value);
    }
    Ok(env)
}

fn cwd(config: &ContainerConfig, image: Option<&ImageConfig>) -> String {
    match config.working_dir.as_str() {
        "" => image.and_then(|i| i.working_dir().clone()).unwrap_or_default(),
        given => given.to_owned(),
    }
}

fn user(context: &LinuxContainerSecurityContext, image: Option<&ImageConfig>) -> Result<User, Status> {
    let id = |value: i64, what: &str| {
        u32::try_from(value).map_err(|_| invalid(format!("{what} {value} is not between 0 and 4294967295")))
    };
    let named = &context.run_as_username;
    if context.run_as_group.is_some() && context.run_as_user.is_none() && named.is_empty() {
        return Err(invalid("run_as_group is given without a user: set run_as_user or run_as_username, too"));
    }
    let user = match &context.run_as_user {
        Some(user) => id(user.value, "run_as_user")?.to_string(),
        None if !named.is_empty() => named.clone(),
        None => image.and_then(|i| i.user().clone()).unwrap_or_default(),
    };
    let groups = context.supplemental_groups.iter().map(|group| id(*group, "a supplemental group"));
    Ok(User {
        user,
        group: context.run_as_group.as_ref().map(|group| id(group.value, "run_as_group")).transpose()?,
        supplementary: groups.collect::<Result<_, _>>()?,
        policy: match SupplementalGroupsPolicy::try_from(context.supplemental_groups_policy) {
            Ok(SupplementalGroupsPolicy::Merge) => GroupsPolicy::Merge,
            Ok(SupplementalGroupsPolicy::Strict) => GroupsPolicy::Strict,
            Err(_) => return Err(invalid("supplemental_groups_policy can be Merge or Strict")),
        },
    })
}

fn mounts(
    config: &ContainerConfig,
    image_mounts: Vec<Vec<PathBuf>>,
    sandbox_files: Vec<(&'static str, PathBuf)>,
) -> Result<Vec<Mount>, Status> {
    let mut images = image_mounts.into_iter();
    let mut mounts: Vec<Mount> =
        config.mounts.iter().map(|mount| one_mount(mount, &mut images)).collect::<Result<_, _>>()?;
    let named = |target: &str| config.mounts.iter().any(|m| m.container_path.trim_end_matches('/') == target);
    for (target, source) in sandbox_files {
        if !named(target) {
            mounts.push(Mount { relabel: true, ..Mount::bind(source, target) });
        }
    }
    Ok(mounts)
}

fn one_mount(mount: &CriMount, images: &mut impl Iterator<Item = Vec<PathBuf>>) -> Result<Mount, Status> {
    let target = &mount.container_path;
    if target.is_empty() {
        return Err(invalid("a mount has no container_path"));
    }
    if mount.image.is_none() && !mount.image_sub_path.is_empty() {
        return Err(invalid(format!(
            "the mount at {target} has an image_sub_path but no image: a part of a volume is named by host_path"
        )));
    }
    let ids = ids(&mount.uid_mappings, &mount.gid_mappings, &format!("the mount at {target}"))?;
    let source = match &mount.image {
        Some(_) if !mount.host_path.is_empty() => {
            return Err(invalid(format!("the mount at {target} names both a host path and an image")));
        }
        Some(_) => MountSource::Image {
            lower: images.next().unwrap_or_default(),
            sub_path: Some(PathBuf::from(&mount.image_sub_path)).filter(|path| !path.as_os_str().is_empty()),
        },
        None if !Path::new(&mount.host_path).is_absolute() => {
            return Err(invalid(format!(
                "host_path {:?} of the mount at {target} is not absolute",
                mount.host_path
            )));
        }
        None => MountSource::Path(mount.host_path.clone().into()),
    };
    let propagation = match MountPropagation::try_from(mount.propagation) {
        Ok(MountPropagation::PropagationPrivate) => Propagation::Private,
        Ok(MountPropagation::PropagationHostToContainer) => Propagation::HostToContainer,
        Ok(MountPropagation::PropagationBidirectional) => Propagation::Bidirectional,
        Err(_) => return Err(invalid(format!("the mount at {target} has an unknown propagation"))),
    };
    if mount.recursive_read_only && (!mount.readonly || propagation != Propagation::Private) {
        return Err(invalid(format!(
            "the mount at {target} is to be recursively read-only: it must be readonly, with private propagation"
        )));
    }
    let mut translated = Mount {
        source,
        target: target.into(),
        readonly: mount.readonly || mount.image.is_some(),
        recursive_readonly: mount.recursive_read_only,
        propagation,
        noexec: false,
        nosuid: false,
        nodev: false,
        // An image's layers have the pod's ids anyway.
        ids: ids.filter(|_| mount.image.is_none()),
        relabel: mount.selinux_relabel,
    };
    for option in &mount.mount_options {
        match option.as_str() {
            "noexec" => translated.noexec = true,
            "nosuid" => translated.nosuid = true,
            "nodev" => translated.nodev = true,
            "ro" => translated.readonly = true,
            "rw" => {}
            other => {
                return Err(invalid(format!(
                    "the mount at {target} has the option {other:?}; noexec, nosuid, nodev, ro and rw are known"
                )));
            }
        }
    }
    Ok(translated)
}

fn volume_mounts<'a>(
    volumes: impl Iterator<Item = &'a String>,
    config: &ContainerConfig,
) -> impl Iterator<Item = Mount> {
    volumes
        .filter(|volume| {
            let is_clean = Path::new(volume)
                .components()
                .all(|part| matches!(part, Component::RootDir | Component::Normal(_) | Component::CurDir));
            is_clean
                && volume.len() > 1
                && volume.starts_with('/')
                && !config.mounts.iter().any(|m| Path::new(&m.container_path) == Path::new(volume))
        })
        .map(|volume| Mount {
            source: MountSource::Tmpfs { size: None, mode: Some(0o1777) },
            ..Mount::bind("", volume)
        })
}

/// A seccomp profile, by either of its fields.
pub fn seccomp(profile: Option<&SecurityProfile>, old: &str) -> Result<Seccomp, Status> {
    let localhost = |name: &str| match name {
        "" => Err(invalid("a Localhost seccomp profile needs a localhost_ref that names its file")),
        name => Ok(Seccomp::Localhost(name.into())),
    };
    if let Some(profile) = profile {
        return match ProfileType::try_from(profile.profile_type) {
            Ok(ProfileType::RuntimeDefault) => Ok(Seccomp::RuntimeDefault),
            Ok(ProfileType::Unconfined) => Ok(Seccomp::Unconfined),
            Ok(ProfileType::Localhost) => localhost(&profile.localhost_ref),
            Err(_) => Err(invalid("a seccomp profile can be RuntimeDefault, Unconfined or Localhost")),
        };
    }
    match old {
        "runtime/default" | "docker/default" => Ok(Seccomp::RuntimeDefault),
        // The CRI means no profile by none; a kubelet always says what it wants.
        "" | "unconfined" => Ok(Seccomp::Unconfined),
        other => match other.strip_prefix("localhost/") {
            Some(name) => localhost(name),
            None => Err(invalid(format!("the seccomp profile {other:?} is not known"))),
        },
    }
}

/// The signal's name as the kernel has it; the image's, if the container names none.
fn stop_signal(signal: i32, image: Option<&ImageConfig>) -> Result<Option<String>, Status> {
    let signal =
        Signal::try_from(signal).map_err(|_| invalid(format!("stop_signal {signal} is not known")))?;
    if signal == Signal::RuntimeDefault {
        return Ok(image.and_then(|image| image.stop_signal().clone()).filter(|name| !name.is_empty()));
    }
    let name = signal.as_str_name().trim_start_matches("SIGNAL_");
    Ok(Some(match name {
        "SIGCLD" => "SIGCHLD".to_owned(),
        "SIGIOT" => "SIGABRT".to_owned(),
        "SIGPOLL" => "SIGIO".to_owned(),
        name => name.replace("PLUS", "+").replace("MINUS", "-"),
    }))
}

/// The number that stands for a signal's name in answers.
pub fn signal_of(name: Option<&str>) -> i32 {
    let name = name.unwrap_or("SIGTERM").to_ascii_uppercase();
    let name = if name.starts_with("SIG") { name } else { format!("SIG{name}") };
    let name = format!("SIGNAL_{}", name.replace('+', "PLUS").replace('-', "MINUS"));
    Signal::from_str_name(&name).unwrap_or(Signal::Sigterm) as i32
}

fn namespaces(
    options: Option<&NamespaceOption>,
    sandbox: &PodSandboxConfig,
    target: Option<ContainerId>,
) -> Result<Namespaces, Status> {
    let pod = crate::sandbox_spec::options(sandbox);
    let options = options.cloned().unwrap_or_else(|| pod.clone());
    if user_namespace(&options)? != user_namespace(&pod)? {
        return Err(invalid("the container's user namespace is not that of its sandbox"));
    }
    if !options.target_id.is_empty() && options.pid != Mode::Target as i32 {
        return Err(invalid(format!(
            "target_id {:?} is given, but the pid namespace is not TARGET",
            options.target_id
        )));
    }
    // POD is also what a client means that says nothing.
    for (what, asked, has) in [("network", options.network, pod.network), ("ipc", options.ipc, pod.ipc)] {
        if asked != has && asked != Mode::Pod as i32 {
            return Err(invalid(format!(
                "the container's {what} namespace is not that of its sandbox: the containers of a pod share it"
            )));
        }
    }
    let shared = |mode: i32| if mode == Mode::Node as i32 { NamespaceMode::Node } else { NamespaceMode::Pod };
    Ok(Namespaces {
        net: shared(pod.network),
        uts: shared(pod.network),
        ipc: shared(pod.ipc),
        pid: match (Mode::try_from(options.pid), target) {
            (Ok(Mode::Pod), _) => NamespaceMode::Pod,
            (Ok(Mode::Container), _) => NamespaceMode::Container,
            (Ok(Mode::Node), _) => NamespaceMode::Node,
            (Ok(Mode::Target), Some(target)) => NamespaceMode::Target(target),
            (Ok(Mode::Target), None) => return Err(invalid("the pid namespace TARGET needs a target_id")),
            (Err(_), _) => return Err(invalid("the container's pid namespace is of an unknown kind")),
        },
    })
}

#[cfg(test)]
mod tests;
