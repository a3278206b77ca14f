//! Version, Status, RuntimeConfig, UpdateRuntimeConfig.

use std::collections::BTreeMap;

use cri_api::v1::*;
use ipnet::IpNet;
use tonic::Status;

use crate::error::invalid;
use crate::server::Inner;

impl Inner {
    pub(crate) fn version(&self) -> VersionResponse {
        VersionResponse {
            version: "0.1.0".to_owned(),
            runtime_name: "orlop".to_owned(),
            runtime_version: self.config.version.clone(),
            runtime_api_version: "v1".to_owned(),
        }
    }

    pub(crate) async fn status(&self, verbose: bool) -> Result<StatusResponse, Status> {
        let network = self.network.status().await;
        let condition = |kind: &str, state: Result<(), String>, reason: &str| RuntimeCondition {
            r#type: kind.to_owned(),
            status: state.is_ok(),
            reason: if state.is_ok() { String::new() } else { reason.to_owned() },
            message: state.err().unwrap_or_default(),
        };
        let mut info = BTreeMap::new();
        if verbose {
            let config = serde_json::json!({
                "version": self.config.version,
                "stateDir": self.config.state_dir,
                "streamingAddress": self.streaming.address().to_string(),
                "networkMode": format!("{:?}", network.mode),
                "networkWarnings": network.warnings,
            });
            info.insert("config".to_owned(), config.to_string());
            let apparmor = serde_json::json!({
                "enabled": self.runtime.capabilities().apparmor,
                "defaultProfile": self.runtime.apparmor().map(|outcome| match outcome {
                    Ok(()) => runtime::lsm::apparmor::DEFAULT.to_owned(),
                    Err(why) => why,
                }),
            });
            info.insert("apparmor".to_owned(), apparmor.to_string());
            let capabilities = serde_json::to_string(self.runtime.capabilities()).unwrap_or_default();
            info.insert("capabilities".to_owned(), capabilities);
        }
        let runtime_handlers =
            self.runtime.handlers().await.into_iter().map(|(name, features)| RuntimeHandler {
                name,
                features: Some(RuntimeHandlerFeatures {
                    recursive_read_only_mounts: features.recursive_read_only_mounts,
                    user_namespaces: features.user_namespaces,
                }),
            });
        Ok(StatusResponse {
            status: Some(RuntimeStatus {
                conditions: vec![
                    condition("RuntimeReady", Ok(()), ""),
                    condition("NetworkReady", network.ready, "NetworkPluginNotReady"),
                ],
            }),
            info,
            runtime_handlers: runtime_handlers.collect(),
            features: Some(RuntimeFeatures {
                supplemental_groups_policy: true,
                user_namespaces_host_network: false,
                mount_options: true,
            }),
        })
    }

    pub(crate) fn runtime_config(&self) -> RuntimeConfigResponse {
        let driver = match self.runtime.cgroup_driver() {
            runtime::options::CgroupDriver::Cgroupfs => CgroupDriver::Cgroupfs,
            runtime::options::CgroupDriver::Systemd => CgroupDriver::Systemd,
        };
        RuntimeConfigResponse { linux: Some(LinuxRuntimeConfiguration { cgroup_driver: driver as i32 }) }
    }

    /// The pods' range is the node's own setting, from its start on: a kubelet that names it with a mistake, or another
    /// one, is told so instead of being believed.
    pub(crate) fn update_runtime_config(
        &self,
        request: UpdateRuntimeConfigRequest,
    ) -> Result<UpdateRuntimeConfigResponse, Status> {
        let network = request.runtime_config.and_then(|config| config.network_config).unwrap_or_default();
        let given = network.pod_cidr.split(',').filter(|cidr| !cidr.is_empty());
        let given: Vec<IpNet> = given
            .map(|cidr| {
                let parsed = cidr.trim().parse();
                parsed.map_err(|_| invalid(format!("pod_cidr {cidr:?} is no range such as 10.42.0.0/24")))
            })
            .collect::<Result<_, _>>()?;
        let gateways = self.network.gateways();
        for cidr in given {
            if !gateways.is_empty() && !gateways.iter().any(|gateway| cidr.contains(gateway)) {
                tracing::warn!(%cidr, ?gateways, "the kubelet names another pod range than podCIDRs; it is not used");
            }
        }
        Ok(UpdateRuntimeConfigResponse {})
    }
}
