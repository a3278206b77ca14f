//! Keeps as many pods as each replica set says.

mod choose;
mod own_writes;
mod plan;

use std::sync::Arc;

use api::k8s::apps::ReplicaSet;
use api::k8s::core::Pod;
use client::Cache;
use jiff::Timestamp;
use kube::api::DynamicObject;
use tokio::sync::watch;

use crate::shell::{Decide, Plan};
use crate::write::Write;
use own_writes::OwnWrites;

pub struct Controller {
    sets: Cache<ReplicaSet>,
    pods: Cache<Pod>,
    own: OwnWrites,
}

impl Controller {
    pub fn new(sets: Cache<ReplicaSet>, pods: Cache<Pod>) -> Self {
        Controller { sets, pods, own: OwnWrites::default() }
    }
}

impl Decide for Controller {
    const NAME: &'static str = "replicaset-controller";

    fn changed(&self) -> Vec<watch::Receiver<u64>> {
        vec![self.sets.changed(), self.pods.changed()]
    }

    fn plan(&mut self, now: Timestamp) -> Plan {
        let pods: Vec<Arc<Pod>> = self.pods.list();
        self.own.forget_seen(&pods, now);
        let mut all = Plan::default();
        for set in self.sets.list() {
            let one = plan::plan(&set, &pods, &self.own, now);
            all.writes.extend(one.writes);
            if let Some(wake) = one.wake {
                all.wake_in(wake);
            }
        }
        all
    }

    fn wrote(&mut self, write: &Write, made: Option<&DynamicObject>) {
        self.own.note(write, made, Timestamp::now());
    }
}
