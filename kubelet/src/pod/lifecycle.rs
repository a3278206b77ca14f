//! Carries out the start and the stop of one container.

use std::collections::BTreeMap;
use std::time::Duration;

use cri_api::v1 as cri;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler};
use tokio::time::Instant;

use super::act::{Failed, Work, blocking, failed, text};
use super::hooks::{self, HookTarget};
use super::probing::pod_ip;
use super::step::StopReason;
use super::view::{self, Member};
use crate::container::{self, env};
use crate::events::Level;
use crate::images;
use crate::logs;
use crate::metrics::count;
use crate::volumes::container_mounts;

/// How a start went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Started {
    /// It runs, and its hook is through.
    Running,
    /// It runs, its hook failed: it has to be stopped.
    HookFailed {
        /// Container id.
        id: String,
        /// What the hook said.
        message: String,
    },
}

/// A postStart hook without an end would hold the pod up for ever; upstream has no limit either, so
/// this one is far beyond any sensible hook.
const POST_START_LIMIT: Duration = Duration::from_secs(24 * 3600);

impl Work {
    /// Image, configuration, container, start, hook.
    pub async fn start(&self, name: &str, attempt: u32, backoff: Duration) -> Result<Started, Failed> {
        let Some(member) = view::member(view::spec(&self.pod), name) else {
            return Err(failed("CreateContainerConfigError", format!("the pod has no container {name}")));
        };
        let result = self.try_start(&member, attempt, backoff).await;
        match &result {
            Ok(_) => count(&self.shared.metrics.containers_started),
            Err(err) => {
                count(&self.shared.metrics.container_start_errors);
                let shown = match err.reason {
                    // These were told of in their own words before.
                    "ErrImagePull" | "ErrImageNeverPull" | "InvalidImageName" => err.reason.to_owned(),
                    _ => err.message.clone(),
                };
                if !self.cancel.is_cancelled() {
                    self.of(&member, Level::Warning, "Failed", format!("Error: {shown}"));
                }
            }
        }
        result
    }

    fn of(&self, member: &Member<'_>, level: Level, reason: &'static str, message: impl Into<String>) {
        self.shared.events.pod(&self.pod, Some(member.field_path()), level, reason, message);
    }

