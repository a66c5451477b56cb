//! Tests of key fetching: real TLS on loopback, a real store, the real SPIFFE protocols.

pub(crate) mod endpoint;
mod harness;
mod spiffe;
mod web;
mod workload_api;
