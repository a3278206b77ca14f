//! The node's pod network as a whole.
//!
//! Every operation runs in a task of its own: dropping the caller's future in the middle (a cancelled RPC) leaves
//! nothing half done.

use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::OnceCell;
use tracing::{debug, error, warn};

use crate::cni::{Attachment, Cni, NetworkList};
use crate::error::{AddError, OpenError, StatsError, TeardownErrors};
use crate::lease::{self, Directory, Lease, MadeBy, Pool};
use crate::link::Link;
use crate::locks::KeyLocks;
use crate::model::{Config, InterfaceStats, Mode, NetworkStatus, PodInfo, PodIps, PortMapping, Protocol};
use crate::netlink::Refused;
use crate::nft::Nft;
use crate::reaper;
use crate::state::State;
use crate::table::Table;
use crate::wire::{self, BridgeSpec, PodLink, Wire};
use crate::work::{blocking, chain, task};
use crate::{conntrack, hostport, netns};

/// The longest name of an interface.
const MAX_NAME: usize = 15;

/// The node's pod network. Cheap to clone.
#[derive(Clone)]
pub struct PodNetwork {
    inner: Arc<Inner>,
}

struct Inner {
    config: Config,
    gateways: Vec<(IpAddr, ipnet::IpNet)>,
    netns: Arc<OwnedFd>,
    state: Arc<State>,
    locks: KeyLocks,
    cni: Cni,
    table: Table,
    /// Made when it is first needed: not on a node whose pods CNI plugins connect.
    wire: OnceCell<Arc<Wire>>,
}

impl PodNetwork {
    /// Reads the leases and makes the bridge in the network namespace of the calling thread. Needs a
    /// tokio runtime with time and I/O.
    ///
    /// # Errors
    /// See [`OpenError`]. A missing `nft` is no error here: see [`PodNetwork::status`].
    pub async fn open(config: Config) -> Result<PodNetwork, OpenError> {
        // Before anything is awaited: afterwards it may be another thread.
        let netns = netns::current().map_err(|source| OpenError::Kernel {
            step: "open the node's network namespace".to_owned(),
            source,
        })?;
        let netns = Arc::new(netns);
        let pools = check(&config)?;
        let file = |step, path: &Path| {
            let path = path.to_owned();
            move |source| OpenError::File { step, path, source }
        };
        let directory =
            Directory::open(&config.state_dir).map_err(file("make directory", &config.state_dir))?;
        let pools_cidrs: Vec<_> = pools.iter().map(Pool::cidr).collect();
        let gateways = pools.iter().map(|pool| (pool.gateway(), pool.cidr())).collect();
        let state = State::load(directory, pools).map_err(file("read leases in", &config.state_dir))?;
        let inner = Arc::new(Inner {
            cni: Cni::new(
                Arc::clone(&netns),
                config.cni_conf_dir.clone(),
                config.cni_bin_dirs.clone(),
                &config.state_dir,
            ),
            table: Table::new(
                Nft::new(Arc::clone(&netns)),
                &config.bridge,
                pools_cidrs.clone(),
                config.masquerade,
            ),
            config,
            gateways,
            netns,
            state: Arc::new(state),
            locks: KeyLocks::default(),
            wire: OnceCell::new(),
        });
        let bridged = inner.state.all().iter().any(|lease| lease.made_by != MadeBy::Cni);
        // A configuration that cannot be read is for `status` to tell, not to be overruled by a bridge.
        if bridged || matches!(inner.cni.list(), Ok(None)) {
            inner.wire().await?;
        }
        Ok(PodNetwork { inner })
    }

    /// Connects the sandbox whose namespace is pinned at `netns`: loopback up, `eth0`, addresses, routes,
    /// host ports. Repeating it for a connected sandbox repairs it and returns its addresses.
    ///
    /// # Errors
    /// See [`AddError`]; whatever had been made is taken down again.
    pub async fn add(
        &self,
        id: &str,
        netns: &Path,
        ports: &[PortMapping],
        pod: &PodInfo,
    ) -> Result<PodIps, AddError> {
        let inner = Arc::clone(&self.inner);
        let (id, netns, ports, pod) = (id.to_owned(), netns.to_owned(), ports.to_vec(), pod.clone());
        task(async move { inner.add(&id, &netns, &ports, &pod).await }).await.unwrap_or(Err(AddError::Closed))
    }

