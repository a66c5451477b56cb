//! What the API answers when it does: written objects with their position and receipt, single objects, lists.
//!
//! Plane: control. A write is answered after its commit is durable and in the index. With `wait`, the receipt says
//! which enforcement points have applied it; a receipt that is not complete is still a success of the write.

use std::time::Duration;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Api;
use super::extract::{self, WAIT, etag};
use super::problem::Problem;
use crate::clock::Timestamp;
use crate::control::fleet::Receipt;
use crate::control::index::Stored;
use crate::control::store::Committed;
use crate::object::{FieldError, Kind};
use crate::wire::{Position, Revision};

/// The header that carries the position of a single object.
const POSITION: &str = "x-portcullis-position";
/// How many objects are looked at between two chances for other tasks.
const STEP: usize = 1024;

/// The answer to a write.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Written{T}")]
pub(super) struct Written<T> {
    /// Where the change is in the log.
    pub(super) position: String,
    /// When it was committed; absent when nothing needed to change.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) committed_at: Option<Timestamp>,
    /// What was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) object: Option<T>,
    /// What else is worth telling.
    #[serde(flatten)]
    pub(super) more: serde_json::Map<String, serde_json::Value>,
    /// Who has applied it, when the caller waited for that.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) receipt: Option<Receipt>,
}

/// Where in the log, and when, a step was taken.
pub(super) type Taken = (Revision, Timestamp);

/// Query of requests that may wait for a receipt.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WaitQuery {
    /// How long to wait for the receipt, `1s` to `60s`; without it there is none.
    #[schemars(regex(pattern = WAIT))]
    wait: Option<String>,
}

/// Query of plain lists.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct PageQuery {
    /// How many at most; 100 unless given.
    #[schemars(range(min = 1, max = 1000))]
    limit: Option<usize>,
    /// The `next` of the page before.
    after: Option<String>,
}

/// A part of a list.
#[derive(Debug)]
pub(super) struct Page {
    limit: usize,
    after: String,
}

/// A part of a list, as answered.
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "ListOf{T}")]
pub(super) struct Listed<T> {
    items: Vec<T>,
    /// What to pass as `after` for what follows; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
    /// Where the log ended when the list was made, `EPOCH.REVISION`.
    position: String,
}

// === impl Written ===

impl<T: Serialize> Written<T> {
    /// The answer to a commit, or to a request that found everything as wanted at `revision`.
    pub(super) fn new(api: &Api, committed: Option<Committed>, unchanged: Revision, object: Option<T>) -> Self {
        let epoch = api.core.index().position().epoch;
        let position = committed.map_or(Position { epoch, revision: unchanged }, |c| c.position);
        Self {
            position: position.to_string(),
            committed_at: committed.map(|c| c.at),
            object,
            more: serde_json::Map::new(),
            receipt: None,
        }
    }

    /// The answer to a step that may have been taken before, then: who lost the first answer gets the same receipt by
    /// asking again.
    pub(super) async fn step(
        api: &Api,
        committed: Option<Committed>,
        before: Taken,
        object: Option<T>,
        wait: Option<Duration>,
    ) -> Self {
        let (revision, at) = before;
        let epoch = api.core.index().position().epoch;
        let (position, at) = committed.map_or((Position { epoch, revision }, at), |c| (c.position, c.at));
        Self::new(api, committed, revision, object).wait(api, position, at, wait).await
    }

    /// With one more member.
    pub(super) fn with(mut self, name: &str, value: impl Serialize) -> Self {
        self.more.insert(name.to_owned(), serde_json::to_value(value).unwrap_or_default());
        self
    }

    /// Waits for the receipt, when that was asked for.
    pub(super) async fn wait(
        mut self,
        api: &Api,
        position: Position,
        committed_at: Timestamp,
        wait: Option<Duration>,
    ) -> Self {
        if let Some(wait) = wait {
            self.receipt = Some(api.fleet.receipt(position, committed_at, wait).await);
        }
        self
    }

    pub(super) fn respond(&self, status: StatusCode) -> Response {
        json(status, self)
    }
}

