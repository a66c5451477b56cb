//! Delegated tokens (RFC 8693, `act` and `may_act`): rights are those of the subject and of whoever acts, both.
//!
//! Long because whoever acts, and break-glass of either side, is put to the same estate.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};

use crate::authz::{Change, Decision, Reason};
use crate::cache::{CacheSizes, Gate};
use crate::clock::Clock;
use crate::credential::TokenSigner;
use crate::object::{Kind, Object};
use crate::state::State;
use crate::testing::{AUDIENCE, Estate, changed, request};

/// `storefront` may read the catalog; `auditor` may read anything; nobody else anything without a grant.
const POLICIES: &str = r#"
@id("catalog-read") permit(principal in Role::"storefront", action in Action::"read", resource in Service::"catalog");
@id("audit")        permit(principal in Role::"auditor", action in Action::"read", resource);
@id("grants")       permit(principal, action, resource) when { context has grant };
"#;

struct Desk {
    estate: Estate,
    state: Arc<State>,
    gate: Gate,
}

impl Desk {
    fn new() -> Self {
        Self::with_depth(2)
    }

    fn with_depth(depth: u8) -> Self {
        let mut estate = Estate::new();
        let keys = json!({"keys": [estate.signer.public_jwk()]});
        estate.put(
            Kind::Issuer,
            &json!({
                "name": "test", "kind": "spiffe", "trust_domain": "test.example", "audiences": [AUDIENCE],
                "max_delegation_depth": depth, "jwks": keys,
            }),
        );
        for (name, role) in [("auditor", "auditor"), ("shop", "storefront")] {
            estate.put(
                Kind::Workload,
                &json!({"id": Estate::id(name), "kind": "agent", "owner": "team", "environment": "production", "roles": [role]}),
            );
        }
        estate.put_policies(POLICIES);
        let state = estate.state();
        let sizes = CacheSizes { tokens: 100, decisions: 100 };
        let gate = Gate::new(Arc::clone(&state), Arc::clone(&estate.clock) as _, sizes);
        Self { estate, state, gate }
    }

    /// Makes the changes so far count.
    fn publish(&self) {
        self.state.publish(Arc::new(self.estate.snapshot()));
    }

    fn put(&mut self, change: impl FnOnce(&mut Estate) -> Change) {
        change(&mut self.estate);
        self.publish();
    }

    fn send(&self, token: &str) -> Decision {
        let headers = [("authorization", format!("Bearer {token}"))];
        let asked = request("GET", "/catalog/1", &headers);
        let evaluated = self.gate.explain(&asked).0;
        // Cold and warm, the caches say what evaluation says.
        for _ in 0..2 {
            let cached = self.gate.check(&asked);
            assert_eq!(
                (cached.reason, &cached.actor, cached.grant),
                (evaluated.reason, &evaluated.actor, evaluated.grant)
            );
        }
        evaluated
    }

    /// What `act` does with a token of `subject`.
    fn judge(&self, subject: &str, act: &Value) -> Decision {
        self.send(&self.token(subject, &json!({"act": act})))
    }

    fn token(&self, subject: &str, changes: &Value) -> String {
        self.estate.signer.sign(&changed(self.estate.claims(subject), changes)).unwrap()
    }
}

fn act(name: &str) -> Value {
    json!({"sub": Estate::id(name)})
}

