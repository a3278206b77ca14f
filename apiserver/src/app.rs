//! What every request can reach.

use std::sync::Arc;

use store::Store;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::{
    cache::Cache, config::Config, documents::Documents, kubelet::KubeletClient, metrics::Metrics,
    token::Tokens,
};

/// The server's parts, shared by all requests.
pub(crate) struct App {
    pub(crate) config: Config,
    pub(crate) store: Arc<dyn Store>,
    pub(crate) cache: Cache,
    pub(crate) tokens: Tokens,
    pub(crate) kubelets: KubeletClient,
    pub(crate) documents: Documents,
    pub(crate) metrics: Metrics,
    /// How many more requests may be worked on at once, watches and streams aside.
    pub(crate) slots: Semaphore,
    /// Cancelled when the server shuts down: ends watches and tunnels.
    pub(crate) stop: CancellationToken,
}
