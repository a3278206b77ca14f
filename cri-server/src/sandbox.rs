//! RunPodSandbox, StopPodSandbox, RemovePodSandbox, PodSandboxStatus, ListPodSandbox.

use std::collections::BTreeMap;
use std::path::PathBuf;

use cri_api::Row;
use cri_api::v1::*;
use network::PodInfo;
use network::files::{self, DnsConfig, HostsSpec};
use rand::RngCore;
use runtime::SandboxId;
use tonic::Status;

use crate::error::{chain, fault, invalid, status};
use crate::meta::{SandboxMeta, sandbox_name};
use crate::sandbox_spec::{self, host_network, port_mappings, sandbox_spec};
use crate::server::Inner;
use crate::{filter, view};

/// A new id: 64 hex digits.
pub fn new_id() -> String {
    let mut bytes = [0; 32];
    rand::rng().fill_bytes(&mut bytes);
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Ids in answers are ours, so they parse.
pub fn sandbox_id(id: &str) -> Result<SandboxId, Status> {
    id.parse().map_err(status)
}

impl Inner {
    pub(crate) async fn run_pod_sandbox(
        &self,
        request: RunPodSandboxRequest,
    ) -> Result<RunPodSandboxResponse, Status> {
        let config = request.config.ok_or_else(|| invalid("the sandbox has no config"))?;
        let id = new_id();
        let ports = port_mappings(&config)?;
        let meta = SandboxMeta {
            config,
            handler: request.runtime_handler,
            ips: Vec::new(),
            connected: false,
            making: true,
        };
        let spec = sandbox_spec(sandbox_id(&id)?, &meta.config, &meta.handler, to_value(&meta))?;
        let name = sandbox_name(&meta.config);
        let _making = self.index.reserve(&name).await;
        if let Some(holder) = self.index.holder(&name) {
            return self.same_sandbox(&name, &holder);
        }
        if host_network(&meta.config) && !ports.is_empty() {
            tracing::debug!(sandbox = id, "host ports mean nothing in the node's network");
        }
        let hostname = spec.hostname.clone();
        fault("RunPodSandbox: make the sandbox").await?;
        self.runtime.create_sandbox(spec).await.map_err(status)?;
        // From here on the record exists: whatever fails takes it away again.
        match self.connect(&id, meta, &hostname, &ports).await {
            Ok(meta) => {
                self.index.put_sandbox(&id, meta);
                Ok(RunPodSandboxResponse { pod_sandbox_id: id })
            }
            Err(error) => {
                self.unmake(&id).await;
                Err(error)
            }
        }
    }

    /// The answer to a repeated request: the first one's sandbox, if it still runs.
    fn same_sandbox(&self, name: &str, holder: &str) -> Result<RunPodSandboxResponse, Status> {
        let sandbox = self.runtime.sandbox(&sandbox_id(holder)?);
        let ready = sandbox.zip(self.index.sandbox(holder)).is_some_and(|(sandbox, meta)| {
            view::sandbox_state(sandbox.state, &meta) == PodSandboxState::SandboxReady
        });
        if ready {
            return Ok(RunPodSandboxResponse { pod_sandbox_id: holder.to_owned() });
        }
        Err(Status::already_exists(format!(
            "the name {name:?} belongs to the sandbox {holder}, which was stopped: remove it, or count attempt up"
        )))
    }

    /// Gives a new sandbox its network and files.
    async fn connect(
        &self,
        id: &str,
        mut meta: SandboxMeta,
        hostname: &str,
        ports: &[network::PortMapping],
    ) -> Result<SandboxMeta, Status> {
        let sandbox = self
            .runtime
            .sandbox(&sandbox_id(id)?)
            .ok_or_else(|| Status::internal(format!("sandbox {id} is gone while it is made")))?;
        fault("RunPodSandbox: connect it").await?;
        if let Some(netns) = &sandbox.netns {
            let pod = pod_info(&meta.config);
            meta.ips = self.network.add(id, netns, ports, &pod).await.map_err(status)?.0;
        }
        meta.connected = true;
        meta.making = false;
        fault("RunPodSandbox: write its files").await?;
        self.write_files(id, &meta, hostname)
            .map_err(|error| Status::internal(format!("write the files of sandbox {id}: {error}")))?;
        fault("RunPodSandbox: note that it is complete").await?;
        self.runtime.set_sandbox_meta(&sandbox_id(id)?, to_value(&meta)).await.map_err(status)?;
        fault("RunPodSandbox: answer").await?;
        Ok(meta)
    }

    /// Takes a sandbox away that never was complete.
    pub(crate) async fn unmake(&self, id: &str) {
        let Ok(runtime_id) = sandbox_id(id) else { return };
        let netns = self.runtime.sandbox(&runtime_id).and_then(|sandbox| sandbox.netns);
        if let Err(error) = self.network.remove(id, netns.as_deref()).await {
            tracing::warn!(sandbox = id, error = %chain(&error), "take down the network of a sandbox that failed");
        }
        if let Err(error) = self.runtime.remove_sandbox(&runtime_id).await {
            tracing::warn!(sandbox = id, error = %chain(&error), "remove a sandbox that failed");
        }
        let _ = std::fs::remove_dir_all(self.files(id));
    }

    fn files(&self, id: &str) -> PathBuf {
        self.config.state_dir.join(id)
    }

    /// resolv.conf, hosts and hostname. The directory is on a tmpfs: no more than some microseconds.
    fn write_files(&self, id: &str, meta: &SandboxMeta, hostname: &str) -> std::io::Result<()> {
        let directory = self.files(id);
        std::fs::create_dir_all(&directory)?;
        let given = meta.config.dns_config.clone().unwrap_or_default();
        let mut dns = DnsConfig { servers: given.servers, searches: given.searches, options: given.options };
        if dns.is_empty() {
            dns = files::read_host_dns(&self.config.resolv_conf)?;
        }
        std::fs::write(directory.join("resolv.conf"), files::resolv_conf(&dns))?;
        let hosts = if host_network(&meta.config) {
            files::node_hosts(&std::fs::read_to_string("/etc/hosts").unwrap_or_default(), &[])
        } else {
            files::hosts(&HostsSpec { ips: &meta.ips, hostname, ..HostsSpec::default() })
        };
        std::fs::write(directory.join("hosts"), hosts)?;
        if !host_network(&meta.config) {
            std::fs::write(directory.join("hostname"), files::hostname(hostname))?;
        }
        // The translation was checked when the sandbox was made.
        if let Ok(Some(ids)) = sandbox_spec::user_namespace(&sandbox_spec::options(&meta.config)) {
            for file in std::fs::read_dir(&directory)? {
                let owner = (Some(ids.users.host), Some(ids.groups.host));
                std::os::unix::fs::lchown(file?.path(), owner.0, owner.1)?;
            }
        }
        Ok(())
    }

    /// Files that containers get unless they bring their own: target and source.
    pub(crate) fn sandbox_files(&self, id: &str, meta: &SandboxMeta) -> Vec<(&'static str, PathBuf)> {
        let directory = self.files(id);
        let mut files = vec![
            ("/etc/hosts", directory.join("hosts")),
            ("/etc/resolv.conf", directory.join("resolv.conf")),
        ];
        if !host_network(&meta.config) {
            files.push(("/etc/hostname", directory.join("hostname")));
        }
        files
    }

    pub(crate) async fn stop_pod_sandbox(&self, given: &str) -> Result<(), Status> {
        let Some(id) = gone_is_fine(self.index.sandbox_id(given))? else { return Ok(()) };
        let runtime_id = sandbox_id(&id)?;
        fault("StopPodSandbox: end what runs").await?;
        // Another call may remove it at the same time.
        gone_is_fine(self.runtime.stop_sandbox(&runtime_id).await.map_err(status))?;
        fault("StopPodSandbox: disconnect it").await?;
        let Some(meta) = self.index.sandbox(&id).filter(|meta| meta.connected) else { return Ok(()) };
        let netns = self.runtime.sandbox(&runtime_id).and_then(|sandbox| sandbox.netns);
        if netns.is_some() {
            self.network.remove(&id, netns.as_deref()).await.map_err(status)?;
        }
        fault("StopPodSandbox: note that it is disconnected").await?;
        let meta = SandboxMeta { connected: false, ..(*meta).clone() };
        let kept = self.runtime.set_sandbox_meta(&runtime_id, to_value(&meta)).await.map_err(status);
        if gone_is_fine(kept)?.is_some() {
            self.index.put_sandbox(&id, meta);
        }
        fault("StopPodSandbox: answer").await
    }

    pub(crate) async fn remove_pod_sandbox(&self, given: &str) -> Result<(), Status> {
        let Some(id) = gone_is_fine(self.index.sandbox_id(given))? else { return Ok(()) };
        self.stop_pod_sandbox(&id).await?;
        let runtime_id = sandbox_id(&id)?;
        // One by one, so that a removal that is cut short knows what it still has to let go of.
        for container in self.index.containers_in(&id) {
            gone_is_fine(self.remove_container(&container).await)?;
        }
        fault("RemovePodSandbox: remove the sandbox").await?;
        gone_is_fine(self.runtime.remove_sandbox(&runtime_id).await.map_err(status))?;
        // Such as were made meanwhile.
        for container in self.index.containers_in(&id) {
            self.forget_container(&container);
        }
        fault("RemovePodSandbox: remove its files").await?;
        let _ = std::fs::remove_dir_all(self.files(&id));
        self.index.drop_sandbox(&id);
        Ok(())
    }

    pub(crate) fn pod_sandbox_status(
        &self,
        request: PodSandboxStatusRequest,
    ) -> Result<PodSandboxStatusResponse, Status> {
        let id = self.index.sandbox_id(&request.pod_sandbox_id)?;
        let no_longer = || Status::not_found(format!("no sandbox {id}"));
        let sandbox = self.runtime.sandbox(&sandbox_id(&id)?).ok_or_else(no_longer)?;
        let meta = self.index.sandbox(&id).ok_or_else(no_longer)?;
        let mut info = BTreeMap::new();
        if request.verbose {
            let about = serde_json::json!({
                "config": meta.config,
                "runtimeHandler": meta.handler,
                "pid": sandbox.init_pid,
                "netNamespace": sandbox.netns,
                "cgroup": sandbox.cgroup,
                "unenforced": sandbox.unenforced,
            });
            info.insert("info".to_owned(), about.to_string());
        }
        Ok(PodSandboxStatusResponse {
            status: Some(view::sandbox_status(&sandbox, &meta)),
            info,
            containers_statuses: self.statuses_in(&id),
            timestamp: view::nanos(jiff::Timestamp::now()),
        })
    }

    /// The statuses of a sandbox's containers.
    pub(crate) fn statuses_in(&self, id: &str) -> Vec<ContainerStatus> {
        let Ok(sandbox) = sandbox_id(id) else { return Vec::new() };
        let in_it = self.runtime.containers_of(&sandbox);
        in_it
            .into_iter()
            .filter_map(|c| Some(view::container_status(&c, &*self.index.container(c.id().as_str())?)))
            .collect()
    }

    pub(crate) fn list_sandboxes(&self, wanted: Option<&PodSandboxFilter>) -> Vec<Row<PodSandbox>> {
        let known = self.index.sandboxes();
        let wanted = |row: &Row<PodSandbox>| filter::sandbox(wanted, row);
        self.runtime.sandbox_rows(|brief| known.row(brief).filter(wanted))
    }

    pub(crate) async fn update_pod_sandbox_resources(
        &self,
        request: UpdatePodSandboxResourcesRequest,
    ) -> Result<(), Status> {
        let id = self.index.sandbox_id(&request.pod_sandbox_id)?;
        // `resources` is the sum of the containers'; an overhead is added to it, and alone it changes nothing.
        let Some(resources) = &request.resources else {
            return Err(invalid("no resources are given: nothing could be changed"));
        };
        let all = sandbox_spec::with_overhead(resources, request.overhead.as_ref());
        let resources = sandbox_spec::resources(&all)?;
        self.runtime.update_sandbox(&sandbox_id(&id)?, resources).await.map_err(status)
    }
}

fn pod_info(config: &PodSandboxConfig) -> PodInfo {
    let metadata = config.metadata.clone().unwrap_or_default();
    let dns = config.dns_config.clone().unwrap_or_default();
    PodInfo {
        namespace: metadata.namespace,
        name: metadata.name,
        uid: metadata.uid,
        dns: DnsConfig { servers: dns.servers, searches: dns.searches, options: dns.options },
    }
}

/// What goes into a record.
pub(crate) fn to_value(meta: &impl serde::Serialize) -> serde_json::Value {
    serde_json::to_value(meta).expect("plain data with text keys")
}

/// For idempotent calls: what is not there is no error.
pub(crate) fn gone_is_fine<T>(found: Result<T, Status>) -> Result<Option<T>, Status> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(status) if status.code() == tonic::Code::NotFound => Ok(None),
        Err(status) => Err(status),
    }
}
