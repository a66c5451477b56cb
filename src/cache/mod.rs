//! The two caches, the memory of used proofs, the gate that every door calls, how many checks may be under way, the
//! threads that verify signatures, and when those that answer rest.
//!
//! Plane: shared, on the request path: synchronous, no runtime. The token cache is keyed by the digest of the whole
//! token, the decision cache by every input that the policies can read. INVARIANT: a cached answer equals the answer
//! that evaluation would give now; the engine checks versions and times of everything it gets back, so an entry that
//! outlives its truth is only wasted room.

pub mod coalesce;
mod gate;
mod memo;
mod overload;
mod replay;
mod turns;
mod verification;

#[cfg(test)]
mod tests;

pub use self::gate::{DEFAULT_PROOFS, Gate, Held};
pub use self::memo::{CacheCounters, CacheSizes};
pub use self::overload::{AdaptiveLimits, Admission, AdmissionLimits, Reading};
pub use self::turns::Source;
pub use self::verification::{QueueFull, Turn, VerificationLimits, VerificationPool};
pub use crate::authz::Step;
