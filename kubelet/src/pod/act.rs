//! Carries out the steps about sandboxes and whole pods. No decisions: those are `plan`'s.

use std::collections::BTreeMap;
use std::sync::Arc;

use cri_api::v1 as cri;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Preconditions};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::observed::Observed;
use super::view::{self, PodKey};
use crate::events::Level;
use crate::logs;
use crate::metrics::count;
use crate::objects::Held;
use crate::sandbox;
use crate::shared::Shared;
use crate::users;
use crate::volumes::{self, payload, tokens::Tokens};

/// Why a job failed; shown in the container's waiting state where one is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failed {
    /// CamelCase reason.
    pub reason: &'static str,
    /// Full text.
    pub message: String,
}

/// Makes a [`Failed`].
pub fn failed(reason: &'static str, message: impl Into<String>) -> Failed {
    Failed { reason, message: message.into() }
}

/// What every job of a pod works with.
#[derive(Clone)]
pub struct Work {
    /// Shared state.
    pub shared: Arc<Shared>,
    /// The pod as desired when the job began.
    pub pod: Arc<Pod>,
    /// Who it is.
    pub key: PodKey,
    /// Its ConfigMaps and Secrets.
    pub held: Arc<Held>,
    /// Its tokens.
    pub tokens: Arc<tokio::sync::Mutex<Tokens>>,
    /// What the runtime said when the job began.
    pub seen: Arc<Observed>,
    /// Fires when the pod is to end: pulls and waits stop.
    pub cancel: CancellationToken,
}

impl Work {
    /// Addresses of the pod's sandbox.
    pub fn pod_ips(&self) -> Vec<String> {
        self.seen.sandbox().map(|s| s.ips.clone()).unwrap_or_default()
    }

    fn event(&self, level: Level, reason: &'static str, message: impl Into<String>) {
        self.shared.events.pod(&self.pod, None, level, reason, message);
    }

    /// Brings the volumes to what they should be.
    pub async fn mount(&self) -> Result<(), Failed> {
        let result = self.try_mount().await;
        if let Err(err) = &result {
            self.event(Level::Warning, err.reason, err.message.clone());
        }
        result
    }

    async fn try_mount(&self) -> Result<(), Failed> {
        // Cancel-safe: waiting changes nothing.
        if self.cancel.run_until_cancelled(self.held.synced()).await.is_none() {
            return Err(failed("FailedMount", "the pod is ending"));
        }
        let volumes = view::spec(&self.pod).volumes.as_deref().unwrap_or_default();
        let wishes: Vec<_> = volumes.iter().flat_map(|v| payload::wishes(&self.pod, v)).collect();
        let tokens = if wishes.is_empty() {
            BTreeMap::new()
        } else {
            let mut held = self.tokens.lock().await; // An async lock: one request at a time per pod.
            let now = self.shared.clock.now();
            held.renew(self.shared.client.as_ref(), &self.key, wishes.clone(), now).await.map_err(|err| {
                let holds =
                    |v: &&k8s_openapi::api::core::v1::Volume| !payload::wishes(&self.pod, v).is_empty();
                let name = volumes.iter().find(holds).map(|v| v.name.clone()).unwrap_or_default();
                let why = client::describe(&err);
                failed("FailedMount", volumes::SetUpError { volume: name, why }.to_string())
            })?;
            held.all()
        };
        let (work, now) = (self.clone(), self.shared.clock.now());
        blocking(move || {
            let dir = work.shared.pod_dir(&work.key);
            volumes::make_pod_dir(&dir)
                .map_err(|err| failed("FailedMount", format!("make pod directory: {err}")))?;
            if users::wanted(&work.pod) {
                let config = &work.shared.config;
                let pods = config.root_dir.join("pods");
                users::allocate(&pods, &dir, &config.user_ids).map_err(|why| failed("FailedMount", why))?;
            }
            let node = work.shared.facts(work.pod_ips());
            let inputs =
                payload::Inputs { pod: &work.pod, objects: work.held.as_ref(), node: &node, tokens: &tokens };
            volumes::set_up(&dir, &inputs, now).map_err(|err| failed("FailedMount", err.to_string()))
        })
        .await
    }

