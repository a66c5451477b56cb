//! The benchmark tool: a load generator for any ext_authz server, and estates to measure Portcullis with.
//!
//! Plane: composition; a client of servers, part of none. It must cost less than what it measures, and it must not hide
//! what it could not do: a request counts from when it was meant to be sent, and one without an answer counts too.

pub mod fleet;
