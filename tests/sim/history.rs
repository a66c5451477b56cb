//! One history: what happens to the hosts and the estate, drawn from a seed, and the trace that it leaves.
//!
//! In each of them one enforcement point is cut off for longer than it may answer, with its clock behind the control
//! plane's: by chance alone too few seeds had that, and an age that one clock alone told went unnoticed.

use std::sync::Arc;
use std::time::Duration;

use portcullis::authz::{Builder, Change};
use portcullis::clock::{Clock, Timestamp};
use portcullis::control::index::{Commit, Index, Stored};
use portcullis::object::{GrantId, Kind, Object};
use portcullis::testing::{Estate, POLICIES};
use portcullis::wire::{Epoch, Position, Revision};
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use serde_json::json;
use turmoil::Sim;

use super::hosts::{CONTROL, Control, Edge, MAX_STALENESS};
use super::observe::{Observer, Revoked};

const EDGES: [&str; 3] = ["edge-0", "edge-1", "edge-2"];
const TICK: Duration = Duration::from_millis(10);
/// How often something happens, and how often everybody is looked at.
const STEP: Duration = Duration::from_millis(200);
/// The longest that a message may take, one way.
const MAX_LATENCY_MS: u64 = 300;
const TROUBLED: Duration = Duration::from_secs(60);
const HEALED: Duration = Duration::from_secs(30);
/// So few commits stay in memory that an edge which was away for a while needs a snapshot.
const RING: usize = 12;
/// When an enforcement point is cut off for longer than it may answer, after half a second with a control plane whose clock
/// is ahead of its own: so that its wall clock takes everything it was told for younger than it is.
const OUTAGE: std::ops::Range<Duration> = Duration::from_secs(4)..Duration::from_secs(31);
/// Clocks may be ahead of true time by up to this, so any two differ by less than the skew that is put up with.
const MAX_AHEAD_MS: i64 = 4_500;

struct History {
    random: SmallRng,
    estate: Estate,
    control: Arc<Control>,
    edges: Vec<Arc<Edge>>,
    observer: Observer,
    grants: Vec<GrantId>,
    /// How far each clock is ahead: the control plane's, then the edges'.
    ahead_ms: [i64; EDGES.len() + 1],
    links: [Link; EDGES.len()],
    down: [bool; EDGES.len() + 1],
    /// Whom the outage is about: nothing else happens to it until the outage is over.
    cut_off: Option<usize>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Link {
    Up,
    Partitioned,
    Held,
}

/// Plays the history of a seed and returns its trace. Panics where an invariant does not hold.
pub(crate) fn run(seed: u64) -> Vec<String> {
    let start = Timestamp::from_secs(1_800_000_000);
    let estate = Estate::new_at(start);
    let epoch = Epoch::starting(start);
    let index = Arc::new(Index::new(epoch, Revision(0), [], RING));
    let control = Arc::new(Control::new(estate.clock.clone(), index, &EDGES));
    let edge = |(n, name): (usize, &&str)| Arc::new(Edge::new(name, &estate, &control, start, seed ^ n as u64));
    let edges: Vec<Arc<Edge>> = EDGES.iter().enumerate().map(edge).collect();

    let mut sim = turmoil::Builder::new()
        .rng_seed(seed)
        .tick_duration(TICK)
        .simulation_duration(Duration::from_secs(600))
        .tcp_capacity(4096)
        .build();
    let software = Arc::clone(&control);
    sim.host(CONTROL, move || Arc::clone(&software).serve());
    for edge in &edges {
        let software = Arc::clone(edge);
        sim.host(edge.name.as_str(), move || Arc::clone(&software).follow());
    }
    // Every message on a link takes equally long until that is changed. Were each drawn for itself, the order in which
    // the control plane's streams wake, which the runtime draws from no seed, would decide who draws what.
    for edge in &edges {
        sim.set_link_latency(edge.name.as_str(), CONTROL, Duration::from_millis(5));
    }
    let mut history = History {
        random: SmallRng::seed_from_u64(seed),
        observer: Observer::new(seed, &estate, edges.clone()),
        grants: Vec::new(),
        ahead_ms: Default::default(),
        links: [Link::Up; EDGES.len()],
        down: Default::default(),
        cut_off: None,
        estate,
        control,
        edges,
    };
    let all = history.estate.changes();
    history.commit(all);
    history.play(&mut sim);
    std::mem::take(&mut history.observer.trace)
}

// === impl History ===

impl History {
    fn play(&mut self, sim: &mut Sim<'_>) {
        let victim = self.random.random_range(0..EDGES.len());
        self.cut_off = Some(victim);
        while sim.elapsed() < TROUBLED {
            self.pass(sim);
            self.outage(sim, victim);
            self.happen(sim);
            self.look(sim);
        }
        for n in 0..EDGES.len() {
            self.set_link(sim, n, Link::Up);
        }
        for host in 0..self.down.len() {
            self.restart(sim, host);
        }
        while sim.elapsed() < TROUBLED + HEALED {
            self.pass(sim);
            self.look(sim);
        }
        let rebuilt = self.rebuilt();
        self.observer.at_rest(self.control.index.position(), &rebuilt);
    }

