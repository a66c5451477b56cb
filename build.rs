//! Generates the types of the sync protocol and of the SPIFFE Workload API from `src/wire/*.proto`, without `protoc`. What
//! they were generated from is left beside them, for the test that holds it against the standard.

use std::path::Path;

const FILES: [&str; 2] = ["sync.proto", "workload_api.proto"];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    for file in FILES {
        println!("cargo:rerun-if-changed=src/wire/{file}");
    }
    let mut compiler = protox::Compiler::new(["src/wire"])?;
    compiler.include_source_info(true).include_imports(true).open_files(FILES)?;
    let out = std::env::var_os("OUT_DIR").ok_or("cargo sets `OUT_DIR`")?;
    std::fs::write(Path::new(&out).join("wire.binpb"), compiler.encode_file_descriptor_set())?;
    tonic_prost_build::configure().bytes(".").compile_fds(compiler.file_descriptor_set())?;
    Ok(())
}
