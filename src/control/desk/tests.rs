//! The desk over a real store: people, scripts and workloads that ask and approve under policies that change.
//!
//! Long because each way in which a request ceases to hold is tried.

use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;
use crate::clock::{Clock, ManualClock, SharedClock, Timestamp};
use crate::control::core::{Core, CoreConfig, Intent};
use crate::control::operators::Operators;
use crate::control::principal::{OperatorKind, Via};
use crate::control::store::{SqliteStore, Unit, Write};
use crate::control::sweep;
use crate::grant::NewGrantRequest;
use crate::object::{GrantPolicySet, GrantState, Object};

const NOW: Timestamp = Timestamp::from_secs(1_700_000_000);
const AGENT: &str = "spiffe://test.example/agent";
const PER_RESOURCE: usize = 40;
const OTHER: &str = "spiffe://test.example/other";

/// Two steps for people, none for an agent that asks for itself for a short time, and break-glass for those on call.
const POLICIES: &str = r#"
@id("people") @approvals("security:1,lead:2") @max_duration("10m") @requires("reason")
permit(principal is Operator, action == Action::"request", resource in Service::"payments");
@id("itself") @auto_approve("true") @max_duration("5m")
permit(principal is Workload, action == Action::"request", resource == Route::"payments/refunds")
when { context.for_itself && context.workload.kind == "agent" };
@id("no-reports") forbid(principal is Workload, action, resource == Route::"payments/reports");
@id("glass") permit(principal in Group::"on-call", action == Action::"break_glass", resource);
@id("security") permit(principal in Group::"security", action == Action::"approve", resource) when { context.step == "security" };
@id("leads") permit(principal in Group::"leads", action == Action::"approve", resource) when { context.step == "lead" };
"#;

struct Site {
    directory: TempDir,
    clock: Arc<ManualClock>,
    core: Arc<Core>,
    operators: Arc<Operators>,
    desk: Desk,
}

fn person(name: &str, groups: &[&str]) -> Principal {
    let groups = groups.iter().map(|group| Arc::from(*group)).collect();
    Principal { groups, ..Principal::new(name, PrincipalKind::Person, Via::Oidc) }
}

fn workload(id: &str) -> Principal {
    Principal::new(id, PrincipalKind::Workload(id.parse().unwrap()), Via::Workload)
}

fn refunds(change: impl FnOnce(&mut NewGrantRequest)) -> NewGrantRequest {
    let resources = vec!["payments/refunds".parse().unwrap()];
    let mut new = NewGrantRequest::new(AGENT.parse().unwrap(), resources, vec!["write".to_owned()], 300);
    new.reason = "run 42".to_owned();
    change(&mut new);
    new
}

impl Site {
    async fn new(policies: Option<&str>) -> Self {
        let directory = TempDir::new().unwrap();
        let clock = Arc::new(ManualClock::new(NOW));
        let shared: SharedClock = Arc::clone(&clock) as SharedClock;
        let store = Arc::new(SqliteStore::open(directory.path(), NOW).await.unwrap());
        let core = Core::open(store, Arc::clone(&shared), CoreConfig::default()).await.unwrap();
        let file = directory.path().join("bootstrap-token");
        let operators = Operators::open(Arc::clone(core.store()), shared, &file).await.unwrap();
        let desk = Desk::new(Arc::clone(&operators), Limits::of(&core, PER_RESOURCE));
        let site = Self { directory, clock, core, desk, operators };
        for (id, owner) in [(AGENT, "olga"), (OTHER, "otto")] {
            site.put(Kind::Workload, Self::agent(id, owner)).await;
        }
        let routes = json!([
            { "name": "refunds", "path": "/refunds/{*}", "grants": { "max_duration_seconds": 600 } },
            { "name": "reports", "path": "/reports/{*}" },
        ]);
        site.put(Kind::Service, json!({ "name": "payments", "routes": routes })).await;
        if let Some(policies) = policies {
            site.publish(policies).await;
        }
        site
    }

    fn agent(id: &str, owner: &str) -> Value {
        json!({ "id": id, "kind": "agent", "owner": owner, "environment": "test" })
    }

