//! nftables: a ruleset as data, its JSON, and the one place that hands it to the kernel.
//!
//! A [`Batch`] is a list of commands that takes effect as a whole or not at all. Building one and its
//! JSON is pure; [`Nft::apply`] writes it through `nft -j -f -`.
//!
//! Guarantees: a batch is atomic; words of a batch are never parsed as nft's own language.
//! Assumes: `nft` 1.0 or newer in one of the usual directories.
//! Caveat: one `nft` process per batch, a few milliseconds: not for a hot path.

use std::io::{self, Write};
use std::net::IpAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Arc;

use ipnet::IpNet;
use serde_json::{Value, json};

/// Where `nft` is looked for besides PATH.
const DIRECTORIES: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/local/sbin", "/usr/bin"];

/// Why a ruleset was not written. None of the batch took effect.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NftError {
    /// The program is missing.
    #[error(
        "the program nft was not found; install nftables (Debian: apt-get install nftables), it is needed for masquerading and host ports"
    )]
    Missing,
    /// The program could not be run.
    #[error("run {program}")]
    Run {
        /// Which.
        program: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The kernel or the program refused the batch.
    #[error("nft refused the ruleset: {0}")]
    Refused(String),
    /// The program answered with something else than JSON.
    #[error("read nft's answer")]
    Answer(#[source] serde_json::Error),
}

impl NftError {
    /// Whether what the batch deletes or lists does not exist.
    pub fn is_missing_object(&self) -> bool {
        matches!(self, NftError::Refused(text) if text.contains("No such file or directory"))
    }
}

/// One value in a set element, a map element or an expression.
pub type Expr = Value;

/// A concatenation such as `ip daddr . th dport`; a single part stays as it is.
pub fn concat(mut parts: Vec<Expr>) -> Expr {
    if parts.len() == 1 { parts.remove(0) } else { json!({ "concat": parts }) }
}

/// An address as a value.
pub fn ip(ip: IpAddr) -> Expr {
    json!(ip.to_string())
}

/// A network as a value.
pub fn net(net: IpNet) -> Expr {
    json!({ "prefix": { "addr": net.network().to_string(), "len": net.prefix_len() } })
}

/// A packet field, for example `payload("ip", "daddr")`.
pub fn payload(protocol: &str, field: &str) -> Expr {
    json!({ "payload": { "protocol": protocol, "field": field } })
}

/// A property of the packet's way, for example `meta("iifname")`.
pub fn meta(key: &str) -> Expr {
    json!({ "meta": { "key": key } })
}

/// The set or map with this name.
pub fn set(name: &str) -> Expr {
    json!(format!("@{name}"))
}

/// What `key` maps to in the map with this name.
pub fn lookup(key: Expr, map: &str) -> Expr {
    json!({ "map": { "key": key, "data": set(map) } })
}

/// The condition `left == right` (membership where `right` is a set).
pub fn equal(left: Expr, right: Expr) -> Expr {
    json!({ "match": { "op": "==", "left": left, "right": right } })
}

/// The condition `left != right`.
pub fn differ(left: Expr, right: Expr) -> Expr {
    json!({ "match": { "op": "!=", "left": left, "right": right } })
}

/// The statement that sends the packet to another address, and port where one is given. `family` is
/// `ip` or `ip6`.
pub fn dnat(family: &str, address: Expr, port: Option<Expr>) -> Expr {
    let mut dnat = json!({ "family": family, "addr": address });
    if let Some(port) = port {
        dnat["port"] = port;
    }
    json!({ "dnat": dnat })
}

/// The statement `jump chain`.
pub fn jump(chain: &str) -> Expr {
    json!({ "jump": { "target": chain } })
}

/// The statement `drop`.
pub fn drop() -> Expr {
    json!({ "drop": null })
}

/// The statement `masquerade`, with source ports that nobody can guess or collide on.
pub fn masquerade() -> Expr {
    json!({ "masquerade": { "flags": "fully-random" } })
}

/// Where a chain is called by the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// `filter` or `nat`.
    pub kind: &'static str,
    /// `prerouting`, `input`, `forward`, `output`, `postrouting`.
    pub hook: &'static str,
    /// The place among other chains; lower runs first.
    pub priority: i32,
}

/// A list of commands for one table of family `inet`, applied as a whole.
#[derive(Debug, Clone, PartialEq)]
pub struct Batch {
    table: String,
    commands: Vec<Value>,
}

impl Batch {
    /// An empty batch for the table.
    pub fn new(table: &str) -> Batch {
        Batch { table: table.to_owned(), commands: Vec::new() }
    }

    /// Whether it does nothing.
    pub fn is_empty(&self) -> bool {
        self.commands.is_empty()
    }

    /// Makes the table if it is not there.
    pub fn add_table(&mut self) -> &mut Batch {
        self.command("add", "table", json!({ "family": "inet", "name": self.table }))
    }

    /// Deletes the table and all in it; it must exist (an `add_table` before makes sure).
    pub fn delete_table(&mut self) -> &mut Batch {
        self.command("delete", "table", json!({ "family": "inet", "name": self.table }))
    }

    /// Makes a chain; without a hook it is only jumped to.
    pub fn add_chain(&mut self, name: &str, hook: Option<Hook>) -> &mut Batch {
        let mut chain = json!({ "family": "inet", "table": self.table, "name": name });
        if let Some(hook) = hook {
            chain["type"] = json!(hook.kind);
            chain["hook"] = json!(hook.hook);
            chain["prio"] = json!(hook.priority);
            chain["policy"] = json!("accept");
        }
        self.command("add", "chain", chain)
    }

