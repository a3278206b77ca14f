//! Which sandbox has which addresses.
//!
//! Guarantees: an address is never in two leases; a freed address is given out again only after all the
//! others (round robin), also across restarts; a lease is on disk before its address is used.
//! Assumes: one owner per directory.
//! Caveat: writes are atomic but not flushed, as the directory is usually on a tmpfs, whose contents a reboot empties. On
//! a disk, a power cut may leave files without content; the pods they were of ended with it.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::model::{PodInfo, PodIps, PortMapping};

/// How many pods fit into the widest range: more is never walked through.
const MOST: u128 = 1 << 32;

/// What one sandbox holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Lease {
    /// The sandbox.
    pub(crate) id: String,
    /// Its addresses.
    pub(crate) ips: PodIps,
    /// Its host ports.
    pub(crate) ports: Vec<PortMapping>,
    /// Who made its interface.
    pub(crate) made_by: MadeBy,
    /// The pod.
    pub(crate) pod: PodInfo,
    /// Where its namespace is pinned.
    pub(crate) netns: PathBuf,
}

/// Who made a sandbox's interface, and so who takes it down.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum MadeBy {
    /// We; this is the end on the bridge.
    Bridge {
        /// Its name.
        host_if: String,
    },
    /// CNI plugins; their cached result says which.
    Cni,
}

/// The addresses of one range.
#[derive(Debug, Clone)]
pub(crate) struct Pool {
    cidr: IpNet,
    taken: HashMap<IpAddr, String>,
    /// The offset that was given out last.
    last: u128,
}

impl Pool {
    /// The range as a pool; `Err` says why it cannot be one.
    pub(crate) fn new(cidr: IpNet) -> Result<Pool, String> {
        let longest = if cidr.addr().is_ipv4() { 30 } else { 126 };
        if cidr.prefix_len() > longest {
            return Err(format!("pod CIDR {cidr} is too small; /{longest} is the smallest that works"));
        }
        Ok(Pool { cidr: cidr.trunc(), taken: HashMap::new(), last: 1 })
    }

    /// The range.
    pub(crate) fn cidr(&self) -> IpNet {
        self.cidr
    }

    /// The first usable address: the bridge's.
    pub(crate) fn gateway(&self) -> IpAddr {
        self.at(1)
    }

    /// How many pods fit.
    pub(crate) fn size(&self) -> u128 {
        self.end() - 2
    }

    /// How many addresses are taken.
    pub(crate) fn used(&self) -> u128 {
        self.taken.len() as u128
    }

    /// The next free address after the last one given out.
    pub(crate) fn take(&mut self, id: &str) -> Option<IpAddr> {
        if self.used() >= self.size() {
            return None;
        }
        let free = (0..self.size())
            .map(|step| 2 + (self.last - 1 + step) % self.size())
            .find(|offset| !self.taken.contains_key(&self.at(*offset)))?;
        self.last = free;
        self.taken.insert(self.at(free), id.to_owned());
        Some(self.at(free))
    }

    /// Notes an address that a lease on disk holds. `Err` names the sandbox that has it already.
    pub(crate) fn restore(&mut self, ip: IpAddr, id: &str) -> Result<(), String> {
        match self.taken.get(&ip) {
            Some(owner) if owner != id => Err(owner.clone()),
            _ => {
                self.taken.insert(ip, id.to_owned());
                Ok(())
            }
        }
    }

    /// Frees the address, if it is that sandbox's.
    pub(crate) fn free(&mut self, ip: IpAddr, id: &str) {
        if self.taken.get(&ip).is_some_and(|owner| owner == id) {
            self.taken.remove(&ip);
        }
    }

    /// The offset given out last, to be kept across restarts.
    pub(crate) fn cursor(&self) -> u128 {
        self.last
    }

    /// Takes up where an earlier run stopped.
    pub(crate) fn set_cursor(&mut self, cursor: u128) {
        self.last = cursor.clamp(1, self.end() - 1);
    }

    /// One past the last usable offset.
    fn end(&self) -> u128 {
        match self.cidr {
            // The last one is the broadcast address.
            IpNet::V4(net) => (1u128 << (32 - net.prefix_len())) - 1,
            IpNet::V6(net) => 1u128.checked_shl(128 - u32::from(net.prefix_len())).unwrap_or(MOST).min(MOST),
        }
    }

    fn at(&self, offset: u128) -> IpAddr {
        match self.cidr.network() {
            IpAddr::V4(base) => {
                let offset = u32::try_from(offset).expect("an offset is smaller than the range");
                Ipv4Addr::from_bits(base.to_bits() + offset).into()
            }
            IpAddr::V6(base) => Ipv6Addr::from_bits(base.to_bits() + offset).into(),
        }
    }
}

