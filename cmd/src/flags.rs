//! The command line.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};
use ipnet::IpNet;

/// A Kubernetes node in one program.
#[derive(Parser, Debug)]
#[command(
    name = "orlop",
    version,
    about,
    max_term_width = 100,
    after_help = "Start with `orlop check` (what this machine lacks, all at once), then `orlop server`.\n\
                  The documentation is in README.md and docs/."
)]
pub struct Flags {
    #[command(subcommand)]
    pub command: Command,
    #[command(flatten)]
    pub common: Common,
}

/// Flags of every command.
#[derive(Args, Debug, Clone)]
pub struct Common {
    /// Put data, run-time state, configuration and logs below this directory instead of the usual places
    #[arg(long, global = true, value_name = "DIR", env = "ORLOP_ROOT")]
    pub root: Option<PathBuf>,
    /// Configuration file [default: /etc/orlop/config.yaml, if there is one]
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// What to log: a level (error, warn, info, debug, trace) or a filter like `info,kubelet=debug`
    #[arg(long, global = true, value_name = "FILTER", default_value = "info", env = "ORLOP_LOG")]
    pub log: String,
    /// Log as JSON, one object a line
    #[arg(long, global = true)]
    pub log_json: bool,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run a whole cluster on this machine: control plane and node
    Server(ServerFlags),
    /// Run this machine as a node of an existing cluster, or of none
    Kubelet(KubeletFlags),
    /// Serve only the CRI socket, for crictl or another kubelet
    Cri(NodeFlags),
    /// Say everything that keeps this machine from being a node, or limits it
    Check,
    /// Pull, import, list, inspect and remove images
    #[command(subcommand)]
    Image(ImageCommand),
    /// Say whether the node is Ready, and what runs on it
    Status(StatusFlags),
    /// Create the objects of a manifest in the cluster, or change them to match it
    Apply(ApplyFlags),
    /// Stop every pod and the keeper of a node whose daemon has ended; images and objects stay
    Stop(NodeFlags),
    /// Remove everything that a node left on this machine: pods, images, objects, certificates
    Reset(ResetFlags),
}

/// Settings of a node; each overrides the configuration file.
#[derive(Args, Debug, Clone, Default)]
pub struct NodeFlags {
    /// Name of the node [default: the host name]
    #[arg(long, value_name = "NAME")]
    pub node_name: Option<String>,
    /// Address at which the node is reached [default: the one with the default route]
    #[arg(long = "node-ip", value_name = "IP")]
    pub node_ips: Vec<IpAddr>,
    /// Address range of this node's pods; twice for IPv4 and IPv6 [default: 10.42.0.0/24]
    #[arg(long = "pod-cidr", value_name = "CIDR")]
    pub pod_cidrs: Vec<IpNet>,
    /// Name of the pods' bridge [default: orlop0]
    #[arg(long, value_name = "NAME")]
    pub bridge: Option<String>,
    /// The CRI socket [default: /run/orlop/cri.sock]
    #[arg(long, value_name = "PATH")]
    pub cri_socket: Option<PathBuf>,
}

#[derive(Args, Debug, Clone, Default)]
pub struct ServerFlags {
    #[command(flatten)]
    pub node: NodeFlags,
    /// Where the apiserver listens [default: 0.0.0.0:6443]
    #[arg(long, value_name = "IP:PORT")]
    pub api_address: Option<SocketAddr>,
    /// Where the kubelet API listens [default: 0.0.0.0:10250]
    #[arg(long, value_name = "IP:PORT")]
    pub kubelet_address: Option<SocketAddr>,
    /// Address range of Services [default: 10.43.0.0/16]
    #[arg(long, value_name = "CIDR")]
    pub service_cidr: Option<IpNet>,
}

