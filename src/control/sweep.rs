//! The sweeper: ends grants whose time is over, starts scheduled ones, lapses requests nobody approved, forgets what ended
//! long ago, and idempotency keys that were used long ago.
//!
//! Plane: control. Enforcement points look at `not_after` themselves, so a sweeper that is late never lengthens a grant;
//! one that was scheduled is not in force until the sweeper has found that it still may be. A forgotten grant takes the
//! revocations of itself along: its id is never used again.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use super::commit::CommitError;
use super::core::{Core, Intent, Plan};
use super::desk::{Desk, Limits};
use super::index::Index;
use super::operators::Operators;
use super::store::{Expect, Write};
use crate::clock::Timestamp;
use crate::grant;
use crate::object::{GrantState, Kind, Object, Target};

/// How many grants share a revision at most.
const BATCH: usize = 128;
/// How often it looks.
const PERIOD: Duration = Duration::from_secs(1);

/// When it looks again at a grant that is due and that it can do nothing about.
const LATER: Duration = Duration::from_secs(60);

/// Sweeps until it is dropped.
pub async fn run(core: Arc<Core>, operators: Arc<Operators>) {
    // Nothing is asked for here, so that the number of grants does not matter.
    let desk = Desk::new(operators, Limits::of(&core, 0));
    let mut ticks = tokio::time::interval(PERIOD);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let swept = async { Ok::<_, CommitError>(sweep(&core, &desk).await? + forget_keys(&core).await?) };
        if let Err(error) = swept.await {
            tracing::warn!(%error, "grants that are due could not be ended; trying again");
        }
    }
}

/// Deals with every grant that is due now; answers how many.
pub(super) async fn sweep(core: &Core, desk: &Desk) -> Result<usize, CommitError> {
    let mut total = 0;
    loop {
        let now = core.clock().now().wall;
        let keys = core.agenda().take(now, BATCH);
        if keys.is_empty() {
            return Ok(total);
        }
        desk.ready(core.index()).await;
        let intent = Intent::system("system", "grant.sweep");
        let result = core.transact(&intent, |index| Ok::<_, CommitError>(plan(core, desk, index, &keys, now))).await;
        match result {
            Ok((_, count)) => total += count,
            Err(error) => {
                core.agenda().put_back(keys, now);
                return Err(error);
            }
        }
    }
}

/// Forgets the idempotency keys that have been held long enough; answers how many.
pub async fn forget_keys(core: &Core) -> Result<usize, CommitError> {
    let mut total = 0;
    loop {
        let keys = core.agenda().keys().over(core.clock().now().wall, BATCH);
        if keys.is_empty() {
            return Ok(total);
        }
        let intent = Intent::system("system", "idempotency.sweep");
        let forget = |index: &Index| {
            let stored = keys.iter().filter_map(|key| index.get(Kind::Idempotency, key));
            let deletes = stored.map(|s| Write::delete(Kind::Idempotency, &*s.key, Expect::Revision(s.revision)));
            Ok::<_, CommitError>(Plan { guards: Vec::new(), changes: deletes.collect(), answer: () })
        };
        // What the index has no more, the book has no more either.
        let (committed, ()) = core.transact(&intent, forget).await?;
        if committed.is_none() {
            return Ok(total);
        }
        total += keys.len();
    }
}

fn plan(core: &Core, desk: &Desk, index: &Index, keys: &[Arc<str>], now: Timestamp) -> Plan<usize> {
    let retention = core.agenda().retention();
    let mut plan = Plan::new(0);
    let mut forgotten = HashSet::new();
    for key in keys {
        let Some(stored) = index.get(Kind::Grant, key) else { continue };
        let Some(Object::Grant(grant)) = &stored.object else { continue };
        let expect = Expect::Revision(stored.revision);
        if let Some(next) = grant::expire(grant, retention.pending, now) {
            plan.changes.push(Write::put(&Object::Grant(Box::new(next)), expect));
        } else if grant.state == GrantState::Scheduled
            && let Some((next, guards)) = desk.start(index, grant, now)
        {
            plan.guards.extend(guards);
            plan.changes.push(Write::put(&Object::Grant(Box::new(next)), expect));
        } else if grant.state.is_terminal() && retention.due(grant) <= now {
            plan.changes.push(Write::delete(Kind::Grant, &**key, expect));
            if let Some(book) = index.get(Kind::Allotment, key) {
                plan.changes.push(Write::delete(Kind::Allotment, &**key, Expect::Revision(book.revision)));
            }
            forgotten.insert(grant.id);
        } else {
            // Not due after all: it has changed since it was put on the agenda, or its next step is not a sweeper's.
            core.agenda().put_back(vec![Arc::clone(key)], retention.due(grant).max(now.saturating_add(LATER)));
        }
    }
    plan.answer = plan.changes.len();
    if !forgotten.is_empty() {
        for stored in index.list(Kind::Revocation) {
            if let Some(Object::Revocation(r)) = &stored.object
                && let Target::Grant { grant } = &r.target
                && forgotten.contains(grant)
            {
                plan.changes.push(Write::delete(Kind::Revocation, &*stored.key, Expect::Revision(stored.revision)));
            }
        }
    }
    plan
}
