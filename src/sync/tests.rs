//! Tests of the client against the real server, against a server that misbehaves, and over restarts.

mod fake;
pub(super) mod frames;
mod kubernetes;
mod misbehaving;
mod plane;
mod secure;
mod stream;
mod uses;
