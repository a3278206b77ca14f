//! The image store against registries, archives and hostile layers.

mod artifact;
mod crash;
mod docker_registry;
mod export;
mod fixture;
mod gnu_tar;
mod hostile;
mod import;
mod limits;
mod memory;
mod pull;
mod server;
mod store;
mod unpack;
mod verify;