    /// Volumes, then a sandbox if one is to be made.
    pub async fn set_up(&self, attempt: Option<u32>) -> Result<(), Failed> {
        self.mount().await?;
        let Some(attempt) = attempt else {
            let ips = self.pod_ips();
            return self.write_hosts(ips).await;
        };
        match self.make_sandbox(attempt).await {
            Ok(()) => {
                count(&self.shared.metrics.sandboxes_started);
                Ok(())
            }
            Err(message) => {
                count(&self.shared.metrics.sandbox_errors);
                let message = format!("Failed to create pod sandbox: {message}");
                self.event(Level::Warning, "FailedCreatePodSandBox", message.clone());
                Err(failed("FailedCreatePodSandBox", message))
            }
        }
    }

    /// The pod's own users, if it has any: they were given to it with its volumes.
    pub fn users(&self) -> Result<Option<users::Range>, String> {
        if !users::wanted(&self.pod) {
            return Ok(None);
        }
        match users::find(&self.shared.pod_dir(&self.key)) {
            Ok(Some(range)) => Ok(Some(range)),
            Ok(None) => Err("the pod has no user ids yet".into()),
            Err(err) => Err(format!("read the pod's user ids: {err}")),
        }
    }

    /// The sandbox configuration of an attempt.
    pub async fn sandbox_config(&self, attempt: u32) -> Result<cri::PodSandboxConfig, String> {
        let resolv = tokio::fs::read_to_string(&self.shared.config.resolv_conf).await.unwrap_or_default();
        let (users, shared) = (self.users()?, &self.shared);
        let (config, lacks) =
            sandbox::config(&shared.config, &shared.machine, &self.pod, &self.key, attempt, users, &resolv)?;
        if lacks
            && attempt == 0
            && view::spec(&self.pod).dns_policy.as_deref() == Some("ClusterFirstWithHostNet")
        {
            info!(pod = %self.key, "no cluster DNS is configured: the pod gets the node's resolver");
        }
        Ok(config)
    }

