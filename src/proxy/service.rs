//! One request: judged, decided on, forwarded, answered.
//!
//! Plane: hot path. The order is: take out what is not for the upstream, decide, enter among the open answers, send. So
//! what is decided on is what is sent. INVARIANT: [`Proxy::forward`] takes a permit; the path, the host and the method that
//! are sent come from the request that was decided on, and the upstream from the service that it was decided for.

use std::convert::Infallible;
use std::sync::Arc;

use http::header::{ACCEPT_ENCODING, CONNECTION, CONTENT_LENGTH, COOKIE, HOST, TRANSFER_ENCODING, UPGRADE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, Version};
use hyper::body::{Body, Incoming};
use hyper::upgrade::OnUpgrade;
use tokio_util::task::TaskTracker;

use super::body::{Held, Reply, Sent, Streamed};
use super::config::{Config, Protocol};
use super::forwarded::Said;
use super::guard::Tie;
use super::hygiene::{self, Target};
use super::listing;
use super::live::Live;
use super::message::Reader;
use super::respond;
use super::tunnel::Tunnel;
use super::upstream::{Answer, Outgoing, Upstream};
use crate::authz::{Door, Permit, Reason};
use crate::door::{Asked, Checked, Checks, OwnedPeer, answer};
use crate::drain;
use crate::telemetry::{OpenRecord, Unanswered};

const DECISION_ID: HeaderName = HeaderName::from_static("x-portcullis-decision-id");
const DPOP_NONCE: HeaderName = HeaderName::from_static("dpop-nonce");

/// What all connections share.
#[derive(Debug)]
pub(super) struct Proxy {
    pub(super) checks: Checks,
    pub(super) live: Arc<Live>,
    pub(super) upstreams: Vec<(String, Arc<Upstream>)>,
    pub(super) config: Config,
    pub(super) reader: Reader,
    pub(super) drain: drain::Signal,
    /// What has left HTTP and is not over.
    pub(super) tunnels: TaskTracker,
}

/// The other end of a connection.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) peer: OwnedPeer,
    pub(super) scheme: &'static str,
    pub(super) said: Said,
    /// It may be a proxy whose word about its clients' certificates counts.
    pub(super) tells_certificates: bool,
    pub(super) tie: Arc<Tie>,
}

/// What a client that asks to leave HTTP is to be told, at the latest when the request has been answered.
struct Leaving<'a>(Option<&'a Tie>);

/// What is sent, made from what was decided on.
struct Outbound<'a> {
    checked: &'a Checked,
    method: Method,
    said: &'a Said,
    upgrade: Option<HeaderValue>,
    protocol: Protocol,
    has_body: bool,
}

// === impl Proxy ===

impl Proxy {
    /// Answers a request.
    pub(super) async fn answer(
        self: Arc<Self>,
        client: Arc<Client>,
        mut request: Request<Incoming>,
    ) -> Result<Response<Reply>, Infallible> {
        let under_way = client.tie.begin();
        let is_http1 = request.version() != Version::HTTP_2;
        let mut leaving = Leaving((is_http1 && hygiene::asks_to_leave(request.headers())).then_some(&client.tie));
        let leaves = (is_http1 && request.headers().contains_key(UPGRADE)).then(|| hyper::upgrade::on(&mut request));
        let (mut parts, body) = request.into_parts();
        let method = parts.method.clone();
        let upgrade = parts.headers.get(UPGRADE).cloned();
        let target = hygiene::take_in(&mut parts);
        // For the check alone, as other proxies tell it; `Outbound` takes them out again.
        if let Some(upgrade) = upgrade {
            parts.headers.insert(UPGRADE, upgrade);
        }
        if !body.is_end_stream() && !parts.headers.contains_key(CONTENT_LENGTH) {
            parts.headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        }
        let (target, refusal) = match target {
            Ok(target) => (target, None),
            Err(refusal) => (Target::unread(&parts), Some(refusal)),
        };
        client.take_out(&mut parts.headers);
        let asked = Asked {
            door: Door::Proxy,
            method: method.as_str().to_owned(),
            path: target.path,
            host: target.host,
            scheme: client.scheme.into(),
            headers: parts.headers,
            partial_body: false,
            body: None,
            peer: client.peer.clone(),
        };
        if let Some(refusal) = refusal {
            let checked = self.checks.refuse(asked, Reason::InputMalformed, &refusal.to_string());
            return Ok(respond::denied(&checked, is_http1));
        }
        let seen = self.live.seen();
        let (mut checked, body, room) = self.reader.decide(&self.checks, asked, body).await;
        let Some(permit) = checked.decision.permit() else {
            return Ok(self.denied(&checked));
        };
        let record = checked.open_record();
        let is_grpc = answer::is_grpc(&checked.request.headers);
        let limit = self.config.limits.max_body_bytes;
        if limit.is_some_and(|limit| length(&checked.request.headers).is_some_and(|length| length > limit)) {
            record.unanswered(Unanswered::Body);
            return Ok(respond::too_large(is_grpc));
        }
        let Some(upstream) = self.upstream(&checked) else {
            record.unanswered(Unanswered::NoUpstream);
            return Ok(respond::nowhere(is_grpc));
        };
        let upgrade = target.upgrade.filter(|wanted| self.may_leave(wanted) && upstream.protocol() == Protocol::Http1);
        if checked.decision.mcp.is_some()
            && let Some(refusal) = beside_messages(upgrade.is_some(), body.is_unread())
        {
            record.unanswered(Unanswered::Refused);
            let checked = self.checks.refuse(checked.request, Reason::InputMalformed, refusal);
            return Ok(respond::denied(&checked, is_http1));
        }
        let stream = self.live.enter(checked, seen);
        let place = match upstream.enter() {
            Ok(place) => place,
            Err(error) => {
                record.unanswered(respond::unanswered(&error));
                return Ok(respond::failed(&error, is_grpc));
            }
        };
        let held = Arc::new(Held { stream, place, _under_way: under_way, _room: room });
        let body = Sent::new(body, limit, &held);
        let outbound = Upgradable { method, upgrade, leaves, record };
        let response = self.forward(permit, &client, upstream.protocol(), held, body, outbound).await;
        leaving.is_known(response.status() == StatusCode::SWITCHING_PROTOCOLS);
        Ok(response)
    }

