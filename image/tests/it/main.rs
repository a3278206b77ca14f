//! The image store against registries, archives and hostile layers.

mod docker_registry;
mod fixture;
mod hostile;
mod import;
mod pull;
mod server;
mod store;
mod unpack;
