//! The sync protocol's wire form: generated types, signatures, and epochs and revisions as domain types. Beside it, the
//! generated types of the SPIFFE Workload API.
//!
//! Shared by both ends of the stream (`control` sends, `sync` receives). Plane: pure. A payload is looked into only
//! after its signature has been verified; a payload that fails is refused whole.

/// Generated from `sync.proto`.
#[allow(
    missing_debug_implementations,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod proto {
    tonic::include_proto!("portcullis.sync.v1");
}

/// Generated from `workload_api.proto`, which has no package.
#[allow(
    missing_debug_implementations,
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod workload_api {
    tonic::include_proto!("_");
}

mod position;
mod seal;
mod sign;

/// The metadata key with which the control plane tells a refused sidecar when to come back, in milliseconds.
pub const RETRY_AFTER: &str = "retry-after-ms";

pub use self::position::{Epoch, ParseEpochError, Position, Revision, ScopeId};
pub use self::seal::seal;
pub use self::sign::{SignatureError, SigningKey, VerifyKey};
