//! From a request's line to what it means.
//!
//! Guarantees: pure; a path is split before it is decoded, so an encoded slash never makes a new
//! element; a name that could leave its place in a storage key is refused.

use api::{
    registry::{self, Resource},
    status::Failure,
};
use http::Method;

/// What a request is about.
#[derive(Debug, PartialEq)]
pub(crate) enum Target {
    /// A resource, or one object of it.
    Resource(Location),
    /// Anything else: discovery, health, documents.
    Path(String),
}

/// Where in the resources a request points.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Location {
    pub(crate) row: &'static Resource,
    /// Empty for cluster-scoped resources and for all namespaces together.
    pub(crate) namespace: String,
    /// Empty for a collection.
    pub(crate) name: String,
    /// Empty for the object itself.
    pub(crate) subresource: String,
    /// What follows the subresource, with its leading slash (only for `proxy`).
    pub(crate) rest: String,
}

/// Splits a path.
///
/// # Errors
/// A path below a served group that names nothing we have.
pub(crate) fn parse(path: &str) -> Result<Target, Failure> {
    let elements: Vec<&str> = path.split('/').filter(|e| !e.is_empty()).collect();
    let (group, version, rest) = match elements.as_slice() {
        ["api", version, rest @ ..] if !rest.is_empty() => ("", *version, rest),
        ["apis", group, version, rest @ ..] if !rest.is_empty() => (*group, *version, rest),
        _ => return Ok(Target::Path(path.to_owned())),
    };
    let find = |plural: &str| registry::find(group, version, plural).ok_or_else(Failure::no_such_path);
    let (namespace, rest) = match rest {
        // `namespaces/x/status` is a subresource; `namespaces/x/pods` is a resource in x.
        ["namespaces", ns, plural, tail @ ..] if !group.is_empty() || find(plural).is_ok() => {
            let mut rest = vec![*plural];
            rest.extend_from_slice(tail);
            (decode(ns)?, rest)
        }
        _ => (String::new(), rest.to_vec()),
    };
    let row = find(rest[0])?;
    if !row.namespaced && !namespace.is_empty() {
        return Err(Failure::no_such_path());
    }
    let name = rest.get(1).map(|n| decode(n)).transpose()?.unwrap_or_default();
    let subresource = rest.get(2).map(|n| decode(n)).transpose()?.unwrap_or_default();
    let mut tail = String::new();
    if rest.len() > 3 || (path.ends_with('/') && subresource == "proxy") {
        if subresource != "proxy" {
            return Err(Failure::no_such_path());
        }
        tail = format!("/{}", rest[3..].join("/"));
        if path.ends_with('/') && rest.len() > 3 {
            tail.push('/');
        }
    }
    if !subresource.is_empty() && row.subresource(&subresource).is_none() {
        return Err(Failure::no_such_path());
    }
    if row.namespaced && namespace.is_empty() && !name.is_empty() {
        return Err(Failure::bad_request("namespace is required"));
    }
    Ok(Target::Resource(Location { row, namespace, name, subresource, rest: tail }))
}

/// Decodes one path element.
fn decode(element: &str) -> Result<String, Failure> {
    let text = percent_decode(element)
        .ok_or_else(|| Failure::bad_request(format!("the path element {element:?} is not valid")))?;
    if text.is_empty() || text == "." || text == ".." || text.contains(['/', '\0', '%']) {
        return Err(Failure::bad_request(format!("the path element {element:?} cannot be a name")));
    }
    Ok(text)
}

fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(b) = bytes.next() {
        if b == b'%' {
            let digits = [bytes.next()?, bytes.next()?];
            out.push(u8::from_str_radix(std::str::from_utf8(&digits).ok()?, 16).ok()?);
        } else {
            out.push(b);
        }
    }
    String::from_utf8(out).ok()
}

/// The query's parameters, in order.
#[derive(Debug, Default, Clone)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(query: Option<&str>) -> Query {
        let pairs = query.unwrap_or("").split('&').filter(|p| !p.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            let plain = |t: &str| percent_decode(&t.replace('+', " ")).unwrap_or_else(|| t.to_owned());
            (plain(key), plain(value))
        });
        Query(pairs.collect())
    }

    /// The first value of a parameter, or the empty text.
    pub(crate) fn get(&self, key: &str) -> &str {
        self.0.iter().find(|(k, _)| k == key).map_or("", |(_, v)| v)
    }

    /// Every value of a parameter.
    pub(crate) fn all(&self, key: &str) -> Vec<&str> {
        self.0.iter().filter(|(k, _)| k == key).map(|(_, v)| v.as_str()).collect()
    }

    /// A boolean as Kubernetes reads it: there and neither `false` nor `0`.
    pub(crate) fn flag(&self, key: &str) -> bool {
        self.0.iter().any(|(k, v)| k == key && v != "false" && v != "0")
    }

    /// A boolean that may be unset.
    pub(crate) fn maybe(&self, key: &str) -> Option<bool> {
        self.0.iter().any(|(k, _)| k == key).then(|| self.flag(key))
    }

    /// A number that may be unset.
    pub(crate) fn number(&self, key: &str) -> Result<Option<u64>, Failure> {
        match self.get(key) {
            "" => Ok(None),
            text => text.parse().map(Some).map_err(|_| {
                Failure::bad_request(format!(
                    "invalid {key} {text:?}: it must be a number that is not negative"
                ))
            }),
        }
    }

    /// Whether the request is a dry run.
    pub(crate) fn dry_run(&self) -> Result<bool, Failure> {
        match self.all("dryRun").as_slice() {
            [] | [""] => Ok(false),
            ["All"] => Ok(true),
            other => Err(Failure::bad_request(format!(
                "invalid dryRun {other:?}: the only supported value is All"
            ))),
        }
    }
}

