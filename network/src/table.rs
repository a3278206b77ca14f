//! Our nftables table in the kernel.
//!
//! Guarantees: one writer at a time; a table that somebody else removed is written anew when it is needed.

use ipnet::IpNet;
use tokio::sync::Mutex;
use tracing::warn;

use crate::lease::{Lease, MadeBy};
use crate::model::{PodIps, PortMapping};
use crate::nft::{Batch, Nft, NftError};
use crate::rules::{self, Node};
use crate::state::State;
use crate::work::{blocking, chain};

/// The table, and what is known about it.
pub(crate) struct Table {
    nft: Nft,
    bridge: String,
    pod_cidrs: Vec<IpNet>,
    masquerade: bool,
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    written: bool,
    /// Why it could not be written last.
    error: Option<String>,
}

impl Table {
    pub(crate) fn new(nft: Nft, bridge: &str, pod_cidrs: Vec<IpNet>, masquerade: bool) -> Table {
        Table { nft, bridge: bridge.to_owned(), pod_cidrs, masquerade, seen: Mutex::default() }
    }

    /// Writes the whole table, as the leases have it.
    pub(crate) async fn replace(&self, state: &State) -> Result<(), NftError> {
        let mut seen = self.seen.lock().await;
        self.write_whole(&mut seen, state).await
    }

    /// Opens the ports of a pod whose lease the state has.
    pub(crate) async fn open(&self, state: &State, lease: &Lease) -> Result<(), NftError> {
        let mut seen = self.seen.lock().await;
        if seen.written {
            match self.apply(rules::open(&self.bridge, &lease.ips, &lease.ports)).await {
                Err(err) if err.is_missing_object() => {
                    warn!("somebody removed our nftables table; write it anew");
                }
                outcome => return outcome,
            }
        }
        self.write_whole(&mut seen, state).await
    }

    /// Closes the ports of a pod, if they are open.
    pub(crate) async fn close(&self, lease: &Lease) -> Result<(), NftError> {
        let seen = self.seen.lock().await;
        if !seen.written {
            return Ok(());
        }
        match self.apply(rules::close(&self.bridge, &lease.ips, &lease.ports)).await {
            Err(err) if err.is_missing_object() => Ok(()),
            outcome => outcome,
        }
    }

    /// Removes the table, if it was written.
    pub(crate) async fn remove(&self) -> Result<(), NftError> {
        let mut seen = self.seen.lock().await;
        if seen.written {
            self.apply(rules::remove(&self.bridge)).await?;
            *seen = Seen::default();
        }
        Ok(())
    }

    /// Whether it is in the kernel, as far as we know.
    pub(crate) async fn is_written(&self) -> bool {
        self.seen.lock().await.written
    }

    /// Why it is not as it should be.
    pub(crate) async fn error(&self) -> Option<String> {
        self.seen.lock().await.error.clone()
    }

    async fn write_whole(&self, seen: &mut Seen, state: &State) -> Result<(), NftError> {
        let leases = state.all();
        let pods: Vec<(&PodIps, &[PortMapping])> = leases
            .iter()
            .filter(|lease| lease.made_by != MadeBy::Cni)
            .map(|lease| (&lease.ips, lease.ports.as_slice()))
            .collect();
        let node = Node { bridge: &self.bridge, pod_cidrs: &self.pod_cidrs, masquerade: self.masquerade };
        let outcome = self.apply(rules::whole(&node, &pods)).await;
        seen.written |= outcome.is_ok();
        seen.error = outcome.as_ref().err().map(|err| chain(err));
        outcome
    }

    async fn apply(&self, batch: Batch) -> Result<(), NftError> {
        let nft = self.nft.clone();
        let applied = blocking(move || nft.apply(&batch));
        applied.await.unwrap_or_else(|| Err(NftError::Refused("the runtime is ending".to_owned())))
    }
}