    async fn try_start(
        &self,
        member: &Member<'_>,
        attempt: u32,
        backoff: Duration,
    ) -> Result<Started, Failed> {
        let config_error = |message: String| failed("CreateContainerConfigError", message);
        let sandbox = self
            .seen
            .sandbox()
            .filter(|s| s.ready)
            .ok_or_else(|| failed("CreateContainerError", "the sandbox is gone"))?;
        let sandbox_config = self.sandbox_config(sandbox.attempt).await.map_err(config_error)?;
        if self.cancel.run_until_cancelled(self.held.synced()).await.is_none() {
            return Err(config_error("the pod is ending".into()));
        }
        // A container of this attempt that was made and never started is in the way of its successor.
        for stale in self.seen.containers.iter().filter(|c| c.name == member.name() && c.attempt == attempt) {
            if !stale.sandbox.is_empty() {
                let request = cri::RemoveContainerRequest { container_id: stale.id.clone() };
                self.shared
                    .cri
                    .remove_container(request)
                    .await
                    .map_err(|err| failed("CreateContainerError", text(&err)))?;
            }
        }
        let image = images::ensure(
            &self.shared,
            &self.pod,
            member,
            self.held.as_ref(),
            sandbox_config.clone(),
            &self.cancel,
        )
        .await
        .map_err(|err| no_image(member.spec.image.as_deref().unwrap_or(""), err))?;
        if self.cancel.is_cancelled() {
            return Err(config_error("the pod is ending".into()));
        }
        let services = self.shared.service_env(&self.pod).await;
        let node = self.shared.facts(self.pod_ips());
        let env =
            env::make(&self.pod, member.spec, &services, &node, self.held.as_ref()).map_err(config_error)?;
        let images = self.image_volumes(member, &sandbox_config).await?;
        let mounts = self.mounts(member, attempt, env.clone(), images).await?;
        let config = container::config(container::Wanted {
            pod: &self.pod,
            spec: member.spec,
            attempt,
            backoff,
            image_id: &image.id,
            image_user: &image.user,
            env: &env,
            mounts,
            node: &self.shared.config,
            machine: &self.shared.machine,
            users: self.users().map_err(config_error)?,
            seccomp_root: &self.shared.config.root_dir.join("seccomp"),
        })
        .map_err(config_error)?;
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: sandbox.id.clone(),
            config: Some(config),
            sandbox_config: Some(sandbox_config),
        };
        let created = self.shared.cri.create_container(request).await;
        let id = created.map_err(|err| failed("CreateContainerError", err.message()))?.container_id;
        self.of(member, Level::Normal, "Created", "Container created");
        let request = cri::StartContainerRequest { container_id: id.clone() };
        self.shared
            .cri
            .start_container(request)
            .await
            .map_err(|err| failed("RunContainerError", err.message()))?;
        self.of(member, Level::Normal, "Started", "Container started");
        self.link_log(member, attempt, &id).await;
        self.post_start(member, &id).await
    }

    /// Ids of the images that the container's image volumes show, by the volumes' names.
    async fn image_volumes(
        &self,
        member: &Member<'_>,
        sandbox: &cri::PodSandboxConfig,
    ) -> Result<BTreeMap<String, String>, Failed> {
        let mut found = BTreeMap::new();
        for volume in view::spec(&self.pod).volumes.iter().flatten() {
            let Some(source) = &volume.image else { continue };
            let used = member.spec.volume_mounts.iter().flatten().any(|mount| mount.name == volume.name);
            if !used {
                continue;
            }
            let wanted = Container {
                name: member.spec.name.clone(),
                image: source.reference.clone(),
                image_pull_policy: source.pull_policy.clone(),
                ..Container::default()
            };
            let named = source.reference.as_deref().unwrap_or("");
            let asked = Member { role: member.role, spec: &wanted };
            let ready = images::ensure(
                &self.shared,
                &self.pod,
                &asked,
                self.held.as_ref(),
                sandbox.clone(),
                &self.cancel,
            )
            .await
            .map_err(|err| no_image(named, err))?;
            found.insert(volume.name.clone(), ready.id);
        }
        Ok(found)
    }

    async fn mounts(
        &self,
        member: &Member<'_>,
        attempt: u32,
        env: Vec<(String, Vec<u8>)>,
        images: BTreeMap<String, String>,
    ) -> Result<Vec<cri::Mount>, Failed> {
        let (work, spec) = (self.clone(), member.spec.clone());
        blocking(move || {
            let config_error = |message: String| failed("CreateContainerConfigError", message);
            let dir = work.shared.pod_dir(&work.key);
            let mut mounts =
                container_mounts::make(&dir, &work.pod, &spec, &env, &images).map_err(config_error)?;
            mounts.extend(container_mounts::hosts(&dir, &spec));
            let message = container_mounts::termination_message(&dir, &spec, attempt);
            mounts.extend(
                message.map_err(|err| config_error(format!("make termination message file: {err}")))?,
            );
            let logs = work.shared.config.pod_logs_dir.join(work.key.log_dir()).join(&spec.name);
            std::fs::create_dir_all(&logs)
                .map_err(|err| config_error(format!("make log directory: {err}")))?;
            if let Some(range) = work.users().map_err(config_error)? {
                crate::users::map(&mut mounts, range);
            }
            Ok(mounts)
        })
        .await
    }

    async fn link_log(&self, member: &Member<'_>, attempt: u32, id: &str) {
        let (config, key, name, id) =
            (self.shared.config.clone(), self.key.clone(), member.spec.name.clone(), id.to_owned());
        let linked = blocking(move || {
            logs::paths::link(&config, &key, &name, attempt, &id)
                .map_err(|err| failed("Link", err.to_string()))
        });
        if let Err(err) = linked.await {
            tracing::warn!(pod = %self.key, err = err.message, "link the container's log");
        }
    }

    async fn post_start(&self, member: &Member<'_>, id: &str) -> Result<Started, Failed> {
        let Some(hook) = member.spec.lifecycle.as_ref().and_then(|l| l.post_start.as_ref()) else {
            return Ok(Started::Running);
        };
        let target = HookTarget {
            shared: &self.shared,
            container_id: id,
            member: Some(*member),
            pod_ip: pod_ip(&self.shared, &self.pod, &self.seen),
        };
        // Cancel-safe: a hook that nobody waits for is killed with its container.
        match self.cancel.run_until_cancelled(hooks::run(&target, hook, POST_START_LIMIT)).await {
            Some(Err(message)) => {
                self.of(
                    member,
                    Level::Warning,
                    "FailedPostStartHook",
                    format!("PostStartHook failed: {message}"),
                );
                Ok(Started::HookFailed { id: id.into(), message })
            }
            Some(Ok(())) | None => Ok(Started::Running),
        }
    }

    /// preStop hook and stop, within the grace period.
    pub async fn stop(&self, id: &str, name: &str, why: &StopReason, grace: Duration) -> Result<(), Failed> {
        let member = view::member(view::spec(&self.pod), name);
        let path = member.map(|m| m.field_path()).or_else(|| Some(format!("spec.containers{{{name}}}")));
        self.shared.events.pod(&self.pod, path.clone(), Level::Normal, "Killing", why.message(name));
        let began = Instant::now();
        let hook = member.and_then(|m| m.spec.lifecycle.as_ref()).and_then(|l| l.pre_stop.as_ref());
        let running = *why != StopReason::Unknown;
        if let Some(hook) = hook.filter(|_| running && !grace.is_zero()) {
            self.pre_stop(id, member, hook, grace, path).await;
        }
        let mut left = grace.saturating_sub(began.elapsed());
        if !grace.is_zero() && hook.is_some() {
            left = left.max(Duration::from_secs(2)); // A hook that used all the time up: the signal still gets a moment.
        }
        let timeout = i64::try_from(left.as_millis().div_ceil(1000)).unwrap_or(i64::MAX);
        let request = cri::StopContainerRequest { container_id: id.into(), timeout };
        match self.shared.cri.stop_container(request).await {
            Ok(_) => Ok(()),
            Err(err) if err.code() == tonic::Code::NotFound => Ok(()),
            Err(err) => {
                let message = format!("error killing pod: failed to stop container {name}: {}", text(&err));
                self.shared.events.pod(&self.pod, None, Level::Warning, "FailedKillPod", message.clone());
                Err(failed("FailedKillPod", message))
            }
        }
    }

    async fn pre_stop(
        &self,
        id: &str,
        member: Option<Member<'_>>,
        hook: &LifecycleHandler,
        grace: Duration,
        path: Option<String>,
    ) {
        let target = HookTarget {
            shared: &self.shared,
            container_id: id,
            member,
            pod_ip: pod_ip(&self.shared, &self.pod, &self.seen),
        };
        if let Err(message) = hooks::run(&target, hook, grace).await {
            let text = format!("PreStopHook failed: {message}");
            self.shared.events.pod(&self.pod, path, Level::Warning, "FailedPreStopHook", text);
        }
    }
}

/// Why an image that is named so cannot be had, as the container's waiting state says it.
fn no_image(named: &str, err: images::NotReady) -> Failed {
    let message =
        if err.reason == "ErrImagePull" { format!("{named}\n{}", err.message) } else { err.message };
    failed(err.reason, message)
}