    async fn forward(
        &self,
        permit: Permit,
        client: &Client,
        protocol: Protocol,
        held: Arc<Held>,
        body: Sent,
        request: Upgradable,
    ) -> Response<Reply> {
        let Upgradable { method, upgrade, leaves, record } = request;
        let entry = Arc::clone(held.stream.entry());
        let is_grpc = answer::is_grpc(&entry.checked.request.headers);
        let (said, has_body) = (&client.said, !body.is_nothing());
        let outbound = Outbound { checked: &entry.checked, method, said, upgrade, protocol, has_body };
        let answer = tokio::select! {
            biased;
            answer = held.place.send(permit, &outbound, body) => answer,
            denial = held.stream.cut() => {
                let request = entry.checked.request.clone();
                record.unanswered(Unanswered::Cut);
                return respond::denied(&entry.checked.instead(denial.clone(), request), true);
            }
        };
        let Answer { mut response, mut lease, address } = match answer {
            Ok(answer) => answer,
            Err(error) => {
                tracing::debug!(%error, decision = %entry.checked.decision.id, "a request was not answered");
                record.unanswered(respond::unanswered(&error));
                return respond::failed(&error, is_grpc);
            }
        };
        record.answered(&address, response.status().as_u16());
        let leaves_upstream = match response.status() {
            StatusCode::SWITCHING_PROTOCOLS => Some(hyper::upgrade::on(&mut response)),
            _ => None,
        };
        let (mut parts, incoming) = response.into_parts();
        let agreed = parts.headers.get(UPGRADE).cloned();
        hygiene::take_back(&mut parts.headers);
        tell(&entry.checked, &mut parts.headers);
        let Some(leaves_upstream) = leaves_upstream else {
            // The one version that it is answered in is the client's.
            parts.version = Version::default();
            if incoming.is_end_stream() {
                lease.give_back();
            }
            let is_cut = false;
            let within = held.place.timeouts().response;
            let streamed = Streamed { incoming, held, lease, is_grpc, is_cut };
            if listing::may_list(&entry.checked) {
                let listed = listing::listed(&self.checks, &self.reader.rooms, within, (parts, streamed));
                return Box::pin(listed).await;
            }
            return Response::from_parts(parts, Reply::Upstream(Box::new(streamed)));
        };
        let (Some(wanted), Some(agreed), Some(leaves)) = (outbound.upgrade.as_ref(), agreed, leaves) else {
            return respond::unasked();
        };
        if !agreed.as_bytes().eq_ignore_ascii_case(wanted.as_bytes()) {
            return respond::unasked();
        }
        let is_websocket = wanted.as_bytes().eq_ignore_ascii_case(b"websocket");
        parts.headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
        parts.headers.insert(UPGRADE, agreed);
        let drain = self.drain.clone();
        let tunnel = Tunnel { client: leaves, upstream: leaves_upstream, is_websocket, held, drain };
        self.tunnels.spawn(tunnel.run());
        Response::from_parts(parts, Reply::Own(None))
    }

    /// A denial; or what anybody may know of an MCP server, if that was asked for: nothing is forwarded for it.
    fn denied(&self, checked: &Checked) -> Response<Reply> {
        let Asked { method, host, path, .. } = &checked.request;
        match self.checks.resource_metadata(method, host, path) {
            Some(metadata) => answer::document(metadata).map(Reply::from),
            None => respond::denied(checked, false),
        }
    }

    /// Where the service goes that was decided on.
    fn upstream(&self, checked: &Checked) -> Option<&Arc<Upstream>> {
        let service = checked.decision.resource.as_deref()?.split('/').next()?;
        self.upstreams.iter().find(|(name, _)| name == service).map(|(_, upstream)| upstream)
    }