impl WaitQuery {
    pub(super) fn duration(&self) -> Result<Option<Duration>, Problem> {
        extract::wait(self.wait.as_deref())
    }
}

// === impl Page ===

impl Page {
    const DEFAULT: usize = 100;
    const MAX: usize = 1000;

    pub(super) fn new(limit: Option<usize>, after: Option<String>) -> Result<Self, Problem> {
        let limit = limit.unwrap_or(Self::DEFAULT);
        if !(1..=Self::MAX).contains(&limit) {
            return Err(Problem::malformed(FieldError::new("limit", "must be between 1 and 1000")));
        }
        Ok(Self { limit, after: after.unwrap_or_default() })
    }

    /// The objects of `kind` on this page that are `wanted`.
    pub(super) async fn list(self, api: &Api, kind: Kind, wanted: impl Fn(&Stored) -> bool + Send) -> Response {
        let index = api.core.index();
        let position = index.position().to_string();
        let (mut items, mut last, mut cursor) = (Vec::<Box<RawValue>>::new(), String::new(), self.after);
        loop {
            let step = index.page(kind, &cursor, STEP);
            let done = step.len() < STEP;
            for stored in &step {
                if !wanted(stored) {
                    continue;
                }
                if items.len() == self.limit {
                    return json(StatusCode::OK, &Listed { items, next: Some(last), position });
                }
                if let Ok(document) = serde_json::from_slice(&stored.body) {
                    items.push(document);
                    stored.key.as_ref().clone_into(&mut last);
                }
            }
            match step.last() {
                Some(stored) if !done => stored.key.as_ref().clone_into(&mut cursor),
                _ => return json(StatusCode::OK, &Listed { items, next: None, position }),
            }
            tokio::task::yield_now().await;
        }
    }
}

impl Page {
    /// The part of `all` that is on this page, by `key`. For lists that are short, and are not of the log.
    pub(super) fn of<T: Serialize>(self, api: &Api, all: Vec<T>, key: impl Fn(&T) -> String) -> Response {
        let mut keyed: Vec<(String, T)> = all.into_iter().map(|item| (key(&item), item)).collect();
        keyed.sort_by(|(a, _), (b, _)| a.cmp(b));
        keyed.retain(|(key, _)| *key > self.after);
        let more = keyed.len() > self.limit;
        keyed.truncate(self.limit);
        let next = keyed.last().filter(|_| more).map(|(key, _)| key.clone());
        let items = keyed.into_iter().map(|(_, item)| item).collect();
        json(StatusCode::OK, &Listed { items, next, position: api.core.index().position().to_string() })
    }
}

impl TryFrom<PageQuery> for Page {
    type Error = Problem;

    fn try_from(query: PageQuery) -> Result<Self, Problem> {
        Self::new(query.limit, query.after)
    }
}

/// One object: the document itself, its revision as the entity tag.
pub(super) fn document(api: &Api, stored: &Stored) -> Response {
    let mut response = (StatusCode::OK, stored.body.clone()).into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    tagged(api, stored, response)
}

/// The same, shown in another way than it is stored.
pub(super) fn document_of(api: &Api, stored: &Stored, shown: &impl Serialize) -> Response {
    tagged(api, stored, json(StatusCode::OK, shown))
}

fn tagged(api: &Api, stored: &Stored, mut response: Response) -> Response {
    let position = Position { epoch: api.core.index().position().epoch, revision: stored.revision };
    let headers = response.headers_mut();
    insert(headers, header::ETAG, &etag(stored.revision));
    insert(headers, header::HeaderName::from_static(POSITION), &position.to_string());
    response
}

/// Any JSON answer.
pub(super) fn json(status: StatusCode, body: &impl Serialize) -> Response {
    match serde_json::to_vec(body) {
        Ok(bytes) => {
            let mut response = (status, bytes).into_response();
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
            response
        }
        Err(error) => {
            tracing::error!(%error, "an answer could not be written");
            Problem::internal().into_response()
        }
    }
}

/// Sets a header whose value is made of visible ASCII.
pub(super) fn insert(headers: &mut axum::http::HeaderMap, name: header::HeaderName, value: &str) {
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}
