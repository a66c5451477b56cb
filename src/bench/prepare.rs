//! Requests made ready to send, and the order in which they are sent.
//!
//! Plane: composition; no I/O. Everything is encoded before the clock runs. INVARIANT: every target is sent the same
//! requests in the same order, and a request with a new token is sent to each target at most once.

use std::sync::Arc;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Request as AttributeRequest};
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use http::header::{AUTHORIZATION, HOST, HeaderMap, HeaderName, HeaderValue};
use prost::Message;
use serde_json::json;

use super::expect::Expect;
use super::mix::{Mint, Mix, MixError, Template, Tokens};
use crate::clock::Timestamp;

/// How many places the order has; the smallest share is one of them.
const PLACES: usize = 10_000;
/// The most new tokens that are made for one run.
const MOST_MINTED: u64 = 1_000_000;

/// A request in the forms that targets need.
pub(super) struct Prepared {
    /// Its place in [`Plan::names`].
    pub(super) template: usize,
    pub(super) expect: Expect,
    /// The gRPC message: no compression, length, `CheckRequest`.
    pub(super) check: Bytes,
    pub(super) http: Option<Plain>,
}

/// A request through a proxy.
#[derive(Debug)]
pub(super) struct Plain {
    pub(super) method: http::Method,
    pub(super) path: http::Uri,
    pub(super) headers: HeaderMap,
}

/// Everything that is sent, for all targets.
#[derive(Debug)]
pub(super) struct Plan {
    names: Vec<String>,
    pools: Vec<Pool>,
    order: Vec<usize>,
}

#[derive(Debug)]
struct Pool {
    prepared: Vec<Arc<Prepared>>,
    /// Whether each may be used once only.
    once: bool,
}

/// Where one target is in the plan.
#[derive(Debug)]
pub(super) struct Cursor {
    plan: Arc<Plan>,
    place: usize,
    used: Vec<usize>,
}

/// What a plan is for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Needs {
    /// Whether there are targets that speak gRPC, and HTTP.
    pub(super) check: bool,
    /// The other.
    pub(super) http: bool,
    /// How many requests a target will be sent.
    pub(super) requests: u64,
    /// How long that takes.
    pub(super) lasts: Duration,
    /// The wall clock.
    pub(super) now: Timestamp,
}

// === impl Plan ===

impl Plan {
    /// Mints and encodes.
    pub(super) fn new(mix: &Mix, needs: Needs) -> Result<Self, MixError> {
        let total: f64 = mix.requests.iter().map(|r| r.weight).sum();
        let mut pools = Vec::new();
        for (n, template) in mix.requests.iter().enumerate() {
            let (tokens, once) = match &template.tokens {
                _ if template.weight <= 0.0 => (vec![None], false),
                Tokens::None => (vec![None], false),
                Tokens::Pool(tokens) => (tokens.iter().cloned().map(Some).collect(), false),
                Tokens::Mint(mint) => {
                    // The order is fixed, so that the number follows from it but for its rounding.
                    let count = (needs.requests as f64 * template.weight / total * 1.02).ceil() as u64 + 16;
                    if count > MOST_MINTED {
                        let message = format!("{count} new tokens would be needed, at most {MOST_MINTED} are made");
                        return Err(MixError::Request { name: template.name.clone(), message });
                    }
                    (minted(mint, count, &template.name, needs)?, true)
                }
            };
            let length = if once { tokens.len() } else { tokens.len().max(template.paths.len()) };
            let pairs = tokens.iter().cycle().zip(template.paths.iter().cycle()).take(length);
            let prepared = pairs
                .map(|(token, path)| Prepared::new(n, template, path, token.as_deref(), needs).map(Arc::new))
                .collect::<Result<_, _>>()?;
            pools.push(Pool { prepared, once });
        }
        let weights: Vec<f64> = mix.requests.iter().map(|r| r.weight / total).collect();
        Ok(Self { names: mix.requests.iter().map(|r| r.name.clone()).collect(), pools, order: order(&weights) })
    }

    /// The name of a template.
    pub(super) fn name(&self, template: usize) -> &str {
        self.names.get(template).map_or("", String::as_str)
    }

    /// The names of all templates.
    pub(super) fn names(&self) -> &[String] {
        &self.names
    }

    #[cfg(test)]
    pub(super) const fn empty() -> Self {
        Self { names: Vec::new(), pools: Vec::new(), order: Vec::new() }
    }

    /// From the start.
    pub(super) fn cursor(self: &Arc<Self>) -> Cursor {
        Cursor { plan: Arc::clone(self), place: 0, used: vec![0; self.pools.len()] }
    }
}

