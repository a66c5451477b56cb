//! What is generated: issuer, workloads, services, policies and grants of any number, each a pure function of the seed.
//!
//! Plane: composition; no I/O. Objects come one by one in the order of a snapshot, so that a million grants need no memory.
//! INVARIANT: the same plan gives the same objects, byte for byte. Grants are spread evenly over workloads and evenly over
//! services; a workload may read one service by its role, and may write to refunds of a service only with a grant.

use std::time::Duration;

use aws_lc_rs::digest::{Context, SHA256};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;
use uuid::Uuid;

use super::{GenerateError, ecdsa};
use crate::clock::Timestamp;
use crate::credential::{SpiffeId, TokenSigner};
use crate::grant;
use crate::object::{
    Grant, GrantConditions, GrantId, GrantState, Kind, Object, Party, PolicySet, ResourceName, VoteKind,
};
use crate::wire::{Epoch, ScopeId, SigningKey};

/// The trust domain of everything generated.
pub const TRUST_DOMAIN: &str = "bench.example";
/// The issuer, and the id of its key.
pub const ISSUER: &str = "bench";
/// The audience that workloads' tokens are for.
pub const AUDIENCE: &str = "portcullis-bench";
/// The largest numbers that are taken: grants, workloads, policies, services.
pub const MOST: Size = Size { grants: 10_000_000, workloads: 1_000_000, policies: 100_000, services: 10_000 };

/// How long grants last.
const GRANT_SECONDS: u64 = Grant::MAX_DURATION_SECONDS;

/// How much is generated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Active grants.
    pub grants: u64,
    /// Workloads.
    pub workloads: u64,
    /// Policies: one that says what a grant buys, the others each let one role read one service.
    pub policies: u64,
    /// Services.
    pub services: u64,
}

/// A size, a seed and a time, which together say every byte.
#[derive(Debug)]
pub struct Estate {
    size: Size,
    seed: u64,
    now: Timestamp,
    lifetime: Duration,
    /// Grant `i` is for workload `i * stride % workloads`; the stride shares no factor with it.
    stride: u64,
    private: [u8; 32],
    signer: TokenSigner,
}

// === impl Estate ===

impl Estate {
    /// Tokens and grants start at `now`; tokens last for `lifetime`.
    pub fn new(size: Size, seed: u64, now: Timestamp, lifetime: Duration) -> Result<Self, GenerateError> {
        for (name, value, least, most) in [
            ("grants", size.grants, 0, MOST.grants),
            ("workloads", size.workloads, 1, MOST.workloads),
            ("policies", size.policies, 2, MOST.policies),
            ("services", size.services, 1, MOST.services),
        ] {
            if !(least..=most).contains(&value) {
                return Err(GenerateError::Size { name, value, least, most });
            }
        }
        if !(60..=86_400).contains(&lifetime.as_secs()) {
            return Err(GenerateError::Lifetime(lifetime));
        }
        if now.saturating_add(Duration::from_secs(GRANT_SECONDS)) >= Timestamp::MAX {
            return Err(GenerateError::Now(now));
        }
        let private = derive(seed, "issuer", 0);
        let public = ecdsa::public_key(&private).ok_or(GenerateError::Crypto)?;
        let signer =
            TokenSigner::from_private_key(&private, &public, ISSUER).map_err(|_rejected| GenerateError::Crypto)?;
        let mut stride = (size.workloads / 2 + number(seed, "stride", 0) % size.workloads.div_ceil(2)) | 1;
        while gcd(stride, size.workloads) != 1 {
            stride += 2;
        }
        Ok(Self { size, seed, now, lifetime, stride, private, signer })
    }

    /// Its size.
    pub const fn size(&self) -> Size {
        self.size
    }

    /// When tokens and grants start.
    pub const fn now(&self) -> Timestamp {
        self.now
    }

    /// How long tokens last.
    pub const fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// The epoch of its store.
    pub fn epoch(&self) -> Epoch {
        let [a, b, c, d, e, f, g, h, i, j, ..] = derive(self.seed, "epoch", 0);
        Epoch::of(self.now, [a, b, c, d, e, f, g, h, i, j])
    }

