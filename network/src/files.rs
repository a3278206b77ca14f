//! The contents of a pod's resolv.conf, hosts and hostname files: pure functions.
//!
//! Guarantees: the same input gives the same text; every line ends with a newline; no value can
//! start a line of its own.

use std::net::IpAddr;
use std::path::Path;

use serde::{Deserialize, Serialize};

/// The most name servers a resolver reads.
const MAX_SERVERS: usize = 3;
/// Where systemd-resolved keeps the servers that its stub on 127.0.0.53 asks.
const RESOLVED_UPSTREAM: &str = "/run/systemd/resolve/resolv.conf";

/// A pod's DNS settings, as CRI's DNSConfig has them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DnsConfig {
    /// Name servers, the preferred one first.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Resolver options, such as `ndots:5`.
    pub options: Vec<String>,
}

impl DnsConfig {
    /// Whether nothing is set, so that the node's own settings apply.
    pub fn is_empty(&self) -> bool {
        self.servers.is_empty() && self.searches.is_empty() && self.options.is_empty()
    }
}

/// The resolv.conf that says `dns`.
pub fn resolv_conf(dns: &DnsConfig) -> String {
    let mut text = String::new();
    for server in dns.servers.iter().take(MAX_SERVERS) {
        line(&mut text, "nameserver", std::slice::from_ref(server));
    }
    line(&mut text, "search", &dns.searches);
    line(&mut text, "options", &dns.options);
    text
}

fn line(text: &mut String, keyword: &str, words: &[String]) {
    let mut words = words.iter().flat_map(|word| word.split_whitespace()).peekable();
    if words.peek().is_none() {
        return;
    }
    text.push_str(keyword);
    for word in words {
        text.push(' ');
        text.push_str(word);
    }
    text.push('\n');
}

/// Reads a resolv.conf. As the resolver does: the last `search` or `domain` line wins, options add up.
pub fn parse_resolv_conf(text: &str) -> DnsConfig {
    let mut dns = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => dns.servers.extend(words.next().map(str::to_owned)),
            Some("search") => dns.searches = words.map(str::to_owned).collect(),
            Some("domain") => dns.searches = words.take(1).map(str::to_owned).collect(),
            Some("options") => dns.options.extend(words.map(str::to_owned)),
            _ => {}
        }
    }
    dns
}

/// The node's DNS settings as a pod can use them, from the texts of `/etc/resolv.conf` and of
/// systemd-resolved's upstream list: where the former only names a stub on loopback, which no pod can
/// reach, the latter is taken.
pub fn host_dns(resolv_conf: &str, resolved_upstream: Option<&str>) -> DnsConfig {
    let own = parse_resolv_conf(resolv_conf);
    let is_loopback = |server: &String| server.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    match resolved_upstream {
        Some(upstream) if !own.servers.is_empty() && own.servers.iter().all(is_loopback) => {
            parse_resolv_conf(upstream)
        }
        _ => own,
    }
}

/// [`host_dns`] from the node's own files, the first of which is `resolv_conf`. A file that is missing is empty.
///
/// # Errors
/// When `resolv_conf` exists and cannot be read.
pub fn read_host_dns(resolv_conf: &Path) -> std::io::Result<DnsConfig> {
    let own = match std::fs::read_to_string(resolv_conf) {
        Err(err) if err.kind() == std::io::ErrorKind::NotFound => String::new(),
        own => own?,
    };
    Ok(host_dns(&own, std::fs::read_to_string(RESOLVED_UPSTREAM).ok().as_deref()))
}

/// What a pod's hosts file is made of.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostsSpec<'a> {
    /// The pod's addresses, the primary one first.
    pub ips: &'a [IpAddr],
    /// The pod's host name.
    pub hostname: &'a str,
    /// `hostname.subdomain.namespace.svc.cluster-domain`, for a pod with a subdomain.
    pub fqdn: Option<&'a str>,
    /// The pod's hostAliases: an address and its names.
    pub aliases: &'a [(String, Vec<String>)],
}

/// The hosts file of a pod with its own network.
pub fn hosts(spec: &HostsSpec<'_>) -> String {
    let mut text = String::from(
        "# Kubernetes-managed hosts file.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::\tip6-localnet\n\
         fe00::\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    for ip in spec.ips {
        let names = spec.fqdn.into_iter().chain([spec.hostname]);
        host_line(&mut text, &ip.to_string(), names);
    }
    push_aliases(&mut text, spec.aliases);
    text
}

