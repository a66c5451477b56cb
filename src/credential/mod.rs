//! Workload credentials: SPIFFE IDs, key sets and JWT-SVID verification. STUB to be filled.

mod spiffe_id;

pub use self::spiffe_id::{MAX_SPIFFE_ID, MAX_TRUST_DOMAIN, SpiffeId, SpiffeIdError, check_trust_domain};
