//! How the rest of the crate looks at a pod object: identity, members in order, policies.
//!
//! Guarantees: a [`PodUid`] and the names made here can be used as path components.

use std::fmt;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec};

/// The uid of a pod: what all its files, sandboxes and containers are found by.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(Arc<str>);

impl PodUid {
    /// Accepts what can be one path component: 1 to 128 of `[A-Za-z0-9_.-]`, not starting with a dot.
    pub fn parse(text: &str) -> Option<PodUid> {
        let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
        let ok = !text.is_empty() && text.len() <= 128 && !text.starts_with('.') && text.chars().all(fine);
        ok.then(|| PodUid(text.into()))
    }

    /// The text of it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for PodUid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who a pod is: the labels of its sandboxes say the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodKey {
    /// Unique in time and space.
    pub uid: PodUid,
    /// Namespace.
    pub namespace: String,
    /// Name, unique in the namespace at one time.
    pub name: String,
}

impl PodKey {
    /// Reads it off a pod object; `None` where one of the three is missing or not usable as a path.
    pub fn of(pod: &Pod) -> Option<PodKey> {
        let meta = &pod.metadata;
        let name = PodUid::parse(meta.name.as_deref()?)?;
        let namespace = PodUid::parse(meta.namespace.as_deref()?)?;
        Some(PodKey {
            uid: PodUid::parse(meta.uid.as_deref()?)?,
            namespace: namespace.as_str().into(),
            name: name.as_str().into(),
        })
    }

    /// Name of the directory of the pod's logs.
    pub fn log_dir(&self) -> String {
        format!("{}_{}_{}", self.namespace, self.name, self.uid)
    }
}

impl fmt::Display for PodKey {
    /// As Kubernetes writes pods in messages: `name_namespace(uid)`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}_{}({})", self.name, self.namespace, self.uid)
    }
}

/// What part a container plays in its pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Runs to its end before the next one starts.
    Init,
    /// An init container with `restartPolicy: Always`: starts in order, stays.
    Sidecar,
    /// One of `spec.containers`.
    App,
}

/// One container of a pod with its part in it.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    /// Its part.
    pub role: Role,
    /// Its specification.
    pub spec: &'a Container,
}

impl Member<'_> {
    /// Its name, unique in the pod.
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// `spec.containers{app}` or `spec.initContainers{x}`, as events point at containers.
    pub fn field_path(&self) -> String {
        match self.role {
            Role::App => format!("spec.containers{{{}}}", self.spec.name),
            Role::Init | Role::Sidecar => format!("spec.initContainers{{{}}}", self.spec.name),
        }
    }
}

/// When an exited container is started again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// Whatever its exit code.
    Always,
    /// Only after an exit code other than 0.
    OnFailure,
    /// Not at all.
    Never,
}

impl Restart {
    fn parse(text: Option<&str>) -> Restart {
        match text {
            Some("OnFailure") => Restart::OnFailure,
            Some("Never") => Restart::Never,
            _ => Restart::Always,
        }
    }

    /// Whether a container that ended with `code` is started again.
    pub fn again(self, code: i32) -> bool {
        match self {
            Restart::Always => true,
            Restart::OnFailure => code != 0,
            Restart::Never => false,
        }
    }
}

/// Init containers (and sidecars) in the order they start, then the app containers.
pub fn members(spec: &PodSpec) -> impl Iterator<Item = Member<'_>> {
    let init = spec.init_containers.iter().flatten().map(|c| Member {
        role: if c.restart_policy.as_deref() == Some("Always") { Role::Sidecar } else { Role::Init },
        spec: c,
    });
    init.chain(spec.containers.iter().map(|c| Member { role: Role::App, spec: c }))
}

/// The member of this name.
pub fn member<'a>(spec: &'a PodSpec, name: &str) -> Option<Member<'a>> {
    members(spec).find(|m| m.spec.name == name)
}

/// The restart policy that applies to one member.
pub fn restart_policy(spec: &PodSpec, member: &Member<'_>) -> Restart {
    let of_pod = Restart::parse(spec.restart_policy.as_deref());
    match member.role {
        Role::Sidecar => Restart::Always,
        // An init container that succeeded is done under any policy.
        Role::Init if of_pod == Restart::Never => Restart::Never,
        Role::Init => Restart::OnFailure,
        Role::App => match member.spec.restart_policy.as_deref() {
            own @ Some(_) => Restart::parse(own),
            None => of_pod,
        },
    }
}

/// The pod's specification; an empty one for an object without (never from an apiserver).
pub fn spec(pod: &Pod) -> &PodSpec {
    static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
    pod.spec.as_ref().unwrap_or(&EMPTY)
}

/// Whether the pod shares the node's network.
pub fn host_network(pod: &Pod) -> bool {
    spec(pod).host_network.unwrap_or(false)
}

/// A container's annotation or label map entry, or the empty string.
pub fn annotation<'a>(pod: &'a Pod, key: &str) -> &'a str {
    pod.metadata.annotations.as_ref().and_then(|a| a.get(key)).map_or("", String::as_str)
}
