//! What is special about pods: binding to a node, and streams through the node's kubelet.
//!
//! Guarantees: a pod is bound once; a stream goes only to a container that the pod has.

use std::sync::Arc;

use api::{meta, registry, schema, status::Failure};
use bytes::Bytes;
use http::Request;
use hyper::body::Incoming;
use serde_json::{Value, json};

use crate::{
    app::App,
    dispatch::Call,
    objects::Step,
    proxy,
    respond::{self, Answer},
    write,
};

/// POST of a Binding: puts a pod on a node. The pod's name is in the path or in the binding.
pub(crate) async fn bind(
    app: &Arc<App>,
    call: &Call,
    body: Bytes,
    name: Option<&str>,
) -> Result<Answer, Failure> {
    let pods = registry::find("", "v1", "pods").expect("core resources are served");
    let definition = schema::definition_of(pods, Some("binding")).ok_or_else(Failure::no_such_path)?;
    let binding = write::decode(call, &definition, body)?;
    let dry_run = call.query.dry_run()?;
    let name = name.unwrap_or(meta::name(&binding)).to_owned();
    if !meta::name(&binding).is_empty() && meta::name(&binding) != name {
        return Err(Failure::bad_request("name in URL does not match name in Binding object"));
    }
    let node = meta::str_at(&binding, &["target", "name"]).to_owned();
    if node.is_empty() {
        return Err(Failure::bad_request("target.name: Required value"));
    }
    if !matches!(meta::str_at(&binding, &["target", "kind"]), "" | "Node") {
        return Err(Failure::bad_request("target.kind: Unsupported value: supported values: \"Node\""));
    }
    let uid = meta::uid(&binding).to_owned();
    let annotations = meta::at(&binding, &["metadata", "annotations"]).cloned();
    app.modify(pods, &call.location.namespace, &name, dry_run, |pod| {
        let conflict = |why: String| Err(Failure::conflict(pods, &name, &why));
        if !uid.is_empty() && uid != meta::uid(pod) {
            return conflict(format!(
                "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                meta::uid(pod)
            ));
        }
        if meta::is_deleting(pod) {
            return conflict(format!("pod {name} is being deleted, cannot be assigned to a host"));
        }
        let assigned = meta::str_at(pod, &["spec", "nodeName"]);
        if !assigned.is_empty() {
            return conflict(format!("pod {name} is already assigned to node {assigned:?}"));
        }
        let gates = meta::at(pod, &["spec", "schedulingGates"]).and_then(Value::as_array);
        if gates.is_some_and(|g| !g.is_empty()) {
            return conflict(format!("pod {name} has non-empty .spec.schedulingGates"));
        }
        let mut new = pod.clone();
        new["spec"]["nodeName"] = json!(node);
        if let Some(Value::Object(added)) = &annotations {
            let mine = meta::child_mut(meta::child_mut(&mut new, "metadata"), "annotations");
            meta::object_mut(mine).extend(added.clone());
        }
        set_scheduled(&mut new);
        Ok(Step::Put(new))
    })
    .await?;
    Ok(respond::json(201, &api::status::created()))
}

/// Sets the condition `PodScheduled`.
fn set_scheduled(pod: &mut Value) {
    let status = meta::object_mut(meta::child_mut(pod, "status"));
    let conditions = status.entry("conditions").or_insert(json!([]));
    if let Some(list) = conditions.as_array_mut() {
        list.retain(|c| c.get("type") != Some(&json!("PodScheduled")));
        list.push(json!({
            "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": write::now(),
        }));
    }
}

/// Everything that streams: log, exec, attach, port-forward, and the nodes' proxy.
pub(crate) async fn connect(
    app: &Arc<App>,
    call: &Call,
    request: Request<Incoming>,
) -> Result<Answer, Failure> {
    let location = &call.location;
    app.fresh().await?;
    if location.subresource == "proxy" {
        let query = request.uri().query().map(|q| format!("?{q}")).unwrap_or_default();
        let rest = if location.rest.is_empty() { "/" } else { &location.rest };
        let path = format!("{rest}{query}");
        return match proxy::is_upgrade(request.headers()) {
            // Through here one could open a shell with a mere read, so it is not let through.
            true => Err(Failure::forbidden(
                location.row,
                &location.name,
                "streams are not passed through the proxy; use pods/exec, pods/attach or pods/portforward",
            )),
            false => proxy::pass(app, &location.name, &path, request).await,
        };
    }
    let pod = app.cached(location.row, &location.namespace, &location.name)?.value();
    let node = meta::str_at(&pod, &["spec", "nodeName"]).to_owned();
    if location.subresource != "portforward" {
        container(&pod, call.query.get("container"))?;
    }
    if node.is_empty() {
        return Err(Failure::bad_request(format!("pod {} does not have a host assigned", location.name)));
    }
    let path = path(&pod, call)?;
    if location.subresource == "log" {
        return proxy::text(app, &node, &path).await;
    }
    if !proxy::is_upgrade(request.headers()) {
        return Err(Failure::bad_request("Upgrade request required"));
    }
    proxy::tunnel(app, &node, &path, request).await
}

