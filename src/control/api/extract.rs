//! What handlers take from a request: who asks, the document, the query, preconditions. Every refusal is a problem.
//!
//! Plane: control. Strict: an unknown field or query parameter is an error that names it, because a condition that is
//! not understood must not be ignored.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;

use super::problem::{Problem, push_token};
use crate::control::audit::Author;
use crate::control::core::Intent;
use crate::control::index::Stored;
use crate::control::principal::Principal;
use crate::object::FieldError;
use crate::wire::Revision;

/// The longest `wait`.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(60);

/// The plain form of `wait`, as documented. Others are understood as well: `1m`, `1500ms`.
pub(super) const WAIT: &str = "^([1-9]|[1-5][0-9]|60)s$";

/// Who asks, in which request. Put there by `front`; a request without one does not reach a handler.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) principal: Principal,
    pub(super) request_id: Arc<str>,
}

/// The id of the request. Put there by `front`, also where anybody may ask.
#[derive(Debug, Clone)]
pub(super) struct RequestId(pub(super) Arc<str>);

/// A JSON document.
#[derive(Debug)]
pub(super) struct Document<T>(pub(super) T);

/// A JSON document, read as two things: what it says, and which of its members it has.
#[derive(Debug)]
pub(super) struct Both<T, U>(pub(super) T, pub(super) U);

/// A JSON document that may be left out when every field of it may.
#[derive(Debug)]
pub(super) struct Optional<T>(pub(super) T);

/// The query.
#[derive(Debug)]
pub(super) struct Params<T>(pub(super) T);

/// The part of the path that names the object, decoded.
#[derive(Debug)]
pub(super) struct Name(pub(super) String);

/// `If-Match` and `If-None-Match`, over entity tags that are revisions.
#[derive(Debug, Default)]
pub(super) struct Precondition {
    matches: Option<String>,
    absent: bool,
}

// === impl Caller ===

impl Caller {
    /// What log, votes and objects call it.
    pub(super) fn name(&self) -> &str {
        &self.principal.name
    }

    /// What is being done, for the log.
    pub(super) fn intent(&self, action: &'static str) -> Intent {
        Intent { author: Author::from(&self.principal), action, request_id: Arc::clone(&self.request_id) }
    }
}

impl<S: Sync> FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        parts.extensions.get::<Self>().cloned().ok_or_else(|| Problem::unauthenticated(false))
    }
}

// === impl Document ===

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Document<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        check_media_type(request.headers())?;
        Ok(Self(parse(&body(request, state).await?)?))
    }
}

impl<T: DeserializeOwned, U: DeserializeOwned, S: Send + Sync> FromRequest<S> for Both<T, U> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        check_media_type(request.headers())?;
        let body = body(request, state).await?;
        Ok(Self(parse(&body)?, parse(&body)?))
    }
}

impl<T: DeserializeOwned + Default, S: Send + Sync> FromRequest<S> for Optional<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, state: &S) -> Result<Self, Problem> {
        let media_type = check_media_type(request.headers());
        let body = body(request, state).await?;
        if body.is_empty() {
            return Ok(Self(T::default()));
        }
        media_type?;
        Ok(Self(parse(&body)?))
    }
}

pub(super) async fn body<S: Send + Sync>(request: Request, state: &S) -> Result<Bytes, Problem> {
    let limit = request.extensions().get::<super::BodyLimit>().map_or(0, |l| l.0);
    Bytes::from_request(request, state).await.map_err(|e| match e.status().as_u16() {
        413 => Problem::too_large(limit),
        _ => Problem::malformed(FieldError::new("", "the body could not be read to its end")),
    })
}

pub(super) fn check_media_type(headers: &HeaderMap) -> Result<(), Problem> {
    let value = headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let essence = value.split(';').next().unwrap_or_default().trim();
    if essence.eq_ignore_ascii_case("application/json") { Ok(()) } else { Err(Problem::media_type()) }
}

/// Parses JSON. What is no JSON is malformed; what is JSON but not a `T` is invalid, and its field is named.
pub(super) fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Problem> {
    let mut de = serde_json::Deserializer::from_slice(body);
    let value = match serde_path_to_error::deserialize(&mut de) {
        Ok(value) => value,
        Err(e) => {
            let (path, place) = (e.path().to_string(), place_of(e.path()));
            let error = e.into_inner();
            let message = error.to_string();
            return Err(if error.is_data() {
                let field = field_of(&path, &message);
                Problem::invalid_at(FieldError::new(field, message.as_str()), with_named(place, &message))
            } else {
                Problem::malformed(FieldError::new("", message))
            });
        }
    };
    de.end().map_err(|e| Problem::malformed(FieldError::new("", e.to_string())))?;
    Ok(value)
}

