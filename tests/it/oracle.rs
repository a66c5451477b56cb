//! Differential: the compiled snapshot against a slow, obvious evaluator of the documents it was compiled from.
//!
//! The oracle reads the JSON objects of a generated estate with linear scans: every grant, every route, every policy.
//! It shares no code with the engine but the parsers of documents and Cedar itself. Tokens are taken as given: the
//! generator says what is wrong with one. Templates are matched letter by letter, and "narrower" is found by trying
//! every path of a small world. What one service's hosts hide from another's, which grant a denial tells of, and what
//! an erring policy does, must come out the same.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use cedar_policy::{
    Authorizer, Context, Decision as Verdict, Entities, EntityUid, PolicyId, PolicySet, Request as Ask,
};
use portcullis::authz::{self, Builder, Change, Inputs, NoMemo, Reason, Settings};
use portcullis::cache::{CacheSizes, Gate};
use portcullis::clock::{Clock, Timestamp};
use portcullis::credential::TokenSigner;
use portcullis::object::{Ending, GrantId, GrantState, Kind, Object, PolicySet as Document};
use portcullis::state::State;
use portcullis::testing::{Estate, request};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use serde_json::{Value, json};
use uuid::Uuid;

mod estates;

use self::estates::{Case, Credential, Flaw, case};

const NIL: GrantId = GrantId(Uuid::nil());

/// What the oracle says: the reason, and the grants of which the decision may tell (one, except for a denial for
/// scope, which may tell of any that is in force).
#[derive(Debug)]
struct Answer {
    reason: Reason,
    grants: BTreeSet<GrantId>,
}

/// A document's field as text.
fn text<'a>(document: &'a Value, field: &str) -> &'a str {
    document[field].as_str().unwrap_or_default()
}

fn list<'a>(document: &'a Value, field: &str) -> Vec<&'a str> {
    document[field].as_array().map(|a| a.iter().filter_map(Value::as_str).collect()).unwrap_or_default()
}

fn time(document: &Value, field: &str) -> Option<Timestamp> {
    document.get(field).and_then(|t| serde_json::from_value(t.clone()).ok())
}

struct Oracle {
    documents: Vec<(Kind, Value)>,
    now: Timestamp,
    /// Since the state was confirmed current.
    age: Duration,
}

impl Oracle {
    fn of(estate: &Estate, age: u64) -> Self {
        let read = |c: Change| (c.kind, serde_json::from_slice(&c.body.unwrap()).unwrap());
        let documents = estate.changes().into_iter().map(read).collect();
        Self { documents, now: estate.clock.now().wall, age: Duration::from_secs(age) }
    }

    fn all(&self, kind: Kind) -> impl Iterator<Item = &Value> {
        self.documents.iter().filter(move |(k, _)| *k == kind).map(|(_, d)| d)
    }

    fn revoked(&self, kind: &str, fields: &[(&str, &str)]) -> bool {
        self.all(Kind::Revocation).any(|r| {
            text(&r["target"], "kind") == kind && fields.iter().all(|(name, value)| text(&r["target"], name) == *value)
        })
    }

    fn answer(&self, case: &Case, credential: &Credential) -> Answer {
        let only = |reason| Answer { reason, grants: BTreeSet::new() };
        let Some(path) = decoded(&case.path) else { return only(Reason::InputAmbiguousPath) };
        match credential.flaw {
            Flaw::Absent => return only(Reason::CredentialMissing),
            Flaw::Garbage => return only(Reason::CredentialMalformed),
            Flaw::UnknownKey => return only(Reason::CredentialKidUnknown),
            Flaw::Audience => return only(Reason::CredentialAudience),
            Flaw::Expired => return only(Reason::CredentialExpired),
            Flaw::Forged => return only(Reason::CredentialSignature),
            Flaw::None => {}
        }
        let id = Estate::id(credential.workload);
        let cut = |r: &&Value| {
            text(&r["target"], "kind") == "tokens_before"
                && text(&r["target"], "workload") == id
                && time(&r["target"], "before").is_some_and(|before| credential.issued_at < before)
        };
        if self.revoked("token", &[("issuer", "test"), ("jti", &credential.jti)])
            || self.all(Kind::Revocation).any(|r| cut(&r))
        {
            return only(Reason::RevokedToken);
        }
        if self.revoked("workload", &[("workload", &id)]) {
            return only(Reason::RevokedWorkload);
        }
        if self.revoked("key", &[("issuer", "test"), ("kid", "key-1")]) {
            return only(Reason::RevokedKey);
        }
        if self.revoked("issuer", &[("issuer", "test")]) {
            return only(Reason::RevokedIssuer);
        }
        if self.routes_conflict() {
            return only(Reason::SystemInternal);
        }
        let route = self.route(case, &path);
        let strict = route.is_some_and(|(_, route)| text(route, "freshness") == "strict");
        if self.age >= Duration::from_secs(if strict { 10 } else { 300 }) {
            return only(Reason::SystemStale);
        }
        let Some(workload) = self.all(Kind::Workload).find(|w| text(w, "id") == id) else {
            return only(Reason::CredentialSubject);
        };
        let Some((service, route)) = route else { return only(Reason::PolicyNoMatch) };
        self.decide(case, &path, workload, service, route)
    }

