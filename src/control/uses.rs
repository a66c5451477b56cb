//! Hands out the uses of grants to enforcement points, and takes back what they do not spend.
//!
//! Plane: control. The rules are `grant::ledger`'s; this makes them durable: an answer leaves only after the book that it
//! rests on is committed, on top of the very version that it was reckoned from, together with the end of the grant when its
//! last use is spent. Reports on one grant that come while another is being committed share the next commit. Fails closed:
//! what cannot be committed is not answered, and the enforcement point has nothing to spend.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;

use super::commit::CommitError;
use super::core::{Core, Intent, Plan};
use super::index::{Index, Stored};
use super::store::{Expect, Guard, Write};
use crate::clock::Timestamp;
use crate::credential::SpiffeId;
use crate::grant::ledger::{self, Forfeit, Lost, Terms, UseAnswer, UseReport};
use crate::object::{Allotments, Grant, GrantId, Kind, Object};
use crate::telemetry::ControlMetrics;

/// How long uses may be held before they are given back.
pub const LEASE: Duration = Duration::from_secs(5);
/// How often it is looked for accounts that have been silent for too long.
const PERIOD: Duration = Duration::from_secs(1);
/// How many reports share a commit.
const BATCH: usize = 256;

/// The books of all grants.
#[derive(Debug)]
pub struct Uses {
    core: Arc<Core>,
    metrics: Arc<ControlMetrics>,
    terms: Terms,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// Reports that wait for the commit before theirs. A grant is here while somebody works on it.
    waiting: HashMap<GrantId, Vec<Job>>,
    /// When the books of grants are to be looked at.
    due: HashMap<GrantId, Timestamp>,
}

#[derive(Debug)]
struct Job {
    holder: SpiffeId,
    services: Arc<[Box<str>]>,
    report: UseReport,
    reply: oneshot::Sender<UseAnswer>,
}

// === impl Uses ===

impl Uses {
    /// The books in the core's store. From now on reports are heard.
    pub fn new(core: Arc<Core>, lease: Duration, metrics: Arc<ControlMetrics>) -> Arc<Self> {
        let terms = Terms { lease, since: core.clock().now().wall };
        let mut inner = Inner::default();
        for stored in core.index().list(Kind::Allotment) {
            if let Some(Object::Allotment(book)) = &stored.object {
                inner.due.extend(ledger::next_sweep(book, terms).map(|at| (book.grant, at)));
            }
        }
        Arc::new(Self { core, metrics, terms, inner: Mutex::new(inner) })
    }

    /// How long uses may be held.
    pub const fn lease(&self) -> Duration {
        self.terms.lease
    }

    /// Takes in what an enforcement point that protects `services` reports; `None` when that could not be made durable.
    pub async fn report(
        self: &Arc<Self>,
        holder: &SpiffeId,
        services: Arc<[Box<str>]>,
        grant: GrantId,
        report: UseReport,
    ) -> Option<UseAnswer> {
        let (reply, answer) = oneshot::channel();
        let job = Job { holder: holder.clone(), services, report, reply };
        let leads = match self.lock().waiting.entry(grant) {
            std::collections::hash_map::Entry::Occupied(mut waiting) => {
                waiting.get_mut().push(job);
                false
            }
            std::collections::hash_map::Entry::Vacant(slot) => {
                slot.insert(vec![job]);
                true
            }
        };
        if leads {
            // On a task of its own: who asked may go away, and others wait.
            tokio::spawn(Arc::clone(self).work(grant));
        }
        answer.await.ok()
    }

    /// Deals with what waits for one grant until nothing does.
    async fn work(self: Arc<Self>, grant: GrantId) {
        loop {
            let jobs: Vec<Job> = {
                let mut inner = self.lock();
                let Some(waiting) = inner.waiting.get_mut(&grant) else { return };
                if waiting.is_empty() {
                    inner.waiting.remove(&grant);
                    return;
                }
                let some = waiting.len().min(BATCH);
                waiting.drain(..some).collect()
            };
            let settled = self.transact(grant, |index, now| plan(index, grant, &jobs, now, self.terms)).await;
            match settled {
                Ok(answers) => {
                    for (job, answer) in jobs.into_iter().zip(answers) {
                        let _gone = job.reply.send(answer);
                    }
                }
                // Unanswered: they ask again.
                Err(error) => tracing::warn!(%error, %grant, "uses of a grant could not be handed out"),
            }
        }
    }

    async fn transact<T: Send>(
        &self,
        grant: GrantId,
        mut plan: impl FnMut(&Index, Timestamp) -> Plan<(T, Vec<Forfeit>)> + Send,
    ) -> Result<T, CommitError> {
        let intent = Intent::system("system", "grant.use");
        let clock = self.core.clock();
        let planned = |index: &Index| Ok::<_, CommitError>(plan(index, clock.now().wall));
        let (_, (answer, forfeited)) = self.core.transact(&intent, planned).await?;
        self.tell(grant, &forfeited);
        let due = Found::of(self.core.index(), grant).book().and_then(|book| ledger::next_sweep(book, self.terms));
        let mut inner = self.lock();
        match due {
            Some(at) => inner.due.insert(grant, at),
            None => inner.due.remove(&grant),
        };
        drop(inner);
        Ok(answer)
    }

