//! The use limit: spends a use of a grant, as the last step of a decision that allows.
//!
//! Pure. INVARIANT: what is spent is spent before the allow is made, of every grant that the request takes a use of or of
//! none. What only looks spends nothing. If none is here, the answer is a denial that says whether waiting may help.

use std::sync::Arc;

use smallvec::SmallVec;

use super::decision::Parts;
use super::engine::{Inputs, Mode};
use super::explain::Trace;
use super::question::{Answer, Question, no_policies};
use super::reason::Reason;
use crate::grant::purse::Lacking;
use crate::object::GrantId;

/// The subject or the actor, and the grants of one of which its request takes a use.
pub(super) struct Side<'a> {
    pub(super) question: Question<'a>,
    pub(super) grants: Vec<GrantId>,
}

/// What becomes of an allow that takes a use for each side.
pub(super) fn spend(
    allow: Answer,
    sides: &[Side<'_>],
    inputs: Inputs<'_>,
    mode: Mode,
    trace: &mut Trace,
    parts: &mut Parts,
) -> Answer {
    // An application may ask as often as it wants, and nobody counts what it does then.
    if mode == Mode::Asks {
        let why = "the uses of the grant are counted, and only a request itself spends one";
        trace.step("uses", || why.to_owned());
        parts.detail = Some(Arc::from(why));
        let grant = allow.grant.or_else(|| sides.iter().find_map(|side| side.grants.first().copied()));
        return Answer { reason: Reason::EntitlementCondition, grant, policies: no_policies(), grant_request: None };
    }
    let Some(purse) = inputs.uses else {
        return Answer { reason: Reason::SystemInternal, grant: None, policies: no_policies(), grant_request: None };
    };
    let grants: SmallVec<[&[GrantId]; 2]> = sides.iter().map(|side| &*side.grants).collect();
    let lacking = match mode {
        Mode::Looks | Mode::Asks => grants.iter().find_map(|grants| purse.look(grants).err()),
        // What is not here yet may come before the call does.
        Mode::Lists => {
            let lacking = grants.iter().filter_map(|grants| purse.look(grants).err());
            lacking.into_iter().find(|lacking| matches!(lacking, Lacking::Exhausted(_)))
        }
        // Does not get here: its use has been spent.
        Mode::Open(_) => None,
        Mode::Decides | Mode::Again => match purse.spend(&grants, inputs.now.mono) {
            Ok(spent) => {
                trace.step("uses", || format!("a use was spent of {spent:?}"));
                let of_answer = |side: &(&Side<'_>, &GrantId)| allow.grant.is_some_and(|g| side.0.grants.contains(&g));
                let grant = sides.iter().zip(&spent).find(of_answer).map(|(_, spent)| *spent);
                return Answer { grant: grant.or(allow.grant), ..allow };
            }
            Err(lacking) => Some(lacking),
        },
    };
    match lacking {
        None => {
            trace.step("uses", || "a use would be spent".to_owned());
            allow
        }
        Some(Lacking::Exhausted(grant)) => {
            trace.step("uses", || format!("the last use of {grant} has been spent"));
            let side = sides.iter().find(|side| side.grants.contains(&grant));
            let grant_request = side.map(|side| side.question.hint());
            let reason = Reason::EntitlementGrantExhausted;
            Answer { reason, grant: Some(grant), policies: no_policies(), grant_request }
        }
        Some(Lacking::Awaited(grant, because)) => {
            let why = format!("no use of grant {grant} is here: {because}");
            trace.step("uses", || why.clone());
            (parts.awaits, parts.detail) = (Some(grant), Some(Arc::from(why)));
            let (reason, policies) = (Reason::SystemUses, no_policies());
            Answer { reason, grant: Some(grant), policies, grant_request: None }
        }
    }
}
