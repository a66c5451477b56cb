//! Waiting until something has become of a grant: a long poll, or server-sent events.
//!
//! Plane: control. Reads only, from the index and its log. Bounded in number and in time, and ended when the control
//! plane shuts down. Whoever waits is looked at again before anything is told, whenever something was committed, and every
//! few seconds: with the caller's credential, or its permission, the waiting ends. INVARIANT: a long poll answers with a state that it has seen, and a stream tells every state that
//! the log still holds, each once and in order; with `Last-Event-ID` it goes on where another one ended.

use std::collections::VecDeque;
use std::fmt::Write as _;
use std::sync::Arc;
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Deserialize;
use tokio::sync::{OwnedSemaphorePermit, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::Api;
use super::extract;
use super::grants::{one, shown};
use super::problem::Problem;
use crate::control::callers::Standing;
use crate::control::index::Stored;
use crate::control::operator_policy::Subject;
use crate::control::principal::Principal;
use crate::control::rules;
use crate::object::{Grant, GrantState, Kind};
use crate::wire::{Position, Revision};

/// How long a stream lasts at most; whoever wants more comes back with `Last-Event-ID`.
const LONGEST: Duration = Duration::from_secs(600);
/// How often a stream says that it is still there.
const HEARTBEAT: Duration = Duration::from_secs(15);
/// How often it is looked whether the caller still is who it was, and still may.
const LOOK: Duration = Duration::from_secs(2);
/// The least time between two looks: a busy log must not keep everybody who waits busy as well.
const PAUSE: Duration = Duration::from_millis(20);
/// How many commits are looked through at once.
const STEP: usize = 1024;

/// Query of one grant.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WatchQuery {
    /// How long to wait, `1s` to `60s`; without it the answer comes at once, and a stream lasts ten minutes.
    #[schemars(regex(pattern = extract::WAIT))]
    wait: Option<String>,
    /// What to wait for; `decided` unless given.
    until: Option<Until>,
}

/// What to wait for.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum Until {
    /// The request is not pending any more.
    #[default]
    Decided,
    /// The grant is in force, or will never be.
    Active,
    /// The grant is over, or will never be in force.
    Ended,
}

/// What a request says of how it wants to be told, and how long it can be.
#[derive(Debug)]
pub(super) struct Manner {
    events: bool,
    /// The event that the caller saw last.
    seen: Option<Position>,
    shutdown: CancellationToken,
    entered: Entered,
}

/// In the extensions of a request that is served: ends when the server is to stop.
#[derive(Debug, Clone)]
pub(super) struct Shutdown(pub(super) CancellationToken);

/// In the extensions of a request for an operation: who was let in, by what, to do what.
#[derive(Debug, Clone)]
pub(super) struct Entered {
    pub(super) principal: Principal,
    pub(super) standing: Standing,
    pub(super) action: &'static str,
    pub(super) subject: Subject,
}

/// A caller who waits, looked at again and again.
struct Watcher {
    entered: Entered,
    operators: watch::Receiver<u64>,
    next: Instant,
}

/// A stream of the states of one grant.
struct Events {
    api: Arc<Api>,
    watcher: Watcher,
    key: String,
    until: Until,
    /// The log has been read up to here.
    read: Revision,
    /// The state that was told last.
    told: Revision,
    frames: VecDeque<Bytes>,
    over: bool,
    tip: watch::Receiver<Revision>,
    deadline: Instant,
    heartbeat: Instant,
    shutdown: CancellationToken,
    _place: OwnedSemaphorePermit,
}

