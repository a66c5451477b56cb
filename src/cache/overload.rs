//! Admission: how many checks may be under way, as a limit that follows how long checks wait for a thread.
//!
//! Plane: shared, on the request path: atomics only, no clock of its own, no runtime. What is measured is the time from a
//! check's arrival to its answer, when nothing but a thread had to be waited for; the least of a tenth of a second is a
//! queue that stands, and a burst or a pause of the machine is none. Checks that take a verification are shed first: their
//! limit follows a shorter delay. A warm check is answered for little more than a refusal costs, so it is refused only when
//! answers would come too late to count. INVARIANT: a limit never leaves its bounds; whoever finds no place is denied.
//! Long because the model that the limits are tested against is here.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::Duration;

/// How long the least delay is looked for.
const WINDOW: Duration = Duration::from_millis(100);
/// After this long without an answer nothing waits any more.
const IDLE: Duration = Duration::from_secs(1);
/// In one window a limit grows by this part of itself, or at least by one.
const GROWTH: usize = 8;
/// In one window a limit falls to no less than this part of itself.
const DEEPEST_CUT: usize = 4;
/// The least limit of checks that take a verification, as a part of that of all.
const COLD_PART: usize = 16;
/// This part of all checks may wait for a use of a grant.
const WAITING_PART: usize = 4;

/// What is put up with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdmissionLimits {
    /// Checks under way: never more.
    pub max: usize,
    /// Whether, and how, the limits follow the delay; without, only `max` counts.
    pub adaptive: Option<AdaptiveLimits>,
}

/// How the limits follow the delay.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdaptiveLimits {
    /// Checks under way: always so many, unless `max` is less; a sixteenth for those that take a verification.
    pub min: usize,
    /// The delay that the limit of all checks keeps to.
    pub delay: Duration,
    /// The delay that the limit of checks which take a verification keeps to.
    pub cold_delay: Duration,
}

/// Counts checks and admits them.
#[derive(Debug)]
pub struct Admission {
    bounds: AdmissionLimits,
    under_way: AtomicUsize,
    /// Of them, those that wait for a verification, which has limits of its own.
    verifying: AtomicUsize,
    /// Of them, those that wait for a use of a grant.
    waiting: AtomicUsize,
    all: AtomicUsize,
    cold: AtomicUsize,
    window: Window,
}

/// What was seen since the limits were last set. Nanoseconds.
#[derive(Debug)]
struct Window {
    start: AtomicU64,
    least_delay: AtomicU64,
    most_at_once: AtomicUsize,
}

/// The limits in force.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reading {
    /// Of all checks.
    pub all: usize,
    /// Of checks that take a verification.
    pub cold: usize,
    /// The delay that they were set by.
    pub delay: Duration,
}

// === impl AdmissionLimits ===

impl AdmissionLimits {
    /// Only a bound.
    pub const fn fixed(max: usize) -> Self {
        Self { max, adaptive: None }
    }
}

// === impl AdaptiveLimits ===

impl Default for AdaptiveLimits {
    /// What is admitted is to be answered within 50 ms at p99: half of that for all, and for cold ones what the queue of the
    /// verification leaves.
    fn default() -> Self {
        Self { min: 256, delay: Duration::from_millis(25), cold_delay: Duration::from_millis(10) }
    }
}

// === impl Admission ===

impl Admission {
    /// Nothing is under way, and the limits are as wide as they may be.
    pub const fn new(bounds: AdmissionLimits) -> Self {
        let window = Window {
            start: AtomicU64::new(0),
            least_delay: AtomicU64::new(u64::MAX),
            most_at_once: AtomicUsize::new(0),
        };
        Self {
            bounds,
            under_way: AtomicUsize::new(0),
            verifying: AtomicUsize::new(0),
            waiting: AtomicUsize::new(0),
            all: AtomicUsize::new(bounds.max),
            cold: AtomicUsize::new(bounds.max),
            window,
        }
    }