#[test]
fn both_subject_and_actor_must_be_allowed() {
    let mut desk = Desk::new();
    let both = desk.judge("storefront", &act("auditor"));
    assert_eq!(both.reason, Reason::AllowPolicy);
    assert_eq!(both.workload.as_deref(), Some(&*Estate::id("storefront")));
    assert_eq!(both.actor.as_deref(), Some(&*Estate::id("auditor")));
    assert!(both.permit().is_some());
    // The subject alone, and the actor alone.
    let subject_only = desk.judge("storefront", &act("agent"));
    assert_eq!(subject_only.reason, Reason::EntitlementNoGrant);
    assert_eq!(
        subject_only.grant_request.as_ref().map(|hint| &*hint.workload),
        Some(&*Estate::id("agent")),
        "who needs it"
    );
    let actor_only = desk.judge("agent", &act("auditor"));
    assert_eq!(actor_only.reason, Reason::EntitlementNoGrant);
    assert_eq!(actor_only.grant_request.as_ref().map(|hint| &*hint.workload), Some(&*Estate::id("agent")));
    // A grant of either adds to that one's rights, and to nobody else's.
    let mut granted = None;
    desk.put(|estate| {
        let (grant, change) = estate.grant("agent", "catalog/items", &["read"], None, 200);
        granted = Some(grant.id);
        change
    });
    let by_grant = desk.judge("storefront", &act("agent"));
    assert_eq!((by_grant.reason, by_grant.grant), (Reason::AllowGrant, granted));
    let by_grant = desk.judge("agent", &act("auditor"));
    assert_eq!((by_grant.reason, by_grant.grant), (Reason::AllowGrant, granted));
    assert_eq!(desk.judge("ci", &act("agent")).reason, Reason::EntitlementNoGrant);
    assert_eq!(desk.judge("agent", &act("ci")).reason, Reason::EntitlementNoGrant);
    // Break-glass of either is named, although the other has an ordinary grant.
    let mut glass = None;
    desk.put(|estate| {
        let (mut grant, _) = estate.grant("ci", "catalog/items", &["read"], None, 100);
        grant.break_glass = true;
        grant.digest = grant.request_digest();
        glass = Some(grant.id);
        estate.put_object(&Object::Grant(Box::new(grant)))
    });
    for (subject, actor) in [("ci", "agent"), ("agent", "ci")] {
        let broken = desk.judge(subject, &act(actor));
        assert_eq!((broken.reason, broken.grant), (Reason::AllowBreakGlass, glass), "{actor} for {subject}");
    }
    // Where an ordinary grant is enough, break-glass was not needed.
    desk.put(|estate| estate.grant("ci", "catalog/items", &["read"], None, 50).1);
    assert_eq!(desk.judge("ci", &act("agent")).reason, Reason::AllowGrant);
}

#[test]
fn break_glass_passes_no_check_of_tokens_and_no_revocation() {
    let mut desk = Desk::new();
    let mut id = None;
    desk.put(|estate| {
        let (mut grant, _) = estate.grant("agent", "catalog/items", &["read"], None, 100);
        grant.break_glass = true;
        grant.digest = grant.request_digest();
        id = Some(grant.id);
        estate.put_object(&Object::Grant(Box::new(grant)))
    });
    let token = desk.token("agent", &json!({}));
    let allowed = desk.send(&token);
    assert_eq!((allowed.reason, allowed.grant), (Reason::AllowBreakGlass, id));
    let bad = [
        ("aud", json!(["others"]), Reason::CredentialAudience),
        ("exp", json!(1), Reason::CredentialExpired),
        ("sub", json!("spiffe://other.example/agent"), Reason::CredentialIssuerUntrusted),
    ];
    for (claim, value, reason) in bad {
        assert_eq!(desk.send(&desk.token("agent", &json!({ claim: value }))).reason, reason, "{claim}");
    }
    desk.put(|estate| estate.revoke_grant(id.unwrap()));
    assert_eq!(desk.send(&token).reason, Reason::RevokedGrant);
    desk.put(|estate| estate.revoke(&json!({"kind": "workload", "workload": Estate::id("agent")})));
    assert_eq!(desk.send(&token).reason, Reason::RevokedWorkload);
}

#[test]
fn a_grant_that_ends_ends_what_the_actor_may() {
    let mut desk = Desk::new();
    desk.put(|estate| estate.grant("agent", "catalog/items", &["read"], None, 20).1);
    assert_eq!(desk.judge("storefront", &act("agent")).reason, Reason::AllowGrant);
    desk.estate.clock.advance(Duration::from_secs(19));
    assert_eq!(desk.judge("storefront", &act("agent")).reason, Reason::AllowGrant);
    desk.estate.clock.advance(Duration::from_secs(1));
    assert_eq!(desk.judge("storefront", &act("agent")).reason, Reason::EntitlementGrantExpired);
    assert_eq!(desk.judge("storefront", &act("shop")).reason, Reason::AllowPolicy, "others go on");
}