    /// Disconnects the sandbox: host ports are closed on return; the interface and then the address
    /// are freed a little later. An unknown id is success. `netns` is where it is pinned now, for a
    /// sandbox of which nothing is known but that CNI plugins may know.
    ///
    /// # Errors
    /// The steps that failed; call again to retry them.
    pub async fn remove(&self, id: &str, netns: Option<&Path>) -> Result<(), TeardownErrors> {
        let inner = Arc::clone(&self.inner);
        let (id, _netns) = (id.to_owned(), netns.map(Path::to_owned));
        task(async move { inner.remove(&id).await }).await.unwrap_or_else(closed)
    }

    /// Takes down everything that belongs to no id of `live`, waits until it is gone, and writes the
    /// ruleset anew. For the start of the daemon, and now and then; a sandbox that is being added counts as live.
    ///
    /// # Errors
    /// The steps that failed.
    pub async fn reconcile(&self, live: &[String]) -> Result<(), TeardownErrors> {
        let inner = Arc::clone(&self.inner);
        let live = live.to_vec();
        task(async move { inner.reconcile(&live).await }).await.unwrap_or_else(closed)
    }

    /// The addresses of a connected sandbox.
    pub fn ips(&self, id: &str) -> Option<PodIps> {
        self.inner.state.get(id).map(|lease| lease.ips)
    }

    /// Asks whether a sandbox is connected as it should be. An unknown id is an error.
    ///
    /// # Errors
    /// What is wrong.
    pub async fn check(&self, id: &str) -> Result<(), AddError> {
        let inner = &self.inner;
        let lease = inner.state.get(id).ok_or_else(|| AddError::BadId(id.to_owned()))?;
        if lease.made_by == MadeBy::Cni {
            let wrap = |source| AddError::Cni { id: id.to_owned(), source };
            return inner.cni.check(id).await.map_err(wrap);
        }
        let wire = inner.wire().await.map_err(|err| AddError::Open(Box::new(err)))?;
        if inner.is_connected(&wire, &lease).await? {
            return Ok(());
        }
        let source = std::io::Error::from(rustix::io::Errno::NODEV);
        Err(AddError::Kernel { step: format!("find the interface of sandbox {id}"), source })
    }

    /// The pods' gateways: the bridge's addresses. Without meaning for pods that CNI plugins connect.
    pub fn gateways(&self) -> Vec<IpAddr> {
        self.inner.gateways.iter().map(|(ip, _)| *ip).collect()
    }

    /// Whether pods can be connected. With CNI this asks the plugins.
    pub async fn status(&self) -> NetworkStatus {
        self.inner.status().await
    }

    /// The counters of every interface in the pod's namespace but loopback.
    ///
    /// # Errors
    /// See [`StatsError`].
    pub async fn stats(&self, netns: &Path) -> Result<Vec<InterfaceStats>, StatsError> {
        let path = netns.to_owned();
        let links = blocking(move || {
            let netns = netns::open(&path).map_err(|source| StatsError::OpenNetns { path, source })?;
            wire::pod_links(&netns).map_err(StatsError::Kernel)
        });
        let links: Vec<Link> = links.await.unwrap_or(Ok(Vec::new()))?;
        Ok(links.into_iter().map(|link| link.stats).collect())
    }

    /// Lets no more pods in, and waits until what `remove` left to the kernel is done. Pods stay
    /// connected. For the daemon's end.
    ///
    /// # Errors
    /// The interfaces that are still there.
    pub async fn close(&self) -> Result<(), TeardownErrors> {
        self.inner.state.close();
        reaper::settle(&self.inner.state).await
    }

    /// Disconnects every pod and removes bridge, rules and leases: for `orlop reset` and tests.
    ///
    /// # Errors
    /// The steps that failed.
    pub async fn destroy(&self) -> Result<(), TeardownErrors> {
        let inner = Arc::clone(&self.inner);
        task(async move { inner.destroy().await }).await.unwrap_or_else(closed)
    }
}

