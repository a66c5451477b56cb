//! What the fuzz targets do, one function each, so that `tests/fuzz_replay.rs` runs the same on stable.
//!
//! Any bytes are allowed; a panic is a finding. Each asserts more than "does not crash": that nothing refused gets
//! through, and that nothing gets through that was not signed.

use std::sync::LazyLock;

use portcullis::authz::{
    self, CanonicalPath, Door, Header, Inputs, Lease, NoMemo, Peer, Relation, Request, Settings, Snapshot, Template,
};
use portcullis::clock::{Clock, Now, Timestamp};
use portcullis::credential::{
    Dpop, IssuerSet, Unproven, X509Svid, certificate_from_client_cert, certificate_from_pem, check_dpop,
    last_forwarded_certificate, token_digest, verify,
};
use portcullis::forward_auth::{Dialect, read_question};
use portcullis::object::{Issuer, Jwks, Kind, Object, WorkloadPattern};
use portcullis::testing::Estate;
use portcullis::wire::{Position, VerifyKey};
use portcullis::{authzen, ext_authz, sync};

/// The one token that the key of [`ISSUERS`] ever signed: header and claims. The private key was thrown away.
pub(crate) const SIGNED: &str = include_str!("signed.txt");
/// When it is valid.
pub(crate) const NOW: Timestamp = Timestamp::from_secs(1_700_000_100);

/// The one proof that its key ever signed: header and claims. The private key was thrown away.
pub(crate) const SIGNED_PROOF: &str = include_str!("signed_proof.txt");

/// The thumbprint of that key.
static PROOF_KEY: LazyLock<[u8; 32]> = LazyLock::new(|| token_digest(include_str!("proof_key.json").trim_end()));

static ISSUERS: LazyLock<IssuerSet> = LazyLock::new(|| {
    let issuer: Issuer = serde_json::from_str(include_str!("issuer.json")).expect("issuer.json is an issuer");
    let (issuers, bad) = IssuerSet::compile([&issuer]);
    assert!(bad.is_empty(), "{bad:?}");
    issuers
});

/// A request target.
pub(crate) fn path(data: &[u8]) {
    let Ok(target) = std::str::from_utf8(data) else { return };
    let Ok(path) = CanonicalPath::parse(target) else { return };
    let text = path.as_str();
    assert!(text.starts_with('/') && text.is_ascii(), "{text}");
    assert!(!text.contains("//") && !text.contains(['\\', ';', '?', '#', ' ']), "{text}");
    assert!(!text.split('/').any(|segment| matches!(segment, "." | "..")), "{text}");
    for escape in ["%2F", "%2f", "%5C", "%5c", "%2E", "%2e", "%00", "%3B", "%3b", "%252F", "%252E", "%255C"] {
        assert!(!text.contains(escape), "{text}");
    }
    assert_eq!(CanonicalPath::parse(text).as_ref(), Ok(&path), "canonicalising is idempotent");
}

/// Three lines: two templates and a request target.
pub(crate) fn template(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.lines();
    let parsed = |line: Option<&str>| line.and_then(|text| Template::parse(text).ok());
    let Some(a) = parsed(lines.next()) else { return };
    assert_eq!(a.relation(&a), Relation::Same, "{a}");
    let Some(b) = parsed(lines.next()) else { return };
    let relation = a.relation(&b);
    let mirrored = match relation {
        Relation::Narrower => Relation::Wider,
        Relation::Wider => Relation::Narrower,
        other => other,
    };
    assert_eq!(b.relation(&a), mirrored, "{a} {b}");
    let Some(Ok(path)) = lines.next().map(CanonicalPath::parse) else { return };
    let possible = match (a.matches(&path), b.matches(&path)) {
        (true, true) => relation != Relation::Disjoint,
        (true, false) => !matches!(relation, Relation::Same | Relation::Narrower),
        (false, true) => !matches!(relation, Relation::Same | Relation::Wider),
        (false, false) => true,
    };
    assert!(possible, "{a} {b} are {relation:?}, and yet {}", path.as_str());
}