/// The leases on disk.
#[derive(Debug)]
pub(crate) struct Directory {
    leases: PathBuf,
    cursors: PathBuf,
}

/// A lease file that is not one; the daemon goes on without it.
#[derive(Debug, thiserror::Error)]
#[error("read lease {path}")]
pub(crate) struct BadLease {
    path: PathBuf,
    source: io::Error,
}

impl Directory {
    /// Opens the directory, making it.
    pub(crate) fn open(state_dir: &Path) -> io::Result<Directory> {
        let leases = state_dir.join("leases");
        fs::create_dir_all(&leases)?;
        Ok(Directory { leases, cursors: state_dir.join("cursors") })
    }

    /// All leases, and the files that could not be read.
    pub(crate) fn load(&self) -> io::Result<(Vec<Lease>, Vec<BadLease>)> {
        let (mut leases, mut bad) = (Vec::new(), Vec::new());
        for entry in fs::read_dir(&self.leases)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                // An unfinished write of an earlier run.
                fs::remove_file(&path)?;
                continue;
            }
            let bytes = fs::read(&path);
            if bytes.as_ref().is_ok_and(Vec::is_empty) {
                // Only a power cut does that, and no pod outlives it.
                fs::remove_file(&path)?;
                continue;
            }
            match bytes.and_then(|bytes| Ok(serde_json::from_slice::<Lease>(&bytes)?)) {
                Ok(lease) if path == self.path(&lease.id) => leases.push(lease),
                Ok(lease) => {
                    let source = io::Error::other(format!("it is that of {}", lease.id));
                    bad.push(BadLease { path, source });
                }
                Err(source) => bad.push(BadLease { path, source }),
            }
        }
        leases.sort_by(|a, b| a.id.cmp(&b.id));
        Ok((leases, bad))
    }

    /// Writes the lease.
    pub(crate) fn write(&self, lease: &Lease) -> io::Result<()> {
        sys::fault::point("lease: write it")?;
        let text = serde_json::to_vec(lease)?;
        replace(&self.path(&lease.id), &text)
    }

    /// Deletes the lease.
    pub(crate) fn delete(&self, id: &str) -> io::Result<()> {
        sys::fault::point("lease: delete it")?;
        match fs::remove_file(self.path(id)) {
            Err(err) if err.kind() != io::ErrorKind::NotFound => Err(err),
            _ => Ok(()),
        }
    }

    /// Keeps the pools' cursors.
    pub(crate) fn write_cursors(&self, pools: &[Pool]) -> io::Result<()> {
        sys::fault::point("lease: write where the range is at")?;
        let cursors: BTreeMap<String, u128> =
            pools.iter().map(|pool| (pool.cidr().to_string(), pool.cursor())).collect();
        replace(&self.cursors, &serde_json::to_vec(&cursors)?)
    }

    /// Gives the pools their cursors; a pool without one begins at its start.
    pub(crate) fn read_cursors(&self, pools: &mut [Pool]) {
        let text = fs::read(&self.cursors).unwrap_or_default();
        let cursors: BTreeMap<String, u128> = serde_json::from_slice(&text).unwrap_or_default();
        for pool in pools {
            if let Some(cursor) = cursors.get(&pool.cidr().to_string()) {
                pool.set_cursor(*cursor);
            }
        }
    }

    /// Deletes all of it.
    pub(crate) fn destroy(&self) -> io::Result<()> {
        for outcome in [fs::remove_dir_all(&self.leases), fs::remove_file(&self.cursors)] {
            match outcome {
                Err(err) if err.kind() != io::ErrorKind::NotFound => return Err(err),
                _ => {}
            }
        }
        Ok(())
    }

    fn path(&self, id: &str) -> PathBuf {
        self.leases.join(format!("{id}.json"))
    }
}

/// Writes a file so that a reader sees the old text or the new one.
pub(crate) fn replace(path: &Path, text: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("tmp");
    fs::write(&temporary, text)?;
    fs::rename(&temporary, path)
}

/// Whether `id` can be a sandbox's id, and so a file name.
pub(crate) fn is_id(id: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=64).contains(&id.len()) && id.bytes().all(allowed)
}