    /// A check has arrived. How many are under way now, if it may be one of them; [`Self::leave`] must follow then.
    pub fn enter(&self) -> Option<usize> {
        let at_once = self.under_way.fetch_add(1, Relaxed).saturating_add(1);
        let all = self.all.load(Relaxed);
        // Those that wait for a verification or a use of a grant keep no thread busy, so they count against nothing but the bound.
        let admitted = at_once <= all || (at_once <= self.bounds.max && self.busy(at_once) <= all);
        if admitted {
            return Some(at_once);
        }
        self.leave();
        None
    }

    /// A check that was admitted has ended.
    pub fn leave(&self) {
        self.under_way.fetch_sub(1, Relaxed);
    }

    /// Whether a check that is under way may go on to be verified; [`Self::verified`] must follow then.
    pub fn enter_verification(&self) -> bool {
        let admitted = self.busy(self.under_way.load(Relaxed)) <= self.cold.load(Relaxed);
        if admitted {
            self.verifying.fetch_add(1, Relaxed);
        }
        admitted
    }

    /// Its verification has ended, one way or another.
    pub fn verified(&self) {
        self.verifying.fetch_sub(1, Relaxed);
    }

    /// Whether a check that is under way may wait for a use of a grant; [`Self::waited`] must follow then.
    pub fn enter_waiting(&self) -> bool {
        let admitted = self.waiting.fetch_add(1, Relaxed) < (self.bounds.max / WAITING_PART).max(1);
        if !admitted {
            self.waited();
        }
        admitted
    }

    /// It waits no longer.
    pub fn waited(&self) {
        self.waiting.fetch_sub(1, Relaxed);
    }

    /// A check that waited for nothing but a thread was answered at `now`, on any clock that does not go back, `delay`
    /// after its arrival, when `at_once` were under way. When that sets the limits anew, returns them.
    #[inline]
    pub fn observe(&self, now: Duration, delay: Duration, at_once: usize) -> Option<Reading> {
        let adaptive = self.bounds.adaptive.as_ref()?;
        let window = &self.window;
        let delay = nanos(delay);
        // Read first: most of the time neither has to be written.
        if delay < window.least_delay.load(Relaxed) {
            window.least_delay.fetch_min(delay, Relaxed);
        }
        if at_once > window.most_at_once.load(Relaxed) {
            window.most_at_once.fetch_max(self.busy(at_once), Relaxed);
        }
        let (now, start) = (nanos(now), window.start.load(Relaxed));
        let age = now.saturating_sub(start);
        if age < nanos(WINDOW) || window.start.compare_exchange(start, now, Relaxed, Relaxed).is_err() {
            return None;
        }
        Some(self.adapt(adaptive, Duration::from_nanos(age)))
    }

    /// Once a window, by one thread. What others see in between goes to this window or to the next.
    fn adapt(&self, adaptive: &AdaptiveLimits, age: Duration) -> Reading {
        let delay = Duration::from_nanos(self.window.least_delay.swap(u64::MAX, Relaxed));
        let most = self.window.most_at_once.swap(0, Relaxed);
        let next = |limit: &AtomicUsize, min: usize, target: Duration| {
            let now = limit.load(Relaxed);
            let next = if age >= IDLE {
                self.bounds.max
            } else if delay > target {
                // What was under way caused this delay: a share of it causes a share of the delay. By what was under way,
                // not by the limit: the queue of before the last cut is still there, and is no reason for another.
                now.min(scaled(most, target, delay).max(now / DEEPEST_CUT))
            } else {
                now.saturating_add((now / GROWTH).max(1))
            };
            let next = next.max(min).max(1).min(self.bounds.max);
            limit.store(next, Relaxed);
            next
        };
        let all = next(&self.all, adaptive.min, adaptive.delay);
        Reading { all, cold: next(&self.cold, adaptive.min / COLD_PART, adaptive.cold_delay), delay }
    }

    fn busy(&self, at_once: usize) -> usize {
        let idle = self.verifying.load(Relaxed).saturating_add(self.waiting.load(Relaxed));
        at_once.saturating_sub(idle)
    }
}

fn nanos(d: Duration) -> u64 {
    u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)
}