/// The hosts file of a pod in the node's network: the node's own, and the pod's aliases.
pub fn node_hosts(node_hosts: &str, aliases: &[(String, Vec<String>)]) -> String {
    let mut text = String::from("# Kubernetes-managed hosts file (host network).\n");
    text.push_str(node_hosts);
    if !text.ends_with('\n') {
        text.push('\n');
    }
    push_aliases(&mut text, aliases);
    text
}

fn push_aliases(text: &mut String, aliases: &[(String, Vec<String>)]) {
    if aliases.is_empty() {
        return;
    }
    text.push_str("\n# Entries added by HostAliases.\n");
    for (ip, names) in aliases {
        host_line(text, ip, names.iter().map(String::as_str));
    }
}

fn host_line<'a>(text: &mut String, ip: &'a str, names: impl Iterator<Item = &'a str>) {
    let mut words = [ip].into_iter().chain(names).flat_map(str::split_whitespace);
    text.push_str(words.next().unwrap_or_default());
    for word in words {
        text.push('\t');
        text.push_str(word);
    }
    text.push('\n');
}

/// The hostname file.
pub fn hostname(name: &str) -> String {
    format!("{}\n", name.trim())
}

#[cfg(test)]
mod tests {
    use expect_test::{Expect, expect};

    use super::*;

    fn words(list: &[&str]) -> Vec<String> {
        list.iter().map(|word| (*word).to_owned()).collect()
    }

    fn check(actual: &str, expected: Expect) {
        expected.assert_eq(actual);
    }

    #[test]
    fn resolv_conf_keeps_three_servers_and_cannot_be_injected() {
        let dns = DnsConfig {
            servers: words(&["10.43.0.10", "1.1.1.1\nnameserver 6.6.6.6", "::1", "9.9.9.9"]),
            searches: words(&["default.svc.cluster.local", "svc.cluster.local"]),
            options: words(&["ndots:5"]),
        };
        check(
            &resolv_conf(&dns),
            expect![[r#"
                nameserver 10.43.0.10
                nameserver 1.1.1.1 nameserver 6.6.6.6
                nameserver ::1
                search default.svc.cluster.local svc.cluster.local
                options ndots:5
            "#]],
        );
        check(&resolv_conf(&DnsConfig::default()), expect![[""]]);
    }

    #[test]
    fn a_loopback_stub_gives_way_to_its_upstream() {
        let stub = "nameserver 127.0.0.53\noptions edns0\nsearch lan\n";
        let upstream = "# made by resolved\nnameserver 192.168.1.1\nsearch lan\n";
        check(
            &resolv_conf(&host_dns(stub, Some(upstream))),
            expect![[r#"
            nameserver 192.168.1.1
            search lan
        "#]],
        );
        check(
            &resolv_conf(&host_dns(stub, None)),
            expect![[r#"
            nameserver 127.0.0.53
            search lan
            options edns0
        "#]],
        );
        check(
            &resolv_conf(&host_dns("nameserver 8.8.8.8\ndomain a\nsearch b c\n", Some(upstream))),
            expect![[r#"
            nameserver 8.8.8.8
            search b c
        "#]],
        );
    }

    #[test]
    fn hosts_names_the_pod_under_each_address() {
        let ips = ["10.42.0.7".parse().unwrap(), "fd42::7".parse().unwrap()];
        let aliases = [("10.1.1.1".to_owned(), words(&["db", "db.example"]))];
        let spec = HostsSpec {
            ips: &ips,
            hostname: "web-0",
            fqdn: Some("web-0.web.default.svc.cluster.local"),
            aliases: &aliases,
        };
        check(
            &hosts(&spec),
            expect![[r#"
            # Kubernetes-managed hosts file.
            127.0.0.1	localhost
            ::1	localhost ip6-localhost ip6-loopback
            fe00::	ip6-localnet
            fe00::	ip6-mcastprefix
            fe00::1	ip6-allnodes
            fe00::2	ip6-allrouters
            10.42.0.7	web-0.web.default.svc.cluster.local	web-0
            fd42::7	web-0.web.default.svc.cluster.local	web-0

            # Entries added by HostAliases.
            10.1.1.1	db	db.example
        "#]],
        );
    }

    #[test]
    fn host_network_pods_get_the_nodes_file() {
        let aliases = [("10.1.1.1".to_owned(), words(&["db"]))];
        check(
            &node_hosts("127.0.0.1 localhost", &aliases),
            expect![[r#"
            # Kubernetes-managed hosts file (host network).
            127.0.0.1 localhost

            # Entries added by HostAliases.
            10.1.1.1	db
        "#]],
        );
    }
}
