//! Grants: the rules of their life, and the index that a sidecar looks them up in.
//!
//! Plane: pure; time is an argument. A look-up costs the same whatever the number of grants. An end is never moved:
//! `not_after` is fixed at activation, and a terminal state is final.

pub mod compact;
mod covering;
mod index;
mod leaf;
pub mod ledger;
mod limits;
pub mod policy;
pub mod purse;
mod rules;
mod sharded;
mod shards;
mod signal;

pub use self::compact::CompactGrant;
pub use self::covering::{Active, Apart, Covering, End, Ended, Sought, Standing};
pub use self::index::GrantIndex;
pub use self::limits::{Circumstances, Unmet};
pub use self::rules::{
    Ballot, MAX_AHEAD, MAX_BREAK_GLASS_SECONDS, NewGrantRequest, RuleError, activate, barred, cast, check_renewal,
    drop_early, expire, lapse, may_wait, missing, needing, new_request, new_request_by, owns, revoke, serves, vote,
    withdraw,
};
pub use self::sharded::ShardedMap;
pub use self::shards::{Key, WorkloadKey};
pub use self::signal::Signal;