    async fn put(&self, kind: Kind, document: Value) {
        let object = Object::parse(kind, document.to_string().as_bytes()).unwrap();
        self.core.commit(Unit::new("test", "test", "").with(Write::put(&object, Expect::Any))).await.unwrap();
    }

    async fn publish(&self, text: &str) {
        let set = GrantPolicySet::new(text.to_owned(), "test".to_owned());
        self.put(Kind::GrantPolicySet, serde_json::to_value(set).unwrap()).await;
    }

    async fn ask(&self, by: &Principal, new: NewGrantRequest) -> Result<Asked, Refusal> {
        let (now, reuse) = (self.clock.now().wall, new.reuse);
        let asked = grant::new_request_by(new, &by.name, by.party(), now)?;
        Ok(self.core.transact(&intent(), |index| self.desk.ask(index, &asked, reuse, now)).await?.1)
    }

    async fn new_grant(&self, by: &Principal, new: NewGrantRequest) -> Grant {
        match self.ask(by, new).await {
            Ok(Asked::New(grant)) => grant,
            other => panic!("{other:?}"),
        }
    }

    async fn approve(&self, by: &Principal, grant: &Grant, step: Option<&str>) -> Result<Grant, Refusal> {
        let (id, digest) = (&*grant.id.to_string(), &*grant.digest);
        let approval = Approval { id, approver: &by.name, party: by.party(), digest, step };
        let now = self.clock.now().wall;
        Ok(self.core.transact(&intent(), |index| self.desk.approve(index, &approval, now)).await?.1)
    }

    fn grant(&self, grant: &Grant) -> Grant {
        let stored = self.core.index().get(Kind::Grant, &grant.id.to_string()).unwrap();
        rules::as_grant(&stored).unwrap().clone()
    }

    async fn sweep(&self) -> usize {
        sweep::sweep(&self.core, &self.desk).await.unwrap()
    }
}

fn intent() -> Intent {
    Intent::system("test", "test")
}

fn why<T: std::fmt::Debug>(result: Result<T, Refusal>) -> String {
    result.unwrap_err().to_string()
}

#[tokio::test]
async fn every_step_needs_approvers_of_its_own() {
    let site = Site::new(Some(POLICIES)).await;
    let grant = site.new_grant(&person("idp:alice", &[]), refunds(|_| {})).await;
    let needs = grant.needs.clone().unwrap();
    assert_eq!((needs.policies, needs.auto), (vec!["people".to_owned()], false));
    assert_eq!(needs.steps, [ApprovalStep::new("security", 1), ApprovalStep::new("lead", 2)]);

    let both = person("idp:sam", &["security", "leads"]);
    assert!(why(site.approve(&person("idp:bob", &[]), &grant, None).await).contains("no grant policy permits it"));
    let leads = person("idp:lea", &["leads"]);
    assert!(why(site.approve(&leads, &grant, Some("security")).await).contains("no grant policy permits it"));
    assert!(why(site.approve(&leads, &grant, Some("chief")).await).contains("it has: security, lead"));
    // Without a step, an approval counts where it is needed first.
    let one = site.approve(&both, &grant, None).await.unwrap();
    assert_eq!((one.state, one.votes[0].step.as_deref()), (GrantState::Pending, Some("security")));
    assert!(why(site.approve(&both, &grant, Some("lead")).await).contains("has voted already"));
    let more = person("idp:sue", &["security"]);
    assert!(why(site.approve(&more, &grant, Some("security")).await).contains("every approval that it needs"));
    assert_eq!(site.approve(&leads, &grant, None).await.unwrap().state, GrantState::Pending);
    // Neither who asked, nor the owner, nor a workload, whatever groups they are in.
    for who in [person("idp:alice", &["leads"]), person("olga", &["leads"]), person("idp:ole", &["leads", "olga"])] {
        assert!(matches!(site.approve(&who, &grant, None).await, Err(Refusal::Rule(_))), "{who:?}");
    }
    assert!(why(site.approve(&workload(OTHER), &grant, None).await).contains("only operators approve"));
    site.clock.advance(Duration::from_secs(60));
    let active = site.approve(&person("idp:len", &["leads"]), &grant, None).await.unwrap();
    assert_eq!((active.state, active.votes.len()), (GrantState::Active, 3));
    assert_eq!(active.not_after, Some(NOW.saturating_add(Duration::from_secs(360))), "counted from its activation");
}

