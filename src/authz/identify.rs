//! Whose a verified token is, without a request: for tools that judge a credential alone.
//!
//! Pure. Asks what the engine asks, of the same parts: the mappings of the snapshot and its registered workloads. Fails
//! closed: a token that is nobody's, or could be two workloads', has no answer. Grants nothing.

use std::sync::Arc;

use super::authenticate::KnownToken;
use super::reason::Reason;
use super::snapshot::Snapshot;
use crate::credential::{Purpose, VerifiedToken};

/// The registered workloads behind a token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Whose it is.
    pub workload: Arc<str>,
    /// Who acts for that workload, if somebody does.
    pub actor: Option<Arc<str>>,
}

/// Resolves a token that was verified against the issuers of this snapshot. An error says why the engine would refuse it.
pub fn identify(token: VerifiedToken, snapshot: &Snapshot) -> Result<Identity, (Reason, Option<Arc<str>>)> {
    let (workload, actor) = KnownToken::new(token, Purpose::Credential, [0; 32], snapshot).parties(snapshot)?;
    Ok(Identity { workload, actor })
}
