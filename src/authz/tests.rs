//! Tests of the decision core as a whole, through the gate.

mod delegation;
mod mcp;
mod transaction;
