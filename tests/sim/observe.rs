//! Looks at every enforcement point as its clients do, and holds what it answers against what is known to be true.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use portcullis::authz::{self, Builder, Change, Inputs, NoMemo, Reason, Snapshot};
use portcullis::clock::{Clock, Timestamp};
use portcullis::control::fleet::Receipt;
use portcullis::object::GrantId;
use portcullis::testing::{Estate, request};
use portcullis::wire::Position;

use super::hosts::{Edge, MAX_STALENESS, identity};

/// One of each kind of answer: standing policy, a grant with and without a path, a strict route.
const REQUESTS: [(&str, &str); 4] =
    [("GET", "/catalog/1"), ("POST", "/refunds/7"), ("POST", "/refunds/8"), ("POST", "/payouts/1")];
/// How many of the latest tokens are tried.
const TRIED: usize = 5;
const WORKLOADS: [&str; 3] = ["storefront", "agent", "ci"];
/// A message that was under way when a link was cut, and one turn of everybody's.
const SLACK: Duration = Duration::from_millis(500);

pub(crate) struct Observer {
    seed: u64,
    edges: Vec<Arc<Edge>>,
    /// Every token that is tried: whose, its `jti`, itself.
    tokens: Vec<(&'static str, String, String)>,
    /// What the state is at each position, built in the obvious order.
    history: BTreeMap<Position, Arc<Snapshot>>,
    revoked: Vec<(Position, Revoked)>,
    /// What is promised about one edge: from now on, or from a time of the control plane on.
    promised: Vec<Promise>,
    /// Since when each edge has been cut off.
    cut_since: Vec<Option<Duration>>,
    positions: Vec<Option<Position>>,
    /// When each edge allowed something last.
    allowed_at: Vec<Option<Duration>>,
    pub(crate) trace: Vec<String>,
}

/// What was revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Revoked {
    Grant(GrantId),
    /// By its `jti`.
    Token(String),
}

#[derive(Debug)]
struct Promise {
    edge: usize,
    what: Revoked,
    /// By the control plane's clock; absent for one that has applied it.
    from: Option<Timestamp>,
}

impl Observer {
    pub(crate) fn new(seed: u64, estate: &Estate, edges: Vec<Arc<Edge>>) -> Self {
        let mut observer = Self {
            seed,
            cut_since: vec![None; edges.len()],
            positions: vec![None; edges.len()],
            allowed_at: vec![None; edges.len()],
            edges,
            tokens: Vec::new(),
            history: BTreeMap::new(),
            revoked: Vec::new(),
            promised: Vec::new(),
            trace: Vec::new(),
        };
        for workload in WORKLOADS {
            observer.new_token(estate, workload);
        }
        observer
    }

    /// Gives a workload another token.
    pub(crate) fn new_token(&mut self, estate: &Estate, workload: &'static str) {
        let jti = format!("jti-{}", self.tokens.len());
        let mut claims = estate.claims(workload);
        claims["jti"] = jti.as_str().into();
        self.tokens.push((workload, jti, estate.signer.sign(&claims).unwrap()));
    }

    /// The `jti` of the latest token of a workload.
    pub(crate) fn jti(&self, workload: &str) -> String {
        self.tokens.iter().rfind(|(of, ..)| *of == workload).expect("a token").1.clone()
    }

    pub(crate) fn committed(&mut self, position: Position, changes: Vec<Change>) {
        let before = self.history.values().next_back();
        let mut builder = before.map_or_else(Builder::empty, |before| Builder::on(before));
        changes.into_iter().for_each(|change| builder.apply(change));
        self.history.insert(position, Arc::new(builder.finish(position).0));
    }

    pub(crate) fn revoked(&mut self, position: Position, what: Revoked) {
        self.revoked.push((position, what));
    }

    /// Takes a receipt at its word.
    pub(crate) fn receipt(&mut self, position: Position, receipt: &Receipt) {
        self.trace.push(format!(
            "receipt of {}: {} applied, {} pending",
            position.revision.0,
            receipt.applied.len(),
            receipt.pending.len()
        ));
        let what = self.revoked.iter().find(|(at, _)| *at == position).expect("a receipt of a revocation").1.clone();
        for (n, edge) in self.edges.iter().enumerate() {
            let name = identity(&edge.name).to_string();
            let applied = receipt.applied.iter().any(|a| a.enforcement_point == name);
            let from = (!applied).then_some(receipt.deny_after);
            self.promised.push(Promise { edge: n, what: what.clone(), from });
        }
    }