/// A token. Tells whether it verified.
pub(crate) fn jwt(data: &[u8]) -> bool {
    let Ok(token) = std::str::from_utf8(data) else { return false };
    match verify(token, &ISSUERS, NOW) {
        Ok(verified) => {
            let signed = token.rsplit_once('.').map(|(signed, _)| signed);
            assert_eq!(signed, Some(SIGNED.trim_end()), "verified, but never signed");
            assert!(verified.expires_at > NOW);
            true
        }
        Err(rejection) => {
            // Whatever is wrong with it, the answer is a credential reason.
            assert!(portcullis::authz::Reason::from(rejection.reason).code().starts_with("credential."));
            false
        }
    }
}

/// A question of forward-auth: the number of a dialect and, for Envoy's, the client's own target; then header lines. Tells
/// whether it reads.
pub(crate) fn forward_auth(data: &[u8]) -> bool {
    let mut lines = data.split(|b| *b == b'\n');
    let Some(Ok(first)) = lines.next().map(std::str::from_utf8) else { return false };
    let Some((number, own)) = first.split_at_checked(1) else { return false };
    let Some(&dialect) = number.parse().ok().and_then(|n: usize| Dialect::ALL.get(n)) else { return false };
    let mut head = http::Request::new(()).into_parts().0;
    for line in lines {
        let (name, value) = line.split_at(line.iter().position(|b| *b == b':').unwrap_or(line.len()));
        let value = value.strip_prefix(b": ").unwrap_or(value);
        if let (Ok(name), Ok(value)) = (http::HeaderName::from_bytes(name), http::HeaderValue::from_bytes(value)) {
            head.headers.append(name, value);
        }
    }
    let headers = head.headers.clone();
    let Ok(asked) = read_question(dialect, own, head, None) else { return false };
    let family = if dialect == Dialect::Nginx { "x-original" } else { "x-forwarded" };
    let said = |name: &str| {
        let is_it = |sent: &http::HeaderName| sent.as_str().replace('_', "-") == format!("{family}-{name}");
        headers.iter().filter(|(sent, _)| is_it(sent)).map(|(_, value)| value.as_bytes()).collect::<Vec<_>>()
    };
    // What is asked about is what one header says, and no other could be taken for that one.
    for (name, read) in [("method", &asked.method), ("uri", &asked.path), ("host", &asked.host)] {
        let said = said(name);
        assert!(said.len() <= 1, "`{name}` twice");
        assert!(dialect == Dialect::Envoy || said == [read.as_bytes()], "`{name}` is `{read}`");
    }
    assert!(dialect != Dialect::Envoy || asked.path == own);
    assert_eq!(asked.peer.address.is_some(), !said("for").is_empty());
    assert!(["", "http", "https"].contains(&&*asked.scheme));
    true
}

/// An `x-forwarded-client-cert` header, as a client may send it to a proxy that appends to it. Tells whether it reads.
pub(crate) fn xfcc(data: &[u8]) -> bool {
    let own = "By=spiffe://a/gateway;Hash=00;Cert=\"real\";Subject=\"CN=\\\"a\\\",O=b\";URI=spiffe://a/b";
    let joined = [data, b",", own.as_bytes()].concat();
    let appended = last_forwarded_certificate(&joined);
    if let Ok(element) = &appended {
        assert_eq!(element.cert.as_deref(), Some("real"), "{}", joined.escape_ascii());
        assert_eq!(element.uri.as_deref(), Some("spiffe://a/b"), "{}", joined.escape_ascii());
    }
    let Ok(element) = last_forwarded_certificate(data) else { return false };
    assert!(appended.is_ok() || joined.len() > portcullis::credential::MAX_XFCC, "{}", data.escape_ascii());
    if let Some(Ok(der)) = element.cert.as_deref().map(certificate_from_pem) {
        certificate(&der);
    }
    true
}