#[tokio::test]
async fn what_policies_do_not_permit_is_refused_by_name() {
    let site = Site::new(Some(POLICIES)).await;
    let alice = person("idp:alice", &[]);
    let field = |result: Result<Asked, Refusal>| match result {
        Err(Refusal::Field(error)) => error.field,
        other => panic!("{other:?}"),
    };
    assert_eq!(field(site.ask(&alice, refunds(|r| r.reason.clear())).await), "reason");
    assert_eq!(field(site.ask(&alice, refunds(|r| r.duration_seconds = 601)).await), "duration_seconds");
    assert_eq!(
        field(site.ask(&alice, refunds(|r| r.workload = "spiffe://test.example/x".parse().unwrap())).await),
        "workload"
    );
    let reports = |r: &mut NewGrantRequest| r.resources = vec!["payments/reports".parse().unwrap()];
    let refused = site.ask(&workload(AGENT), refunds(reports)).await;
    assert!(why(refused).contains("grant policies forbid it: no-reports"));
    let for_other = refunds(|r| r.workload = OTHER.parse().unwrap());
    assert!(why(site.ask(&workload(AGENT), for_other).await).contains("no grant policy permits it"));
    let by_nobody = refunds(|r| r.workload = OTHER.parse().unwrap());
    assert!(why(site.ask(&workload("spiffe://test.example/gone"), by_nobody).await).contains("is not registered"));
    let suspension = json!({ "revocation": uuid::Uuid::nil(), "by": "olga", "at": NOW });
    let mut suspended = Site::agent(AGENT, "olga");
    suspended["suspended"] = suspension;
    site.put(Kind::Workload, suspended).await;
    assert_eq!(field(site.ask(&alice, refunds(|_| {})).await), "workload");
}

#[tokio::test]
async fn an_agent_is_approved_by_policy_and_reuses_what_it_has() {
    let site = Site::new(Some(POLICIES)).await;
    let agent = workload(AGENT);
    let grant = site.new_grant(&agent, refunds(|_| {})).await;
    assert_eq!((grant.state, grant.needs.as_ref().map(|n| n.auto)), (GrantState::Active, Some(true)));
    assert_eq!(grant.not_after, Some(NOW.saturating_add(Duration::from_secs(300))));
    let again = site.ask(&agent, refunds(|r| r.duration_seconds = 200)).await.unwrap();
    assert!(matches!(again, Asked::Reused(found, _) if found.id == grant.id));
    // Not for longer, not for another action, not when it is not wanted.
    site.clock.advance(Duration::from_secs(1));
    let longer = site.new_grant(&agent, refunds(|_| {})).await;
    assert_ne!(longer.id, grant.id);
    let other = site.new_grant(&agent, refunds(|r| r.actions = vec!["read".to_owned()])).await;
    assert_ne!(other.id, grant.id);
    let anew = site.new_grant(&agent, refunds(|r| (r.duration_seconds, r.reuse) = (10, false))).await;
    assert!(![grant.id, longer.id].contains(&anew.id));
    // Approval by policy has a limit.
    assert!(matches!(site.ask(&agent, refunds(|r| r.duration_seconds = 301)).await, Err(Refusal::Field(_))));
}

