//! The keeper: one small program per node that is the parent of every container.
//!
//! It starts containers from a ready-made plan, holds their pidfds, pipes and terminals, writes
//! their logs, reaps them and remembers how they ended. It makes no decision of its own. The
//! daemon can be killed and upgraded at will; the containers do not notice.
//!
//! This crate is the keeper program (`orlop-keeper`, built without the feature `client`) and the
//! daemon's side of it: [`plan`], [`protocol`] and, with the feature `client`, `client`. The
//! command that builds the static program stands in this crate's Cargo.toml.

#[cfg(feature = "client")]
pub mod client;
pub mod delegate;
pub mod plan;
pub mod program;
pub mod protocol;
pub mod wire;

/// The build id of this crate's protocol and program, told in the hello. A daemon whose own id
/// differs upgrades the keeper.
pub fn build_id() -> &'static str {
    concat!(env!("CARGO_PKG_VERSION"), "+", env!("KEEPER_BUILD_ID"))
}
