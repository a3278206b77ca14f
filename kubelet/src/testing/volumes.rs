//! Volumes and environments through the whole machinery.

use std::fs;

use super::bench::Bench;

const MAP: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: cfg}\ndata: {page: hello, other: x}\n";

#[tokio::test(start_paused = true)]
async fn a_config_map_is_waited_for_mounted_and_followed() {
    let mut b = Bench::new();
    b.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  volumes:\n  - {name: v, configMap: {name: cfg}}\n  containers:\n  - name: app\n    image: i:1\n    command: [run]\n    env:\n    - {name: A, valueFrom: {configMapKeyRef: {name: cfg, key: other}}}\n    - {name: B, value: 'a=$(A)'}\n    volumeMounts:\n    - {name: v, mountPath: /v}\n");
    b.sleep(30).await;
    assert_eq!(b.line("web"), "Pending | app ContainerCreating");
    b.apply(MAP);
    b.until("web", "Running ready | app running").await;
    let config = b.fake.config_of("app");
    let mount = config.mounts.iter().find(|m| m.container_path == "/v").expect("the mount");
    assert!(mount.readonly);
    let page = std::path::Path::new(&mount.host_path).join("page");
    assert_eq!(fs::read_to_string(&page).expect("page"), "hello");
    let env: Vec<(String, String)> =
        config.envs.iter().map(|e| (e.key.clone(), String::from_utf8_lossy(&e.value).into_owned())).collect();
    assert!(env.contains(&("B".into(), "a=x".into())), "{env:?}");
    b.apply(&MAP.replace("hello", "bye"));
    for _ in 0..100 {
        if fs::read_to_string(&page).expect("page") == "bye" {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    panic!("the change did not arrive");
}

#[tokio::test(start_paused = true)]
async fn a_missing_key_is_a_config_error() {
    let mut b = Bench::new();
    b.apply(MAP);
    b.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: web}\nspec:\n  containers:\n  - name: app\n    image: i:1\n    env:\n    - {name: A, valueFrom: {configMapKeyRef: {name: cfg, key: nope}}}\n");
    b.until("web", "Pending | app CreateContainerConfigError").await;
    let status = b.status("web");
    let waiting = status
        .container_statuses
        .as_ref()
        .and_then(|c| c[0].state.clone())
        .and_then(|s| s.waiting)
        .expect("waiting");
    assert_eq!(waiting.message.as_deref(), Some("couldn't find key nope in ConfigMap default/cfg"));
}

#[tokio::test(start_paused = true)]
async fn memory_and_secret_volumes_are_mounted_and_removed() {
    if !rustix::process::geteuid().is_root() {
        println!("skipped: mounting needs root");
        return;
    }
    let mut b = Bench::new();
    b.apply("apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {key: secret}\n");
    b.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: web, labels: {a: b}}\nspec:\n  securityContext: {fsGroup: 1234}\n  volumes:\n  - {name: m, emptyDir: {medium: Memory, sizeLimit: 1Mi}}\n  - {name: s, secret: {secretName: s, defaultMode: 256}}\n  - name: p\n    projected:\n      sources:\n      - {downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}\n      - {secret: {name: s, items: [{key: key, path: deep/key}]}}\n  containers:\n  - name: app\n    image: i:1\n    command: [run]\n    volumeMounts:\n    - {name: m, mountPath: /m, subPath: inner}\n    - {name: s, mountPath: /s, subPath: key}\n    - {name: p, mountPath: /p}\n");
    b.until("web", "Running ready | app running").await;
    let config = b.fake.config_of("app");
    let at = |path: &str| {
        config.mounts.iter().find(|m| m.container_path == path).expect("a mount").host_path.clone()
    };
    assert_eq!(fs::read_to_string(at("/s")).expect("secret"), "secret");
    assert!(fs::metadata(at("/m")).expect("sub-path").is_dir());
    let p = std::path::PathBuf::from(at("/p"));
    assert_eq!(fs::read_to_string(p.join("labels")).expect("labels"), "a=\"b\"");
    assert_eq!(fs::read_to_string(p.join("deep/key")).expect("key"), "secret");
    use std::os::unix::fs::MetadataExt;
    let meta = fs::metadata(at("/s")).expect("secret");
    assert_eq!((meta.mode() & 0o777, meta.gid()), (0o440, 1234));
    let mounted = crate::volumes::mounts::below(b.root.path()).expect("mounts").len();
    assert_eq!(mounted, 5, "two tmpfs for secrets, one for memory, two sub-paths");
    b.delete("web", 1);
    b.until_gone("web").await;
    assert!(crate::volumes::mounts::below(b.root.path()).expect("mounts").is_empty());
}
