//! Tests of validation, slicing and input analysis.
//!
//! The slicing test is differential: many generated policy sets and requests, evaluated sliced and unsliced.
//! Pure, like the module; a failure prints the policy text.

use std::collections::{BTreeMap, HashSet};
use std::fmt::Write;
use std::str::FromStr;

use cedar_policy::{Authorizer, Context, Decision, Entities, EntityUid, PolicySet, Request};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::grant::Apart;
use crate::object;

const DESIGN: &str = r#"
@id("catalog-read")    permit(principal in Role::"storefront", action in Action::"read", resource in Service::"catalog");
@id("grants")          permit(principal, action, resource) when { context has grant };
@id("refunds-are-jit") forbid(principal, action, resource in Route::"payments/refunds") unless { context has grant };
"#;

fn compile(text: &str) -> CompiledPolicies {
    CompiledPolicies::compile(&object::PolicySet::new(text.to_owned(), "test".to_owned(), vec![])).unwrap()
}

fn arguments() -> BTreeMap<String, object::ArgumentType> {
    use object::ArgumentType::{Boolean, Long, String};
    [("amount", Long), ("force", Boolean), ("repo", String)].map(|(name, kind)| (name.to_owned(), kind)).into()
}

fn validate(text: &str, actions: &[String]) -> Result<Report, PolicyErrors> {
    super::validate(text, Names { actions, arguments: &arguments() })
}

fn workload(name: &str, roles: &[&str]) -> PrincipalEntity {
    let json = serde_json::json!({
        "id": format!("spiffe://a/{name}"), "kind": "service", "owner": "team", "environment": "production",
        "roles": roles, "labels": {"tier": "gold"},
    });
    PrincipalEntity::new(&serde_json::from_value(json).unwrap()).unwrap()
}

fn facts() -> Facts<'static> {
    Facts { method: "GET", path: "/catalog/1", host: "shop", transaction: None, asked: None, mcp: None }
}

fn grant() -> GrantFacts {
    GrantFacts {
        id: object::GrantId(uuid::Uuid::from_u128(7)),
        actions: std::sync::Arc::from([Box::from("write")]),
        duration_seconds: 60,
    }
}

fn ids(ids: &[&str]) -> std::sync::Arc<[Box<str>]> {
    ids.iter().map(|s| Box::from(*s)).collect()
}

#[test]
fn the_policies_of_the_design_say_what_they_should() {
    let policies = compile(DESIGN);
    let shop = workload("shop", &["storefront"]);
    let other = workload("other", &[]);
    let items = ResourceEntity::new("catalog", "catalog/items").unwrap();
    let refunds = ResourceEntity::new("payments", "payments/refunds").unwrap();
    let grant = grant();
    assert_eq!(policies.evaluate(&shop, "read", &items, facts(), None), Outcome::Allow(ids(&["catalog-read"])));
    assert_eq!(policies.evaluate(&shop, "write", &items, facts(), None), Outcome::NoMatch);
    assert_eq!(policies.evaluate(&other, "read", &items, facts(), None), Outcome::NoMatch);
    assert_eq!(policies.evaluate(&shop, "write", &refunds, facts(), None), Outcome::Forbid(ids(&["refunds-are-jit"])));
    assert_eq!(policies.evaluate(&shop, "write", &refunds, facts(), Some(&grant)), Outcome::Allow(ids(&["grants"])));
}

#[test]
fn a_policy_that_fails_to_evaluate_denies_whatever_the_others_say() {
    let policies = compile(
        r#"
        @id("all") permit(principal, action, resource);
        @id("overflow") forbid(principal, action, resource)
            when { context has grant && 9223372036854775807 + context.grant.duration_seconds > 0 };
        "#,
    );
    let (shop, items) = (workload("shop", &[]), ResourceEntity::new("catalog", "catalog/items").unwrap());
    assert_eq!(policies.evaluate(&shop, "read", &items, facts(), None), Outcome::Allow(ids(&["all"])));
    let grant = grant();
    assert_eq!(policies.evaluate(&shop, "read", &items, facts(), Some(&grant)), Outcome::Error(ids(&["overflow"])));
}

