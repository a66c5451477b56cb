//! Invariants 4, 9, 12 and 13 through the gate, over generated histories of a small estate.
//!
//! The oracle is the engine without a memo; the engine itself is checked against `tests/it/oracle.rs`.
//! Long because the histories that they are generated from are told in one place.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;

use super::*;
use crate::authz::{Builder, Change, Decision, Deferred, Peer, Reason, Request};
use crate::clock::{Clock, Timestamp};
use crate::credential::TokenSigner;
use crate::object::{Kind, Object};
use crate::state::State;
use crate::testing::{Estate, POLICIES, request};

mod crowd;
mod uses;

const SIZES: CacheSizes = CacheSizes { tokens: 100, decisions: 100 };

/// An estate behind a gate, changed as a sidecar would see it change: by deltas.
struct Sidecar {
    estate: Estate,
    state: Arc<State>,
    gate: Gate,
    tokens: Vec<(String, Timestamp)>,
}

/// Something that happens to an estate.
#[derive(Debug, Clone)]
enum Event {
    Wait(u64),
    Bookmark,
    NewToken(usize, u64),
    /// A token of the control plane, tied to a grant and some actions, in place of that workload's.
    TiedToken(usize, usize, u64),
    Grant(usize, usize, usize, u64),
    /// One with limits.
    Limited(usize, usize, usize, u64),
    RevokeGrant(usize),
    DeleteGrant(usize),
    RevokeWorkload(usize),
    RevokeToken(usize),
    Roles(usize, bool),
    Policies(usize),
    FullSync,
}

const CONTROL: &str = "https://control.example";
const WORKLOADS: [&str; 3] = ["storefront", "agent", "ci"];
const RESOURCES: [&str; 4] = ["payments/refunds", "payments", "payments/payouts", "catalog/items"];
const PATHS: [Option<&str>; 3] = [None, Some("/refunds/{*}"), Some("/refunds/7")];
const FORBID: &str = r#"@id("no-writes") forbid(principal, action == Action::"write", resource);"#;
const BY_PATH: &str = r#"@id("seven") permit(principal, action, resource) when { context.path like "*7" };"#;
const REQUESTS: [(&str, &str); 6] = [
    ("GET", "/catalog/1"),
    ("PUT", "/catalog/7"),
    ("POST", "/refunds/7"),
    ("POST", "/refunds/8"),
    ("GET", "/refunds/7"),
    ("POST", "/payouts/7"),
];

const LIMITS: usize = 7;

/// One of so many ways to limit a grant.
fn limit(grant: &mut crate::object::Grant, way: usize) {
    let document = match way {
        0 => json!({"headers": {"x-run": ["7"]}}),
        1 => json!({"source_networks": ["10.0.0.0/8"]}),
        2 => json!({"windows": [{"from": "08:01", "to": "08:03"}, {"from": "08:03", "to": "08:04"}]}),
        3 => json!({"environments": ["staging"]}),
        _ => json!({}),
    };
    grant.conditions = serde_json::from_value(document).unwrap();
    let call = match way {
        4 => json!({"method": "POST", "path": "/refunds/7?x"}),
        5 => json!({"method": "POST", "path": "/refunds/7", "body_sha256":
                    "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"}),
        6 => return grant.uses = Some(2),
        _ => return,
    };
    grant.call = serde_json::from_value(call).unwrap();
}

fn policies(choice: usize) -> String {
    match choice {
        0 => POLICIES.to_owned(),
        1 => format!("{POLICIES}\n{FORBID}"),
        2 => format!("{POLICIES}\n{BY_PATH}"),
        _ => String::new(),
    }
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        3 => (1..200u64).prop_map(Event::Wait),
        2 => Just(Event::Bookmark),
        2 => (0..3usize, 1..400u64).prop_map(|(w, s)| Event::NewToken(w, s)),
        3 => (0..8usize, 0..3usize, 1..300u64).prop_map(|(n, a, s)| Event::TiedToken(n, a, s)),
        4 => (0..3usize, 0..4usize, 0..3usize, 1..300u64).prop_map(|(w, r, p, s)| Event::Grant(w, r, p, s)),
        3 => (0..3usize, 0..2usize, 0..LIMITS, 1..300u64).prop_map(|(w, r, l, s)| Event::Limited(w, r, l, s)),
        1 => (0..8usize).prop_map(Event::RevokeGrant),
        1 => (0..8usize).prop_map(Event::DeleteGrant),
        1 => (0..3usize).prop_map(Event::RevokeWorkload),
        1 => (0..3usize).prop_map(Event::RevokeToken),
        1 => (0..3usize, any::<bool>()).prop_map(|(w, r)| Event::Roles(w, r)),
        1 => (0..4usize).prop_map(Event::Policies),
        1 => Just(Event::FullSync),
    ]
}

