//! Evaluations: what an application is told of somebody is what they would be told, and less where nobody can show anything.
//!
//! Long because the ways in which a subject without a credential could get more than its credential would give are all here.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Value, json};

use crate::authz::{
    About, AboutCall, AboutResource, Asker, Decision, Deferred, Evaluation, Found, MAX_EXAMINED, Reason, Search,
};
use crate::cache::{CacheSizes, Gate};
use crate::clock::Clock;
use crate::object::{Kind, WorkloadPattern};
use crate::policy::{AskedFacts, Properties};
use crate::state::State;
use crate::testing::{Estate, changed, request};

struct Desk {
    estate: Estate,
    state: Arc<State>,
    gate: Gate,
    id: Arc<str>,
    may_assert: Vec<WorkloadPattern>,
}

impl Desk {
    fn of(estate: Estate) -> Self {
        let state = estate.state();
        let sizes = CacheSizes { tokens: 100, decisions: 100 };
        let gate = Gate::new(Arc::clone(&state), Arc::clone(&estate.clock) as _, sizes);
        let may_assert = vec![WorkloadPattern("spiffe://test.example/*".to_owned())];
        Self { estate, state, gate, id: Arc::from(Estate::id("app")), may_assert }
    }

    fn new() -> Self {
        Self::of(Estate::new())
    }

    fn publish(&self) {
        self.state.publish(Arc::new(self.estate.snapshot()));
    }

    fn change<T>(&mut self, change: impl FnOnce(&mut Estate) -> T) -> T {
        let changed = change(&mut self.estate);
        self.publish();
        changed
    }

    fn asker(&self) -> Asker<'_> {
        Asker { id: &self.id, may_assert: &self.may_assert }
    }

    /// The answer, which is the same cold and warm.
    fn judge(&self, evaluation: &Evaluation<'_>) -> Decision {
        let first = self.gate.hold().evaluate(evaluation, self.asker(), true).unwrap();
        for may_verify in [true, false] {
            let again = self.gate.hold().evaluate(evaluation, self.asker(), may_verify).unwrap();
            assert_eq!((again.reason, again.grant), (first.reason, first.grant), "{evaluation:?}");
        }
        assert_eq!(first.permit().is_some(), first.reason.is_allow());
        assert_eq!(first.asked_by.as_ref(), Some(&self.id));
        first
    }

    fn reason(&self, evaluation: &Evaluation<'_>) -> Reason {
        self.judge(evaluation).reason
    }
}

fn about<'a>(subject: &'a str, resource: &'a str, action: &'a str) -> Evaluation<'a> {
    let resource = match resource.contains('/') {
        true => AboutResource::Route(resource),
        false => AboutResource::Service(resource),
    };
    let subject = About::Workload(subject);
    Evaluation { subject, resource, action, call: None, asked: AskedFacts::default(), min_revision: None }
}

fn with_call<'a>(evaluation: Evaluation<'a>, method: &'a str, path: &'a str) -> Evaluation<'a> {
    Evaluation { call: Some(AboutCall { method, path, host: None }), ..evaluation }
}

fn properties(value: &Value) -> Properties {
    Properties::of(value.as_object().unwrap().clone())
}