/// Answers with the grant: at once, when what is waited for has come, or as a stream.
pub(super) async fn show(api: Arc<Api>, id: &str, query: WatchQuery, manner: Manner) -> Result<Response, Problem> {
    let wait = extract::wait(query.wait.as_deref())?;
    let until = query.until.unwrap_or_default();
    if manner.events {
        return stream(api, id, until, wait.unwrap_or(LONGEST), manner);
    }
    let mut tip = api.core.index().subscribe();
    let stored = one(api.core.index(), id)?;
    let Some(wait) = wait.filter(|_| !until.is_met(&stored)) else {
        return Ok(shown(&api, &stored));
    };
    let _place = place(&api)?;
    let deadline = Instant::now() + wait;
    let mut watcher = Watcher::new(&api, manner.entered);
    loop {
        let woken = tokio::select! {
            changed = tip.changed() => changed.is_ok(),
            () = watcher.due() => true,
            () = tokio::time::sleep_until(deadline) => false,
            () = manner.shutdown.cancelled() => false,
        };
        watcher.look(&api).await?;
        let stored = one(api.core.index(), id)?;
        if !woken || until.is_met(&stored) {
            return Ok(shown(&api, &stored));
        }
        tokio::time::sleep_until(deadline.min(Instant::now() + PAUSE)).await;
    }
}

fn place(api: &Api) -> Result<OwnedSemaphorePermit, Problem> {
    let full = |_| Problem::unavailable("too many are waiting already");
    Arc::clone(&api.watchers).try_acquire_owned().map_err(full)
}

fn stream(api: Arc<Api>, id: &str, until: Until, wait: Duration, manner: Manner) -> Result<Response, Problem> {
    let place = place(&api)?;
    let index = Arc::clone(api.core.index());
    let tip = index.subscribe();
    // The log is read from before the look: what is committed in between is found there.
    let position = index.position();
    let stored = one(&index, id)?;
    let seen = manner.seen.filter(|seen| seen.epoch == position.epoch && seen.revision <= position.revision);
    let (read, told) = match seen {
        Some(seen) if seen.revision >= stored.revision && until.is_met(&stored) => {
            // There is nothing more to come, and this is how a client that comes back by itself is told.
            return Ok(StatusCode::NO_CONTENT.into_response());
        }
        Some(seen) => (seen.revision, seen.revision),
        None => (position.revision, Revision(0)),
    };
    let now = Instant::now();
    let mut events = Events {
        key: stored.key.to_string(),
        until,
        read,
        told,
        frames: VecDeque::from([Bytes::from_static(b"retry: 1000\n\n")]),
        over: false,
        tip,
        deadline: now + wait,
        heartbeat: now + HEARTBEAT,
        shutdown: manner.shutdown,
        watcher: Watcher::new(&api, manner.entered),
        _place: place,
        api,
    };
    if seen.is_none() {
        events.tell(&stored);
    }
    let frames = futures_util::stream::unfold(events, |mut events| async {
        let frame = events.next().await?;
        Some((Ok::<_, std::convert::Infallible>(frame), events))
    });
    let mut response = Body::from_stream(frames).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    Ok(response)
}

// === impl Until ===

impl Until {
    fn is_met(self, stored: &Stored) -> bool {
        rules::as_grant(stored).is_none_or(|grant| self.holds(grant))
    }

    fn holds(self, grant: &Grant) -> bool {
        match self {
            Self::Decided => grant.state != GrantState::Pending,
            Self::Active => !matches!(grant.state, GrantState::Pending | GrantState::Scheduled),
            Self::Ended => grant.state.is_terminal(),
        }
    }
}

// === impl Manner ===

impl<S: Sync> FromRequestParts<S> for Manner {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let shutdown = parts.extensions.get::<Shutdown>().map_or_else(CancellationToken::new, |s| s.0.clone());
        let seen = parts.headers.get("last-event-id").and_then(|v| v.to_str().ok()?.parse().ok());
        let entered = parts.extensions.get::<Entered>().cloned().ok_or_else(|| Problem::unauthenticated(false))?;
        Ok(Self { events: wants_events(&parts.headers), seen, shutdown, entered })
    }
}

