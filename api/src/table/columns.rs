//! Which columns each kind has.

use serde_json::{Value, json};

use crate::registry::Resource;

/// One column of a table.
#[derive(Clone, Copy)]
pub(super) struct Column {
    name: &'static str,
    ty: &'static str,
    /// 0 is always shown, 1 with `-o wide`.
    priority: u8,
    description: &'static str,
}

impl Column {
    pub(super) fn to_value(self: &Column) -> Value {
        json!({
            "name": self.name,
            "type": self.ty,
            "format": if self.name == "Name" && self.priority == 0 { "name" } else { "" },
            "description": self.description,
            "priority": self.priority,
        })
    }
}

const fn text(name: &'static str, description: &'static str) -> Column {
    Column { name, ty: "string", priority: 0, description }
}

const fn number(name: &'static str, description: &'static str) -> Column {
    Column { name, ty: "integer", priority: 0, description }
}

const fn wide(name: &'static str, description: &'static str) -> Column {
    Column { name, ty: "string", priority: 1, description }
}

const NAME: Column = text("Name", "Name of the object, unique in its namespace.");
const AGE: Column = text("Age", "Time since the object was created.");
const CONTAINERS: Column = wide("Containers", "Names of each container in the template.");
const IMAGES: Column = wide("Images", "Images of each container in the template.");
const SELECTOR: Column = wide("Selector", "Labels by which pods are selected.");

const POD: &[Column] = &[
    NAME,
    text("Ready", "Containers that are ready, of all."),
    text("Status", "What the pod is doing, in one word."),
    text("Restarts", "How often containers were restarted, and when last."),
    AGE,
    wide("IP", "The pod's first address."),
    wide("Node", "The node the pod runs on."),
    wide("Nominated Node", "The node the pod may run on once others made room."),
    wide("Readiness Gates", "Readiness gates that are fulfilled, of all."),
];
const DEPLOYMENT: &[Column] = &[
    NAME,
    text("Ready", "Replicas that are ready, of those wanted."),
    number("Up-to-date", "Replicas made of the current template."),
    number("Available", "Replicas that have been ready long enough."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
const REPLICA_SET: &[Column] = &[
    NAME,
    number("Desired", "Replicas wanted."),
    number("Current", "Replicas there are."),
    number("Ready", "Replicas that are ready."),
    AGE,
    CONTAINERS,
    IMAGES,
    SELECTOR,
];
const SERVICE: &[Column] = &[
    NAME,
    text("Type", "How the service is exposed."),
    text("Cluster-IP", "The service's address inside the cluster."),
    text("External-IP", "Addresses outside the cluster."),
    text("Port(s)", "Ports, with node ports where there are any."),
    AGE,
    SELECTOR,
];
const NODE: &[Column] = &[
    NAME,
    text("Status", "Whether the node is ready, and takes pods."),
    text("Roles", "Roles from the node's labels."),
    AGE,
    text("Version", "Version of the kubelet."),
    wide("Internal-IP", "The node's address inside the cluster."),
    wide("External-IP", "The node's address outside the cluster."),
    wide("OS-Image", "Operating system."),
    wide("Kernel-Version", "Version of the kernel."),
    wide("Container-Runtime", "Container runtime and its version."),
];
const NAMESPACE: &[Column] = &[NAME, text("Status", "Whether the namespace is in use or going away."), AGE];
const CONFIG_MAP: &[Column] = &[NAME, number("Data", "Number of keys."), AGE];
const SECRET: &[Column] =
    &[NAME, text("Type", "What the secret is for."), number("Data", "Number of keys."), AGE];
const SERVICE_ACCOUNT: &[Column] = &[NAME, number("Secrets", "Number of secrets named by the account."), AGE];
const LEASE: &[Column] = &[NAME, text("Holder", "Who holds the lease."), AGE];
const RUNTIME_CLASS: &[Column] = &[NAME, text("Handler", "What the node's runtime calls it."), AGE];
const EVENT: &[Column] = &[
    text("Last Seen", "Time since it was last seen."),
    text("Type", "Normal or Warning."),
    text("Reason", "Why, in one word."),
    text("Object", "What it is about."),
    wide("Subobject", "Which part of the object it is about."),
    wide("Source", "Who reported it."),
    text("Message", "What happened."),
    wide("First Seen", "Time since it was first seen."),
    Column { ty: "integer", ..wide("Count", "How often it was seen.") },
    wide("Name", "Name of the event."),
];
const ANY: &[Column] = &[NAME, AGE];

pub(super) fn of(row: &Resource) -> &'static [Column] {
    match (row.group, row.kind) {
        ("", "Pod") => POD,
        ("apps", "Deployment") => DEPLOYMENT,
        ("apps", "ReplicaSet") => REPLICA_SET,
        ("", "Service") => SERVICE,
        ("", "Node") => NODE,
        ("", "Namespace") => NAMESPACE,
        ("", "ConfigMap") => CONFIG_MAP,
        ("", "Secret") => SECRET,
        ("", "ServiceAccount") => SERVICE_ACCOUNT,
        ("coordination.k8s.io", "Lease") => LEASE,
        ("node.k8s.io", "RuntimeClass") => RUNTIME_CLASS,
        (_, "Event") => EVENT,
        _ => ANY,
    }
}