#[test]
fn attributes_and_tags_of_the_workload_can_be_read() {
    let policies = compile(
        r#"@id("gold") permit(principal, action, resource)
           when { principal.environment == "production" && principal.kind == "service"
                  && principal.hasTag("tier") && principal.getTag("tier") == "gold" };"#,
    );
    let items = ResourceEntity::new("catalog", "catalog/items").unwrap();
    let outcome = policies.evaluate(&workload("shop", &[]), "read", &items, facts(), None);
    assert_eq!(outcome, Outcome::Allow(ids(&["gold"])));
}

#[test]
fn only_inputs_that_are_read_count() {
    assert_eq!(validate(DESIGN, &[]).unwrap().reads, ["grant"]);
    let reads = |condition: &str| {
        validate(&format!(r#"@id("p") permit(principal, action, resource) when {{ {condition} }};"#), &[])
            .unwrap()
            .reads
    };
    assert_eq!(reads("true"), [""; 0]);
    assert_eq!(reads(r#"context.path like "/a/*""#), ["path"]);
    assert_eq!(reads(r#"context.method == "GET" || context.host == "h""#), ["host", "method"]);
    assert_eq!(
        reads(r#"context == context"#),
        ["asked", "grant", "host", "mcp", "method", "path", "transaction"],
        "opaque use reads everything"
    );
    assert_eq!(
        reads(r#"(if true then context else context).path == "x""#),
        ["asked", "grant", "host", "mcp", "method", "path", "transaction"]
    );
    let apart = |condition: &str| {
        compile(&format!("@id(\"a\")\npermit(principal, action, resource)\nwhen {{ {condition} }};"))
            .reads()
            .grants_apart()
    };
    assert_eq!(apart("context has grant"), Apart::Nothing);
    assert_eq!(apart("context has grant && context.grant.duration_seconds > 60"), Apart::Terms);
    assert_eq!(apart(r#"context has grant && context.grant.actions.contains("read")"#), Apart::Terms);
    assert_eq!(apart(r#"context has grant && context.grant.id == "x""#), Apart::Id);
    assert_eq!(apart("context has grant && context.grant == context.grant"), Apart::Id, "as a whole");
    assert_eq!(reads(r#"context has transaction && context.transaction.txn == "t""#), ["transaction"]);
}

#[test]
fn what_does_not_validate_is_refused_with_its_place() {
    let one = |text: &str| validate(text, &[]).unwrap_err().0.remove(0);
    let e = one("@id(\"a\")\npermit(principal, action, resource)\nwhen { context.colour == 1 };");
    assert_eq!((e.policy.as_deref(), e.line), (Some("a"), Some(3)), "{e}");
    assert!(e.message.contains("colour"), "{e}");
    let e = one("@id(\"a\") permit(principal, action == Action::\"fly\", resource);");
    assert!(e.message.contains("fly"), "{e}");
    let e = one("@id(\"a\")\npermit(principal, action, resource");
    assert_eq!(e.line, Some(2), "{e}");
    let e = one("permit(principal, action, resource);");
    assert!(e.message.contains("@id"), "{e}");
    let e = one("@id(\"a\") permit(principal, action, resource); @id(\"a\") forbid(principal, action, resource);");
    assert!(e.message.contains("twice"), "{e}");
    let e = one("@id(\"a\") permit(principal == ?principal, action, resource);");
    assert!(e.message.contains("template"), "{e}");
    let fly = ["fly".to_owned()];
    assert!(validate("@id(\"a\") permit(principal, action == Action::\"fly\", resource);", &fly).is_ok());
    assert!(validate("", &[]).is_ok(), "an empty set is valid and denies everything");
}

#[test]
fn what_an_application_says_is_read_through_the_context_and_by_no_other_name() {
    for condition in [
        r#"Properties::"context".hasTag("blocked")"#,
        r#"context has asked && context.asked.context == Properties::"context""#,
        r#"[Properties::"a"] == [Properties::"b"]"#,
    ] {
        let text = format!(r#"@id("sly") forbid(principal, action, resource) when {{ {condition} }};"#);
        let error = validate(&text, &[]).unwrap_err().0.remove(0);
        assert_eq!(error.policy.as_deref(), Some("sly"), "{error}");
        assert!(error.message.contains("context.asked") && error.message.contains("Properties::"), "{error}");
        let set = object::PolicySet::new(text.clone(), "test".to_owned(), vec![]);
        assert!(CompiledPolicies::compile(&set).is_err(), "a stored one counts no more than a new one");
        // Should one get by, it is known for what it reads.
        let policy = cedar_policy::Policy::from_str(&text).unwrap();
        assert!(Reads::of(&policy).asked, "{condition}");
    }
    let named = r#"@id("a") permit(principal == Properties::"subject", action, resource);"#;
    assert!(validate(named, &[]).is_err());
}

#[test]
fn what_is_not_told_of_a_request_is_unknown_and_not_absent() {
    let (shop, items) = (workload("shop", &["storefront"]), ResourceEntity::new("catalog", "catalog/items").unwrap());
    let ask = |policy: &str, action: &str, told: Told| {
        let policies = compile(&format!("@id(\"all\") permit(principal, action, resource);\n@id(\"p\") {policy}"));
        let asked = AskedFacts { told, ..AskedFacts::default() };
        policies.evaluate(&shop, action, &items, Facts { asked: Some(&asked), ..facts() }, None)
    };
    let (failed, allowed) = (Outcome::Error(ids(&["p"])), Outcome::Allow(ids(&["all"])));
    let opaque = r#"(if principal.owner == "x" then context else context) has path"#;
    for (condition, no_host, by_name) in [
        (r#"context has path && context.path like "/admin/*""#, &allowed, &failed),
        (r#"context has method && context.method == "PUT""#, &allowed, &failed),
        (r#"context has host && context.host == "admin""#, &failed, &failed),
        (opaque, &failed, &failed),
        (r#"context.path like "/admin/*""#, &allowed, &failed),
        (r#"context.host == "admin""#, &failed, &failed),
        // What does not depend on it is known.
        (r#"principal.owner == "x" && context.path like "/admin/*""#, &allowed, &allowed),
    ] {
        let forbid = format!("forbid(principal, action, resource) when {{ {condition} }};");
        assert_eq!(&ask(&forbid, "read", Told::NoHost), no_host, "{condition}");
        assert_eq!(&ask(&forbid, "read", Told::ByName), by_name, "{condition}");
        if condition != opaque {
            assert_eq!(ask(&forbid, "read", Told::All), allowed, "{condition}");
        }
        let permit = format!("permit(principal, action, resource) unless {{ {condition} }};");
        assert_eq!(matches!(ask(&permit, "read", Told::ByName), Outcome::Error(_)), *by_name == failed, "{condition}");
        // A policy for something else is not in the way.
        for scope in [
            r#"principal, action == Action::"write", resource"#,
            r#"principal, action in [Action::"write", Action::"delete"], resource"#,
            r#"principal in Role::"other", action, resource"#,
            r#"principal, action, resource in Service::"payments""#,
        ] {
            let forbid = format!("forbid({scope}) when {{ {condition} }};");
            assert_eq!(ask(&forbid, "read", Told::ByName), allowed, "{forbid}");
        }
        let of_it = format!(r#"forbid(principal, action in [Action::"write"], resource) when {{ {condition} }};"#);
        assert_eq!(&ask(&of_it, "write", Told::ByName), by_name, "{of_it}");
    }
}

/// Every scope shape that can name or not name the entities of the requests below.
fn policy_text() -> impl Strategy<Value = Vec<String>> {
    let principal = prop::sample::select(vec![
        "principal",
        "principal is Workload",
        r#"principal == Workload::"spiffe://a/w0""#,
        r#"principal == Workload::"spiffe://a/w1""#,
        r#"principal in Workload::"spiffe://a/w0""#,
        r#"principal in Role::"r0""#,
        r#"principal in Role::"r1""#,
        r#"principal is Workload in Role::"r1""#,
    ]);
    let action = prop::sample::select(vec![
        "action",
        r#"action == Action::"read""#,
        r#"action in Action::"write""#,
        r#"action in [Action::"read", Action::"write"]"#,
    ]);
    let resource = prop::sample::select(vec![
        "resource",
        "resource is Route",
        r#"resource == Route::"s0/a""#,
        r#"resource in Route::"s0/a""#,
        r#"resource in Service::"s0""#,
        r#"resource in Service::"s1""#,
        r#"resource is Route in Service::"s1""#,
    ]);
    let condition = prop::sample::select(vec![
        "",
        "when { context has grant }",
        "unless { context has grant }",
        r#"when { context.path like "/a*" }"#,
        r#"when { principal in Role::"r0" }"#,
        r#"when { resource in Service::"s1" }"#,
        "when { context has grant && 9223372036854775807 + context.grant.duration_seconds > 0 }",
        "when { context has grant && context.grant.duration_seconds > 100 }",
        r#"unless { context has grant && context.grant.actions.contains("write") }"#,
        r#"when { context has grant && context.grant.id like "*1" }"#,
        r#"when { context == context && principal in [Role::"r0", Role::"r1"] }"#,
        r#"when { Role::"r0" in Role::"r1" || Service::"s0" == Service::"s0" }"#,
    ]);
    let policy = (any::<bool>(), principal, action, resource, condition)
        .prop_map(|(permit, p, a, r, c)| format!("{}({p}, {a}, {r}) {c};", if permit { "permit" } else { "forbid" }));
    prop::collection::vec(policy, 0..12)
}

proptest! {
    #[test]
    fn slicing_and_asking_several_times_change_no_answer(
        policies in policy_text(), w in 0..2usize, roles in prop::sample::subsequence(vec!["r0", "r1"], 0..=2),
        action in prop::sample::select(vec!["read", "write", "delete"]),
        route in prop::sample::select(vec![("s0", "s0/a"), ("s0", "s0/b"), ("s1", "s1/a")]),
        path in prop::sample::select(vec!["/a/1", "/b"]), grants in prop::collection::vec(any_grant(), 0..4),
    ) {
        let mut text = String::new();
        for (i, p) in policies.iter().enumerate() {
            writeln!(text, "@id(\"p{i}\") {p}").unwrap();
        }
        // Strict validation refuses some impossible combinations; those sets never get this far.
        let Ok(compiled) = CompiledPolicies::compile(&object::PolicySet::new(text.clone(), "t".to_owned(), vec![])) else {
            return Ok(());
        };
        let principal = workload(&format!("w{w}"), &roles);
        let resource = ResourceEntity::new(route.0, route.1).unwrap();
        let facts = Facts { method: "GET", path, host: "h", transaction: None, asked: None, mcp: None };
        let everything = |grant| unsliced(&text, (w, &roles), action, route, facts, grant);
        let inquiry = compiled.inquire(&principal, action, &resource, facts);
        let mut with_grant = Vec::new();
        for grant in [None].into_iter().chain(grants.iter().map(Some)).chain([None]) {
            let outcome = inquiry.ask(grant);
            prop_assert_eq!(&outcome, &everything(grant), "{:?} {}", grant, text);
            prop_assert_eq!(&outcome, &compiled.evaluate(&principal, action, &resource, facts, grant));
            with_grant.extend(grant.map(|_| outcome));
        }
        let apart = |g: &GrantFacts| match compiled.reads().grants_apart() {
            Apart::Nothing => None,
            Apart::Terms => Some((g.actions.clone(), g.duration_seconds, None)),
            Apart::Id => Some((g.actions.clone(), g.duration_seconds, Some(g.id))),
        };
        for (a, of_a) in grants.iter().zip(&with_grant) {
            for (b, of_b) in grants.iter().zip(&with_grant) {
                prop_assert!(apart(a) != apart(b) || of_a == of_b, "told apart: {:?} {:?} {}", a, b, text);
            }
        }
    }
}

fn any_grant() -> impl Strategy<Value = GrantFacts> {
    (0..3u128, prop::sample::select(vec!["read", "write"]), prop::sample::select(vec![60, 3600])).prop_map(
        |(id, action, duration_seconds)| GrantFacts {
            id: object::GrantId(uuid::Uuid::from_u128(id)),
            actions: std::sync::Arc::from([Box::from(action)]),
            duration_seconds,
        },
    )
}

/// The obvious evaluator: every policy, every attribute, every entity, one question.
fn unsliced(
    text: &str,
    (w, roles): (usize, &[&str]),
    action: &str,
    (service, route): (&str, &str),
    facts: Facts<'_>,
    grant: Option<&GrantFacts>,
) -> Outcome {
    let parsed = PolicySet::from_str(text).unwrap();
    let named = parsed.policies().map(|p| p.new_id(cedar_policy::PolicyId::new(p.annotation("id").unwrap())));
    let all = PolicySet::from_policies(named).unwrap();
    let uid = |kind: &str, id: &str| json!({"type": kind, "id": id});
    let principal = uid("Workload", &format!("spiffe://a/w{w}"));
    let parents: Vec<_> = roles.iter().map(|r| uid("Role", r)).collect();
    let bare = |uid: &Value| json!({"uid": uid, "attrs": {}, "parents": []});
    let mut entities: Vec<Value> = parents.iter().map(bare).collect();
    entities.push(json!({
        "uid": principal, "parents": parents, "tags": {"tier": "gold"},
        "attrs": {"kind": "service", "owner": "team", "environment": "production"},
    }));
    entities.push(json!({"uid": uid("Route", route), "attrs": {}, "parents": [uid("Service", service)]}));
    entities.push(bare(&uid("Service", service)));
    let entities = Entities::from_json_value(Value::Array(entities), None).unwrap();
    let mut context = json!({"method": facts.method, "path": facts.path, "host": facts.host});
    if let Some(g) = grant {
        context["grant"] =
            json!({"id": g.id.to_string(), "actions": &*g.actions, "duration_seconds": g.duration_seconds});
    }
    let uid = |json| EntityUid::from_json(json).unwrap();
    let (action, route) = (uid(json!({"type": "Action", "id": action})), uid(json!({"type": "Route", "id": route})));
    let context = Context::from_json_value(context, None).unwrap();
    let request = Request::new(uid(principal), action, route, context, None).unwrap();
    let response = Authorizer::new().is_authorized(&request, &all, &entities);
    let set = |ids: HashSet<String>| {
        let mut ids: Vec<Box<str>> = ids.into_iter().map(Into::into).collect();
        ids.sort_unstable();
        std::sync::Arc::from(ids)
    };
    let reasons = set(response.diagnostics().reason().map(ToString::to_string).collect());
    let errors: std::sync::Arc<[Box<str>]> = set(response
        .diagnostics()
        .errors()
        .map(|e| match e {
            cedar_policy::AuthorizationError::PolicyEvaluationError(e) => e.policy_id().to_string(),
        })
        .collect());
    match response.decision() {
        _ if !errors.is_empty() => Outcome::Error(errors),
        Decision::Allow => Outcome::Allow(reasons),
        Decision::Deny if reasons.is_empty() => Outcome::NoMatch,
        Decision::Deny => Outcome::Forbid(reasons),
    }
}
