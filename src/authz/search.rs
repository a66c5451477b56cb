//! Searches: which subjects, resources or actions an evaluation would allow.
//!
//! Pure. INVARIANT: what is found is what [`evaluate`] allows, by the same state, asked by the same application: candidates
//! are only those it may ask about. Bounded: so many candidates are looked at for one page, and the next begins behind the
//! last of them. Finds nothing where the state cannot be relied on.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::asker::Asker;
use super::engine::{Inputs, NoMemo};
use super::evaluation::{About, AboutResource, Evaluation, evaluate};

/// How many candidates are looked at for one page.
pub const MAX_EXAMINED: usize = 1000;

/// A page of a search.
#[derive(Debug, Clone, Copy)]
pub struct Search<'a> {
    /// What is the same for all candidates.
    pub evaluation: &'a Evaluation<'a>,
    /// Who asks.
    pub asker: Asker<'a>,
    /// The last candidate of the page before; empty for the first page.
    pub after: &'a str,
    /// How many may be found, at least one.
    pub limit: usize,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Found {
    /// SPIFFE IDs, names of routes or services, or names of actions; in their order.
    pub names: Vec<Arc<str>>,
    /// The last candidate that was looked at, if there are more.
    pub next: Option<Arc<str>>,
}

// === impl Search ===

impl Search<'_> {
    /// The workloads whose ids begin with `prefix` that are allowed.
    pub fn subjects(&self, prefix: &str, inputs: Inputs<'_>) -> Found {
        let Some(snapshot) = inputs.snapshot else { return Found::default() };
        let ids = snapshot.workloads.iter().map(|(_, workload)| &workload.id);
        let may = |id: &&Arc<str>| {
            let rest = id.strip_prefix(prefix);
            rest.is_some_and(|rest| prefix.is_empty() || is_one_segment(rest)) && self.asker.may_assert(id)
        };
        self.page(ids.filter(may), |id| {
            let mut evaluation = Evaluation { subject: About::Workload(id), ..self.evaluation.clone() };
            // As an evaluation of what was found would say it.
            let [_, said] = &mut evaluation.asked.subject;
            *said = id.strip_prefix(prefix).unwrap_or(id).to_owned();
            self.is_allowed(&evaluation, inputs)
        })
    }

    /// The routes that are allowed, by name.
    pub fn routes(&self, inputs: Inputs<'_>) -> Found {
        let Some(snapshot) = inputs.snapshot else { return Found::default() };
        let table = &snapshot.routes.table;
        let names = table.names(None).filter(|name| table.named(name, self.evaluation.action).is_some());
        self.page(names, |name| self.is_allowed(&self.about(AboutResource::Route(name), name), inputs))
    }
    /// The services that are allowed, each by the one route that has the action.
    pub fn services(&self, inputs: Inputs<'_>) -> Found {
        let Some(snapshot) = inputs.snapshot else { return Found::default() };
        let table = &snapshot.routes.table;
        let service = |name: &Arc<str>| name.split_once('/').map(|(service, _)| Arc::<str>::from(service));
        let with_action = table.names(None).filter(|name| table.named(name, self.evaluation.action).is_some());
        let services: BTreeSet<Arc<str>> = with_action.filter_map(service).collect();
        self.page(services.iter(), |name| self.is_allowed(&self.about(AboutResource::Service(name), name), inputs))
    }

    /// The actions that are allowed on the resource.
    pub fn actions(&self, inputs: Inputs<'_>) -> Found {
        let Some(snapshot) = inputs.snapshot else { return Found::default() };
        let table = &snapshot.routes.table;
        let actions: BTreeSet<Arc<str>> = match self.evaluation.resource {
            AboutResource::Route(name) => table.actions(name).map(|route| Arc::clone(&route.action)).collect(),
            AboutResource::Service(service) => {
                let routes = table.names(Some(service)).flat_map(|name| table.actions(name));
                routes.map(|route| Arc::clone(&route.action)).collect()
            }
            AboutResource::Nothing => BTreeSet::new(),
        };
        self.page(actions.iter(), |action| {
            let evaluation = Evaluation { action, ..self.evaluation.clone() };
            self.is_allowed(&evaluation, inputs)
        })
    }

    fn about<'c>(&'c self, resource: AboutResource<'c>, name: &str) -> Evaluation<'c> {
        let mut evaluation = Evaluation { resource, ..self.evaluation.clone() };
        let [_, said] = &mut evaluation.asked.resource;
        name.clone_into(said);
        evaluation
    }

    fn is_allowed(&self, evaluation: &Evaluation<'_>, inputs: Inputs<'_>) -> bool {
        evaluate(evaluation, self.asker, inputs, &NoMemo).permit().is_some()
    }

    fn page<'c>(
        &self,
        candidates: impl Iterator<Item = &'c Arc<str>>,
        is_allowed: impl Fn(&Arc<str>) -> bool,
    ) -> Found {
        // The first of those that are left, in order: never more than are looked at, and one to know whether there are more.
        let mut first: BTreeSet<&Arc<str>> = BTreeSet::new();
        for name in candidates.filter(|name| ***name > *self.after) {
            first.insert(name);
            if first.len() > MAX_EXAMINED + 1 {
                first.pop_last();
            }
        }
        let (mut names, mut last) = (Vec::new(), None);
        for name in first.iter().copied().take(MAX_EXAMINED) {
            if names.len() >= self.limit.max(1) {
                break;
            }
            last = Some(name);
            if is_allowed(name) {
                names.push(Arc::clone(name));
            }
        }
        let is_not_the_end = |last: &&Arc<str>| first.last().is_some_and(|end| *end > *last);
        Found { names, next: last.filter(is_not_the_end).cloned() }
    }
}

fn is_one_segment(rest: &str) -> bool {
    !rest.is_empty() && !rest.contains('/')
}
