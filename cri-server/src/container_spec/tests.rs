//! Containers as kubelets describe them, and what becomes of that.

use cri_api::v1::{
    Capability, IdMapping, ImageSpec, Int64Value, KeyValue, LinuxContainerConfig, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, UserNamespace,
};
use oci_spec::image::ConfigBuilder;

use runtime::spec::AppArmorProfile;

use super::*;

fn words(list: &[&str]) -> Vec<String> {
    list.iter().map(|word| (*word).to_owned()).collect()
}

fn image() -> ImageConfig {
    ConfigBuilder::default()
        .entrypoint(words(&["/entry"]))
        .cmd(words(&["cmd"]))
        .env(words(&["PATH=/bin", "A=image"]))
        .working_dir("/work")
        .user("app:web")
        .stop_signal("SIGQUIT")
        .volumes(words(&["/data", "/../etc"]))
        .build()
        .expect("a config")
}

fn translate_in(sandbox: &PodSandboxConfig, config: &ContainerConfig) -> Result<ContainerSpec, String> {
    container_spec(Parts {
        id: "c1".parse().expect("an id"),
        sandbox: "s1".parse().expect("an id"),
        config,
        sandbox_config: sandbox,
        image: Some(&image()),
        rootfs: vec!["/layer".into()],
        image_mounts: vec![vec!["/other".into()]],
        sandbox_files: vec![("/etc/hosts", "/run/hosts".into()), ("/etc/resolv.conf", "/run/resolv".into())],
        target: None,
        default_rlimits: &[Rlimit { name: "nofile".into(), soft: 1024, hard: 2048 }],
    })
    .map_err(|status| status.message().to_owned())
}

fn translate(config: &ContainerConfig) -> Result<ContainerSpec, String> {
    translate_in(&PodSandboxConfig { log_directory: "/logs".into(), ..Default::default() }, config)
}

fn with(context: LinuxContainerSecurityContext) -> ContainerConfig {
    let linux = LinuxContainerConfig { security_context: Some(context), ..Default::default() };
    ContainerConfig { linux: Some(linux), ..Default::default() }
}

fn refused(config: ContainerConfig, part: &str) {
    let error = translate(&config).expect_err("refused");
    assert!(error.contains(part), "{error}");
}

#[test]
fn the_image_fills_what_is_left_out() {
    let spec = translate(&ContainerConfig::default()).expect("good");
    assert_eq!(spec.args, ["/entry", "cmd"]);
    assert_eq!((spec.cwd.as_str(), spec.user.user.as_str()), ("/work", "app:web"));
    assert_eq!(spec.stop_signal.as_deref(), Some("SIGQUIT"));
    assert_eq!(spec.seccomp, Seccomp::Unconfined);
    assert_eq!((spec.log_path, spec.masked_paths), (None, None));
    assert_eq!((spec.rlimits.len(), spec.rlimits[0].hard), (1, 2048));
    let config = ContainerConfig { args: words(&["x"]), ..Default::default() };
    assert_eq!(translate(&config).expect("good").args, ["/entry", "x"]);
    let config = ContainerConfig { command: words(&["/c"]), ..Default::default() };
    assert_eq!(translate(&config).expect("good").args, ["/c"]);
    let envs = vec![
        KeyValue { key: "A".into(), value: b"mine".to_vec() },
        KeyValue { key: "B".into(), value: b"=".to_vec() },
    ];
    let config = ContainerConfig {
        envs,
        working_dir: "/w".into(),
        log_path: "c/0.log".into(),
        stop_signal: Signal::Sigrtminplus3 as i32,
        ..Default::default()
    };
    let spec = translate(&config).expect("good");
    assert_eq!(spec.env, ["PATH=/bin", "A=mine", "B=="]);
    assert_eq!(spec.log_path.as_deref(), Some(Path::new("/logs/c/0.log")));
    assert_eq!((spec.cwd.as_str(), spec.stop_signal.as_deref()), ("/w", Some("SIGRTMIN+3")));
}

#[test]
fn signals_have_names_and_numbers() {
    assert_eq!(signal_of(None), Signal::Sigterm as i32);
    assert_eq!(signal_of(Some("quit")), Signal::Sigquit as i32);
    assert_eq!(signal_of(Some("SIGRTMAX-2")), Signal::Sigrtmaxminus2 as i32);
}

