//! Everything that has been revoked, looked up by digests that are computed once per token.
//!
//! Pure. Checked on every request, before any cache of decisions: a revocation beats every allow. What is forgotten when
//! the control plane compacts is taken back one by one, each as cheaply as it was added. Holds what enforcement needs of a
//! revocation and nothing else: digests and a time.

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
    by_id: ShardedMap<Revoked>,
    targets: ShardedMap<Mark>,
    /// How many revocations name each grant.
    grants: ShardedMap<u32>,
}

/// What one revocation ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Revoked {
    /// The id of a grant, or the digest of any other target.
    target: Key,
    is_grant: bool,
    /// Tokens from before this time are revoked; [`Timestamp::MAX`] for targets that are more than that.
    before: Timestamp,
}

/// What is known of one target: for most that it is revoked, for tokens of a workload until when. One time for each
/// revocation, sorted, so that one of several can be forgotten.
#[derive(Debug, Clone, Default)]
struct Mark {
    before: SmallVec<[Timestamp; 2]>,
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

    pub(super) fn put(&mut self, revocation: &Revocation, version: u64) {
        let id = revocation.id.as_bytes();
        let revoked = Revoked::of(&revocation.target);
        if self.by_id.get(id) == Some(&revoked) {
            return;
        }
        self.remove(id, version);
        self.by_id.insert(*id, revoked, version);
        let Revoked { target, is_grant, before } = revoked;
        if is_grant {
            self.grants.update(target, version, |n| *n = n.saturating_add(1), |_| true);
        } else {
            let add = |mark: &mut Mark| mark.before.insert(mark.before.partition_point(|b| *b < before), before);
            self.targets.update(target, version, add, |_| true);
        }
    }

    pub(super) fn remove(&mut self, id: &Key, version: u64) {
        let Some(Revoked { target, is_grant, before }) = self.by_id.remove(id, version) else { return };
        if is_grant {
            self.grants.update(target, version, |n| *n = n.saturating_sub(1), |n| *n > 0);
        } else {
            let take = |mark: &mut Mark| {
                if let Ok(place) = mark.before.binary_search(&before) {
                    mark.before.remove(place);
                }
            };
            self.targets.update(target, version, take, |mark| !mark.before.is_empty());
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
            if issued_at.is_none_or(|at| at < mark.latest()) {
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
        if ended.is_some_and(|mark| issued_at.is_none_or(|at| at < mark.latest())) {
            return Some(Reason::RevokedToken);
        }
        self.of_workload(actor)
    }

    /// Why a workload does not count any more, whatever it shows, if so.
    pub(super) fn of_workload(&self, workload: &str) -> Option<Reason> {
        let revoked = !self.targets.is_empty() && self.targets.get(&digest("workload", &[workload])).is_some();
        revoked.then_some(Reason::RevokedWorkload)
    }

    /// Whether an issuer has been revoked.
    pub(super) fn is_issuer_revoked(&self, issuer: &str) -> bool {
        !self.targets.is_empty() && self.targets.get(&digest("issuer", &[issuer])).is_some()
    }

    /// Why a certificate does not count any more, if so.
    pub(super) fn of_certificate(&self, workload: &str, serial: &str, issuer: &str) -> Option<Reason> {
        if self.targets.is_empty() {
            return None;
        }
        let issuer_revoked = || self.is_issuer_revoked(issuer);
        let of_workload = || self.of_workload(workload);
        self.of_serial(serial).or_else(of_workload).or_else(|| issuer_revoked().then_some(Reason::RevokedIssuer))
    }

    /// Why the certificates with this serial number do not count any more, if so.
    pub(super) fn of_serial(&self, serial: &str) -> Option<Reason> {
        let revoked = !self.targets.is_empty() && self.targets.get(&digest("certificate", &[serial])).is_some();
        revoked.then_some(Reason::RevokedKey)
    }

    pub(super) fn canonical(&self) -> Vec<String> {
        let line = |(id, revoked): (&Key, &Revoked)| format!("{id:?} {revoked:?}");
        let mut lines: Vec<String> = self.by_id.iter().map(line).collect();
        lines.sort_unstable();
        lines
    }
}

// === impl Revoked ===

impl Revoked {
    fn of(target: &Target) -> Self {
        let before = if let Target::TokensBefore { before, .. } = target { *before } else { Timestamp::MAX };
        Self { target: digest_of(target), is_grant: matches!(target, Target::Grant { .. }), before }
    }
}

// === impl Mark ===

impl Mark {
    fn latest(&self) -> Timestamp {
        self.before.last().copied().unwrap_or_default()
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn revocation(id: u128, (target, n): (u8, u64)) -> Revocation {
        let workload = format!("spiffe://a/w{n}");
        let target = match target {
            0 => json!({"kind": "token", "issuer": "i", "jti": n.to_string()}),
            1 | 2 => json!({"kind": "tokens_before", "workload": "spiffe://a/w", "before": Timestamp::from_secs(n)}),
            3 => json!({"kind": "grant", "grant": uuid::Uuid::from_u128(n.into())}),
            _ => json!({"kind": "workload", "workload": workload}),
        };
        let id = uuid::Uuid::from_u128(id * 0x1_0001);
        serde_json::from_value(json!({
            "id": id, "target": target, "created_by": "bob", "created_at": Timestamp::from_secs(1)
        }))
        .unwrap()
    }

    proptest! {
        /// After any sequence of additions, replacements and removals, what is revoked is what a set built from the
        /// rest alone says.
        #[test]
        fn forgetting_leaves_what_the_others_say(
            steps in prop::collection::vec((0..6u128, (0..5u8, 0..4u64), any::<bool>()), 1..40)
        ) {
            let mut revocations = Revocations::new(1);
            let mut list = std::collections::BTreeMap::new();
            for (id, target, remove) in steps {
                let revocation = revocation(id, target);
                if remove {
                    revocations.remove(revocation.id.as_bytes(), 2);
                    list.remove(&id);
                } else {
                    revocations.put(&revocation, 2);
                    list.insert(id, revocation);
                }
            }
            let mut rebuilt = Revocations::new(1);
            list.values().for_each(|r| rebuilt.put(r, 1));
            prop_assert_eq!(revocations.canonical(), rebuilt.canonical());
            prop_assert_eq!(revocations.len(), list.len());
            for n in 0..4u64 {
                let id = GrantId(uuid::Uuid::from_u128(n.into()));
                let expected = list.values().any(|r| r.target == Target::Grant { grant: id });
                prop_assert_eq!(revocations.is_grant_revoked(id), expected);
                let workload = format!("spiffe://a/w{n}");
                let ended = |r: &Revocation| matches!(&r.target, Target::Workload { workload: w } if w.as_str() == workload);
                prop_assert_eq!(revocations.of_workload(&workload).is_some(), list.values().any(ended));
                let at = Timestamp::from_secs(n);
                let earlier = |r: &Revocation| matches!(&r.target, Target::TokensBefore { before, .. } if at < *before);
                prop_assert_eq!(revocations.of_actor("spiffe://a/w", Some(at)).is_some(), list.values().any(earlier));
            }
        }
    }
}
