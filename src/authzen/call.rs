//! One call, from its credentials and its body to what is decided: by one state, on whatever thread.
//!
//! Synchronous; needs no runtime. The caller is authenticated before its body is parsed, and what is decided on once may be
//! decided on again elsewhere, where there is time to verify signatures. INVARIANT: whoever is not on the list learns nothing
//! of the body's subjects, and every evaluation of a listed caller has one decision.

use std::sync::Arc;

use bytes::Bytes;

use super::Config;
use super::body::{self, Batch, Part, Unreadable, Wanted};
use super::names::Caller;
use super::page::Page;
use crate::authz::{Asker, Decision, DecisionId, Deferred, MIN_REVISION_HEADER, Reason};
use crate::cache::{Gate, Held};
use crate::door::{Asked, Decided, Question};
use crate::wire::Position;

/// What is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Api {
    Evaluation,
    Evaluations,
    Search(Part),
}

/// A call.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) gate: Arc<Gate>,
    pub(super) config: Arc<Config>,
    /// The origins under which callers know this place.
    pub(super) origins: Arc<[Box<str>]>,
    /// Its request, for its credentials.
    pub(super) head: Asked,
    pub(super) body: Bytes,
    pub(super) api: Api,
}

/// What a call came to.
#[derive(Debug)]
pub(super) enum Reached {
    /// Whoever calls shows no good credential, or is not on the list.
    Refused(Decision),
    /// The whole body cannot be read.
    Unreadable(Decision, Unreadable),
    Decided(Decisions),
    /// A search is to begin, which takes longer.
    Search(Box<Begun>),
}

/// Decisions, in the order of their evaluations.
#[derive(Debug)]
pub(super) struct Decisions {
    pub(super) all: Vec<Made>,
    pub(super) is_list: bool,
}

/// One decision, and what it was about.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) decision: Decision,
    pub(super) unreadable: Option<Unreadable>,
    pub(super) method: String,
    pub(super) path: String,
}

/// A search that its caller may make.
#[derive(Debug)]
pub(super) struct Begun {
    pub(super) asker: Arc<str>,
    pub(super) part: Part,
    pub(super) wanted: Wanted,
    pub(super) page: Page,
}

// === impl Api ===

impl Api {
    pub(super) fn of(path: &str) -> Option<Self> {
        Some(match path {
            "/access/v1/evaluation" => Self::Evaluation,
            "/access/v1/evaluations" => Self::Evaluations,
            "/access/v1/search/subject" => Self::Search(Part::Subject),
            "/access/v1/search/resource" => Self::Search(Part::Resource),
            "/access/v1/search/action" => Self::Search(Part::Action),
            _ => return None,
        })
    }
}

// === impl Call ===

impl Call {
    /// Decides; unless it may verify, not if that takes a public-key operation.
    pub(super) fn run(&self, may_verify: bool) -> Result<Reached, Deferred> {
        let held = self.gate.hold();
        let id = match held.asker(&self.head.lend(), &self.origins, may_verify)? {
            Ok(id) => id,
            Err(denied) => return Ok(Reached::Refused(denied)),
        };
        let Some(caller) = self.config.caller(&id) else {
            let denied = self.refuse(&id, Reason::PolicyNoMatch, "the workload is none of `authzen.callers`");
            return Ok(Reached::Refused(denied));
        };
        match self.read(&id) {
            Err(why) => Ok(Reached::Unreadable(self.refuse(&id, Reason::InputMalformed, &why), why)),
            Ok(Read::Search(begun)) => Ok(Reached::Search(begun)),
            Ok(Read::Batch(batch)) => {
                let asker = Asker { id: &id, may_assert: &caller.may_assert };
                self.decide_all(&held, batch, asker, may_verify).map(Reached::Decided)
            }
        }
    }

    fn read(&self, id: &Arc<str>) -> Result<Read, Unreadable> {
        let mut body = body::read(&self.body)?;
        match self.api {
            Api::Evaluations => Batch::read(body, &self.config).map(Read::Batch),
            Api::Evaluation => {
                body.remove("evaluations");
                body.remove("options");
                Batch::read(body, &self.config).map(Read::Batch)
            }
            Api::Search(part) => {
                let page = Page::read(&mut body, id, &self.head.path)?;
                let wanted = Wanted::read(body, Some(part), &self.config)?;
                Ok(Read::Search(Box::new(Begun { asker: Arc::clone(id), part, wanted, page })))
            }
        }
    }

    fn decide_all(
        &self,
        held: &Held<'_>,
        batch: Batch,
        asker: Asker<'_>,
        may_verify: bool,
    ) -> Result<Decisions, Deferred> {
        let min_revision = self.min_revision();
        let mut all = Vec::with_capacity(batch.all.len());
        for one in batch.all {
            let made = match one {
                Ok(wanted) => {
                    let mut evaluation = wanted.evaluation();
                    evaluation.min_revision = min_revision;
                    let decision = held.evaluate(&evaluation, asker, may_verify)?;
                    let (method, path) = wanted.told();
                    Made { decision, unreadable: None, method: method.to_owned(), path: path.to_owned() }
                }
                Err(why) => {
                    let decision = self.refuse(asker.id, Reason::InputMalformed, &why);
                    Made { decision, unreadable: Some(why), method: String::new(), path: String::new() }
                }
            };
            let ends = batch.is_list && batch.semantic.ends_with(made.decision.permit().is_some());
            all.push(made);
            if ends {
                break;
            }
        }
        Ok(Decisions { all, is_list: batch.is_list })
    }

    /// A malformed one was refused with the caller's credentials.
    fn min_revision(&self) -> Option<Position> {
        self.head.headers.get(MIN_REVISION_HEADER)?.to_str().ok()?.parse().ok()
    }

    fn refuse(&self, asker: &Arc<str>, reason: Reason, detail: &str) -> Decision {
        let id = DecisionId::new(self.gate.clock().now().wall);
        let mut decision = Decision::refuse(id, reason, detail);
        decision.asked_by = Some(Arc::clone(asker));
        decision
    }
}

/// What a body asks for.
enum Read {
    Batch(Batch),
    Search(Box<Begun>),
}

impl Question for Call {
    type Answer = Reached;

    /// On a thread that has time to verify. What is handed over decides on a single request, so it is not needed.
    fn decide<E>(
        &self,
        _by: impl FnOnce(&crate::authz::Request<'_>) -> Result<Decision, E>,
    ) -> Option<Result<Decided<Reached>, E>> {
        let answer = self.run(true).ok()?;
        let id = DecisionId::new(self.gate.clock().now().wall);
        let decision = Decision::refuse(id, Reason::SystemInternal, "the answer has the decisions");
        Some(Ok(Decided { decision, answer }))
    }
}

// === impl Config ===

impl Config {
    pub(super) fn caller(&self, id: &str) -> Option<&Caller> {
        self.callers.iter().find(|caller| caller.identity.as_str() == id)
    }
}
