//! Kubernetes objects as Orlop uses them: names, quantities, selectors, schemas, defaults, validation,
//! patches, printer columns, and the discovery and OpenAPI documents.
//!
//! Guarantees: every function is pure: no I/O, no clock, no global state but lazily built constant tables.
//! Assumes: objects are `serde_json::Value` in their external (JSON) form of the version their registry row names.
//! Caveat: each kind has exactly one version per group; there is no conversion between versions but the two
//! spellings of Event.
//!
//! The way of a write through this crate: [`schema::decode`] → [`defaults::apply`] → [`strategy`] →
//! [`validation`]; a patch goes through [`patch::apply`] first.
#![forbid(unsafe_code)]

pub mod registry;
pub mod status;

pub mod names;
pub mod quantity;
pub mod selector;

pub mod meta;
pub mod schema;

pub mod defaults;
pub mod strategy;
pub mod validation;

pub mod apply;
pub mod patch;

pub mod table;

pub mod discovery;
pub mod openapi;

/// The Kubernetes types of the one k8s-openapi version that the whole project uses.
pub mod k8s {
    pub use k8s_openapi::api::{
        apps::v1 as apps, authentication::v1 as authentication, authorization::v1 as authorization,
        coordination::v1 as coordination, core::v1 as core, events::v1 as events,
    };
    pub use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    pub use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
    pub use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
    pub use k8s_openapi::{ByteString, jiff};
}
