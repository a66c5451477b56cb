//! `Idempotency-Key`: a request that makes something, sent again, makes it once and gets the same answer.
//!
//! Plane: control. INVARIANT: the record of a key is committed in one unit with what was made, so there is never one
//! without the other, and of two requests with one key at the same time one finds the other's record. A key belongs to
//! its caller, and to one path and body: with another it is refused. Only what succeeded is recorded.

use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use axum::extract::{FromRequest, Request};
use axum::http::{StatusCode, header};
use axum::response::Response;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::Api;
use super::extract::{self, Caller};
use super::problem::Problem;
use super::respond::{Written, insert};
use crate::clock::Timestamp;
use crate::control::core::{Intent, Plan};
use crate::control::index::{Index, Stored};
use crate::control::key_book::Full;
use crate::control::store::{Committed, Expect, Write};
use crate::object::{FieldError, Idempotency, Kind, Object};
use crate::wire::{Position, Revision};

/// The header.
pub(super) const KEY: &str = "idempotency-key";
/// On an answer that was given before.
const REPLAYED: header::HeaderName = header::HeaderName::from_static("idempotency-replayed");

/// A JSON document, and the key that it came with, if any.
#[derive(Debug)]
pub(super) struct Keyed<T>(pub(super) Key, pub(super) T);

/// An idempotency key in use, if there is one.
#[derive(Debug)]
pub(super) struct Key(Option<Use>);

#[derive(Debug)]
struct Use {
    /// Who uses it.
    caller: Arc<str>,
    /// Digest of who uses which key.
    key: String,
    /// Digest of what is asked with it.
    body: String,
}

/// What a request has made, or found.
#[derive(Debug)]
pub(super) struct Made<T> {
    pub(super) status: StatusCode,
    /// Where it is.
    pub(super) location: String,
    pub(super) object: T,
    /// What else is worth telling.
    pub(super) more: Map<String, Value>,
    /// The revision that has it, when it was there already.
    pub(super) found: Option<Revision>,
}

/// The answer to such a request, now or before.
#[derive(Debug)]
pub(super) struct Answer {
    status: StatusCode,
    location: String,
    position: Position,
    /// When, while that is known.
    at: Option<Timestamp>,
    object: Option<Box<RawValue>>,
    more: Map<String, Value>,
    replayed: bool,
}

/// The parts of an answer that are recorded.
#[derive(Debug, Serialize, serde::Deserialize)]
struct Recorded {
    status: u16,
    location: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    found: Option<Revision>,
    object: Box<RawValue>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    more: Map<String, Value>,
}

// === impl Keyed ===

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Keyed<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        extract::check_media_type(request.headers())?;
        let given = given(&request)?;
        let path = request.uri().path().to_owned();
        let body = extract::body(request, state).await?;
        let document = extract::parse(&body)?;
        let used = given.map(|(caller, key)| {
            let asked = digest(&[path.as_bytes(), &canonical(&body)]);
            Use { key: digest(&[caller.as_bytes(), key.as_bytes()]), caller, body: asked }
        });
        Ok(Self(Key(used), document))
    }
}

/// A document without what does not matter: spaces, and the order of members.
fn canonical(body: &[u8]) -> Vec<u8> {
    let Ok(mut value) = serde_json::from_slice::<Value>(body) else { return body.to_vec() };
    value.sort_all_objects();
    value.to_string().into_bytes()
}

/// Who uses which key.
fn given(request: &Request) -> Result<Option<(Arc<str>, String)>, Problem> {
    let mut values = request.headers().get_all(KEY).iter();
    let Some(value) = values.next() else { return Ok(None) };
    let refused = |message: &str| Problem::malformed(FieldError::new(KEY, message));
    if values.next().is_some() {
        return Err(refused("is given twice"));
    }
    let text = value.to_str().unwrap_or_default();
    if text.is_empty() || text.len() > 255 || !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(refused("must be 1 to 255 characters of visible ASCII, best a new UUID"));
    }
    let caller = request.extensions().get::<Caller>().ok_or_else(|| Problem::unauthenticated(false))?;
    Ok(Some((Arc::clone(&caller.principal.name), text.to_owned())))
}

/// Lower-case hex SHA-256 over parts, each with its length, so that no two lists of them are one text.
fn digest(parts: &[&[u8]]) -> String {
    use std::fmt::Write as _;
    let mut context = Context::new(&SHA256);
    for part in parts {
        context.update(&(part.len() as u64).to_be_bytes());
        context.update(part);
    }
    context.finish().as_ref().iter().fold(String::with_capacity(64), |mut hex, b| {
        let _ = write!(hex, "{b:02x}");
        hex
    })
}

// === impl Key ===

