//! Grant policies: what they refuse to accept, and what they make of requests.
//!
//! Pure, like the module. The cookbook of `docs/grants.md` is validated here, policy by policy.

mod cookbook;

use serde_json::json;

use super::*;
use crate::clock::Timestamp;
use crate::grant::{NewGrantRequest, new_request_by};
use crate::object::{ApprovalStep, Grant, Needs, Party, PartyKind, Workload};

const NOW: Timestamp = Timestamp::from_secs(1_000);

fn workload(name: &str, environment: &str) -> Workload {
    serde_json::from_value(json!({
        "id": format!("spiffe://a/{name}"), "kind": "agent", "owner": "olga", "environment": environment,
        "roles": ["helper"], "labels": { "tier": "gold" },
    }))
    .unwrap()
}

fn request(by: &str, party: Party, resources: &[&str], change: impl FnOnce(&mut NewGrantRequest)) -> Grant {
    let resources = resources.iter().map(|r| r.parse().unwrap()).collect();
    let mut new = NewGrantRequest::new("spiffe://a/agent".parse().unwrap(), resources, vec!["write".to_owned()], 600);
    change(&mut new);
    new_request_by(new, by, party, NOW).unwrap()
}

fn group(name: &str) -> Party {
    Party { kind: PartyKind::Person, groups: vec![name.to_owned()] }
}

fn ask(policies: &str, grant: &Grant) -> Result<Needs, Refusal> {
    let policies = GrantPolicies::compile(policies).unwrap();
    let subject = workload("agent", "production");
    let requester = match grant.requester.kind {
        PartyKind::Workload => Requester::Workload(&subject),
        _ => Requester::Operator,
    };
    policies.request(&Ask { grant, workload: &subject, requester })
}

const RULES: &str = r#"
@id("writes") @approvals("security:2,lead") @max_duration("1h") @requires("reason")
permit(principal is Operator, action == Action::"request", resource in Service::"payments");

@id("production") @requires("ticket") @max_duration("30m") @approvals("lead:2")
permit(principal, action == Action::"request", resource in Service::"payments")
when { context.workload.environment == "production" && context.workload in Role::"helper" };

@id("reads") @auto_approve("true") @max_duration("15m")
permit(principal is Workload, action == Action::"request", resource == Route::"catalog/items")
when {
  context.for_itself && context.actions == ["write"]
    && context.workload.hasTag("tier") && context.workload.getTag("tier") == "gold"
};

@id("never-reports")
forbid(principal, action, resource == Route::"payments/reports");

@id("glass") @max_duration("20m")
permit(principal in Group::"on-call", action == Action::"break_glass", resource in Service::"payments");

@id("leads")
permit(principal in Group::"leads", action == Action::"approve", resource in Service::"payments")
when { context.step == "lead" && context.requester != "mallory" };
"#;

