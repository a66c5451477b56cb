//! `portcullis bench generate`: an estate of any size, as the files that sidecar, control plane and load generator read.
//!
//! Plane: composition. Streams: what is held in memory is one chunk of a snapshot, the policy text and the tokens, whatever
//! the number of grants. INVARIANT: the same seed, size and time give the same bytes (but for `control/`, which SQLite
//! writes; its content is the same). Writes into a new directory only; what fails leaves it incomplete and says so.

mod ecdsa;
mod estate;
mod mix;
mod output;

#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::time::Duration;

pub use self::estate::{AUDIENCE, Estate, ISSUER, MOST, Size, TRUST_DOMAIN, service, workload};
pub use self::output::{Made, Options, generate};
use crate::clock::Timestamp;
use crate::control::store::StoreError;
use crate::sync::disk::SeedError;

/// Why nothing usable was generated.
#[derive(Debug, thiserror::Error)]
pub enum GenerateError {
    /// Too much, or too little, of something.
    #[error("`{value}` {name}: from {least} to {most} are possible")]
    Size {
        /// Of what.
        name: &'static str,
        /// How many.
        value: u64,
        /// The least.
        least: u64,
        /// The most.
        most: u64,
    },
    /// Tokens of this lifetime are not accepted.
    #[error("a token lifetime of `{}`: from 1m to 24h are possible", humantime::format_duration(*.0))]
    Lifetime(Duration),
    /// Grants from then on would end beyond the last time that there is.
    #[error("`{0}` is too late a time")]
    Now(Timestamp),
    /// The policies together are larger than a policy set may be.
    #[error("{0} policies are a text of {1} bytes; a policy set has at most 16 MiB")]
    Policies(u64, usize),
    /// There is no room.
    #[error("about {need} MiB are needed in `{}`, {free} MiB are free", path.display())]
    Space {
        /// Where.
        path: PathBuf,
        /// MiB.
        need: u64,
        /// MiB.
        free: u64,
    },
    /// The directory is in use for something else.
    #[error("`{}` is there already and not empty", .0.display())]
    Taken(PathBuf),
    /// A file could not be written.
    #[error("cannot write `{}`: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The sidecar's state.
    #[error(transparent)]
    State(#[from] SeedError),
    /// The control plane's store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The cryptographic library failed.
    #[error("the cryptographic library failed")]
    Crypto,
    /// An object that breaks its own rules; a fault of this program.
    #[error("an object that was generated is not valid: {0}")]
    Rule(String),
}
