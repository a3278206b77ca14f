//! CRI v1: the generated messages and gRPC services.

/// The messages and services of package `runtime.v1`.
#[allow(missing_docs, clippy::all)]
pub mod v1 {
    tonic::include_proto!("runtime.v1");
}
