//! Files in directories of the test's own; devices of every machine.

use cri_api::v1::CdiDevice;

use super::*;

fn spec() -> ContainerSpec {
    let id = |text: &str| text.parse().expect("an id");
    let mut spec =
        ContainerSpec::new(id("c1"), "s1".parse().expect("an id"), vec!["/l".into()], vec!["sh".into()]);
    spec.env = vec!["A=old".into(), "B=kept".into()];
    spec.mounts = vec![Mount::bind("/old", "/lib/x"), Mount::bind("/other", "/other")];
    spec
}

fn write(directory: &Path, name: &str, edits: &str) {
    let text = format!(
        "cdiVersion: 0.7.0\nkind: vendor.com/{}\ncontainerEdits: {{env: [ALL=1], additionalGids: [44]}}\ndevices:\n\
         - name: one\n  containerEdits: {edits}\n- name: two\n  containerEdits: {{env: [TWO=2]}}\n",
        name.split('.').next().expect("a name")
    );
    std::fs::write(directory.join(name), text).expect("written");
}

fn inject_into(directories: &[&Path], names: &[&str]) -> Result<ContainerSpec, Status> {
    let (mut spec, names) = (spec(), names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>());
    let directories: Vec<PathBuf> = directories.iter().map(|path| path.to_path_buf()).collect();
    inject(&names, &directories, &mut spec).map(|()| spec)
}

#[test]
fn a_container_gets_what_its_devices_need() {
    let dir = tempfile::tempdir().expect("a directory");
    write(
        dir.path(),
        "gpu.yaml",
        "{env: [A=new], additionalGids: [0, 44, 45], mounts: [{hostPath: /usr/lib, containerPath: /lib/x, \
         options: [ro, nosuid, nodev, rbind, rprivate]}], deviceNodes: [{path: /dev/gpu, hostPath: /dev/null, \
         type: c, major: 1, minor: 3, fileMode: 432, gid: 44, permissions: rw}]}",
    );
    let made = inject_into(&[dir.path()], &["vendor.com/gpu=one", "vendor.com/gpu=two"]).expect("injected");
    assert_eq!(made.env, ["B=kept", "ALL=1", "A=new", "TWO=2"]);
    assert_eq!(made.user.supplementary, [44, 45]);
    let device = &made.devices[0];
    assert_eq!(
        (device.host_path.to_str(), device.container_path.to_str(), device.permissions.as_str()),
        (Some("/dev/null"), Some("/dev/gpu"), "rw")
    );
    assert_eq!((device.mode, device.uid, device.gid), (Some(0o660), None, Some(44)));
    let mount = made.mounts.last().expect("a mount");
    assert_eq!(made.mounts.len(), 2);
    assert!(mount.readonly && mount.nosuid && mount.nodev && !mount.noexec, "{mount:?}");
    let plain = inject_into(&[dir.path()], &[]).expect("nothing to do");
    assert_eq!(plain, spec());
}

#[test]
fn later_directories_win_and_doubles_in_one_are_refused() {
    let (etc, run) = (tempfile::tempdir().expect("one"), tempfile::tempdir().expect("two"));
    write(etc.path(), "gpu.yaml", "{env: [FROM=etc]}");
    write(run.path(), "gpu.yaml", "{env: [FROM=run]}");
    let made = inject_into(&[etc.path(), run.path()], &["vendor.com/gpu=one"]).expect("injected");
    assert!(made.env.contains(&"FROM=run".to_owned()), "{:?}", made.env);
    write(run.path(), "gpu.json", "{env: [FROM=other]}");
    let error = inject_into(&[etc.path(), run.path()], &["vendor.com/gpu=one"]).expect_err("refused");
    assert_eq!(error.code(), tonic::Code::FailedPrecondition);
    assert!(error.message().contains("gpu.json") && error.message().contains("gpu.yaml"), "{error}");
}

#[test]
fn unknown_devices_and_broken_files_are_named() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("broken.json"), "{\"cdiVersion\": \"7\"}").expect("written");
    std::fs::write(dir.path().join("ignored.txt"), "{").expect("written");
    let missing = dir.path().join("missing");
    let error = inject_into(&[&missing, dir.path()], &["vendor.com/gpu=one"]).expect_err("refused");
    assert_eq!(error.code(), tonic::Code::FailedPrecondition);
    let told = error.message();
    assert!(told.contains("vendor.com/gpu=one") && told.contains("broken.json"), "{told}");
    assert!(!told.contains("ignored"), "{told}");
}

#[test]
fn what_cannot_be_given_is_refused() {
    for (edits, part) in [
        ("{hooks: [{hookName: createContainer, path: /bin/x}]}", "hooks"),
        ("{intelRdt: {closID: a}}", "intelRdt"),
        ("{netDevices: [{hostInterfaceName: eth0, name: net0}]}", "netDevices"),
        ("{env: [novalue]}", "novalue"),
        ("{deviceNodes: [{path: dev/x}]}", "absolute"),
        ("{deviceNodes: [{path: /dev/null, minor: 4}]}", "another device"),
        ("{deviceNodes: [{path: /dev/null, type: b}]}", "another device"),
        ("{deviceNodes: [{path: /dev/null, type: p}]}", "\"p\""),
        ("{deviceNodes: [{path: /dev/no-such-device}]}", "no-such-device"),
        ("{mounts: [{hostPath: usr, containerPath: /x}]}", "absolute"),
        ("{mounts: [{hostPath: /usr, containerPath: /x, type: nfs}]}", "nfs"),
        ("{mounts: [{hostPath: /usr, containerPath: /x, options: [sync]}]}", "sync"),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        write(dir.path(), "gpu.yaml", edits);
        let error = inject_into(&[dir.path()], &["vendor.com/gpu=one"]).expect_err(edits);
        assert_eq!(error.code(), tonic::Code::InvalidArgument, "{error}");
        assert!(error.message().contains(part) && error.message().contains("vendor.com/gpu=one"), "{error}");
    }
}

#[test]
fn devices_are_asked_for_by_field_and_annotation() {
    let mut config = ContainerConfig {
        cdi_devices: vec![CdiDevice { name: "v/c=a".into() }],
        annotations: [
            ("cdi.k8s.io/plugin_1".to_owned(), "v/c=b,v/c=a".to_owned()),
            ("other.io/x".to_owned(), "v/c=c".to_owned()),
        ]
        .into(),
        ..Default::default()
    };
    assert_eq!(wanted(&config).expect("good"), ["v/c=a", "v/c=b"]);
    config.annotations.insert("cdi.k8s.io/plugin_2".into(), "nonsense".into());
    let error = wanted(&config).expect_err("refused");
    assert!(error.message().contains("nonsense"), "{error}");
}