/// What a request does, in the words of authorisation.
pub(crate) fn verb(method: &Method, location: &Location, query: &Query) -> &'static str {
    let collection = location.name.is_empty();
    match *method {
        // Running something in a pod changes the world, whatever the method says.
        _ if matches!(location.subresource.as_str(), "exec" | "attach" | "portforward") => "create",
        Method::GET | Method::HEAD if query.flag("watch") => "watch",
        Method::GET | Method::HEAD if collection => "list",
        Method::GET | Method::HEAD => "get",
        Method::POST => "create",
        Method::PUT => "update",
        Method::PATCH => "patch",
        Method::DELETE if collection => "deletecollection",
        Method::DELETE => "delete",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(path: &str) -> String {
        match parse(path) {
            Ok(Target::Path(p)) => format!("path {p}"),
            Ok(Target::Resource(l)) => {
                format!(
                    "{} ns={} name={} sub={} rest={}",
                    l.row.qualified(),
                    l.namespace,
                    l.name,
                    l.subresource,
                    l.rest
                )
            }
            Err(f) => f.code.to_string(),
        }
    }

    #[test]
    fn paths() {
        for (path, meaning) in [
            ("/api/v1/pods", "pods ns= name= sub= rest="),
            ("/api/v1/namespaces", "namespaces ns= name= sub= rest="),
            ("/api/v1/namespaces/a", "namespaces ns= name=a sub= rest="),
            ("/api/v1/namespaces/a/finalize", "namespaces ns= name=a sub=finalize rest="),
            ("/api/v1/namespaces/a/pods/b/log", "pods ns=a name=b sub=log rest="),
            ("/apis/apps/v1/namespaces/a/deployments/b", "deployments.apps ns=a name=b sub= rest="),
            ("/api/v1/nodes/n/proxy/stats/summary", "nodes ns= name=n sub=proxy rest=/stats/summary"),
            ("/api/v1/nodes/n/proxy/", "nodes ns= name=n sub=proxy rest=/"),
            ("/api/v1/nodes/n/proxy", "nodes ns= name=n sub=proxy rest="),
            ("/api/v1/namespaces/a/pods/b/log/c", "404"),
            ("/api/v1/namespaces/a/pods/b/nothing", "404"),
            ("/api/v1/namespaces/a/nodes/b", "404"),
            ("/apis/apps/v1/statefulsetz", "404"),
            ("/api/v1/pods/b", "400"),
            ("/api/v1/namespaces/a/pods/..", "400"),
            ("/api/v1/namespaces/%2e%2e/pods/b", "400"),
            ("/api/v1/namespaces/a%2fb/pods/b", "400"),
            ("/api/v1/namespaces/a/pods/b%00", "400"),
            ("/api/v1", "path /api/v1"),
            ("/healthz", "path /healthz"),
        ] {
            assert_eq!(check(path), meaning, "{path}");
        }
    }

    #[test]
    fn opening_a_shell_is_never_a_read() {
        let Ok(Target::Resource(exec)) = parse("/api/v1/namespaces/a/pods/b/exec") else { panic!() };
        assert_eq!(verb(&Method::GET, &exec, &Query::default()), "create");
        let Ok(Target::Resource(pods)) = parse("/api/v1/namespaces/a/pods") else { panic!() };
        assert_eq!(verb(&Method::GET, &pods, &Query::parse(Some("watch=1"))), "watch");
        assert_eq!(verb(&Method::GET, &pods, &Query::parse(Some("watch=false"))), "list");
        assert_eq!(verb(&Method::DELETE, &pods, &Query::default()), "deletecollection");
    }

    #[test]
    fn queries() {
        let q = Query::parse(Some("a=1&a=2&labelSelector=x%3Dy%2Cz+in+(q)&empty"));
        assert_eq!(q.get("labelSelector"), "x=y,z in (q)");
        assert_eq!(q.all("a"), ["1", "2"]);
        assert!(q.flag("empty"));
        assert_eq!(q.maybe("none"), None);
        assert!(q.number("labelSelector").is_err());
    }
}
