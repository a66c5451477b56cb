//! `portcullis bench`: measure a server.
//!
//! Plane: composition. Turns arguments into what `bench` takes, and its results into text, JSON and HTML.

mod fleet;

use clap::Subcommand;

use self::fleet::FleetArgs;
use super::failure::Outcome;
use super::output::Out;

/// Measure a control plane with a simulated fleet.
#[derive(Debug, Subcommand)]
#[command(after_help = "Example:\n  portcullis bench fleet --help")]
pub(super) enum BenchCommand {
    Fleet(FleetArgs),
}

impl BenchCommand {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        match self {
            Self::Fleet(args) => args.run(out),
        }
    }
}
