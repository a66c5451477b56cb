//! What can happen to a control plane, one thing at a time.

use proptest::prelude::*;

/// How many people and programs there are, workloads, and how far back a grant is looked for.
pub(super) const ACTORS: usize = 5;
pub(super) const WORKLOADS: usize = 3;
const RECENT: usize = 4;

/// One thing that happens. Grants are counted from the latest back.
#[derive(Debug, Clone, Copy)]
pub(super) enum Step {
    Ask {
        by: usize,
        workload: usize,
        seconds: u64,
    },
    Vote {
        by: usize,
        grant: usize,
        approve: bool,
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

pub(super) fn steps() -> impl Strategy<Value = Vec<Step>> {
    prop::collection::vec(step(), 10..60)
}

fn step() -> impl Strategy<Value = Step> {
    let (by, workload, grant) = (0..ACTORS, 0..WORKLOADS, 0..RECENT);
    // Mostly within the life of a grant; now and then past everything that is kept.
    let pass = prop_oneof![8 => 1..400u64, 1 => 80_000..100_000u64];
    let jump = prop_oneof![-4000..4000i64, Just(-100_000_000)];
    prop_oneof![
        14 => (by.clone(), workload.clone(), prop_oneof![9 => 1..=600u64, 1 => Just(601)])
            .prop_map(|(by, workload, seconds)| Step::Ask { by, workload, seconds }),
        22 => (by.clone(), grant.clone(), prop::bool::weighted(0.85), prop::bool::weighted(0.1))
            .prop_map(|(by, grant, approve, other_digest)| Step::Vote { by, grant, approve, other_digest }),
        4 => (by.clone(), grant.clone()).prop_map(|(by, grant)| Step::Withdraw { by, grant }),
        6 => (by.clone(), grant.clone()).prop_map(|(by, grant)| Step::Drop { by, grant }),
        4 => (by, grant).prop_map(|(by, grant)| Step::Revoke { by, grant }),
        3 => workload.clone().prop_map(Step::Suspend),
        4 => workload.clone().prop_map(Step::Resume),
        1 => workload.clone().prop_map(Step::Retire),
        2 => workload.clone().prop_map(Step::RevokeWorkload),
        3 => workload.prop_map(Step::LiftRevocation),
        10 => pass.prop_map(Step::Pass),
        3 => jump.prop_map(Step::SetClock),
        8 => Just(Step::Sweep),
        2 => Just(Step::Restart),
    ]
}