#[test]
fn users_are_numbers_names_or_the_images() {
    let number = |value| Some(Int64Value { value });
    let context = LinuxContainerSecurityContext {
        run_as_user: number(1000),
        run_as_group: number(2000),
        supplemental_groups: vec![5],
        supplemental_groups_policy: SupplementalGroupsPolicy::Strict as i32,
        ..Default::default()
    };
    let user = translate(&with(context.clone())).expect("good").user;
    assert_eq!((user.user.as_str(), user.group, user.supplementary), ("1000", Some(2000), vec![5]));
    assert_eq!(user.policy, GroupsPolicy::Strict);
    refused(with(LinuxContainerSecurityContext { run_as_user: None, ..context.clone() }), "run_as_group");
    refused(
        with(LinuxContainerSecurityContext { run_as_user: number(1 << 32), ..context.clone() }),
        "4294967296",
    );
    refused(with(LinuxContainerSecurityContext { run_as_user: number(-1), ..context }), "-1");
}

#[test]
fn mounts_keep_what_they_ask_for() {
    let mount = CriMount { container_path: "/m".into(), host_path: "/h".into(), ..Default::default() };
    let one = |mount: CriMount| ContainerConfig { mounts: vec![mount], ..Default::default() };
    let spec = translate(&one(CriMount {
        readonly: true,
        recursive_read_only: true,
        mount_options: words(&["noexec"]),
        ..mount.clone()
    }))
    .expect("good");
    assert!(spec.mounts[0].readonly && spec.mounts[0].recursive_readonly && spec.mounts[0].noexec);
    let targets: Vec<_> = spec.mounts.iter().map(|mount| mount.target.to_str().expect("text")).collect();
    assert_eq!(targets, ["/m", "/etc/hosts", "/etc/resolv.conf"]);
    let hosts =
        translate(&one(CriMount { container_path: "/etc/hosts".into(), ..mount.clone() })).expect("good");
    assert_eq!(hosts.mounts.iter().filter(|m| m.target == Path::new("/etc/hosts")).count(), 1);
    let image = CriMount {
        host_path: String::new(),
        image: Some(ImageSpec { image: "i".into(), ..Default::default() }),
        image_sub_path: "d".into(),
        ..mount.clone()
    };
    let spec = translate(&one(image)).expect("good");
    let source = MountSource::Image { lower: vec!["/other".into()], sub_path: Some("d".into()) };
    assert_eq!((&spec.mounts[0].source, spec.mounts[0].readonly), (&source, true));
    refused(one(CriMount { host_path: "h".into(), ..mount.clone() }), "not absolute");
    refused(one(CriMount { recursive_read_only: true, ..mount.clone() }), "recursively");
    refused(one(CriMount { mount_options: words(&["suid"]), ..mount.clone() }), "suid");
    refused(one(CriMount { uid_mappings: vec![Default::default()], ..mount }), "one mapping of group ids");
}

#[test]
fn volumes_of_a_read_only_root_can_be_written() {
    let spec =
        translate(&with(LinuxContainerSecurityContext { readonly_rootfs: true, ..Default::default() }));
    let mounts = spec.expect("good").mounts;
    let volumes: Vec<_> = mounts.iter().filter(|m| matches!(m.source, MountSource::Tmpfs { .. })).collect();
    assert_eq!(volumes.len(), 1, "never the one that leads out: {volumes:?}");
    assert_eq!(volumes[0].target, Path::new("/data"));
}

