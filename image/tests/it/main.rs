//! The image store against registries, archives and hostile layers.

mod artifact;
mod docker_registry;
mod export;
mod fixture;
mod hostile;
mod import;
mod limits;
mod pull;
mod server;
mod store;
mod unpack;
mod verify;
