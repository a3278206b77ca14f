//! What every pod's task needs: configuration, connections, recorders.

use std::path::PathBuf;
use std::sync::Arc;

use cri_api::Cri;
use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::node::v1::RuntimeClass;

use crate::clock::Clock;
use crate::config::Config;
use crate::container::env::{ServiceFacts, service_variables};
use crate::container::fields::NodeFacts;
use crate::events::Recorder;
use crate::images::Images;
use crate::metrics::Metrics;
use crate::node::allocatable;
use crate::node::facts::Machine;
use crate::objects::Objects;
use crate::pod::view;

/// Shared by all tasks of one kubelet.
pub struct Shared {
    /// Configuration.
    pub config: Config,
    /// The apiserver, if there is one.
    pub client: Option<kube::Client>,
    /// The container runtime.
    pub cri: Arc<dyn Cri>,
    /// ConfigMaps and Secrets.
    pub objects: Objects,
    /// Services, for environment variables; `None` without an apiserver.
    pub services: Option<client::Cache<Service>>,
    /// Runtime classes; `None` without an apiserver.
    pub runtime_classes: Option<client::Cache<RuntimeClass>>,
    /// Events.
    pub events: Recorder,
    /// Pulls, credentials, what was used when.
    pub images: Arc<Images>,
    /// The time.
    pub clock: Clock,
    /// Counters.
    pub metrics: Arc<Metrics>,
    /// The runtime's name: what container ids begin with.
    pub runtime_name: String,
    /// The machine.
    pub machine: Machine,
}

impl Shared {
    /// The node's addresses as text, primary first.
    pub fn host_ips(&self) -> Vec<String> {
        self.config.node_ips.iter().map(ToString::to_string).collect()
    }

    /// What a pod may learn about the node and itself.
    pub fn facts(&self, pod_ips: Vec<String>) -> NodeFacts {
        NodeFacts {
            node_name: self.config.node_name.clone(),
            host_ips: self.host_ips(),
            pod_ips,
            cpu_milli: allocatable::cpu(&self.config, &self.machine),
            memory: allocatable::memory(&self.config, &self.machine),
            storage: allocatable::storage(&self.config, &self.machine),
        }
    }

    /// The runtime handler of a pod: empty for the default one. The error is a message for the pod's events.
    pub async fn runtime_handler(&self, pod: &Pod) -> Result<String, String> {
        let name = view::spec(pod).runtime_class_name.as_deref().unwrap_or("");
        if name.is_empty() {
            return Ok(String::new());
        }
        let Some(classes) = &self.runtime_classes else {
            return Err(format!(
                "RuntimeClass \"{name}\": a kubelet without an apiserver knows none: leave it out"
            ));
        };
        classes.synced().await;
        let class = classes.get("", name);
        class.map(|class| class.handler.clone()).ok_or_else(|| format!("RuntimeClass \"{name}\" not found"))
    }

    /// Directory of a pod's files.
    pub fn pod_dir(&self, key: &view::PodKey) -> PathBuf {
        self.config.pod_dir(key.uid.as_str())
    }

    /// The service variables of a pod: the apiserver always, the namespace's unless it opted out.
    pub async fn service_env(&self, pod: &Pod) -> std::collections::BTreeMap<String, String> {
        let Some(services) = &self.services else { return Default::default() };
        services.synced().await;
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("");
        let links = view::spec(pod).enable_service_links.unwrap_or(true);
        let wanted = |s: &&Arc<Service>| {
            let (ns, name) = (s.metadata.namespace.as_deref(), s.metadata.name.as_deref());
            (ns == Some("default") && name == Some("kubernetes")) || (links && ns == Some(namespace))
        };
        let list = services.list();
        let facts: Vec<ServiceFacts> = list.iter().filter(wanted).filter_map(|s| service(s)).collect();
        service_variables(&facts)
    }
}

/// A service with a cluster address.
fn service(service: &Service) -> Option<ServiceFacts> {
    let spec = service.spec.as_ref()?;
    let ip = spec.cluster_ip.clone().filter(|ip| !ip.is_empty() && ip != "None")?;
    Some(ServiceFacts {
        name: service.metadata.name.clone()?,
        ip,
        ports: spec
            .ports
            .iter()
            .flatten()
            .map(|p| {
                let protocol = p.protocol.clone().unwrap_or_else(|| "TCP".into());
                (p.name.clone().unwrap_or_default(), p.port, protocol)
            })
            .collect(),
    })
}
