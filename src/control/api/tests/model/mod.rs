//! Random lives of grants and workloads over the real store, through the real API, against a slow and obvious model.
//!
//! Whatever happens, in whatever order, with restarts and clocks that jump, with grant policies and without: the state is
//! the model's; what is over stays over; `not_after` is fixed once and never comes later; nobody approves what they asked
//! for, twice, or for a workload that they answer for, and no program where a person is wanted; a request that is changed
//! has lost its votes; what a sidecar would let through is what the model says is in force.

mod life;
mod step;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use self::life::{Asked, Being, Model, Rules, shifted};
use self::step::{ACTORS, Ask, Step, WORKLOADS, steps};
use super::harness::{Answer, NOW, Site, workload, workload_path};
use crate::authz::CanonicalPath;
use crate::clock::{Clock, Timestamp};
use crate::control::rules;
use crate::control::store::{Expect, Unit, Write};
use crate::grant::{Apart, Circumstances, CompactGrant, GrantIndex, Sought, WorkloadKey};
use crate::object::{ApprovalStep, Grant, GrantState, Kind, Object, VoteKind};

/// People, one of whom answers for a workload, and a program.
const NAMES: [&str; ACTORS] = ["alice", "bob", "carol", "dave", "olga", "robot"];
const OLGA: usize = 4;
const ROBOT: usize = 5;

/// Two steps; programs ask, and people approve.
const POLICIES: &str = r#"
@id("ask") @approvals("lead:1,security:1")
permit(principal is Operator, action == Action::"request", resource == Route::"payments/refunds");
@id("lead") permit(principal is Operator, action == Action::"approve", resource)
when { principal.kind == "person" && context.step == "lead" };
@id("security") permit(principal, action == Action::"approve", resource)
when { context.step == "security" && (principal == Operator::"bob" || principal == Operator::"carol" || principal == Operator::"olga") };
"#;

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
    /// When each grant was to end, and `elapsed` and `lost` when its times were fixed.
    starts: Vec<Option<(Duration, Duration)>>,
}

fn spiffe(workload: usize) -> String {
    format!("spiffe://test.example/w{workload}")
}

