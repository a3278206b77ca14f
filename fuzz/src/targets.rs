//! The functions.

use std::cell::OnceCell;
use std::path::PathBuf;

use cri_api::v1::{CreateContainerRequest, RunPodSandboxRequest};
use prost::Message;
use runtime::lsm::Confinement;
use runtime::oci::{self, Surroundings};
use runtime::seccomp::{self, Arch};
use runtime::{plan, sysctl, user};

/// A directory of this thread's own, in memory where there is such a place; gone with the thread.
struct Place(PathBuf);

impl Place {
    fn make() -> Place {
        let number = format!("orlop-fuzz-{}-{:?}", std::process::id(), std::thread::current().id());
        let shm = PathBuf::from("/dev/shm");
        let base = if shm.is_dir() { shm } else { std::env::temp_dir() };
        let place = base.join(number.replace(['(', ')'], ""));
        std::fs::create_dir_all(&place).expect("a directory of our own");
        Place(place)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // It is our own; what can't be removed lies in memory until the next boot.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

thread_local! {
    static PLACE: OnceCell<Place> = const { OnceCell::new() };
    static EXECUTOR: OnceCell<tokio::runtime::Runtime> = const { OnceCell::new() };
}

/// Unpacks a layer, as it is and with its checksums made right. Nothing lies beside its directory afterwards.
pub fn layer(bytes: &[u8]) {
    PLACE.with(|place| {
        let place = &place.get_or_init(Place::make).0;
        let mut repaired = bytes.to_vec();
        for block in repaired.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
        for archive in [bytes, &repaired] {
            let _taken = image::fuzz::layer(archive, place);
            let names: Vec<_> = std::fs::read_dir(place)
                .expect("readable")
                .map(|entry| entry.expect("an entry").file_name())
                .collect();
            assert!(names.iter().all(|name| name == "staging"), "beside the layer lies {names:?}");
            std::fs::remove_dir_all(place.join("staging")).expect("what was unpacked can be removed");
        }
    });
}

/// Reads a manifest or an index.
pub fn manifest(bytes: &[u8]) {
    image::fuzz::manifest(bytes);
}

/// Reads an image's configuration, and makes a container of it.
pub fn config(bytes: &[u8]) {
    let Some(image) = image::fuzz::config(bytes) else { return };
    let request = CreateContainerRequest::decode(&*crate::seeds::container()).expect("a good request");
    let (config, sandbox) = (request.config.unwrap_or_default(), request.sandbox_config.unwrap_or_default());
    // Without a command of its own, the image's is taken.
    let mut bare = config.clone();
    bare.command.clear();
    bare.args.clear();
    for config in [config, bare] {
        if let Some(spec) = cri_server::fuzz::container(&config, &sandbox, Some(&image)) {
            launch(&spec);
        }
    }
}

/// Reads a reference, a digest, and a registry's challenge.
pub fn reference(bytes: &[u8]) {
    image::fuzz::reference(&String::from_utf8_lossy(bytes));
}

fn block_on(work: impl Future<Output = ()>) {
    EXECUTOR.with(|executor| {
        let executor = executor.get_or_init(|| {
            tokio::runtime::Builder::new_current_thread().enable_time().build().expect("an executor")
        });
        executor.block_on(work);
    });
}

/// Lets a SPDY client send this.
pub fn spdy(bytes: &[u8]) {
    block_on(cri_server::fuzz::spdy(bytes));
}

/// Lets a WebSocket client send this.
pub fn websocket(bytes: &[u8]) {
    block_on(cri_server::fuzz::websocket(bytes));
}

/// Translates RunPodSandbox and CreateContainer, as far as the launch plan.
pub fn cri(bytes: &[u8]) {
    if let Ok(request) = RunPodSandboxRequest::decode(bytes)
        && let Some(config) = request.config
        && let Some(sandbox) = cri_server::fuzz::sandbox(&config)
    {
        // Whatever the key is, the path lies beneath `/proc/sys` and is one of the pod's own.
        for (path, value) in sysctl::check(&sandbox.sysctls, &sandbox.namespaces).unwrap_or_default() {
            let own = ["net/", "kernel/", "fs/mqueue/"].iter().any(|prefix| path.starts_with(prefix));
            assert!(own && !path.split('/').any(|part| part == ".." || part.is_empty()), "{path:?}");
            assert!(!value.contains(['\n', '\0']), "{value:?}");
        }
    }
    if let Ok(request) = CreateContainerRequest::decode(bytes)
        && let (Some(config), Some(sandbox)) = (request.config, request.sandbox_config)
        && let Some(spec) = cri_server::fuzz::container(&config, &sandbox, None)
    {
        launch(&spec);
    }
}

const PASSWD: &str = "root:x:0:0::/:/x\nweb:x:1000:1000::/web:/x\n4294967296:x:0:0::/:/x\n";
const GROUP: &str = "root:x:0:\nweb:x:1000:web\n";

/// From a container's description to the keeper's plan.
fn launch(spec: &runtime::ContainerSpec) {
    let Ok(user) = user::resolve(&spec.user, PASSWD, GROUP) else { return };
    assert!(user.uid <= 2_147_483_647 && user.gid <= 2_147_483_647, "{user:?}");
    let around = Surroundings {
        hostname: "pod",
        net: None,
        ipc: None,
        uts: None,
        user: None,
        pid: Some(None),
        shm: "/run/shm".into(),
        cgroup: "pod/c",
        rootfs: "/upper".into(),
        available: runtime::caps::ALL,
        devices: Vec::new(),
        confinement: Confinement::default(),
    };
    let Ok(document) = oci::spec(spec, &user, &around) else { return };
    let up = |path: &std::path::Path| path.components().any(|part| part == std::path::Component::ParentDir);
    for mount in document.mounts().iter().flatten() {
        let target = mount.destination();
        assert!(target.is_absolute() && !up(target), "a mount at {target:?}");
        let file = target.components().count() == 3 || target.ends_with("net/dev");
        let own =
            mount.typ().as_deref() == Some("proc") || mount.source().as_deref() == Some("/proc".as_ref());
        assert!(!target.starts_with("/proc") || own || file, "a mount at {target:?}");
    }
    if let Ok(draft) = plan::draft(&document) {
        assert_eq!((draft.process.user.uid, draft.process.user.gid), (user.uid, user.gid));
    }
}

/// The process that a request comes to.
pub(crate) fn process_of(request: &[u8]) -> Option<::keeper::plan::ProcessPlan> {
    let request = CreateContainerRequest::decode(request).ok()?;
    let spec = cri_server::fuzz::container(&request.config?, &request.sandbox_config?, None)?;
    let user = user::resolve(&spec.user, PASSWD, GROUP).ok()?;
    plan::process_plan(&oci::process(&spec, &user, "pod", runtime::caps::ALL, &Confinement::default()).ok()?)
        .ok()
}

/// Reads a seccomp profile, and compiles it.
pub fn seccomp(bytes: &[u8]) {
    let Ok(profile) = seccomp::parse(&String::from_utf8_lossy(bytes)) else { return };
    if let Ok(filter) = seccomp::compile(&profile, Arch::native()) {
        assert!((1..=4096).contains(&filter.len()), "{} instructions", filter.len());
    }
    let document = seccomp::document(&profile, Arch::native());
    assert!(document["syscalls"].as_array().is_some_and(|rules| rules.len() < 1 << 20));
}

/// Decodes what daemon and keeper say to each other; what is encoded of it is decoded alike.
pub fn keeper(bytes: &[u8]) {
    use keeper::protocol::{Request, ToDaemon};
    if let Ok(request) = postcard::from_bytes::<Request>(bytes) {
        let again = postcard::to_stdvec(&request).expect("encodes");
        assert_eq!(postcard::from_bytes::<Request>(&again).expect("decodes"), request);
    }
    if let Ok(message) = postcard::from_bytes::<ToDaemon>(bytes) {
        let again = postcard::to_stdvec(&message).expect("encodes");
        assert_eq!(postcard::from_bytes::<ToDaemon>(&again).expect("decodes"), message);
    }
}
