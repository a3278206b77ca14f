//! Inputs that are taken, which mutations start from.

use std::collections::BTreeMap;
use std::io::Write;

use cri_api::v1::*;
use keeper::plan::{
    FdIndex, LaunchPlan, Namespace, Namespaces, ProcessPlan, Rootfs, Stdio, Step, TargetKind,
};
use keeper::protocol::{Answer, Failure, FailureKind, Op, Request, SignalTarget, State, Streams, ToDaemon};
use prost::Message;
use serde_json::{Value, json};

/// `sha256:` and the digest of nothing.
const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

fn texts(documents: &[Value]) -> Vec<Vec<u8>> {
    documents.iter().map(|document| document.to_string().into_bytes()).collect()
}

/// One entry of an archive.
fn entry(name: &str, kind: u8, link: &str, data: &[u8]) -> Vec<u8> {
    let mut header = [0_u8; 512];
    let mut put = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
    put(0, name.as_bytes());
    put(100, b"0000755\x000000000\x000000000\x00");
    put(124, format!("{:011o}", data.len()).as_bytes());
    put(136, b"00000000001");
    put(148, b"        ");
    put(156, &[kind]);
    put(157, link.as_bytes());
    put(257, b"ustar\x0000");
    put(329, b"0000001\x000000003\x00");
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let mut out = [&header, data].concat();
    out.resize(out.len().next_multiple_of(512), 0);
    out
}

/// Layers, plain and compressed.
pub fn layer() -> Vec<Vec<u8>> {
    let end = vec![0; 1024];
    let all = [
        entry("dir/", b'5', "", b""),
        entry("dir/file", b'0', "", b"content"),
        entry("dir/link", b'2', "../dir/file", b""),
        entry("hard", b'1', "dir/file", b""),
        entry("dir/.wh.gone", b'0', "", b""),
        entry("dir/.wh..wh..opq", b'0', "", b""),
        entry("pipe", b'6', "", b""),
        entry("null", b'3', "", b""),
        end.clone(),
    ]
    .concat();
    let extended = [
        entry(
            "x",
            b'x',
            "",
            b"30 mtime=1700000000.123456789\n27 SCHILY.xattr.user.a=bcde\n18 path=other/name\n",
        ),
        entry("short", b'0', "", b"12345"),
        entry("g", b'g', "", b"13 comment=hi\n"),
        entry("x", b'x', "", b"10 size=3\n"),
        entry("sized", b'0', "", b"123"),
        end.clone(),
    ]
    .concat();
    let gnu = [
        entry("././@LongLink", b'L', "", &[&b"long/".repeat(40)[..], b"name\0"].concat()),
        entry("cut", b'0', "", b"x"),
        entry("././@LongLink", b'K', "", &[&b"to/".repeat(60)[..], b"\0"].concat()),
        entry("link", b'2', "cut", b""),
        end.clone(),
    ]
    .concat();
    let map = b"3\n0\n1\n4096\n1\n9000\n0\n";
    let sparse = [
        entry(
            "x",
            b'x',
            "",
            b"22 GNU.sparse.major=1\n22 GNU.sparse.minor=0\n25 GNU.sparse.name=holes\n31 GNU.sparse.realsize=0000009000\n",
        ),
        entry("GNUSparseFile/holes", b'0', "", &[&map[..], &[0; 492], b"ab"].concat()),
        end,
    ]
    .concat();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&all).expect("written");
    let gzip = gzip.finish().expect("finished");
    let zstd = zstd::encode_all(&*extended, 1).expect("encoded");
    vec![all, extended, gnu, sparse, gzip, zstd, Vec::new()]
}