impl World {
    async fn new(under_policies: bool) -> Self {
        let site = Site::new().await;
        site.furnish().await;
        // `olga` answers for the first, which the last acts for.
        for n in 0..WORKLOADS {
            let mut document = workload(&spiffe(n));
            document["owner"] = json!(if n == 0 { NAMES[OLGA] } else { "team" });
            document["delegators"] = if n == 2 { json!([spiffe(0)]) } else { json!([]) };
            site.call("PUT", &workload_path(&spiffe(n)), document).await.expect(201);
        }
        let mut tokens = Vec::new();
        for (n, name) in NAMES.iter().enumerate() {
            let kind = if n == ROBOT { "automation" } else { "person" };
            let made = site.call("POST", "/v1/operators", json!({ "name": name, "kind": kind })).await.expect(201);
            tokens.push(made.body["token"].as_str().unwrap().to_owned());
        }
        let steps = if under_policies {
            site.call("POST", "/v1/grant-policies", json!({ "text": POLICIES })).await.expect(201);
            vec![("lead", (0..ROBOT).collect()), ("security", vec![1, 2, OLGA])]
        } else {
            vec![(ApprovalStep::DEFAULT, (0..ACTORS).collect())]
        };
        let model = Model::new(Rules { steps }, [(Some(OLGA), None), (None, None), (None, Some(0))]);
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
        if let Some((answer, taken)) = self.on_grant(step, now).await {
            assert!(answer.status.is_success() == taken, "{step:?}: {} {}", answer.status, answer.body);
            assert!(!answer.status.is_server_error(), "{step:?}: {}", answer.body);
        }
        match step {
            Step::Ask(ask) => self.ask(ask, now).await,
            Step::Suspend(n)
            | Step::Resume(n)
            | Step::Retire(n)
            | Step::RevokeWorkload(n)
            | Step::LiftRevocation(n) => {
                self.on_workload(step, n, now).await;
            }
            Step::Alter { grant } => self.alter(grant).await,
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
                self.model.sweep(now);
            }
            Step::Restart => {
                let wall = shifted(NOW.saturating_add(self.clocks.elapsed), self.clocks.off);
                self.site = Some(self.site.take().unwrap().restart_at(wall).await);
                self.clocks.lost += now.since(self.now());
            }
            _ => {}
        }
        self.compare();
    }

    /// The number of a grant, counted from the latest back.
    fn named(&self, n: usize) -> Option<usize> {
        self.ids.len().checked_sub(n + 1)
    }

    async fn ask(&mut self, ask: Ask, now: Timestamp) {
        let renews = ask.renews.and_then(|n| self.named(n));
        let mut body = json!({
            "workload": spiffe(ask.workload), "resources": ["payments/refunds"], "actions": ["write"],
            "duration_seconds": ask.seconds, "reason": "ticket 7", "reuse": ask.reuse,
        });
        if let Some(starts) = ask.starts {
            body["starts_at"] = json!(shifted(now, starts));
        }
        if let Some(old) = renews {
            body["renews"] = json!(self.ids[old]);
        }
        let answer = self.post(ask.by, "/v1/grant-requests", body).await;
        let id = answer.body["object"]["id"].as_str();
        match self.model.ask(ask, renews, now) {
            Asked::Refused => assert!(answer.status.is_client_error(), "{ask:?}: {}", answer.body),
            Asked::New => {
                assert_eq!(answer.status, 201, "{ask:?}: {}", answer.body);
                self.ids.push(id.unwrap().to_owned());
            }
            Asked::Reused(giving) => {
                assert_eq!(answer.status, 200, "{ask:?}: {}", answer.body);
                assert!(giving.iter().any(|n| Some(&*self.ids[*n]) == id), "{ask:?}: {}", answer.body);
            }
        }
    }

    /// Steps in the life of a grant; `None` for others, and while there are no grants.
    async fn on_grant(&mut self, step: Step, now: Timestamp) -> Option<(Answer, bool)> {
        let digest = |n: usize, other: bool| {
            let digest = self.seen[n].as_ref().map_or("", |grant| &grant.digest);
            // Hardly ever the same; when it is, it is no other.
            if other { digest.replace('0', "1").replace('a', "0") } else { digest.to_owned() }
        };
        let same = |n: usize, digest: &str| self.seen[n].as_ref().is_some_and(|grant| grant.digest == digest);
        let requests = |n: usize, verb: &str| format!("/v1/grant-requests/{}/{verb}", self.ids[n]);
        let grants = |n: usize, verb: &str| format!("/v1/grants/{}/{verb}", self.ids[n]);
        Some(match step {
            Step::Approve { by, grant, step, other_digest } => {
                let n = self.named(grant)?;
                let digest = digest(n, other_digest);
                let names = self.model.rules.steps.iter().map(|(name, _)| *name).chain(["nobody"]).collect::<Vec<_>>();
                let step = step.map(|first| names[usize::from(!first)]);
                let same = same(n, &digest);
                let mut body = json!({ "digest": digest });
                if let Some(step) = step {
                    body["step"] = json!(step);
                }
                (self.post(by, &requests(n, "approve"), body).await, self.model.approve(by, n, step, same, now))
            }
            Step::Deny { by, grant, other_digest } => {
                let n = self.named(grant)?;
                let digest = digest(n, other_digest);
                let same = same(n, &digest);
                let answer = self.post(by, &requests(n, "deny"), json!({ "digest": digest })).await;
                (answer, self.model.deny(by, n, same, now))
            }
            Step::Withdraw { by, grant } => {
                let n = self.named(grant)?;
                (self.post(by, &requests(n, "withdraw"), Value::Null).await, self.model.withdraw(by, n, now))
            }
            Step::Drop { by, grant } => {
                let n = self.named(grant)?;
                (self.post(by, &grants(n, "drop"), Value::Null).await, self.model.drop(by, n, now))
            }
            Step::Revoke { by, grant } => {
                let n = self.named(grant)?;
                (self.post(by, &grants(n, "revoke"), Value::Null).await, self.model.revoke(n, now))
            }
            _ => return None,
        })
    }

    /// Puts another request in the place of one that waits, with its votes, as somebody could who can write to the store.
    async fn alter(&mut self, grant: usize) {
        let Some(n) = self.named(grant) else { return };
        let Some(mut altered) = self.seen[n].clone().filter(|grant| grant.state == GrantState::Pending) else { return };
        altered.reason.push('!');
        altered.digest = altered.request_digest();
        let write = Write::put(&Object::Grant(Box::new(altered.clone())), Expect::Any);
        self.site().core.commit(Unit::new("mallory", "test", "").with(write)).await.unwrap();
        self.model.alter(n);
        // It is compared with what it is now.
        self.seen[n] = Some(altered);
    }

    /// Steps in the life of a workload.
    async fn on_workload(&mut self, step: Step, n: usize, now: Timestamp) {
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
                // What has been retired is not revoked once more: what retired it is found.
                self.post(0, "/v1/revocations", target).await.expect(if retired { 200 } else { 201 });
                self.model.beings[n].revoked += usize::from(!retired);
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

    /// What must hold at any time.
    fn compare(&mut self) {
        let index = Arc::clone(self.site().core.index());
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
            let ended = grant.ended.as_ref().map(|e| e.at);
            let votes: Vec<_> = life.votes.iter().map(|(by, step, _)| (NAMES[*by], *step)).collect();
            assert!(!life.forgotten, "{grant:?} is still there");
            assert_eq!((grant.state, times, ended), (life.state, life.times, life.ended), "{grant:?}");
            assert_eq!(given(grant), votes, "{grant:?}");
            assert_eq!(grant.digest, grant.request_digest());
            self.apart(grant, life.workload);
            if let Some(before) = &self.seen[n] {
                assert_eq!(grant.digest, before.digest, "what was asked for never changes");
                assert!(before.not_after.is_none() || before.not_after == grant.not_after, "fixed at activation");
                assert!(!before.state.is_terminal() || before == grant, "final");
            }
            // However the clocks were set: as much as passed since its times were fixed is gone.
            if let Some((_, to)) = times {
                let Clocks { elapsed, lost, starts, .. } = &mut self.clocks;
                let (from, lost_before) = *starts[n].get_or_insert((*elapsed, *lost));
                let waited = grant.starts_at.map_or(Duration::ZERO, |start| start.since(grant.requested_at));
                if *elapsed - from >= grant.duration() + waited {
                    assert!(now.saturating_add(*lost - lost_before) >= to, "longer than it was given");
                }
            }
        }
        self.seen = grants;
        self.enforced(now);
    }

    /// Separation of duties, from the document alone.
    fn apart(&self, grant: &Grant, workload: usize) {
        let approvals: Vec<_> = grant.votes.iter().filter(|v| v.vote == VoteKind::Approve).collect();
        let approvers: BTreeSet<&str> = approvals.iter().map(|v| &*v.approver).collect();
        assert_eq!(approvers.len(), approvals.len(), "nobody twice: {grant:?}");
        assert!(!approvers.contains(&*grant.requested_by), "nobody for themselves: {grant:?}");
        // Whoever is barred now has always been: what was retired never comes back.
        let barred = self.model.barred(OLGA, workload);
        assert!(!barred || !approvers.contains(NAMES[OLGA]), "nobody who answers for it: {grant:?}");
        assert!(self.model.rules.steps.len() == 1 || !approvers.contains(NAMES[ROBOT]), "no program: {grant:?}");
        let counting: BTreeSet<_> = approvals.iter().filter(|v| v.digest == grant.digest).map(|v| &v.step).collect();
        let was_in_force = matches!(grant.state, GrantState::Active | GrantState::Scheduled);
        assert!(!was_in_force || counting.len() == self.model.rules.steps.len(), "each step by itself: {grant:?}");
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

/// Who has voted, and for which step: none for a denial.
fn given(grant: &Grant) -> Vec<(&str, Option<&str>)> {
    let step = |v: &crate::object::Vote| v.step.clone().unwrap_or_else(|| ApprovalStep::DEFAULT.to_owned());
    let steps = ["lead", "security", ApprovalStep::DEFAULT];
    let named = |v| (v as &crate::object::Vote, steps.into_iter().find(|name| *name == step(v)));
    grant
        .votes
        .iter()
        .map(named)
        .map(|(v, step)| (&*v.approver, step.filter(|_| v.vote == VoteKind::Approve)))
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, max_shrink_iters: 400, ..ProptestConfig::default() })]

    #[test]
    fn grants_and_workloads_live_as_the_model_says(under_policies in any::<bool>(), steps in steps()) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut world = World::new(under_policies).await;
            for step in steps {
                world.take(step).await;
            }
        });
    }
}