#[test]
fn the_cached_answer_of_a_subject_is_not_the_actors() {
    let mut desk = Desk::new();
    let own = desk.estate.token("storefront");
    assert_eq!(desk.send(&own).reason, Reason::AllowPolicy);
    assert_eq!(desk.judge("storefront", &act("agent")).reason, Reason::EntitlementNoGrant);
    let mut grant = None;
    desk.put(|estate| {
        let (made, change) = estate.grant("agent", "catalog/items", &["read"], None, 200);
        grant = Some(made.id);
        change
    });
    assert_eq!(desk.judge("storefront", &act("agent")).reason, Reason::AllowGrant);
    desk.put(|estate| estate.revoke_grant(grant.unwrap()));
    assert_eq!(desk.judge("storefront", &act("agent")).reason, Reason::RevokedGrant);
    assert_eq!(desk.send(&own).reason, Reason::AllowPolicy);
    assert_eq!(desk.send(&own).actor, None);
}

#[test]
fn revoking_either_of_them_ends_it() {
    let cases = [
        (json!({"kind": "workload", "workload": Estate::id("auditor")}), Reason::RevokedWorkload),
        (json!({"kind": "workload", "workload": Estate::id("storefront")}), Reason::RevokedWorkload),
        (json!({"kind": "delegator", "workload": Estate::id("storefront")}), Reason::RevokedDelegator),
        (json!({"kind": "token", "issuer": "test", "jti": "jti-storefront"}), Reason::RevokedToken),
    ];
    for (target, reason) in cases {
        let mut desk = Desk::new();
        assert_eq!(desk.judge("storefront", &act("auditor")).reason, Reason::AllowPolicy);
        desk.put(|estate| estate.revoke(&target));
        assert_eq!(desk.judge("storefront", &act("auditor")).reason, reason, "{target}");
    }
    // A delegator that is revoked as such may still do things itself, and may act for others.
    let mut desk = Desk::new();
    desk.put(|estate| estate.revoke(&json!({"kind": "delegator", "workload": Estate::id("auditor")})));
    assert_eq!(desk.send(&desk.token("auditor", &json!({}))).reason, Reason::AllowPolicy);
    assert_eq!(desk.judge("storefront", &act("auditor")).reason, Reason::AllowPolicy);
    assert_eq!(desk.judge("auditor", &act("storefront")).reason, Reason::RevokedDelegator);
}

#[test]
fn tokens_that_an_actor_held_before_a_time_end_with_its_own() {
    for who in ["storefront", "auditor"] {
        let mut desk = Desk::new();
        let old = desk.token("storefront", &json!({"act": act("auditor")}));
        assert_eq!(desk.send(&old).reason, Reason::AllowPolicy);
        desk.estate.clock.advance(Duration::from_secs(10));
        let before = desk.estate.clock.now().wall;
        let target = json!({"kind": "tokens_before", "workload": Estate::id(who), "before": before});
        desk.put(|estate| estate.revoke(&target));
        assert_eq!(desk.send(&old).reason, Reason::RevokedToken, "{who}");
        assert_eq!(desk.judge("storefront", &act("auditor")).reason, Reason::AllowPolicy, "{who}: a new one counts");
    }
}

#[test]
fn how_many_may_act_is_capped_and_earlier_ones_are_for_the_record() {
    let two = json!({"sub": Estate::id("auditor"), "act": act("revoked-long-ago")});
    let three = json!({"sub": Estate::id("auditor"), "act": {"sub": Estate::id("shop"), "act": act("agent")}});
    let desk = Desk::with_depth(0);
    assert_eq!(desk.judge("storefront", &act("auditor")).reason, Reason::CredentialTyp, "may not delegate at all");
    let desk = Desk::with_depth(1);
    assert_eq!(desk.judge("storefront", &act("auditor")).reason, Reason::AllowPolicy);
    assert_eq!(desk.judge("storefront", &two).reason, Reason::CredentialMalformed);
    let desk = Desk::with_depth(2);
    let nested = desk.judge("storefront", &two);
    // Nobody asks whether the earlier one is known, or may do anything (RFC 8693, section 4.1).
    assert_eq!(nested.reason, Reason::AllowPolicy);
    assert_eq!(nested.actor.as_deref(), Some(&*Estate::id("auditor")));
    let earlier: Vec<&str> = nested.earlier_actors.iter().flat_map(|all| all.iter().map(|one| &**one)).collect();
    assert_eq!(earlier, [Estate::id("revoked-long-ago")]);
    assert_eq!(desk.judge("storefront", &three).reason, Reason::CredentialMalformed);
}

