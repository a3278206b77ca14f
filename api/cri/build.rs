//! Compiles the CRI protocol with a pure-Rust compiler, so no `protoc` is needed.
//!
//! Messages also get serde: the server keeps the configurations it was given in its records, and prints
//! them in verbose answers. Absent fields read as their protobuf defaults.

/// Answers that stand in `src/rows.rs`, because their rows are shared.
const SHARING_ROWS: [&str; 4] = [
    "ListContainersResponse",
    "StreamContainersResponse",
    "ListPodSandboxResponse",
    "StreamPodSandboxesResponse",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = protox::compile(["proto/cri.proto"], ["proto"])?;
    let mut build = tonic_prost_build::configure();
    for name in SHARING_ROWS {
        build = build.extern_path(format!(".runtime.v1.{name}"), format!("crate::rows::{name}"));
    }
    build
        .message_attribute(".", "#[derive(serde::Serialize, serde::Deserialize)] #[serde(default)]")
        .field_attribute("runtime.v1.KeyValue.value", "#[serde(with = \"crate::text_bytes\")]")
        .btree_map(".")
        .compile_fds(files)?;
    Ok(())
}