#[test]
fn the_strictest_of_all_terms_count() {
    let plain = || Party::default();
    let grant = request("alice", plain(), &["payments/refunds"], |r| {
        (r.reason, r.ticket) = ("why".to_owned(), Some("T-1".to_owned()));
    });
    let needs = ask(RULES, &grant).unwrap();
    assert_eq!(needs.steps, [ApprovalStep::new("lead", 2), ApprovalStep::new("security", 2)]);
    assert_eq!((needs.policies, needs.auto), (vec!["production".to_owned(), "writes".to_owned()], false));
    let field = |change: fn(&mut NewGrantRequest)| {
        let grant = request("alice", plain(), &["payments/refunds"], |r| {
            (r.reason, r.ticket) = ("why".to_owned(), Some("T-1".to_owned()));
            change(r);
        });
        match ask(RULES, &grant) {
            Err(Refusal::Terms(e)) => e.field,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(field(|r| r.reason.clear()), "reason");
    assert_eq!(field(|r| r.ticket = None), "ticket");
    assert_eq!(field(|r| r.duration_seconds = 1801), "duration_seconds");
}

#[test]
fn every_resource_must_be_permitted_and_any_forbid_refuses() {
    let of = |resources: &[&str]| ask(RULES, &request("alice", Party::default(), resources, |_| {}));
    assert_eq!(of(&["catalog"]), Err(Refusal::NoMatch));
    assert_eq!(of(&["payments/refunds", "catalog"]), Err(Refusal::NoMatch));
    assert_eq!(of(&["payments/reports"]), Err(Refusal::Forbidden(vec!["never-reports".to_owned()])));
    assert_eq!(of(&["payments/refunds", "payments/reports"]), of(&["payments/reports"]));
}

#[test]
fn a_whole_service_is_all_its_routes() {
    let of = |text: &str, change: fn(&mut NewGrantRequest)| {
        ask(text, &request("alice", Party::default(), &["payments"], change))
    };
    // A grant on the service would cover the route that nobody may have, whatever its path says.
    let text = "@id(\"all\") @approvals(\"lead:1\") permit(principal, action, resource in Service::\"payments\");";
    let text = text.replace("action,", "action == Action::\"request\",");
    assert!(of(&text, |_| {}).is_ok());
    let route = |rule: &str| format!("{text}\n@id(\"route\") {rule};");
    let never = route("forbid(principal, action, resource == Route::\"payments/reports\")");
    assert_eq!(of(&never, |_| {}), Err(Refusal::Forbidden(vec!["route".to_owned()])));
    assert_eq!(
        of(&never, |r| r.path = Some("/refunds/1".to_owned())),
        Err(Refusal::Forbidden(vec!["route".to_owned()]))
    );
    let others = route("forbid(principal, action, resource == Route::\"payroll/reports\")");
    assert!(of(&others, |_| {}).is_ok(), "a route of another service");
    // What a policy asks for on a route is asked for on the whole.
    let stricter = "permit(principal, action == Action::\"request\", resource == Route::\"payments/reports\")";
    let stricter = route(&format!("@approvals(\"lead:2\") {stricter}"));
    assert_eq!(of(&stricter, |_| {}).unwrap().steps, [ApprovalStep::new("lead", 2)]);
    let any = route("forbid(principal, action, resource is Route)");
    assert_eq!(of(&any, |_| {}), Err(Refusal::Forbidden(vec!["route".to_owned()])));
    // So it is with approvals.
    let votes = format!("{text}\n@id(\"vote\") permit(principal, action == Action::\"approve\", resource);");
    let not_this = "forbid(principal, action == Action::\"approve\", resource == Route::\"payments/reports\")";
    let vetoed = format!("{votes}\n@id(\"route\") {not_this};");
    let grant = request("alice", Party::default(), &["payments"], |_| {});
    let vote = |text: &str| {
        let subject = workload("agent", "production");
        let asked = Ask { grant: &grant, workload: &subject, requester: Requester::Operator };
        GrantPolicies::compile(text).unwrap().may_approve(&asked, "bob", &Party::default(), "lead")
    };
    assert_eq!(vote(&votes), Ok(()));
    assert_eq!(vote(&vetoed), Err(Refusal::Forbidden(vec!["route".to_owned()])));
}

#[test]
fn an_error_refuses_although_a_permit_matches() {
    let text = r#"
        @id("all") permit(principal, action == Action::"request", resource);
        @id("overflow") forbid(principal, action == Action::"request", resource)
        when { context.duration_seconds * 9223372036854775807 > 0 };
    "#;
    let grant = request("alice", Party::default(), &["payments"], |_| {});
    assert_eq!(ask(text, &grant), Err(Refusal::Failed(vec!["overflow".to_owned()])));
}

#[test]
fn approval_by_policy_is_for_whom_it_says() {
    let itself = Party { kind: PartyKind::Workload, groups: Vec::new() };
    let grant = request("spiffe://a/agent", itself, &["catalog/items"], |_| {});
    let needs = ask(RULES, &grant).unwrap();
    assert_eq!((needs.auto, needs.steps.len()), (true, 0));
    let by_alice = request("alice", Party::default(), &["catalog/items"], |_| {});
    assert_eq!(ask(RULES, &by_alice), Err(Refusal::NoMatch));
    // Where another policy that matches wants an approval, it is needed.
    let also = format!("{RULES}\n@id(\"also\") permit(principal, action == Action::\"request\", resource);");
    let needs = ask(&also, &grant).unwrap();
    assert_eq!((needs.auto, needs.steps), (false, vec![ApprovalStep::new("approval", 1)]));
}

#[test]
fn break_glass_has_policies_of_its_own() {
    let glass = |party: Party, seconds: u64| {
        ask(
            RULES,
            &request("alice", party, &["payments/refunds"], |r| {
                (r.break_glass, r.reason, r.duration_seconds) = (true, "down".to_owned(), seconds);
            }),
        )
    };
    assert!(glass(group("on-call"), 1200).is_ok());
    assert!(matches!(glass(group("on-call"), 1201), Err(Refusal::Terms(_))));
    assert_eq!(glass(Party::default(), 60), Err(Refusal::NoMatch), "to ask is not to break glass");
}

#[test]
fn who_approves_a_step_is_policy() {
    let policies = GrantPolicies::compile(RULES).unwrap();
    let subject = workload("agent", "production");
    let grant = request("alice", Party::default(), &["payments/refunds"], |_| {});
    let ask = Ask { grant: &grant, workload: &subject, requester: Requester::Operator };
    let may = |who: &str, party: Party, step: &str| policies.may_approve(&ask, who, &party, step).is_ok();
    assert!(may("bob", group("leads"), "lead"));
    assert!(!may("bob", group("leads"), "security"));
    assert!(!may("bob", group("others"), "lead"));
    assert!(!may("spiffe://a/w", Party { kind: PartyKind::Workload, ..group("leads") }, "lead"));
    let by_mallory = request("mallory", Party::default(), &["payments/refunds"], |_| {});
    let ask = Ask { grant: &by_mallory, ..ask };
    assert!(policies.may_approve(&ask, "bob", &group("leads"), "lead").is_err());
}

#[test]
fn what_is_not_understood_is_refused_with_its_place() {
    let permit = |annotations: &str, action: &str| {
        format!("// one\n@id(\"x\")\n  {annotations}\npermit(principal, action == Action::\"{action}\", resource);\n")
    };
    let cases = [
        (permit("@max_durations(\"1h\")", "request"), (3, 3), "not a known annotation"),
        (permit("@max_duration(\"1 moon\")", "request"), (3, 3), "is not a duration"),
        (permit("@max_duration(\"31d\")", "request"), (3, 3), "is not a duration"),
        (permit("@approvals(\"security:0\")", "request"), (3, 3), "1 to 10 approvals"),
        (permit("@approvals(\"a,a\")", "request"), (3, 3), "occurs twice"),
        (permit("@approvals(\"\")", "request"), (3, 3), "is not a name"),
        (permit("@requires(\"luck\")", "request"), (3, 3), "cannot be required"),
        (permit("@auto_approve(\"yes\")", "request"), (3, 3), "neither"),
        (permit("@auto_approve(\"true\")", "request"), (3, 3), "needs a `@max_duration`"),
        (permit("@auto_approve(\"true\") @max_duration(\"1h\") @approvals(\"a\")", "request"), (3, 45), "no approvals"),
        (permit("@approvals(\"a\")", "break_glass"), (3, 3), "has no `@approvals`"),
        (permit("@requires(\"reason\")", "approve"), (3, 3), "has no `@requires`"),
        (permit("", "request").replace("action == Action::\"request\"", "action"), (4, 1), "names one action"),
        (permit("@requires(\"reason\")", "request").replace("permit", "forbid"), (3, 3), "a forbid has no terms"),
        (permit("", "request").replace("resource)", "resource) when { context.colour }"), (4, 70), "colour"),
        (permit("", "fly"), (4, 29), "fly"),
        (permit("", "request").replace("@id(\"x\")", ""), (0, 0), "has no `@id"),
    ];
    for (text, place, message) in cases {
        let errors = GrantPolicies::compile(&text).unwrap_err();
        let error = &errors.0[0];
        assert!(errors.to_string().contains(message), "{message}: {errors}");
        if place != (0, 0) {
            assert_eq!(error.line, Some(place.0), "{errors}");
        }
        if place.0 == 3 {
            assert_eq!(error.column, Some(place.1), "{errors}");
        }
    }
}
