//! A small, complete estate whose objects can be changed one by one, and snapshots of it built both ways.
//!
//! Feature `testing`. Panics on misuse: it is test code. Objects are documents in the form that REST and sync use, so
//! that what is tested is what is parsed in production.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "test support: a broken fixture should stop the test"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use smallvec::SmallVec;
use uuid::Uuid;

use crate::authz::{Builder, Change, Door, Header, Lease, Peer, Request, Snapshot};
use crate::clock::{Clock, ManualClock, Timestamp};
use crate::credential::SpiffeId;
use crate::credential::TokenSigner;
use crate::grant;
use crate::object::{Grant, GrantId, Kind, Object, PolicySet, VoteKind};
use crate::state::State;
use crate::wire::{Epoch, Position, Revision};

/// The policies of the design document.
pub const POLICIES: &str = r#"
@id("catalog-read")    permit(principal in Role::"storefront", action in Action::"read", resource in Service::"catalog");
@id("grants")          permit(principal, action, resource) when { context has grant };
@id("refunds-are-jit") forbid(principal, action, resource in Route::"payments/refunds") unless { context has grant };
"#;

/// The audience that tokens are for.
pub const AUDIENCE: &str = "portcullis-test";

/// Issuer `test` of trust domain `test.example`, workloads `storefront` (role `storefront`), `agent` and `ci`,
/// services `catalog` and `payments`, and the policies of the design.
#[derive(Debug)]
pub struct Estate {
    /// The clock that everything goes by.
    pub clock: Arc<ManualClock>,
    /// The issuer's key.
    pub signer: TokenSigner,
    objects: BTreeMap<(Kind, String), Bytes>,
    position: Position,
}

/// How large an estate is.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// Active grants.
    pub grants: usize,
    /// Policies.
    pub policies: usize,
    /// Workloads beside the named ones.
    pub workloads: usize,
}

// === impl Estate ===

impl Estate {
    /// A new estate, in January 2027.
    pub fn new() -> Self {
        Self::new_at(Timestamp::from_secs(1_800_000_000))
    }

    /// A new estate, at a time of the caller's.
    pub fn new_at(now: Timestamp) -> Self {
        let clock = Arc::new(ManualClock::new(now));
        let signer = TokenSigner::generate_es256("key-1").expect("a key");
        let epoch = Epoch::starting(clock.now().wall);
        let position = Position { epoch, revision: Revision(1) };
        let mut estate = Self { clock, signer, objects: BTreeMap::new(), position };
        estate.put_issuer();
        for (name, kind, roles) in [
            ("storefront", "service", json!(["storefront"])),
            ("agent", "agent", json!([])),
            ("ci", "pipeline", json!([])),
        ] {
            estate.put(
                Kind::Workload,
                &json!({"id": Self::id(name), "kind": kind, "owner": "team", "environment": "production", "roles": roles}),
            );
        }
        estate.put(
            Kind::Service,
            &json!({"name": "catalog", "routes": [
                {"name": "items", "methods": ["GET", "HEAD", "PUT"], "path": "/catalog/{*}"},
            ]}),
        );
        estate.put(
            Kind::Service,
            &json!({"name": "payments", "routes": [
                {"name": "refunds", "path": "/refunds/{*}", "grants": {"max_duration_seconds": 900}},
                {"name": "payouts", "methods": ["POST"], "path": "/payouts/{*}", "freshness": "strict"},
            ]}),
        );
        estate.put_policies(POLICIES);
        estate
    }

    /// An estate of this size: the small one, and around it workloads, grants and policies of no concern to it.
    /// `storefront` also holds a grant on refunds.
    pub fn sized(size: Size) -> Self {
        Self::sized_at(Timestamp::from_secs(1_800_000_000), size)
    }

