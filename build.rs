//! Generates the types of the sync protocol and of the SPIFFE Workload API from `src/wire/*.proto`, without `protoc`.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in ["sync.proto", "workload_api.proto"] {
        println!("cargo:rerun-if-changed=src/wire/{file}");
    }
    let files = protox::compile(["sync.proto", "workload_api.proto"], ["src/wire"])?;
    tonic_prost_build::configure().bytes(".").compile_fds(files)?;
    Ok(())
}
