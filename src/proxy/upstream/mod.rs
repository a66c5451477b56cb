//! Where requests go: the addresses of a service, their connections, and which of them work.
//!
//! Plane: hot path. INVARIANT: nothing is sent without a [`Permit`]. A request is sent again only when no byte of it was
//! written, or when it is idempotent, has no body, and no head of an answer came; and only so often. When no address is
//! known to work, all are tried.

mod connect;
mod health;
mod pool;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use http::{HeaderMap, Method, Request, Response, Uri};
use hyper::body::Incoming;

use self::connect::Connector;
pub(super) use self::pool::Lease;
use self::pool::Pool;
use super::body::Sent;
use super::certificates::Svids;
use super::config::{Protocol, Timeouts, UpstreamConfig};
use crate::authz::Permit;
use crate::tls::TlsError;

/// Where the requests of one service go.
#[derive(Debug)]
pub(super) struct Upstream {
    config: UpstreamConfig,
    connector: Arc<Connector>,
    endpoints: Vec<Arc<Endpoint>>,
    next: AtomicUsize,
    under_way: AtomicUsize,
}

/// One address.
#[derive(Debug)]
struct Endpoint {
    address: Arc<str>,
    pool: Pool,
    health: health::State,
}

/// Counted among the requests under way, until it is dropped.
#[derive(Debug)]
pub(super) struct Place(Arc<Upstream>);

/// An answer, and what its connection needs until it has ended.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    pub(super) lease: Lease,
    /// Whose it is.
    pub(super) address: Arc<str>,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error("as many requests as allowed are under way to the upstream")]
    Full,
    #[error("no connection to the upstream: {0}")]
    Connect(std::io::Error),
    #[error("the upstream did not answer in time")]
    TimedOut,
    #[error("the upstream did not answer: {0}")]
    Broken(hyper::Error),
    #[error("the request cannot be made: {0}")]
    Unsendable(http::Error),
}

/// What is to be sent, as often as it takes.
pub(super) trait Outgoing {
    /// The head, made anew for each time that it is sent.
    fn headers(&self) -> HeaderMap;
    /// The method.
    fn method(&self) -> &Method;
    /// The target in the form that the protocol has.
    fn uri(&self, protocol: Protocol, tls: bool) -> Result<Uri, http::Error>;
}

// === impl Upstream ===

impl Upstream {
    pub(super) fn new(config: UpstreamConfig, svids: &mut Svids) -> Result<Arc<Self>, TlsError> {
        let connector = Arc::new(Connector::new(&config, svids)?);
        let endpoint = |address: &String| {
            let pool = Pool::new(config.protocol, config.timeouts.idle, config.max_requests);
            Arc::new(Endpoint { address: address.as_str().into(), pool, health: health::State::default() })
        };
        let endpoints = config.addresses.iter().map(endpoint).collect();
        let (next, under_way) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Ok(Arc::new(Self { connector, endpoints, next, under_way, config }))
    }

    /// What is spoken there.
    pub(super) fn protocol(&self) -> Protocol {
        self.config.protocol
    }

    /// Takes a place among the requests under way, if there is one.
    pub(super) fn enter(self: &Arc<Self>) -> Result<Place, SendError> {
        let before = self.under_way.fetch_add(1, Ordering::AcqRel);
        let place = Place(Arc::clone(self));
        if before >= self.config.max_requests { Err(SendError::Full) } else { Ok(place) }
    }

    /// Keeps connections young, certificates current, and sees which addresses work, until it is dropped.
    pub(super) async fn tend(self: Arc<Self>) {
        health::tend(&self).await;
    }

    /// The next address: the ones that are known not to work last.
    fn pick(&self, attempt: usize) -> Option<&Arc<Endpoint>> {
        let from = self.next.fetch_add(1, Ordering::Relaxed);
        let count = self.endpoints.len().max(1);
        let in_turn = || (0..count).filter_map(|i| self.endpoints.get(from.wrapping_add(i) % count));
        let healthy = in_turn().find(|endpoint| endpoint.health.works());
        // A second attempt goes elsewhere by itself: the turn has moved on.
        healthy.or_else(|| in_turn().nth(attempt % count))
    }
}

// === impl Place ===

impl Place {
    /// How long the upstream may take.
    pub(super) fn timeouts(&self) -> Timeouts {
        self.0.config.timeouts
    }

    /// Sends a request, with its body, and waits for the head of the answer.
    pub(super) async fn send(
        &self,
        permit: Permit,
        outgoing: &(impl Outgoing + Sync),
        body: Sent,
    ) -> Result<Answer, SendError> {
        let timeouts = self.0.config.timeouts;
        let answer = tokio::time::timeout(timeouts.response, self.attempts(permit, outgoing, body));
        answer.await.unwrap_or(Err(SendError::TimedOut))
    }

    async fn attempts(
        &self,
        permit: Permit,
        outgoing: &(impl Outgoing + Sync),
        mut body: Sent,
    ) -> Result<Answer, SendError> {
        let upstream = &*self.0;
        let is_repeatable = body.is_nothing() && is_idempotent(outgoing.method());
        let (mut retries, mut unsent) = (upstream.config.retries, upstream.endpoints.len().max(2));
        let mut attempt = 0;
        loop {
            let Some(endpoint) = upstream.pick(attempt) else { return Err(SendError::Full) };
            attempt += 1;
            let connection = match endpoint.pool.take(&upstream.connector, &endpoint.address).await {
                Ok(connection) => connection,
                Err(error) => {
                    endpoint.health.failed();
                    // Nothing was sent: another address may do.
                    unsent -= 1;
                    if unsent == 0 {
                        return Err(SendError::Connect(error));
                    }
                    continue;
                }
            };
            let request = upstream.request(permit, outgoing, body)?;
            match connection.send(request).await {
                Ok((response, lease)) => {
                    let address = Arc::clone(&endpoint.address);
                    return Ok(Answer { response, lease, address });
                }
                // The connection was closed in the meantime, before anything was written on it.
                Err((_, Some(unsent_request))) if unsent > 1 => {
                    unsent -= 1;
                    body = unsent_request.into_body();
                }
                // What has begun to answer, and cannot be read, is not asked again.
                Err((error, None)) if is_repeatable && retries > 0 && !error.is_parse() => {
                    tracing::debug!(%error, "a request is sent again");
                    retries -= 1;
                    body = Sent::nothing();
                }
                Err((error, _)) => return Err(SendError::Broken(error)),
            }
        }
    }
}

impl Upstream {
    fn request(&self, _permit: Permit, outgoing: &impl Outgoing, body: Sent) -> Result<Request<Sent>, SendError> {
        let uri = outgoing.uri(self.config.protocol, self.config.tls.is_some()).map_err(SendError::Unsendable)?;
        let mut request = Request::new(body);
        *request.method_mut() = outgoing.method().clone();
        *request.uri_mut() = uri;
        *request.headers_mut() = outgoing.headers();
        Ok(request)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::AcqRel);
    }
}

fn is_idempotent(method: &Method) -> bool {
    matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE)
}