    /// The same, at a time of the caller's.
    pub fn sized_at(now: Timestamp, size: Size) -> Self {
        use std::fmt::Write;
        let mut estate = Self::new_at(now);
        for n in 0..size.workloads {
            estate.put(
                Kind::Workload,
                &json!({"id": Self::id(&format!("w{n}")), "kind": "service", "owner": "team", "environment": "production",
                        "roles": [format!("role-{}", n % 100)]}),
            );
        }
        estate.grant("storefront", "payments/refunds", &["write"], Some("/refunds/{*}"), 86_400);
        for n in 1..size.grants {
            let (resource, path) = [("payments/refunds", Some("/refunds/{*}")), ("payments", None)][n % 2];
            estate.grant(&format!("w{}", n % size.workloads), resource, &["write"], path, 86_400);
        }
        let mut text = POLICIES.to_owned();
        for n in 3..size.policies {
            let id = Self::id(&format!("w{}", n % size.workloads));
            let _ = writeln!(
                text,
                r#"@id("p{n}") permit(principal == Workload::"{id}", action == Action::"read", resource == Route::"svc-{n}/r");"#
            );
        }
        estate.put_policies(&text);
        estate
    }

    /// The SPIFFE ID of a workload of this estate.
    pub fn id(name: &str) -> String {
        format!("spiffe://test.example/{name}")
    }

    /// Adds or replaces an object, in a revision of its own.
    pub fn put(&mut self, kind: Kind, document: &Value) -> Change {
        let object = Object::parse(kind, document.to_string().as_bytes()).expect("a valid document");
        self.put_object(&object)
    }

    /// Adds or replaces an object, in a revision of its own.
    pub fn put_object(&mut self, object: &Object) -> Change {
        let (kind, key, body) = (object.kind(), object.key(), Bytes::from(object.to_json()));
        self.objects.insert((kind, key.clone()), body.clone());
        self.position.revision = self.position.revision.next();
        Change { kind, key, body: Some(body) }
    }

    /// Removes an object, in a revision of its own.
    pub fn delete(&mut self, kind: Kind, key: &str) -> Change {
        self.objects.remove(&(kind, key.to_owned()));
        self.position.revision = self.position.revision.next();
        Change { kind, key: key.to_owned(), body: None }
    }

    /// Has another key sign from now on, and only that one count: so that several estates can take the same tokens.
    pub fn sign_with(&mut self, signer: TokenSigner) {
        self.signer = signer;
        self.put_issuer();
    }

    fn put_issuer(&mut self) {
        let document = json!({
            "name": "test", "kind": "spiffe", "trust_domain": "test.example", "audiences": [AUDIENCE],
            "jwks": {"keys": [self.signer.public_jwk()]},
        });
        self.put(Kind::Issuer, &document);
    }

    /// Publishes a policy text, with the arguments of MCP tools that services name by now.
    pub fn put_policies(&mut self, text: &str) -> Change {
        let mut arguments = BTreeMap::new();
        for ((kind, _), body) in &self.objects {
            if let Ok(Object::Service(service)) = Object::parse(*kind, body) {
                let routes = service.routes.into_iter().filter_map(|route| route.mcp);
                arguments.extend(routes.flat_map(|mcp| mcp.arguments).map(|(name, argument)| (name, argument.kind)));
            }
        }
        let set = PolicySet::new(text.to_owned(), "test".to_owned(), vec![]).with_arguments(arguments);
        self.put_object(&Object::PolicySet(set))
    }

    /// Makes an active grant from now on, for `secs` seconds.
    pub fn grant(
        &mut self,
        workload: &str,
        resource: &str,
        actions: &[&str],
        path: Option<&str>,
        secs: u64,
    ) -> (Grant, Change) {
        let asked = self.ask(workload, resource, actions, path, secs);
        self.grant_as(asked, |_| {})
    }

    /// Makes `asked` active from now on, once `change` has changed it.
    pub fn grant_as(&mut self, mut asked: Grant, change: impl FnOnce(&mut Grant)) -> (Grant, Change) {
        change(&mut asked);
        asked.digest = asked.request_digest();
        let now = self.clock.now().wall;
        let active = grant::vote(&asked, "bob", VoteKind::Approve, &asked.digest, now).expect("a vote");
        let change = self.put_object(&Object::Grant(Box::new(active.clone())));
        (active, change)
    }