#[tokio::test]
async fn without_policies_another_operator_approves_and_a_workload_asks_for_itself() {
    let site = Site::new(None).await;
    let grant = site.new_grant(&workload(AGENT), refunds(|_| {})).await;
    assert_eq!((grant.state, &grant.needs), (GrantState::Pending, &None));
    let for_other = refunds(|r| r.workload = OTHER.parse().unwrap());
    assert!(why(site.ask(&workload(AGENT), for_other).await).contains("asks only for itself"));
    let emergency = refunds(|r| r.break_glass = true);
    assert!(
        why(site.ask(&person("idp:alice", &["on-call"]), emergency).await).contains("break-glass needs a grant policy")
    );
    assert!(matches!(site.approve(&person("olga", &[]), &grant, None).await, Err(Refusal::Rule(_))));
    // Policies that came after it count as well.
    site.publish(POLICIES).await;
    let auto = site.approve(&person("idp:bob", &[]), &grant, None).await;
    assert!(why(auto).contains("no grant policy permits it"), "nobody may approve the step `approval` now");
    let late = r#"@id("late") permit(principal == Operator::"idp:bob", action == Action::"approve", resource);"#;
    site.publish(&format!("{POLICIES}{late}")).await;
    let active = site.approve(&person("idp:bob", &[]), &grant, None).await.unwrap();
    assert_eq!(active.state, GrantState::Active);
}

#[tokio::test]
async fn an_agent_in_a_loop_is_stopped() {
    let site = Site::new(None).await;
    for _ in 0..32 {
        site.new_grant(&workload(AGENT), refunds(|_| {})).await;
    }
    assert!(why(site.ask(&workload(AGENT), refunds(|_| {})).await).contains("32 requests that wait"));
    site.new_grant(&person("idp:alice", &[]), refunds(|_| {})).await;
}

/// Approved by three people, to start in an hour.
async fn scheduled(site: &Site) -> Grant {
    let start = site.clock.now().wall.saturating_add(Duration::from_secs(3600));
    let grant = site.new_grant(&person("idp:alice", &[]), refunds(|r| r.starts_at = Some(start))).await;
    site.approve(&person("idp:sue", &["security"]), &grant, None).await.unwrap();
    site.approve(&person("idp:lea", &["leads"]), &grant, None).await.unwrap();
    let approved = site.approve(&person("len", &["leads"]), &grant, None).await.unwrap();
    assert_eq!((approved.state, approved.not_before), (GrantState::Scheduled, Some(start)));
    approved
}

#[tokio::test]
async fn a_scheduled_grant_starts_at_its_time_if_everything_still_holds() {
    let site = Site::new(Some(POLICIES)).await;
    let grant = scheduled(&site).await;
    site.clock.advance(Duration::from_secs(3599));
    assert_eq!(site.sweep().await, 0);
    site.clock.advance(Duration::from_secs(1));
    assert_eq!(site.sweep().await, 1);
    let active = site.grant(&grant);
    assert_eq!((active.state, active.not_after), (GrantState::Active, grant.not_after));
    site.clock.advance(Duration::from_secs(300));
    assert_eq!(site.sweep().await, 1);
    assert_eq!(site.grant(&grant).state, GrantState::Ended);
}

