//! CRI v1: the generated messages, one object-safe trait over all its calls, and both gRPC directions.
//!
//! [`Cri`] is the only door through which a kubelet sees containers: in process it is our server, at a
//! socket it is a [`GrpcClient`]. [`serve`] puts any implementation on a unix socket.
//!
//! Guarantees: the list of calls stands in one place (`calls.rs`); the trait, the client and the gRPC
//! services are all made from it, so none can lack a call.
//! Assumes: the peer speaks package `runtime.v1`; there is no fallback to `v1alpha2`.
//! Caveats: the `Stream*` calls of a server that overrides nothing list once and send the result in
//! pieces; calls that we do not support answer `UNIMPLEMENTED` and say so.
#![forbid(unsafe_code)]

mod calls;
mod client;
mod rows;
mod serve;
pub mod text_bytes;

pub use calls::{Cri, ItemStream, PIECE};
pub use client::{ConnectError, GrpcClient};
pub use rows::Row;
pub use serve::{Adapter, MESSAGE_LIMIT, ServeError, serve, services};

/// The messages and services of package `runtime.v1`. Field meanings stand in `proto/cri.proto`.
#[allow(missing_docs, clippy::all, rustdoc::all)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
    pub use crate::rows::{
        ListContainersResponse, ListPodSandboxResponse, StreamContainersResponse, StreamPodSandboxesResponse,
    };
}
