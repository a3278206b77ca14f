//! The table of resources that the apiserver serves: one row per resource.
//!
//! Guarantees: rows are constant; `(group, version, plural)` and `(group, version, kind)` are unique.
//! Assumes: a row's `schema` names a definition that [`crate::schema`] has.
//! Caveat: two rows may share one storage prefix (the two Event groups); readers of the storage must set
//! `apiVersion` from the row they serve, with [`crate::strategy::present`].

/// A group, version and kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Gvk {
    /// API group, empty for the core group.
    pub group: &'static str,
    /// Version within the group.
    pub version: &'static str,
    /// Kind, in CamelCase.
    pub kind: &'static str,
}

/// One subresource of a resource.
#[derive(Debug, PartialEq, Eq)]
pub struct Subresource {
    /// Path element after the object's name, like `status`.
    pub name: &'static str,
    /// The kind it reads or writes; its own resource's kind for `status`.
    pub speaks: Gvk,
    /// Verbs it answers.
    pub verbs: &'static [&'static str],
}

/// One row: a resource as clients see it.
#[derive(Debug, PartialEq, Eq)]
pub struct Resource {
    /// API group, empty for the core group.
    pub group: &'static str,
    /// Version within the group.
    pub version: &'static str,
    /// Kind of one object.
    pub kind: &'static str,
    /// Kind of a list of objects; empty for create-only kinds.
    pub list_kind: &'static str,
    /// Path element, lower-case plural.
    pub plural: &'static str,
    /// Lower-case singular.
    pub singular: &'static str,
    /// Abbreviations that kubectl accepts.
    pub short_names: &'static [&'static str],
    /// Categories, like `all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in a namespace.
    pub namespaced: bool,
    /// Verbs, in the order upstream lists them.
    pub verbs: &'static [&'static str],
    /// Subresources.
    pub subresources: &'static [Subresource],
    /// First element of the storage key, like `pods`; empty for create-only kinds, which are never stored.
    pub storage: &'static str,
    /// Name of the kind's definition in OpenAPI, like `io.k8s.api.core.v1.Pod`.
    pub schema: &'static str,
    /// Whether `metadata.generation` counts changes of the spec.
    pub generation: bool,
}

impl Resource {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        api_version(self.group, self.version)
    }

    /// The row's group, version and kind.
    pub fn gvk(&self) -> Gvk {
        Gvk { group: self.group, version: self.version, kind: self.kind }
    }

    /// `pods` or `deployments.apps`, as messages name a resource.
    pub fn qualified(&self) -> String {
        if self.group.is_empty() { self.plural.to_owned() } else { format!("{}.{}", self.plural, self.group) }
    }

    /// Whether the row answers `verb`.
    pub fn allows(&self, verb: &str) -> bool {
        self.verbs.contains(&verb)
    }

    /// Whether objects are stored at all; review kinds and bindings are answered and forgotten.
    pub fn stored(&self) -> bool {
        !self.storage.is_empty()
    }

    /// The subresource of that name.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// Whether the row has a status subresource, so that plain writes must not touch the status.
    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }
}

/// `v1` for the core group, else `group/version`.
pub fn api_version(group: &str, version: &str) -> String {
    if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") }
}

/// All rows, core group first.
pub fn all() -> &'static [Resource] {
    ROWS
}

/// The row served at `/apis/{group}/{version}/…/{plural}`.
pub fn find(group: &str, version: &str, plural: &str) -> Option<&'static Resource> {
    ROWS.iter().find(|r| r.group == group && r.version == version && r.plural == plural)
}

/// The row of a kind.
pub fn find_kind(group: &str, version: &str, kind: &str) -> Option<&'static Resource> {
    ROWS.iter().find(|r| r.group == group && r.version == version && r.kind == kind)
}

/// The row of an object's own `apiVersion` and `kind`, as owner references carry them.
pub fn find_api_version(api_version: &str, kind: &str) -> Option<&'static Resource> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    find_kind(group, version, kind)
}

/// Group and version pairs that are served, in discovery order, each once.
pub fn group_versions() -> Vec<(&'static str, &'static str)> {
    let mut out: Vec<(&str, &str)> = Vec::new();
    for r in ROWS {
        if !out.contains(&(r.group, r.version)) {
            out.push((r.group, r.version));
        }
    }
    out
}

