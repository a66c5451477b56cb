//! Random lives of grants and workloads over the real store, through the real API, against a slow and obvious model.
//!
//! Whatever happens, in whatever order, with restarts and clocks that jump: the state is the model's; what is over stays
//! over; `not_after` is fixed once and never comes later; nobody approves what they asked for, twice, or for a workload
//! that they answer for; what a sidecar would let through is what the model says is in force.

mod life;
mod step;

use std::collections::BTreeSet;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use self::life::{Being, Model};
use self::step::{ACTORS, Step, WORKLOADS, steps};
use super::harness::{Answer, Site, workload, workload_path};
use crate::authz::CanonicalPath;
use crate::clock::{Clock, Timestamp};
use crate::control::rules;
use crate::grant::{Apart, Circumstances, CompactGrant, GrantIndex, Sought, WorkloadKey};
use crate::object::{Grant, GrantState, Kind, VoteKind};

/// People, one of whom answers for a workload, and a program.
const NAMES: [&str; ACTORS] = ["alice", "bob", "carol", "olga", "robot"];
const OLGA: usize = 3;

struct World {
    /// Gone only while it restarts.
    site: Option<Site>,
    model: Model,
    tokens: Vec<String>,
    ids: Vec<String>,
    /// The documents after the last step.
    seen: Vec<Option<Grant>>,
    clocks: Clocks,
}

/// What really passed, whatever the clocks say.
#[derive(Default)]
struct Clocks {
    elapsed: Duration,
    /// How far the wall clock is off.
    off: i64,
    /// What restarts with a clock that was behind have made everybody forget.
    lost: Duration,
    /// `elapsed` and `lost` when each grant came into force.
    starts: Vec<Option<(Duration, Duration)>>,
}

fn spiffe(workload: usize) -> String {
    format!("spiffe://test.example/w{workload}")
}

impl World {
    async fn new() -> Self {
        let site = Site::new().await;
        site.furnish().await;
        for n in 0..WORKLOADS {
            let mut document = workload(&spiffe(n));
            document["owner"] = json!(if n == 0 { NAMES[OLGA] } else { "team" });
            site.call("PUT", &workload_path(&spiffe(n)), document).await.expect(201);
        }
        let mut tokens = Vec::new();
        for name in NAMES {
            let kind = if name == "robot" { "automation" } else { "person" };
            let made = site.call("POST", "/v1/operators", json!({ "name": name, "kind": kind })).await.expect(201);
            tokens.push(made.body["token"].as_str().unwrap().to_owned());
        }
        let model = Model::new((0..WORKLOADS).map(|n| (n == 0).then_some(OLGA)));
        Self { site: Some(site), model, tokens, ids: Vec::new(), seen: Vec::new(), clocks: Clocks::default() }
    }

    fn site(&self) -> &Site {
        self.site.as_ref().unwrap()
    }

    fn now(&self) -> Timestamp {
        self.site().clock.now().wall
    }

    async fn post(&self, by: usize, path: &str, body: Value) -> Answer {
        self.site().call_as(&self.tokens[by], "POST", path, body).await
    }

    /// Takes a step, in the world and in the model, and compares what came of it.
    async fn take(&mut self, step: Step) {
        let now = self.now();
        if let Some((answer, taken)) = self.ask_or_end(step, now).await {
            assert!(answer.status.is_success() == taken, "{step:?}: {} {}", answer.status, answer.body);
            assert!(!answer.status.is_server_error(), "{step:?}: {}", answer.body);
        }
        match step {
            Step::Suspend(n)
            | Step::Resume(n)
            | Step::Retire(n)
            | Step::RevokeWorkload(n)
            | Step::LiftRevocation(n) => {
                self.turn(step, n, now).await;
            }
            Step::Pass(seconds) => {
                self.site().clock.advance(Duration::from_secs(seconds));
                self.clocks.elapsed += Duration::from_secs(seconds);
            }
            Step::SetClock(seconds) => {
                self.site().clock.set_by(seconds * 1000);
                self.clocks.off += seconds;
            }
            Step::Sweep => {
                self.site().sweep().await;
                // What has ended is forgotten some time later, so once is enough for each of them.
                self.model.sweep(now);
            }
            Step::Restart => self.restart(now).await,
            _ => {}
        }
        self.compare();
    }