/// Manifests, an index, an artifact.
pub fn manifest() -> Vec<Vec<u8>> {
    let part = |kind: &str| json!({"mediaType": kind, "digest": DIGEST, "size": 12});
    let layer = part("application/vnd.oci.image.layer.v1.tar+gzip");
    texts(&[
        json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": part("application/vnd.oci.image.config.v1+json"), "layers": [layer, layer],
            "annotations": {"a": "b"},
        }),
        json!({
            "schemaVersion": 2,
            "config": part("application/vnd.docker.container.image.v1+json"),
            "layers": [part("application/vnd.docker.image.rootfs.diff.tar.gzip")],
        }),
        json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [
                {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": DIGEST, "size": 7,
                 "platform": {"os": "linux", "architecture": "amd64", "variant": "v2"}},
                {"mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": DIGEST, "size": 7,
                 "platform": {"os": "linux", "architecture": "arm64"}, "annotations": {"c": "d"}},
            ],
        }),
        json!({
            "schemaVersion": 2, "artifactType": "application/x", "config": part("application/vnd.oci.empty.v1+json"),
            "layers": [{"mediaType": "text/plain", "digest": DIGEST, "size": 1,
                        "annotations": {"org.opencontainers.image.title": "file.txt"}}],
        }),
        json!({"schemaVersion": 1, "fsLayers": [{"blobSum": DIGEST}]}),
    ])
}

/// Configurations of images.
pub fn config() -> Vec<Vec<u8>> {
    let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    texts(&[
        json!({
            "architecture": architecture, "os": "linux", "created": "2026-01-01T00:00:00Z",
            "config": {
                "User": "web:1000", "Env": ["PATH=/bin", "A=b"], "Entrypoint": ["/run"], "Cmd": ["it"],
                "WorkingDir": "/w", "Volumes": {"/data": {}, "/more": {}}, "Labels": {"a": "b"},
                "StopSignal": "SIGRTMIN+3", "ExposedPorts": {"80/tcp": {}},
            },
            "rootfs": {"type": "layers", "diff_ids": [DIGEST]},
            "history": [{"created_by": "x", "empty_layer": true}],
        }),
        json!({"architecture": "", "os": "", "rootfs": {"type": "layers", "diff_ids": []}, "config": {"User": "4294967296"}}),
    ])
}

/// References, digests, challenges.
pub fn reference() -> Vec<Vec<u8>> {
    [
        "busybox",
        "busybox:1.36",
        "docker.io/library/busybox:latest",
        "registry.example.com:5000/a/b-c/d_e:tag.1",
        "localhost/x@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        "[::1]:5000/x:y@sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        DIGEST,
        r#"Bearer realm="https://auth.example.com/token",service="registry",scope="repository:a/b:pull""#,
        r#"Basic realm="x", Bearer realm="y\"z""#,
    ]
    .map(|text| text.as_bytes().to_vec())
    .to_vec()
}

/// A SPDY control frame.
fn spdy_frame(kind: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).expect("short").to_be_bytes();
    [&[0x80, 3], &kind.to_be_bytes()[..], &[flags], &length[1..], payload].concat()
}

/// Bytes of SPDY clients.
pub fn spdy() -> Vec<Vec<u8>> {
    // An empty block, as the published dictionary has it packed: the head of its stream and a count of 0.
    let block = [0x78, 0xf9, 0xe3, 0xc6, 0xa7, 0xc2, 0x62, 0x60, 0x60, 0x60, 0, 0, 0, 0, 0xff, 0xff];
    let open = |id: u32| spdy_frame(1, 0, &[&id.to_be_bytes()[..], &[0; 6], &block].concat());
    let data = |id: u32, flags: u8, text: &[u8]| {
        let length = u32::try_from(text.len()).expect("short").to_be_bytes();
        [&id.to_be_bytes()[..], &[flags], &length[1..], text].concat()
    };
    let numbers = |list: &[u32]| list.iter().flat_map(|number| number.to_be_bytes()).collect::<Vec<_>>();
    let first = [
        open(1),
        data(1, 0, b"hello"),
        open(3),
        spdy_frame(9, 0, &numbers(&[1, 65_536])),
        data(3, 1, b"end"),
        spdy_frame(6, 0, &numbers(&[1])),
    ];
    let second = [
        spdy_frame(4, 0, &numbers(&[1, 7, 100_000])),
        open(1),
        spdy_frame(3, 0, &numbers(&[1, 5])),
        spdy_frame(8, 0, &[&numbers(&[1])[..], &block].concat()),
        spdy_frame(2, 0, &[&numbers(&[1])[..], &block].concat()),
        spdy_frame(7, 0, &numbers(&[1, 0])),
    ];
    let mut all = vec![first.concat(), second.concat()];
    all.extend(first.into_iter().chain(second));
    all
}