// === impl Sidecar ===

impl Sidecar {
    fn new() -> Self {
        let mut estate = Estate::new();
        let mut jwk = estate.signer.public_jwk();
        jwk["use"] = json!("sig");
        let control = json!({"name": "control", "kind": "portcullis", "issuer": CONTROL, "jwks": {"keys": [jwk]}});
        drop(estate.put(Kind::Issuer, &control));
        let state = estate.state();
        let gate = Gate::new(Arc::clone(&state), Arc::clone(&estate.clock) as _, SIZES);
        let mut sidecar = Self { estate, state, gate, tokens: Vec::new() };
        for w in 0..3 {
            let token = sidecar.mint(w, 300);
            sidecar.tokens.push(token);
        }
        sidecar
    }

    fn mint(&self, workload: usize, secs: u64) -> (String, Timestamp) {
        let mut claims = self.estate.claims(WORKLOADS[workload]);
        let until = self.estate.clock.now().wall.as_secs() + secs;
        claims["exp"] = json!(until);
        (self.estate.signer.sign(&claims).unwrap(), Timestamp::from_secs(until))
    }

    fn mint_tied(&self, grant: &crate::object::Grant, scope: &str, secs: u64) -> (String, Timestamp) {
        let now = self.estate.clock.now().wall.as_secs();
        let claims = json!({
            "iss": CONTROL, "sub": grant.workload, "client_id": grant.workload, "aud": grant.resources[0].service,
            "scope": scope, "grant_id": grant.id, "iat": now, "exp": now + secs, "jti": "tied",
        });
        (self.estate.signer.sign_access_token(&claims).unwrap(), Timestamp::from_secs(now + secs))
    }

    fn delta(&self, changes: impl IntoIterator<Item = Change>) {
        let world = self.state.load();
        let mut builder = Builder::on(world.snapshot.as_deref().unwrap());
        changes.into_iter().for_each(|c| builder.apply(c));
        let (snapshot, bad) = builder.finish(self.estate.position());
        assert_eq!(bad, []);
        self.state.publish(Arc::new(snapshot));
    }

    fn happen(&mut self, event: &Event, grants: &mut Vec<crate::object::Grant>) {
        let change = match *event {
            Event::Wait(secs) => return self.estate.clock.advance(Duration::from_secs(secs)),
            Event::Bookmark => return self.state.renew(self.estate.lease()),
            Event::FullSync => {
                self.state.publish(Arc::new(self.estate.snapshot()));
                return;
            }
            Event::NewToken(w, secs) => {
                self.tokens[w] = self.mint(w, secs);
                return;
            }
            Event::TiedToken(n, actions, secs) => {
                let Some(grant) = grants.get(n) else { return };
                let w = WORKLOADS.iter().position(|name| Estate::id(name) == grant.workload.as_str()).unwrap();
                self.tokens[w] = self.mint_tied(grant, ["read", "write", "read write"][actions], secs);
                return;
            }
            Event::Grant(w, r, p, secs) => {
                let actions: &[&str] = if secs % 2 == 0 { &["write"] } else { &["read", "write"] };
                let (grant, change) = self.estate.grant(WORKLOADS[w], RESOURCES[r], actions, PATHS[p], secs);
                grants.push(grant);
                change
            }
            Event::Limited(w, r, way, secs) => {
                let asked = self.estate.ask(WORKLOADS[w], RESOURCES[r], &["write"], None, secs);
                let (grant, change) = self.estate.grant_as(asked, |grant| limit(grant, way));
                grants.push(grant);
                change
            }
            Event::RevokeGrant(n) => match grants.get(n) {
                Some(grant) => self.estate.revoke_grant(grant.id),
                None => return,
            },
            Event::DeleteGrant(n) => match grants.get(n) {
                Some(grant) => self.estate.delete(Kind::Grant, &grant.id.to_string()),
                None => return,
            },
            Event::RevokeWorkload(w) => {
                self.estate.revoke(&json!({"kind": "workload", "workload": Estate::id(WORKLOADS[w])}))
            }
            Event::RevokeToken(w) => {
                self.estate.revoke(&json!({"kind": "token", "issuer": "test", "jti": format!("jti-{}", WORKLOADS[w])}))
            }
            Event::Roles(w, storefront) => {
                let roles = if storefront { json!(["storefront"]) } else { json!([]) };
                self.estate.put(
                    Kind::Workload,
                    &json!({"id": Estate::id(WORKLOADS[w]), "kind": "service", "owner": "team",
                            "environment": "production", "roles": roles}),
                )
            }
            Event::Policies(choice) => self.estate.put_policies(&policies(choice)),
        };
        self.delta([change]);
    }

