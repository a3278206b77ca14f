//! The Kubernetes API server: HTTP, authentication, admission, validation, patches, watch.
//!
//! Guarantees: one generic request path serves every resource; what a resource is, stands in
//! `api::registry`. A write that was answered is durable, and visible to every later read. Reads
//! and watches come from a cache of encoded objects that is never ahead of the store.
//! Assumes: the store is ours alone below `/registry/`.
//! Caveats: whoever has a client certificate of the cluster's authority or a service-account token
//! may do everything; RBAC comes later (see [`mod@authz`]). Server-side apply is refused.
#![forbid(unsafe_code)]

mod config;
mod server;

mod app;
mod dispatch;
mod request;

mod authn;
pub mod authz;
mod token;

mod body;
mod negotiate;
mod protobuf;
mod respond;

mod cache;
mod entry;
mod feed;
mod keys;
mod objects;

mod admission;
mod allocate;
mod delete;
mod list;
mod read;
mod scale;
mod watch;
mod write;

mod pods;
mod reviews;
mod runtime_class;
mod serviceaccounts;

mod kubelet;
mod proxy;

mod bootstrap;
mod documents;
mod metrics;
mod sweep;
mod tls;

pub use config::{Config, StartError, kubernetes_service_ip};
pub use server::Server;
