//! The API as an operator's tool uses it: whole requests through the router, on real SQLite.

mod audit;
mod callers;
mod drops;
mod flow;
mod grants;
mod harness;
mod idempotency;
mod lifecycle;
mod model;
mod refusals;
mod rules;
mod serving;
mod table;
mod watching;
