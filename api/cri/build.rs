//! Compiles the CRI protocol with a pure-Rust compiler, so no `protoc` is needed.
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let files = protox::compile(["proto/cri.proto"], ["proto"])?;
    tonic_prost_build::configure().compile_fds(files)?;
    Ok(())
}