impl Inner {
    async fn wire(self: &Arc<Self>) -> Result<Arc<Wire>, OpenError> {
        let wire = self.wire.get_or_try_init(|| async {
            let inner = Arc::clone(self);
            let opened = blocking(move || {
                let spec = BridgeSpec {
                    name: &inner.config.bridge,
                    owner: format!("orlop {}", inner.config.state_dir.display()),
                    gateways: inner.gateways.clone(),
                    mtu: inner.config.mtu,
                };
                Wire::open(Arc::clone(&inner.netns), &spec)
            });
            let stopped = || OpenError::Config("the runtime is ending".to_owned());
            let wire = Arc::new(opened.await.unwrap_or_else(|| Err(stopped()))?);
            reaper::start(&self.state, Arc::clone(&wire));
            if self.config.masquerade || self.state.all().iter().any(|lease| !lease.ports.is_empty()) {
                // Pods can be connected without: `status` says what is missing, and `add` where it is needed.
                if let Err(err) = self.table.replace(&self.state).await {
                    error!(%err, "pods are not masqueraded and host ports do not work");
                }
            }
            Ok(wire)
        });
        wire.await.cloned()
    }

    async fn add(
        self: &Arc<Self>,
        id: &str,
        netns: &Path,
        ports: &[PortMapping],
        pod: &PodInfo,
    ) -> Result<PodIps, AddError> {
        if !lease::is_id(id) {
            return Err(AddError::BadId(id.to_owned()));
        }
        let _one_at_a_time = self.locks.lock(id).await;
        if let Some(lease) = self.state.get(id) {
            match lease.made_by {
                MadeBy::Cni if !lease.ips.0.is_empty() => return Ok(lease.ips),
                // A crash came between ADD's beginning and its end.
                MadeBy::Cni => self.forget_cni(id).await?,
                MadeBy::Bridge { .. } => return self.repair(lease).await,
            }
        }
        let wrap = |source| AddError::Cni { id: id.to_owned(), source };
        match self.cni.list().map_err(wrap)? {
            Some(list) => self.add_by_cni(&list, id, netns, ports, pod).await,
            None => self.add_to_bridge(id, netns, ports, pod).await,
        }
    }

    async fn add_to_bridge(
        self: &Arc<Self>,
        id: &str,
        netns: &Path,
        ports: &[PortMapping],
        pod: &PodInfo,
    ) -> Result<PodIps, AddError> {
        let wire = self.wire().await.map_err(|err| AddError::Open(Box::new(err)))?;
        while let Some(doomed) = self.state.doomed(id) {
            if reaper::settle(&self.state).await.is_err() {
                let source = std::io::Error::other(doomed.error.unwrap_or_default());
                return Err(AddError::Kernel {
                    step: format!("delete the old interface of sandbox {id}"),
                    source,
                });
            }
        }
        let host_if = lease::host_if(&self.config.bridge, id);
        let take = || self.state.lease(id, host_if.clone(), ports, pod, netns);
        let lease = match take() {
            // Addresses are free only when the interfaces of removed pods are gone.
            Err(AddError::Exhausted { .. }) if !self.state.all_doomed().is_empty() => {
                let _ = reaper::settle(&self.state).await;
                take()?
            }
            lease => lease?,
        };
        match self.bring_up(&wire, &lease).await {
            Ok(()) => Ok(lease.ips),
            Err(err) => {
                // The host ports first, then the interface, and then the lease, as after a life.
                match self.table.close(&lease).await {
                    Ok(()) => self.state.doom(id, host_if),
                    // The lease stays, for `remove` to try again.
                    Err(err) => warn!(sandbox = id, %err, "close the host ports of a sandbox that failed"),
                }
                Err(err)
            }
        }
    }

    async fn bring_up(self: &Arc<Self>, wire: &Arc<Wire>, lease: &Lease) -> Result<(), AddError> {
        if !lease.ports.is_empty() {
            let (netns, ports) = (Arc::clone(&self.netns), lease.ports.clone());
            let probed = blocking(move || {
                netns::within(netns.as_fd(), || Ok(ports.iter().try_for_each(hostport::probe_free)))
            });
            let kernel =
                |source| AddError::Kernel { step: "enter the node's network namespace".to_owned(), source };
            probed.await.ok_or(AddError::Closed)?.map_err(kernel)??;
        }
        fault("network: connect the interface")?;
        self.connect(wire, lease).await?;
        fault("network: open host ports")?;
        self.open_ports(wire, lease).await
    }