#[test]
fn a_route_is_asked_about_by_name_by_request_and_as_the_one_of_its_service() {
    let desk = Desk::new();
    let (storefront, agent) = (Estate::id("storefront"), Estate::id("agent"));
    let by_name = about(&storefront, "catalog/items", "read");
    let allowed = desk.judge(&by_name);
    assert_eq!(allowed.reason, Reason::AllowPolicy);
    assert_eq!(allowed.workload.as_deref(), Some(&*storefront));
    assert_eq!((allowed.resource.as_deref(), allowed.action.as_deref()), (Some("catalog/items"), Some("read")));
    assert_eq!(desk.reason(&about(&storefront, "catalog", "read")), Reason::AllowPolicy);
    for evaluation in [about(&storefront, "catalog/items", "read"), about(&storefront, "catalog", "read")] {
        assert_eq!(desk.reason(&with_call(evaluation, "GET", "/catalog/7")), Reason::AllowPolicy);
    }
    let denied = desk.judge(&about(&agent, "catalog/items", "read"));
    assert_eq!(denied.reason, Reason::EntitlementNoGrant);
    assert_eq!(denied.grant_request.as_ref().map(|hint| &*hint.resource), Some("catalog/items"));

    // What is not there, or is something else.
    for (resource, action) in [("catalog/items", "approve"), ("catalog/other", "read"), ("nothing", "read")] {
        assert_eq!(desk.reason(&about(&storefront, resource, action)), Reason::PolicyNoMatch, "{resource} {action}");
    }
    let read = || about(&storefront, "catalog/items", "read");
    for (method, path) in [("GET", "/elsewhere"), ("PUT", "/catalog/7"), ("POST", "/refunds/7")] {
        assert_eq!(desk.reason(&with_call(read(), method, path)), Reason::PolicyNoMatch, "{method} {path}");
    }
    assert_eq!(desk.reason(&with_call(read(), "GET", "/catalog/%2e%2e")), Reason::InputAmbiguousPath);
    assert_eq!(desk.reason(&with_call(read(), "", "/catalog/7")), Reason::InputMalformed);
    let nothing = Evaluation { resource: AboutResource::Nothing, ..read() };
    assert_eq!(desk.reason(&nothing), Reason::PolicyNoMatch);
    // Two routes of the service have the action: which is meant cannot be known.
    assert_eq!(desk.reason(&about(&storefront, "payments", "write")), Reason::InputMalformed);
}

#[test]
fn an_application_vouches_only_for_whom_it_may() {
    let mut desk = Desk::new();
    let storefront = Estate::id("storefront");
    let evaluation = about(&storefront, "catalog/items", "read");
    for (pattern, reason) in [
        ("spiffe://test.example/storefront", Reason::AllowPolicy),
        ("spiffe://test.example/*", Reason::AllowPolicy),
        ("spiffe://test.example/agent", Reason::CredentialMissing),
        ("spiffe://test.example/storefront/*", Reason::CredentialMissing),
        ("spiffe://other.example/*", Reason::CredentialMissing),
    ] {
        desk.may_assert = vec![WorkloadPattern(pattern.to_owned())];
        assert_eq!(desk.reason(&evaluation), reason, "{pattern}");
    }
    desk.may_assert = Vec::new();
    assert_eq!(desk.reason(&evaluation), Reason::CredentialMissing);
    // A token is as good as at any other door.
    let token = desk.estate.token("storefront");
    let with_token = |id, token| Evaluation { subject: About::Token { id, token }, ..evaluation.clone() };
    let held = desk.gate.hold();
    assert_eq!(held.evaluate(&with_token(&storefront, &token), desk.asker(), false).unwrap_err(), Deferred::Token);
    let judged = desk.judge(&with_token(&storefront, &token));
    assert_eq!((judged.reason, judged.token_id.as_deref()), (Reason::AllowPolicy, Some("jti-storefront")));
    // It is whose it is, whoever else is named.
    let agent = Estate::id("agent");
    assert_eq!(desk.reason(&with_token(&agent, &token)), Reason::CredentialSubject);
    assert_eq!(desk.reason(&with_token(&storefront, "a.b.c")), Reason::CredentialMalformed);
    let nobody = Evaluation { subject: About::Nobody("no such type"), ..evaluation.clone() };
    assert_eq!(desk.reason(&nobody), Reason::CredentialSubject);
    desk.estate.clock.advance(Duration::from_secs(299));
    desk.state.renew(desk.estate.lease());
    assert_eq!(desk.reason(&with_token(&storefront, &token)), Reason::AllowPolicy);
    desk.estate.clock.advance(Duration::from_secs(120));
    desk.state.renew(desk.estate.lease());
    assert_eq!(desk.reason(&with_token(&storefront, &token)), Reason::CredentialExpired);
}