/// A message of a WebSocket client, masked with zeros.
fn message(head: u8, data: &[u8]) -> Vec<u8> {
    let mut out = vec![head];
    match data.len() {
        short @ 0..=125 => out.push(0x80 | short as u8),
        long => {
            out.push(0x80 | 126);
            out.extend_from_slice(&u16::try_from(long).unwrap_or(u16::MAX).to_be_bytes());
        }
    }
    out.extend_from_slice(&[0; 4]);
    out.extend_from_slice(data);
    out
}

/// Bytes of WebSocket clients.
pub fn websocket() -> Vec<Vec<u8>> {
    vec![
        [
            message(0x82, b"\0hello"),
            message(0x82, b"\x04{\"Width\":80,\"Height\":24}"),
            message(0x82, b"\xff\0"),
        ]
        .concat(),
        [message(0x81, b"0aGVsbG8="), message(0x89, b"ping"), message(0x8a, b""), message(0x88, &[3, 0xe8])]
            .concat(),
        [message(2, b"\0first"), message(0, b" and"), message(0x80, b" last")].concat(),
        message(0x82, &[0; 3000]),
    ]
}

/// A request to make a container, encoded.
pub(crate) fn container() -> Vec<u8> {
    let context = LinuxContainerSecurityContext {
        capabilities: Some(Capability {
            add_capabilities: vec!["NET_ADMIN".into()],
            drop_capabilities: vec!["ALL".into()],
            add_ambient_capabilities: vec!["CHOWN".into()],
        }),
        run_as_username: "web:1000".into(),
        supplemental_groups: vec![7, 8],
        seccomp: Some(SecurityProfile { profile_type: 0, localhost_ref: String::new() }),
        masked_paths: vec!["/proc/kcore".into()],
        readonly_paths: vec!["/proc/sys".into()],
        readonly_rootfs: true,
        ..Default::default()
    };
    let resources = LinuxContainerResources {
        cpu_period: 100_000,
        cpu_quota: 50_000,
        cpu_shares: 512,
        memory_limit_in_bytes: 1 << 26,
        oom_score_adj: 100,
        cpuset_cpus: "0-1".into(),
        hugepage_limits: vec![HugepageLimit { page_size: "2MB".into(), limit: 1 << 21 }],
        unified: BTreeMap::from([("memory.high".into(), "1000000".into())]).into_iter().collect(),
        ..Default::default()
    };
    let mount = |host: &str, target: &str| Mount {
        host_path: host.into(),
        container_path: target.into(),
        mount_options: vec!["noexec".into()],
        ..Default::default()
    };
    let config = ContainerConfig {
        metadata: Some(ContainerMetadata { name: "c".into(), attempt: 1 }),
        image: Some(ImageSpec { image: "busybox".into(), ..Default::default() }),
        command: vec!["/run".into()],
        args: vec!["it".into()],
        working_dir: "/w".into(),
        envs: vec![KeyValue { key: "A".into(), value: "b".into() }],
        mounts: vec![mount("/data", "/data"), mount("/x", "/etc/hosts"), mount("/y", "/proc/cpuinfo")],
        devices: vec![Device {
            container_path: "/dev/x".into(),
            host_path: "/dev/null".into(),
            permissions: "rw".into(),
        }],
        log_path: "c/0.log".into(),
        linux: Some(LinuxContainerConfig { resources: Some(resources), security_context: Some(context) }),
        ..Default::default()
    };
    let request = CreateContainerRequest {
        pod_sandbox_id: "s".into(),
        config: Some(config),
        sandbox_config: Some(pod()),
    };
    request.encode_to_vec()
}