    /// The control plane's key, and its text.
    pub fn signing_key(&self) -> Result<(SigningKey, zeroize::Zeroizing<String>), GenerateError> {
        SigningKey::from_seed(&derive(self.seed, "control plane", 0)).map_err(|_rejected| GenerateError::Crypto)
    }

    /// The issuer's key.
    pub const fn signer(&self) -> &TokenSigner {
        &self.signer
    }

    /// The identity of the sidecar that protects every service.
    pub fn sidecar() -> String {
        format!("spiffe://{TRUST_DOMAIN}/portcullis/sidecar")
    }

    /// The scope of that sidecar.
    pub fn scope(&self) -> Result<ScopeId, GenerateError> {
        let identity = SpiffeId::parse(&Self::sidecar()).map_err(|_bad| GenerateError::Crypto)?;
        let names: Vec<String> = (0..self.size.services).map(service).collect();
        Ok(ScopeId::new(&identity, names.iter().map(String::as_str)))
    }

    /// How many objects there are.
    pub const fn len(&self) -> u64 {
        // The issuer, the sidecar's own workload, the policy set.
        3 + self.size.workloads + self.size.services + self.size.grants
    }

    /// Whether there are none, which is never so.
    pub const fn is_empty(&self) -> bool {
        false
    }

    /// Every object, in the order of a snapshot: by kind, and grants by id.
    pub fn objects(&self) -> impl Iterator<Item = Result<Object, GenerateError>> {
        std::iter::once_with(|| self.issuer())
            .chain(std::iter::once_with(|| self.workload(&Self::sidecar(), None)))
            .chain((0..self.size.workloads).map(|w| self.workload(&workload(w), Some(w))))
            .chain((0..self.size.services).map(|s| self.service(s)))
            .chain(std::iter::once_with(|| Ok(Object::PolicySet(self.policies()))))
            .chain((0..self.size.grants).map(|g| self.grant(g)))
    }

    /// The workload that grant `g` is for.
    pub const fn workload_of(&self, g: u64) -> u64 {
        (g % self.size.workloads) * self.stride % self.size.workloads
    }

    /// The service that grant `g` is for.
    pub fn service_of(&self, g: u64) -> u64 {
        number(self.seed, "service", g) % self.size.services
    }

    /// The service that workload `w` may read by its role. Several workloads may share it, and not every service has one.
    pub const fn readable_by(&self, w: u64) -> u64 {
        self.role(w) % self.size.services
    }

    /// A token of workload `w`, or of any other SPIFFE ID: the same each time.
    pub fn token(&self, subject: &str, audience: &str) -> Result<String, GenerateError> {
        let jti = uuid(&derive(self.seed, subject, 1), None);
        let claims = json!({
            "sub": subject, "aud": [audience], "iat": self.now.as_secs(),
            "exp": self.now.saturating_add(self.lifetime).as_secs(), "jti": jti,
        });
        let header = json!({ "alg": "ES256", "kid": self.signer.kid(), "typ": "JWT" });
        let mut token = URL_SAFE_NO_PAD.encode(header.to_string());
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(claims.to_string(), &mut token);
        let signature = ecdsa::sign(&self.private, token.as_bytes()).ok_or(GenerateError::Crypto)?;
        token.push('.');
        URL_SAFE_NO_PAD.encode_string(signature, &mut token);
        Ok(token)
    }

    const fn role(&self, w: u64) -> u64 {
        w % (self.size.policies - 1)
    }

    fn issuer(&self) -> Result<Object, GenerateError> {
        parse(
            Kind::Issuer,
            &json!({
                "name": ISSUER, "kind": "spiffe", "trust_domain": TRUST_DOMAIN, "audiences": [AUDIENCE],
                "max_lifetime_seconds": 86_400, "jwks": { "keys": [self.signer.public_jwk()] },
            }),
        )
    }

    fn workload(&self, id: &str, n: Option<u64>) -> Result<Object, GenerateError> {
        let roles: Vec<String> = n.iter().map(|w| format!("team-{}", self.role(*w))).collect();
        parse(
            Kind::Workload,
            &json!({ "id": id, "kind": "service", "owner": "bench", "environment": "production", "roles": roles }),
        )
    }

