//! An estate in miniature for our own tests and benches: issuer, workloads, services, policies, grants, and tokens
//! that the real verifier accepts.
//!
//! Feature `testing`; never part of a release. Time is a [`ManualClock`]; nothing here simulates a component that could
//! be had for real.

mod agent;
#[cfg(test)]
pub(crate) mod certificates;
mod estate;
mod holder;
mod signing_key;
mod warm_door;

pub use self::agent::{Bundles, SpiffeAgent};
pub use self::estate::{AUDIENCE, Estate, POLICIES, Size, headers, request};
pub use self::holder::{KeyHolder, changed, digest};
pub use self::signing_key::SigningKey;
pub use self::warm_door::WarmDoor;
