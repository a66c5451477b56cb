//! Portcullis: the enforcement point of an identity orchestration layer for non-human identities.
//!
//! # Code map
//!
//! One crate, a library and one binary. Dependencies point downwards only; `tests/tidy.rs` enforces it.
//!
//! | Module | Plane | Holds |
//! |---|---|---|
//! | [`clock`] | pure | The one source of time; a wall clock set back lengthens nothing |
//! | [`object`] | pure | The documents that are stored, sent and compiled: issuer, workload, service, policy set, grant, revocation |
//! | [`credential`] | pure | SPIFFE IDs, key sets, JWT-SVID verification |
//! | [`policy`] | pure | Cedar schema, strict validation, slicing by scope, which inputs a policy set reads |
//! | [`grant`] | pure | The grant index of a sidecar, and the rules of a grant's life |
//! | [`authz`] | pure | Canonical paths, route table, snapshot, engine: a request and a snapshot become a decision |
//! | [`wire`] | pure | The sync protocol's types, positions, signatures |
//! | [`state`] | shared | The snapshot in force and its lease, swapped whole; one writer |
//! | [`cache`] | shared | The two caches, the [`cache::Gate`] that doors call, and how much is admitted at once |
//! | [`door`] | hot path | What doors share: the way from a request to its one outcome, and what HTTP is answered |
//! | [`ext_authz`] | hot path | Envoy's `envoy.service.auth.v3` door |
//! | [`forward_auth`] | hot path | The HTTP door of Envoy's HTTP service, Traefik, Caddy and nginx |
//! | [`authzen`] | hot path | AuthZEN: applications that ask directly |
//! | [`proxy`] | hot path | The reverse proxy: enforcement in line, where there is no Envoy |
//! | [`sync`] | sync | Client of the control plane: ordered apply, last-known-good on disk, backoff |
//! | [`control`] | control | Store, revision log, index, REST API, sync server |
//! | [`admin`], [`telemetry`], [`tls`], [`svid`], [`drain`], [`readiness`], [`offload`] | cross-cutting | Health, metrics, logs, traces, decision records, TLS from files and from a SPIFFE agent, shutdown |
//! | [`bench`] | composition | Load generator for any ext_authz server, a simulated fleet, and estates of any size to measure with |
//! | [`config`], [`app`], [`cli`] | composition | Configuration compiles to one runtime form; `app` builds it; `cli` is what people type |
//! | [`testing`] | tests | Fakes that speak the real protocols |
//!
//! # Invariants
//!
//! Default deny. Pure modules do no I/O and are given the time. A request is forwarded only with an
//! [`authz::Permit`], which only the engine makes. The request path only borrows the current snapshot: no lock is
//! held across an await, no network call, no disk. What cannot be understood denies.

pub mod admin;
pub mod app;
pub mod authz;
pub mod authzen;
pub mod bench;
pub mod cache;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod credential;
pub mod door;
pub mod drain;
pub mod ext_authz;
pub mod forward_auth;
pub mod grant;
pub mod object;
pub mod offload;
pub mod policy;
pub mod proxy;
pub mod readiness;
pub mod state;
pub mod svid;
pub mod sync;
pub mod telemetry;
#[cfg(any(test, feature = "testing"))]
pub mod testing;
pub mod tls;
pub mod wire;
