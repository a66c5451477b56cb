//! The API as an operator's tool uses it: whole requests through the router, on real SQLite.

mod flow;
mod grants;
mod harness;
mod idempotency;
mod refusals;
mod rules;
mod serving;
mod table;