    /// Closes accounts that have been silent for too long, until it is dropped.
    pub async fn run(self: Arc<Self>) {
        let mut ticks = tokio::time::interval(PERIOD);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            self.sweep().await;
        }
    }

    /// Closes those that have been by now.
    pub async fn sweep(&self) {
        let now = self.core.clock().now().wall;
        let due: Vec<GrantId> = {
            let inner = self.lock();
            inner.due.iter().filter(|(_, at)| **at <= now).map(|(grant, _)| *grant).collect()
        };
        for grant in due {
            if let Err(error) = self.transact(grant, |index, now| sweep(index, grant, now, self.terms)).await {
                tracing::warn!(%error, %grant, "accounts of uses could not be closed; trying again");
            }
        }
    }

    /// Says, once and after it is committed, what was lost.
    fn tell(&self, grant: GrantId, forfeited: &[Forfeit]) {
        for Forfeit { holder, uses, lost } in forfeited {
            let reason = match lost {
                Lost::Silent => "its holder was silent past the lease: it was killed, or cut off",
                Lost::Restart => "its holder has not come back since the control plane started",
            };
            tracing::warn!(%grant, uses, %holder, reason, "uses of a grant are forfeited and count as spent");
            self.metrics.uses_forfeited(*lost, *uses);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes reports in, one after the other.
fn plan(
    index: &Index,
    id: GrantId,
    jobs: &[Job],
    now: Timestamp,
    terms: Terms,
) -> Plan<(Vec<UseAnswer>, Vec<Forfeit>)> {
    let found = Found::of(index, id);
    let mut grant = found.grant().cloned();
    let mut book = found.book().cloned();
    let mut answers = Vec::with_capacity(jobs.len());
    let (mut changed, mut over, mut forfeited) = (false, false, Vec::new());
    for job in jobs {
        // INVARIANT: nobody learns of, or takes from, a grant that is not on a service of theirs.
        let serves = |service: &str| job.services.iter().any(|s| **s == *service);
        let theirs = |grant: &&mut Grant| grant.resources.iter().any(|resource| serves(&resource.service));
        let Some(grant) = grant.as_mut().filter(theirs) else {
            answers.push(UseAnswer::Closed);
            continue;
        };
        let settled = ledger::settle(book.as_ref(), grant, &job.holder, &job.report, now, terms);
        forfeited.extend(settled.forfeited);
        if settled.exhausted {
            *grant = ledger::exhausted(grant, now);
            over = true;
        }
        if let Some(next) = settled.next {
            (book, changed) = (Some(next), true);
        }
        answers.push(settled.answer);
    }
    found.write(Plan::new((answers, forfeited)), book.filter(|_| changed), grant.filter(|_| over))
}

fn sweep(index: &Index, id: GrantId, now: Timestamp, terms: Terms) -> Plan<((), Vec<Forfeit>)> {
    let nothing = || Plan::new(((), Vec::new()));
    let found = Found::of(index, id);
    let (Some(grant), Some(book)) = (found.grant(), found.book()) else { return nothing() };
    let Some(settled) = ledger::sweep(book, grant, now, terms) else { return nothing() };
    let over = settled.exhausted.then(|| ledger::exhausted(grant, now));
    found.write(Plan::new(((), settled.forfeited)), settled.next, over)
}

/// A grant and its book as they are stored.
struct Found {
    grant: Option<Arc<Stored>>,
    book: Option<Arc<Stored>>,
}

// === impl Found ===

impl Found {
    fn of(index: &Index, id: GrantId) -> Self {
        let key = id.to_string();
        Self { grant: index.get(Kind::Grant, &key), book: index.get(Kind::Allotment, &key) }
    }

    fn grant(&self) -> Option<&Grant> {
        match self.grant.as_ref()?.object.as_ref()? {
            Object::Grant(grant) => Some(grant),
            _ => None,
        }
    }

    fn book(&self) -> Option<&Allotments> {
        match self.book.as_ref()?.object.as_ref()? {
            Object::Allotment(book) => Some(book),
            _ => None,
        }
    }

    /// A plan that writes the next versions of them, if these are still the last.
    fn write<T>(&self, mut plan: Plan<T>, book: Option<Allotments>, grant: Option<Grant>) -> Plan<T> {
        if book.is_none() && grant.is_none() {
            return plan;
        }
        let expect =
            |stored: &Option<Arc<Stored>>| stored.as_ref().map_or(Expect::Absent, |s| Expect::Revision(s.revision));
        if let Some(book) = book {
            plan = plan.write(Write::put(&Object::Allotment(Box::new(book)), expect(&self.book)));
        }
        match (grant, &self.grant) {
            (Some(grant), known) => plan.write(Write::put(&Object::Grant(Box::new(grant)), expect(known))),
            (None, Some(known)) => {
                let (kind, key, expect) = (Kind::Grant, known.key.to_string(), expect(&self.grant));
                plan.guard(Guard::Object { kind, key, expect })
            }
            (None, None) => plan,
        }
    }
}

#[cfg(test)]
mod tests;
