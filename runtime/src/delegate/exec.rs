//! One more process in a container that another runtime made.

use std::ffi::CString;
use std::sync::Arc;

use keeper::client::ExecReply;
use keeper::delegate::Task;
use keeper::plan::{ExecPlan, ExecStdio, FdIndex, Fds};
use rustix::fs::OFlags;

use super::{Commands, failed, make_private, means_no_program, open, path, remove, said, words, write};
use crate::core::{Inner, blocking};
use crate::error::{ExecError, RuntimeError};
use crate::record::ContainerRecord;
use crate::{bundle, oci};

impl Inner {
    /// Runs what an exec's plan says by the runtime that made the container.
    pub async fn delegate_exec(
        self: &Arc<Self>,
        record: &ContainerRecord,
        plan: ExecPlan,
        fds: Fds,
    ) -> Result<ExecReply, ExecError> {
        let id = &record.spec.id;
        let program = plan.process.args.first().map(|arg| arg.to_string_lossy().into_owned());
        let (inner, copy) = (self.clone(), record.clone());
        let prepared = blocking(move || inner.prepare_exec(&copy, plan, fds)).await;
        let Commands { plan, fds, log, temporary } = prepared?;
        let outcome = self.keeper().await?.delegate_exec(plan, fds).await;
        let said = if outcome.is_err() { said(&log) } else { None };
        temporary.iter().for_each(|path| remove(path));
        match (outcome, said) {
            (Ok(reply), _) => Ok(reply),
            (Err(_), Some(words)) if means_no_program(&words) => Err(ExecError::NotFound {
                program: program.unwrap_or_default(),
                source: std::io::Error::other(words),
            }),
            (Err(error), said) => Err(failed(format!("exec in container {id}"), error, said).into()),
        }
    }

    fn prepare_exec(
        &self,
        record: &ContainerRecord,
        exec: ExecPlan,
        given: Fds,
    ) -> Result<Commands, RuntimeError> {
        let spec = &record.spec;
        let sandbox = self.sandbox_record(&spec.sandbox)?;
        let runtime = self.delegate(&sandbox)?;
        let tty = matches!(exec.stdio, ExecStdio::Terminal { .. });
        let confinement = self.confinement(spec, &sandbox)?;
        let pattern = oci::process(spec, &record.user, &sandbox.spec.hostname, self.available, &confinement)?;
        let mut document = serde_json::to_value(&pattern)
            .map_err(|error| RuntimeError::invalid(format!("OCI process as JSON: {error}")))?;
        let strings = |list: &[CString]| -> Vec<String> {
            list.iter().map(|one| one.to_string_lossy().into_owned()).collect()
        };
        let process = &exec.process;
        document["terminal"] = tty.into();
        document["args"] = strings(&process.args).into();
        document["env"] = strings(&process.env).into();
        document["cwd"] = process.cwd.to_string_lossy().into();
        document["user"]["uid"] = process.user.uid.into();
        document["user"]["gid"] = process.user.gid.into();
        document["user"]["additionalGids"] = process.user.groups.clone().into();
        bundle::adapt_process(&mut document, self.capabilities.sys_resource);
        self.limit_document(&mut document);

        let directory = self.bundle(&spec.id).join(format!("exec-{}", exec.id));
        make_private(&directory)?;
        let file = directory.join("process.json");
        write(&file, &document)?;
        let task = Task::Exec { container: spec.id.to_string(), id: exec.id, stdio: exec.stdio };
        let mut commands = self.commands(&sandbox.spec.handler, runtime, &directory, task)?;
        commands.temporary.push(directory.clone());
        // The caller's descriptors follow those that are there: their numbers move.
        let moved = u16::try_from(commands.fds.len()).unwrap_or(u16::MAX);
        for fd in given.into_vec() {
            commands.fds.add(fd);
        }
        if let Task::Exec { stdio: ExecStdio::Streams { stdin, stdout, stderr }, .. } =
            &mut commands.plan.task
        {
            for index in [stdin, stdout, stderr].into_iter().flatten() {
                *index = FdIndex(index.0 + moved);
            }
        }
        let mut more = words(["exec", "--detach", "--process"])?;
        more.extend([path(&file)?, c"--pid-file".to_owned(), path(&directory.join("pid"))?]);
        if tty {
            more.push(c"--tty".to_owned());
            more.extend(self.console(&mut commands)?);
        }
        more.extend(words([spec.id.as_str()])?);
        commands.plan.commands[0].extend(more);
        let opened = open(&directory, OFlags::PATH | OFlags::DIRECTORY)?;
        commands.plan.pid_file = Some((commands.fds.add(opened), c"pid".to_owned()));
        Ok(commands)
    }
}