/// A certificate as DER, or a `Client-Cert` header.
pub(crate) fn certificate(data: &[u8]) -> bool {
    if let Ok(der) = certificate_from_client_cert(data) {
        let _ = X509Svid::parse(&der);
    }
    let Ok(svid) = X509Svid::parse(data) else { return false };
    assert!(svid.id.path().len() > 1 && !svid.serial.is_empty() && svid.serial.len() <= 40);
    let _ = svid.check_time(NOW);
    true
}

/// A DPoP proof. Tells whether it holds.
pub(crate) fn proof(data: &[u8]) -> bool {
    let Ok(proof) = std::str::from_utf8(data) else { return false };
    let token_digest = token_digest("some.access.token");
    let judged = check_dpop(&Dpop {
        proof,
        method: "GET",
        is_target: &|uri| uri == "https://shop.example/catalog/1",
        token_digest: Some(&token_digest),
        bound_to: Some(&PROOF_KEY),
        nonces: None,
        remembered_since: Timestamp::from_secs(0),
        now: NOW,
    });
    let judged = judged.and_then(|unverified| unverified.verify().map_err(Unproven::Refused));
    match judged {
        Ok(proven) => {
            let signed = proof.rsplit_once('.').map(|(signed, _)| signed);
            assert_eq!(signed, Some(SIGNED_PROOF.trim_end()), "holds, but was never signed");
            assert!(proven.until > NOW);
            true
        }
        Err(unproven) => {
            let reason = portcullis::authz::Reason::from(unproven.rejection().reason);
            assert_eq!(reason.code(), "credential.pop_invalid");
            false
        }
    }
}

/// A stored document, as REST, the sync stream and the state file carry it; the first byte picks the kind.
pub(crate) fn object(data: &[u8]) {
    let Some((&first, body)) = data.split_first() else { return };
    let Some(kind) = Kind::from_number(i32::from(first.wrapping_sub(b'0'))) else { return };
    let Ok(object) = Object::parse(kind, body) else { return };
    assert_eq!(object.kind(), kind);
    let again = Object::parse(kind, &object.to_json()).expect("what was read can be written and read again");
    assert_eq!(again, object);
    assert_eq!(again.key(), object.key());
}

/// The public half of the key that signed the genuine seeds of `sync_frame` and `state`. The private one was thrown away.
static SYNC_KEY: LazyLock<VerifyKey> =
    LazyLock::new(|| VerifyKey::parse(include_str!("sync_key.txt")).expect("sync_key.txt is a key"));
/// The only payload that it signed for a frame of its own.
const PAYLOAD: &[u8] = include_bytes!("signed_payload.bin");

static SETTINGS: Settings = Settings { trusted_proxies: Vec::new() };
/// A state that knows the policies of the design, and signs for nobody.
static ESTATE: LazyLock<(Snapshot, Lease, Now)> = LazyLock::new(|| {
    let estate = Estate::new();
    (estate.snapshot(), estate.lease(), estate.clock.now())
});

/// A `CheckRequest`. Tells whether it was one.
pub(crate) fn check(data: &[u8]) -> bool {
    let Some(request) = ext_authz::read_check(data) else { return false };
    let bytes: usize = request.headers.iter().map(|h| h.name.len() + h.value.len()).sum();
    assert!(request.headers.len() <= 256 && bytes <= 65_536, "{} headers of {bytes} bytes", request.headers.len());
    let (snapshot, lease, now) = &*ESTATE;
    let inputs = Inputs {
        snapshot: Some(snapshot),
        lease: Some(*lease),
        now: *now,
        proofs: None,
        settings: &SETTINGS,
        uses: None,
    };
    let decision = authz::decide(&request, inputs, &NoMemo);
    assert!(decision.permit().is_none(), "allowed, and nobody has a credential");
    true
}

