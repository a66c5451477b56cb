//! The control plane: store, revision log, index, REST API, sync server.
//!
//! Plane: control. Never touches `state` or a door. Every change is one commit with one dense revision; readers are
//! served from the in-memory index, which is fed in commit order.

pub mod fleet;
pub mod index;
pub mod sync_server;
