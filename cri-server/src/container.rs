//! CreateContainer, StartContainer, StopContainer, RemoveContainer, ContainerStatus, ListContainers,
//! UpdateContainerResources, ReopenContainerLog.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use cri_api::Row;
use cri_api::v1::*;
use runtime::{ContainerId, ContainerState as State, SandboxId};
use tonic::Status;

use crate::container_spec::{Parts, container_spec, log_path};
use crate::error::{chain, fault, invalid, status};
use crate::meta::{ContainerMeta, container_name};
use crate::sandbox::{gone_is_fine, new_id, sandbox_id, to_value};
use crate::server::Inner;
use crate::{cdi, checkpoint, filter, sandbox_spec, view};

/// Ids in answers are ours, so they parse.
pub fn container_id(id: &str) -> Result<ContainerId, Status> {
    id.parse().map_err(status)
}

impl Inner {
    pub(crate) async fn create_container(
        &self,
        request: CreateContainerRequest,
    ) -> Result<CreateContainerResponse, Status> {
        let sandbox = self.index.sandbox_id(&request.pod_sandbox_id)?;
        let sandbox_meta =
            self.index.sandbox(&sandbox).ok_or_else(|| Status::not_found(format!("no sandbox {sandbox}")))?;
        let config = request.config.ok_or_else(|| invalid("the container has no config"))?;
        if config.metadata.as_ref().is_none_or(|metadata| metadata.name.is_empty()) {
            return Err(invalid("the container needs metadata with a name"));
        }
        if !sandbox_meta.connected {
            return Err(Status::failed_precondition(format!("sandbox {sandbox} is not ready")));
        }
        let name = container_name(&sandbox, &config);
        let _making = self.index.reserve(&name).await;
        if let Some(holder) = self.index.holder(&name) {
            return self.same_container(&name, &holder);
        }
        let id = new_id();
        let made = self.make_container(&id, &sandbox, &sandbox_meta, config).await;
        if made.is_err() {
            self.images.release(&id);
        }
        made?;
        Ok(CreateContainerResponse { container_id: id })
    }

    fn same_container(&self, name: &str, holder: &str) -> Result<CreateContainerResponse, Status> {
        match self.runtime.container(&container_id(holder)?).map(|container| container.state) {
            Some(State::Created) => Ok(CreateContainerResponse { container_id: holder.to_owned() }),
            _ => Err(Status::already_exists(format!(
                "the name {name:?} belongs to the container {holder}: remove it, or count attempt up"
            ))),
        }
    }

    async fn make_container(
        &self,
        id: &str,
        sandbox: &str,
        sandbox_meta: &crate::meta::SandboxMeta,
        config: ContainerConfig,
    ) -> Result<(), Status> {
        let asked = config.image.clone().unwrap_or_default();
        if asked.image.starts_with('/') {
            return Err(checkpoint::no_restore(&asked.image));
        }
        let image = self.find_image(&asked.image)?;
        fault("CreateContainer: lease its image").await?;
        let rootfs = self.images.lease(&image.id, id).map_err(status)?;
        if rootfs.lower.iter().any(|layer| checkpoint::is_checkpoint(layer)) {
            return Err(checkpoint::no_restore(&asked.image));
        }
        let mut image_mounts: Vec<Vec<PathBuf>> = Vec::new();
        for spec in config.mounts.iter().filter_map(|mount| mount.image.as_ref()) {
            let mounted = self.find_image(&spec.image)?;
            image_mounts.push(self.images.volume_lease(&mounted.id, id).map_err(status)?.lower);
        }
        let target = match options(&config).filter(|options| options.pid == NamespaceMode::Target as i32) {
            Some(options) => Some(self.target(sandbox, &options.target_id)?),
            None => None,
        };
        let mut spec = container_spec(Parts {
            id: container_id(id)?,
            sandbox: sandbox_id(sandbox)?,
            config: &config,
            sandbox_config: &sandbox_meta.config,
            image: image.config.config().as_ref(),
            rootfs: rootfs.lower,
            image_mounts,
            sandbox_files: self.sandbox_files(sandbox, sandbox_meta),
            target,
            default_rlimits: &self.config.default_rlimits,
        })?;
        let devices = cdi::wanted(&config)?;
        if !devices.is_empty() {
            let directories = self.config.cdi_directories.clone();
            let injected = tokio::task::spawn_blocking(move || {
                cdi::inject(&devices, &directories, &mut spec).map(|()| spec)
            });
            spec = injected
                .await
                .map_err(|error| Status::internal(format!("reading CDI files broke off: {error}")))??;
        }
        for mount in &config.mounts {
            make_missing(mount)?;
        }
        let log = log_path(&sandbox_meta.config, &config)?;
        let meta = ContainerMeta {
            image_name: image_name(&asked, &image),
            image_id: image.id.to_string(),
            image_ref: image.repo_digests.first().cloned().unwrap_or_else(|| image.id.to_string()),
            log_path: log.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default(),
            config,
        };
        spec.meta = to_value(&meta);
        fault("CreateContainer: make the container").await?;
        self.runtime.create_container(spec).await.map_err(status)?;
        self.index.put_container(id, sandbox, meta);
        if self.runtime.container(&container_id(id)?).is_none() {
            self.index.drop_container(id);
            return Err(Status::failed_precondition(format!("sandbox {sandbox} was removed meanwhile")));
        }
        Ok(())
    }

