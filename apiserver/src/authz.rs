//! Authorisation: the seam where RBAC will stand.
//!
//! Guarantees: a pure decision over what was asked by whom.
//! Caveats: for now everyone who is known may do everything; the unknown may only ask whether the
//! server lives and what version it is.

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct User {
    /// The name, like `system:node:a`.
    pub name: String,
    /// An id that outlives the name, if there is one.
    pub uid: String,
    /// The groups.
    pub groups: Vec<String>,
    /// More facts, like the pod that a token is bound to.
    pub extra: Vec<(String, Vec<String>)>,
}

impl User {
    /// Nobody in particular.
    pub fn anonymous() -> User {
        User {
            name: "system:anonymous".to_owned(),
            groups: vec!["system:unauthenticated".to_owned()],
            ..User::default()
        }
    }

    /// Whether the user proved who they are.
    pub fn is_known(&self) -> bool {
        self.groups.iter().any(|g| g == "system:authenticated")
    }
}

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action<'a> {
    /// Something with a resource.
    Resource {
        /// `get`, `list`, `create`, ...; opening a stream into a pod is a `create`.
        verb: &'a str,
        /// API group, empty for the core group.
        group: &'a str,
        /// The plural.
        resource: &'a str,
        /// Empty for the object itself.
        subresource: &'a str,
        /// Empty for cluster-scoped resources and for all namespaces.
        namespace: &'a str,
        /// Empty for collections.
        name: &'a str,
    },
    /// Something at a path that is no resource.
    Path {
        /// The HTTP method in lower case.
        verb: &'a str,
        /// The path.
        path: &'a str,
    },
}

/// What follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// Go on.
    Allow,
    /// First prove who you are.
    Unauthenticated,
    /// We know you, and no.
    Deny(&'static str),
}

/// Paths that anyone may read.
const PUBLIC: &[&str] = &["/healthz", "/livez", "/readyz", "/version"];

/// Decides.
pub fn authorize(user: &User, action: &Action<'_>) -> Decision {
    if user.is_known() {
        return Decision::Allow;
    }
    match action {
        Action::Path { verb: "get" | "head", path } if is_public(path) => Decision::Allow,
        _ => Decision::Unauthenticated,
    }
}

fn is_public(path: &str) -> bool {
    PUBLIC.iter().any(|p| path.strip_prefix(p).is_some_and(|rest| rest.is_empty() || rest.starts_with('/')))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_unknown_see_only_whether_we_live() {
        let nobody = User::anonymous();
        let ask = |verb, path| authorize(&nobody, &Action::Path { verb, path });
        assert_eq!(ask("get", "/healthz"), Decision::Allow);
        assert_eq!(ask("get", "/readyz/ping"), Decision::Allow);
        assert_eq!(ask("get", "/version"), Decision::Allow);
        for (verb, path) in
            [("post", "/version"), ("get", "/versions"), ("get", "/metrics"), ("get", "/apis"), ("get", "/")]
        {
            assert_eq!(ask(verb, path), Decision::Unauthenticated, "{verb} {path}");
        }
        let pods = Action::Resource {
            verb: "list",
            group: "",
            resource: "pods",
            subresource: "",
            namespace: "",
            name: "",
        };
        assert_eq!(authorize(&nobody, &pods), Decision::Unauthenticated);
    }
}
