//! Entries for fuzzing: translations of requests, and streams as clients send them. Nothing else uses them.

use std::path::{Component, Path};

use cri_api::v1::{ContainerConfig, PodSandboxConfig};
use oci_spec::image::Config as ImageConfig;
use runtime::{ContainerSpec, SandboxSpec};

use crate::container_spec::{Parts, container_spec};
use crate::sandbox_spec;
pub use crate::streaming::fuzz::{spdy, websocket};

/// Translates a sandbox's configuration with its ports.
pub fn sandbox(config: &PodSandboxConfig) -> Option<SandboxSpec> {
    let _ports_or_refused = sandbox_spec::port_mappings(config);
    let id = "s".parse().expect("an id");
    sandbox_spec::sandbox_spec(id, config, "", serde_json::Value::Null).ok()
}

/// Translates a container's configuration with that of its sandbox and its image.
///
/// # Panics
/// What was taken breaks a promise of the translation.
pub fn container(
    config: &ContainerConfig,
    sandbox: &PodSandboxConfig,
    image: Option<&ImageConfig>,
) -> Option<ContainerSpec> {
    let spec = container_spec(Parts {
        id: "c".parse().expect("an id"),
        sandbox: "s".parse().expect("an id"),
        config,
        sandbox_config: sandbox,
        image,
        rootfs: vec!["/layers/1".into()],
        image_mounts: Vec::new(),
        sandbox_files: vec![("/etc/hosts", "/run/hosts".into())],
        target: None,
        default_rlimits: &[],
    })
    .ok()?;
    if let Some(log) = &spec.log_path {
        let beneath = log.strip_prefix(&sandbox.log_directory).ok();
        let plain = |path: &Path| path.components().all(|part| part != Component::ParentDir);
        assert!(beneath.is_some_and(plain), "the log {log:?} is not beneath {:?}", sandbox.log_directory);
    }
    let privileged = sandbox_spec::context(sandbox).is_some_and(|context| context.privileged);
    assert!(!spec.privileged || privileged, "a privileged container in a sandbox that is not");
    Some(spec)
}
