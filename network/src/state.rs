//! What the network knows in memory: leases, ports, and the interfaces that are being deleted.
//!
//! Guarantees: an address is free only when its interface is gone. Short critical sections; no I/O but lease files.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::error::AddError;
use crate::hostport::{self, Ports};
use crate::lease::{Directory, Lease, MadeBy, Pool};
use crate::model::{PodInfo, PodIps, PortMapping};

/// An interface that the kernel is asked to delete; then its lease is freed.
#[derive(Debug, Clone, Default)]
pub(crate) struct Doomed {
    pub(crate) host_if: String,
    /// How often it was tried, and why it failed last.
    pub(crate) tries: u32,
    pub(crate) error: Option<String>,
}

#[derive(Default)]
struct Inner {
    pools: Vec<Pool>,
    leases: BTreeMap<String, Lease>,
    ports: Ports,
    doomed: BTreeMap<String, Doomed>,
    closed: bool,
}

impl Drop for State {
    fn drop(&mut self) {
        self.work.notify_one();
    }
}

/// The state, its files, and who waits for it.
pub(crate) struct State {
    inner: Mutex<Inner>,
    directory: Directory,
    /// Something is to be deleted, or the state is gone.
    pub(crate) work: Arc<Notify>,
    /// A round of deletions is over.
    pub(crate) settled: Notify,
}

impl State {
    /// The state that the directory holds. Leases outside of the pools are kept: their pods live.
    pub(crate) fn load(directory: Directory, mut pools: Vec<Pool>) -> std::io::Result<State> {
        let (leases, bad) = directory.load()?;
        for bad in bad {
            let source = std::error::Error::source(&bad).map(ToString::to_string);
            tracing::error!(err = %bad, source, "skip a lease: its pod may lose its address");
        }
        directory.read_cursors(&mut pools);
        let mut inner = Inner { pools, ..Inner::default() };
        for lease in leases {
            for ip in lease.ips.iter() {
                let pool = inner.pools.iter_mut().find(|pool| pool.cidr().contains(&ip));
                match pool.map(|pool| pool.restore(ip, &lease.id)) {
                    Some(Err(owner)) => {
                        tracing::error!(%ip, sandbox = lease.id, owner, "two sandboxes hold one address");
                    }
                    None if lease.made_by != MadeBy::Cni => {
                        tracing::warn!(%ip, sandbox = lease.id, "a pod's address is in no pod CIDR any more");
                    }
                    _ => {}
                }
            }
            if let Err(err) = inner.ports.take(&lease.id, &lease.ports) {
                tracing::error!(sandbox = lease.id, %err, "two sandboxes hold one host port");
            }
            inner.leases.insert(lease.id.clone(), lease);
        }
        Ok(State { inner: Mutex::new(inner), directory, work: Arc::default(), settled: Notify::new() })
    }