fn pod() -> PodSandboxConfig {
    let mapping = IdMapping { host_id: 100_000, container_id: 0, length: 65_536 };
    let users = UserNamespace { mode: 0, uids: vec![mapping], gids: vec![mapping] };
    let context = LinuxSandboxSecurityContext {
        namespace_options: Some(NamespaceOption {
            pid: NamespaceMode::Container as i32,
            userns_options: Some(users),
            ..Default::default()
        }),
        ..Default::default()
    };
    PodSandboxConfig {
        metadata: Some(PodSandboxMetadata {
            name: "p".into(),
            namespace: "n".into(),
            uid: "u".into(),
            attempt: 0,
        }),
        hostname: "pod-0".into(),
        log_directory: "/var/log/pods/p".into(),
        port_mappings: vec![PortMapping {
            protocol: 0,
            container_port: 80,
            host_port: 8080,
            host_ip: "127.0.0.1".into(),
        }],
        linux: Some(LinuxPodSandboxConfig {
            cgroup_parent: "/kubepods/pod1".into(),
            security_context: Some(context),
            sysctls: [
                ("net.ipv4.ip_forward", "1"),
                ("kernel.shm_rmid_forced", "1"),
                ("net/core/somaxconn", "9"),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into_iter()
            .collect(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Requests of the CRI, encoded.
pub fn cri() -> Vec<Vec<u8>> {
    let sandbox = RunPodSandboxRequest { config: Some(pod()), runtime_handler: String::new() };
    vec![container(), sandbox.encode_to_vec()]
}

/// Seccomp profiles.
pub fn seccomp() -> Vec<Vec<u8>> {
    texts(&[
        json!({
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1,
            "architectures": ["SCMP_ARCH_X86_64", "SCMP_ARCH_X86"],
            "syscalls": [
                {"names": ["read", "write", "exit_group"], "action": "SCMP_ACT_ALLOW"},
                {"names": ["clone"], "action": "SCMP_ACT_ALLOW",
                 "args": [{"index": 0, "value": 2114060288, "valueTwo": 0, "op": "SCMP_CMP_MASKED_EQ"}]},
                {"names": ["personality"], "action": "SCMP_ACT_ALLOW",
                 "args": [{"index": 0, "value": 8, "op": "SCMP_CMP_GE"}, {"index": 0, "value": 12, "op": "SCMP_CMP_LE"}]},
                {"names": ["socket"], "action": "SCMP_ACT_TRACE", "errnoRet": 22},
            ],
        }),
        json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["ptrace"], "action": "SCMP_ACT_KILL_PROCESS"}]}),
        runtime::seccomp::document(&runtime::seccomp::default_profile(0), runtime::seccomp::Arch::native()),
    ])
}

fn launch() -> Op {
    let text = |text: &str| std::ffi::CString::new(text).expect("no zero bytes");
    // What a process is, comes from the translation itself.
    let process: ProcessPlan = crate::targets::process_of(&container()).expect("the seed is taken");
    Op::Launch(Box::new(LaunchPlan {
        id: "c".into(),
        process,
        rootfs: Rootfs { fd: FdIndex(0), readonly: true, propagation: None },
        steps: vec![
            Step::Attach { fd: FdIndex(1), target: text("/data"), kind: TargetKind::Directory },
            Step::Directory { path: text("/dev"), mode: 0o755 },
            Step::Symlink { path: text("/dev/fd"), to: text("/proc/self/fd") },
        ],
        masked_paths: vec![text("/proc/kcore")],
        readonly_paths: vec![text("/proc/sys")],
        namespaces: Namespaces {
            net: Namespace::Join(FdIndex(2)),
            pid: Namespace::New,
            ..Default::default()
        },
        user_namespace: None,
        procfs_of: None,
        cgroup: Some(FdIndex(3)),
        hostname: Some(text("pod")),
        domainname: None,
        sysctls: Vec::new(),
        oom_score_adj: Some(5),
        stdio: Stdio::Pipes { stdin: true },
        stdin_once: false,
        log: None,
    }))
}

/// Messages between daemon and keeper.
pub fn keeper() -> Vec<Vec<u8>> {
    let requests = [
        Op::Hello { version: keeper::protocol::VERSION, build: "x".into() },
        Op::State,
        launch(),
        Op::Signal { id: "c".into(), signal: 9, target: SignalTarget::Main },
        Op::Attach { id: "c".into(), stdin: true, stdout: true, stderr: false },
        Op::Resize { id: "c".into(), columns: 80, rows: 24 },
        Op::Handover(Vec::new()),
    ];
    let answers = [
        Ok(Answer::State(State::default())),
        Ok(Answer::Attached(Streams::default())),
        Ok(Answer::Done),
        Err(Failure { kind: FailureKind::Os(2), message: "open".into() }),
    ];
    let requests = requests.into_iter().map(|op| postcard::to_stdvec(&Request { number: 7, op }));
    let answers =
        answers.into_iter().map(|result| postcard::to_stdvec(&ToDaemon::Reply { number: 7, result }));
    requests.chain(answers).map(|encoded| encoded.expect("encodes")).collect()
}