    /// Steps in the life of a grant; `None` for others, and while there are no grants.
    async fn ask_or_end(&mut self, step: Step, now: Timestamp) -> Option<(Answer, bool)> {
        let named = |n: usize| self.ids.len().checked_sub(n + 1);
        Some(match step {
            Step::Ask { by, workload, seconds } => {
                let body = json!({
                    "workload": spiffe(workload), "resources": ["payments/refunds"], "actions": ["write"],
                    "duration_seconds": seconds, "reason": "ticket 7", "reuse": false,
                });
                let answer = self.post(by, "/v1/grant-requests", body).await;
                if let Some(id) = answer.body["object"]["id"].as_str() {
                    self.ids.push(id.to_owned());
                }
                (answer, self.model.ask(by, workload, seconds, now))
            }
            Step::Vote { by, grant, approve, other_digest } => {
                let n = named(grant)?;
                let digest = self.seen[n].as_ref().map_or("", |grant| &grant.digest);
                let digest = if other_digest { digest.replace('0', "1").replace('a', "0") } else { digest.to_owned() };
                let verb = if approve { "approve" } else { "deny" };
                let path = format!("/v1/grant-requests/{}/{verb}", self.ids[n]);
                let answer = self.post(by, &path, json!({ "digest": digest })).await;
                let same = self.seen[n].as_ref().is_some_and(|grant| grant.digest == digest);
                (answer, self.model.vote(by, n, approve, same, now))
            }
            Step::Withdraw { by, grant } => {
                let n = named(grant)?;
                let answer = self.post(by, &format!("/v1/grant-requests/{}/withdraw", self.ids[n]), Value::Null).await;
                (answer, self.model.withdraw(by, n, now))
            }
            Step::Drop { by, grant } => {
                let n = named(grant)?;
                let answer = self.post(by, &format!("/v1/grants/{}/drop", self.ids[n]), Value::Null).await;
                (answer, self.model.drop(by, n, now))
            }
            Step::Revoke { by, grant } => {
                let n = named(grant)?;
                let answer = self.post(by, &format!("/v1/grants/{}/revoke", self.ids[n]), Value::Null).await;
                (answer, self.model.revoke(n, now))
            }
            _ => return None,
        })
    }

    /// Steps in the life of a workload.
    async fn turn(&mut self, step: Step, n: usize, now: Timestamp) {
        let path = workload_path(&spiffe(n));
        let why = json!({ "reason": "because" });
        let Being { suspended, retired, revoked, .. } = self.model.beings[n].clone();
        match step {
            Step::Suspend(_) => {
                self.post(0, &format!("{path}/suspend"), why).await.expect(if retired { 409 } else { 200 });
                self.model.beings[n].suspended |= !retired;
            }
            Step::Resume(_) => {
                self.post(0, &format!("{path}/resume"), why).await.expect(if retired { 409 } else { 200 });
                self.model.beings[n].suspended &= retired;
            }
            Step::Retire(_) => {
                self.site().call("DELETE", &path, Value::Null).await.expect(200);
                if !retired {
                    self.model.retire(n, now);
                }
                let again = self.site().call("PUT", &path, workload(&spiffe(n))).await;
                assert_eq!(again.status, 409, "an id is never used again");
            }
            Step::RevokeWorkload(_) => {
                let target = json!({ "target": { "kind": "workload", "workload": spiffe(n) } });
                self.post(0, "/v1/revocations", target).await.expect(201);
                self.model.beings[n].revoked += 1;
            }
            _ => {
                let standing = self.site().core.index().revocations_of(&spiffe(n));
                assert_eq!(standing.len(), revoked + usize::from(suspended) + usize::from(retired));
                let mut lifted = 0;
                for revocation in standing {
                    let lift = format!("/v1/revocations/{}/lift", revocation.key);
                    let answer = self.post(0, &lift, why.clone()).await;
                    assert!(matches!(answer.status.as_u16(), 200 | 409), "{}", answer.body);
                    lifted += usize::from(answer.status == 200);
                }
                let expected = if retired { 0 } else { revoked };
                assert_eq!(lifted, expected, "neither what a retirement left nor a suspension");
                self.model.beings[n].revoked -= lifted;
            }
        }
    }

    /// The process ends and starts again, on a machine whose wall clock says what it says.
    async fn restart(&mut self, before: Timestamp) {
        let wall = super::harness::NOW.saturating_add(self.clocks.elapsed);
        let off = Duration::from_secs(self.clocks.off.unsigned_abs());
        let wall = if self.clocks.off < 0 { wall.saturating_sub(off) } else { wall.saturating_add(off) };
        self.site = Some(self.site.take().unwrap().restart_at(wall).await);
        self.clocks.lost += before.since(self.now());
    }