    /// Time passes everywhere.
    fn pass(&self, sim: &mut Sim<'_>) {
        let until = sim.elapsed() + STEP;
        while sim.elapsed() < until {
            self.control.clock.advance(TICK);
            for edge in &self.edges {
                edge.clock.advance(TICK);
            }
            sim.step().expect("no host fails");
        }
    }

    /// The one thing that happens in every history.
    fn outage(&mut self, sim: &mut Sim<'_>, victim: usize) {
        let (elapsed, ahead) = (sim.elapsed(), MAX_AHEAD_MS - 1);
        let begins = |at: Duration| (at..at + STEP).contains(&elapsed);
        if begins(OUTAGE.start - STEP * 3) {
            self.restart(sim, 0);
            self.set_clock(sim, 0, ahead);
        }
        if begins(OUTAGE.start) {
            self.cut_off = None;
            self.set_link(sim, victim, Link::Partitioned);
            self.cut_off = Some(victim);
        }
        if begins(OUTAGE.end) {
            self.cut_off = None;
            // It has answered from what it knew for most of the time that it may, or nothing has been shown.
            let last = self.observer.last_allow(victim).expect("it has allowed something");
            assert!(last > OUTAGE.start + MAX_STALENESS * 3 / 4, "it was cut off, and allowed nothing after {last:?}");
        }
    }

    /// Perhaps something happens.
    fn happen(&mut self, sim: &mut Sim<'_>) {
        match self.random.random_range(0..100) {
            0..=14 => self.grant(),
            15..=19 => self.revoke_grant(),
            20 | 37 => self.revoke_token(),
            21 => self.policies(),
            22..=25 => {
                let n = self.random.random_range(0..EDGES.len());
                let kinds = [Link::Up, Link::Partitioned, Link::Held];
                let kind = kinds[self.random.random_range(0..kinds.len())];
                self.set_link(sim, n, kind);
            }
            26..=27 => {
                let n = self.random.random_range(0..EDGES.len());
                self.set_link(sim, n, Link::Up);
            }
            28 => {
                let host = self.random.random_range(0..self.down.len());
                self.crash(sim, host);
            }
            29..=31 => {
                let host = self.random.random_range(0..self.down.len());
                self.restart(sim, host);
            }
            32 => {
                let clock = self.random.random_range(0..self.ahead_ms.len());
                let ahead = self.random.random_range(0..MAX_AHEAD_MS);
                if clock.checked_sub(1).is_none_or(|n| self.cut_off != Some(n)) {
                    self.set_clock(sim, clock, ahead);
                }
            }
            33..=36 => {
                let name = EDGES[self.random.random_range(0..EDGES.len())];
                let latency = Duration::from_millis(self.random.random_range(1..MAX_LATENCY_MS));
                sim.set_link_latency(name, CONTROL, latency);
            }
            _ => {}
        }
    }

    fn note(&mut self, sim: &Sim<'_>, what: &str) {
        self.observer.trace.push(format!("{:?} {what}", sim.elapsed()));
    }

    fn look(&mut self, sim: &Sim<'_>) {
        let mut given = std::mem::take(&mut *self.control.given.lock().unwrap());
        // Those of one moment came in an order that only the runtime knows.
        given.sort_by_key(|(position, _)| *position);
        for (position, receipt) in given {
            self.observer.receipt(position, &receipt);
        }
        let control_now = self.control.clock.now().wall;
        let cut: [bool; EDGES.len()] = std::array::from_fn(|n| self.down[0] || self.links[n] != Link::Up);
        self.observer.look(sim.elapsed(), control_now, cut);
    }

    /// Sets a clock ahead of true time by so much.
    fn set_clock(&mut self, sim: &Sim<'_>, clock: usize, ahead: i64) {
        let by = ahead - std::mem::replace(&mut self.ahead_ms[clock], ahead);
        match clock.checked_sub(1) {
            None => self.control.clock.set_by(by),
            Some(n) => self.edges[n].clock.set_by(by),
        }
        self.note(sim, &format!("clock {clock} set by {by} ms"));
    }