/// Whether the first media type that is accepted is that of events.
fn wants_events(headers: &HeaderMap) -> bool {
    let accept = headers.get(header::ACCEPT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let first = accept.split([',', ';']).next().unwrap_or_default();
    first.trim().eq_ignore_ascii_case("text/event-stream")
}

// === impl Watcher ===

impl Watcher {
    fn new(api: &Api, entered: Entered) -> Self {
        Self { entered, operators: api.callers.operators_changed(), next: Instant::now() + LOOK }
    }

    /// Waits until it is to be looked whether the caller may go on.
    async fn due(&mut self) {
        let next = self.next;
        tokio::select! {
            changed = self.operators.changed() => if changed.is_err() { tokio::time::sleep_until(next).await },
            () = tokio::time::sleep_until(next) => {}
        }
    }

    /// Whether the caller may go on.
    async fn look(&mut self, api: &Api) -> Result<(), Problem> {
        self.next = Instant::now() + LOOK;
        let Entered { principal, standing, action, subject } = &self.entered;
        api.callers.stands(principal, standing).map_err(|why| {
            tracing::debug!(author = %principal.name, why, "a caller who waits is nobody any more");
            Problem::unauthenticated(true)
        })?;
        Ok(api.policies.check(principal, action, subject).await?)
    }
}

// === impl Events ===

impl Events {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            // INVARIANT: nothing is told to who may not be told any more, also of what was found before.
            if !self.frames.is_empty() && self.watcher.look(&self.api).await.is_err() {
                return None;
            }
            if let Some(frame) = self.frames.pop_front() {
                return Some(frame);
            }
            if self.over {
                return None;
            }
            self.tip.mark_unchanged();
            if self.read_log() {
                // What was committed may be about the caller.
                self.over |= self.watcher.look(&self.api).await.is_err();
                continue;
            }
            tokio::select! {
                () = self.watcher.due() => self.over = self.watcher.look(&self.api).await.is_err(),
                changed = self.tip.changed() => match changed {
                    Ok(()) => tokio::time::sleep_until(self.deadline.min(Instant::now() + PAUSE)).await,
                    Err(_closed) => self.over = true,
                },
                () = tokio::time::sleep_until(self.heartbeat) => {
                    self.heartbeat = Instant::now() + HEARTBEAT;
                    self.frames.push_back(Bytes::from_static(b": still waiting\n\n"));
                }
                () = tokio::time::sleep_until(self.deadline) => self.over = true,
                () = self.shutdown.cancelled() => self.over = true,
            }
        }
    }

    /// Reads on in the log; answers whether there was anything to read.
    fn read_log(&mut self) -> bool {
        let index = Arc::clone(self.api.core.index());
        let Some(commits) = index.since(self.read, STEP) else {
            // The log begins later by now: what is left to tell is the state that the grant is in.
            self.read = index.position().revision;
            match index.get(Kind::Grant, &self.key) {
                Some(stored) => self.tell(&stored),
                None => self.over = true,
            }
            return true;
        };
        for logged in &commits {
            self.read = logged.commit.revision;
            let of_grant = |s: &&Arc<Stored>| s.kind == Kind::Grant && *s.key == *self.key;
            if let Some(stored) = logged.commit.changes.iter().find(of_grant) {
                self.tell(stored);
            }
            if self.over {
                break;
            }
        }
        !commits.is_empty()
    }

    fn tell(&mut self, stored: &Stored) {
        let Some(grant) = rules::as_grant(stored) else {
            self.over = true;
            return;
        };
        if stored.revision <= self.told {
            return;
        }
        self.told = stored.revision;
        self.over = self.until.holds(grant);
        let position = Position { epoch: self.api.core.index().position().epoch, revision: stored.revision };
        // A JSON document in one line: line ends in its strings are escaped.
        let document = serde_json::to_string(grant).unwrap_or_default();
        let mut frame = String::with_capacity(document.len() + 96);
        let _ = write!(frame, "id: {position}\nevent: state\ndata: {document}\n\n");
        self.frames.push_back(Bytes::from(frame));
    }
}
