//! The start of a container by another runtime: bundle, mounts, `create` and `start`.

use std::sync::Arc;

use keeper::client::LaunchReply;
use keeper::delegate::Task;
use keeper::plan::Stdio;
use rustix::fs::OFlags;
use serde_json::Value;

use super::{Commands, failed, make_private, means_no_program, open, path, remove, said, words, write};
use crate::bundle;
use crate::core::{Inner, Ready, blocking};
use crate::error::{RuntimeError, StartError};
use crate::handler::Devices;
use crate::overlay::Look;
use crate::plan::Origin;
use crate::prepare;
use crate::record::{ContainerRecord, SandboxRecord};
use crate::spec::ContainerSpec;
use crate::{devices, seccomp};

impl Inner {
    /// Makes a container by another runtime, and starts it.
    pub async fn delegate_launch(
        self: &Arc<Self>,
        record: &ContainerRecord,
        sandbox: SandboxRecord,
        ready: Option<Ready>,
    ) -> Result<LaunchReply, StartError> {
        let id = &record.spec.id;
        let (inner, copy) = (self.clone(), record.clone());
        let devices = self.devices_of(&sandbox.spec.handler).await;
        let prepared = blocking(move || inner.prepare_delegate(&copy, &sandbox, ready, devices)).await;
        let Commands { plan, fds, log, temporary } = prepared?;
        let outcome = self.keeper().await?.delegate_launch(plan, fds).await;
        temporary.iter().for_each(|path| remove(path));
        let error = match outcome {
            Ok(reply) => return Ok(reply),
            Err(error) => error,
        };
        let said = said(&log);
        self.delegate_delete(record).await;
        // Whether something of it runs is not known: let it not run.
        if let Ok(group) = self.cgroups.open_path(&record.cgroup)
            && let Err(errno) = group.kill()
        {
            tracing::warn!(container = %id, error = %errno, "kill what a failed start left");
        }
        match said {
            Some(words) if means_no_program(&words) => Err(StartError::NotFound {
                program: record.spec.args.first().cloned().unwrap_or_default(),
                source: std::io::Error::other(words),
            }),
            said => Err(failed(format!("start container {id}"), error, said).into()),
        }
    }

    fn prepare_delegate(
        &self,
        record: &ContainerRecord,
        sandbox: &SandboxRecord,
        ready: Option<Ready>,
        confined: Devices,
    ) -> Result<Commands, RuntimeError> {
        let spec = &record.spec;
        let runtime = self.delegate(sandbox)?;
        let bundle = self.bundle(&spec.id);
        make_private(&bundle)?;
        let (rootfs, draft) = match ready {
            Some(ready) => (ready.rootfs, ready.draft),
            None => {
                (self.mount_root(spec, sandbox)?, self.draft(spec, &record.user, &record.cgroup, sandbox)?)
            }
        };
        // Mount points lie on the tmpfs of the pins, which is private, so that nothing reaches other namespaces.
        let places = self.pins.of(sandbox.spec.id.as_str());
        let place = places.join("rootfs");
        make_private(&place)?;
        let pid = match draft.namespaces.pid {
            Origin::Join(_) => Some(self.pid_namespace(spec, sandbox)?),
            Origin::New | Origin::Host => None,
        };
        let parts = bundle::Parts {
            rootfs: &place,
            images: &places.join("image-"),
            pid: pid.as_deref(),
            seccomp: self.seccomp_document(spec)?,
            devices: match confined {
                Devices::ByRuntime if !spec.privileged => Some(devices::rules(&devices::find(spec)?)),
                _ => None,
            },
            sys_resource: self.capabilities.sys_resource,
        };
        let oci = self.oci_spec(spec, &record.user, &record.cgroup, sandbox)?;
        let (mut config, images) = bundle::config(&oci, &parts)?;
        self.limit_document(&mut config["process"]);
        write(&bundle.join("config.json"), &config)?;

        let task = Task::Container {
            id: spec.id.to_string(),
            stdio: match (spec.tty, spec.stdin) {
                (true, _) => Stdio::Terminal { columns: 80, rows: 24 },
                (false, stdin) => Stdio::Pipes { stdin },
            },
            stdin_once: spec.stdin_once,
            log: None,
            cgroup: None,
        };
        let mut commands = self.commands(&sandbox.spec.handler, runtime, &bundle, task)?;
        let fds = &mut commands.fds;
        commands.plan.attach.push((fds.add(rootfs), path(&place)?));
        let label = oci.linux().as_ref().and_then(|linux| linux.mount_label().clone());
        let context = label.map(|label| crate::plan::text(label.as_bytes())).transpose()?;
        for image in images {
            make_private(&image.place)?;
            let scratch = self.pins.scratch();
            let look = Look { ids: None, context: context.as_deref() };
            let tree =
                prepare::open_image(&image.lower, image.sub_path.as_deref(), image.set, look, scratch)?;
            commands.plan.attach.push((fds.add(tree), path(&image.place)?));
        }
        if let Task::Container { log, cgroup, .. } = &mut commands.plan.task {
            *log = spec.log_path.as_deref().map(prepare::open_log).transpose()?.map(|file| fds.add(file));
            let group = self.cgroup_at_start(spec, &record.cgroup)?;
            if confined == Devices::ByUs {
                self.confine_devices(&group, spec)?;
            }
            let step = RuntimeError::io(format!("copy the cgroup of container {}", spec.id));
            *cgroup = Some(fds.add(group.fd().try_clone_to_owned().map_err(step)?));
        }
        let pid_file = bundle.join("pid");
        remove(&pid_file);
        let mut create = words(["create", "--bundle"])?;
        create.extend([path(&bundle)?, c"--pid-file".to_owned(), path(&pid_file)?]);
        if spec.tty {
            create.extend(self.console(&mut commands)?);
        }
        create.extend(words([spec.id.as_str()])?);
        let start = words(["start", spec.id.as_str()])?;
        let base = commands.plan.commands.remove(0);
        commands.plan.commands = [create, start].map(|more| [base.clone(), more].concat()).into();
        let directory = open(&bundle, OFlags::PATH | OFlags::DIRECTORY)?;
        commands.plan.pid_file = Some((commands.fds.add(directory), c"pid".to_owned()));
        Ok(commands)
    }

    fn seccomp_document(&self, spec: &ContainerSpec) -> Result<Option<Value>, RuntimeError> {
        if spec.privileged || !self.capabilities.seccomp {
            return Ok(None);
        }
        let sets = crate::caps::sets(&spec.capabilities, false, self.available)?;
        let profile = seccomp::profile(&spec.seccomp, &self.options.seccomp_profiles, sets.effective)?;
        Ok(profile.map(|profile| seccomp::document(&profile, seccomp::Arch::native())))
    }
}
