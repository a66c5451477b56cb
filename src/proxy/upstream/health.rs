//! Which addresses of an upstream work, and what else has to be done about it from time to time.
//!
//! Plane: hot path's background. An address is passed over after so many bad answers in a row, or for a moment after a
//! connection failed, and taken again after so many good ones. Says nothing about who may ask.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, header};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::Instant;

use super::connect::Stream;
use super::{Endpoint, Upstream};
use crate::proxy::config::{Health, Protocol};
use crate::proxy::reload::Watched;

/// How often connections and files are looked at.
const TEND: Duration = Duration::from_secs(1);
/// For so long is an address passed over after a connection failed, when nobody asks it how it is.
const PAUSE: Duration = Duration::from_secs(2);
/// More of an answer than this nobody needs to know.
const MAX_ANSWER: usize = 64 << 10;

/// What is known of an address.
#[derive(Debug)]
pub(super) struct State {
    is_down: AtomicBool,
    in_a_row: AtomicU32,
    /// Milliseconds since the start until which it is passed over.
    pause_until: AtomicU64,
    since: Instant,
}

// === impl State ===

impl State {
    pub(super) fn works(&self) -> bool {
        let pause = self.pause_until.load(Ordering::Relaxed);
        !self.is_down.load(Ordering::Relaxed) && (pause == 0 || self.now() >= pause)
    }

    /// A connection could not be made.
    pub(super) fn failed(&self) {
        self.pause_until.store(self.now() + u64::try_from(PAUSE.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// It was asked how it is.
    fn asked(&self, is_well: bool, health: &Health, address: &str) {
        if is_well != self.is_down.load(Ordering::Relaxed) {
            self.in_a_row.store(0, Ordering::Relaxed);
            return;
        }
        let in_a_row = self.in_a_row.fetch_add(1, Ordering::Relaxed) + 1;
        let needed = if is_well { health.healthy_after } else { health.unhealthy_after };
        if in_a_row >= needed {
            self.in_a_row.store(0, Ordering::Relaxed);
            self.is_down.store(!is_well, Ordering::Relaxed);
            tracing::warn!(address, works = is_well, "an upstream address has changed");
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Default for State {
    fn default() -> Self {
        Self {
            is_down: AtomicBool::new(false),
            in_a_row: AtomicU32::new(0),
            pause_until: AtomicU64::new(0),
            since: Instant::now(),
        }
    }
}

/// Does what has to be done from time to time.
pub(super) async fn tend(upstream: &Arc<Upstream>) {
    let mut files = Watched::new(upstream.connector.paths());
    let mut tick = tokio::time::interval(TEND);
    let mut asked = Instant::now();
    let mut first = true;
    loop {
        tick.tick().await;
        upstream.endpoints.iter().for_each(|endpoint| endpoint.pool.tidy());
        let connector = Arc::clone(&upstream.connector);
        files.reload(move || connector.reload()).await;
        let Some(health) = &upstream.config.health else { continue };
        if first || asked.elapsed() >= health.interval {
            (first, asked) = (false, Instant::now());
            let each = upstream.endpoints.iter().map(|endpoint| ask(upstream, endpoint, health));
            futures_util::future::join_all(each).await;
        }
    }
}

async fn ask(upstream: &Upstream, endpoint: &Endpoint, health: &Health) {
    let answer = tokio::time::timeout(upstream.config.timeouts.connect, is_well(upstream, &endpoint.address, health));
    let is_well = match answer.await {
        Ok(Ok(is_well)) => is_well,
        Ok(Err(_)) | Err(_) => false,
    };
    endpoint.health.asked(is_well, health, &endpoint.address);
}

/// Over a connection of its own: what is asked is whether a new one can be made, too.
async fn is_well(
    upstream: &Upstream,
    address: &str,
    health: &Health,
) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
    let io: TokioIo<Stream> = TokioIo::new(upstream.connector.connect(address).await?);
    let scheme = if upstream.config.tls.is_some() { "https" } else { "http" };
    let request = Request::get(match upstream.config.protocol {
        Protocol::Http1 => health.path.clone(),
        Protocol::Http2 => format!("{scheme}://{address}{}", health.path),
    });
    let request = match upstream.config.protocol {
        Protocol::Http1 => request.header(header::HOST, address),
        Protocol::Http2 => request,
    };
    let request = request.header(header::USER_AGENT, "portcullis-health").body(Empty::<Bytes>::new())?;
    match upstream.config.protocol {
        Protocol::Http1 => {
            let (mut sender, connection) = http1::handshake(io).await?;
            let connection = tokio::spawn(connection);
            let response = sender.send_request(request).await;
            let response = read(response?).await;
            connection.abort();
            response
        }
        Protocol::Http2 => {
            let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await?;
            let connection = tokio::spawn(connection);
            let response = sender.send_request(request).await;
            let response = read(response?).await;
            connection.abort();
            response
        }
    }
}

async fn read(
    response: http::Response<hyper::body::Incoming>,
) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
    let is_success = response.status().is_success();
    http_body_util::Limited::new(response.into_body(), MAX_ANSWER).collect().await?;
    Ok(is_success)
}