    /// The services whose routes count for a host: those that name it, or else those that name none.
    fn services(&self, host: &str) -> Vec<&Value> {
        let host = host.to_ascii_lowercase();
        let host = host.split(':').next().unwrap_or_default().trim_end_matches('.');
        let naming: Vec<&Value> = self.all(Kind::Service).filter(|s| list(s, "hosts").contains(&host)).collect();
        if naming.is_empty() {
            self.all(Kind::Service).filter(|s| list(s, "hosts").is_empty()).collect()
        } else {
            naming
        }
    }

    fn routes<'a>(services: &[&'a Value]) -> Vec<(&'a Value, &'a Value)> {
        services.iter().flat_map(|s| s["routes"].as_array().unwrap().iter().map(move |r| (*s, r))).collect()
    }

    fn routes_conflict(&self) -> bool {
        estates::HOSTS.iter().any(|host| {
            let routes = Self::routes(&self.services(host));
            routes.iter().enumerate().any(|(i, (_, a))| {
                routes.iter().skip(i + 1).any(|(_, b)| {
                    let (of_a, of_b) = (world_of(text(a, "path")), world_of(text(b, "path")));
                    let (methods_a, methods_b) = (list(a, "methods"), list(b, "methods"));
                    let share = methods_a.is_empty()
                        || methods_b.is_empty()
                        || methods_a.iter().any(|method| methods_b.contains(method));
                    let nested = of_a != of_b && (of_a.is_subset(&of_b) || of_b.is_subset(&of_a));
                    share && !nested && !of_a.is_disjoint(&of_b)
                })
            })
        })
    }

    /// The narrowest route that matches.
    fn route(&self, case: &Case, path: &str) -> Option<(&Value, &Value)> {
        let matching = Self::routes(&self.services(&case.host)).into_iter().filter(|(_, route)| {
            let methods = list(route, "methods");
            (methods.is_empty() || methods.contains(&&*case.method)) && matches(text(route, "path"), path)
        });
        matching.min_by_key(|(_, route)| world_of(text(route, "path")).len())
    }

    fn decide(&self, case: &Case, path: &str, workload: &Value, service: &Value, route: &Value) -> Answer {
        let (service, name) = (text(service, "name"), text(route, "name"));
        let resource = format!("{service}/{name}");
        let action = match route["action"].as_str() {
            Some(action) => action,
            None if matches!(&*case.method, "GET" | "HEAD" | "OPTIONS") => "read",
            None if case.method == "DELETE" => "delete",
            None => "write",
        };
        // Sort every grant into what can be said of it.
        let (mut active, mut scope, mut over) = (Vec::new(), BTreeSet::new(), Vec::new());
        let (mut pending, mut later) = (BTreeSet::new(), BTreeSet::new());
        for grant in self.all(Kind::Grant) {
            let on = list(grant, "resources");
            if text(grant, "workload") != text(workload, "id")
                || !(on.contains(&service) || on.contains(&&*resource))
                || matches!(text(grant, "state"), "denied" | "withdrawn" | "expired_unapproved")
            {
                continue;
            }
            let id: GrantId = text(grant, "id").parse().unwrap();
            let revoked = text(grant, "state") == "revoked" || self.revoked("grant", &[("grant", text(grant, "id"))]);
            let pends = text(grant, "state") == "pending";
            let from = time(grant, "not_before").unwrap_or(Timestamp::from_secs(0));
            let ends = time(grant, "not_after").into_iter().chain(time(&grant["ended"], "at")).min();
            let to = ends.unwrap_or(Timestamp::MAX);
            let ended = text(grant, "state") == "ended";
            // The control plane says when a scheduled one starts.
            let waits = text(grant, "state") == "scheduled" && self.now < to;
            let in_force = !pends && !revoked && !ended && !waits && from <= self.now && self.now < to;
            let covers = list(grant, "actions").contains(&action)
                && grant["path"].as_str().is_none_or(|template| matches(template, path));
            match () {
                () if !covers && in_force => _ = scope.insert(id),
                () if !covers => {}
                () if revoked => over.push((to.min(self.now), true, id)),
                () if pends => _ = pending.insert(id),
                () if ended => over.push((to.min(self.now), false, id)),
                () if in_force => active.push((to, id, grant, to.since(from).as_secs())),
                () if self.now < from || waits => _ = later.insert(id),
                () => over.push((to, false, id)),
            }
        }
        // Ordinary ones first, then the longest-lasting.
        let glass = |grant: &Value| grant["break_glass"].as_bool().unwrap_or_default();
        active.sort_by(|a, b| glass(a.2).cmp(&glass(b.2)).then(b.0.cmp(&a.0)).then(a.1.cmp(&b.1)));

        let ask = |grant: Option<Value>| self.cedar(case, path, workload, action, service, &resource, grant);
        let one = |reason, id| Answer { reason, grants: BTreeSet::from([id]) };
        let plain = ask(None);
        if plain == Reason::AllowPolicy {
            return Answer { reason: plain, grants: BTreeSet::new() };
        }
        let mut first_denial = None;
        for (_, id, grant, seconds) in active {
            let mut actions = list(grant, "actions");
            actions.sort_unstable();
            let facts = json!({"id": id.to_string(), "actions": actions, "duration_seconds": seconds});
            match ask(Some(facts)) {
                Reason::AllowPolicy if glass(grant) => return one(Reason::AllowBreakGlass, id),
                Reason::AllowPolicy => return one(Reason::AllowGrant, id),
                denial => _ = first_denial.get_or_insert((denial, id)),
            }
        }
        if let Some((denial, id)) = first_denial {
            return one(denial, id);
        }
        let longest = route["grants"]["max_duration_seconds"].as_u64().unwrap_or(estates::DEFAULT_LONGEST);
        let any = json!({"id": NIL.to_string(), "actions": [action], "duration_seconds": longest});
        if plain == Reason::PolicyError || ask(Some(any)) != Reason::AllowPolicy {
            return Answer { reason: plain, grants: BTreeSet::new() };
        }
        if let Some(&id) = later.last() {
            return one(Reason::EntitlementGrantNotYetValid, id);
        }
        if let Some(&id) = pending.last() {
            return one(Reason::EntitlementGrantPending, id);
        }
        match over.iter().max() {
            Some((_, true, id)) => one(Reason::RevokedGrant, *id),
            Some((_, false, id)) => one(Reason::EntitlementGrantExpired, *id),
            None if scope.is_empty() => Answer { reason: Reason::EntitlementNoGrant, grants: scope },
            None => Answer { reason: Reason::EntitlementScope, grants: scope },
        }
    }

    /// Cedar over the whole policy set, with every entity and every attribute.
    #[allow(clippy::too_many_arguments, reason = "everything that a policy can read")]
    fn cedar(
        &self,
        case: &Case,
        path: &str,
        workload: &Value,
        action: &str,
        service: &str,
        resource: &str,
        grant: Option<Value>,
    ) -> Reason {
        let Some(document) = self.all(Kind::PolicySet).next() else { return Reason::PolicyNoMatch };
        let parsed: PolicySet = text(document, "text").parse().unwrap();
        let named = parsed.policies().map(|p| p.new_id(PolicyId::new(p.annotation("id").unwrap())));
        let policies = PolicySet::from_policies(named).unwrap();
        let uid = |kind: &str, id: &str| json!({"type": kind, "id": id});
        let bare = |uid: Value| json!({"uid": uid, "attrs": {}, "parents": []});
        let roles: BTreeSet<&str> = list(workload, "roles").into_iter().collect();
        let mut entities: Vec<Value> = roles.iter().map(|r| bare(uid("Role", r))).collect();
        entities.push(json!({
            "uid": uid("Workload", text(workload, "id")),
            "attrs": {"kind": workload["kind"], "owner": workload["owner"], "environment": workload["environment"]},
            "parents": roles.iter().map(|r| uid("Role", r)).collect::<Vec<_>>(),
            "tags": workload.get("labels").cloned().unwrap_or(json!({})),
        }));
        entities.push(bare(uid("Service", service)));
        entities.push(json!({"uid": uid("Route", resource), "attrs": {}, "parents": [uid("Service", service)]}));
        let host = case.host.to_ascii_lowercase();
        let host = host.split(':').next().unwrap_or_default().trim_end_matches('.');
        let mut context = json!({"method": case.method, "path": path, "host": host});
        if let Some(grant) = grant {
            context["grant"] = grant;
        }
        let named = |kind: &str, id: &str| EntityUid::from_json(uid(kind, id)).unwrap();
        let context = Context::from_json_value(context, None).unwrap();
        let principal = named("Workload", text(workload, "id"));
        let ask = Ask::new(principal, named("Action", action), named("Route", resource), context, None).unwrap();
        let entities = Entities::from_json_value(Value::Array(entities), None).unwrap();
        let said = Authorizer::new().is_authorized(&ask, &policies, &entities);
        match said.decision() {
            _ if said.diagnostics().errors().next().is_some() => Reason::PolicyError,
            Verdict::Allow => Reason::AllowPolicy,
            Verdict::Deny if said.diagnostics().reason().next().is_some() => Reason::PolicyExplicitDeny,
            Verdict::Deny => Reason::PolicyNoMatch,
        }
    }
}

