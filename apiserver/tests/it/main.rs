//! The API server over real TLS connections.

mod harness;

mod deleting;
mod listing;
mod objects;
mod security;
mod streams;
mod watching;