    /// Asks every edge everything.
    pub(crate) fn look(&mut self, elapsed: Duration, control_now: Timestamp, cut: [bool; 3]) {
        for (n, cut) in cut.into_iter().enumerate() {
            self.cut_since[n] = if cut { self.cut_since[n].or(Some(elapsed)) } else { None };
            let line = self.look_at(n, elapsed, control_now);
            self.trace.push(line);
        }
    }

    fn look_at(&mut self, n: usize, elapsed: Duration, control_now: Timestamp) -> String {
        let edge = Arc::clone(&self.edges[n]);
        let gate = edge.gate.lock().unwrap();
        let Some(gate) = &*gate else {
            self.positions[n] = None;
            return format!("{elapsed:?} {} is down", edge.name);
        };
        let world = gate.state().load();
        let position = world.snapshot.as_ref().map(|s| s.position());
        let at = format!("seed {}, {elapsed:?}, {} at {position:?}", self.seed, edge.name);
        assert!(position >= self.positions[n], "{at}: fell back from {:?}", self.positions[n]);
        self.positions[n] = position;
        let settings = authz::Settings::default();
        let is_cut_off = self.cut_since[n].is_some_and(|since| elapsed > since + MAX_STALENESS + SLACK);
        let mut line = format!("{elapsed:?} {} {:?}:", edge.name, position.map(|p| p.revision.0));
        for (workload, jti, token) in self.tokens.iter().rev().take(TRIED) {
            let headers = [("authorization", format!("Bearer {token}"))];
            for (method, path) in REQUESTS {
                let request = request(method, path, &headers);
                let decision = gate.check(&request);
                let what = format!("{at}: {workload} {method} {path}: {}", decision.reason);
                let allowed = decision.permit().is_some();
                if allowed {
                    self.allowed_at[n] = Some(elapsed);
                }
                // Without the code of a denial: which of several grants that ended it tells of hangs on their ids.
                line = format!("{line} {}", if allowed { decision.reason.code() } else { decision.reason.family() });
                // Invariant 3: it decides on the state of its revision, whatever order things arrived in.
                if let Some(position) = position {
                    let inputs = Inputs {
                        snapshot: Some(&self.history[&position]),
                        lease: world.lease,
                        now: edge.clock.now(),
                        proofs: None,
                        settings: &settings,
                        uses: None,
                    };
                    let expected = authz::decide(&request, inputs, &NoMemo);
                    assert_eq!((decision.reason, decision.grant), (expected.reason, expected.grant), "{what}");
                } else {
                    assert_eq!(decision.reason, Reason::SystemNotReady, "{what}");
                }
                // Invariants 4 and 9.
                assert!(!(allowed && is_cut_off), "{what}, but it has been cut off for too long");
                // Invariant 2.
                for promise in self.promised.iter().filter(|p| p.edge == n) {
                    let in_force = promise.from.is_none_or(|from| control_now > from);
                    let concerned = match &promise.what {
                        Revoked::Grant(id) => decision.grant == Some(*id),
                        Revoked::Token(revoked) => revoked == jti,
                    };
                    assert!(!(allowed && in_force && concerned), "{what}, against the receipt: {promise:?}");
                }
            }
        }
        line
    }

    /// When an edge allowed something last.
    pub(crate) fn last_allow(&self, edge: usize) -> Option<Duration> {
        self.allowed_at[edge]
    }

    /// Everything is up and connected again, and nothing has happened for a while.
    pub(crate) fn at_rest(&self, tip: Position, rebuilt: &str) {
        for edge in &self.edges {
            let gate = edge.gate.lock().unwrap();
            let world = gate.as_ref().expect("it runs").state().load();
            let snapshot = world.snapshot.as_ref().expect("it has a state");
            let at = format!("seed {}, {} at rest", self.seed, edge.name);
            assert_eq!(snapshot.position(), tip, "{at}");
            assert_eq!(snapshot.digest(), rebuilt, "{at}: invariant 5");
            let age = world.lease.expect("a lease").age(edge.clock.now());
            assert!(age < Duration::from_secs(6), "{at}: the last word is {age:?} old");
        }
    }
}

impl Drop for Observer {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let before = self.trace.len().saturating_sub(60);
            println!("seed {}, before it failed:", self.seed);
            self.trace.iter().skip(before).for_each(|line| println!("{line}"));
        }
    }
}