    async fn make_sandbox(&self, attempt: u32) -> Result<(), String> {
        for old in &self.seen.sandboxes {
            let request = cri::StopPodSandboxRequest { pod_sandbox_id: old.id.clone() };
            self.shared.cri.stop_pod_sandbox(request).await.map_err(|err| text(&err))?;
        }
        let runtime_handler = self.shared.runtime_handler(&self.pod).await?;
        let config = self.sandbox_config(attempt).await?;
        let logs = config.log_directory.clone();
        tokio::fs::create_dir_all(&logs).await.map_err(|err| format!("make log directory {logs}: {err}"))?;
        let request = cri::RunPodSandboxRequest { config: Some(config), runtime_handler };
        let made = self.shared.cri.run_pod_sandbox(request).await.map_err(|err| text(&err))?;
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: made.pod_sandbox_id, verbose: false };
        let answer = self.shared.cri.pod_sandbox_status(request).await.map_err(|err| text(&err))?;
        let ips = answer.status.as_ref().map(|s| super::observed::sandbox(s).ips).unwrap_or_default();
        self.write_hosts(ips).await.map_err(|err| err.message)
    }

    async fn write_hosts(&self, ips: Vec<String>) -> Result<(), Failed> {
        let config = &self.shared.config;
        let content = if view::host_network(&self.pod) {
            let host = tokio::fs::read_to_string("/etc/hosts").await.unwrap_or_default();
            sandbox::hosts::host_file(&self.pod, &host)
        } else {
            let (name, domain) = sandbox::hosts::names(&self.pod, &config.hostname, &config.cluster_domain);
            sandbox::hosts::file(&self.pod, &ips, &name, domain.as_deref())
        };
        let path = self.shared.pod_dir(&self.key).join("etc-hosts");
        // Written in place: containers have this very file mounted.
        let same = tokio::fs::read_to_string(&path).await.is_ok_and(|now| now == content);
        if same {
            return Ok(());
        }
        tokio::fs::write(&path, content)
            .await
            .map_err(|err| failed("FailedMount", format!("write etc-hosts: {err}")))
    }

    /// Stops all sandboxes.
    pub async fn stop_sandboxes(&self) -> Result<(), Failed> {
        let mut result = Ok(());
        for sandbox in &self.seen.sandboxes {
            let request = cri::StopPodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
            if let Err(err) = self.shared.cri.stop_pod_sandbox(request).await {
                let message = format!("error killing pod: failed to stop sandbox: {}", text(&err));
                self.event(Level::Warning, "FailedKillPod", message.clone());
                result = Err(failed("FailedKillPod", message));
            }
        }
        result
    }

    /// Unmounts and removes the pod's files.
    pub async fn release(&self) -> Result<(), Failed> {
        let dir = self.shared.pod_dir(&self.key);
        blocking(move || {
            volumes::tear_down(&dir).map_err(|err| failed("FailedUnMount", format!("remove volumes: {err}")))
        })
        .await
    }

    /// Removes everything of the pod: each part is tried, the first failure is returned.
    pub async fn clean_up(&self) -> Result<(), Failed> {
        let mut result = self.stop_sandboxes().await;
        if result.is_ok() {
            for sandbox in &self.seen.sandboxes {
                let request = cri::RemovePodSandboxRequest { pod_sandbox_id: sandbox.id.clone() };
                if let Err(err) = self.shared.cri.remove_pod_sandbox(request).await {
                    let message = format!("remove sandbox: {}", text(&err));
                    result = result.and(Err(failed("FailedKillPod", message)));
                }
            }
        }
        if result.is_ok() {
            // Only what no container uses any more can be unmounted.
            result = self.release().await;
        }
        let (config, key) = (self.shared.config.clone(), self.key.clone());
        let removed = blocking(move || {
            logs::paths::remove_pod(&config, &key)
                .map_err(|err| failed("FailedKillPod", format!("remove logs: {err}")))
        })
        .await;
        result.and(removed)
    }

    /// Lets the apiserver forget the pod.
    pub async fn finish(&self) -> Result<(), Failed> {
        let Some(client) = &self.shared.client else { return Ok(()) };
        let api: Api<Pod> = Api::namespaced(client.clone(), &self.key.namespace);
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(self.key.uid.to_string()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        match api.delete(&self.key.name, &params).await {
            Ok(_) => Ok(()),
            // Gone already, or another pod has the name by now.
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
            Err(err) => {
                let message = client::describe(&err);
                warn!(pod = %self.key, err = message, "delete the finished pod");
                Err(failed("FailedDelete", message))
            }
        }
    }

    /// Removes one ended container with its log.
    pub async fn remove(&self, id: &str) -> Result<(), Failed> {
        let request = cri::RemoveContainerRequest { container_id: id.into() };
        self.shared
            .cri
            .remove_container(request)
            .await
            .map_err(|err| failed("RemoveContainer", text(&err)))?;
        if let Some(c) = self.seen.containers.iter().find(|c| c.id == id) {
            let (config, key, c) = (self.shared.config.clone(), self.key.clone(), c.clone());
            blocking(move || {
                logs::paths::remove_run(&config, &key, &c)
                    .map_err(|err| failed("RemoveContainer", err.to_string()))
            })
            .await?;
        }
        Ok(())
    }

    /// Removes one empty sandbox.
    pub async fn remove_sandbox(&self, id: &str) -> Result<(), Failed> {
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: id.into() };
        self.shared
            .cri
            .remove_pod_sandbox(request)
            .await
            .map_err(|err| failed("RemoveSandbox", text(&err)))?;
        Ok(())
    }
}

/// A gRPC status as people read it.
pub fn text(err: &tonic::Status) -> String {
    format!("rpc error: code = {:?} desc = {}", err.code(), err.message())
}

/// Runs file work on a blocking thread.
pub async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failed> + Send + 'static,
) -> Result<T, Failed> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(err) => Err(failed("InternalError", format!("blocking work ended early: {err}"))),
    }
}
