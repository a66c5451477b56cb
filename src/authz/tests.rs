//! Tests of the decision core as a whole, through the gate.

mod delegation;
mod evaluation;
mod mcp;
mod transaction;
