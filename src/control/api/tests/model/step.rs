//! What can happen to a control plane, one thing at a time.

use proptest::prelude::*;

/// How many people and programs there are, workloads, and how far back a grant is looked for.
pub(super) const ACTORS: usize = 6;
pub(super) const WORKLOADS: usize = 3;
const RECENT: usize = 4;

/// One thing that happens. Grants are counted from the latest back.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    Ask(Ask),
    Approve {
        by: usize,
        grant: usize,
        step: Option<bool>,
        other_digest: bool,
    },
    Deny {
        by: usize,
        grant: usize,
        other_digest: bool,
    },
    Withdraw {
        by: usize,
        grant: usize,
    },
    Drop {
        by: usize,
        grant: usize,
    },
    Revoke {
        by: usize,
        grant: usize,
    },
    /// Somebody changes what was asked for behind everybody's back, and its digest with it.
    Alter {
        grant: usize,
    },
    Suspend(usize),
    Resume(usize),
    Retire(usize),
    RevokeWorkload(usize),
    LiftRevocation(usize),
    /// Seconds pass.
    Pass(u64),
    /// Somebody sets the wall clock, by so many seconds.
    SetClock(i64),
    Sweep,
    Restart,
}

/// What is asked for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ask {
    pub(super) by: usize,
    pub(super) workload: usize,
    pub(super) seconds: u64,
    /// In how many seconds it is to start.
    pub(super) starts: Option<i64>,
    /// The grant that it is to follow.
    pub(super) renews: Option<usize>,
    pub(super) reuse: bool,
}

pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 10..70)
}

fn ask() -> impl Strategy<Value = Ask> {
    let starts = prop::option::weighted(0.3, prop_oneof![1 => Just(-5i64), 8 => 0..600i64]);
    let renews = prop::option::weighted(0.2, 0..RECENT);
    let seconds = prop_oneof![12 => 1..=600u64, 1 => Just(601)];
    (0..ACTORS, 0..WORKLOADS, seconds, starts, renews, any::<bool>())
        .prop_map(|(by, workload, seconds, starts, renews, reuse)| Ask { by, workload, seconds, starts, renews, reuse })
}

fn step() -> impl Strategy<Value = Step> {
    let (by, workload, grant) = (0..ACTORS, 0..WORKLOADS, 0..RECENT);
    // Mostly within the life of a grant; now and then past everything that is kept.
    let pass = prop_oneof![8 => 1..400u64, 1 => 80_000..100_000u64];
    let jump = prop_oneof![3 => -4000..4000i64, 1 => Just(-100_000_000)];
    let other = prop::bool::weighted(0.08);
    prop_oneof![
        14 => ask().prop_map(Step::Ask),
        34 => (by.clone(), grant.clone(), prop::option::weighted(0.4, any::<bool>()), other)
            .prop_map(|(by, grant, step, other_digest)| Step::Approve { by, grant, step, other_digest }),
        2 => (by.clone(), grant.clone(), other)
            .prop_map(|(by, grant, other_digest)| Step::Deny { by, grant, other_digest }),
        3 => (by.clone(), grant.clone()).prop_map(|(by, grant)| Step::Withdraw { by, grant }),
        5 => (by.clone(), grant.clone()).prop_map(|(by, grant)| Step::Drop { by, grant }),
        2 => (by, grant.clone()).prop_map(|(by, grant)| Step::Revoke { by, grant }),
        3 => grant.prop_map(|grant| Step::Alter { grant }),
        3 => workload.clone().prop_map(Step::Suspend),
        4 => workload.clone().prop_map(Step::Resume),
        1 => workload.clone().prop_map(Step::Retire),
        2 => workload.clone().prop_map(Step::RevokeWorkload),
        3 => workload.prop_map(Step::LiftRevocation),
        10 => pass.prop_map(Step::Pass),
        3 => jump.prop_map(Step::SetClock),
        10 => Just(Step::Sweep),
        2 => Just(Step::Restart),
    ]
}
