//! The last part of a decision: what grants, policy and the use limit say of a request whose parties are known.
//!
//! Pure. The subject is asked about, then whoever acts for it, and only what both may is allowed. INVARIANT: the use limit is
//! last, so that what is denied otherwise spends nothing.

use smallvec::SmallVec;

use super::authenticate::Caller;
use super::decision::{NeedsBody, Parts};
use super::engine::{Inputs, Memo, Mode};
use super::explain::Trace;
use super::question::Question;
use super::ready::Registered;
use super::reason::Reason;
use super::spend::{self, Side};
use crate::clock::Timestamp;
use crate::grant::WorkloadKey;

/// What is known when policy is asked.
pub(super) struct Case<'a> {
    /// Who acts for the subject, if somebody does.
    pub(super) actor: Option<(&'a Registered, WorkloadKey)>,
    pub(super) caller: &'a Caller,
    /// How long an answer is good at most.
    pub(super) until: Timestamp,
    pub(super) inputs: Inputs<'a>,
    pub(super) mode: Mode,
}

// === impl Case ===

impl Case<'_> {
    /// What comes of a question about the subject.
    #[inline]
    pub(super) fn conclude(
        &self,
        subject: Question<'_>,
        memo: &impl Memo,
        trace: &mut Trace,
        parts: &mut Parts,
    ) -> Reason {
        let Self { actor, caller, until, inputs, mode } = *self;
        let mut said = match caller.tie() {
            None => subject.answer(until, memo, trace, &mut parts.cached),
            Some(tie) => subject.answer_within(tie, until, memo, trace, &mut parts.cached),
        };
        let mut lacks_body = said.lacks_body;
        let mut sides = SmallVec::<[Side<'_>; 2]>::new();
        sides.push(Side { question: subject, grants: std::mem::take(&mut said.counted) });
        // Whoever acts for somebody may do what both may: the actor is asked about like the subject, with its own grants.
        if let Some((workload, key)) = actor.filter(|_| said.answer.reason.is_allow()) {
            let mut cached = false;
            let actor = Question { workload, key, ..subject };
            let mut of_actor = actor.answer(until, memo, trace, &mut cached);
            parts.cached &= cached;
            lacks_body |= of_actor.lacks_body;
            sides.push(Side { question: actor, grants: std::mem::take(&mut of_actor.counted) });
            // Of two that allow, the record names the one that took more.
            let tells_more = match (said.answer.reason, of_actor.answer.reason) {
                (Reason::AllowPolicy, _) | (_, Reason::AllowBreakGlass) => caller.tie().is_none(),
                _ => false,
            };
            if !of_actor.answer.reason.is_allow() || tells_more {
                said = of_actor;
            }
        }
        let mut answer = said.answer;
        // The use limit, last: what is denied otherwise spends nothing.
        sides.retain(|side| !side.grants.is_empty());
        if answer.reason.is_allow() && !sides.is_empty() && !matches!(mode, Mode::Open(_)) {
            answer = spend::spend(answer, &sides, inputs, mode, trace, parts);
        }
        let needs_body = lacks_body && !answer.reason.is_allow();
        parts.needs_body = needs_body.then_some(NeedsBody { proof_is_used: parts.proof_is_used });
        parts.grant = answer.grant;
        parts.policies = answer.policies;
        parts.grant_request = answer.grant_request;
        answer.reason
    }
}
