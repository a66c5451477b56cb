//! Who acts for whom, by whose word, and how a token says so (RFC 8693, sections 4.1 and 4.4).
//!
//! Plane: control; pure. Nobody acts for a workload by holding its token alone: the subject's token says so (`may_act`), or
//! one of the two is registered with the other. INVARIANT: a `may_act` that names somebody else is a no, whatever is
//! registered; one that is not understood names nobody.

use serde_json::{Value, json};

use super::refusal::Refused;
use crate::authz::Reason;
use crate::control::index::Index;
use crate::control::rules::as_issuer;
use crate::control::workload_identity::Identified;
use crate::object::{Kind, MAX_DELEGATION_DEPTH, Workload};

/// Whether the workload of `actor` may act for that of `subject`.
pub(super) fn check(
    subject: &Identified,
    actor: &Identified,
    of_subject: &Workload,
    of_actor: &Workload,
    index: &Index,
) -> Result<(), Refused> {
    let refused = |why: &str| Err(Refused::denied(Reason::RevokedDelegator, why));
    if actor.actor.is_some() && actor.workload != subject.workload {
        return refused("the actor's token is of one that another acts for, of whom nothing says that it may act here");
    }
    let named = subject.token.may_act.as_deref().map(|may_act| {
        let issuer = index.get(Kind::Issuer, &actor.token.issuer);
        let iss = issuer.as_deref().and_then(as_issuer).and_then(|issuer| issuer.issuer.clone());
        let same = actor.token.kind.names_workload() || actor.token.issuer == subject.token.issuer;
        names(may_act, &actor.token.subject, iss.as_deref(), same)
    });
    match named {
        Some(false) => return refused("`may_act` of the subject's token does not name the actor"),
        Some(true) => {}
        None if of_actor.delegators.is_empty() && of_subject.actors.is_empty() => {
            return refused("nothing says that the actor may act for the subject: `may_act`, `delegators` or `actors`");
        }
        None => {}
    }
    if !of_subject.may_be_acted_for_by(of_actor) {
        return refused("the subject and the actor are not registered so that one acts for the other");
    }
    Ok(())
}

/// Whether a `may_act` means the one with this `sub`, in tokens of the issuer with this `iss`. `same`: a `sub` without an
/// `iss` means this one, because it is of the same issuer as the `may_act` or means the same everywhere.
fn names(may_act: &Value, sub: &str, iss: Option<&str>, same: bool) -> bool {
    let Some(members) = may_act.as_object() else { return false };
    let agrees = |(name, value): (&String, &Value)| match name.as_str() {
        "sub" => value.as_str() == Some(sub),
        "iss" => iss.is_some() && value.as_str() == iss,
        _ => false,
    };
    members.contains_key("sub") && (same || members.contains_key("iss")) && members.iter().all(agrees)
}

/// The `act` of the new token: whoever holds it, and behind that whoever acted before.
pub(super) fn chain(subject: &Identified, actor: Option<&Identified>) -> Result<Option<Value>, Refused> {
    let mut earlier: Vec<&str> = subject.token.actors.iter().skip(1).map(|actor| &*actor.subject).collect();
    let mut current: Vec<&str> = subject.actor.iter().map(crate::credential::SpiffeId::as_str).collect();
    if let Some(actor) = actor {
        // Who acts for the actor holds the token, then the actor, then whoever acted before.
        let of_actor = [actor.actor.as_ref(), Some(&actor.workload)].into_iter().flatten();
        drop(current.splice(0..0, of_actor.map(crate::credential::SpiffeId::as_str)));
    }
    current.append(&mut earlier);
    if current.len() > usize::from(MAX_DELEGATION_DEPTH) {
        return Err(Refused::request(format!("more than {MAX_DELEGATION_DEPTH} workloads act one for another")));
    }
    Ok(current.iter().rev().fold(None, |inner: Option<Value>, sub| {
        Some(match inner {
            None => json!({ "sub": sub }),
            Some(inner) => json!({ "sub": sub, "act": inner }),
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn may_act_names_one_by_what_is_understood() {
        let sub = "spiffe://a.example/agent";
        for (may_act, means) in [
            (json!({"sub": sub}), true),
            (json!({"sub": sub, "iss": "https://idp.example"}), true),
            (json!({"sub": sub, "iss": "https://other.example"}), false),
            (json!({"sub": "spiffe://a.example/other"}), false),
            (json!({"sub": sub, "client_id": "agent"}), false),
            (json!({"iss": "https://idp.example"}), false),
            (json!({}), false),
            (json!("agent"), false),
        ] {
            assert_eq!(names(&may_act, sub, Some("https://idp.example"), true), means, "{may_act}");
        }
        assert!(!names(&json!({"sub": sub, "iss": "x"}), sub, None, true), "a trust domain has no `iss`");
        let elsewhere = |may_act: Value| names(&may_act, "agent-1", Some("https://idp.example"), false);
        assert!(!elsewhere(json!({"sub": "agent-1"})), "another issuer's `agent-1` is another one");
        assert!(elsewhere(json!({"sub": "agent-1", "iss": "https://idp.example"})));
    }
}
