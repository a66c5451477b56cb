//! The `portcullis` binary: allocator, crypto provider, then `cli`.

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> std::process::ExitCode {
    // An error means that a provider is installed already, and there is only one to choose from.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    portcullis::cli::run(std::env::args_os())
}