const ALL_VERBS: &[&str] =
    &["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];
/// Namespaces cannot be deleted as a collection.
const NO_COLLECTION: &[&str] = &["create", "delete", "get", "list", "patch", "update", "watch"];
const CREATE: &[&str] = &["create"];
const GET: &[&str] = &["get"];
const RW: &[&str] = &["get", "patch", "update"];
const CONNECT: &[&str] = &["create", "get"];
const PROXY: &[&str] = &["create", "delete", "get", "patch", "update"];

const fn gvk(group: &'static str, version: &'static str, kind: &'static str) -> Gvk {
    Gvk { group, version, kind }
}

const fn sub(name: &'static str, speaks: Gvk, verbs: &'static [&'static str]) -> Subresource {
    Subresource { name, speaks, verbs }
}

/// What most rows share; a row states what differs.
const ROW: Resource = Resource {
    group: "",
    version: "v1",
    kind: "",
    list_kind: "",
    plural: "",
    singular: "",
    short_names: &[],
    categories: &[],
    namespaced: true,
    verbs: ALL_VERBS,
    subresources: &[],
    storage: "",
    schema: "",
    generation: false,
};

const SCALE: Gvk = gvk("autoscaling", "v1", "Scale");

const ROWS: &[Resource] = &[
    Resource {
        kind: "Binding",
        plural: "bindings",
        singular: "binding",
        verbs: CREATE,
        schema: "io.k8s.api.core.v1.Binding",
        ..ROW
    },
    Resource {
        kind: "ConfigMap",
        list_kind: "ConfigMapList",
        plural: "configmaps",
        singular: "configmap",
        short_names: &["cm"],
        storage: "configmaps",
        schema: "io.k8s.api.core.v1.ConfigMap",
        ..ROW
    },
    Resource {
        kind: "Event",
        list_kind: "EventList",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        storage: "events",
        schema: "io.k8s.api.core.v1.Event",
        ..ROW
    },
    Resource {
        kind: "Namespace",
        list_kind: "NamespaceList",
        plural: "namespaces",
        singular: "namespace",
        short_names: &["ns"],
        namespaced: false,
        verbs: NO_COLLECTION,
        subresources: &[
            sub("finalize", gvk("", "v1", "Namespace"), &["update"]),
            sub("status", gvk("", "v1", "Namespace"), RW),
        ],
        storage: "namespaces",
        schema: "io.k8s.api.core.v1.Namespace",
        ..ROW
    },
    Resource {
        kind: "Node",
        list_kind: "NodeList",
        plural: "nodes",
        singular: "node",
        short_names: &["no"],
        namespaced: false,
        subresources: &[
            sub("proxy", gvk("", "v1", "NodeProxyOptions"), PROXY),
            sub("status", gvk("", "v1", "Node"), RW),
        ],
        storage: "nodes",
        schema: "io.k8s.api.core.v1.Node",
        ..ROW
    },
    Resource {
        kind: "Pod",
        list_kind: "PodList",
        plural: "pods",
        singular: "pod",
        short_names: &["po"],
        categories: &["all"],
        subresources: &[
            sub("attach", gvk("", "v1", "PodAttachOptions"), CONNECT),
            sub("binding", gvk("", "v1", "Binding"), CREATE),
            sub("ephemeralcontainers", gvk("", "v1", "Pod"), RW),
            sub("eviction", gvk("policy", "v1", "Eviction"), CREATE),
            sub("exec", gvk("", "v1", "PodExecOptions"), CONNECT),
            sub("log", gvk("", "v1", "Pod"), GET),
            sub("portforward", gvk("", "v1", "PodPortForwardOptions"), CONNECT),
            sub("resize", gvk("", "v1", "Pod"), RW),
            sub("status", gvk("", "v1", "Pod"), RW),
        ],
        storage: "pods",
        schema: "io.k8s.api.core.v1.Pod",
        generation: true,
        ..ROW
    },
    Resource {
        kind: "Secret",
        list_kind: "SecretList",
        plural: "secrets",
        singular: "secret",
        storage: "secrets",
        schema: "io.k8s.api.core.v1.Secret",
        ..ROW
    },
    Resource {
        kind: "ServiceAccount",
        list_kind: "ServiceAccountList",
        plural: "serviceaccounts",
        singular: "serviceaccount",
        short_names: &["sa"],
        subresources: &[sub("token", gvk("authentication.k8s.io", "v1", "TokenRequest"), CREATE)],
        storage: "serviceaccounts",
        schema: "io.k8s.api.core.v1.ServiceAccount",
        ..ROW
    },
    Resource {
        kind: "Service",
        list_kind: "ServiceList",
        plural: "services",
        singular: "service",
        short_names: &["svc"],
        categories: &["all"],
        subresources: &[sub("status", gvk("", "v1", "Service"), RW)],
        storage: "services",
        schema: "io.k8s.api.core.v1.Service",
        ..ROW
    },
    Resource {
        group: "apps",
        kind: "Deployment",
        list_kind: "DeploymentList",
        plural: "deployments",
        singular: "deployment",
        short_names: &["deploy"],
        categories: &["all"],
        subresources: &[sub("scale", SCALE, RW), sub("status", gvk("apps", "v1", "Deployment"), RW)],
        storage: "deployments",
        schema: "io.k8s.api.apps.v1.Deployment",
        generation: true,
        ..ROW
    },
    Resource {
        group: "apps",
        kind: "ReplicaSet",
        list_kind: "ReplicaSetList",
        plural: "replicasets",
        singular: "replicaset",
        short_names: &["rs"],
        categories: &["all"],
        subresources: &[sub("scale", SCALE, RW), sub("status", gvk("apps", "v1", "ReplicaSet"), RW)],
        storage: "replicasets",
        schema: "io.k8s.api.apps.v1.ReplicaSet",
        generation: true,
        ..ROW
    },
    Resource {
        group: "events.k8s.io",
        kind: "Event",
        list_kind: "EventList",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        storage: "events",
        schema: "io.k8s.api.events.v1.Event",
        ..ROW
    },
    Resource {
        group: "authentication.k8s.io",
        kind: "SelfSubjectReview",
        plural: "selfsubjectreviews",
        singular: "selfsubjectreview",
        namespaced: false,
        verbs: CREATE,
        schema: "io.k8s.api.authentication.v1.SelfSubjectReview",
        ..ROW
    },
    Resource {
        group: "authentication.k8s.io",
        kind: "TokenReview",
        plural: "tokenreviews",
        singular: "tokenreview",
        namespaced: false,
        verbs: CREATE,
        schema: "io.k8s.api.authentication.v1.TokenReview",
        ..ROW
    },
    Resource {
        group: "authorization.k8s.io",
        kind: "LocalSubjectAccessReview",
        plural: "localsubjectaccessreviews",
        singular: "localsubjectaccessreview",
        verbs: CREATE,
        schema: "io.k8s.api.authorization.v1.LocalSubjectAccessReview",
        ..ROW
    },
    Resource {
        group: "authorization.k8s.io",
        kind: "SelfSubjectAccessReview",
        plural: "selfsubjectaccessreviews",
        singular: "selfsubjectaccessreview",
        namespaced: false,
        verbs: CREATE,
        schema: "io.k8s.api.authorization.v1.SelfSubjectAccessReview",
        ..ROW
    },
    Resource {
        group: "authorization.k8s.io",
        kind: "SelfSubjectRulesReview",
        plural: "selfsubjectrulesreviews",
        singular: "selfsubjectrulesreview",
        namespaced: false,
        verbs: CREATE,
        schema: "io.k8s.api.authorization.v1.SelfSubjectRulesReview",
        ..ROW
    },
    Resource {
        group: "authorization.k8s.io",
        kind: "SubjectAccessReview",
        plural: "subjectaccessreviews",
        singular: "subjectaccessreview",
        namespaced: false,
        verbs: CREATE,
        schema: "io.k8s.api.authorization.v1.SubjectAccessReview",
        ..ROW
    },
    Resource {
        group: "coordination.k8s.io",
        kind: "Lease",
        list_kind: "LeaseList",
        plural: "leases",
        singular: "lease",
        storage: "leases",
        schema: "io.k8s.api.coordination.v1.Lease",
        ..ROW
    },
    Resource {
        group: "node.k8s.io",
        kind: "RuntimeClass",
        list_kind: "RuntimeClassList",
        plural: "runtimeclasses",
        singular: "runtimeclass",
        namespaced: false,
        storage: "runtimeclasses",
        schema: "io.k8s.api.node.v1.RuntimeClass",
        ..ROW
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_unique_and_complete() {
        for (i, r) in ROWS.iter().enumerate() {
            assert!(!r.kind.is_empty() && !r.plural.is_empty() && !r.schema.is_empty(), "{r:?}");
            assert_eq!(r.stored(), !r.list_kind.is_empty(), "{r:?}");
            assert!(
                std::ptr::eq(find(r.group, r.version, r.plural).expect("itself"), &ROWS[i])
                    || find(r.group, r.version, r.plural) == Some(r)
            );
        }
        assert_eq!(find_api_version("apps/v1", "ReplicaSet").expect("row").plural, "replicasets");
        assert_eq!(find("apps", "v1", "deployments").expect("row").qualified(), "deployments.apps");
        assert!(find("apps", "v1", "statefulsets").is_none());
    }
}
