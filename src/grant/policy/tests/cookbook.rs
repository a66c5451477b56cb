//! The recipes of `docs/grants.md`: each compiles, alone and with all others, and does what its text says.
//!
//! Pure, like the module.

use super::*;
use crate::authz::Reason;

const PAGE: &str = include_str!("../../../../docs/grants.md");

fn recipes() -> Vec<&'static str> {
    let blocks = PAGE.split("```cedar\n").skip(1);
    blocks.filter_map(|block| block.split_once("```").map(|(recipe, _)| recipe)).collect()
}

/// The recipe that has a policy of this id.
fn recipe(id: &str) -> &'static str {
    let named = format!("@id(\"{id}\")");
    recipes().into_iter().find(|recipe| recipe.contains(&named)).unwrap_or_else(|| panic!("no recipe with `{id}`"))
}

fn terms(id: &str, grant: &Grant) -> Vec<(String, u32)> {
    let needs = ask(recipe(id), grant).unwrap();
    needs.steps.into_iter().map(|step| (step.name, step.approvals)).collect()
}

fn needs(steps: &[(&str, u32)]) -> Vec<(String, u32)> {
    steps.iter().map(|(name, approvals)| ((*name).to_owned(), *approvals)).collect()
}

fn itself() -> Party {
    Party { kind: PartyKind::Workload, groups: Vec::new() }
}

#[test]
fn every_recipe_compiles_alone_and_with_the_others() {
    let recipes = recipes();
    assert!(recipes.len() >= 9, "{}", recipes.len());
    for recipe in &recipes {
        GrantPolicies::compile(recipe).unwrap_or_else(|errors| panic!("{errors}\n{recipe}"));
    }
    GrantPolicies::compile(&recipes.concat()).unwrap();
}

#[test]
fn recipes_do_what_they_say() {
    let plain = Party::default;
    let by_alice = |change: fn(&mut NewGrantRequest)| {
        request("alice", plain(), &["payments/refunds"], |r| {
            (r.reason, r.ticket) = ("why".to_owned(), Some("T-1".to_owned()));
            change(r);
        })
    };
    // The workload of these tests runs in production.
    assert_eq!(terms("anybody-asks", &by_alice(|_| {})), needs(&[("approval", 1)]));
    assert_eq!(terms("money", &by_alice(|_| {})), needs(&[("security", 1), ("lead", 1)]));
    assert_eq!(terms("production", &by_alice(|_| {})), needs(&[("team", 1), ("sre", 1)]));
    assert!(matches!(ask(recipe("production"), &by_alice(|r| r.duration_seconds = 3601)), Err(Refusal::Terms(_))));
    assert!(matches!(ask(recipe("production"), &by_alice(|r| r.ticket = None)), Err(Refusal::Terms(_))));

    let agent = "spiffe://a/agent";
    let read =
        request(agent, itself(), &["catalog/items"], |r| (r.actions, r.duration_seconds) = (vec!["read".into()], 300));
    assert!(ask(recipe("harmless"), &read).unwrap().auto);
    let write = request(agent, itself(), &["catalog/items"], |r| r.duration_seconds = 300);
    assert_eq!(ask(recipe("harmless"), &write), Err(Refusal::NoMatch));
    assert_eq!(
        terms("once", &request(agent, itself(), &["payments"], |r| r.uses = Some(1))),
        needs(&[("owner-team", 1)])
    );
    assert_eq!(ask(recipe("once"), &request(agent, itself(), &["payments"], |_| {})), Err(Refusal::NoMatch));
    assert!(ask(recipe("gold"), &write).unwrap().auto, "it has the label");

    let reports = |renews| request("alice", plain(), &["reports/all"], |r| r.renews = renews);
    assert_eq!(terms("again", &reports(None)), needs(&[("lead", 2)]));
    assert_eq!(terms("again", &reports(Some(read.id))), needs(&[("lead", 1)]));

    let script = Party { kind: PartyKind::Automation, groups: Vec::new() };
    assert_eq!(ask(recipe("pipelines"), &request("ci", script, &["x"], |_| {})), Err(Refusal::NoMatch), "for an agent");
    let glass = |resource: &'static str, group: &'static str| {
        request("alice", self::group(group), &[resource], |r| {
            (r.break_glass, r.reason, r.ticket) = (true, "down".to_owned(), Some("I-1".to_owned()));
        })
    };
    assert!(ask(recipe("on-call"), &glass("payments/refunds", "on-call")).is_ok());
    assert_eq!(ask(recipe("on-call"), &glass("payments/refunds", "others")), Err(Refusal::NoMatch));
    let all = recipes().concat().replace("Service::\"payments\"", "Service::\"vault\"");
    assert_eq!(ask(&all, &glass("vault/root-keys", "on-call")), Err(Refusal::Forbidden(vec!["no-keys".to_owned()])));
}

#[test]
fn every_refusal_that_is_about_grants_is_explained() {
    for reason in Reason::ALL.iter().filter(|r| r.family() == "entitlement" || r.code() == "revoked.grant") {
        assert!(PAGE.contains(&format!("| `{}` |", reason.code())), "{}", reason.code());
    }
}