    /// What must hold at any time.
    fn compare(&mut self) {
        let index = std::sync::Arc::clone(self.site().core.index());
        let now = self.now();
        let current = |id: &String| index.get(Kind::Grant, id).and_then(|stored| rules::as_grant(&stored).cloned());
        let grants: Vec<Option<Grant>> = self.ids.iter().map(current).collect();
        assert_eq!(index.list(Kind::Grant).len(), grants.iter().flatten().count(), "no others");
        self.seen.resize(grants.len(), None);
        self.clocks.starts.resize(grants.len(), None);
        for (n, (grant, life)) in grants.iter().zip(&self.model.lives).enumerate() {
            let Some(grant) = grant else {
                assert!(life.forgotten, "{life:?} is gone");
                continue;
            };
            let times = grant.not_before.zip(grant.not_after);
            let votes: Vec<_> =
                grant.votes.iter().map(|v| (position(&v.approver), v.vote == VoteKind::Approve)).collect();
            let ended = grant.ended.as_ref().map(|e| e.at);
            assert!(!life.forgotten, "{grant:?} is still there");
            assert_eq!((grant.state, times, ended, &votes), (life.state, life.times, life.ended, &life.votes));
            assert_eq!(grant.digest, grant.request_digest());
            self.apart(grant);
            if let Some(before) = &self.seen[n] {
                assert_eq!(grant.digest, before.digest, "what was asked for never changes");
                assert!(before.not_after.is_none() || before.not_after == grant.not_after, "fixed at activation");
                assert!(!before.state.is_terminal() || before == grant, "final");
            }
            // However the clocks were set: as much as passed since it came into force is gone.
            if let Some((_, to)) = times {
                let Clocks { elapsed, lost, starts, .. } = &mut self.clocks;
                let (from, lost_before) = *starts[n].get_or_insert((*elapsed, *lost));
                if *elapsed - from >= grant.duration() {
                    assert!(now.saturating_add(*lost - lost_before) >= to, "longer than it was given");
                }
            }
        }
        self.seen = grants;
        self.enforced(now);
    }

    /// Separation of duties, from the document alone.
    fn apart(&self, grant: &Grant) {
        let approvers: Vec<&str> =
            grant.votes.iter().filter(|v| v.vote == VoteKind::Approve).map(|v| &*v.approver).collect();
        assert!(!approvers.contains(&&*grant.requested_by), "{grant:?}");
        assert_eq!(approvers.iter().collect::<BTreeSet<_>>().len(), approvers.len(), "{grant:?}");
        assert!(grant.workload.as_str() != spiffe(0) || !approvers.contains(&NAMES[OLGA]), "{grant:?}");
        assert!(grant.state != GrantState::Active || !approvers.is_empty(), "{grant:?}");
        assert!(grant.votes.iter().all(|v| v.digest == grant.digest), "{grant:?}");
    }

    /// What a sidecar that has all of this lets through, by a clock that is right and by one that is behind.
    fn enforced(&self, now: Timestamp) {
        let mut grants = GrantIndex::new(1);
        for grant in self.seen.iter().flatten() {
            grants.put(&CompactGrant::read(&CompactGrant::encode(grant)).unwrap(), 1);
        }
        let path = CanonicalPath::parse("/refunds/7").unwrap();
        let request = Circumstances::new(("POST", "/refunds/7"), &[], None, None);
        let find = |n: usize, now| {
            let sought = Sought {
                resource: ["payments/refunds", "payments"],
                action: "write",
                path: &path,
                environment: "test",
                request: &request,
                now,
            };
            let found = grants.find(&WorkloadKey::of(&spiffe(n)), &sought, Apart::Id, |_| false);
            found.active.iter().map(|a| a.id.to_string()).collect::<BTreeSet<_>>()
        };
        for n in 0..WORKLOADS {
            let expected: BTreeSet<_> = self.model.in_force(n, now).into_iter().map(|n| self.ids[n].clone()).collect();
            assert_eq!(find(n, now), expected);
            let behind = find(n, now.saturating_sub(Duration::from_secs(120)));
            let over = |id: &String| self.model.lives[self.ids.iter().position(|i| i == id).unwrap()].ended.is_some();
            assert!(!behind.iter().any(over), "a clock that is behind brings nothing back");
        }
    }
}

fn position(name: &str) -> usize {
    NAMES.iter().position(|n| *n == name).unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn grants_and_workloads_live_as_the_model_says(steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new().await;
            for step in steps {
                world.take(step).await;
            }
        });
    }
}