#[test]
fn an_actor_is_a_workload_of_the_trust_domain_that_names_it() {
    let desk = Desk::new();
    for (actor, reason) in [
        (json!({"sub": "spiffe://other.example/auditor"}), Reason::CredentialSubject),
        (json!({"sub": "auditor"}), Reason::CredentialSubject),
        (json!({"sub": "spiffe://test.example"}), Reason::CredentialSubject),
        (json!({"sub": Estate::id("stranger")}), Reason::CredentialSubject),
        (json!({"sub": ""}), Reason::CredentialMalformed),
        (json!({"sub": 1}), Reason::CredentialMalformed),
        (json!({}), Reason::CredentialMalformed),
        (json!([]), Reason::CredentialMalformed),
        (json!("auditor"), Reason::CredentialMalformed),
        (json!({"sub": Estate::id("auditor"), "act": "x"}), Reason::CredentialMalformed),
        (json!({"sub": Estate::id("auditor"), "act": {}}), Reason::CredentialMalformed),
    ] {
        assert_eq!(desk.judge("storefront", &actor).reason, reason, "{actor}");
    }
}

#[test]
fn may_act_binds_who_acts() {
    let desk = Desk::new();
    for (may_act, reason) in [
        (json!({"sub": Estate::id("auditor")}), Reason::AllowPolicy),
        (json!({"sub": Estate::id("shop")}), Reason::CredentialSubject),
        (json!({"sub": Estate::id("auditor"), "client_id": "x"}), Reason::CredentialSubject),
        (json!({"sub": [Estate::id("auditor")]}), Reason::CredentialSubject),
        (json!({"email": "auditor@test.example"}), Reason::CredentialSubject),
        (json!({}), Reason::CredentialSubject),
        (json!("auditor"), Reason::CredentialMalformed),
    ] {
        let token = desk.token("storefront", &json!({"act": act("auditor"), "may_act": may_act}));
        assert_eq!(desk.send(&token).reason, reason, "{may_act}");
    }
    // It says who may, not that anybody does.
    let token = desk.token("storefront", &json!({"may_act": {"sub": Estate::id("shop")}}));
    assert_eq!(desk.send(&token).reason, Reason::AllowPolicy);
}

/// An OIDC issuer whose claims are mapped to `storefront` (`sub: shop`) and `auditor` (`sub: bot`).
fn mapped() -> (Desk, TokenSigner) {
    let mut desk = Desk::new();
    let signer = TokenSigner::generate_es256("idp-1").unwrap();
    let key = changed(signer.public_jwk(), &json!({"use": "sig"}));
    desk.estate.put(
        Kind::Issuer,
        &json!({
            "name": "idp", "kind": "oidc", "issuer": "https://idp.example", "audiences": [AUDIENCE],
            "max_delegation_depth": 1, "jwks": {"keys": [key]},
        }),
    );
    for (name, role, sub) in [("storefront", "storefront", "shop"), ("auditor", "auditor", "bot")] {
        desk.estate.put(
            Kind::Workload,
            &json!({
                "id": Estate::id(name), "kind": "agent", "owner": "team", "environment": "production", "roles": [role],
                "credentials": [{"issuer": "idp", "when": {"sub": sub}}],
            }),
        );
    }
    desk.publish();
    (desk, signer)
}

