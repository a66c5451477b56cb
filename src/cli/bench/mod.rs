//! `portcullis bench`: measure an ext_authz server, and make something to measure it with.
//!
//! Plane: composition. Turns arguments into what `bench` takes, and its results into text, JSON and HTML.

mod fleet;
mod generate;
mod run;
mod text;

use clap::Subcommand;

use self::fleet::FleetArgs;
use self::generate::GenerateArgs;
use self::run::RunArgs;
use super::failure::Outcome;
use super::output::Out;

/// Measure any Envoy ext_authz server under load; generate estates and fleets to do so.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  portcullis bench generate --grants 100000 --out estate\n  \
    portcullis sidecar --config estate/sidecar.yaml\n  \
    portcullis bench run --mix estate/mix.yaml --target portcullis=grpc://127.0.0.1:9191 --rate 2000")]
pub(super) enum BenchCommand {
    Run(Box<RunArgs>),
    Generate(GenerateArgs),
    Fleet(Box<FleetArgs>),
}

impl BenchCommand {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        match self {
            Self::Run(args) => args.run(out),
            Self::Generate(args) => args.run(out),
            Self::Fleet(args) => args.run(out),
        }
    }
}