    fn find_image(&self, name: &str) -> Result<image::Image, Status> {
        if name.is_empty() {
            return Err(invalid("no image is named"));
        }
        self.images
            .get(name)
            .ok_or_else(|| Status::not_found(format!("image {name:?} is not here: pull it first")))
    }

    /// The container whose processes are to be shared: one of the same pod.
    fn target(&self, sandbox: &str, given: &str) -> Result<ContainerId, Status> {
        let id = container_id(&self.index.container_id(given)?)?;
        match self.runtime.container(&id) {
            Some(target) if target.spec.sandbox.as_str() == sandbox => Ok(id),
            _ => Err(invalid(format!("the target {given:?} is no container of this pod"))),
        }
    }

    pub(crate) async fn start_container(&self, given: &str) -> Result<(), Status> {
        let id = container_id(&self.index.container_id(given)?)?;
        fault("StartContainer: start the container").await?;
        self.runtime.start_container(&id).await.map_err(status)?;
        fault("StartContainer: answer").await
    }

    pub(crate) async fn stop_container(&self, given: &str, timeout: i64) -> Result<(), Status> {
        let Some(id) = gone_is_fine(self.index.container_id(given))? else { return Ok(()) };
        let grace = Duration::from_secs(u64::try_from(timeout).unwrap_or(0));
        fault("StopContainer: end the container").await?;
        self.runtime.stop_container(&container_id(&id)?, grace).await.map_err(status)?;
        fault("StopContainer: answer").await
    }

    pub(crate) async fn remove_container(&self, given: &str) -> Result<(), Status> {
        let Some(id) = gone_is_fine(self.index.container_id(given))? else { return Ok(()) };
        fault("RemoveContainer: remove the container").await?;
        self.runtime.remove_container(&container_id(&id)?).await.map_err(status)?;
        fault("RemoveContainer: let go of what it held").await?;
        self.forget_container(&id);
        Ok(())
    }

    /// Lets go of what a removed container held.
    pub(crate) fn forget_container(&self, id: &str) {
        self.images.release(id);
        self.rates.forget(id);
        self.index.drop_container(id);
    }

    pub(crate) fn container_status(
        &self,
        request: ContainerStatusRequest,
    ) -> Result<ContainerStatusResponse, Status> {
        let id = self.index.container_id(&request.container_id)?;
        let no_longer = || Status::not_found(format!("no container {id}"));
        let container = self.runtime.container(&container_id(&id)?).ok_or_else(no_longer)?;
        let meta = self.index.container(&id).ok_or_else(no_longer)?;
        let mut info = BTreeMap::new();
        if request.verbose {
            let about = serde_json::json!({
                "sandboxID": container.spec.sandbox.as_str(),
                "pid": container.pid().unwrap_or(0),
                "config": meta.config,
                "cgroup": container.cgroup,
                "frozen": self.runtime.frozen(container.id()),
                "unenforced": container.unenforced,
                "spec": runtime_view(&container.spec),
            });
            info.insert("info".to_owned(), about.to_string());
        }
        Ok(ContainerStatusResponse { status: Some(view::container_status(&container, &meta)), info })
    }

    pub(crate) fn list_containers(&self, wanted: Option<&ContainerFilter>) -> Vec<Row<Container>> {
        self.container_rows(None, |has| filter::container(wanted, has))
    }