    fn each_request(&self, mut look: impl FnMut(usize, &Request<'_>)) {
        for (w, (token, _)) in self.tokens.iter().enumerate() {
            let headers = [("authorization", format!("Bearer {token}"))];
            for (method, path) in REQUESTS {
                look(w, &request(method, path, &headers));
            }
            // One request in the circumstances that limits ask about.
            let run = [headers[0].clone(), ("x-run", "7".to_owned())];
            look(w, &request("POST", "/refunds/7", &run));
            look(w, &request("POST", "/refunds/7?x", &headers));
            let address = "10.1.2.3".parse().ok();
            look(w, &Request { peer: Peer { address, ..Peer::default() }, ..request("POST", "/refunds/7", &headers) });
            look(w, &Request { body: Some(b"x"), ..request("POST", "/refunds/7", &headers) });
        }
    }

    fn denied(&self) -> Vec<bool> {
        let mut denied = Vec::new();
        self.each_request(|_, r| denied.push(self.gate.explain(r).0.permit().is_none()));
        denied
    }
}

/// What must agree between a cached and an evaluated decision: everything but its id and whether it was cached.
fn essence(d: &Decision) -> String {
    format!(
        "{:?}",
        (
            d.reason,
            d.permit().is_some(),
            &d.workload,
            d.grant,
            &d.resource,
            &d.action,
            &d.policies,
            &d.grant_request,
            d.position
        )
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn invariant_13_a_cached_answer_is_what_evaluation_gives_now(events in prop::collection::vec(event(), 1..25)) {
        let mut sidecar = Sidecar::new();
        let mut grants = Vec::new();
        for event in &events {
            sidecar.happen(event, &mut grants);
            // Twice: the second time is a hit wherever one is possible.
            for _ in 0..2 {
                let mut wrong = None;
                sidecar.each_request(|_, r| {
                    let at_once = sidecar.gate.check_unless_costly(r);
                    let (cached, evaluated) = (sidecar.gate.check(r), sidecar.gate.explain(r).0);
                    // Deferred or not, the answer is the same; and nothing is deferred twice.
                    let known = sidecar.gate.check_unless_costly(r).unwrap();
                    for decision in at_once.iter().chain([&cached, &known]) {
                        if essence(decision) != essence(&evaluated) {
                            wrong = Some((r.method.to_owned(), r.path.to_owned(), essence(decision), essence(&evaluated)));
                        }
                    }
                });
                prop_assert_eq!(&wrong, &None, "after {:?}", event);
            }
        }
    }

    #[test]
    fn invariant_04_no_allow_past_token_grant_or_staleness(events in prop::collection::vec(event(), 1..25)) {
        let mut sidecar = Sidecar::new();
        let mut grants = Vec::new();
        for event in &events {
            sidecar.happen(event, &mut grants);
            let now = sidecar.estate.clock.now();
            let lease = sidecar.state.load().lease.unwrap();
            let mut wrong = Vec::new();
            sidecar.each_request(|w, r| {
                let decision = sidecar.gate.check(r);
                if decision.permit().is_none() {
                    return;
                }
                let strict = r.path.starts_with("/payouts");
                let bound = if strict { lease.lease } else { lease.max_staleness };
                let grant_over = decision.grant.is_some_and(|id| {
                    grants.iter().any(|g| g.id == id && now.wall >= g.not_after.unwrap())
                });
                if now.wall >= sidecar.tokens[w].1 || lease.age(now) >= bound || grant_over {
                    wrong.push((r.path.to_owned(), decision.reason));
                }
            });
            prop_assert_eq!(&wrong, &vec![], "after {:?}", event);
        }
    }

    #[test]
    fn invariant_12_less_permission_never_turns_a_deny_into_an_allow(
        events in prop::collection::vec(event(), 0..15), grant in 0..8usize, workload in 0..3usize,
    ) {
        let mut sidecar = Sidecar::new();
        let mut grants = Vec::new();
        events.iter().for_each(|e| sidecar.happen(e, &mut grants));
        let less = [
            Event::DeleteGrant(grant), Event::RevokeGrant(grant), Event::RevokeToken(workload), Event::RevokeWorkload(workload),
        ];
        for event in &less {
            let before = sidecar.denied();
            sidecar.happen(event, &mut grants);
            for (before, after) in before.iter().zip(sidecar.denied()) {
                prop_assert!(!before || after, "{:?} turned a deny into an allow", event);
            }
        }
        // Adding a forbid to whatever policies are in force.
        let text = sidecar.estate.changes().into_iter().find(|c| c.kind == Kind::PolicySet).unwrap().body.unwrap();
        let Object::PolicySet(set) = Object::parse(Kind::PolicySet, &text).unwrap() else { panic!("not a policy set") };
        let before = sidecar.denied();
        let more = format!("{}\n@id(\"added\") forbid(principal, action, resource in Service::\"payments\");", set.text);
        let change = sidecar.estate.put_policies(&more);
        sidecar.delta([change]);
        for (before, after) in before.iter().zip(sidecar.denied()) {
            prop_assert!(!before || after, "a forbid turned a deny into an allow");
        }
    }

    #[test]
    fn invariant_05_deltas_reach_what_a_full_build_reaches(events in prop::collection::vec(event(), 1..40)) {
        let mut sidecar = Sidecar::new();
        let mut grants = Vec::new();
        events.iter().for_each(|e| sidecar.happen(e, &mut grants));
        let world = sidecar.state.load();
        let incremental = world.snapshot.as_deref().unwrap();
        prop_assert_eq!(incremental.digest(), sidecar.estate.snapshot().digest());
    }
}

#[test]
fn a_second_check_is_a_hit_and_one_grant_does_not_empty_the_cache() {
    let mut sidecar = Sidecar::new();
    let headers = [("authorization", format!("Bearer {}", sidecar.tokens[0].0))];
    let read = request("GET", "/catalog/1", &headers);
    assert!(!sidecar.gate.check(&read).cached);
    let again = sidecar.gate.check(&request("GET", "/catalog/2", &headers));
    assert!(again.cached, "no policy reads the path, so another path is the same question");
    assert_eq!(again.reason, Reason::AllowPolicy);
    let (_, change) = sidecar.estate.grant("agent", "payments/refunds", &["write"], None, 60);
    sidecar.delta([change]);
    assert!(sidecar.gate.check(&read).cached, "a grant of another workload");
    let change = sidecar.estate.put_policies(POLICIES);
    sidecar.delta([change]);
    assert!(!sidecar.gate.check(&read).cached, "policies are global");
    let counters = sidecar.gate.decision_cache();
    assert_eq!((counters.hits, counters.misses), (2, 2), "an entry of an old version is a miss");
}

#[test]
fn what_is_deferred_is_counted_once() {
    let sidecar = Sidecar::new();
    let headers = [("authorization", format!("Bearer {}", sidecar.estate.token("storefront")))];
    let read = request("GET", "/catalog/1", &headers);
    let counted = || [sidecar.gate.token_cache(), sidecar.gate.decision_cache()].map(|c| (c.hits, c.misses));
    assert_eq!(sidecar.gate.check_unless_costly(&read).unwrap_err(), Deferred::Token);
    assert_eq!(sidecar.gate.check_deferred(&read).reason, Reason::AllowPolicy);
    assert_eq!(counted(), [(0, 1), (0, 1)]);
    assert_eq!(sidecar.gate.check_unless_costly(&read).unwrap().reason, Reason::AllowPolicy);
    assert_eq!(counted(), [(1, 1), (1, 1)]);
    // Where nothing defers, the one look-up counts.
    assert_eq!(sidecar.gate.check(&read).reason, Reason::AllowPolicy);
    assert_eq!(counted(), [(2, 1), (2, 1)]);
}

#[test]
fn a_forged_token_is_verified_once_and_again_when_the_issuers_change() {
    let mut sidecar = Sidecar::new();
    let other = TokenSigner::generate_es256(sidecar.estate.signer.kid()).unwrap();
    let headers = [("authorization", format!("Bearer {}", other.sign(&sidecar.estate.claims("storefront")).unwrap()))];
    let read = request("GET", "/catalog/1", &headers);
    assert_eq!(sidecar.gate.check_unless_costly(&read).unwrap_err(), Deferred::Token);
    assert_eq!(sidecar.gate.check_unless_costly(&read).unwrap_err(), Deferred::Token, "not knowing is not remembered");
    assert_eq!(sidecar.gate.check(&read).reason, Reason::CredentialSignature);
    assert_eq!(sidecar.gate.check_unless_costly(&read).unwrap().reason, Reason::CredentialSignature);

    let issuer = json!({"name": "test", "kind": "spiffe", "trust_domain": "test.example",
                        "audiences": [crate::testing::AUDIENCE], "jwks": {"keys": [other.public_jwk()]}});
    let change = sidecar.estate.put(Kind::Issuer, &issuer);
    sidecar.delta([change]);
    assert_eq!(sidecar.gate.check_unless_costly(&read).unwrap_err(), Deferred::Token, "it may be good now");
    assert_eq!(sidecar.gate.check(&read).reason, Reason::AllowPolicy);
}

#[test]
fn invariant_09_unsynced_or_stale_is_never_an_allow() {
    let estate = Estate::new();
    let headers = [("authorization", format!("Bearer {}", estate.token("storefront")))];
    let read = request("GET", "/catalog/1", &headers);
    let state = Arc::new(State::new());
    let gate = Gate::new(Arc::clone(&state), Arc::clone(&estate.clock) as _, SIZES);
    assert_eq!(gate.check(&read).reason, Reason::SystemNotReady);
    state.publish(Arc::new(estate.snapshot()));
    assert_eq!(gate.check(&read).reason, Reason::SystemNotReady, "a state without a lease has no age");
    state.renew(estate.lease());
    assert_eq!(gate.check(&read).reason, Reason::AllowPolicy);
    estate.clock.advance(Duration::from_secs(299));
    assert_eq!(gate.check(&read).reason, Reason::AllowPolicy);
    estate.clock.advance(Duration::from_secs(1));
    assert_eq!(gate.check(&read).reason, Reason::CredentialExpired, "the token went first");
    let headers = [("authorization", format!("Bearer {}", estate.token("storefront")))];
    assert_eq!(gate.check(&request("GET", "/catalog/1", &headers)).reason, Reason::SystemStale);
}

/// The "new enemy": Alice loses her permission, then something new is put up. Who asks about the new thing demands a
/// state at least as new, and must not be answered from one in which Alice still may.
#[test]
fn invariant_03_no_check_at_a_revision_sees_an_earlier_state() {
    let mut sidecar = Sidecar::new();
    let token = sidecar.tokens[0].0.clone();
    let at = |revision: String| [("authorization", format!("Bearer {token}")), ("x-portcullis-min-revision", revision)];
    let before = at(sidecar.estate.position().to_string());
    let read = request("GET", "/catalog/1", &before);
    assert_eq!(sidecar.gate.check(&read).reason, Reason::AllowPolicy);

    let storefront = json!({"id": Estate::id("storefront"), "kind": "service", "owner": "team",
                            "environment": "production", "roles": []});
    let loses = sidecar.estate.put(Kind::Workload, &storefront);
    let (_, grant) = sidecar.estate.grant("agent", "catalog", &["write"], None, 60);
    let after = at(sidecar.estate.position().to_string());
    let read = request("GET", "/catalog/1", &after);
    assert_eq!(sidecar.gate.check(&read).reason, Reason::SystemStale, "the old state must not answer for the new one");

    // Both changes in one delta, the later one first: revisions are never split, so the order within does not matter.
    sidecar.delta([grant, loses]);
    assert_eq!(sidecar.gate.check(&read).reason, Reason::EntitlementNoGrant, "and the cached allow is gone");
}

/// What a cache knows of a certificate is whose it is; whether it counts is asked each time.
#[test]
fn a_certificate_in_the_cache_ends_with_its_time_its_revocation_and_its_issuer() {
    use crate::testing::certificates::{SERIAL, der, params, url_encoded, valid};

    let mut sidecar = Sidecar::new();
    let catalog = json!({"name": "catalog", "authentication": "any", "routes": [
        {"name": "items", "methods": ["GET"], "path": "/catalog/{*}"},
    ]});
    let change = sidecar.estate.put(Kind::Service, &catalog);
    sidecar.delta([change]);
    let now = sidecar.estate.clock.now().wall.as_secs();
    let mut p = params(&Estate::id("storefront"), now);
    valid(&mut p, now, now + 100);
    let certificate = url_encoded(&der(&p));
    let peer = crate::authz::Peer { certificate: Some(&certificate), ..Default::default() };
    let ask = |sidecar: &Sidecar| {
        let read = Request { peer, ..request("GET", "/catalog/1", &[]) };
        let decision = sidecar.gate.check(&read);
        assert_eq!(decision.reason, sidecar.gate.explain(&read).0.reason);
        (decision.reason, decision.cached)
    };

    assert_eq!(ask(&sidecar), (Reason::AllowPolicy, false));
    assert_eq!(ask(&sidecar), (Reason::AllowPolicy, true));
    assert_eq!(sidecar.gate.token_cache().hits, 1, "read once");
    // A token of the same workload beside it is an entry of its own, and does not make it last longer.
    let token = [("authorization", format!("Bearer {}", sidecar.estate.token("storefront")))];
    let both = sidecar.gate.check(&Request { peer, ..request("GET", "/catalog/1", &token) });
    assert_eq!((both.reason, both.certificate_serial.as_deref()), (Reason::AllowPolicy, Some(SERIAL)));

    sidecar.estate.clock.advance(Duration::from_secs(99));
    assert_eq!(ask(&sidecar), (Reason::AllowPolicy, true));
    sidecar.estate.clock.advance(Duration::from_secs(1));
    assert_eq!(ask(&sidecar).0, Reason::CredentialExpired);
    let both = sidecar.gate.check(&Request { peer, ..request("GET", "/catalog/1", &token) });
    assert_eq!(both.reason, Reason::CredentialExpired);

    let mut sidecar = Sidecar::new();
    let change = sidecar.estate.put(Kind::Service, &catalog);
    sidecar.delta([change]);
    assert_eq!(ask(&sidecar).0, Reason::AllowPolicy);
    let change = sidecar.estate.revoke(&json!({"kind": "certificate", "serial": "0A:1B:2C"}));
    sidecar.delta([change]);
    assert_eq!(ask(&sidecar).0, Reason::RevokedKey);
    let change = sidecar.estate.delete(Kind::Issuer, "test");
    sidecar.delta([change]);
    assert_eq!(ask(&sidecar).0, Reason::CredentialIssuerUntrusted);
}

/// An answer in the cache is for the grants that hold at the time, and goes with the window of one that does.
#[test]
fn a_cached_answer_ends_with_the_time_window_and_is_for_one_value_of_a_header() {
    let mut sidecar = Sidecar::new();
    let asked = sidecar.estate.ask("agent", "payments/refunds", &["write"], None, 3600);
    let (_, change) = sidecar.estate.grant_as(asked, |grant| {
        let conditions = json!({"windows": [{"from": "08:00", "to": "08:01"}], "headers": {"x-run": ["7"]}});
        grant.conditions = serde_json::from_value(conditions).unwrap();
    });
    sidecar.delta([change]);
    let ask = |sidecar: &Sidecar, run: &str| {
        let headers = [("authorization", format!("Bearer {}", sidecar.tokens[1].0)), ("x-run", run.to_owned())];
        let decision = sidecar.gate.check(&request("POST", "/refunds/7", &headers));
        (decision.reason, decision.cached)
    };
    assert_eq!(ask(&sidecar, "7"), (Reason::AllowGrant, false));
    assert_eq!(ask(&sidecar, "7"), (Reason::AllowGrant, true), "conditions do not keep it out of the cache");
    assert_eq!(ask(&sidecar, "8").0, Reason::EntitlementCondition);
    assert_eq!(ask(&sidecar, "7"), (Reason::AllowGrant, true));
    sidecar.estate.clock.advance(Duration::from_millis(59_999));
    assert_eq!(ask(&sidecar, "7"), (Reason::AllowGrant, true));
    sidecar.estate.clock.advance(Duration::from_millis(1));
    assert_eq!(ask(&sidecar, "7").0, Reason::EntitlementCondition);
}
