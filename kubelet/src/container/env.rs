//! A container's environment, command and arguments.
//!
//! Guarantees: pure; the order and precedence are Kubernetes': service variables first, then
//! `envFrom`, then `env`, later ones winning; `$(NAME)` sees only what comes before it.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVarSource, Pod, Secret};
use std::sync::Arc;

use super::expand::expand;
use super::fields::{self, NodeFacts};

/// Where an environment finds ConfigMaps and Secrets of the pod's namespace.
pub trait Lookup {
    /// The ConfigMap of that name.
    fn config_map(&self, name: &str) -> Option<Arc<ConfigMap>>;
    /// The Secret of that name.
    fn secret(&self, name: &str) -> Option<Arc<Secret>>;
}

/// Makes the variables of `container`, in the order they were first named. The error is the message
/// of `CreateContainerConfigError`.
pub fn make(
    pod: &Pod,
    container: &Container,
    services: &BTreeMap<String, String>,
    node: &NodeFacts,
    objects: &dyn Lookup,
) -> Result<Vec<(String, Vec<u8>)>, String> {
    let mut vars = Vars::default();
    for (name, value) in services {
        vars.set(name, value.clone().into_bytes());
    }
    for source in container.env_from.iter().flatten() {
        let prefix = source.prefix.as_deref().unwrap_or("");
        if let Some(from) = &source.config_map_ref {
            match objects.config_map(&from.name) {
                Some(map) => {
                    for (key, value) in map.data.iter().flatten() {
                        vars.set(&format!("{prefix}{key}"), value.clone().into_bytes());
                    }
                }
                None if from.optional == Some(true) => {}
                None => return Err(format!("configmap \"{}\" not found", from.name)),
            }
        }
        if let Some(from) = &source.secret_ref {
            match objects.secret(&from.name) {
                Some(secret) => {
                    for (key, value) in secret_data(&secret) {
                        vars.set(&format!("{prefix}{key}"), value);
                    }
                }
                None if from.optional == Some(true) => {}
                None => return Err(format!("secret \"{}\" not found", from.name)),
            }
        }
    }
    for var in container.env.iter().flatten() {
        let value = match &var.value_from {
            Some(from) => reference(pod, container, from, node, objects)?,
            None => {
                let text = var.value.as_deref().unwrap_or("");
                Some(expand(text, |name| vars.text(name)).into_bytes())
            }
        };
        if let Some(value) = value {
            vars.set(&var.name, value);
        }
    }
    Ok(vars.order.into_iter().map(|name| (name.clone(), vars.map[&name].clone())).collect())
}

/// Variables in the order they were first set.
#[derive(Default)]
struct Vars {
    order: Vec<String>,
    map: BTreeMap<String, Vec<u8>>,
}

impl Vars {
    fn set(&mut self, name: &str, value: Vec<u8>) {
        if self.map.insert(name.into(), value).is_none() {
            self.order.push(name.into());
        }
    }

    fn text(&self, name: &str) -> Option<String> {
        self.map.get(name).map(|v| String::from_utf8_lossy(v).into_owned())
    }
}

fn reference(
    pod: &Pod,
    container: &Container,
    from: &EnvVarSource,
    node: &NodeFacts,
    objects: &dyn Lookup,
) -> Result<Option<Vec<u8>>, String> {
    if let Some(r) = &from.field_ref {
        return fields::field(pod, node, &r.field_path).map(|v| Some(v.into_bytes()));
    }
    if let Some(r) = &from.resource_field_ref {
        let about = match &r.container_name {
            Some(name) => crate::pod::view::member(crate::pod::view::spec(pod), name)
                .map(|m| m.spec)
                .ok_or_else(|| format!("container {name} not found"))?,
            None => container,
        };
        return fields::resource(about, node, r).map(|v| Some(v.into_bytes()));
    }
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
    if let Some(r) = &from.config_map_key_ref {
        let optional = r.optional == Some(true);
        let Some(map) = objects.config_map(&r.name) else {
            return if optional { Ok(None) } else { Err(format!("configmap \"{}\" not found", r.name)) };
        };
        return match map.data.as_ref().and_then(|d| d.get(&r.key)) {
            Some(value) => Ok(Some(value.clone().into_bytes())),
            None if optional => Ok(None),
            None => Err(format!("couldn't find key {} in ConfigMap {namespace}/{}", r.key, r.name)),
        };
    }
    if let Some(r) = &from.secret_key_ref {
        let optional = r.optional == Some(true);
        let Some(secret) = objects.secret(&r.name) else {
            return if optional { Ok(None) } else { Err(format!("secret \"{}\" not found", r.name)) };
        };
        return match secret_data(&secret).remove(&r.key) {
            Some(value) => Ok(Some(value)),
            None if optional => Ok(None),
            None => Err(format!("couldn't find key {} in Secret {namespace}/{}", r.key, r.name)),
        };
    }
    Err("the variable's source is not supported: use value, configMapKeyRef, secretKeyRef, fieldRef or resourceFieldRef".into())
}

/// A Secret's data; `stringData` counts too, for Secrets read from files.
pub fn secret_data(secret: &Secret) -> BTreeMap<String, Vec<u8>> {
    let data = secret.data.iter().flatten().map(|(k, v)| (k.clone(), v.0.clone()));
    let text = secret.string_data.iter().flatten().map(|(k, v)| (k.clone(), v.clone().into_bytes()));
    data.chain(text).collect()
}

/// Command and arguments with their references expanded.
pub fn command(container: &Container, env: &[(String, Vec<u8>)]) -> (Vec<String>, Vec<String>) {
    let lookup = |name: &str| {
        env.iter().find(|(n, _)| n == name).map(|(_, v)| String::from_utf8_lossy(v).into_owned())
    };
    let all = |list: &Option<Vec<String>>| list.iter().flatten().map(|text| expand(text, lookup)).collect();
    (all(&container.command), all(&container.args))
}

/// A service as its variables need it.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceFacts {
    /// Name.
    pub name: String,
    /// Cluster address.
    pub ip: String,
    /// Port name (may be empty), number, protocol.
    pub ports: Vec<(String, i32, String)>,
}

/// `<NAME>_SERVICE_HOST` and its brothers for each service.
pub fn service_variables(services: &[ServiceFacts]) -> BTreeMap<String, String> {
    let mut vars = BTreeMap::new();
    let upper = |text: &str| text.to_uppercase().replace('-', "_");
    for service in services {
        let Some(first) = service.ports.first() else { continue };
        let name = upper(&service.name);
        let host = if service.ip.contains(':') { format!("[{}]", service.ip) } else { service.ip.clone() };
        vars.insert(format!("{name}_SERVICE_HOST"), service.ip.clone());
        vars.insert(format!("{name}_SERVICE_PORT"), first.1.to_string());
        let url = |port: i32, protocol: &str| format!("{}://{host}:{port}", protocol.to_lowercase());
        vars.insert(format!("{name}_PORT"), url(first.1, &first.2));
        for (port_name, port, protocol) in &service.ports {
            if !port_name.is_empty() {
                vars.insert(format!("{name}_SERVICE_PORT_{}", upper(port_name)), port.to_string());
            }
            let prefix = format!("{name}_PORT_{port}_{}", protocol.to_uppercase());
            vars.insert(prefix.clone(), url(*port, protocol));
            vars.insert(format!("{prefix}_PROTO"), protocol.to_lowercase());
            vars.insert(format!("{prefix}_PORT"), port.to_string());
            vars.insert(format!("{prefix}_ADDR"), service.ip.clone());
        }
    }
    vars
}
