//! Everything that has been revoked, looked up by digests that are computed once per token.
//!
//! Pure. Checked on every request, before any cache of decisions: a revocation beats every allow. Append-only; the
//! index is only ever rebuilt when the control plane compacts.

use std::sync::Arc;

use smallvec::SmallVec;

use crate::clock::Timestamp;
use crate::credential::{VerifiedToken, certificate_serial};
use crate::grant::{Key, ShardedMap, WorkloadKey};
use crate::object::{GrantId, Revocation, Target};

use super::reason::Reason;

/// The revocations of a snapshot.
#[derive(Debug, Clone)]
pub(super) struct Revocations {
    by_id: ShardedMap<Arc<Revocation>>,
    targets: ShardedMap<Mark>,
    /// How many revocations name each grant.
    grants: ShardedMap<u32>,
}

/// What is known of one target: for most that it is revoked, for tokens of a workload until when.
#[derive(Debug, Clone, Copy, Default)]
struct Mark {
    before: Timestamp,
}

/// The digests under which a token, its key, its issuer and its workload could be revoked.
#[derive(Debug, Clone)]
pub(super) struct TokenMarks {
    token: Option<Key>,
    workload: Key,
    issuer: Key,
    key: Key,
    tokens_before: Key,
    bound_objects: SmallVec<[Key; 3]>,
}

// === impl Revocations ===

impl Revocations {
    pub(super) fn new(version: u64) -> Self {
        Self { by_id: ShardedMap::new(version), targets: ShardedMap::new(version), grants: ShardedMap::new(version) }
    }

    pub(super) const fn len(&self) -> usize {
        self.by_id.len()
    }

    pub(super) fn put(&mut self, revocation: Arc<Revocation>, version: u64) {
        self.index(&revocation.target, version);
        let replaced = self.by_id.insert(*revocation.id.as_bytes(), revocation, version);
        if replaced.is_some() {
            self.rebuild(version);
        }
    }

    pub(super) fn remove(&mut self, id: &Key, version: u64) {
        match self.by_id.remove(id, version).map(|r| r.target.clone()) {
            None => {}
            // Forgetting grants is routine; anything else is so rare that building anew is good enough.
            Some(Target::Grant { grant }) => {
                let fewer = |n: &mut u32| *n = n.saturating_sub(1);
                self.grants.update(*grant.0.as_bytes(), version, fewer, |n| *n > 0);
            }
            Some(_) => self.rebuild(version),
        }
    }

    pub(super) fn is_grant_revoked(&self, id: GrantId) -> bool {
        !self.grants.is_empty() && self.grants.get(id.0.as_bytes()).is_some()
    }

    /// Why this token does not count any more, if so.
    pub(super) fn of_token(&self, marks: &TokenMarks, issued_at: Option<Timestamp>) -> Option<Reason> {
        if self.targets.is_empty() {
            return None;
        }
        let revoked = |key: &Key| self.targets.get(key).is_some();
        if marks.token.as_ref().is_some_and(revoked) {
            return Some(Reason::RevokedToken);
        }
        if let Some(mark) = self.targets.get(&marks.tokens_before) {
            // A token that does not say when it was issued counts as issued before.
            if issued_at.is_none_or(|at| at < mark.before) {
                return Some(Reason::RevokedToken);
            }
        }
        if revoked(&marks.workload) {
            return Some(Reason::RevokedWorkload);
        }
        if revoked(&marks.key) {
            return Some(Reason::RevokedKey);
        }
        if marks.bound_objects.iter().any(revoked) {
            return Some(Reason::RevokedToken);
        }
        revoked(&marks.issuer).then_some(Reason::RevokedIssuer)
    }

    /// Whether nobody acts for this workload any more.
    pub(super) fn is_delegator_revoked(&self, workload: &str) -> bool {
        !self.targets.is_empty() && self.targets.get(&digest("delegator", &[workload])).is_some()
    }

    /// Why a workload may not act by a token of this time, if so: a token is in its actor's hands as well.
    pub(super) fn of_actor(&self, actor: &str, issued_at: Option<Timestamp>) -> Option<Reason> {
        if self.targets.is_empty() {
            return None;
        }
        let ended = self.targets.get(&digest("tokens_before", &[actor]));
        if ended.is_some_and(|mark| issued_at.is_none_or(|at| at < mark.before)) {
            return Some(Reason::RevokedToken);
        }
        self.of_workload(actor)
    }

