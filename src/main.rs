//! The `portcullis` binary: hands over to `cli`.

fn main() -> std::process::ExitCode {
    std::process::ExitCode::SUCCESS
}
