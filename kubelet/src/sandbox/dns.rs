//! What a pod's resolver is told.

use std::net::IpAddr;

use cri_api::v1::DnsConfig;
use k8s_openapi::api::core::v1::Pod;

use crate::pod::view;

/// What the cluster and the host have to offer.
#[derive(Clone, Debug, Default)]
pub struct Offer<'a> {
    /// The cluster's name servers.
    pub cluster: &'a [IpAddr],
    /// The cluster's domain.
    pub domain: &'a str,
    /// The host's `resolv.conf`.
    pub host: &'a str,
}

/// The resolver configuration, and whether `ClusterFirst` was wanted but cannot be had.
pub fn config(pod: &Pod, offer: &Offer<'_>) -> (DnsConfig, bool) {
    let spec = view::spec(pod);
    let host = parse(offer.host);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster_wanted = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !view::host_network(pod),
        _ => false,
    };
    let lacks = cluster_wanted && offer.cluster.is_empty();
    let mut dns = match (policy, cluster_wanted && !lacks) {
        ("None", _) => DnsConfig::default(),
        (_, true) => {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
            let domain = offer.domain;
            let mut searches =
                vec![format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.to_owned()];
            searches.extend(host.searches);
            DnsConfig {
                servers: offer.cluster.iter().map(ToString::to_string).collect(),
                searches,
                options: vec!["ndots:5".into()],
            }
        }
        (_, false) => host,
    };
    if let Some(own) = &spec.dns_config {
        dns.servers.extend(own.nameservers.iter().flatten().cloned());
        dns.searches.extend(own.searches.iter().flatten().cloned());
        for option in own.options.iter().flatten() {
            let name = option.name.as_deref().unwrap_or("");
            dns.options.retain(|o| o.split(':').next() != Some(name));
            dns.options.push(match option.value.as_deref() {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name.to_owned(),
            });
        }
    }
    dedup(&mut dns.servers);
    dedup(&mut dns.searches);
    (dns, lacks)
}

fn dedup(list: &mut Vec<String>) {
    let mut seen = std::collections::BTreeSet::new();
    list.retain(|entry| seen.insert(entry.clone()));
}

/// Reads a `resolv.conf`.
fn parse(text: &str) -> DnsConfig {
    let mut dns = DnsConfig::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match words.next() {
            Some("nameserver") => dns.servers.extend(words.next().map(Into::into)),
            Some("search") => dns.searches = words.map(Into::into).collect(),
            Some("options") => dns.options.extend(words.map(String::from)),
            _ => {}
        }
    }
    dns
}
