//! `portcullis config`: the schemas of the configuration files.
//!
//! Plane: composition. Printed from the types of this very binary, so a schema always fits the version that reads the
//! configuration. Does not fail.

use super::failure::{Answer, Outcome};
use super::output::Out;
use crate::config::schema;

/// The configuration files.
#[derive(Debug, clap::Subcommand)]
#[command(after_help = "Example:\n  portcullis config schema sidecar > sidecar.schema.json")]
pub(super) enum ConfigCommand {
    /// Print the JSON Schema of a configuration file.
    #[command(after_help = "Example:\n  portcullis config schema control > docs/config/control.schema.json")]
    Schema {
        /// Which file.
        #[arg(value_enum)]
        file: File,
    },
}

/// A configuration file.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum File {
    /// `sidecar.yaml`
    Sidecar,
    /// `control.yaml`
    Control,
}

impl ConfigCommand {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        let Self::Schema { file } = self;
        out.text(&match file {
            File::Sidecar => schema::sidecar(),
            File::Control => schema::control(),
        })?;
        Ok(Answer::Yes)
    }
}