    /// Why a workload does not count any more, whatever it shows, if so.
    pub(super) fn of_workload(&self, workload: &str) -> Option<Reason> {
        let revoked = !self.targets.is_empty() && self.targets.get(&digest("workload", &[workload])).is_some();
        revoked.then_some(Reason::RevokedWorkload)
    }

    /// Why a certificate does not count any more, if so.
    pub(super) fn of_certificate(&self, workload: &str, serial: &str, issuer: &str) -> Option<Reason> {
        if self.targets.is_empty() {
            return None;
        }
        let issuer_revoked = || self.targets.get(&digest("issuer", &[issuer])).is_some();
        let of_workload = || self.of_workload(workload);
        self.of_serial(serial).or_else(of_workload).or_else(|| issuer_revoked().then_some(Reason::RevokedIssuer))
    }

    /// Why the certificates with this serial number do not count any more, if so.
    pub(super) fn of_serial(&self, serial: &str) -> Option<Reason> {
        let revoked = !self.targets.is_empty() && self.targets.get(&digest("certificate", &[serial])).is_some();
        revoked.then_some(Reason::RevokedKey)
    }

    pub(super) fn canonical(&self) -> Vec<String> {
        let mut lines: Vec<String> = self.by_id.iter().map(|(_, r)| format!("{r:?}")).collect();
        lines.sort_unstable();
        lines
    }

    fn rebuild(&mut self, version: u64) {
        self.targets = ShardedMap::new(version);
        self.grants = ShardedMap::new(version);
        let all: Vec<Arc<Revocation>> = self.by_id.iter().map(|(_, r)| Arc::clone(r)).collect();
        for revocation in all {
            self.index(&revocation.target, version);
        }
    }

    fn index(&mut self, target: &Target, version: u64) {
        if let Target::Grant { grant } = target {
            self.grants.update(*grant.0.as_bytes(), version, |n| *n = n.saturating_add(1), |_| true);
            return;
        }
        let before = if let Target::TokensBefore { before, .. } = target { *before } else { Timestamp::MAX };
        let latest = |mark: &mut Mark| mark.before = mark.before.max(before);
        self.targets.update(digest_of(target), version, latest, |_| true);
    }
}

// === impl TokenMarks ===

impl TokenMarks {
    /// `workload` is whose token it is, as far as is known: its SPIFFE ID.
    pub(super) fn of(token: &VerifiedToken, workload: Option<&str>) -> Self {
        // A token of nobody is refused anyway; its subject stands in.
        let workload = workload.unwrap_or(&token.subject);
        let bound = |uid: &Arc<str>| digest("bound_object", &[&token.issuer, uid]);
        Self {
            token: token.jti.as_deref().map(|jti| digest("token", &[&token.issuer, jti])),
            workload: digest("workload", &[workload]),
            issuer: digest("issuer", &[&token.issuer]),
            key: digest("key", &[&token.issuer, &token.kid]),
            tokens_before: digest("tokens_before", &[workload]),
            bound_objects: token.bound_objects.iter().map(bound).collect(),
        }
    }
}

fn digest_of(target: &Target) -> Key {
    match target {
        Target::Token { issuer, jti } => digest("token", &[issuer, jti]),
        Target::TokensBefore { workload, .. } => digest("tokens_before", &[workload.as_str()]),
        Target::Workload { workload } => digest("workload", &[workload.as_str()]),
        Target::Issuer { issuer } => digest("issuer", &[issuer]),
        Target::Key { issuer, kid } => digest("key", &[issuer, kid]),
        Target::BoundObject { issuer, uid } => digest("bound_object", &[issuer, uid]),
        // However it is spelt.
        Target::Certificate { serial } => {
            digest("certificate", &[&*certificate_serial(serial).unwrap_or_else(|| serial.clone())])
        }
        Target::Grant { grant } => *grant.0.as_bytes(),
        Target::Delegator { workload } => digest("delegator", &[workload.as_str()]),
    }
}

/// Typed and length-prefixed, so that no two targets share an encoding.
pub(super) fn digest(kind: &str, parts: &[&str]) -> Key {
    let mut text = String::with_capacity(128);
    for part in std::iter::once(&kind).chain(parts) {
        text.push_str(&part.len().to_string());
        text.push(':');
        text.push_str(part);
    }
    WorkloadKey::of(&text).0
}