    /// Gives a new sandbox addresses and ports, on disk too.
    pub(crate) fn lease(
        &self,
        id: &str,
        host_if: String,
        ports: &[PortMapping],
        pod: &PodInfo,
        netns: &std::path::Path,
    ) -> Result<Lease, AddError> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return Err(AddError::Closed);
        }
        let inner = &mut *inner;
        let mut ips = Vec::with_capacity(inner.pools.len());
        let mut outcome = Ok(());
        for pool in &mut inner.pools {
            match pool.take(id) {
                Some(ip) => ips.push(ip),
                None => outcome = Err(AddError::Exhausted { cidr: pool.cidr(), size: pool.size() }),
            }
        }
        let mut lease = Lease {
            id: id.to_owned(),
            ips: PodIps(ips),
            ports: Vec::new(),
            made_by: MadeBy::Bridge { host_if },
            pod: pod.clone(),
            netns: netns.to_owned(),
        };
        let outcome = outcome
            .and_then(|()| hostport::check(ports, &lease.ips))
            .and_then(|ports| {
                inner.ports.take(id, &ports)?;
                lease.ports = ports;
                Ok(())
            })
            .and_then(|()| {
                let error = |source| AddError::Lease { step: "write", id: id.to_owned(), source };
                self.directory.write(&lease).map_err(error)?;
                self.directory.write_cursors(&inner.pools).map_err(error)
            });
        match outcome {
            Ok(()) => {
                inner.leases.insert(id.to_owned(), lease.clone());
                Ok(lease)
            }
            Err(err) => {
                inner.ports.free(id);
                for pool in &mut inner.pools {
                    lease.ips.iter().for_each(|ip| pool.free(ip, id));
                }
                // Half of it may have been written; what stands there belongs to nobody.
                let _ = self.directory.delete(id);
                Err(err)
            }
        }
    }

    /// Keeps the lease of a sandbox that plugins connect.
    pub(crate) fn keep(&self, lease: Lease) -> Result<(), AddError> {
        let mut inner = self.inner.lock();
        if inner.closed {
            return Err(AddError::Closed);
        }
        self.directory.write(&lease).map_err(|source| AddError::Lease {
            step: "write",
            id: lease.id.clone(),
            source,
        })?;
        inner.leases.insert(lease.id.clone(), lease);
        Ok(())
    }

    /// The sandbox's lease, unless it is being taken down.
    pub(crate) fn get(&self, id: &str) -> Option<Lease> {
        let inner = self.inner.lock();
        inner.leases.get(id).filter(|_| !inner.doomed.contains_key(id)).cloned()
    }

    /// Whether its interface is being deleted, and why that failed.
    pub(crate) fn doomed(&self, id: &str) -> Option<Doomed> {
        self.inner.lock().doomed.get(id).cloned()
    }

    /// All leases that are not being taken down.
    pub(crate) fn all(&self) -> Vec<Lease> {
        let inner = self.inner.lock();
        inner.leases.values().filter(|lease| !inner.doomed.contains_key(&lease.id)).cloned().collect()
    }

    /// The bridge ports of all leases, also of those being taken down.
    pub(crate) fn host_ifs(&self) -> Vec<String> {
        let inner = self.inner.lock();
        let names = inner.leases.values().filter_map(|lease| match &lease.made_by {
            MadeBy::Bridge { host_if } => Some(host_if.clone()),
            MadeBy::Cni => None,
        });
        names.collect()
    }

    /// Leaves the interface to the kernel, and the lease with it. Host ports must be closed by now.
    pub(crate) fn doom(&self, id: &str, host_if: String) {
        let mut inner = self.inner.lock();
        inner.ports.free(id);
        inner.doomed.insert(id.to_owned(), Doomed { host_if, ..Doomed::default() });
        self.work.notify_one();
    }

    /// Everything that is to be deleted.
    pub(crate) fn all_doomed(&self) -> Vec<(String, Doomed)> {
        self.inner.lock().doomed.iter().map(|(id, doomed)| (id.clone(), doomed.clone())).collect()
    }

    /// Notes how deleting went; a deleted interface frees its lease.
    pub(crate) fn deleted(&self, id: &str, outcome: Result<(), String>) {
        let outcome = outcome.and_then(|()| self.free(id).map_err(|err| format!("delete the lease: {err}")));
        let mut inner = self.inner.lock();
        match (outcome, inner.doomed.get_mut(id)) {
            (Ok(()), _) => drop(inner.doomed.remove(id)),
            (Err(error), Some(doomed)) => {
                tracing::warn!(
                    sandbox = id,
                    interface = doomed.host_if,
                    error,
                    "cannot delete a pod's interface yet"
                );
                doomed.tries += 1;
                doomed.error = Some(error);
            }
            (Err(_), None) => {}
        }
    }

    /// Frees addresses, ports and the file. An unknown id is success.
    pub(crate) fn free(&self, id: &str) -> std::io::Result<()> {
        let mut inner = self.inner.lock();
        let Some(lease) = inner.leases.get(id).cloned() else { return Ok(()) };
        self.directory.delete(id)?;
        inner.leases.remove(id);
        inner.ports.free(id);
        for pool in &mut inner.pools {
            lease.ips.iter().for_each(|ip| pool.free(ip, id));
        }
        Ok(())
    }

    /// For each pool: how many addresses are taken, of how many.
    pub(crate) fn usage(&self) -> Vec<(u128, u128)> {
        self.inner.lock().pools.iter().map(|pool| (pool.used(), pool.size())).collect()
    }

    /// Lets nobody in any more.
    pub(crate) fn close(&self) {
        self.inner.lock().closed = true;
    }

    /// Deletes the files.
    pub(crate) fn destroy(&self) -> std::io::Result<()> {
        self.directory.destroy()
    }
}