    fn service(&self, s: u64) -> Result<Object, GenerateError> {
        let name = service(s);
        parse(
            Kind::Service,
            &json!({ "name": name, "routes": [
                { "name": "items", "path": format!("/{name}/items/{{*}}") },
                { "name": "refunds", "path": format!("/{name}/refunds/{{*}}"),
                  "grants": { "max_duration_seconds": GRANT_SECONDS } },
            ]}),
        )
    }

    /// The policy set.
    pub(super) fn policies(&self) -> PolicySet {
        use std::fmt::Write;
        let mut text = "@id(\"grants\")\npermit(principal, action, resource) when { context has grant };\n".to_owned();
        for role in 0..self.size.policies - 1 {
            let service = service(role % self.size.services);
            let _infallible = writeln!(
                text,
                "@id(\"read-{role}\")\npermit(principal in Role::\"team-{role}\", action == Action::\"read\", \
                 resource in Service::\"{service}\");"
            );
        }
        PolicySet::new(text, "bench".to_owned(), Vec::new())
    }

    /// Active from the start. Ids ascend, as they do in a snapshot, and say nothing about workloads.
    fn grant(&self, g: u64) -> Result<Object, GenerateError> {
        let service = service(self.service_of(g));
        // One in four is for the whole service; its path keeps it to refunds as well.
        let route = (!g.is_multiple_of(4)).then(|| "refunds".to_owned());
        let step = (u64::MAX / self.size.grants).max(1);
        let place = g * step + number(self.seed, "place", g) % step;
        let subject = workload(self.workload_of(g));
        let mut grant = Grant {
            id: GrantId(uuid(&derive(self.seed, "grant", g), Some(place))),
            workload: SpiffeId::parse(&subject).map_err(|_bad| GenerateError::Crypto)?,
            resources: vec![ResourceName { service: service.clone(), route }],
            actions: vec!["write".to_owned()],
            path: Some(format!("/{service}/refunds/{{*}}")),
            conditions: GrantConditions::default(),
            call: None,
            uses: None,
            starts_at: None,
            reason: "bench".to_owned(),
            ticket: None,
            renews: None,
            break_glass: false,
            requested_by: "alice".to_owned(),
            requester: Party::default(),
            requested_at: self.now,
            duration_seconds: GRANT_SECONDS,
            needs: None,
            digest: String::new(),
            state: GrantState::Pending,
            votes: Vec::new(),
            not_before: None,
            not_after: None,
            ended: None,
        };
        grant.digest = grant.request_digest();
        let active = grant::vote(&grant, "bob", VoteKind::Approve, &grant.digest, self.now);
        Ok(Object::Grant(Box::new(active.map_err(|e| GenerateError::Rule(e.to_string()))?)))
    }
}

/// The name of service `s`.
pub fn service(s: u64) -> String {
    format!("s{s}")
}

/// The SPIFFE ID of workload `w`.
pub fn workload(w: u64) -> String {
    format!("spiffe://{TRUST_DOMAIN}/w{w}")
}

fn parse(kind: Kind, document: &serde_json::Value) -> Result<Object, GenerateError> {
    Object::parse(kind, document.to_string().as_bytes()).map_err(|e| GenerateError::Rule(e.to_string()))
}

/// 32 bytes that follow from the seed, what they are for, and a number.
fn derive(seed: u64, purpose: &str, n: u64) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    context.update(b"portcullis.bench.v1\0");
    context.update(&seed.to_be_bytes());
    context.update(&n.to_be_bytes());
    context.update(purpose.as_bytes());
    let mut out = [0; 32];
    out.copy_from_slice(context.finish().as_ref());
    out
}

fn number(seed: u64, purpose: &str, n: u64) -> u64 {
    derive(seed, purpose, n).iter().take(8).fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// A version 4 UUID of these bytes, of which `first` replaces the first eight.
fn uuid(bytes: &[u8; 32], first: Option<u64>) -> Uuid {
    let mut sixteen = [0; 16];
    for (to, from) in sixteen.iter_mut().zip(bytes) {
        *to = *from;
    }
    if let Some(first) = first {
        for (to, from) in sixteen.iter_mut().zip(first.to_be_bytes()) {
            *to = from;
        }
    }
    uuid::Builder::from_random_bytes(sixteen).into_uuid()
}

const fn gcd(mut a: u64, mut b: u64) -> u64 {
    while b != 0 {
        (a, b) = (b, a % b);
    }
    a
}
