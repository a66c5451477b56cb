//! `portcullis credential`: the short-lived tokens of the control plane, and the keys that it signs them with.
//!
//! Plane: composition, a client of the control plane's API.

mod exchange;
mod keys;

use clap::Subcommand;

use self::exchange::ExchangeArgs;
use self::keys::{KeysArgs, RevokeKeyArgs, RotateArgs};
use super::failure::Outcome;
use super::output::Out;

/// Short-lived tokens of the control plane, and the keys that it signs them with.
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Example:\n  portcullis credential exchange --subject-token-file agent.jwt --audience payments --scope write\n  portcullis credential keys"
)]
pub(super) enum CredentialCommand {
    #[command(visible_alias = "issue")]
    Exchange(ExchangeArgs),
    Keys(KeysArgs),
    Rotate(RotateArgs),
    RevokeKey(RevokeKeyArgs),
}

impl CredentialCommand {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        match self {
            Self::Exchange(args) => args.run(out),
            Self::Keys(args) => args.run(out),
            Self::Rotate(args) => args.run(out),
            Self::RevokeKey(args) => args.run(out),
        }
    }
}