impl Key {
    /// Makes what `plan` says, or answers what was answered when this key was used before. A plan that finds what is asked
    /// there already has nothing to write, and says where it was found.
    pub(super) async fn make<T: Serialize + Send>(
        &self,
        api: &Api,
        intent: &Intent,
        mut plan: impl FnMut(&Index) -> Result<Plan<Made<T>>, Problem> + Send,
    ) -> Result<Answer, Problem> {
        let planned = api.core.transact(intent, |index| {
            if let Some(answer) = self.before(index)? {
                return Ok(Plan::new(Ok(answer)));
            }
            let Plan { guards, mut changes, answer } = plan(index)?;
            let recorded = answer.record()?;
            // What made nothing needs no key: sent again it makes nothing either, or what then is not there any more.
            if let (Some(used), None) = (&self.0, recorded.found) {
                let at = api.core.clock().now().wall;
                api.core.check_keys(&used.caller).map_err(|full| match full {
                    Full::All => Problem::unavailable("too many idempotency keys are held"),
                    Full::OfCaller(until) => Problem::too_many_keys(&used.caller, until.since(at)),
                })?;
                let text = serde_json::to_string(&recorded).unwrap_or_default();
                let caller = Some(used.caller.to_string());
                let record = Idempotency { key: used.key.clone(), body: used.body.clone(), answer: text, at, caller };
                changes.push(Write::put(&Object::Idempotency(record), Expect::Absent));
            }
            Ok::<_, Problem>(Plan { guards, changes, answer: Err(recorded) })
        });
        match planned.await? {
            (_, Ok(before)) => Ok(before),
            (committed, Err(recorded)) => {
                let epoch = api.core.index().position().epoch;
                let found = recorded.found.unwrap_or_default();
                let Committed { position, at } = committed
                    .unwrap_or(Committed { position: Position { epoch, revision: found }, at: Timestamp::default() });
                Ok(recorded.answer(position, committed.is_some().then_some(at), false))
            }
        }
    }

    /// What was answered before.
    fn before(&self, index: &Index) -> Result<Option<Answer>, Problem> {
        let Some(used) = &self.0 else { return Ok(None) };
        let Some(stored) = index.get(Kind::Idempotency, &used.key) else { return Ok(None) };
        let Stored { object: Some(Object::Idempotency(record)), revision, .. } = &*stored else { return Ok(None) };
        if record.body != used.body {
            return Err(Problem::key_taken());
        }
        let recorded: Recorded = serde_json::from_str(&record.answer).map_err(|error| {
            tracing::error!(%error, "the record of an idempotency key cannot be read");
            Problem::internal()
        })?;
        let position = Position { epoch: index.position().epoch, revision: *revision };
        // What has left the log was committed about when the key was used.
        let at = index.committed_at(*revision).unwrap_or(record.at);
        Ok(Some(recorded.answer(position, Some(at), true)))
    }
}

// === impl Made ===

impl<T: Serialize> Made<T> {
    /// Made just now.
    pub(super) fn created(location: String, object: T) -> Self {
        Self { status: StatusCode::CREATED, location, object, more: Map::new(), found: None }
    }

    /// There already, at this revision.
    pub(super) fn found(location: String, object: T, revision: Revision) -> Self {
        let more = Map::from_iter([("reused".to_owned(), Value::Bool(true))]);
        Self { status: StatusCode::OK, location, object, more, found: Some(revision) }
    }

    fn record(&self) -> Result<Recorded, Problem> {
        let object = serde_json::value::to_raw_value(&self.object).map_err(|error| {
            tracing::error!(%error, "an answer could not be written");
            Problem::internal()
        })?;
        let (status, location) = (self.status.as_u16(), self.location.clone());
        Ok(Recorded { status, location, found: self.found, object, more: self.more.clone() })
    }
}

// === impl Recorded ===

impl Recorded {
    fn answer(self, position: Position, at: Option<Timestamp>, replayed: bool) -> Answer {
        let Self { status, location, found, object, more } = self;
        Answer {
            status: StatusCode::from_u16(status).unwrap_or(StatusCode::OK),
            location,
            // What was found is older than the record of its finding.
            position: found.map_or(position, |revision| Position { epoch: position.epoch, revision }),
            at: at.filter(|_| found.is_none()),
            object: Some(object),
            more,
            replayed,
        }
    }
}

// === impl Answer ===

impl Answer {
    /// Answers, with a receipt if the caller waits for one.
    pub(super) async fn respond(self, api: &Api, wait: Option<std::time::Duration>) -> Response {
        let Self { status, location, position, at, object, more, replayed } = self;
        let written = Written { position: position.to_string(), committed_at: at, object, more, receipt: None };
        let at = at.unwrap_or_else(|| api.core.clock().now().wall);
        let mut response = written.wait(api, position, at, wait).await.respond(status);
        insert(response.headers_mut(), header::LOCATION, &location);
        if replayed {
            insert(response.headers_mut(), REPLAYED, "true");
        }
        response
    }
}