/// The body of an AuthZEN call, of an application that may vouch for `storefront` and nobody else. Tells how many of its
/// evaluations were allowed, or that it cannot be read.
pub(crate) fn authzen(data: &[u8]) -> Option<usize> {
    let (snapshot, lease, now) = &*ESTATE;
    let inputs = Inputs {
        snapshot: Some(snapshot),
        lease: Some(*lease),
        now: *now,
        proofs: None,
        settings: &SETTINGS,
        uses: None,
    };
    let id = Estate::id("app").into();
    let may_assert = [WorkloadPattern(Estate::id("storefront"))];
    let asker = authz::Asker { id: &id, may_assert: &may_assert };
    let decisions = authzen::decide_all(data, &authzen::Config::default(), asker, inputs)?;
    for decision in decisions.iter().filter(|decision| decision.permit().is_some()) {
        // Nothing that can be said makes it anybody else, or more than policy gives without a grant.
        assert_eq!(decision.workload.as_deref(), Some(&*Estate::id("storefront")), "{}", data.escape_ascii());
        let what = (decision.resource.as_deref(), decision.action.as_deref());
        assert_eq!(what, (Some("catalog/items"), Some("read")), "{}", data.escape_ascii());
    }
    Some(decisions.iter().filter(|decision| decision.permit().is_some()).count())
}

/// A state with one MCP route on which everybody may do everything, and the token of somebody.
static MCP: LazyLock<(Snapshot, Lease, Now, String)> = LazyLock::new(|| {
    let mut estate = Estate::new();
    let mcp = serde_json::json!({"arguments": {"amount": {"type": "long", "at": "/order/amount"}}});
    let route = serde_json::json!({"name": "mcp", "path": "/mcp", "mcp": mcp});
    estate.put(Kind::Service, &serde_json::json!({"name": "desk", "routes": [route]}));
    estate.put_policies("@id(\"all\") permit(principal, action, resource);");
    (estate.snapshot(), estate.lease(), estate.clock.now(), format!("Bearer {}", estate.token("agent")))
});

/// A message of an MCP client. Tells whether it was let through.
pub(crate) fn mcp(data: &[u8]) -> bool {
    let (snapshot, lease, now, token) = &*MCP;
    let header = |name: &'static str, value: &'static str| Header { name: name.as_bytes(), value: value.as_bytes() };
    let request = Request {
        door: Door::Check,
        method: "POST",
        path: "/mcp",
        host: "h",
        scheme: "https",
        headers: [
            Header { name: b"authorization", value: token.as_bytes() },
            header("content-type", "application/json"),
            header("mcp-protocol-version", "2025-11-25"),
        ]
        .into_iter()
        .collect(),
        partial_body: false,
        body: Some(data),
        peer: Peer::default(),
    };
    let (snapshot, lease) = (Some(snapshot), Some(*lease));
    let inputs = Inputs { snapshot, lease, now: *now, proofs: None, settings: &SETTINGS, uses: None };
    let decision = authz::decide(&request, inputs, &NoMemo);
    let call = decision.mcp.as_ref().expect("it is an MCP route");
    if decision.permit().is_none() {
        let code = decision.reason.code();
        assert!(matches!(code, "input.malformed" | "input.header_mismatch" | "input.body_truncated"), "{code}");
        return false;
    }
    // Another parser finds the same in it, and whatever it does with case and with duplicates finds no second one.
    let value: serde_json::Value = serde_json::from_slice(data).expect("JSON");
    assert_eq!(value["method"].as_str(), call.method.as_deref());
    if call.tool().is_some() {
        assert_eq!(value["params"]["name"].as_str(), call.tool());
    }
    for member in value.as_object().expect("an object").keys() {
        assert!(["jsonrpc", "id", "method", "params", "result", "error"].contains(&&**member), "{member}");
    }
    assert!(data.len() <= authz::MAX_MCP_BODY);
    true
}

