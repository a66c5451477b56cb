//! One call, from its credentials and its body to what is decided: by one state, on whatever thread.
//!
//! Synchronous; needs no runtime. The caller is authenticated by its headers before there is a body, and again, without its
//! proof, by the state that decides; what is decided on once may be decided on again elsewhere, where there is time to verify
//! signatures. INVARIANT: whoever is not on the list learns nothing of the body's subjects, and every evaluation of a listed
//! caller has one decision.

use std::sync::Arc;

use bytes::Bytes;

use super::Config;
use super::body::{self, Batch, Part, Unreadable, Wanted};
use super::names::Caller;
use super::page::Page;
use crate::authz::{Asker, Decision, DecisionId, Deferred, Reason, min_revision};
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

/// Tokens of subjects that nobody has seen before and that one call may have verified: each takes a public-key operation.
pub(super) const MAX_UNSEEN: usize = 10;

/// A call before its body.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) gate: Arc<Gate>,
    pub(super) config: Arc<Config>,
    /// The origins under which callers know this place.
    pub(super) origins: Arc<[Box<str>]>,
    /// Its request, for its credentials.
    pub(super) head: Asked,
}

/// A call of one whom [`Entry::admit`] has admitted.
#[derive(Debug)]
pub(super) struct Call {
    pub(super) entry: Arc<Entry>,
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
    /// The state must be at least that fresh.
    pub(super) least: Option<Position>,
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

// === impl Entry ===

impl Entry {
    /// The denial of a caller that shows no good credential or is not on the list; unless it may verify, not if that takes a
    /// public-key operation.
    pub(super) fn admit(&self, may_verify: bool) -> Result<Option<Decision>, Deferred> {
        Ok(match self.gate.hold().asker(&self.head.lend(), &self.origins, may_verify)? {
            Ok(id) if self.config.caller(&id).is_some() => None,
            Ok(id) => Some(self.not_listed(&id)),
            Err(denied) => Some(denied),
        })
    }

    fn not_listed(&self, id: &Arc<str>) -> Decision {
        self.refuse(id, Reason::PolicyNoMatch, "the workload is none of `authzen.callers`")
    }

    fn refuse(&self, asker: &Arc<str>, reason: Reason, detail: &str) -> Decision {
        let id = DecisionId::new(self.gate.clock().now().wall);
        let mut decision = Decision::refuse(id, reason, detail);
        decision.asked_by = Some(Arc::clone(asker));
        decision
    }

    /// A decision where an answer says all there is.
    fn placeholder(&self) -> Decision {
        let id = DecisionId::new(self.gate.clock().now().wall);
        Decision::refuse(id, Reason::SystemInternal, "the answer has the decisions")
    }
}

// === impl Call ===

impl Call {
    /// Decides; unless it may verify, not if that takes a public-key operation.
    pub(super) fn run(&self, may_verify: bool) -> Result<Reached, Deferred> {
        let entry = &*self.entry;
        let held = entry.gate.hold();
        let head = entry.head.lend();
        // INVARIANT: the state that decides knows nothing against the caller, however long its body took to arrive.
        let id = match held.asker_again(&head, may_verify)? {
            Ok(id) => id,
            Err(denied) => return Ok(Reached::Refused(denied)),
        };
        let Some(caller) = entry.config.caller(&id) else {
            return Ok(Reached::Refused(entry.not_listed(&id)));
        };
        let least = min_revision(&head);
        match self.read(&id, least) {
            Err(why) => Ok(Reached::Unreadable(entry.refuse(&id, Reason::InputMalformed, &why), why)),
            Ok(Read::Search(begun)) => Ok(Reached::Search(begun)),
            Ok(Read::Batch(batch)) => {
                let asker = Asker { id: &id, may_assert: &caller.may_assert };
                self.decide_all(&held, batch, (asker, least), may_verify).map(Reached::Decided)
            }
        }
    }

    fn read(&self, id: &Arc<str>, least: Option<Position>) -> Result<Read, Unreadable> {
        let Entry { config, head, .. } = &*self.entry;
        let mut body = body::read(&self.body)?;
        match self.api {
            Api::Evaluations => Batch::read(body, config).map(Read::Batch),
            Api::Evaluation => {
                body.remove("evaluations");
                body.remove("options");
                Batch::read(body, config).map(Read::Batch)
            }
            Api::Search(part) => {
                let page = Page::read(&mut body, id, &head.path)?;
                let wanted = Wanted::read(body, Some(part), config)?;
                Ok(Read::Search(Box::new(Begun { asker: Arc::clone(id), part, wanted, page, least })))
            }
        }
    }

    fn decide_all(
        &self,
        held: &Held<'_>,
        batch: Batch,
        (asker, least): (Asker<'_>, Option<Position>),
        may_verify: bool,
    ) -> Result<Decisions, Deferred> {
        let mut unseen = 0;
        let mut all = Vec::with_capacity(batch.all.len());
        for one in batch.all {
            let made = match one {
                Ok(wanted) => {
                    let mut evaluation = wanted.evaluation();
                    evaluation.min_revision = least;
                    let decision = match held.evaluate(&evaluation, asker, false) {
                        Ok(decision) => decision,
                        Err(deferred) if !may_verify => return Err(deferred),
                        Err(_deferred) if unseen >= MAX_UNSEEN => {
                            let why = "too many tokens that were not seen before, in one call";
                            self.entry.refuse(asker.id, Reason::SystemOverload, why)
                        }
                        Err(_deferred) => {
                            unseen += 1;
                            held.evaluate(&evaluation, asker, true)?
                        }
                    };
                    let (method, path) = wanted.told();
                    Made { decision, unreadable: None, method: method.to_owned(), path: path.to_owned() }
                }
                Err(why) => {
                    let decision = self.entry.refuse(asker.id, Reason::InputMalformed, &why);
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
}

/// What a body asks for.
enum Read {
    Batch(Batch),
    Search(Box<Begun>),
}

impl Question for Entry {
    type Answer = Option<Decision>;

    /// On a thread that has time to verify. What is handed over decides on a single request, so it is not needed.
    fn decide<E>(
        &self,
        _by: impl FnOnce(&crate::authz::Request<'_>) -> Result<Decision, E>,
    ) -> Option<Result<Decided<Self::Answer>, E>> {
        let answer = self.admit(true).ok()?;
        Some(Ok(Decided { decision: self.placeholder(), answer }))
    }
}

impl Question for Call {
    type Answer = Reached;

    /// The same.
    fn decide<E>(
        &self,
        _by: impl FnOnce(&crate::authz::Request<'_>) -> Result<Decision, E>,
    ) -> Option<Result<Decided<Reached>, E>> {
        let answer = self.run(true).ok()?;
        Some(Ok(Decided { decision: self.entry.placeholder(), answer }))
    }
}

// === impl Config ===

impl Config {
    pub(super) fn caller(&self, id: &str) -> Option<&Caller> {
        self.callers.iter().find(|caller| caller.identity.as_str() == id)
    }
}