    fn may_leave(&self, wanted: &HeaderValue) -> bool {
        self.config.upgrades.iter().any(|name| name.as_bytes().eq_ignore_ascii_case(wanted.as_bytes()))
    }
}

/// What of a request was not decided on, because it is about how it is spoken; and its record.
struct Upgradable {
    method: Method,
    upgrade: Option<HeaderValue>,
    leaves: Option<OnUpgrade>,
    record: OpenRecord,
}

/// What the client is told of the decision.
fn tell(checked: &Checked, headers: &mut HeaderMap) {
    if let Ok(id) = HeaderValue::from_str(&checked.decision.id.to_string()) {
        headers.insert(DECISION_ID, id);
    }
    if let Some(Ok(nonce)) = checked.decision.dpop_nonce.as_deref().map(HeaderValue::from_str) {
        headers.insert(DPOP_NONCE, nonce);
    }
}

/// Why a request to an MCP server is not forwarded though what was decided on is allowed: something goes with it that was
/// not looked at.
fn beside_messages(upgrades: bool, has_unread_body: bool) -> Option<&'static str> {
    if upgrades {
        return Some("what is said after an upgrade on a route of the Model Context Protocol is not looked at");
    }
    has_unread_body.then_some("a request of the Model Context Protocol has a body that is not looked at")
}

fn length(headers: &HeaderMap) -> Option<u64> {
    headers.get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

// === impl Client ===

impl Client {
    /// Takes out what it may not say of itself, so that it is not decided on.
    fn take_out(&self, headers: &mut HeaderMap) {
        Asked::take_out_identity(headers);
        let is_certificate = |name: &str| matches!(name, "x-forwarded-client-cert" | "client-cert");
        self.said.take_out(headers, |name| self.tells_certificates && is_certificate(name));
    }
}

// === impl Target ===

impl Target {
    /// For the record of a request that is refused.
    fn unread(parts: &http::request::Parts) -> Self {
        Self { path: parts.uri.path().to_owned(), host: String::new(), upgrade: None }
    }
}

// === impl Outbound ===

impl Outgoing for Outbound<'_> {
    fn headers(&self) -> HeaderMap {
        let request = &self.checked.request;
        let mut headers = request.headers.clone();
        // INVARIANT: there is a permit, or nobody would be asking.
        let _allowed = answer::prepare(self.checked, &mut headers);
        self.said.write(&mut headers, &request.host);
        [UPGRADE, TRANSFER_ENCODING].iter().for_each(|name| drop(headers.remove(name)));
        if self.protocol == Protocol::Http2 {
            headers.remove(HOST);
        } else {
            let is_host = |said: &HeaderValue| said.as_bytes() == request.host.as_bytes();
            if !headers.get(HOST).is_some_and(is_host)
                && let Ok(host) = HeaderValue::from_str(&request.host)
            {
                headers.insert(HOST, host);
            }
            one_cookie(&mut headers);
            // Without a length, the library would take a body for none where most requests have none.
            if self.has_body && !headers.contains_key(CONTENT_LENGTH) {
                headers.insert(TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
        }
        if listing::may_list(self.checked) {
            // What is compressed cannot be filtered. Without the header, anything would be acceptable.
            headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        }
        if let Some(upgrade) = &self.upgrade {
            headers.insert(CONNECTION, HeaderValue::from_static("upgrade"));
            headers.insert(UPGRADE, upgrade.clone());
        }
        headers
    }

    fn method(&self) -> &Method {
        &self.method
    }

    fn uri(&self, protocol: Protocol, tls: bool) -> Result<Uri, http::Error> {
        let path = self.checked.request.path.as_str();
        match protocol {
            Protocol::Http1 => Uri::try_from(path).map_err(Into::into),
            Protocol::Http2 => {
                let scheme = if tls { "https" } else { "http" };
                Uri::builder().scheme(scheme).authority(self.checked.request.host.as_str()).path_and_query(path).build()
            }
        }
    }
}

/// HTTP/2 may split the cookie; what speaks HTTP/1 expects one (RFC 9113, section 8.2.3).
fn one_cookie(headers: &mut HeaderMap) {
    let mut cookies = headers.get_all(COOKIE).iter();
    if cookies.next().is_none() || cookies.next().is_none() {
        return;
    }
    let all: Vec<&[u8]> = headers.get_all(COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if let Ok(joined) = HeaderValue::from_bytes(&all.join(&b"; "[..])) {
        headers.insert(COOKIE, joined);
    }
}

// === impl Leaving ===

impl Leaving<'_> {
    fn is_known(&mut self, leaves: bool) {
        if let Some(tie) = self.0.take() {
            tie.answer(leaves);
        }
    }
}

impl Drop for Leaving<'_> {
    fn drop(&mut self) {
        self.is_known(false);
    }
}