    /// Makes a pending request, which is not part of the estate until it is put.
    pub fn ask(&self, workload: &str, resource: &str, actions: &[&str], path: Option<&str>, secs: u64) -> Grant {
        let workload = SpiffeId::parse(&Self::id(workload)).expect("an id");
        let resources = vec![resource.parse().expect("a resource")];
        let actions = actions.iter().map(|a| (*a).to_owned()).collect();
        let mut new = grant::NewGrantRequest::new(workload, resources, actions, secs);
        (new.path, new.reason) = (path.map(str::to_owned), "test".to_owned());
        grant::new_request(new, "alice", self.clock.now().wall).expect("a request")
    }

    /// Revokes something.
    pub fn revoke(&mut self, target: &Value) -> Change {
        let now = self.clock.now().wall;
        self.put(
            Kind::Revocation,
            &json!({"id": Uuid::new_v4(), "target": target, "created_by": "bob", "created_at": now}),
        )
    }

    /// Revokes a grant by its id alone.
    pub fn revoke_grant(&mut self, id: GrantId) -> Change {
        self.revoke(&json!({"kind": "grant", "grant": id}))
    }

    /// Where the estate stands.
    pub const fn position(&self) -> Position {
        self.position
    }

    /// Every object as a change, in snapshot order.
    pub fn changes(&self) -> Vec<Change> {
        let change = |((kind, key), body): (&(Kind, String), &Bytes)| Change {
            kind: *kind,
            key: key.clone(),
            body: Some(body.clone()),
        };
        self.objects.iter().map(change).collect()
    }

    /// A snapshot built from nothing.
    pub fn snapshot(&self) -> Snapshot {
        let mut builder = Builder::empty();
        for change in self.changes() {
            builder.apply(change);
        }
        let (snapshot, bad) = builder.finish(self.position);
        assert_eq!(bad, [], "every object of an estate is usable");
        snapshot
    }

    /// A lease that starts now: 10 s for strict routes, 300 s for others.
    pub fn lease(&self) -> Lease {
        let now = self.clock.now();
        Lease {
            server_time: now.wall,
            received: now.mono,
            lease: Duration::from_secs(10),
            max_staleness: Duration::from_secs(300),
        }
    }

    /// A state that holds the estate, with a fresh lease.
    pub fn state(&self) -> Arc<State> {
        let state = Arc::new(State::new());
        state.restore(Arc::new(self.snapshot()), self.lease());
        state
    }

    /// The claims of a good token of `workload` that lasts five minutes.
    pub fn claims(&self, workload: &str) -> Value {
        let now = self.clock.now().wall.as_secs();
        json!({"sub": Self::id(workload), "aud": [AUDIENCE], "iat": now, "exp": now + 300, "jti": format!("jti-{workload}")})
    }

    /// A good token of `workload`.
    pub fn token(&self, workload: &str) -> String {
        self.signer.sign(&self.claims(workload)).expect("a token")
    }
}

impl Default for Estate {
    fn default() -> Self {
        Self::new()
    }
}

/// A request with these headers.
pub fn request<'a>(method: &'a str, path: &'a str, headers: &'a [(&'a str, String)]) -> Request<'a> {
    Request {
        door: Door::Check,
        method,
        path,
        host: "shop.example",
        scheme: "https",
        headers: self::headers(headers),
        partial_body: false,
        body: None,
        peer: Peer::default(),
    }
}

/// Headers in the form a door hands over.
pub fn headers<'a>(headers: &'a [(&'a str, String)]) -> SmallVec<[Header<'a>; 32]> {
    headers.iter().map(|(name, value)| Header { name: name.as_bytes(), value: value.as_bytes() }).collect()
}
