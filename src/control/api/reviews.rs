//! Reviews: what break-glass leaves behind until somebody else has looked at it.
//!
//! Plane: control. A review is opened in the commit that makes the grant, and only a person other than who asked closes
//! it, with a note. Nothing else ends it: not the end of the grant, not its revocation, not time.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use serde::Deserialize;

use super::Api;
use super::extract::{Caller, Document, Name, Params};
use super::problem::Problem;
use super::respond::{Page, Written, document};
use crate::control::core::Plan;
use crate::control::rules;
use crate::control::store::{Expect, Write};
use crate::object::{Closing, Kind, Object, Review};
use crate::wire::Revision;

/// Query of the list of reviews.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ReviewQuery {
    /// Only those that are `open`, or `closed`.
    state: Option<ReviewState>,
    /// How many at most; 100 unless given.
    #[schemars(range(min = 1, max = 1000))]
    limit: Option<usize>,
    /// The `next` of the page before.
    after: Option<String>,
}

/// Whether a review has been closed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub(super) enum ReviewState {
    /// It has not.
    Open,
    /// It has.
    Closed,
}

/// What somebody found who looked at it.
#[derive(Debug, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct Note {
    /// What they found.
    #[schemars(length(min = 1, max = 4000))]
    note: String,
}

pub(super) async fn list(State(api): State<Arc<Api>>, Params(query): Params<ReviewQuery>) -> Result<Response, Problem> {
    let ReviewQuery { state, limit, after } = query;
    let wanted = |review: &Review| state.is_none_or(|s| (s == ReviewState::Closed) == review.closed.is_some());
    Ok(Page::new(limit, after)?.list(&api, Kind::Review, |s| rules::as_review(s).is_some_and(&wanted)).await)
}

pub(super) async fn show(State(api): State<Arc<Api>>, Name(id): Name) -> Result<Response, Problem> {
    let stored = api.core.index().get(Kind::Review, &id);
    Ok(document(&api, &*stored.ok_or_else(|| Problem::not_found(format_args!("review `{id}`")))?))
}

pub(super) async fn close(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Name(id): Name,
    Document(Note { note }): Document<Note>,
) -> Result<Response, Problem> {
    let (committed, review) = api
        .core
        .transact(&caller.intent("review.close"), |index| {
            let missing = || Problem::not_found(format_args!("review `{id}`"));
            let stored = index.get(Kind::Review, &id).ok_or_else(missing)?;
            let open = rules::as_review(&stored).ok_or_else(missing)?;
            if let Some(closed) = &open.closed {
                return Err(Problem::conflict(format!("`{}` closed this review at {}", closed.by, closed.at)));
            }
            if !caller.principal.is_person() {
                return Err(Problem::forbidden("only a person closes a review"));
            }
            if open.requested_by == caller.name() {
                return Err(Problem::forbidden("nobody reviews what they asked for themselves"));
            }
            let closed = Closing { by: caller.name().to_owned(), at: api.core.clock().now().wall, note: note.clone() };
            let review = Review { closed: Some(closed), ..open.clone() };
            let object = Object::Review(Box::new(review.clone()));
            object.check()?;
            Ok(Plan::new(review).write(Write::put(&object, Expect::Revision(stored.revision))))
        })
        .await?;
    Ok(Written::new(&api, committed, Revision(0), Some(review)).respond(StatusCode::OK))
}