    async fn connect(&self, wire: &Arc<Wire>, lease: &Lease) -> Result<(), AddError> {
        let (wire, lease) = (Arc::clone(wire), lease.clone());
        let connected = blocking(move || {
            let netns = open_netns(&lease.netns)?;
            wire.connect(&netns, &pod_link(&lease)).map_err(|Refused { what, source }| AddError::Kernel {
                step: format!("{what} (sandbox {})", lease.id),
                source,
            })
        });
        connected.await.unwrap_or(Err(AddError::Closed))
    }

    async fn is_connected(&self, wire: &Arc<Wire>, lease: &Lease) -> Result<bool, AddError> {
        let (wire, lease) = (Arc::clone(wire), lease.clone());
        let asked = blocking(move || {
            let netns = open_netns(&lease.netns)?;
            wire.is_connected(&netns, &pod_link(&lease)).map_err(|source| AddError::Kernel {
                step: format!("look at the interface of sandbox {}", lease.id),
                source,
            })
        });
        asked.await.unwrap_or(Err(AddError::Closed))
    }

    /// Connects a sandbox with a lease, where that is not so already.
    async fn repair(self: &Arc<Self>, lease: Lease) -> Result<PodIps, AddError> {
        let wire = self.wire().await.map_err(|err| AddError::Open(Box::new(err)))?;
        if !self.is_connected(&wire, &lease).await? {
            self.connect(&wire, &lease).await?;
        }
        self.open_ports(&wire, &lease).await?;
        Ok(lease.ips)
    }

    async fn open_ports(self: &Arc<Self>, wire: &Arc<Wire>, lease: &Lease) -> Result<(), AddError> {
        if lease.ports.is_empty() {
            return Ok(());
        }
        let wrap = |source| AddError::Nft { id: lease.id.clone(), source };
        self.table.open(&self.state, lease).await.map_err(wrap)?;
        fault("network: let 127.0.0.1 reach host ports")?;
        self.forget_udp(lease).await;
        // Only now: the guard against forged loopback addresses is in place.
        let wire = Arc::clone(wire);
        let set = blocking(move || wire.route_localnet()).await.ok_or(AddError::Closed)?;
        let step = || "let 127.0.0.1 reach host ports".to_owned();
        set.map_err(|source| AddError::Kernel { step: step(), source })
    }

    /// Makes running UDP flows heed a change of host ports.
    async fn forget_udp(&self, lease: &Lease) {
        let (netns, ips, ports) = (Arc::clone(&self.netns), lease.ips.clone(), lease.ports.clone());
        if !ports.iter().any(|port| port.protocol == Protocol::Udp) {
            return;
        }
        let forgotten = blocking(move || conntrack::forget_udp(netns.as_fd(), &ips, &ports));
        if let Some(Err(err)) = forgotten.await {
            // New flows are right in any case.
            warn!(sandbox = lease.id, %err, "running UDP flows may not notice a change of host ports");
        }
    }

    async fn add_by_cni(
        &self,
        list: &NetworkList,
        id: &str,
        netns: &Path,
        ports: &[PortMapping],
        pod: &PodInfo,
    ) -> Result<PodIps, AddError> {
        let mut lease = Lease {
            id: id.to_owned(),
            ips: PodIps::default(),
            ports: Vec::new(),
            made_by: MadeBy::Cni,
            pod: pod.clone(),
            netns: netns.to_owned(),
        };
        // Before anything is made, so that it is taken down even after a crash.
        self.state.keep(lease.clone())?;
        let path = netns.to_owned();
        let up = blocking(move || {
            let netns = open_netns(&path)?;
            let kernel = |Refused { what, source }| AddError::Kernel { step: what.to_owned(), source };
            wire::loopback_up(&netns).map_err(kernel)
        });
        let outcome = match up.await.unwrap_or(Err(AddError::Closed)) {
            Ok(()) => {
                let attachment = Attachment::new(id, netns, ports, pod);
                let wrap = |source| AddError::Cni { id: id.to_owned(), source };
                self.cni.add(list, &attachment).await.map_err(wrap)
            }
            Err(err) => Err(err),
        };
        match outcome {
            Ok(ips) => {
                lease.ips = ips.clone();
                self.state.keep(lease)?;
                Ok(ips)
            }
            Err(err) => {
                // A DEL that failed, too, is left to `remove` and `reconcile`: the cached result is there.
                if let Err(err) = self.state.free(id) {
                    warn!(sandbox = id, %err, "cannot delete a lease");
                }
                Err(err)
            }
        }
    }

