//! What Kubernetes knows about fields and its JSON schemas do not say: which lists are maps or sets, by which keys a
//! strategic merge patch joins their items, and which objects and maps are one value for server-side apply.
//!
//! Guarantees: a field that has no row is plain: a list is atomic, an object or map merges field by field.
//! Source: the declarations of Kubernetes 1.36's own types.

/// How a list is put together from several writers' parts, or that a map is one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    /// One value: the last writer's.
    Atomic,
    /// Scalars, each once.
    Set,
    /// Objects, told apart by these fields.
    Keyed(&'static [&'static str]),
}

/// One field's facts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fact {
    /// Definition without its `io.k8s.api.` prefix.
    pub definition: &'static str,
    /// Field of the definition.
    pub field: &'static str,
    /// How server-side apply merges it.
    pub shape: Shape,
    /// How a strategic merge patch merges it.
    pub merge: Merge,
}

/// How a strategic merge patch treats a field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum Merge {
    /// A list is replaced; an object is merged.
    #[default]
    Default,
    /// A list of scalars is merged as a set.
    Set,
    /// A list of objects is merged by this key.
    Key(&'static str),
    /// As `Key`, and an item keeps only the fields its patch names in `$retainKeys`.
    KeyRetain(&'static str),
    /// An object keeps only the fields its patch names in `$retainKeys`.
    Retain,
}

use Merge::{Key, KeyRetain, Retain};
use Shape::{Atomic, Keyed, Set};

/// Objects that are one value for server-side apply.
pub const ATOMIC_OBJECTS: &[&str] = &[
    "core.v1.ConfigMapKeySelector",
    "core.v1.FileKeySelector",
    "core.v1.LocalObjectReference",
    "core.v1.NodeSelector",
    "core.v1.NodeSelectorTerm",
    "core.v1.ObjectFieldSelector",
    "core.v1.ObjectReference",
    "core.v1.ResourceFieldSelector",
    "core.v1.SecretKeySelector",
    "core.v1.TypedLocalObjectReference",
    "meta.v1.LabelSelector",
    "meta.v1.OwnerReference",
];

const fn fact(definition: &'static str, field: &'static str, shape: Shape, merge: Merge) -> Fact {
    Fact { definition, field, shape, merge }
}

/// The table.
#[rustfmt::skip]
pub const FACTS: &[Fact] = &[
    fact("apps.v1.DeploymentSpec", "strategy", Atomic, Retain),
    fact("apps.v1.DeploymentStatus", "conditions", Keyed(&["type"]), Key("type")),
    fact("apps.v1.ReplicaSetStatus", "conditions", Keyed(&["type"]), Key("type")),
    fact("core.v1.Container", "env", Keyed(&["name"]), Key("name")),
    fact("core.v1.Container", "ports", Keyed(&["containerPort", "protocol"]), Key("containerPort")),
    fact("core.v1.Container", "volumeDevices", Keyed(&["devicePath"]), Key("devicePath")),
    fact("core.v1.Container", "volumeMounts", Keyed(&["mountPath"]), Key("mountPath")),
    fact("core.v1.ContainerRestartRuleOnExitCodes", "values", Set, Merge::Default),
    fact("core.v1.ContainerStatus", "allocatedResourcesStatus", Keyed(&["name"]), Key("name")),
    fact("core.v1.ContainerStatus", "volumeMounts", Keyed(&["mountPath"]), Key("mountPath")),
    fact("core.v1.EphemeralContainer", "env", Keyed(&["name"]), Key("name")),
    fact("core.v1.EphemeralContainer", "ports", Keyed(&["containerPort", "protocol"]), Key("containerPort")),
    fact("core.v1.EphemeralContainer", "volumeDevices", Keyed(&["devicePath"]), Key("devicePath")),
    fact("core.v1.EphemeralContainer", "volumeMounts", Keyed(&["mountPath"]), Key("mountPath")),
    fact("core.v1.NamespaceStatus", "conditions", Keyed(&["type"]), Key("type")),
    fact("core.v1.NodeAllocatableResourceClaimStatus", "containers", Set, Merge::Default),
    fact("core.v1.NodeSpec", "podCIDRs", Set, Merge::Set),
    fact("core.v1.NodeStatus", "addresses", Keyed(&["type"]), Key("type")),
    fact("core.v1.NodeStatus", "conditions", Keyed(&["type"]), Key("type")),
    fact("core.v1.PodSpec", "containers", Keyed(&["name"]), Key("name")),
    fact("core.v1.PodSpec", "ephemeralContainers", Keyed(&["name"]), Key("name")),
    fact("core.v1.PodSpec", "hostAliases", Keyed(&["ip"]), Key("ip")),
    fact("core.v1.PodSpec", "imagePullSecrets", Keyed(&["name"]), Key("name")),
    fact("core.v1.PodSpec", "initContainers", Keyed(&["name"]), Key("name")),
    fact("core.v1.PodSpec", "nodeSelector", Atomic, Merge::Default),
    fact("core.v1.PodSpec", "resourceClaims", Keyed(&["name"]), KeyRetain("name")),
    fact("core.v1.PodSpec", "schedulingGates", Keyed(&["name"]), Key("name")),
    fact("core.v1.PodSpec", "topologySpreadConstraints", Keyed(&["topologyKey", "whenUnsatisfiable"]), Key("topologyKey")),
    fact("core.v1.PodSpec", "volumes", Keyed(&["name"]), KeyRetain("name")),
    fact("core.v1.PodStatus", "conditions", Keyed(&["type"]), Key("type")),
    fact("core.v1.PodStatus", "hostIPs", Atomic, Key("ip")),
    fact("core.v1.PodStatus", "podIPs", Keyed(&["ip"]), Key("ip")),
    fact("core.v1.PodStatus", "resourceClaimStatuses", Keyed(&["name"]), KeyRetain("name")),
    fact("core.v1.ResourceRequirements", "claims", Keyed(&["name"]), Merge::Default),
    fact("core.v1.ResourceStatus", "resources", Keyed(&["resourceID"]), Merge::Default),
    fact("core.v1.ServiceAccount", "secrets", Keyed(&["name"]), Key("name")),
    fact("core.v1.ServiceSpec", "ports", Keyed(&["port", "protocol"]), Key("port")),
    fact("core.v1.ServiceSpec", "selector", Atomic, Merge::Default),
    fact("core.v1.ServiceStatus", "conditions", Keyed(&["type"]), Key("type")),
    fact("meta.v1.ObjectMeta", "finalizers", Set, Merge::Set),
    fact("meta.v1.ObjectMeta", "ownerReferences", Keyed(&["uid"]), Key("uid")),
    fact("node.v1.Scheduling", "nodeSelector", Atomic, Merge::Default),
];

/// The facts of a field, where there are any; `definition` with or without its `io.k8s.api.` prefix.
pub fn of(definition: &str, field: &str) -> Option<&'static Fact> {
    let short = short(definition);
    FACTS.iter().find(|f| f.field == field && f.definition == short)
}

/// A definition's name without `io.k8s.api.` or `io.k8s.apimachinery.pkg.apis.`.
pub fn short(definition: &str) -> &str {
    definition
        .strip_prefix("io.k8s.apimachinery.pkg.apis.")
        .or_else(|| definition.strip_prefix("io.k8s.api."))
        .unwrap_or(definition)
}