#[derive(Args, Debug, Clone, Default)]
pub struct KubeletFlags {
    #[command(flatten)]
    pub node: NodeFlags,
    /// How to reach the cluster, and as whom
    #[arg(long, value_name = "FILE", conflicts_with = "standalone", required_unless_present = "standalone")]
    pub kubeconfig: Option<PathBuf>,
    /// Belong to no cluster: run the pods of the manifests directory
    #[arg(long)]
    pub standalone: bool,
    /// Directory of manifests: static pods, and in standalone mode ConfigMaps and Secrets
    /// [default: /etc/orlop/manifests]
    #[arg(long, value_name = "DIR")]
    pub manifests: Option<PathBuf>,
    /// Where the kubelet API listens [default: 0.0.0.0:10250]
    #[arg(long, value_name = "IP:PORT")]
    pub kubelet_address: Option<SocketAddr>,
    /// Certificate authority whose client certificates may use the kubelet API (PEM)
    #[arg(long, value_name = "FILE")]
    pub client_ca_file: Option<PathBuf>,
    /// Serving certificate of the kubelet API (PEM) [default: one signed by an authority of its own]
    #[arg(long, value_name = "FILE", requires = "tls_private_key_file")]
    pub tls_cert_file: Option<PathBuf>,
    /// Private key of the serving certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "tls_cert_file")]
    pub tls_private_key_file: Option<PathBuf>,
    /// CRI socket of another runtime (containerd, CRI-O) to use instead of the built-in one
    #[arg(long, value_name = "PATH")]
    pub container_runtime_endpoint: Option<PathBuf>,
}

#[derive(Subcommand, Debug)]
pub enum ImageCommand {
    /// Pull an image from its registry
    Pull {
        /// For example docker.io/library/nginx:1.27 or registry.local/app@sha256:…
        reference: String,
        /// Credentials as USER:PASSWORD
        #[arg(long, value_name = "USER:PASSWORD", env = "ORLOP_CREDS", hide_env_values = true)]
        creds: Option<String>,
    },
    /// Import the images of an OCI or docker-save archive (.tar, .tar.gz, .tar.zst)
    Import {
        /// The archive
        archive: PathBuf,
    },
    /// List the images
    #[command(visible_alias = "ls")]
    List,
    /// Remove images; what a container uses stays until the container is gone
    #[command(visible_alias = "rm")]
    Remove {
        /// Names or ids
        #[arg(required = true)]
        names: Vec<String>,
    },
    /// Remove every image that no container uses
    Prune,
    /// Compare everything stored with its digests, down to each file's owner, mode and time
    Verify {
        /// Pull what is broken again, or remove it if that fails; what is in use stays
        #[arg(long)]
        repair: bool,
    },
    /// Write images to an OCI archive, which `orlop image import` and others take
    Export {
        /// Names or ids, and the archive; one that ends in .gz or .zst is compressed
        #[arg(required = true, num_args = 2.., value_name = "NAME... FILE")]
        names_and_file: Vec<String>,
    },
    /// Write images to an archive as `docker save` does, for `docker load`
    Save {
        /// Names or ids, and the archive; one that ends in .gz or .zst is compressed
        #[arg(required = true, num_args = 2.., value_name = "NAME... FILE")]
        names_and_file: Vec<String>,
    },
    /// Keep an image when space is made
    Pin {
        /// Name or id
        name: String,
    },
    /// Let an image go when space is made
    Unpin {
        /// Name or id
        name: String,
    },
    /// Show all that is known of an image, as JSON
    Inspect {
        /// Name or id
        name: String,
    },
}

#[derive(Args, Debug)]
pub struct StatusFlags {
    /// Print nothing; wait until the node is Ready, and fail if it isn't in time
    #[arg(long)]
    pub wait_ready: bool,
    /// How long to wait, in seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 30)]
    pub timeout: u64,
    /// How to reach the cluster, and as whom [default: /etc/orlop/admin.kubeconfig]
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
}

#[derive(Args, Debug)]
pub struct ApplyFlags {
    /// The manifest: YAML or JSON, several documents allowed; `-` reads standard input
    #[arg(short = 'f', long = "filename", value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// How to reach the cluster, and as whom [default: /etc/orlop/admin.kubeconfig]
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    pub kubeconfig: Option<PathBuf>,
    /// Namespace of objects that name none
    #[arg(short, long, default_value = "default")]
    pub namespace: String,
}

#[derive(Args, Debug)]
pub struct ResetFlags {
    #[command(flatten)]
    pub node: NodeFlags,
    /// Do it: without this flag, only say what would be removed
    #[arg(long)]
    pub yes: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Flags::command().debug_assert();
    }

    #[test]
    fn a_kubelet_needs_a_cluster_or_none() {
        assert!(Flags::try_parse_from(["orlop", "kubelet"]).is_err());
        assert!(Flags::try_parse_from(["orlop", "kubelet", "--standalone"]).is_ok());
        assert!(Flags::try_parse_from(["orlop", "kubelet", "--kubeconfig", "f"]).is_ok());
    }
}
