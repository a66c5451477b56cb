//! Generates the sync protocol's types from `src/wire/sync.proto`, without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=src/wire/sync.proto");
    let files = protox::compile(["sync.proto"], ["src/wire"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(files)?;
    Ok(())
}
