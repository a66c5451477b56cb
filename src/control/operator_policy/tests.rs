//! What operator policies make of calls, over the real table of operations.

use super::*;
use crate::control::api::operator_actions;

fn operator(name: &str, via: Via, groups: &[&str]) -> Principal {
    let mut principal = Principal::new(name, PrincipalKind::Person, via);
    principal.groups = groups.iter().map(|group| Arc::from(*group)).collect();
    principal
}

fn workload(id: &str) -> Principal {
    Principal::new(id, PrincipalKind::Workload(id.parse().unwrap()), Via::Workload)
}

fn action(name: &str) -> Action {
    *operator_actions().iter().find(|action| action.name == name).unwrap_or_else(|| panic!("no action `{name}`"))
}

fn grant_of(id: &str) -> Subject {
    Subject { kind: "grant".to_owned(), name: "1".to_owned(), workload: Some(id.parse().unwrap()) }
}

const AGENT: &str = "spiffe://a/agent";

#[test]
fn the_default_set_is_valid_and_gives_each_what_it_says() {
    let actions = operator_actions();
    let policies = OperatorPolicies::compile(&default_text(&actions), &actions).unwrap();
    let may = |who: &Principal, what: &str, on: &Subject| policies.check(who, action(what), on).is_ok();
    let nothing = Subject::default();
    for action in &actions {
        assert!(may(&operator("alice", Via::Token, &[]), action.name, &nothing), "{action:?}");
        assert!(may(&operator("alice", Via::Certificate, &[]), action.name, &nothing), "{action:?}");
        assert!(!may(&operator("corp:ann", Via::Oidc, &["admins"]), action.name, &nothing), "{action:?}");
    }
    let agent = workload(AGENT);
    assert!(may(&agent, "grant.request", &nothing));
    assert!(may(&agent, "grant.show", &grant_of(AGENT)) && may(&agent, "grant.withdraw", &grant_of(AGENT)));
    let denied = policies.check(&agent, action("grant.show"), &grant_of("spiffe://a/other"));
    assert_eq!(denied, Err(Denied::NoMatch("grant.show".to_owned())), "another's");
    for not in ["grant.list", "grant.approve", "grant.revoke", "operator.list", "workload.show", "audit.list"] {
        assert!(!may(&agent, not, &grant_of(AGENT)), "{not}");
    }
}

#[test]
fn groups_families_reads_and_names_can_be_told_apart() {
    let actions = operator_actions();
    let text = r#"
        @id("readers") permit(principal in Group::"staff", action in Action::"read", resource);
        @id("leads") permit(principal in Group::"leads", action in Action::"grant", resource);
        @id("bot") permit(principal == Operator::"corp:bot", action == Action::"service.put", resource == Object::"service/shop");
        @id("not-glass") forbid(principal, action == Action::"grant.revoke", resource) unless { principal is Operator && principal.kind == "person" };
    "#;
    let policies = OperatorPolicies::compile(text, &actions).unwrap();
    let ann = operator("corp:ann", Via::Oidc, &["staff"]);
    let lead = operator("corp:lea", Via::Oidc, &["leads"]);
    let bot = Principal::new("corp:bot", PrincipalKind::Automation, Via::Oidc);
    let on = |kind: &str, name: &str| Subject { kind: kind.to_owned(), name: name.to_owned(), workload: None };
    let may = |who: &Principal, what: &str, on: &Subject| policies.check(who, action(what), on).is_ok();
    assert!(may(&ann, "service.list", &on("service", "")) && may(&ann, "grant.show", &grant_of(AGENT)));
    assert!(!may(&ann, "grant.approve", &grant_of(AGENT)) && !may(&ann, "service.put", &on("service", "shop")));
    assert!(may(&lead, "grant.approve", &grant_of(AGENT)) && may(&lead, "grant.revoke", &grant_of(AGENT)));
    assert!(!may(&lead, "service.list", &on("service", "")));
    assert!(may(&bot, "service.put", &on("service", "shop")) && !may(&bot, "service.put", &on("service", "till")));
    let mut bot = bot;
    bot.groups = Arc::from([Arc::from("leads")]);
    let denied = policies.check(&bot, action("grant.revoke"), &grant_of(AGENT)).unwrap_err();
    assert_eq!(denied.to_string(), "operator policies forbid `grant.revoke`: not-glass");
}

#[test]
fn what_is_not_understood_is_refused_with_its_place() {
    let actions = operator_actions();
    for (text, place, message) in [
        (r#"@id("x") permit(principal, action == Action::"grant.aprove", resource);"#, Some(1), "grant.aprove"),
        ("@id(\"x\")\npermit(principal, action, resource) when { principal.colour };", Some(2), "colour"),
        (r#"permit(principal, action, resource);"#, None, "@id"),
        ("@id(\"x\") permit(principal in Role::\"r\", action, resource);", Some(1), "Role"),
    ] {
        let errors = OperatorPolicies::compile(text, &actions).unwrap_err();
        assert!(errors.to_string().contains(message), "{message}: {errors}");
        assert!(place.is_none() || errors.0[0].line == place, "{errors}");
    }
}

#[test]
fn an_error_denies_although_a_permit_matches() {
    let actions = operator_actions();
    let text = r#"
        @id("all") permit(principal, action, resource);
        @id("overflow") forbid(principal, action == Action::"grant.approve", resource) when { 9223372036854775807 + 1 > 0 };
    "#;
    let policies = OperatorPolicies::compile(text, &actions).unwrap();
    let denied = policies.check(&operator("alice", Via::Token, &[]), action("grant.approve"), &Subject::default());
    assert_eq!(denied, Err(Denied::Failed("grant.approve".to_owned())));
}

#[test]
fn the_examples_of_the_documentation_are_valid() {
    let text = include_str!("../../../docs/operators.md");
    let examples: Vec<&str> = text.split("```cedar\n").skip(1).filter_map(|rest| rest.split("```").next()).collect();
    assert_eq!(examples.len(), 1);
    for example in examples {
        OperatorPolicies::compile(example, &operator_actions()).unwrap_or_else(|e| panic!("{e}: {example}"));
    }
}