/// Where in the document an error is, as a JSON pointer.
fn place_of(path: &serde_path_to_error::Path) -> String {
    path.iter().fold(String::new(), |mut pointer, segment| {
        match segment {
            Segment::Seq { index } => push_token(&mut pointer, &index.to_string()),
            Segment::Map { key } => push_token(&mut pointer, key),
            Segment::Enum { variant } => push_token(&mut pointer, variant),
            Segment::Unknown => {}
        }
        pointer
    })
}

/// The pointer to the member that is missing, or should not be there.
fn with_named(mut place: String, message: &str) -> String {
    if let Some(field) = named(message) {
        let mut last = String::new();
        push_token(&mut last, field);
        if !place.ends_with(&last) {
            place.push_str(&last);
        }
    }
    place
}

/// The field that an error names: serde names an unknown or a missing one only in its message.
fn named(message: &str) -> Option<&str> {
    ["unknown field `", "missing field `", "duplicate field `"]
        .iter()
        .find_map(|prefix| message.strip_prefix(prefix))
        .and_then(|rest| rest.split('`').next())
}

/// The field that an error is about.
fn field_of(path: &str, message: &str) -> String {
    let path = if path == "." { "" } else { path };
    match named(message) {
        None => path.to_owned(),
        Some(field) if path.is_empty() => field.to_owned(),
        Some(field) if path == field || path.ends_with(&format!(".{field}")) => path.to_owned(),
        Some(field) => format!("{}.{field}", path.trim_end_matches(".?")),
    }
}

// === impl Params ===

impl<T: DeserializeOwned, S: Send + Sync> FromRequestParts<S> for Params<T> {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Query::<T>::from_request_parts(parts, state).await {
            Ok(Query(value)) => Ok(Self(value)),
            Err(e) => {
                let text = e.body_text();
                let message = text.strip_prefix("Failed to deserialize query string: ").unwrap_or(&text);
                let (path, message) = match message.split_once(": ") {
                    Some((path, rest)) if !path.contains(' ') => (path, rest),
                    _ => ("", message),
                };
                Err(Problem::malformed(FieldError::new(field_of(path, message), message)))
            }
        }
    }
}

/// Parses `wait`: 1 to 60 seconds, as in `5s`.
pub(super) fn wait(text: Option<&str>) -> Result<Option<Duration>, Problem> {
    let Some(text) = text else { return Ok(None) };
    let allowed = Duration::from_secs(1)..=MAX_WAIT;
    match humantime::parse_duration(text) {
        Ok(wait) if allowed.contains(&wait) => Ok(Some(wait)),
        _ => {
            let message = format!("`{text}` is not a duration from `1s` to `60s`");
            Err(Problem::malformed(FieldError::new("wait", message)))
        }
    }
}

// === impl Name ===

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        match Path::<String>::from_request_parts(parts, state).await {
            Ok(Path(name)) => Ok(Self(name)),
            Err(_not_utf8) => Err(Problem::not_found("such path")),
        }
    }
}

// === impl Precondition ===

impl<S: Sync> FromRequestParts<S> for Precondition {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let text = |name: header::HeaderName| match parts.headers.get(&name).map(|v| v.to_str()) {
            None => Ok(None),
            Some(Ok(value)) => Ok(Some(value.trim().to_owned())),
            Some(Err(_)) => Err(Problem::malformed(FieldError::new(name.to_string(), "is not text"))),
        };
        let absent = match text(header::IF_NONE_MATCH)?.as_deref() {
            None => false,
            Some("*") => true,
            Some(_) => return Err(Problem::malformed(FieldError::new("if-none-match", "only `*` is supported"))),
        };
        Ok(Self { matches: text(header::IF_MATCH)?, absent })
    }
}

impl Precondition {
    /// Whether the stored version is the one that the caller means.
    pub(super) fn check(&self, stored: Option<&Stored>) -> Result<(), Problem> {
        let current = stored.map(|s| etag(s.revision));
        if self.absent
            && let Some(tag) = &current
        {
            return Err(Problem::precondition(format!("it exists already, as {tag}")));
        }
        let Some(wanted) = &self.matches else { return Ok(()) };
        match current {
            None => Err(Problem::precondition("it does not exist")),
            Some(_) if wanted == "*" => Ok(()),
            Some(tag) if wanted.split(',').any(|w| w.trim() == tag) => Ok(()),
            Some(tag) => Err(Problem::precondition(format!("it is {tag} now"))),
        }
    }
}

/// The entity tag of a revision.
pub(super) fn etag(revision: Revision) -> String {
    format!("\"{revision}\"")
}
