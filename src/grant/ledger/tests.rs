//! Model-based: processes with purses, a book, and a network that loses, repeats and reorders, over restarts of everybody.
//!
//! The model counts what was allowed. Whatever happens, that is never more than the grant's uses; and when nobody dies
//! and every message arrives in the end, it is all of them.

use proptest::prelude::*;
use serde_json::json;

use super::super::purse::{Message, Purse};
use super::*;
use crate::clock::Monotonic;
use crate::object::{GrantId, Object};

const LEASE: Duration = Duration::from_secs(5);
const TERMS: Terms = Terms { lease: LEASE, since: Timestamp::from_secs(0) };

fn grant(uses: u32) -> Grant {
    let mut grant: Grant = serde_json::from_value(json!({
        "id": Uuid::from_u128(7), "workload": "spiffe://a/w", "resources": ["payments"], "actions": ["write"],
        "uses": uses, "requested_by": "alice", "requested_at": Timestamp::from_secs(1), "duration_seconds": 100_000,
        "digest": "", "state": "active", "not_before": Timestamp::from_secs(1), "not_after": Timestamp::from_secs(100_001),
    }))
    .unwrap();
    grant.digest = grant.request_digest();
    grant
}

fn holder(n: usize) -> SpiffeId {
    SpiffeId::parse(&format!("spiffe://a/sidecar-{n}")).unwrap()
}

/// A purse, and what is on its way to and from it.
#[derive(Default)]
struct Process {
    purse: Purse,
    to_plane: Vec<Message>,
    from_plane: Vec<(Message, UseAnswer)>,
}

struct World {
    grant: Grant,
    book: Option<Allotments>,
    processes: Vec<Process>,
    /// Milliseconds.
    now: u64,
    allowed: u32,
}

/// What may happen.
#[derive(Debug, Clone)]
enum Event {
    /// A request at a process.
    Request(usize),
    /// A process says what it has to say.
    Tell(usize),
    /// A message to the control plane arrives: which, and whether it stays for a repetition.
    Arrive(usize, prop::sample::Index, bool),
    /// An answer arrives: the same.
    Answer(usize, prop::sample::Index, bool),
    LoseTo(usize),
    LoseFrom(usize),
    Reconnect(usize),
    Kill(usize),
    Drain(usize),
    Wait(u64),
    Sweep,
}

const PROCESSES: usize = 3;

fn event() -> impl Strategy<Value = Event> {
    let any = || any::<prop::sample::Index>();
    prop_oneof![
        8 => (0..PROCESSES).prop_map(Event::Request),
        6 => (0..PROCESSES).prop_map(Event::Tell),
        8 => (0..PROCESSES, any(), prop::bool::weighted(0.2)).prop_map(|(p, i, again)| Event::Arrive(p, i, again)),
        8 => (0..PROCESSES, any(), prop::bool::weighted(0.2)).prop_map(|(p, i, again)| Event::Answer(p, i, again)),
        1 => (0..PROCESSES).prop_map(Event::LoseTo),
        1 => (0..PROCESSES).prop_map(Event::LoseFrom),
        1 => (0..PROCESSES).prop_map(Event::Reconnect),
        1 => (0..PROCESSES).prop_map(Event::Kill),
        1 => (0..PROCESSES).prop_map(Event::Drain),
        3 => (1..3000u64).prop_map(Event::Wait),
        1 => Just(Event::Sweep),
    ]
}

// === impl World ===

impl World {
    fn new(uses: u32) -> Self {
        let processes = (0..PROCESSES).map(|_| Process::default()).collect();
        Self { grant: grant(uses), book: None, processes, now: 10_000, allowed: 0 }
    }

    fn mono(&self) -> Monotonic {
        Monotonic::from_nanos(self.now * 1_000_000)
    }

    fn wall(&self) -> Timestamp {
        Timestamp::from_millis(self.now)
    }

    fn request(&mut self, p: usize) -> bool {
        let spent = self.processes[p].purse.spend(&[&[self.grant.id]], self.mono()).is_ok();
        self.allowed += u32::from(spent);
        spent
    }

    fn tell(&mut self, p: usize) {
        let messages = self.processes[p].purse.messages(self.mono(), usize::MAX);
        self.processes[p].to_plane.extend(messages);
    }

