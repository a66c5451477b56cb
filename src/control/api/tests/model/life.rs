//! The model: what the life of grants and workloads should be, slowly and obviously. Knows nothing of the code that it
//! judges, beside the names of the states.

use std::time::Duration;

use super::step::Ask;
use crate::clock::Timestamp;
use crate::object::GrantState::{
    self, Active, Denied, Ended, ExpiredUnapproved, Pending, Revoked, Scheduled, Withdrawn,
};

/// How long requests wait, and how long what has ended is kept.
const KEPT: Duration = Duration::from_secs(86_400);
const LONGEST: u64 = 600;

/// Everybody, by number.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) lives: Vec<Life>,
    pub(super) beings: Vec<Being>,
    pub(super) rules: Rules,
}

/// Who approves what.
#[derive(Debug, Clone)]
pub(super) struct Rules {
    /// The steps that a request needs, each with those who may approve it.
    pub(super) steps: Vec<(&'static str, Vec<usize>)>,
}

/// A workload.
#[derive(Debug, Clone)]
pub(super) struct Being {
    /// The actor who answers for it, if one does.
    pub(super) owner: Option<usize>,
    /// The workload that it acts for, if there is one.
    pub(super) acts_for: Option<usize>,
    pub(super) suspended: bool,
    pub(super) retired: bool,
    /// Revocations of it that are no suspensions.
    pub(super) revoked: usize,
}

/// A grant, from its request on.
#[derive(Debug, Clone)]
pub(super) struct Life {
    pub(super) by: usize,
    pub(super) workload: usize,
    pub(super) seconds: u64,
    pub(super) asked: Timestamp,
    pub(super) starts: Option<Timestamp>,
    pub(super) renews: Option<usize>,
    pub(super) state: GrantState,
    /// Who, for which step (none for a denial), and whether it was for another request than this is now.
    pub(super) votes: Vec<(usize, Option<&'static str>, bool)>,
    pub(super) times: Option<(Timestamp, Timestamp)>,
    pub(super) ended: Option<Timestamp>,
    /// Whether nothing is known of it any more.
    pub(super) forgotten: bool,
}

/// What becomes of asking.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Asked {
    New,
    /// This one gives all of it already.
    Reused(Vec<usize>),
    Refused,
}

// === impl Model ===

impl Model {
    /// The owner of each workload, and whom it acts for.
    pub(super) fn new(rules: Rules, beings: impl IntoIterator<Item = (Option<usize>, Option<usize>)>) -> Self {
        let being = |(owner, acts_for)| Being { owner, acts_for, suspended: false, retired: false, revoked: 0 };
        Self { lives: Vec::new(), beings: beings.into_iter().map(being).collect(), rules }
    }

    /// Whether somebody would be approving for themselves: they answer for the workload, or for one that it acts for.
    /// Nobody answers for what has been retired.
    pub(super) fn barred(&self, by: usize, workload: usize) -> bool {
        let being = &self.beings[workload];
        let parties = [Some(workload), being.acts_for];
        parties.into_iter().flatten().any(|n| !self.beings[n].retired && self.beings[n].owner == Some(by))
    }

    /// Each step answers whether it is taken; what is not taken changes nothing.
    pub(super) fn ask(&mut self, ask: Ask, renews: Option<usize>, now: Timestamp) -> Asked {
        let Ask { by, workload, seconds, starts, reuse, .. } = ask;
        let starts = starts.map(|s| shifted(now, s));
        let follows = renews.is_none_or(|old| !self.lives[old].forgotten && self.renewable(workload, old));
        if !self.beings[workload].in_service() || seconds > LONGEST || starts.is_some_and(|s| s < now) || !follows {
            return Asked::Refused;
        }
        let until = now.saturating_add(Duration::from_secs(seconds));
        let gives_it = |life: &Life| {
            life.workload == workload && life.state == Active && life.times.is_some_and(|(_, to)| to >= until)
        };
        let giving: Vec<usize> = (0..self.lives.len()).filter(|n| gives_it(&self.lives[*n])).collect();
        if reuse && starts.is_none() && renews.is_none() && !giving.is_empty() {
            return Asked::Reused(giving);
        }
        self.lives.push(Life {
            by,
            workload,
            seconds,
            asked: now,
            starts,
            renews,
            state: Pending,
            votes: Vec::new(),
            times: None,
            ended: None,
            forgotten: false,
        });
        Asked::New
    }

    /// A grant that was in force, of the same workload.
    fn renewable(&self, workload: usize, old: usize) -> bool {
        let old = &self.lives[old];
        old.workload == workload && matches!(old.state, Active | Ended)
    }

    /// Whether a request could come into force, approvals apart.
    fn supported(&self, life: &Life) -> bool {
        let follows = life.renews.is_none_or(|old| self.lives[old].forgotten || self.renewable(life.workload, old));
        self.beings[life.workload].in_service() && follows
    }

    /// The steps that nobody has approved yet.
    fn open(&self, life: &Life) -> Vec<&(&'static str, Vec<usize>)> {
        let given = |name: &str| life.votes.iter().any(|(_, step, void)| *step == Some(name) && !void);
        self.rules.steps.iter().filter(|(name, _)| !given(name)).collect()
    }

