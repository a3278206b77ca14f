//! Version, Status, RuntimeConfig, UpdateRuntimeConfig.

use std::collections::BTreeMap;

use cri_api::v1::*;
use tonic::Status;

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
        RuntimeConfigResponse {
            linux: Some(LinuxRuntimeConfiguration { cgroup_driver: CgroupDriver::Cgroupfs as i32 }),
        }
    }

    pub(crate) fn update_runtime_config(
        &self,
        request: UpdateRuntimeConfigRequest,
    ) -> UpdateRuntimeConfigResponse {
        let network = request.runtime_config.and_then(|config| config.network_config).unwrap_or_default();
        if !network.pod_cidr.is_empty() {
            // Ours is set when the node starts; a kubelet that says the same changes nothing.
            tracing::debug!(pod_cidr = network.pod_cidr, "the kubelet told the node's pod range");
        }
        UpdateRuntimeConfigResponse {}
    }
}