    fn take(&mut self, settled: Settled) {
        if let Some(next) = settled.next {
            assert_eq!(Object::Allotment(Box::new(next.clone())).check(), Ok(()));
            let stored = Object::parse(crate::object::Kind::Allotment, &Object::Allotment(Box::new(next)).to_json());
            // Through the store, over which the control plane may restart at any time.
            match stored.unwrap() {
                Object::Allotment(book) => self.book = Some(*book),
                other => panic!("{other:?}"),
            }
        }
        if settled.exhausted {
            self.grant = exhausted(&self.grant, self.wall());
        }
    }

    fn arrive(&mut self, p: usize, message: Message) {
        let report = &message.report;
        let settled = settle(self.book.as_ref(), &self.grant, &holder(p), report, self.wall(), TERMS);
        let answer = settled.answer;
        self.take(settled);
        self.processes[p].from_plane.push((message, answer));
    }

    fn answer(&mut self, p: usize, (message, answer): (Message, UseAnswer)) {
        let place = (message.grant, message.report.account);
        self.processes[p].purse.answered(place, message.number, answer, LEASE, self.mono());
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::Request(p) => _ = self.request(p),
            Event::Tell(p) => self.tell(p),
            Event::Arrive(p, which, again) => {
                if !self.processes[p].to_plane.is_empty() {
                    let at = which.index(self.processes[p].to_plane.len());
                    let message = self.processes[p].to_plane[at];
                    if !again {
                        self.processes[p].to_plane.remove(at);
                    }
                    self.arrive(p, message);
                }
            }
            Event::Answer(p, which, again) => {
                if !self.processes[p].from_plane.is_empty() {
                    let at = which.index(self.processes[p].from_plane.len());
                    let answer = self.processes[p].from_plane[at];
                    if !again {
                        self.processes[p].from_plane.remove(at);
                    }
                    self.answer(p, answer);
                }
            }
            Event::LoseTo(p) => self.processes[p].to_plane.clear(),
            Event::LoseFrom(p) => self.processes[p].from_plane.clear(),
            Event::Reconnect(p) => self.processes[p].purse.reconnected(self.mono()),
            // What it sent may still arrive, and what is sent to it arrives at the next one.
            Event::Kill(p) => self.processes[p].purse = Purse::default(),
            Event::Drain(p) => {
                self.processes[p].purse.close(self.mono());
                self.tell(p);
                self.processes[p].purse = Purse::default();
            }
            Event::Wait(ms) => self.now += ms,
            Event::Sweep => {
                if let Some(settled) = self.book.as_ref().and_then(|book| sweep(book, &self.grant, self.wall(), TERMS))
                {
                    self.take(settled);
                }
            }
        }
    }

    /// Every message arrives, at once and in order.
    fn exchange(&mut self) {
        for p in 0..PROCESSES {
            self.tell(p);
            for message in std::mem::take(&mut self.processes[p].to_plane) {
                self.arrive(p, message);
            }
            for answer in std::mem::take(&mut self.processes[p].from_plane) {
                self.answer(p, answer);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 512, ..ProptestConfig::default() })]

    #[test]
    fn never_more_than_its_uses_whatever_happens(uses in 1..40u32, events in prop::collection::vec(event(), 1..250)) {
        let mut world = World::new(uses);
        for event in events {
            world.happen(event.clone());
            prop_assert!(world.allowed <= uses, "{} of {} after {:?}", world.allowed, uses, event);
        }
    }

    /// Losses and repetitions, but nobody dies and no message is late beyond its lease: everything is spent in the end.
    #[test]
    fn all_of_its_uses_when_nobody_dies(uses in 1..40u32, events in prop::collection::vec(event(), 1..100)) {
        let mut world = World::new(uses);
        let mut last = world.now;
        for event in events {
            let dies = matches!(event, Event::Kill(_) | Event::Drain(_) | Event::LoseTo(_));
            // Nobody is silent for longer than a lease, and what was lost is said again.
            if !dies && !matches!(event, Event::Wait(1200..)) {
                world.happen(event);
            }
            if world.now - last > 1500 {
                world.exchange();
                last = world.now;
            }
        }
        for p in 0..PROCESSES {
            world.processes[p].purse.reconnected(world.mono());
        }
        // One process goes on, and asks for what the others give back.
        for _ in 0..3000 {
            world.request(0);
            world.exchange();
            world.now += 60;
        }
        prop_assert_eq!(world.allowed, uses);
        prop_assert_eq!(world.grant.state, GrantState::Exhausted);
        prop_assert!(!world.request(0) && !world.request(1));
    }
}