/// The container that is meant.
fn container<'a>(pod: &'a Value, asked: &'a str) -> Result<&'a str, Failure> {
    let name = meta::name(pod);
    let lists = ["containers", "initContainers", "ephemeralContainers"];
    let names = |list: &str| {
        let list = meta::at(pod, &["spec", list]).and_then(Value::as_array);
        list.into_iter().flatten().map(|c| meta::str_at(c, &["name"])).collect::<Vec<_>>()
    };
    if !asked.is_empty() {
        return match lists.iter().any(|l| names(l).contains(&asked)) {
            true => Ok(asked),
            false => Err(Failure::bad_request(format!("container {asked} is not valid for pod {name}"))),
        };
    }
    let (main, init) = (names("containers"), names("initContainers"));
    match main.as_slice() {
        [one] => Ok(one),
        many => {
            let mut text = format!(
                "a container name must be specified for pod {name}, choose one of: [{}]",
                many.join(" ")
            );
            if !init.is_empty() {
                text.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
            }
            Err(Failure::bad_request(text))
        }
    }
}

/// Where the kubelet serves it.
fn path(pod: &Value, call: &Call) -> Result<String, Failure> {
    let (namespace, name) = (&call.location.namespace, &call.location.name);
    let mut query = Vec::new();
    let mut add = |key: &str, value: &str| query.push(format!("{key}={}", encode(value)));
    let head = match call.location.subresource.as_str() {
        "log" => {
            for key in ["follow", "previous", "timestamps"] {
                if call.query.flag(key) {
                    add(key, "true");
                }
            }
            for key in ["sinceSeconds", "sinceTime", "tailLines", "limitBytes", "stream"] {
                let value = call.query.get(key);
                if !value.is_empty() {
                    add(key, value);
                }
            }
            format!("/containerLogs/{namespace}/{name}/{}", container(pod, call.query.get("container"))?)
        }
        sub @ ("exec" | "attach") => {
            for (key, kubelets) in
                [("stdin", "input"), ("stdout", "output"), ("stderr", "error"), ("tty", "tty")]
            {
                if call.query.flag(key) {
                    add(kubelets, "1");
                }
            }
            let commands = call.query.all("command");
            if sub == "exec" && commands.is_empty() {
                return Err(Failure::bad_request("you must specify at least one command"));
            }
            commands.iter().for_each(|c| add("command", c));
            format!("/{sub}/{namespace}/{name}/{}", container(pod, call.query.get("container"))?)
        }
        _ => {
            for port in call.query.all("ports").iter().flat_map(|p| p.split(',')) {
                add("port", port);
            }
            format!("/portForward/{namespace}/{name}/{}", meta::uid(pod))
        }
    };
    Ok(if query.is_empty() { head } else { format!("{head}?{}", query.join("&")) })
}

/// Encodes a query's value.
fn encode(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        if b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.' | b'~') {
            out.push(char::from(b));
        } else {
            out.push_str(&format!("%{b:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn containers_must_exist() {
        let pod = json!({"metadata": {"name": "p"}, "spec": {
            "containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}]}});
        assert_eq!(container(&pod, "i").unwrap(), "i");
        assert_eq!(
            container(&pod, "").unwrap_err().message,
            "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i]"
        );
        assert_eq!(container(&pod, "../x").unwrap_err().message, "container ../x is not valid for pod p");
        let one = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "a"}]}});
        assert_eq!(container(&one, "").unwrap(), "a");
    }

    #[test]
    fn commands_survive_the_query() {
        assert_eq!(encode("sh -c 'a&b=c' ü"), "sh%20-c%20%27a%26b%3Dc%27%20%C3%BC");
    }
}