    fn set_link(&mut self, sim: &Sim<'_>, n: usize, link: Link) {
        if self.cut_off == Some(n) {
            return;
        }
        let name = EDGES[n];
        match (std::mem::replace(&mut self.links[n], link), link) {
            (before, after) if before == after => return,
            (Link::Held, Link::Up) => sim.release(name, CONTROL),
            (Link::Partitioned, Link::Up) => sim.repair(name, CONTROL),
            (_, Link::Partitioned) => {
                sim.release(name, CONTROL);
                sim.partition(name, CONTROL);
            }
            (_, Link::Held) => {
                sim.repair(name, CONTROL);
                sim.hold(name, CONTROL);
            }
            (Link::Up, Link::Up) => return,
        }
        self.note(sim, &format!("link of {name}: {link:?}"));
    }

    fn crash(&mut self, sim: &mut Sim<'_>, host: usize) {
        // The control plane does not crash while it is needed to tell the time.
        let needed = if sim.elapsed() < OUTAGE.start { Some(0) } else { None };
        if needed == Some(host) || self.cut_off.is_some_and(|n| host == n + 1) || self.down[host] {
            return;
        }
        self.down[host] = true;
        let name = host.checked_sub(1).map_or(CONTROL, |n| EDGES[n]);
        if let Some(n) = host.checked_sub(1) {
            *self.edges[n].gate.lock().unwrap() = None;
        }
        sim.crash(name);
        self.note(sim, &format!("{name} crashes"));
    }

    fn restart(&mut self, sim: &mut Sim<'_>, host: usize) {
        if !std::mem::replace(&mut self.down[host], false) {
            return;
        }
        let name = host.checked_sub(1).map_or(CONTROL, |n| EDGES[n]);
        sim.bounce(name);
        self.note(sim, &format!("{name} starts"));
    }

    fn grant(&mut self) {
        let workload = ["storefront", "agent", "ci"][self.random.random_range(0..3)];
        let (resource, path) =
            [("payments/refunds", None), ("payments/refunds", Some("/refunds/7")), ("payments", None)]
                [self.random.random_range(0..3)];
        let secs = self.random.random_range(2..60);
        let (grant, change) = self.estate.grant(workload, resource, &["write"], path, secs);
        self.grants.push(grant.id);
        self.commit(vec![change]);
    }

    /// Ends every grant of somebody, so that whoever is told of it can be sure of a denial.
    fn revoke_grant(&mut self) {
        if self.grants.is_empty() {
            return;
        }
        let id = self.grants.swap_remove(self.random.random_range(0..self.grants.len()));
        let change = self.estate.revoke_grant(id);
        let position = self.commit(vec![change]);
        self.ask(position, Revoked::Grant(id));
    }

    fn revoke_token(&mut self) {
        let workload = ["storefront", "agent", "ci"][self.random.random_range(0..3)];
        let jti = self.observer.jti(workload);
        let change = self.estate.revoke(&json!({"kind": "token", "issuer": "test", "jti": &jti}));
        let position = self.commit(vec![change]);
        self.ask(position, Revoked::Token(jti));
        // Whose token was revoked gets another, and keeps trying the old one.
        if self.random.random() {
            self.observer.new_token(&self.estate, workload);
        }
    }

    fn policies(&mut self) {
        let forbid = r#"@id("no-writes") forbid(principal, action == Action::"write", resource);"#;
        let text = if self.random.random() { POLICIES.to_owned() } else { format!("{POLICIES}{forbid}") };
        let change = self.estate.put_policies(&text);
        self.commit(vec![change]);
    }

    fn ask(&mut self, position: Position, what: Revoked) {
        self.observer.revoked(position, what);
        // The operator's call fails when the control plane is down; the revision is in the log all the same.
        if !self.down[0] {
            self.control.asked.lock().unwrap().push((position, self.control.clock.now().wall));
        }
    }

    /// Commits changes as one revision, as the committer of any replica would.
    fn commit(&mut self, changes: Vec<Change>) -> Position {
        let index = &self.control.index;
        let revision = index.position().revision.next();
        let position = Position { epoch: index.position().epoch, revision };
        self.observer.committed(position, changes.clone());
        let changes = changes.into_iter().map(|change| Arc::new(stored(change, revision))).collect();
        let at = self.control.clock.now().wall;
        index.apply(Arc::new(Commit { revision, at, author: Arc::from("sim"), changes })).unwrap();
        position
    }

    /// The digest of a state that was built from nothing.
    fn rebuilt(&self) -> String {
        let mut builder = Builder::empty();
        let (position, all) = self.control.index.all();
        for stored in all {
            builder.apply(Change { kind: stored.kind, key: stored.key.to_string(), body: Some(stored.body.clone()) });
        }
        builder.finish(position).0.digest()
    }
}

fn stored(change: Change, revision: Revision) -> Stored {
    let kind: Kind = change.kind;
    let object = change.body.as_ref().map(|body| Object::parse(kind, body).unwrap());
    Stored::new(kind, Arc::from(change.key), revision, change.body.unwrap_or_default(), object)
}
