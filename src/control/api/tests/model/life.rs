//! The model: what the life of grants and workloads should be, slowly and obviously. Knows nothing of the code that it
//! judges, beside the names of the states.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::object::GrantState;

/// How long requests wait, and how long what has ended is kept.
const KEPT: Duration = Duration::from_secs(86_400);
const LONGEST: u64 = 600;

/// Everybody, by number: who owns which workload is all that matters about them.
#[derive(Debug)]
pub(super) struct Model {
    pub(super) lives: Vec<Life>,
    pub(super) beings: Vec<Being>,
}

/// A workload.
#[derive(Debug, Clone)]
pub(super) struct Being {
    /// The one that answers for it, if that is one of the actors.
    pub(super) owner: Option<usize>,
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
    pub(super) state: GrantState,
    pub(super) votes: Vec<(usize, bool)>,
    pub(super) times: Option<(Timestamp, Timestamp)>,
    pub(super) ended: Option<Timestamp>,
    /// Whether nothing is known of it any more.
    pub(super) forgotten: bool,
}

// === impl Model ===

impl Model {
    pub(super) fn new(owners: impl IntoIterator<Item = Option<usize>>) -> Self {
        let being = |owner| Being { owner, suspended: false, retired: false, revoked: 0 };
        Self { lives: Vec::new(), beings: owners.into_iter().map(being).collect() }
    }

    /// Each step answers whether it is taken; what is not taken changes nothing.
    pub(super) fn ask(&mut self, by: usize, workload: usize, seconds: u64, now: Timestamp) -> bool {
        if !self.beings[workload].in_service() || seconds > LONGEST {
            return false;
        }
        self.lives.push(Life {
            by,
            workload,
            seconds,
            asked: now,
            state: GrantState::Pending,
            votes: Vec::new(),
            times: None,
            ended: None,
            forgotten: false,
        });
        true
    }

    pub(super) fn vote(&mut self, by: usize, grant: usize, approve: bool, same_digest: bool, now: Timestamp) -> bool {
        let life = &self.lives[grant];
        let being = &self.beings[life.workload];
        let open = life.state == GrantState::Pending && !life.forgotten;
        let may_vote = by != life.by && life.votes.iter().all(|(voter, _)| *voter != by);
        let may_approve = being.in_service() && being.owner != Some(by);
        if !(open && may_vote && same_digest && (may_approve || !approve)) {
            return false;
        }
        let life = &mut self.lives[grant];
        life.votes.push((by, approve));
        if !approve {
            life.end(GrantState::Denied, now);
        } else {
            life.state = GrantState::Active;
            life.times = Some((now, now.saturating_add(Duration::from_secs(life.seconds))));
        }
        true
    }

    pub(super) fn withdraw(&mut self, by: usize, grant: usize, now: Timestamp) -> bool {
        let life = &mut self.lives[grant];
        let takes = life.state == GrantState::Pending && life.by == by && !life.forgotten;
        takes && life.end(GrantState::Withdrawn, now)
    }

    pub(super) fn drop(&mut self, by: usize, grant: usize, now: Timestamp) -> bool {
        let life = &mut self.lives[grant];
        match life.state {
            _ if life.by != by || life.forgotten => false,
            GrantState::Active => life.end(GrantState::Ended, now),
            // Once more: nothing to do.
            state => state == GrantState::Ended,
        }
    }

    pub(super) fn revoke(&mut self, grant: usize, now: Timestamp) -> bool {
        let life = &mut self.lives[grant];
        match life.state {
            _ if life.forgotten => false,
            GrantState::Active | GrantState::Pending => life.end(GrantState::Revoked, now),
            state => state == GrantState::Revoked,
        }
    }

    pub(super) fn retire(&mut self, workload: usize, now: Timestamp) {
        self.beings[workload].retired = true;
        for life in self.lives.iter_mut().filter(|life| life.workload == workload) {
            if matches!(life.state, GrantState::Pending | GrantState::Active) {
                life.end(GrantState::Revoked, now);
            }
        }
    }

    /// What time does to everything, when somebody looks.
    pub(super) fn sweep(&mut self, now: Timestamp) {
        for life in &mut self.lives {
            match (life.state, life.times, life.ended) {
                (GrantState::Pending, _, _) if now >= life.asked.saturating_add(KEPT) => {
                    life.end(GrantState::ExpiredUnapproved, now);
                }
                (GrantState::Active, Some((_, to)), _) if now >= to => {
                    life.end(GrantState::Ended, now);
                }
                (_, _, Some(at)) if now >= at.saturating_add(KEPT) => life.forgotten = true,
                _ => {}
            }
        }
    }

    /// The grants of a workload that are in force.
    pub(super) fn in_force(&self, workload: usize, now: Timestamp) -> Vec<usize> {
        let holds = |life: &Life| {
            life.workload == workload
                && life.state == GrantState::Active
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
    fn end(&mut self, state: GrantState, now: Timestamp) -> bool {
        assert!(self.ended.is_none(), "the model ends everything once");
        self.state = state;
        self.ended = Some(now);
        true
    }
}