    /// Empties a chain.
    pub fn flush_chain(&mut self, name: &str) -> &mut Batch {
        self.command("flush", "chain", json!({ "family": "inet", "table": self.table, "name": name }))
    }

    /// Appends a rule of these conditions and statements.
    pub fn add_rule(&mut self, chain: &str, comment: &str, expr: Vec<Expr>) -> &mut Batch {
        let mut rule = json!({ "family": "inet", "table": self.table, "chain": chain, "expr": expr });
        if !comment.is_empty() {
            rule["comment"] = json!(comment);
        }
        self.command("add", "rule", rule)
    }

    /// Makes a set with keys of these types, for example `["ipv4_addr", "inet_service"]`.
    pub fn add_set(&mut self, name: &str, key: &[&str], flags: &[&str]) -> &mut Batch {
        let mut set = json!({ "family": "inet", "table": self.table, "name": name, "type": types(key) });
        if !flags.is_empty() {
            set["flags"] = json!(flags);
        }
        self.command("add", "set", set)
    }

    /// Makes a map from keys of these types to values of that one (`verdict` makes a verdict map). Values cannot
    /// be concatenations: nft before 1.0.7 does not read those as JSON.
    pub fn add_map(&mut self, name: &str, key: &[&str], value: &str) -> &mut Batch {
        let map = json!({
            "family": "inet", "table": self.table, "name": name, "type": types(key), "map": value,
        });
        self.command("add", "map", map)
    }

    /// Empties a set.
    pub fn flush_set(&mut self, name: &str) -> &mut Batch {
        self.command("flush", "set", json!({ "family": "inet", "table": self.table, "name": name }))
    }

    /// Empties a map.
    pub fn flush_map(&mut self, name: &str) -> &mut Batch {
        self.command("flush", "map", json!({ "family": "inet", "table": self.table, "name": name }))
    }

    /// Adds elements to a set, or to a map as `[key, value]` made by [`pair`]. Nothing if there are none.
    pub fn add_elements(&mut self, set: &str, elements: Vec<Expr>) -> &mut Batch {
        self.elements("add", set, elements)
    }

    /// Deletes elements; those of a map are named by their keys alone. Each must exist.
    pub fn delete_elements(&mut self, set: &str, elements: Vec<Expr>) -> &mut Batch {
        self.elements("delete", set, elements)
    }

    /// The text for `nft -j -f -`.
    pub fn to_json(&self) -> Value {
        json!({ "nftables": self.commands })
    }

    fn elements(&mut self, verb: &str, set: &str, elements: Vec<Expr>) -> &mut Batch {
        if elements.is_empty() {
            return self;
        }
        let element = json!({ "family": "inet", "table": self.table, "name": set, "elem": elements });
        self.command(verb, "element", element)
    }

    fn command(&mut self, verb: &str, object: &str, body: Value) -> &mut Batch {
        self.commands.push(json!({ verb: { object: body } }));
        self
    }
}

/// The map element that leads from `key` to `value`.
pub fn pair(key: Expr, value: Expr) -> Expr {
    json!([key, value])
}

fn types(names: &[&str]) -> Value {
    if let [name] = names { json!(name) } else { json!(names) }
}

/// The writer: runs `nft` in one network namespace.
#[derive(Debug, Clone)]
pub struct Nft {
    netns: Arc<OwnedFd>,
}

impl Nft {
    /// A writer for the given network namespace.
    pub fn new(netns: Arc<OwnedFd>) -> Nft {
        Nft { netns }
    }

    /// Where the program is.
    ///
    /// # Errors
    /// [`NftError::Missing`].
    pub fn program() -> Result<PathBuf, NftError> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path)
            .chain(DIRECTORIES.map(PathBuf::from))
            .map(|directory| directory.join("nft"))
            .find(|program| program.is_file())
            .ok_or(NftError::Missing)
    }

    /// Applies the batch as a whole. Blocks for some milliseconds: call it from a blocking thread.
    ///
    /// # Errors
    /// Any; then nothing was changed.
    pub fn apply(&self, batch: &Batch) -> Result<(), NftError> {
        if batch.is_empty() {
            return Ok(());
        }
        self.run(&["-j", "-f", "-"], batch.to_json().to_string().into_bytes()).map(drop_bytes)
    }

    /// The table as `nft -j list table` shows it. Blocks.
    ///
    /// # Errors
    /// Any; [`NftError::is_missing_object`] where there is no such table.
    pub fn list(&self, table: &str) -> Result<Value, NftError> {
        let text = self.run(&["-j", "list", "table", "inet", table], Vec::new())?;
        serde_json::from_slice(&text).map_err(NftError::Answer)
    }

    fn run(&self, args: &[&str], stdin: Vec<u8>) -> Result<Vec<u8>, NftError> {
        let program = Nft::program()?;
        let wrap = |source| NftError::Run { program: program.clone(), source };
        // The child starts in the namespace of the thread that makes it.
        let output = crate::netns::within(self.netns.as_fd(), || {
            let mut child = Command::new(&program)
                .args(args)
                .env_clear()
                .current_dir("/")
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped())
                .spawn()?;
            // nft reads all of its input before it writes, so this cannot block for ever.
            let written = child.stdin.take().expect("stdin is piped").write_all(&stdin);
            let output = child.wait_with_output()?;
            if output.status.success() { written.map(|()| output) } else { Ok(output) }
        })
        .map_err(wrap)?;
        if output.status.success() {
            return Ok(output.stdout);
        }
        let text = String::from_utf8_lossy(&output.stderr);
        let first = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("no message");
        Err(NftError::Refused(first.trim().to_owned()))
    }
}

fn drop_bytes(_: Vec<u8>) {}