    /// Rows of the containers, or of those of one sandbox, that `wanted` wants.
    pub(crate) fn container_rows(
        &self,
        sandbox: Option<&SandboxId>,
        wanted: impl Fn(filter::Traits<'_>) -> bool,
    ) -> Vec<Row<Container>> {
        let known = self.index.containers();
        self.runtime.container_rows(sandbox, |brief| known.row(brief, &wanted))
    }

    pub(crate) async fn update_container_resources(
        &self,
        request: UpdateContainerResourcesRequest,
    ) -> Result<(), Status> {
        let id = self.index.container_id(&request.container_id)?;
        if request.windows.is_some() {
            return Err(invalid("Windows resources are given, and this is Linux: leave them out"));
        }
        if let Some(name) = request.annotations.keys().next() {
            return Err(invalid(format!(
                "the annotation {name:?} of an update would change nothing: give limits in `linux`, or in its `unified`"
            )));
        }
        let Some(wanted) = request.linux else {
            return Err(invalid("no Linux resources are given: nothing could be changed"));
        };
        let mut limits = sandbox_spec::resources(&wanted)?;
        // 0 means "as it is" here, as everywhere in this request.
        limits.oom_score_adj = limits.oom_score_adj.filter(|adj| *adj != 0);
        self.runtime.update_container(&container_id(&id)?, limits).await.map_err(status)?;
        let meta =
            self.index.container(&id).ok_or_else(|| Status::not_found(format!("no container {id}")))?;
        let mut meta = (*meta).clone();
        let linux = meta.config.linux.get_or_insert_default();
        merge(linux.resources.get_or_insert_default(), wanted);
        self.runtime.set_container_meta(&container_id(&id)?, to_value(&meta)).await.map_err(status)?;
        if let Some(container) = self.runtime.container(&container_id(&id)?) {
            self.index.put_container(&id, container.spec.sandbox.as_str(), meta);
        }
        Ok(())
    }

    pub(crate) async fn reopen_container_log(&self, given: &str) -> Result<(), Status> {
        let id = container_id(&self.index.container_id(given)?)?;
        self.runtime.reopen_log(&id).await.map_err(status)
    }
}

fn options(config: &ContainerConfig) -> Option<NamespaceOption> {
    config.linux.as_ref()?.security_context.as_ref()?.namespace_options.clone()
}

/// The image's name for people: what the user wrote, else a name of the image itself.
fn image_name(asked: &ImageSpec, image: &image::Image) -> String {
    if !asked.user_specified_image.is_empty() {
        return asked.user_specified_image.clone();
    }
    let is_id = image.id.as_str().ends_with(asked.image.as_str()) || asked.image == image.id.as_str();
    match image.repo_tags.first() {
        Some(tag) if is_id => tag.clone(),
        _ => asked.image.clone(),
    }
}

/// Makes a mount's host directory if there is nothing, as clients expect.
fn make_missing(mount: &Mount) -> Result<(), Status> {
    let path = std::path::Path::new(&mount.host_path);
    if mount.image.is_some() || path.symlink_metadata().is_ok() {
        return Ok(());
    }
    std::fs::create_dir_all(path).map_err(|error| {
        Status::internal(format!("make the directory {path:?} to be mounted: {}", chain(&error)))
    })
}

/// What is shown of the runtime's own description; our record in it would repeat the configuration.
fn runtime_view(spec: &runtime::ContainerSpec) -> serde_json::Value {
    let mut value = serde_json::to_value(spec).unwrap_or_default();
    if let Some(fields) = value.as_object_mut() {
        fields.remove("meta");
    }
    value
}

/// Limits after an update: given fields replace the old ones.
fn merge(old: &mut LinuxContainerResources, new: LinuxContainerResources) {
    let number = |old: &mut i64, new: i64| {
        if new != 0 {
            *old = new;
        }
    };
    number(&mut old.cpu_period, new.cpu_period);
    number(&mut old.cpu_quota, new.cpu_quota);
    number(&mut old.cpu_shares, new.cpu_shares);
    number(&mut old.memory_limit_in_bytes, new.memory_limit_in_bytes);
    number(&mut old.memory_swap_limit_in_bytes, new.memory_swap_limit_in_bytes);
    number(&mut old.oom_score_adj, new.oom_score_adj);
    let text = |old: &mut String, new: String| {
        if !new.is_empty() {
            *old = new;
        }
    };
    text(&mut old.cpuset_cpus, new.cpuset_cpus);
    text(&mut old.cpuset_mems, new.cpuset_mems);
    if !new.hugepage_limits.is_empty() {
        old.hugepage_limits = new.hugepage_limits;
    }
    old.unified.extend(new.unified);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn updates_keep_what_they_do_not_name() {
        let mut old =
            LinuxContainerResources { cpu_shares: 100, memory_limit_in_bytes: 5, ..Default::default() };
        merge(&mut old, LinuxContainerResources { memory_limit_in_bytes: 9, ..Default::default() });
        assert_eq!((old.cpu_shares, old.memory_limit_in_bytes), (100, 9));
    }
}