#[test]
fn what_takes_a_proof_or_a_certificate_is_denied() {
    let mut desk = Desk::new();
    let storefront = Estate::id("storefront");
    let read = about(&storefront, "catalog/items", "read");
    let bound = json!({"cnf": {"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}});
    let token = desk.estate.signer.sign(&changed(desk.estate.claims("storefront"), &bound)).unwrap();
    let with_token = Evaluation { subject: About::Token { id: &storefront, token: &token }, ..read.clone() };
    assert_eq!(desk.reason(&with_token), Reason::CredentialPopMissing);

    let token = desk.estate.token("storefront");
    let with_token = Evaluation { subject: About::Token { id: &storefront, token: &token }, ..read.clone() };
    for (authentication, reason) in [
        ("token", Reason::AllowPolicy),
        ("any", Reason::AllowPolicy),
        ("certificate", Reason::CredentialMissing),
        ("both", Reason::CredentialMissing),
    ] {
        desk.change(|estate| {
            let items = json!({"name": "items", "path": "/catalog/{*}", "authentication": authentication});
            estate.put(Kind::Service, &json!({"name": "catalog", "routes": [items]}))
        });
        assert_eq!(desk.reason(&read), reason, "{authentication}");
        assert_eq!(desk.reason(&with_token), reason, "{authentication}");
    }
}

#[test]
fn revocations_freshness_and_errors_are_as_at_other_doors() {
    let storefront = Estate::id("storefront");
    let read = || about(&storefront, "catalog/items", "read");
    for (target, reason) in [
        (json!({"kind": "workload", "workload": storefront}), Reason::RevokedWorkload),
        (json!({"kind": "issuer", "issuer": "test"}), Reason::RevokedIssuer),
    ] {
        let mut desk = Desk::new();
        assert_eq!(desk.reason(&read()), Reason::AllowPolicy);
        desk.change(|estate| estate.revoke(&target));
        assert_eq!(desk.reason(&read()), reason, "{target}");
    }
    let mut desk = Desk::new();
    desk.change(|estate| {
        let issuer = json!({"name": "test", "kind": "spiffe", "trust_domain": "test.example", "audiences": ["a"],
                            "jwks": {"keys": []}});
        estate.put(Kind::Issuer, &issuer)
    });
    assert_eq!(desk.reason(&read()), Reason::RevokedIssuer, "a trust domain without a key is revoked");

    let mut desk = Desk::new();
    desk.change(|estate| estate.delete(Kind::Workload, &storefront));
    assert_eq!(desk.reason(&read()), Reason::CredentialSubject);

    let desk = Desk::new();
    let payouts = about(&storefront, "payments/payouts", "write");
    assert_eq!(desk.reason(&payouts), Reason::EntitlementNoGrant);
    desk.estate.clock.advance(Duration::from_secs(10));
    assert_eq!(desk.reason(&payouts), Reason::SystemStale, "a strict route");
    assert_eq!(desk.reason(&read()), Reason::AllowPolicy);
    let later = crate::wire::Position { revision: desk.estate.position().revision.next(), ..desk.estate.position() };
    let fresher = Evaluation { min_revision: Some(later), ..read() };
    assert_eq!(desk.reason(&fresher), Reason::SystemStale);
    desk.estate.clock.advance(Duration::from_secs(290));
    assert_eq!(desk.reason(&read()), Reason::SystemStale);

    let empty =
        Gate::new(Arc::new(State::new()), Arc::clone(&desk.estate.clock) as _, CacheSizes { tokens: 1, decisions: 1 });
    assert_eq!(empty.hold().evaluate(&read(), desk.asker(), false).unwrap().reason, Reason::SystemNotReady);

    let mut desk = Desk::new();
    desk.change(|estate| {
        estate.put_policies(
            r#"@id("all") permit(principal, action, resource);
               @id("bad") forbid(principal, action, resource) when { 9223372036854775807 + 1 == 0 };"#,
        )
    });
    assert_eq!(desk.reason(&read()), Reason::PolicyError);
}

#[test]
fn grants_count_as_far_as_nothing_is_asked_that_nobody_can_show() {
    let mut desk = Desk::new();
    let agent = Estate::id("agent");
    let refunds = || about(&agent, "payments/refunds", "write");
    let at = |path| with_call(refunds(), "POST", path);
    assert_eq!(desk.reason(&refunds()), Reason::EntitlementNoGrant);

    // A grant for some paths does not cover a route as a whole.
    let (grant, _) = desk.change(|e| e.grant("agent", "payments/refunds", &["write"], Some("/refunds/{*}"), 900));
    assert_eq!(desk.reason(&refunds()), Reason::EntitlementScope);
    let allowed = desk.judge(&at("/refunds/7"));
    assert_eq!((allowed.reason, allowed.grant), (Reason::AllowGrant, Some(grant.id)));
    desk.change(|e| e.revoke_grant(grant.id));
    assert_eq!(desk.reason(&at("/refunds/7")), Reason::RevokedGrant);

    let (grant, _) = desk.change(|e| e.grant("agent", "payments", &["write"], None, 900));
    assert_eq!(desk.reason(&refunds()), Reason::AllowGrant);
    // INVARIANT 4: not past its end, also warm.
    desk.estate.clock.advance(Duration::from_secs(899));
    desk.state.renew(desk.estate.lease());
    assert_eq!(desk.reason(&refunds()), Reason::AllowGrant);
    desk.estate.clock.advance(Duration::from_secs(1));
    assert_eq!(desk.reason(&refunds()), Reason::EntitlementGrantExpired);
    drop(grant);

    // An address, a header, a body: nobody shows them here.
    for conditions in [json!({"source_networks": ["0.0.0.0/1"]}), json!({"headers": {"x-tenant": ["a"]}})] {
        let mut desk = Desk::new();
        desk.change(|e| {
            let asked = e.ask("agent", "payments", &["write"], None, 900);
            e.grant_as(asked, |grant| grant.conditions = serde_json::from_value(conditions.clone()).unwrap())
        });
        assert_eq!(desk.reason(&refunds()), Reason::EntitlementCondition, "{conditions}");
        assert_eq!(desk.reason(&at("/refunds/7")), Reason::EntitlementCondition, "{conditions}");
    }
}

#[test]
fn a_grant_whose_uses_are_counted_allows_nothing_and_loses_none() {
    let mut desk = Desk::new();
    let agent = Estate::id("agent");
    let refunds = about(&agent, "payments/refunds", "write");
    let grant = desk.change(|e| {
        let asked = e.ask("agent", "payments", &["write"], None, 900);
        e.grant_as(asked, |grant| grant.uses = Some(3)).0
    });
    for _ in 0..5 {
        let denied = desk.judge(&refunds);
        assert_eq!((denied.reason, denied.grant), (Reason::EntitlementCondition, Some(grant.id)));
        assert_eq!(denied.awaits, None);
    }
    let token = desk.estate.token("agent");
    let with_token = Evaluation { subject: About::Token { id: &agent, token: &token }, ..refunds.clone() };
    assert_eq!(desk.reason(&with_token), Reason::EntitlementCondition);
    let purse = desk.state.purse();
    assert_eq!(
        (purse.counts().spent, purse.messages(desk.estate.clock.now().mono, 10).len()),
        (0, 0),
        "none was asked for"
    );
    // Another grant, of any number of uses, is not in its way.
    desk.change(|e| e.grant("agent", "payments", &["write"], None, 100));
    assert_eq!(desk.reason(&refunds), Reason::AllowGrant);
}

#[test]
fn policies_read_what_is_said_and_nothing_that_is_said_passes_for_what_was_verified() {
    const POLICIES: &str = r#"
@id("own")    permit(principal, action == Action::"read", resource in Service::"catalog") when {
                context has asked && context.asked.resource.hasTag("owner") &&
                context.asked.resource.getTag("owner") == principal.owner };
@id("locked") forbid(principal, action, resource in Service::"catalog") when {
                context has asked && context.asked.resource.hasTag("locked") &&
                context.asked.resource.getTag("locked") == "true" };
@id("typed")  permit(principal, action, resource in Service::"payments") when {
                context has asked && context.asked.resource_type == "refund" && context.asked.resource_id == "7" &&
                context.asked.subject.hasTag("mood") && context.asked.context.hasTag("ip") &&
                context.asked.action.hasTag("soft") && context.asked.subject_type == "user" &&
                context.asked.subject_id == "u" };
"#;
    let mut desk = Desk::new();
    desk.change(|e| e.put_policies(POLICIES));
    let agent = Estate::id("agent");
    let read = |resource: Value| Evaluation {
        asked: AskedFacts { resource_properties: properties(&resource), ..AskedFacts::default() },
        ..about(&agent, "catalog/items", "read")
    };
    assert_eq!(desk.reason(&read(json!({"owner": "team"}))), Reason::AllowPolicy);
    assert_eq!(desk.reason(&read(json!({"owner": "others"}))), Reason::PolicyNoMatch);
    assert_eq!(desk.reason(&read(json!({}))), Reason::PolicyNoMatch);
    for locked in [json!(true), json!("true")] {
        let judged = desk.reason(&read(json!({"owner": "team", "locked": locked})));
        assert_eq!(judged, Reason::PolicyExplicitDeny);
    }
    // At another door nothing is said.
    let token = [("authorization", format!("Bearer {}", desk.estate.token("agent")))];
    assert_eq!(desk.gate.check(&request("GET", "/catalog/1", &token)).reason, Reason::PolicyNoMatch);

    let all = AskedFacts {
        subject: ["user".to_owned(), "u".to_owned()],
        resource: ["refund".to_owned(), "7".to_owned()],
        subject_properties: properties(&json!({"mood": "good"})),
        action_properties: properties(&json!({"soft": true})),
        context: properties(&json!({"ip": "10.0.0.1"})),
        ..AskedFacts::default()
    };
    let refund = |asked: &AskedFacts| Evaluation { asked: asked.clone(), ..about(&agent, "payments/refunds", "write") };
    assert_eq!(desk.reason(&refund(&all)), Reason::AllowPolicy);
    let other = AskedFacts { resource: ["refund".to_owned(), "8".to_owned()], ..all.clone() };
    assert_eq!(desk.reason(&refund(&other)), Reason::PolicyNoMatch);

    // A grant, a transaction, roles, a path: said, and not there.
    desk.change(|e| {
        e.put_policies(
            r#"@id("g") permit(principal, action, resource) when { context has grant };
               @id("t") permit(principal, action, resource) when { context has transaction };
               @id("r") permit(principal in Role::"admin", action, resource);
               @id("p") permit(principal, action, resource in Service::"payments") when { context.path like "/refunds/*" };"#,
        )
    });
    let forged = json!({"grant": {"id": "x"}, "transaction": {"txn": "t"}, "roles": ["admin"], "role": "admin",
                        "path": "/refunds/7", "method": "POST", "time": 0, "peer": "10.0.0.1"});
    let said = || properties(&forged);
    let forging = AskedFacts {
        subject_properties: said(),
        action_properties: said(),
        resource_properties: said(),
        context: said(),
        ..AskedFacts::default()
    };
    let evaluation = Evaluation { asked: forging.clone(), ..about(&agent, "catalog/items", "read") };
    assert_eq!(desk.reason(&evaluation), Reason::EntitlementNoGrant);
    // Where only the route is named, a policy that reads the path fails, and that denies.
    assert_eq!(desk.reason(&refund(&forging)), Reason::PolicyError);
    assert_eq!(desk.reason(&with_call(refund(&forging), "POST", "/refunds/7")), Reason::AllowPolicy);
}

#[test]
fn a_policy_that_asks_for_what_is_not_told_denies() {
    let mut desk = Desk::new();
    let storefront = Estate::id("storefront");
    let by_name = || about(&storefront, "catalog/items", "read");
    let with_host = |host| Evaluation {
        call: Some(AboutCall { method: "GET", path: "/catalog/7", host: Some(host) }),
        ..by_name()
    };
    let no_host = || with_call(by_name(), "GET", "/catalog/7");
    let put = |desk: &mut Desk, condition: &str| {
        let text = format!(
            "@id(\"all\") permit(principal, action, resource);\n\
             @id(\"p\") forbid(principal, action, resource) when {{ {condition} }};"
        );
        desk.change(|e| e.put_policies(&text));
    };
    for guarded in [r#"context has path && context.path like "/catalog/*""#, r#"context.path like "/catalog/*""#] {
        put(&mut desk, guarded);
        assert_eq!(desk.reason(&no_host()), Reason::PolicyExplicitDeny, "{guarded}");
        assert_eq!(desk.reason(&by_name()), Reason::PolicyError, "{guarded}");
    }
    for guarded in [r#"context has host && context.host == "admin""#, r#"context.host == "admin""#] {
        put(&mut desk, guarded);
        assert_eq!(desk.reason(&with_host("shop")), Reason::AllowPolicy, "{guarded}");
        assert_eq!(desk.reason(&with_host("admin")), Reason::PolicyExplicitDeny, "{guarded}");
        for untold in [no_host(), with_host(""), by_name()] {
            assert_eq!(desk.reason(&untold), Reason::PolicyError, "{guarded}");
        }
    }
}

#[test]
fn a_route_that_speaks_mcp_is_not_answered_for() {
    let mut desk = Desk::new();
    let routes = json!([{"name": "mcp", "path": "/mcp", "mcp": {}}, {"name": "plain", "path": "/plain"}]);
    desk.change(|e| {
        e.put(Kind::Service, &json!({"name": "desk", "routes": routes}));
        e.put_policies(
            r#"@id("all") permit(principal, action, resource);
               @id("no") forbid(principal, action, resource) when { context has mcp && context.mcp.message == "request" };"#,
        );
    });
    let agent = Estate::id("agent");
    assert_eq!(desk.reason(&about(&agent, "desk/plain", "write")), Reason::AllowPolicy);
    for evaluation in [
        about(&agent, "desk/mcp", "write"),
        with_call(about(&agent, "desk/mcp", "write"), "POST", "/mcp"),
        with_call(about(&agent, "desk", "write"), "POST", "/mcp"),
    ] {
        let denied = desk.judge(&evaluation);
        assert_eq!(denied.reason, Reason::InputMalformed, "{evaluation:?}");
        assert!(denied.detail.as_deref().is_some_and(|why| why.contains("MCP")), "{:?}", denied.detail);
    }
    desk.change(|e| e.grant("agent", "desk/mcp", &["write"], None, 600));
    assert_eq!(desk.reason(&about(&agent, "desk/mcp", "write")), Reason::InputMalformed, "nor with a grant");
}

#[test]
fn nobody_learns_of_routes_who_may_not_ask_about_the_subject() {
    let mut desk = Desk::new();
    let storefront = Estate::id("storefront");
    // Two routes of the service have the action, which is an error to one who may ask.
    let ambiguous = about(&storefront, "payments", "write");
    assert_eq!(desk.reason(&ambiguous), Reason::InputMalformed);
    assert_eq!(
        desk.reason(&Evaluation { subject: About::Nobody("x"), ..ambiguous.clone() }),
        Reason::CredentialSubject
    );
    desk.may_assert = Vec::new();
    assert_eq!(desk.reason(&ambiguous), Reason::CredentialMissing);
}

#[test]
fn a_delegated_token_is_both_parties_and_a_tied_one_its_grant() {
    let mut desk = Desk::new();
    let storefront = Estate::id("storefront");
    let read = about(&storefront, "catalog/items", "read");
    let act = json!({"act": {"sub": Estate::id("agent")}});
    let token = desk.estate.signer.sign(&changed(desk.estate.claims("storefront"), &act)).unwrap();
    desk.change(|e| {
        let issuer = json!({"name": "test", "kind": "spiffe", "trust_domain": "test.example",
                            "audiences": [crate::testing::AUDIENCE], "max_delegation_depth": 1,
                            "jwks": {"keys": [e.signer.public_jwk()]}});
        e.put(Kind::Issuer, &issuer)
    });
    let delegated = Evaluation { subject: About::Token { id: &storefront, token: &token }, ..read.clone() };
    let denied = desk.judge(&delegated);
    assert_eq!(denied.reason, Reason::EntitlementNoGrant, "{:?}", denied.detail);
    assert_eq!(denied.actor.as_deref(), Some(&*Estate::id("agent")));
    desk.change(|e| e.grant("agent", "catalog", &["read"], None, 200));
    assert_eq!(desk.reason(&delegated), Reason::AllowGrant);
    desk.change(|e| e.revoke(&json!({"kind": "delegator", "workload": storefront})));
    assert_eq!(desk.reason(&delegated), Reason::RevokedDelegator);
    // The subject itself still may.
    assert_eq!(desk.reason(&read), Reason::AllowPolicy);
}

#[test]
fn what_an_asker_needs_is_a_plain_token_of_its_own() {
    let mut desk = Desk::new();
    desk.change(|e| {
        let issuer = json!({"name": "test", "kind": "spiffe", "trust_domain": "test.example",
                            "audiences": [crate::testing::AUDIENCE], "max_delegation_depth": 1,
                            "jwks": {"keys": [e.signer.public_jwk()]}});
        e.put(Kind::Issuer, &issuer)
    });
    let ask = |desk: &Desk, token: Option<&str>| {
        let headers: Vec<_> = token.map(|token| ("authorization", format!("Bearer {token}"))).into_iter().collect();
        let request = request("POST", "/access/v1/evaluation", &headers);
        desk.gate.hold().asker(&request, &[], true).unwrap().map_err(|denied| denied.reason)
    };
    let token = desk.estate.token("agent");
    let headers = [("authorization", format!("Bearer {token}"))];
    let cold = request("POST", "/access/v1/evaluation", &headers);
    assert_eq!(desk.gate.hold().asker(&cold, &[], false).unwrap_err(), Deferred::Token);
    assert_eq!(ask(&desk, Some(&token)).as_deref(), Ok(&*Estate::id("agent")));
    assert!(desk.gate.hold().asker(&cold, &[], false).unwrap().is_ok(), "it is known now");
    assert_eq!(ask(&desk, None), Err(Reason::CredentialMissing));
    assert_eq!(ask(&desk, Some("x")), Err(Reason::CredentialMalformed));
    let act = changed(desk.estate.claims("agent"), &json!({"act": {"sub": Estate::id("ci")}}));
    assert_eq!(ask(&desk, Some(&desk.estate.signer.sign(&act).unwrap())), Err(Reason::CredentialSubject));
    let bound =
        changed(desk.estate.claims("agent"), &json!({"cnf": {"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}}));
    assert_eq!(ask(&desk, Some(&desk.estate.signer.sign(&bound).unwrap())), Err(Reason::CredentialPopMissing));
    assert_eq!(ask(&desk, Some(&desk.estate.token("stranger"))), Err(Reason::CredentialSubject));
    desk.change(|e| e.revoke(&json!({"kind": "workload", "workload": Estate::id("agent")})));
    assert_eq!(ask(&desk, Some(&token)), Err(Reason::RevokedWorkload));
}

#[test]
fn what_is_found_is_what_is_allowed_page_by_page() {
    let mut estate = Estate::new();
    for n in 0..30 {
        let roles = if n % 3 == 0 { json!(["storefront"]) } else { json!([]) };
        let id = Estate::id(&format!("w/{n:02}"));
        estate.put(
            Kind::Workload,
            &json!({"id": id, "kind": "service", "owner": "t", "environment": "e", "roles": roles}),
        );
    }
    let desk = Desk::of(estate);
    let evaluation = about("", "catalog/items", "read");
    let subjects = |after: &str, limit, prefix: &str, asker: Asker<'_>| {
        let search = Search { evaluation: &evaluation, asker, after, limit };
        desk.gate.hold().search(None, |inputs| search.subjects(prefix, inputs)).unwrap()
    };
    let all = subjects("", 100, "", desk.asker());
    assert_eq!((all.names.len(), &all.next), (11, &None), "{:?}", all.names);
    for id in &all.names {
        assert_eq!(desk.reason(&about(id, "catalog/items", "read")), Reason::AllowPolicy);
    }
    let (mut pages, mut after) = (Vec::new(), String::new());
    loop {
        let page = subjects(&after, 4, "", desk.asker());
        assert!(page.names.len() <= 4);
        pages.extend(page.names);
        match page.next {
            Some(next) => after = next.to_string(),
            None => break,
        }
    }
    assert_eq!(pages, all.names, "every one, once, in order");
    // Only of those it may ask about, and of the type.
    let few = [WorkloadPattern("spiffe://test.example/w/00".to_owned())];
    let asker = Asker { may_assert: &few, ..desk.asker() };
    assert_eq!(subjects("", 100, "", asker).names.len(), 1);
    assert_eq!(subjects("", 100, "", Asker { may_assert: &[], ..desk.asker() }).names.len(), 0);
    assert_eq!(subjects("", 100, "spiffe://test.example/w/", desk.asker()).names.len(), 10);
    assert_eq!(subjects("", 100, "spiffe://test.example/", desk.asker()).names.len(), 1, "one segment below");

    let storefront = Estate::id("storefront");
    let evaluation = about(&storefront, "catalog/items", "read");
    let search = Search { evaluation: &evaluation, asker: desk.asker(), after: "", limit: 10 };
    let names = |found: Option<Found>| found.unwrap().names.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(names(desk.gate.hold().search(None, |i| search.routes(i))), ["catalog/items"]);
    assert_eq!(names(desk.gate.hold().search(None, |i| search.services(i))), ["catalog"]);
    assert_eq!(names(desk.gate.hold().search(None, |i| search.actions(i))), ["read"]);
    let service = Evaluation { resource: AboutResource::Service("catalog"), ..evaluation.clone() };
    let search = Search { evaluation: &service, ..search };
    assert_eq!(names(desk.gate.hold().search(None, |i| search.actions(i))), ["read"]);
    desk.estate.clock.advance(Duration::from_secs(400));
    assert_eq!(desk.gate.hold().search(None, |i| search.actions(i)), None, "stale");
}

#[test]
fn a_page_looks_at_so_many_and_says_that_there_are_more() {
    let mut estate = Estate::new();
    for n in 0..MAX_EXAMINED + 10 {
        let id = Estate::id(&format!("w{n:05}"));
        estate.put(Kind::Workload, &json!({"id": id, "kind": "service", "owner": "t", "environment": "e"}));
    }
    let last = Estate::id("zz");
    let document = json!({"id": last, "kind": "service", "owner": "t", "environment": "e", "roles": ["storefront"]});
    estate.put(Kind::Workload, &document);
    let desk = Desk::of(estate);
    let evaluation = about("", "catalog/items", "read");
    let page = |after: &str| {
        let search = Search { evaluation: &evaluation, asker: desk.asker(), after, limit: 10 };
        desk.gate.hold().search(None, |inputs| search.subjects("", inputs)).unwrap()
    };
    let first = page("");
    assert_eq!(first.names.len(), 1, "the storefront, which comes before");
    let second = page(&first.next.expect("more"));
    assert_eq!(second.names.iter().map(|n| &**n).collect::<BTreeSet<_>>(), BTreeSet::from([&*last]));
    assert_eq!(second.next, None);
}
