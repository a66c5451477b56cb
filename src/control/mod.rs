//! The control plane: store, revision log, index, REST API, sync server, keeper of issuers' keys.
//!
//! Plane: control. Never touches `state` or a door. Every change is one commit with one dense revision; readers are
//! served from the in-memory index, which is fed in commit order.

mod agenda;
pub mod api;
pub mod audit;
pub mod callers;
mod commit;
mod compiled;
mod core;
mod desk;
pub mod exchange;
pub mod fleet;
pub mod index;
mod key_book;
pub mod keys;
pub mod operator_policy;
pub mod operators;
pub mod principal;
mod restore;
mod rules;
pub mod store;
pub mod sweep;
pub mod sync_server;
pub mod token_keys;
pub mod token_review;
pub mod uses;
pub mod workload_identity;

pub use self::agenda::Retention;
pub use self::commit::CommitError;
pub use self::core::{Core, CoreConfig, Intent, Plan};