#[test]
fn security_is_on_unless_turned_off_and_never_half_applied() {
    let profile = |kind: ProfileType, name: &str| {
        Some(SecurityProfile { profile_type: kind as i32, localhost_ref: name.into() })
    };
    let seccomp = |seccomp| {
        translate(&with(LinuxContainerSecurityContext { seccomp, ..Default::default() }))
            .map(|spec| spec.seccomp)
    };
    assert_eq!(seccomp(profile(ProfileType::Unconfined, "")), Ok(Seccomp::Unconfined));
    assert_eq!(seccomp(profile(ProfileType::Localhost, "a.json")), Ok(Seccomp::Localhost("a.json".into())));
    assert!(seccomp(profile(ProfileType::Localhost, "")).is_err());
    let privileged = LinuxContainerSecurityContext { privileged: true, ..Default::default() };
    refused(with(privileged.clone()), "privileged sandbox");
    let sandbox = PodSandboxConfig {
        linux: Some(LinuxPodSandboxConfig {
            security_context: Some(LinuxSandboxSecurityContext { privileged: true, ..Default::default() }),
            ..Default::default()
        }),
        ..Default::default()
    };
    assert!(translate_in(&sandbox, &with(privileged)).expect("good").privileged);
    #[expect(deprecated, reason = "old kubelets set this field")]
    let apparmor = |apparmor, old: &str| {
        let apparmor_profile = old.to_owned();
        with(LinuxContainerSecurityContext { apparmor, apparmor_profile, ..Default::default() })
    };
    for (config, want) in [
        (apparmor(None, ""), AppArmorProfile::Unspecified),
        (apparmor(profile(ProfileType::RuntimeDefault, ""), ""), AppArmorProfile::RuntimeDefault),
        (apparmor(profile(ProfileType::Unconfined, ""), "runtime/default"), AppArmorProfile::Unconfined),
        (apparmor(profile(ProfileType::Localhost, "a b"), ""), AppArmorProfile::Localhost("a b".into())),
        (apparmor(None, "runtime/default"), AppArmorProfile::RuntimeDefault),
        (apparmor(None, "unconfined"), AppArmorProfile::Unconfined),
        (apparmor(None, "localhost/mine"), AppArmorProfile::Localhost("mine".into())),
    ] {
        assert_eq!(translate(&config).expect("good").apparmor, want);
    }
    refused(apparmor(profile(ProfileType::Localhost, ""), ""), "name of a Localhost AppArmor profile");
    refused(apparmor(profile(ProfileType::Localhost, "a\nb"), ""), "AppArmor");
    refused(apparmor(None, "mine"), "AppArmor");
    refused_log("../x.log");
    refused_log("/x.log");
    let capabilities = Some(Capability { drop_capabilities: words(&["ALL"]), ..Default::default() });
    let spec = translate(&with(LinuxContainerSecurityContext { capabilities, ..Default::default() }));
    assert_eq!(spec.expect("good").capabilities.drop, ["ALL"]);
}

#[test]
fn what_would_have_to_be_ignored_is_refused() {
    let both = LinuxContainerSecurityContext {
        run_as_user: Some(Int64Value { value: 1 }),
        run_as_username: "app".into(),
        ..Default::default()
    };
    refused(with(both), "run_as_username");
    let options = |namespace_options: NamespaceOption| {
        with(LinuxContainerSecurityContext {
            namespace_options: Some(namespace_options),
            ..Default::default()
        })
    };
    let node = Mode::Node as i32;
    refused(options(NamespaceOption { network: node, ..Default::default() }), "network namespace");
    refused(options(NamespaceOption { ipc: node, ..Default::default() }), "ipc namespace");
    refused(options(NamespaceOption { target_id: "c0".into(), ..Default::default() }), "target_id");
    let mount = CriMount {
        container_path: "/a".into(),
        host_path: "/b".into(),
        image_sub_path: "c".into(),
        ..Default::default()
    };
    refused(ContainerConfig { mounts: vec![mount], ..Default::default() }, "image_sub_path");
    let context = LinuxSandboxSecurityContext {
        namespace_options: Some(NamespaceOption { network: node, ..Default::default() }),
        ..Default::default()
    };
    let sandbox = PodSandboxConfig {
        linux: Some(LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() }),
        ..Default::default()
    };
    let silent = options(NamespaceOption::default());
    assert_eq!(translate_in(&sandbox, &silent).expect("good").namespaces.net, NamespaceMode::Node);
}

fn refused_log(path: &str) {
    refused(ContainerConfig { log_path: path.into(), ..Default::default() }, "log_path");
}

#[test]
fn only_pods_with_their_own_users_see_all_of_proc() {
    let sandbox = |own: bool| {
        let ids = || vec![IdMapping { host_id: 65_536, container_id: 0, length: 65_536 }];
        let mode = if own { Mode::Pod } else { Mode::Node };
        let users = UserNamespace { mode: mode as i32, uids: ids(), gids: ids() };
        let options = NamespaceOption { userns_options: Some(users), ..Default::default() };
        let context =
            LinuxSandboxSecurityContext { namespace_options: Some(options.clone()), ..Default::default() };
        let linux = LinuxPodSandboxConfig { security_context: Some(context), ..Default::default() };
        (PodSandboxConfig { linux: Some(linux), ..Default::default() }, options)
    };
    let paths = |own: bool, masked: &[&str]| {
        let (sandbox, options) = sandbox(own);
        let context = LinuxContainerSecurityContext {
            namespace_options: Some(options),
            masked_paths: words(masked),
            readonly_paths: words(masked),
            ..Default::default()
        };
        let spec = translate_in(&sandbox, &with(context)).expect("good");
        assert_eq!(spec.masked_paths, spec.readonly_paths);
        spec.masked_paths
    };
    assert_eq!(paths(true, &[]), Some(Vec::new()));
    assert_eq!(paths(true, &["/proc/kcore"]), Some(words(&["/proc/kcore"])));
    assert_eq!(paths(false, &[]), None);
}