    async fn forget_cni(&self, id: &str) -> Result<(), AddError> {
        self.cni.delete(id).await.map_err(|source| AddError::Cni { id: id.to_owned(), source })?;
        self.state.free(id).map_err(|source| AddError::Lease { step: "delete", id: id.to_owned(), source })
    }

    async fn remove(self: &Arc<Self>, id: &str) -> Result<(), TeardownErrors> {
        if !lease::is_id(id) {
            return Ok(());
        }
        let _one_at_a_time = self.locks.lock(id).await;
        let mut errors = TeardownErrors::default();
        let step = "network: close host ports";
        if !errors.note(step, sys::fault::point(step)) {
            return errors.into_result();
        }
        match self.state.get(id) {
            Some(lease @ Lease { made_by: MadeBy::Bridge { .. }, .. }) => {
                let closed = lease.ports.is_empty()
                    || errors
                        .note(format!("close host ports of sandbox {id}"), self.table.close(&lease).await);
                self.forget_udp(&lease).await;
                let host_if = pod_link(&lease).host_if.to_owned();
                // Rules that still lead to the address keep it from the next pod; only then is it free.
                if closed {
                    self.state.doom(id, host_if);
                }
            }
            // Also without a lease: an ADD that failed may have left something behind.
            lease => {
                let deleted =
                    errors.note(format!("disconnect sandbox {id} by CNI"), self.cni.delete(id).await);
                if deleted && lease.is_some() {
                    errors.note(format!("delete the lease of sandbox {id}"), self.state.free(id));
                }
            }
        }
        errors.into_result()
    }

    async fn reconcile(self: &Arc<Self>, live: &[String]) -> Result<(), TeardownErrors> {
        let mut errors = TeardownErrors::default();
        let mut known: Vec<String> = self.state.all().into_iter().map(|lease| lease.id).collect();
        match self.cni.attached() {
            Ok(ids) => known.extend(ids),
            Err(err) => drop(errors.note("list what CNI plugins connected", Err(err))),
        }
        known.sort();
        known.dedup();
        for id in known.iter().filter(|id| !live.contains(id)) {
            debug!(sandbox = id, "disconnect a sandbox that is gone");
            errors.merge(self.remove(id).await);
        }
        if let Some(wire) = self.wire.get() {
            errors.merge(self.delete_strays(wire).await);
            errors.merge(reaper::settle(&self.state).await);
            let needed = self.config.masquerade || self.table.is_written().await;
            if needed && let Err(err) = self.table.replace(&self.state).await {
                // Where pods can do without, `status` is the place to say so.
                warn!(%err, "cannot write the ruleset");
            }
        }
        if let Ok(Some(list)) = self.cni.list() {
            let connected: Vec<String> = self.state.all().into_iter().map(|lease| lease.id).collect();
            errors.note("let CNI plugins clean up", self.cni.collect(&list, &connected).await);
        }
        errors.into_result()
    }

    /// Deletes bridge ports that no lease names.
    async fn delete_strays(self: &Arc<Self>, wire: &Arc<Wire>) -> Result<(), TeardownErrors> {
        let mut errors = TeardownErrors::default();
        let (inner, wire) = (Arc::clone(self), Arc::clone(wire));
        let deleted = blocking(move || {
            // In this order: a lease is there before its interface.
            let ports = wire.ports()?;
            let ours = inner.state.host_ifs();
            let strays: Vec<String> = ports.into_iter().filter(|port| !ours.contains(port)).collect();
            if strays.is_empty() {
                return Ok(());
            }
            warn!(interfaces = ?strays, "delete interfaces on the bridge that belong to no sandbox");
            wire.delete(&strays).map_err(|err| err.source)
        });
        let outcome = deleted.await.unwrap_or(Ok(()));
        errors.note("delete interfaces that belong to no sandbox", outcome);
        errors.into_result()
    }

