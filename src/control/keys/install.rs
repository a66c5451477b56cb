//! Taking a fetched key set: an ordinary commit that changes the keys of one issuer and nothing else.
//!
//! Plane: control. The plan is made on the issuer as it is at commit, so an operator's edit of other fields stays, an
//! issuer that was deleted stays deleted, and keys of a source that was replaced are dropped. INVARIANT: a set that
//! cannot be used never replaces one that can; an older SPIFFE bundle never replaces a newer one.

use std::sync::Arc;

use super::error::FetchError;
use crate::control::core::{Core, Intent, Plan};
use crate::control::index::Index;
use crate::control::rules::as_issuer;
use crate::control::store::{Expect, Write};
use crate::credential;
use crate::object::{Issuer, IssuerKind, Jwks, KeySource, Kind, Object};

/// Who the log says has changed the keys. No operator can have this name.
pub const AUTHOR: &str = "system:keys";

/// Whose keys come from where. As long as this stays the same, the same task looks after them.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Spec {
    pub(super) name: Arc<str>,
    pub(super) kind: IssuerKind,
    pub(super) authority: Box<str>,
    pub(super) source: KeySource,
}

/// What became of a fetched set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Installed {
    /// It has been committed.
    Changed,
    /// It is held already.
    Unchanged,
    /// The issuer has gone, or its keys come from elsewhere now.
    Gone,
}

// === impl Spec ===

impl Spec {
    /// Of an issuer whose keys are fetched.
    pub(super) fn of(issuer: &Issuer) -> Option<Self> {
        let source = issuer.keys_from.clone()?;
        let name = Arc::from(issuer.name.as_str());
        Some(Self { name, kind: issuer.kind, authority: issuer.authority().into(), source })
    }

    /// The issuer as it is now, if this is still about it.
    pub(super) fn find(&self, index: &Index) -> Option<Issuer> {
        let stored = index.get(Kind::Issuer, &self.name)?;
        as_issuer(&stored).filter(|issuer| Self::of(issuer).as_ref() == Some(self)).cloned()
    }
}

/// Commits `fetched` as the keys of the issuer, if they are other than those it has.
pub(super) async fn install(core: &Core, spec: &Spec, fetched: &Jwks) -> Result<Installed, FetchError> {
    let new = sequence(spec.kind, fetched)?;
    let intent = Intent::system(AUTHOR, "issuer.keys");
    let (_, installed) = core.transact(&intent, |index| plan(index, spec, fetched, new)).await?;
    Ok(installed)
}

fn plan(index: &Index, spec: &Spec, fetched: &Jwks, new: Option<u64>) -> Result<Plan<Installed>, FetchError> {
    let stored = index.get(Kind::Issuer, &spec.name);
    let (Some(stored), Some(mut issuer)) = (stored, spec.find(index)) else { return Ok(Plan::new(Installed::Gone)) };
    let is_same = issuer.jwks.says_the_same(fetched, spec.kind);
    // What is held may be an operator's; without a usable sequence there is nothing to compare with.
    if let (Some(held), Some(new)) = (sequence(spec.kind, &issuer.jwks).ok().flatten(), new) {
        if new < held {
            return Err(FetchError::rollback(held, new));
        }
        if new == held && issuer.keys_fetched && !is_same {
            return Err(FetchError::same_sequence(held));
        }
    }
    if is_same && issuer.keys_fetched {
        return Ok(Plan::new(Installed::Unchanged));
    }
    issuer.jwks = fetched.clone();
    // From now on nothing else than the source counts, not even when it has no keys any more.
    issuer.keys_fetched = true;
    credential::check_issuer(&issuer)?;
    let object = Object::Issuer(Box::new(issuer));
    object.check()?;
    Ok(Plan::new(Installed::Changed).write(Write::put(&object, Expect::Revision(stored.revision))))
}

/// `spiffe_sequence` of a bundle, if it has one. In other key sets it is a member like any, and says nothing.
pub(super) fn sequence(kind: IssuerKind, set: &Jwks) -> Result<Option<u64>, FetchError> {
    number(kind, set, "spiffe_sequence")
}

/// `spiffe_refresh_hint` of a bundle in seconds, if it has one.
pub(super) fn refresh_hint(kind: IssuerKind, set: &Jwks) -> Result<Option<u64>, FetchError> {
    number(kind, set, "spiffe_refresh_hint")
}

fn number(kind: IssuerKind, set: &Jwks, member: &str) -> Result<Option<u64>, FetchError> {
    match set.other.get(member).filter(|_| kind == IssuerKind::Spiffe) {
        None => Ok(None),
        Some(value) => match value.as_u64() {
            Some(number) => Ok(Some(number)),
            None => Err(FetchError::invalid(format!("`{member}` is not a whole number"))),
        },
    }
}