impl Cursor {
    /// The next request; `None` when new tokens have run out.
    pub(super) fn next(&mut self) -> Option<Arc<Prepared>> {
        let template = *self.plan.order.get(self.place)?;
        let pool = self.plan.pools.get(template)?;
        let used = self.used.get_mut(template)?;
        let at = if pool.once { *used } else { *used % pool.prepared.len() };
        let prepared = pool.prepared.get(at)?;
        *used += 1;
        self.place = (self.place + 1) % self.plan.order.len();
        Some(Arc::clone(prepared))
    }
}

// === impl Prepared ===

impl Prepared {
    fn new(n: usize, of: &Template, path: &str, token: Option<&str>, needs: Needs) -> Result<Self, MixError> {
        let bearer = token.map(|token| format!("Bearer {token}"));
        let check = if needs.check { check(of, path, bearer.as_deref()) } else { Bytes::new() };
        let http = if needs.http { Some(plain(of, path, bearer.as_deref())?) } else { None };
        Ok(Self { template: n, expect: of.expect, check, http })
    }
}

impl std::fmt::Debug for Prepared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // The message holds a token.
        f.debug_struct("Prepared").field("template", &self.template).finish_non_exhaustive()
    }
}

/// What Envoy sends for a request of these headers.
fn check(of: &Template, path: &str, bearer: Option<&str>) -> Bytes {
    let pseudo = [(":authority", &*of.host), (":method", &of.method), (":path", path), (":scheme", &of.scheme)];
    let id = ("x-request-id", "4be15f38-4be1-4d3a-9d2b-000000000000");
    let headers = of.headers.iter().map(|(k, v)| (k.as_str(), v.as_str()));
    let headers = pseudo.into_iter().chain([id]).chain(headers).chain(bearer.map(|b| ("authorization", b)));
    let http = HttpRequest {
        method: of.method.clone(),
        path: path.to_owned(),
        host: of.host.clone(),
        scheme: of.scheme.clone(),
        protocol: "HTTP/2".to_owned(),
        headers: headers.map(|(k, v)| (k.to_owned(), v.to_owned())).collect(),
        ..HttpRequest::default()
    };
    let request = AttributeRequest { http: Some(http), ..AttributeRequest::default() };
    let attributes = AttributeContext { request: Some(request), ..AttributeContext::default() };
    let message = CheckRequest { attributes: Some(attributes) };
    let mut frame = BytesMut::with_capacity(5 + message.encoded_len());
    frame.put_u8(0);
    frame.put_u32(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX));
    frame.extend_from_slice(&message.encode_to_vec());
    frame.freeze()
}

fn plain(of: &Template, path: &str, bearer: Option<&str>) -> Result<Plain, MixError> {
    let wrong = |e: &dyn std::fmt::Display| MixError::Request { name: of.name.clone(), message: e.to_string() };
    let mut headers = HeaderMap::new();
    headers.insert(HOST, HeaderValue::from_str(&of.host).map_err(|e| wrong(&e))?);
    for (name, value) in &of.headers {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|e| wrong(&e))?;
        headers.insert(name, HeaderValue::from_str(value).map_err(|e| wrong(&e))?);
    }
    if let Some(bearer) = bearer {
        let mut value = HeaderValue::from_str(bearer).map_err(|e| wrong(&e))?;
        value.set_sensitive(true);
        headers.insert(AUTHORIZATION, value);
    }
    let method = of.method.parse().map_err(|e: http::method::InvalidMethod| wrong(&e))?;
    let path = path.parse().map_err(|e: http::uri::InvalidUri| wrong(&e))?;
    Ok(Plain { method, path, headers })
}

fn minted(mint: &Mint, count: u64, name: &str, needs: Needs) -> Result<Vec<Option<String>>, MixError> {
    let now = needs.now.as_secs();
    // Long enough for the run.
    let lifetime = mint.lifetime.unwrap_or(needs.lasts + Duration::from_secs(300)).as_secs();
    let subjects = mint.subjects.iter().cycle();
    subjects
        .zip(0..count)
        .map(|(subject, _)| {
            let mut claims = json!({
                "sub": subject, "aud": [mint.audience], "iat": now, "exp": now.saturating_add(lifetime),
                "jti": uuid::Uuid::new_v4(),
            });
            if let Some(object) = claims.as_object_mut() {
                object.extend(mint.claims.iter().map(|(k, v)| (k.clone(), v.clone())));
            }
            let token = mint.signer.sign(&claims);
            token.map(Some).map_err(|e| MixError::Request { name: name.to_owned(), message: e.to_string() })
        })
        .collect()
}