#[tokio::test]
async fn a_scheduled_grant_does_not_start_when_something_has_gone() {
    let mut suspended = Site::agent(AGENT, "olga");
    suspended["suspended"] = json!({ "revocation": uuid::Uuid::nil(), "by": "olga", "at": NOW });
    let service = |routes: Value| json!({ "name": "payments", "routes": routes });
    let shorter = json!([{ "name": "refunds", "path": "/refunds/{*}", "grants": { "max_duration_seconds": 60 } }]);
    let changes = [
        (Kind::Workload, suspended, "is suspended"),
        (Kind::Workload, Site::agent(AGENT, "len"), "1 in step `lead`"),
        (Kind::Service, service(json!([])), "there is no `payments/refunds`"),
        (Kind::Service, service(shorter), "at most 60 seconds"),
    ];
    for (kind, document, reason) in changes {
        let site = Site::new(Some(POLICIES)).await;
        let grant = scheduled(&site).await;
        site.put(kind, document).await;
        site.clock.advance(Duration::from_secs(3600));
        assert_eq!(site.sweep().await, 1);
        let ended = site.grant(&grant);
        assert_eq!(ended.state, GrantState::Ended, "{reason}");
        let told = ended.ended.unwrap().reason;
        assert!(told.contains("it could not start") && told.contains(reason), "{told}");
    }
    // Policies that want more approvals, that are of other approvers, or that forbid it.
    for (from, to, reason) in [
        ("security:1", "security:2", "1 in step `security`"),
        (r#"Group::"leads""#, r#"Group::"chiefs""#, "2 in step `lead`"),
        ("forbid(principal is Workload, action,", "forbid(principal, action in [Action::\"request\"],", "forbid"),
        ("principal is Operator", "principal is Workload", "no grant policy permits it"),
    ] {
        let site = Site::new(Some(POLICIES)).await;
        let grant = scheduled(&site).await;
        let changed = POLICIES.replace(from, to).replace(r#"resource == Route::"payments/reports""#, "resource");
        site.publish(&changed).await;
        site.clock.advance(Duration::from_secs(3600));
        assert_eq!(site.sweep().await, 1);
        let ended = site.grant(&grant);
        assert_eq!(ended.state, GrantState::Ended, "{reason}");
        let told = ended.ended.unwrap().reason;
        assert!(told.contains(reason), "{reason}: {told}");
    }
}

#[tokio::test]
async fn approvals_of_who_is_no_operator_any_more_do_not_count() {
    let site = Site::new(Some(POLICIES)).await;
    site.operators.create("len", OperatorKind::Person, &intent()).await.unwrap();
    let grant = scheduled(&site).await;
    site.operators.revoke("len", &intent()).await.unwrap();
    site.clock.advance(Duration::from_secs(3600));
    assert_eq!(site.sweep().await, 1);
    let told = site.grant(&grant).ended.unwrap().reason;
    assert!(told.contains("1 in step `lead`"), "{told}");
    // Who asked counts as well.
    site.operators.create("ann", OperatorKind::Automation, &intent()).await.unwrap();
    let asked = site.new_grant(&Principal::new("ann", PrincipalKind::Automation, Via::Token), refunds(|_| {})).await;
    site.operators.revoke("ann", &intent()).await.unwrap();
    let refused = site.approve(&person("idp:sue", &["security"]), &asked, None).await;
    assert!(why(refused).contains("`ann` is not an operator any more"));
}

#[tokio::test]
async fn a_renewal_is_a_request_of_its_own_and_gives_nothing_new() {
    let site = Site::new(Some(POLICIES)).await;
    let agent = workload(AGENT);
    let old = site.new_grant(&agent, refunds(|_| {})).await;
    let renewal = site.new_grant(&agent, refunds(|r| r.renews = Some(old.id))).await;
    assert_eq!((renewal.renews, renewal.state), (Some(old.id), GrantState::Active), "not answered with the old one");
    assert_ne!(renewal.digest, old.digest);
    let field = |result: Result<Asked, Refusal>| match result {
        Err(Refusal::Field(error)) => error.field,
        other => panic!("{other:?}"),
    };
    let more = refunds(|r| (r.renews, r.actions) = (Some(old.id), vec!["delete".to_owned()]));
    assert_eq!(field(site.ask(&agent, more).await), "actions[0]");
    let unknown = refunds(|r| r.renews = Some(crate::object::GrantId(uuid::Uuid::nil())));
    assert_eq!(field(site.ask(&agent, unknown).await), "renews");
    // What was revoked is not renewed.
    let revoked = grant::revoke(&old, "bob", "", NOW).unwrap();
    site.put(Kind::Grant, serde_json::to_value(revoked).unwrap()).await;
    assert_eq!(field(site.ask(&agent, refunds(|r| r.renews = Some(old.id))).await), "renews");
}

#[tokio::test]
async fn break_glass_is_for_people_now_for_a_short_time_and_leaves_a_review() {
    let site = Site::new(Some(POLICIES)).await;
    let glass = |change: fn(&mut NewGrantRequest)| {
        refunds(|r| {
            r.break_glass = true;
            change(r);
        })
    };
    let on_call = person("idp:alice", &["on-call"]);
    let grant = site.new_grant(&on_call, glass(|_| {})).await;
    assert_eq!((grant.state, grant.votes.len(), grant.break_glass), (GrantState::Active, 0, true));
    let stored = site.core.index().get(Kind::Review, &grant.id.to_string()).unwrap();
    let review = rules::as_review(&stored).unwrap();
    assert_eq!((&*review.requested_by, &*review.reason, &review.closed), ("idp:alice", "run 42", &None));
    assert_eq!(site.core.index().emergencies(), (1, 1));
    assert_eq!(stored.revision, site.core.index().get(Kind::Grant, &grant.id.to_string()).unwrap().revision);
    // An emergency is never answered with what is there, and ordinary requests never with an emergency's grant.
    assert_ne!(site.new_grant(&on_call, glass(|r| r.duration_seconds = 60)).await.id, grant.id);
    assert_eq!(site.new_grant(&on_call, refunds(|r| r.duration_seconds = 60)).await.state, GrantState::Pending);

    let field = |result: Result<Asked, Refusal>| match result {
        Err(Refusal::Field(error)) => error.field,
        other => panic!("{other:?}"),
    };
    assert_eq!(field(site.ask(&on_call, glass(|r| r.reason.clear())).await), "reason");
    assert_eq!(field(site.ask(&on_call, glass(|r| r.duration_seconds = 3601)).await), "duration_seconds");
    assert_eq!(field(site.ask(&on_call, glass(|r| r.starts_at = Some(NOW))).await), "starts_at");
    assert_eq!(field(site.ask(&on_call, glass(|r| r.uses = Some(1))).await), "uses");
    for kind in [PrincipalKind::Automation, PrincipalKind::Workload(AGENT.parse().unwrap())] {
        let other = Principal { groups: Arc::from([Arc::from("on-call")]), ..Principal::new(AGENT, kind, Via::Token) };
        assert_eq!(field(site.ask(&other, glass(|_| {})).await), "break_glass");
    }
    assert!(why(site.ask(&person("idp:bob", &[]), glass(|_| {})).await).contains("no grant policy permits it"));
    // The review outlives the grant.
    site.clock.advance(Duration::from_secs(90_000));
    site.sweep().await;
    site.clock.advance(Duration::from_secs(90_000));
    site.sweep().await;
    assert!(site.core.index().get(Kind::Grant, &grant.id.to_string()).is_none());
    assert_eq!(site.core.index().emergencies(), (2, 0));
    assert!(site.directory.path().exists());
}

#[tokio::test]
async fn policies_that_this_version_cannot_read_refuse_everything() {
    let site = Site::new(None).await;
    site.publish("this is not Cedar").await;
    assert!(matches!(site.ask(&person("idp:alice", &[]), refunds(|_| {})).await, Err(Refusal::Unreadable)));
}

#[tokio::test]
async fn a_request_that_is_too_old_is_not_approved_however_late_the_sweeper_is() {
    let site = Site::new(None).await;
    let grant = site.new_grant(&person("idp:alice", &[]), refunds(|_| {})).await;
    site.clock.advance(Duration::from_secs(86_399));
    let in_time = site.new_grant(&person("idp:alice", &[]), refunds(|_| {})).await;
    site.clock.advance(Duration::from_secs(1));
    let refused = site.approve(&person("idp:bob", &[]), &grant, None).await;
    assert!(why(refused).contains("it waited for its approval until 2023-11-15T22:13:20"), "expired");
    assert_eq!(site.approve(&person("idp:bob", &[]), &in_time, None).await.unwrap().state, GrantState::Active);
}

/// Nobody learns from a refusal whether another workload exists, how it is, or which policies are about it.
#[tokio::test]
async fn a_workload_that_may_not_ask_for_others_learns_nothing_of_them() {
    let named = r#"@id("no-other") forbid(principal, action == Action::"request", resource) when { context.workload.owner == "otto" };"#;
    for (policies, told) in [
        (None, "without grant policies a workload asks only for itself"),
        (Some(POLICIES.to_owned()), "no grant policy permits it"),
        (Some(format!("{POLICIES}{named}")), "no grant policy permits it"),
    ] {
        let site = Site::new(policies.as_deref()).await;
        let mut suspended = Site::agent("spiffe://test.example/suspended", "olga");
        suspended["suspended"] = json!({ "revocation": uuid::Uuid::nil(), "by": "olga", "at": NOW });
        site.put(Kind::Workload, suspended).await;
        for other in [OTHER, "spiffe://test.example/suspended", "spiffe://test.example/nobody"] {
            let ask = |change: fn(&mut NewGrantRequest)| {
                refunds(|r| {
                    r.workload = other.parse().unwrap();
                    change(r);
                })
            };
            assert_eq!(why(site.ask(&workload(AGENT), ask(|_| {})).await), told, "{other}");
            // What is wrong with the rest is told in any case.
            let nothing = site.ask(&workload(AGENT), ask(|r| r.actions = vec!["fly".to_owned()])).await;
            assert!(why(nothing).contains("`fly` is no action"), "{other}");
        }
        // Operators are told.
        let nobody = refunds(|r| r.workload = "spiffe://test.example/nobody".parse().unwrap());
        assert!(why(site.ask(&person("idp:alice", &[]), nobody).await).contains("is not registered"));
    }
}

/// What a plan rests on and what has nothing to do with it.
#[tokio::test]
async fn a_plan_is_void_when_the_workload_is_revoked_and_not_for_other_workloads() {
    let revocation = |id: &str| {
        let target = json!({ "kind": "workload", "workload": id });
        json!({ "id": uuid::Uuid::new_v4(), "target": target, "reason": "", "created_by": "x", "created_at": NOW })
    };
    let mut named = Site::agent(AGENT, "olga");
    named["delegators"] = json!([OTHER, "spiffe://test.example/not/yet"]);
    let mut below = Site::agent(AGENT, "olga");
    below["delegators"] = json!(["spiffe://test.example/people/*"]);
    let stranger = || (Kind::Workload, Site::agent("spiffe://test.example/stranger", "x"));
    let cases = [
        (&named, (Kind::Revocation, revocation(AGENT)), true),
        (&named, stranger(), false),
        (&named, (Kind::Workload, Site::agent(OTHER, "idp:bob")), true),
        (&named, (Kind::Workload, Site::agent("spiffe://test.example/not/yet", "idp:bob")), true),
        (&below, (Kind::Workload, Site::agent("spiffe://test.example/people/bob", "idp:bob")), true),
    ];
    for (agent, (kind, document), is_void) in cases {
        let site = Site::new(None).await;
        site.put(Kind::Workload, agent.clone()).await;
        let new = refunds(|_| {});
        let asked = grant::new_request_by(new, "idp:alice", person("idp:alice", &[]).party(), NOW).unwrap();
        let plan = site.desk.ask(site.core.index(), &asked, true, NOW).unwrap();
        site.put(kind, document.clone()).await;
        let unit = Unit { guards: plan.guards, changes: plan.changes, ..Unit::new("test", "test", "") };
        assert_eq!(site.core.commit(unit).await.is_err(), is_void, "{document}");
    }
}

#[tokio::test]
async fn so_many_grants_of_a_workload_on_a_resource_and_no_more() {
    let site = Site::new(Some(POLICIES)).await;
    let alice = person("idp:alice", &["on-call"]);
    let one = || refunds(|r| r.reuse = false);
    let mut grants = Vec::new();
    for _ in 0..PER_RESOURCE {
        grants.push(site.new_grant(&alice, one()).await);
    }
    let refused = site.ask(&alice, one()).await;
    assert!(matches!(refused, Err(Refusal::Conflict(_))), "{refused:?}");
    let told = why(refused);
    assert!(told.contains(AGENT) && told.contains("has 40 grants and requests on `payments/refunds`"), "{told}");
    // A grant on the whole service would be one more; on another of its routes, or for another workload, it is not.
    let on = |resource: &str| refunds(|r| (r.reuse, r.resources) = (false, vec![resource.parse().unwrap()]));
    assert!(why(site.ask(&alice, on("payments")).await).contains("on `payments`"));
    site.new_grant(&alice, on("payments/reports")).await;
    site.new_grant(&alice, refunds(|r| (r.reuse, r.workload) = (false, OTHER.parse().unwrap()))).await;
    // An emergency is not kept out, and what has ended makes room.
    site.new_grant(&alice, refunds(|r| r.break_glass = true)).await;
    for grant in grants.iter().take(2) {
        let ended = grant::withdraw(grant, "idp:alice", NOW).unwrap();
        site.put(Kind::Grant, serde_json::to_value(ended).unwrap()).await;
    }
    site.new_grant(&alice, one()).await;
}
