//! The `/etc/hosts` of a pod.

use std::fmt::Write;

use k8s_openapi::api::core::v1::Pod;

use crate::pod::view;

/// Host name of the pod, and its domain if it asks for one.
pub fn names(pod: &Pod, node: &str, cluster_domain: &str) -> (String, Option<String>) {
    let spec = view::spec(pod);
    if let Some(own) = spec.hostname_override.as_deref().filter(|h| !h.is_empty()) {
        return (own.into(), None);
    }
    if view::host_network(pod) {
        return (node.into(), None);
    }
    let given = spec.hostname.as_deref().filter(|h| !h.is_empty());
    let name = given.or(pod.metadata.name.as_deref()).unwrap_or("");
    let name: String = name.chars().take(63).collect();
    let name = name.trim_end_matches(['-', '.']).to_owned();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let domain = spec
        .subdomain
        .as_deref()
        .filter(|s| !s.is_empty())
        .map(|sub| format!("{sub}.{namespace}.svc.{cluster_domain}"));
    (name, domain)
}

/// What the kernel is told: the short name, or the full one with `setHostnameAsFQDN`.
pub fn kernel_name(pod: &Pod, name: &str, domain: Option<&str>) -> Result<String, String> {
    let full = match domain {
        Some(domain) if view::spec(pod).set_hostname_as_fqdn == Some(true) => format!("{name}.{domain}"),
        _ => name.to_owned(),
    };
    if full.len() > 64 {
        return Err(format!(
            "failed to construct FQDN from pod hostname and cluster domain, FQDN {full} is too long (64 characters is the max, {} characters requested)",
            full.len()
        ));
    }
    Ok(full)
}

/// The file of a pod with a network of its own.
pub fn file(pod: &Pod, ips: &[String], name: &str, domain: Option<&str>) -> String {
    let mut out = String::from(
        "# Kubernetes-managed hosts file.\n\
         127.0.0.1\tlocalhost\n\
         ::1\tlocalhost ip6-localhost ip6-loopback\n\
         fe00::0\tip6-localnet\n\
         fe00::0\tip6-mcastprefix\n\
         fe00::1\tip6-allnodes\n\
         fe00::2\tip6-allrouters\n",
    );
    for ip in ips {
        let _ = match domain {
            Some(domain) => writeln!(out, "{ip}\t{name}.{domain}\t{name}"),
            None => writeln!(out, "{ip}\t{name}"),
        };
    }
    aliases(pod, &mut out);
    out
}

/// The file of a pod on the node's network: the node's own.
pub fn host_file(pod: &Pod, host: &str) -> String {
    let mut out = format!("# Kubernetes-managed hosts file (host network).\n{host}");
    aliases(pod, &mut out);
    out
}

fn aliases(pod: &Pod, out: &mut String) {
    let Some(list) = view::spec(pod).host_aliases.as_ref().filter(|l| !l.is_empty()) else { return };
    out.push_str("\n# Entries added by HostAliases.\n");
    for alias in list {
        let names = alias.hostnames.clone().unwrap_or_default().join("\t");
        let _ = writeln!(out, "{}\t{names}", alias.ip);
    }
}