/// `n * target / delay`.
fn scaled(n: usize, target: Duration, delay: Duration) -> usize {
    let scaled = (n as u128).saturating_mul(target.as_nanos()).checked_div(delay.as_nanos());
    scaled.and_then(|n| usize::try_from(n).ok()).unwrap_or(n)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;

    use proptest::prelude::*;

    use super::*;

    const MS: Duration = Duration::from_millis(1);
    const LIMITS: AdmissionLimits = AdmissionLimits {
        max: 10_000,
        adaptive: Some(AdaptiveLimits {
            min: 64,
            delay: Duration::from_millis(100),
            cold_delay: Duration::from_millis(10),
        }),
    };

    /// One thread that answers checks in the order in which they came, in steps of a millisecond.
    struct Model {
        admission: Admission,
        now: Duration,
        queue: VecDeque<(Duration, usize)>,
        /// Checks that it can answer in a millisecond.
        speed: usize,
        shed: [usize; 2],
        answered: usize,
        longest: Duration,
    }

    impl Model {
        fn new(speed: usize) -> Self {
            let admission = Admission::new(LIMITS);
            Self {
                admission,
                now: MS,
                queue: VecDeque::new(),
                speed,
                shed: [0; 2],
                answered: 0,
                longest: Duration::ZERO,
            }
        }

        fn arrive(&mut self, n: usize) {
            for _ in 0..n {
                match self.admission.enter() {
                    Some(at_once) => self.queue.push_back((self.now, at_once)),
                    None => self.shed[0] += 1,
                }
            }
        }

        fn answer(&mut self) {
            for _ in 0..self.speed {
                let Some((since, at_once)) = self.queue.pop_front() else { break };
                let delay = self.now - since;
                self.longest = self.longest.max(delay);
                // What a check that takes a verification would hear now.
                if self.admission.enter_verification() {
                    self.admission.verified();
                } else {
                    self.shed[1] += 1;
                }
                self.admission.leave();
                self.admission.observe(self.now, delay, at_once);
                self.answered += 1;
            }
        }

        /// So many arrive in each millisecond.
        fn run(&mut self, ms: u32, arrivals: usize) {
            for _ in 0..ms {
                self.arrive(arrivals);
                self.answer();
                self.now += MS;
            }
        }

        fn taken(&mut self) -> ([usize; 2], usize, Duration) {
            (std::mem::take(&mut self.shed), std::mem::take(&mut self.answered), std::mem::take(&mut self.longest))
        }
    }

    #[test]
    fn nothing_is_shed_below_saturation_nor_for_a_burst_or_a_pause() {
        let mut server = Model::new(100);
        server.run(2_000, 99);
        // A burst that takes 50 ms, well below the bound.
        server.arrive(5_000);
        server.run(2_000, 50);
        assert_eq!(server.taken().0, [0, 0]);
        // The machine stands still for two seconds; 1,000 arrive meanwhile, and all that are late are answered.
        server.arrive(1_000);
        server.now += MS * 2_000;
        server.run(2_000, 50);
        assert_eq!(server.taken().0, [0, 0]);
        assert_eq!(server.admission.under_way.load(Relaxed), 0);
    }

    #[test]
    fn a_server_at_twice_its_capacity_answers_as_fast_as_it_can_and_keeps_to_the_delay() {
        let mut server = Model::new(20);
        server.run(3_000, 40); // limits follow
        server.taken();
        server.run(10_000, 40);
        let ([shed, cold_shed], answered, longest) = server.taken();
        assert_eq!(answered, 200_000, "never idle");
        assert!((198_000..=202_000).contains(&shed), "{shed}");
        assert!(longest <= MS * 150, "{longest:?}");
        assert!(cold_shed > answered * 9 / 10, "what takes a verification is shed first: {cold_shed}");
        // Soon after the load is gone, so is the shedding.
        server.run(3_000, 10);
        server.taken();
        server.run(2_000, 19);
        assert_eq!(server.taken().0, [0, 0]);
    }

    #[test]
    fn cold_checks_are_shed_where_warm_ones_are_not() {
        let mut server = Model::new(100);
        // 3,000 are always under way, as when clients wait for answers: 30 ms.
        server.arrive(3_000);
        server.run(1_000, 100);
        server.taken();
        server.run(1_000, 100);
        let ([shed, cold_shed], answered, _) = server.taken();
        assert_eq!((shed, cold_shed, answered), (0, 100_000, 100_000));
    }

    #[test]
    fn limits_recover_by_themselves() {
        let mut server = Model::new(20);
        let limits = |server: &Model| [&server.admission.all, &server.admission.cold].map(|limit| limit.load(Relaxed));
        server.run(3_000, 40);
        let [all, cold] = limits(&server);
        assert!((1_200..=2_600).contains(&all) && cold <= 500, "{all} {cold}");
        server.run(6_000, 10);
        assert_eq!(limits(&server), [10_000; 2]);
        server.run(3_000, 40);
        server.run(200, 0);
        server.now += IDLE;
        server.run(1, 1);
        assert_eq!(limits(&server), [10_000; 2], "at once after a silence");
    }

    #[test]
    fn those_that_wait_for_a_verification_take_no_place_of_others() {
        let max = 10;
        let adaptive = Some(AdaptiveLimits { min: 4, delay: MS, cold_delay: MS });
        let admission = Admission::new(AdmissionLimits { max, adaptive });
        let observe = |ms, delay: u32| admission.observe(MS * ms, MS * delay, 4);
        observe(200, 50);
        assert_eq!(admission.enter(), Some(1));
        observe(400, 50);
        assert_eq!((admission.all.load(Relaxed), admission.cold.load(Relaxed)), (4, 1));
        assert!(admission.enter_verification());
        for n in 2..=5 {
            assert_eq!(admission.enter(), Some(n), "four, and one that is verified");
        }
        assert_eq!(admission.enter(), None);
        assert!(!admission.enter_verification());
        admission.verified();
        admission.leave();
        assert_eq!(admission.enter(), None);
        // Whoever waits, the bound is the bound.
        let fixed = Admission::new(AdmissionLimits::fixed(2));
        assert_eq!([(); 3].map(|()| fixed.enter()), [Some(1), Some(2), None]);
        assert!(fixed.enter_verification() && fixed.enter_verification());
        assert_eq!(fixed.enter(), None);
        assert_eq!(fixed.observe(MS * 1_000, MS * 1_000, 2), None, "nothing follows a delay");
    }

    #[test]
    fn those_that_wait_for_a_use_take_no_place_of_others_and_are_bounded() {
        let adaptive = Some(AdaptiveLimits { min: 4, delay: MS, cold_delay: MS });
        let admission = Admission::new(AdmissionLimits { max: 12, adaptive });
        for n in 1..=10 {
            admission.observe(MS * 200 * n, MS * 50, 4);
        }
        assert_eq!(admission.all.load(Relaxed), 4);
        for n in 1..=3 {
            assert_eq!(admission.enter(), Some(n));
            assert!(admission.enter_waiting());
        }
        assert!(!admission.enter_waiting(), "a quarter of all, and no more");
        for n in 4..=7 {
            assert_eq!(admission.enter(), Some(n), "four, and three that wait");
        }
        assert_eq!(admission.enter(), None);
        (0..3).for_each(|_| admission.leave());
        assert!(admission.enter_verification(), "they do not keep others from being verified either");
        admission.waited();
        assert!(admission.enter_waiting());
    }

    proptest! {
        #[test]
        fn limits_stay_within_their_bounds(
            max in 1_usize..5_000,
            min in 0_usize..5_000,
            seen in proptest::collection::vec((0_u64..3_000, 0_u64..u64::MAX, 0_usize..20_000), 0..100),
        ) {
            let adaptive = AdaptiveLimits { min, delay: MS * 100, cold_delay: MS * 10 };
            let admission = Admission::new(AdmissionLimits { max, adaptive: Some(adaptive) });
            let mut now = Duration::ZERO;
            for (later, delay, at_once) in seen {
                now += Duration::from_millis(later);
                if let Some(Reading { all, cold, .. }) = admission.observe(now, Duration::from_nanos(delay), at_once) {
                    prop_assert!((min.max(1).min(max)..=max).contains(&all));
                    prop_assert!(((min / COLD_PART).max(1).min(max)..=max).contains(&cold));
                    prop_assert!(cold <= all);
                }
            }
        }
    }
}