    async fn destroy(self: &Arc<Self>) -> Result<(), TeardownErrors> {
        self.state.close();
        let mut errors = TeardownErrors::default();
        errors.merge(self.reconcile(&[]).await);
        let gone = if let Some(wire) = self.wire.get() {
            let (wire, bridge) = (Arc::clone(wire), self.config.bridge.clone());
            let deleted = blocking(move || wire.delete(&[bridge]).map_err(|err| err.source));
            errors.note(format!("delete bridge {}", self.config.bridge), deleted.await.unwrap_or(Ok(())))
        } else {
            true
        };
        errors.note("remove the ruleset", self.table.remove().await);
        if gone && errors.0.is_empty() {
            errors.note("delete the leases", self.state.destroy());
        }
        errors.into_result()
    }

    async fn status(&self) -> NetworkStatus {
        let mut warnings = Vec::new();
        let (mode, ready) = match self.cni.list() {
            Ok(None) => (Mode::Bridge, Ok(())),
            Ok(Some(list)) => {
                let ready = self.cni.status(&list).await.map_err(|err| chain(&err));
                (Mode::Cni { name: list.name.clone(), file: list.file.clone() }, ready)
            }
            Err(err) => {
                let file = self.config.cni_conf_dir.clone().unwrap_or_default();
                (Mode::Cni { name: String::new(), file }, Err(chain(&err)))
            }
        };
        let addresses = self.state.usage();
        if mode == Mode::Bridge {
            if let Some(error) = self.table.error().await {
                warnings.push(format!("no masquerading and no host ports: {error}"));
            } else if let Err(err) = Nft::program() {
                warnings.push(format!("no host ports: {err}"));
            }
            for ((used, size), (_, cidr)) in addresses.iter().zip(&self.gateways) {
                if used >= size {
                    warnings.push(format!("every address of {cidr} is in use"));
                }
            }
        }
        NetworkStatus { mode, ready, warnings, addresses, deleting: self.state.all_doomed().len() }
    }
}

/// Reads the configuration as pools.
fn check(config: &Config) -> Result<Vec<Pool>, OpenError> {
    let error = |text: String| Err(OpenError::Config(text));
    let name = &config.bridge;
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if name.is_empty() || name.len() > MAX_NAME || !name.chars().all(allowed) {
        return error(format!("bridge name {name:?} is not 1-{MAX_NAME} letters, digits, - or _"));
    }
    let v4 = config.pod_cidrs.iter().filter(|cidr| cidr.addr().is_ipv4()).count();
    if config.pod_cidrs.is_empty() || v4 > 1 || config.pod_cidrs.len() - v4 > 1 {
        return error("give one pod CIDR per address family, at least one".to_owned());
    }
    config.pod_cidrs.iter().map(|cidr| Pool::new(*cidr).map_err(OpenError::Config)).collect()
}

/// A step that a test may let fail.
fn fault(step: &'static str) -> Result<(), AddError> {
    sys::fault::point(step).map_err(|source| AddError::Kernel { step: step.to_owned(), source })
}

fn open_netns(path: &Path) -> Result<OwnedFd, AddError> {
    netns::open(path).map_err(|source| AddError::OpenNetns { path: PathBuf::from(path), source })
}

fn pod_link(lease: &Lease) -> PodLink<'_> {
    let MadeBy::Bridge { host_if } = &lease.made_by else { unreachable!("only for pods on the bridge") };
    let alias = format!("{}/{} {}", lease.pod.namespace, lease.pod.name, lease.id);
    PodLink { host_if, ips: &lease.ips.0, alias }
}

fn closed() -> Result<(), TeardownErrors> {
    let mut errors = TeardownErrors::default();
    errors.note("finish the teardown", Err("the runtime is ending"));
    errors.into_result()
}
