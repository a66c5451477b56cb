//! Tests of key fetching: real TLS on loopback, a real store, the real SPIFFE protocols.

mod connection;
pub(crate) mod endpoint;
mod harness;
mod kept;
mod spiffe;
mod web;
mod workload_api;