/// Places by weight (largest remainders), shuffled the same way each time.
fn order(weights: &[f64]) -> Vec<usize> {
    let exact: Vec<f64> = weights.iter().map(|w| w * PLACES as f64).collect();
    let mut counts: Vec<usize> = exact.iter().map(|e| e.floor() as usize).collect();
    let mut by_rest: Vec<usize> = (0..weights.len()).collect();
    let rest = |n: &usize| exact.get(*n).map_or(0.0, |e| e.fract());
    by_rest.sort_by(|a, b| rest(b).total_cmp(&rest(a)));
    let missing = PLACES.saturating_sub(counts.iter().sum());
    for n in by_rest.into_iter().take(missing) {
        if let Some(count) = counts.get_mut(n) {
            *count += 1;
        }
    }
    let mut order: Vec<usize> = counts.iter().enumerate().flat_map(|(n, c)| std::iter::repeat_n(n, *c)).collect();
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    for i in (1..order.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        order.swap(i, (state % (i as u64 + 1)) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::mix::Shares;
    use super::*;

    fn needs(requests: u64) -> Needs {
        let now = Timestamp::from_secs(1_800_000_000);
        Needs { check: true, http: true, requests, lasts: Duration::from_secs(10), now }
    }

    #[test]
    fn requests_come_by_their_weights_and_pools_in_turn() {
        let text = "requests:\n  - {name: a, weight: 98.95, paths: [/1, /2, /3], token: {text: t}}\n  \
                    - {name: b, weight: 1, paths: [/b], expect: deny}\n  - {name: c, weight: 0.05, paths: [/c]}\n  \
                    - {name: never, weight: 0, paths: [/n]}\n";
        let plan =
            Arc::new(Plan::new(&Mix::parse(Path::new("m"), text, Shares::default()).unwrap(), needs(1)).unwrap());
        let (mut one, mut other) = (plan.cursor(), plan.cursor());
        let mut counts = [0; 4];
        let mut paths = Vec::new();
        for _ in 0..2 * PLACES {
            let (prepared, same) = (one.next().unwrap(), other.next().unwrap());
            assert!(Arc::ptr_eq(&prepared, &same), "targets are sent the same");
            counts[prepared.template] += 1;
            if prepared.template == 0 && paths.len() < 4 {
                paths.push(prepared.http.as_ref().unwrap().path.to_string());
            }
        }
        assert_eq!(counts, [19_790, 200, 10, 0]);
        assert_eq!(paths, ["/1", "/2", "/3", "/1"]);
    }

    #[test]
    fn a_new_token_is_used_once_and_then_there_are_no_more() {
        let dir = tempfile::tempdir().unwrap();
        let key = crate::credential::TokenSigner::generate_es256("k").unwrap();
        std::fs::write(dir.path().join("key"), &*key.pkcs8_pem().unwrap()).unwrap();
        let text =
            "requests: [{name: a, paths: [/], token: {mint: {key_file: key, kid: k, audience: x, subjects: [s, t]}}}]";
        let mix = Mix::parse(&dir.path().join("mix.yaml"), text, Shares::default()).unwrap();
        let plan = Arc::new(Plan::new(&mix, needs(50)).unwrap());
        let mut cursor = plan.cursor();
        let mut seen = std::collections::HashSet::new();
        while let Some(prepared) = cursor.next() {
            let headers = &prepared.http.as_ref().unwrap().headers;
            assert!(seen.insert(headers[AUTHORIZATION].to_str().unwrap().to_owned()), "sent twice");
        }
        assert!(seen.len() >= 50, "{}", seen.len());
        assert!(Plan::new(&mix, needs(2_000_000)).unwrap_err().to_string().contains("at most 1000000"));
    }

    #[test]
    fn a_check_is_what_envoy_sends() {
        let text = "requests: [{name: a, method: POST, host: h, paths: ['/p?q'], token: {text: t}, headers: {x-a: b}}]";
        let plan = Plan::new(&Mix::parse(Path::new("m"), text, Shares::default()).unwrap(), needs(1)).unwrap();
        let frame = &plan.pools[0].prepared[0].check;
        assert_eq!(frame[0], 0);
        assert_eq!(u32::from_be_bytes(frame[1..5].try_into().unwrap()) as usize, frame.len() - 5);
        let http = CheckRequest::decode(&frame[5..]).unwrap().attributes.unwrap().request.unwrap().http.unwrap();
        assert_eq!((&*http.method, &*http.path, &*http.host), ("POST", "/p?q", "h"));
        assert_eq!((&*http.headers["authorization"], &*http.headers["x-a"]), ("Bearer t", "b"));
        assert_eq!(http.headers[":path"], "/p?q");
    }
}