/// The name of the bridge port of a sandbox: stable, and different for different nodes on one machine.
pub(crate) fn host_if(bridge: &str, id: &str) -> String {
    // FNV-1a; 44 bits of it are enough for names that are also compared with those in use.
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for byte in bridge.bytes().chain([b'/']).chain(id.bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    }
    format!("veth{:011x}", hash & 0xfff_ffff_ffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(cidr: &str) -> Pool {
        Pool::new(cidr.parse().unwrap()).unwrap()
    }

    fn take(pool: &mut Pool, id: &str) -> String {
        pool.take(id).map_or("none".to_owned(), |ip| ip.to_string())
    }

    #[test]
    fn addresses_go_round() {
        let mut pool = pool("10.42.0.0/29");
        assert_eq!(pool.gateway().to_string(), "10.42.0.1");
        let all: Vec<String> = (0..6).map(|n| take(&mut pool, &n.to_string())).collect();
        assert_eq!(all, ["10.42.0.2", "10.42.0.3", "10.42.0.4", "10.42.0.5", "10.42.0.6", "none"]);
        pool.free("10.42.0.5".parse().unwrap(), "3");
        pool.free("10.42.0.3".parse().unwrap(), "1");
        pool.free("10.42.0.4".parse().unwrap(), "somebody else");
        assert_eq!(take(&mut pool, "6"), "10.42.0.3");
        assert_eq!(take(&mut pool, "7"), "10.42.0.5");
        assert_eq!(take(&mut pool, "8"), "none");
    }

    #[test]
    fn a_freed_address_is_the_last_to_come_again() {
        let mut pool = pool("10.42.0.0/29");
        let mut seen = Vec::new();
        for n in 0..7 {
            let id = n.to_string();
            let ip = pool.take(&id).unwrap();
            pool.free(ip, &id);
            seen.push(ip.to_string());
        }
        assert_eq!(seen[..5], ["10.42.0.2", "10.42.0.3", "10.42.0.4", "10.42.0.5", "10.42.0.6"]);
        assert_eq!(seen[5..], ["10.42.0.2", "10.42.0.3"]);
    }

    #[test]
    fn ranges_of_any_width() {
        assert_eq!(pool("10.0.0.0/30").size(), 1);
        assert_eq!(pool("0.0.0.0/0").size(), (1 << 32) - 3);
        let mut wide = pool("fd42::/64");
        assert_eq!(take(&mut wide, "a"), "fd42::2");
        assert_eq!(take(&mut pool("::/0"), "a"), "::2");
        assert!(Pool::new("10.0.0.0/31".parse().unwrap()).is_err());
        assert!(Pool::new("fd42::/127".parse().unwrap()).is_err());
        // Host bits in the configuration do not shift the pool.
        assert_eq!(take(&mut pool("10.42.0.77/24"), "a"), "10.42.0.2");
    }

    #[test]
    fn two_leases_cannot_hold_one_address() {
        let mut pool = pool("10.42.0.0/24");
        let ip = "10.42.0.9".parse().unwrap();
        pool.restore(ip, "a").unwrap();
        pool.restore(ip, "a").unwrap();
        assert_eq!(pool.restore(ip, "b").unwrap_err(), "a");
    }

    #[test]
    fn leases_survive_and_broken_files_are_named() {
        let state = tempfile::tempdir().unwrap();
        let directory = Directory::open(state.path()).unwrap();
        let lease = Lease {
            id: "a1".to_owned(),
            ips: PodIps(vec!["10.42.0.2".parse().unwrap()]),
            ports: Vec::new(),
            made_by: MadeBy::Bridge { host_if: host_if("orlop0", "a1") },
            pod: PodInfo::default(),
            netns: "/run/netns/a1".into(),
        };
        directory.write(&lease).unwrap();
        fs::write(state.path().join("leases/b.json"), "{").unwrap();
        fs::write(state.path().join("leases/c.tmp"), "{").unwrap();
        fs::write(state.path().join("leases/d.json"), "").unwrap();
        let (leases, bad) = Directory::open(state.path()).unwrap().load().unwrap();
        assert_eq!(leases, [lease]);
        assert_eq!(bad.len(), 1);
        assert!(!state.path().join("leases/c.tmp").exists());
        assert!(!state.path().join("leases/d.json").exists(), "a power cut emptied it");
        directory.delete("a1").unwrap();
        directory.delete("a1").unwrap();
        directory.destroy().unwrap();
        assert_eq!(fs::read_dir(state.path()).unwrap().count(), 0);
    }

    #[test]
    fn port_names_fit_and_differ() {
        assert_eq!(host_if("orlop0", "a").len(), 15);
        assert_ne!(host_if("orlop0", "a"), host_if("orlop1", "a"));
        assert!(is_id("0a-b") && !is_id("") && !is_id("../x") && !is_id("A") && !is_id(&"a".repeat(65)));
    }
}
