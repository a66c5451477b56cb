//! Generated estates and requests for the oracle: few names, so that they meet often.

use super::*;

pub(super) const HOSTS: [&str; 4] = ["shop.example", "pay.example:443", "SHOP.example.", "other.example"];
/// What a route allows that does not say.
pub(super) const DEFAULT_LONGEST: u64 = 3600;

const WORKLOADS: [&str; 3] = ["agent", "ci", "storefront"];
const TEMPLATES: [&str; 8] = ["/a", "/a/b", "/a/{*}", "/a/{**}", "/{**}", "/{*}/b", "/b/{id}/a", "/a/{**}/c"];
const PATHS: [&str; 10] = ["/a", "/a/b", "/a/c", "/a/b/c", "/b/c/a", "/c/b", "/%61/b?x=1", "/a//b", "/a/%2fb", "/a/"];
const METHODS: [&str; 4] = ["GET", "POST", "DELETE", "PATCH"];
const ACTIONS: [&str; 4] = ["read", "write", "delete", "refund"];
const RESOURCES: [&str; 5] = ["s0", "s1", "s0/r0", "s0/r1", "s1/r0"];
const SCOPES: [&str; 7] = [
    "principal, action, resource",
    r#"principal in Role::"r0", action, resource"#,
    r#"principal == Workload::"spiffe://test.example/agent", action, resource in Service::"s0""#,
    r#"principal, action == Action::"read", resource"#,
    r#"principal, action in [Action::"refund", Action::"write"], resource is Route in Service::"s1""#,
    r#"principal is Workload in Role::"r1", action, resource == Route::"s0/r0""#,
    r#"principal, action, resource == Route::"s0/r1""#,
];
const CONDITIONS: [&str; 9] = [
    "",
    "when { context has grant }",
    "unless { context has grant }",
    "when { context has grant && context.grant.duration_seconds > 100 }",
    r#"when { context has grant && context.grant.actions.contains("write") }"#,
    "when { context has grant && 9223372036854775807 + context.grant.duration_seconds > 0 }",
    r#"when { context.path like "/a*" && context.host == "shop.example" }"#,
    r#"unless { context.method == "GET" || principal.kind == "agent" }"#,
    r#"when { principal.hasTag("tier") && principal.getTag("tier") == "gold" }"#,
];

/// What is wrong with a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Flaw {
    None,
    Absent,
    Garbage,
    UnknownKey,
    Audience,
    Expired,
    Forged,
}

#[derive(Debug)]
pub(super) struct Credential {
    pub(super) workload: &'static str,
    pub(super) jti: String,
    pub(super) issued_at: Timestamp,
    pub(super) flaw: Flaw,
}

#[derive(Debug, Clone)]
struct Route {
    template: &'static str,
    methods: Vec<&'static str>,
    action: Option<&'static str>,
    strict: bool,
}

#[derive(Debug, Clone)]
struct Grant {
    workload: &'static str,
    resources: Vec<&'static str>,
    actions: Vec<&'static str>,
    path: Option<&'static str>,
    state: GrantState,
    /// Start, in seconds from now.
    starts: i64,
    lasts: u64,
    revoked: bool,
    break_glass: bool,
}

/// An estate, and one request to it.
#[derive(Debug, Clone)]
pub(super) struct Case {
    services: Vec<(Vec<&'static str>, Vec<Route>)>,
    roles: Vec<Vec<&'static str>>,
    unregistered: bool,
    policies: Vec<(bool, usize, usize)>,
    grants: Vec<Grant>,
    revocation: Option<(usize, usize)>,
    caller: usize,
    flaw: Flaw,
    pub(super) age: u64,
    pub(super) method: String,
    pub(super) path: String,
    pub(super) host: String,
}

fn one_of<T: Clone + std::fmt::Debug + 'static>(values: &[T]) -> impl Strategy<Value = T> + use<T> {
    prop::sample::select(values.to_vec())
}