/// The path with its escaped letters decoded; `None` when it could be read in two ways.
fn decoded(path: &str) -> Option<String> {
    let path = path.split('?').next().unwrap_or_default();
    if path.contains("//") || path.contains("%2") || path.split('/').any(|s| s == "." || s == "..") {
        return None;
    }
    Some(path.replace("%61", "a").replace("%62", "b"))
}

/// Whether a path matches a template, letter by letter, trying every length for every operator.
fn matches(template: &str, path: &str) -> bool {
    if let Some(rest) = template.strip_prefix("{**}") {
        return path.char_indices().map(|(i, _)| i).chain([path.len()]).any(|i| matches(rest, &path[i..]));
    }
    if template.starts_with('{') {
        let rest = &template[template.find('}').unwrap() + 1..];
        let longest = path.find('/').unwrap_or(path.len());
        return (1..=longest).any(|i| matches(rest, &path[i..]));
    }
    match (template.chars().next(), path.chars().next()) {
        (None, None) => true,
        (Some(a), Some(b)) if a == b => matches(&template[1..], &path[1..]),
        _ => false,
    }
}

/// Every path of a small world that a template matches.
fn world_of(template: &str) -> BTreeSet<String> {
    let mut world = vec![String::new()];
    let mut paths = vec!["/".to_owned()];
    for _ in 0..3 {
        world = world.iter().flat_map(|p| ["a", "b", "c"].map(|s| format!("{p}/{s}"))).collect();
        paths.extend(world.iter().flat_map(|p| [p.clone(), format!("{p}/")]));
    }
    paths.into_iter().filter(|path| matches(template, path)).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 384, ..ProptestConfig::default() })]

    #[test]
    fn the_engine_agrees_with_the_oracle(case in case()) {
        let (estate, credential, token) = case.build();
        let documents = estate.changes();
        let now = estate.clock.now();
        let oracle = Oracle::of(&estate, case.age);
        let mut lease = estate.lease();
        lease.server_time = Timestamp::from_millis(now.wall.as_millis() - case.age * 1000);
        // A conflict between routes is reported here, and denies everything.
        let mut builder = Builder::empty();
        documents.into_iter().for_each(|change| builder.apply(change));
        let (snapshot, bad) = builder.finish(estate.position());
        prop_assert_eq!(!bad.is_empty(), oracle.routes_conflict(), "{:?}", bad);

        let headers: Vec<(&str, String)> = token.iter().map(|t| ("authorization", format!("Bearer {t}"))).collect();
        let mut request = request(&case.method, &case.path, &headers);
        request.host = &case.host;
        let expected = oracle.answer(&case, &credential);
        let settings = Settings::default();
        let inputs = Inputs { snapshot: Some(&snapshot), lease: Some(lease), now, proofs: None, settings: &settings, uses: None };
        let direct = authz::decide(&request, inputs, &NoMemo);
        let state = Arc::new(State::new());
        state.restore(Arc::new(snapshot.clone()), lease);
        let gate = Gate::new(state, Arc::clone(&estate.clock) as _, CacheSizes { tokens: 10, decisions: 10 });
        for decision in [direct, gate.check(&request), gate.check(&request)] {
            prop_assert_eq!(decision.reason, expected.reason, "{:?} {:?}", &expected, decision.detail);
            prop_assert_eq!(decision.permit().is_some(), expected.reason.is_allow());
            match decision.grant {
                Some(id) => prop_assert!(expected.grants.contains(&id), "{} not in {:?}", id, expected),
                None => prop_assert!(expected.grants.is_empty(), "{:?}", expected),
            }
        }
    }
}

/// An oracle that is only ever asked easy questions proves little.
#[test]
fn the_oracle_meets_every_kind_of_answer() {
    let mut runner = TestRunner::deterministic();
    let mut met = BTreeMap::new();
    for _ in 0..10_000 {
        let case = case().new_tree(&mut runner).unwrap().current();
        let (estate, credential, _) = case.build();
        let answer = Oracle::of(&estate, case.age).answer(&case, &credential);
        *met.entry(answer.reason.code()).or_insert(0) += 1;
    }
    let families = ["allow.", "credential.", "entitlement.", "input.", "policy.", "revoked.", "system."];
    let count = |family: &&str| met.keys().filter(|code| code.starts_with(*family)).count();
    // Three allows; missing, malformed, kid_unknown, audience, expired, signature, subject; and so on.
    assert_eq!(families.iter().map(count).collect::<Vec<_>>(), [3, 7, 5, 1, 3, 5, 2], "{met:?}");
}
