//! `portcullis config`: the schemas of the configuration files, and the OpenAPI document.
//!
//! Plane: composition. Printed from the types of this very binary, so a schema always fits the version that reads the
//! configuration. Does not fail.

use super::failure::{Answer, Outcome};
use super::output::Out;
use crate::config::schema;
use crate::control::api;

/// Schemas of what this version reads and answers.
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
    /// Print the OpenAPI document of the control plane's API, as it is served at `/openapi.json`.
    #[command(after_help = "Example:\n  portcullis config openapi > docs/openapi.json")]
    Openapi,
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
        out.text(&match self {
            Self::Schema { file: File::Sidecar } => schema::sidecar(),
            Self::Schema { file: File::Control } => schema::control(),
            Self::Openapi => api::openapi(),
        })?;
        Ok(Answer::Yes)
    }
}