fn some_of(values: &[&'static str], at_least: usize) -> impl Strategy<Value = Vec<&'static str>> + use<> {
    prop::sample::subsequence(values.to_vec(), at_least..=values.len().min(3))
}

fn grant() -> impl Strategy<Value = Grant> {
    use GrantState::*;
    let state =
        one_of(&[Active, Active, Active, Active, Scheduled, Pending, Pending, Ended, Revoked, Denied, Withdrawn]);
    let path = prop::option::weighted(0.4, one_of(&TEMPLATES));
    let times = (one_of(&[-1000_i64, -60, 0, 60, 600]), one_of(&[60_u64, 61, 600, 3600]));
    let whose = one_of(&WORKLOADS[..2]);
    let marks = (prop::bool::weighted(0.1), prop::bool::weighted(0.2));
    (whose, some_of(&RESOURCES, 1), some_of(&ACTIONS, 1), path, state, times, marks).prop_map(
        |(workload, resources, actions, path, state, (starts, lasts), (revoked, break_glass))| Grant {
            workload,
            resources,
            actions,
            path,
            state,
            starts,
            lasts,
            revoked,
            break_glass,
        },
    )
}

fn services() -> impl Strategy<Value = Vec<(Vec<&'static str>, Vec<Route>)>> {
    let route = (one_of(&TEMPLATES), some_of(&METHODS, 0), prop::option::of(Just("refund")), prop::bool::weighted(0.2))
        .prop_map(|(template, methods, action, strict)| Route { template, methods, action, strict });
    let hosts = one_of(&[vec![], vec!["shop.example"], vec!["pay.example", "shop.example"]]);
    prop::collection::vec((hosts, prop::collection::vec(route, 1..3)), 1..3)
}

pub(super) fn case() -> impl Strategy<Value = Case> {
    use Flaw::*;
    let flaw = prop_oneof![
        9 => Just(None),
        1 => one_of(&[Absent, Garbage, UnknownKey, Audience, Expired, Forged]),
    ];
    let estate = (
        services(),
        prop::collection::vec(some_of(&["r0", "r1"], 0), 3),
        prop::bool::weighted(0.05),
        prop::collection::vec((prop::bool::weighted(0.75), 0..SCOPES.len(), 0..CONDITIONS.len()), 0..6),
        prop::collection::vec(grant(), 0..8),
        prop::option::weighted(0.15, (0..6_usize, 0..2_usize)),
    );
    let request = (
        0..2_usize,
        flaw,
        one_of(&[0_u64, 0, 0, 0, 9, 10, 299, 300]),
        one_of(&METHODS),
        one_of(&PATHS),
        one_of(&HOSTS),
    );
    (estate, request).prop_map(|(estate, (caller, flaw, age, method, path, host))| {
        let (services, roles, unregistered, policies, grants, revocation) = estate;
        let (method, path, host) = (method.to_owned(), path.to_owned(), host.to_owned());
        Case { services, roles, unregistered, policies, grants, revocation, caller, flaw, age, method, path, host }
    })
}

impl Case {
    /// The estate, whoever calls, and the token.
    pub(super) fn build(&self) -> (Estate, Credential, Option<String>) {
        let mut estate = Estate::new();
        let now = estate.clock.now().wall;
        estate.delete(Kind::Service, "catalog");
        estate.delete(Kind::Service, "payments");
        for (i, (hosts, routes)) in self.services.iter().enumerate() {
            let routes: Vec<Value> = routes
                .iter()
                .enumerate()
                .map(|(n, r)| {
                    let mut route = json!({"name": format!("r{n}"), "path": r.template, "methods": r.methods});
                    if let Some(action) = r.action {
                        route["action"] = action.into();
                    }
                    if r.strict {
                        route["freshness"] = "strict".into();
                    }
                    route
                })
                .collect();
            estate.put(Kind::Service, &json!({"name": format!("s{i}"), "hosts": hosts, "routes": routes}));
        }
        for (i, name) in WORKLOADS.iter().enumerate() {
            let kind = if *name == "agent" { "agent" } else { "service" };
            let labels = if i == 0 { json!({"tier": "gold"}) } else { json!({}) };
            estate.put(
                Kind::Workload,
                &json!({"id": Estate::id(name), "kind": kind, "owner": "team", "environment": "production",
                        "roles": self.roles[i], "labels": labels}),
            );
        }
        let workload = WORKLOADS[self.caller];
        if self.unregistered {
            estate.delete(Kind::Workload, &Estate::id(workload));
        }
        self.put_policies(&mut estate);
        for (n, grant) in self.grants.iter().enumerate() {
            grant.put(&mut estate, n, now);
        }
        let issued_at = now;
        if let Some((what, whose)) = self.revocation {
            let id = Estate::id(WORKLOADS[whose]);
            let target = match what {
                0 => json!({"kind": "token", "issuer": "test", "jti": format!("jti-{}", WORKLOADS[whose])}),
                1 => {
                    json!({"kind": "tokens_before", "workload": id, "before": now.saturating_add(Duration::from_secs(1))})
                }
                2 => json!({"kind": "tokens_before", "workload": id, "before": now}),
                3 => json!({"kind": "workload", "workload": id}),
                4 => json!({"kind": "key", "issuer": "test", "kid": (["key-1", "key-2"][whose])}),
                _ => json!({"kind": "issuer", "issuer": (["test", "other"][whose])}),
            };
            estate.revoke(&target);
        }
        let token = self.token(&estate, workload);
        (estate, Credential { workload, jti: format!("jti-{workload}"), issued_at, flaw: self.flaw }, token)
    }

    /// Strict validation refuses a policy that can never apply; such a set falls back to one that grants decide.
    fn put_policies(&self, estate: &mut Estate) {
        let policies = self.policies.iter().enumerate().map(|(n, (permit, scope, condition))| {
            let effect = if *permit { "permit" } else { "forbid" };
            format!("@id(\"p{n}\") {effect}({}) {};\n", SCOPES[*scope], CONDITIONS[*condition])
        });
        let (text, actions) = (policies.collect::<String>(), vec!["refund".to_owned()]);
        let valid = {
            let names = portcullis::policy::Names { actions: &actions, arguments: &std::collections::BTreeMap::new() };
            portcullis::policy::validate(&text, names).is_ok()
        };
        let fallback = r#"@id("grants") permit(principal, action, resource) when { context has grant };"#;
        let text = if valid { text } else { fallback.to_owned() };
        estate.put_object(&Object::PolicySet(Document::new(text, "test".to_owned(), actions)));
    }

    fn token(&self, estate: &Estate, workload: &str) -> Option<String> {
        let mut claims = estate.claims(workload);
        let other = |kid: &str| TokenSigner::generate_es256(kid).unwrap();
        Some(match self.flaw {
            Flaw::None => estate.token(workload),
            Flaw::Absent => return None,
            Flaw::Garbage => "not-a-token".to_owned(),
            Flaw::UnknownKey => other("key-9").sign(&claims).unwrap(),
            Flaw::Forged => other("key-1").sign(&claims).unwrap(),
            Flaw::Audience => {
                claims["aud"] = json!(["somebody-else"]);
                estate.signer.sign(&claims).unwrap()
            }
            Flaw::Expired => {
                let now = estate.clock.now().wall.as_secs();
                claims["iat"] = (now - 300).into();
                claims["exp"] = now.into();
                estate.signer.sign(&claims).unwrap()
            }
        })
    }
}

impl Grant {
    fn put(&self, estate: &mut Estate, n: usize, now: Timestamp) {
        let first = self.resources[0];
        let mut grant = estate.ask(self.workload, first, &self.actions, self.path, self.lasts);
        // Ids in no order of time.
        grant.id = GrantId(Uuid::from_u128(u128::from(n as u64 ^ 5) + 1));
        grant.resources = self.resources.iter().map(|r| r.parse().unwrap()).collect();
        grant.break_glass = self.break_glass;
        grant.digest = grant.request_digest();
        grant.state = self.state;
        let start = Timestamp::from_secs(now.as_secs().saturating_add_signed(self.starts));
        let end = start.saturating_add(Duration::from_secs(self.lasts));
        use GrantState::*;
        if matches!(self.state, Active | Scheduled | Ended | Revoked) {
            (grant.not_before, grant.not_after) = (Some(start), Some(end));
        }
        if matches!(self.state, Ended | Revoked | Denied | Withdrawn) {
            let at = if self.state == Ended { end } else { now };
            grant.ended = Some(Ending { by: "system".to_owned(), at, reason: String::new() });
        }
        let id = grant.id;
        estate.put_object(&Object::Grant(Box::new(grant)));
        if self.revoked {
            estate.revoke_grant(id);
        }
    }
}