    pub(super) fn approve(
        &mut self,
        by: usize,
        grant: usize,
        step: Option<&str>,
        same_digest: bool,
        now: Timestamp,
    ) -> bool {
        let life = &self.lives[grant];
        let is_too_old = now >= life.asked.saturating_add(KEPT);
        if is_too_old || !life.takes_vote(by) || !same_digest || !self.supported(life) || self.barred(by, life.workload)
        {
            return false;
        }
        let open = self.open(life);
        let wanted = open.iter().find(|(name, who)| step.is_none_or(|s| s == *name) && who.contains(&by));
        let Some((name, _)) = wanted else { return false };
        let (name, last) = (*name, open.len() == 1);
        let life = &mut self.lives[grant];
        life.votes.push((by, Some(name), false));
        if last {
            let from = life.starts.map_or(now, |start| start.max(now));
            life.times = Some((from, from.saturating_add(Duration::from_secs(life.seconds))));
            life.state = if from > now { Scheduled } else { Active };
        }
        true
    }

    pub(super) fn deny(&mut self, by: usize, grant: usize, same_digest: bool, now: Timestamp) -> bool {
        let life = &mut self.lives[grant];
        if !life.takes_vote(by) || !same_digest {
            return false;
        }
        life.votes.push((by, None, false));
        life.end(Denied, now)
    }

    pub(super) fn withdraw(&mut self, by: usize, grant: usize, now: Timestamp) -> bool {
        let life = &mut self.lives[grant];
        life.state == Pending && life.by == by && life.end(Withdrawn, now)
    }

    pub(super) fn drop(&mut self, by: usize, grant: usize, now: Timestamp) -> bool {
        let life = &mut self.lives[grant];
        match life.state {
            _ if life.by != by || life.forgotten => false,
            Active | Scheduled => life.end(Ended, now),
            // Once more: nothing to do.
            state => state == Ended,
        }
    }

    pub(super) fn revoke(&mut self, grant: usize, now: Timestamp) -> bool {
        let life = &mut self.lives[grant];
        match life.state {
            _ if life.forgotten => false,
            Active | Scheduled | Pending => life.end(Revoked, now),
            state => state == Revoked,
        }
    }

    /// The votes were for something else.
    pub(super) fn alter(&mut self, grant: usize) {
        self.lives[grant].votes.iter_mut().for_each(|(_, _, void)| *void = true);
    }

    pub(super) fn retire(&mut self, workload: usize, now: Timestamp) {
        self.beings[workload].retired = true;
        for life in self.lives.iter_mut().filter(|life| life.workload == workload) {
            if matches!(life.state, Pending | Scheduled | Active) {
                life.end(Revoked, now);
            }
        }
    }

    /// What time does to everything, when somebody looks.
    pub(super) fn sweep(&mut self, now: Timestamp) {
        // All of them are looked at as they were before.
        let before: Vec<bool> = self.lives.iter().map(|life| self.supported(life)).collect();
        for (life, supported) in self.lives.iter_mut().zip(before) {
            match (life.state, life.times, life.ended) {
                (Pending, _, _) if now >= life.asked.saturating_add(KEPT) => _ = life.end(ExpiredUnapproved, now),
                (Active | Scheduled, Some((_, to)), _) if now >= to => _ = life.end(Ended, now),
                (Scheduled, Some((from, _)), _) if now >= from && supported => life.state = Active,
                (Scheduled, Some((from, _)), _) if now >= from => _ = life.end(Ended, now),
                (_, _, Some(at)) if now >= at.saturating_add(KEPT) => life.forgotten = true,
                _ => {}
            }
        }
    }

    /// The grants of a workload that are in force.
    pub(super) fn in_force(&self, workload: usize, now: Timestamp) -> Vec<usize> {
        let holds = |life: &Life| {
            life.workload == workload
                && life.state == Active
                && life.times.is_some_and(|(from, to)| from <= now && now < to)
        };
        (0..self.lives.len()).filter(|n| holds(&self.lives[*n])).collect()
    }
}

// === impl Being ===

impl Being {
    pub(super) fn in_service(&self) -> bool {
        !self.suspended && !self.retired && self.revoked == 0
    }
}

// === impl Life ===

impl Life {
    /// Each voter once, whatever for, and never who asked.
    fn takes_vote(&self, by: usize) -> bool {
        self.state == Pending && by != self.by && self.votes.iter().all(|(voter, ..)| *voter != by)
    }

    fn end(&mut self, state: GrantState, now: Timestamp) -> bool {
        assert!(self.ended.is_none(), "the model ends everything once");
        self.state = state;
        self.ended = Some(now);
        true
    }
}

/// A time that many seconds later, or earlier.
pub(super) fn shifted(time: Timestamp, seconds: i64) -> Timestamp {
    let by = Duration::from_secs(seconds.unsigned_abs());
    if seconds < 0 { time.saturating_sub(by) } else { time.saturating_add(by) }
}