#[test]
fn a_single_use_goes_to_one_and_comes_back_only_when_it_says_so() {
    let mut world = World::new(1);
    assert!(!world.request(0) && !world.request(1));
    world.exchange();
    // The second may ask for as long as it likes.
    for _ in 0..20 {
        assert!(!world.request(1));
        world.exchange();
        world.now += 60;
    }
    // Past its lease the first gives back what it did not spend; then, and not before, the second gets it.
    world.now += 6_000;
    world.exchange();
    assert!(!world.request(1));
    world.exchange();
    assert!(world.request(1));
    world.exchange();
    assert_eq!((world.allowed, world.grant.state), (1, GrantState::Exhausted));
}

#[test]
fn what_a_dead_process_had_counts_as_spent() {
    let mut world = World::new(2);
    world.request(0);
    world.exchange();
    world.happen(Event::Kill(0));
    world.request(1);
    world.exchange();
    assert!(world.request(1));
    world.exchange();
    assert_eq!(world.grant.state, GrantState::Active, "nobody knows of the other use yet");
    world.now += 20_000;
    world.happen(Event::Sweep);
    assert_eq!((world.allowed, world.grant.state), (1, GrantState::Exhausted));
}

/// While the control plane is away nobody can say what became of their uses: they have time for it when it is back.
#[test]
fn what_was_held_over_a_restart_is_lost_only_if_nobody_comes_back() {
    let mut world = World::new(2);
    world.request(0);
    world.exchange();
    let book = world.book.clone().unwrap();
    // Away for ten minutes, and back.
    let since = Timestamp::from_millis(world.now + 600_000);
    let terms = Terms { since, ..TERMS };
    let at = |secs: u64| since.saturating_add(Duration::from_secs(secs));
    assert_eq!(sweep(&book, &world.grant, at(29), terms), None);
    assert_eq!(next_sweep(&book, terms), Some(at(30)));
    let held = &book.accounts[0];
    let back = UseReport { account: held.id, granted: 1, spent: 0, returned: 1, wanted: 0 };
    let settled = settle(Some(&book), &world.grant, &holder(0), &back, at(20), terms);
    assert_eq!(settled.next.unwrap().available(), 2, "it was not spent, and can be again");

    let lost = sweep(&book, &world.grant, at(30), terms).unwrap();
    assert_eq!(lost.forfeited, [Forfeit { holder: holder(0), uses: 1, lost: Lost::Restart }]);
    assert_eq!(sweep(&book, &world.grant, at(30), TERMS).unwrap().forfeited[0].lost, Lost::Silent);
    // What was reported as spent is not lost, and of a grant that has ended nothing is.
    let mut spent = book.clone();
    spent.accounts[0].spent = 1;
    assert_eq!(sweep(&spent, &world.grant, at(30), terms).unwrap().forfeited, []);
    let revoked = Grant { state: GrantState::Revoked, ..world.grant.clone() };
    assert_eq!(sweep(&book, &revoked, at(30), terms).unwrap().forfeited, []);
}

#[test]
fn nobody_gives_back_what_another_holds() {
    let mut world = World::new(1);
    world.request(0);
    world.exchange();
    let account = world.book.as_ref().unwrap().accounts[0].id;
    let report = UseReport { account, granted: 1, spent: 0, returned: 1, wanted: 0 };
    let settled = settle(world.book.as_ref(), &world.grant, &holder(1), &report, world.wall(), TERMS);
    assert_eq!((settled.next, settled.answer), (None, UseAnswer::Closed));
    // And what it says it gave back beyond what it had is not there.
    let report = UseReport { returned: 100, ..report };
    let settled = settle(world.book.as_ref(), &world.grant, &holder(0), &report, world.wall(), TERMS);
    assert_eq!(settled.next.unwrap().available(), 1);
}

#[test]
fn a_grant_that_is_not_in_force_gives_nothing() {
    let world = World::new(3);
    let report = UseReport { account: Uuid::from_u128(1), granted: 0, spent: 0, returned: 0, wanted: 1 };
    let ask = |grant: &Grant, at: u64| settle(None, grant, &holder(0), &report, Timestamp::from_secs(at), TERMS);
    assert_eq!(ask(&world.grant, 2).answer, UseAnswer::Given(1));
    assert_eq!(ask(&world.grant, 0).answer, UseAnswer::Given(0));
    assert_eq!(ask(&world.grant, 100_001).answer, UseAnswer::Given(0));
    let revoked = Grant { state: GrantState::Revoked, ..world.grant.clone() };
    assert_eq!(ask(&revoked, 2).answer, UseAnswer::Exhausted(0));
    let unlimited = Grant { uses: None, ..world.grant };
    assert_eq!(ask(&unlimited, 2).answer, UseAnswer::Closed);
    let _id: GrantId = unlimited.id;
}
