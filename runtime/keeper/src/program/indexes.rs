//! Which of a request's descriptors a plan names.

use super::requests::invalid;
use crate::plan::{ExecPlan, ExecStdio, FdIndex, LaunchPlan, Namespace, Step};
use crate::protocol::Failure;

pub(super) fn joined(namespace: Namespace) -> Option<FdIndex> {
    match namespace {
        Namespace::Join(index) => Some(index),
        Namespace::Host | Namespace::New => None,
    }
}

pub(super) fn launch_indexes(plan: &LaunchPlan) -> impl Iterator<Item = FdIndex> {
    let namespaces = &plan.namespaces;
    let joins = [namespaces.pid, namespaces.net, namespaces.ipc, namespaces.uts, namespaces.cgroup];
    let attached = plan.steps.iter().filter_map(|step| match step {
        Step::Attach { fd, .. } => Some(*fd),
        _ => None,
    });
    attached
        .chain(joins.into_iter().filter_map(joined))
        .chain([plan.rootfs.fd])
        .chain(plan.cgroup)
        .chain(plan.log)
        .chain(plan.user_namespace.map(|user| user.fd))
        .chain(plan.procfs_of)
}

pub(super) fn exec_indexes(plan: &ExecPlan) -> impl Iterator<Item = FdIndex> {
    let streams = match plan.stdio {
        ExecStdio::Streams { stdin, stdout, stderr } => [stdin, stdout, stderr],
        ExecStdio::Terminal { .. } => [None; 3],
    };
    streams.into_iter().flatten().chain(plan.cgroup)
}

/// The child and `launch` index without checking again.
pub(super) fn check_indexes(indexes: impl IntoIterator<Item = FdIndex>, count: usize) -> Result<(), Failure> {
    match indexes.into_iter().find(|index| usize::from(index.0) >= count) {
        Some(index) => {
            Err(invalid(format!("the plan names descriptor {}, but {count} came with it", index.0)))
        }
        None => Ok(()),
    }
}