/// An answer of an MCP server, as one message and as a stream of events, for somebody who may use the tool `a` alone. Tells
/// whether both, or the one that it is, went on.
pub(crate) fn mcp_answer(data: &[u8]) -> bool {
    let allowed = |tools: &[&str]| tools.iter().map(|tool| *tool == "a").collect::<Vec<_>>();
    let message = authz::filter_tools(data, allowed);
    if let Ok(message) = &message {
        shows_only_a(message);
    }
    let mut whole = authz::EventFilter::default();
    let events = whole.push(data, allowed);
    // In pieces it is the same stream.
    let mut bytes = authz::EventFilter::default();
    let pieces: Result<Vec<Vec<u8>>, _> = data.iter().map(|byte| bytes.push(&[*byte], allowed)).collect();
    assert_eq!(events, pieces.map(|pieces| pieces.concat()), "{}", data.escape_ascii());
    if let Ok(events) = &events {
        assert!(!events.contains(&b'\r'), "one kind of line break is left");
        let text = std::str::from_utf8(events).expect("UTF-8");
        // A reader of streams, as the standard has it.
        for event in text.trim_start_matches('\u{feff}').split("\n\n") {
            let values = event.lines().filter_map(|line| line.strip_prefix("data"));
            let values = values.filter_map(|rest| if rest.is_empty() { Some("") } else { rest.strip_prefix(':') });
            let data: Vec<&str> = values.map(|value| value.strip_prefix(' ').unwrap_or(value)).collect();
            if !data.join("\n").trim().is_empty() {
                shows_only_a(data.join("\n").as_bytes());
            }
        }
    }
    message.is_ok() || events.is_ok_and(|events| !events.is_empty())
}

/// Another parser finds no other tool in it.
fn shows_only_a(message: &[u8]) {
    let value: serde_json::Value = serde_json::from_slice(message).expect("JSON");
    for tool in value["result"]["tools"].as_array().into_iter().flatten() {
        assert_eq!(tool["name"].as_str(), Some("a"), "{}", message.escape_ascii());
    }
}

/// A key set. Tells whether the one token verifies with it.
pub(crate) fn jwks(data: &[u8]) -> bool {
    let Some(jwks) = serde_json::from_slice::<Jwks>(data).ok().filter(|jwks| jwks.check().is_ok()) else {
        return false;
    };
    let mut issuer: Issuer = serde_json::from_str(include_str!("issuer.json")).expect("issuer.json is an issuer");
    issuer.jwks = jwks;
    let (issuers, _) = IssuerSet::compile([&issuer]);
    let verified = verify(include_str!("corpus/jwt/valid").trim_end(), &issuers, NOW).is_ok();
    let text = String::from_utf8_lossy(data);
    assert!(!verified || text.contains("VvNhoggAeMtl00YeBT2oye5J6Hj8DAb7kXy3QIRy"), "by another key: {text}");
    verified
}

/// A frame of sync. Tells whether it was genuine.
pub(crate) fn sync_frame(data: &[u8]) -> bool {
    let genuine = sync::fuzzing::frame(data, &SYNC_KEY);
    assert!(!genuine || data.windows(PAYLOAD.len()).any(|w| w == PAYLOAD), "genuine, but never signed");
    genuine
}

/// What genuine frames carry, one after another. Tells how many fitted.
pub(crate) fn sync_payloads(data: &[u8]) -> usize {
    let positions = sync::fuzzing::payloads(data);
    for pair in positions.windows(2) {
        assert!(pair[0].epoch != pair[1].epoch || pair[0] <= pair[1], "{pair:?}: the position falls");
    }
    positions.len()
}

/// A snapshot file. Tells its position when it may be used.
pub(crate) fn state(data: &[u8]) -> Option<Position> {
    sync::fuzzing::state_file(data, &SYNC_KEY)
}