#[test]
fn actors_of_an_oidc_issuer_are_mapped_like_its_subjects() {
    let (desk, signer) = mapped();
    let judge = |act: Value| {
        let claims = json!({"iss": "https://idp.example", "sub": "shop", "act": act});
        let token = signer.sign(&changed(desk.estate.claims("storefront"), &claims)).unwrap();
        desk.send(&token)
    };
    let allowed = judge(json!({"sub": "bot"}));
    assert_eq!(allowed.reason, Reason::AllowPolicy);
    assert_eq!(allowed.actor.as_deref(), Some(&*Estate::id("auditor")));
    assert_eq!(judge(json!({"sub": "bot", "iss": "https://idp.example"})).reason, Reason::AllowPolicy);
    // The same name, given by somebody else.
    for iss in [json!("https://evil.example"), json!("https://idp.example/"), json!(1), json!(null)] {
        assert_eq!(judge(json!({"sub": "bot", "iss": iss})).reason, Reason::CredentialSubject, "{iss}");
    }
    assert_eq!(judge(json!({"sub": "stranger"})).reason, Reason::CredentialSubject);
    assert_eq!(judge(json!({"sub": Estate::id("auditor")})).reason, Reason::CredentialSubject, "no mapping, no actor");
}

/// `name` as a workload that may act for these, and for which those may act.
fn with_parties(name: &str, role: &str, delegators: &[&str], actors: &[&str]) -> Value {
    json!({
        "id": Estate::id(name), "kind": "agent", "owner": "team", "environment": "production", "roles": [role],
        "delegators": delegators, "actors": actors,
    })
}

#[test]
fn both_say_who_may_act_for_whom() {
    let own = Estate::id("storefront");
    let (own, below) = (own.as_str(), "spiffe://test.example/*");
    for (delegators, actors, reason) in [
        (&[][..], &[][..], Reason::AllowPolicy),
        (&[own], &[], Reason::AllowPolicy),
        (&["spiffe://other.example/*", below], &[], Reason::AllowPolicy),
        (&[], &["spiffe://test.example/auditor"], Reason::AllowPolicy),
        (&[own], &[below], Reason::AllowPolicy),
        (&["spiffe://test.example/shop"], &[], Reason::CredentialSubject),
        (&["spiffe://test.example/storefront/*"], &[], Reason::CredentialSubject),
        (&[], &["spiffe://test.example/shop"], Reason::CredentialSubject),
        (&[own], &["spiffe://other.example/*"], Reason::CredentialSubject),
        (&["spiffe://other.example/*"], &[below], Reason::CredentialSubject),
    ] {
        let mut desk = Desk::new();
        let warm = desk.judge("storefront", &act("auditor"));
        assert_eq!(warm.reason, Reason::AllowPolicy, "anybody, as long as nobody is listed");
        desk.put(|estate| estate.put(Kind::Workload, &with_parties("auditor", "auditor", delegators, &[])));
        desk.put(|estate| estate.put(Kind::Workload, &with_parties("storefront", "storefront", &[], actors)));
        assert_eq!(desk.judge("storefront", &act("auditor")).reason, reason, "{delegators:?} {actors:?}");
        // Neither list is about what they do themselves.
        for name in ["storefront", "auditor"] {
            assert_eq!(desk.send(&desk.token(name, &json!({}))).reason, Reason::AllowPolicy, "{name}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Rights = subject ∩ actor: a delegated request is allowed exactly when each of the two would be, alone.
    #[test]
    fn rights_are_an_intersection(
        subject in prop::sample::select(vec!["storefront", "auditor", "shop", "agent", "ci"]),
        actor in prop::sample::select(vec!["storefront", "auditor", "shop", "agent", "ci"]),
        grants in prop::collection::vec(prop::sample::select(vec!["agent", "ci", "shop"]), 0..3),
        revoked in prop::option::of(prop::sample::select(vec!["agent", "auditor", "storefront"])),
    ) {
        let mut desk = Desk::new();
        for name in grants {
            desk.estate.grant(name, "catalog/items", &["read"], None, 200);
        }
        if let Some(name) = revoked {
            desk.estate.revoke(&json!({"kind": "workload", "workload": Estate::id(name)}));
        }
        desk.publish();
        let alone = |name: &str| desk.send(&desk.token(name, &json!({}))).permit().is_some();
        let together = desk.judge(subject, &act(actor)).permit().is_some();
        prop_assert_eq!(together, alone(subject) && alone(actor));
    }
}
