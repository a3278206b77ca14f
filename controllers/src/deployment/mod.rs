//! Rolls each deployment's replica sets from the old template to the new one.

mod plan;
mod revision;
mod rollout;
mod status;

use api::k8s::apps::{Deployment, ReplicaSet};
use api::k8s::core::Pod;
use client::Cache;
use jiff::Timestamp;
use tokio::sync::watch;

use crate::shell::{Decide, Plan};

pub struct Controller {
    deployments: Cache<Deployment>,
    sets: Cache<ReplicaSet>,
    pods: Cache<Pod>,
}

impl Controller {
    pub fn new(deployments: Cache<Deployment>, sets: Cache<ReplicaSet>, pods: Cache<Pod>) -> Self {
        Controller { deployments, sets, pods }
    }
}

impl Decide for Controller {
    const NAME: &'static str = "deployment-controller";

    fn changed(&self) -> Vec<watch::Receiver<u64>> {
        // Pods matter only to Recreate, which waits until the old ones are gone.
        vec![self.deployments.changed(), self.sets.changed(), self.pods.changed()]
    }

    fn plan(&mut self, now: Timestamp) -> Plan {
        let (sets, pods) = (self.sets.list(), self.pods.list());
        let mut all = Plan::default();
        for deployment in self.deployments.list() {
            let one = plan::plan(&deployment, &sets, &pods, now);
            all.writes.extend(one.writes);
            if let Some(wake) = one.wake {
                all.wake_in(wake);
            }
        }
        all
    }
}
