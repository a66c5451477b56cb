//! The audit trail: its records, as they were written, page by page, and how far it has come.
//!
//! Plane: control. Reads only; a record is passed on as the bytes that were hashed, so that who receives it can verify
//! the chain. A page looks at a bounded number of records, so a filter that matches few may answer none and a `next`.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::Api;
use super::extract::Params;
use super::problem::Problem;
use super::respond;
use crate::clock::Timestamp;
use crate::control::audit::{Hash, Outcome, Record};
use crate::control::store::AuditRow;
use crate::object::FieldError;
use crate::wire::Epoch;

/// How many records are read at once, and how many for one page.
const STEP: usize = 1000;
const MOST: usize = 20_000;

/// Which records.
#[derive(Debug, Default, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct AuditQuery {
    /// How many at most; 100 unless given.
    #[schemars(range(min = 1, max = 1000))]
    limit: Option<usize>,
    /// The `next` of the page before: a record's number.
    after: Option<u64>,
    /// Which records come first.
    #[serde(default)]
    order: Order,
    /// Who did it.
    author: Option<String>,
    /// An action, as in `grant.approve`, or a family of them, as in `grant`.
    action: Option<String>,
    /// What became of it.
    outcome: Option<Outcome>,
    /// What was written or, of a refusal, asked for: an object, as in `grant/ID`, or the beginning of one.
    object: Option<String>,
    /// In which request.
    request_id: Option<String>,
    /// Not before this time.
    since: Option<Timestamp>,
    /// Not after this time.
    until: Option<Timestamp>,
}

/// Which records come first.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize, JsonSchema)]
#[schemars(rename = "AuditOrder")]
#[serde(rename_all = "snake_case")]
enum Order {
    /// The oldest.
    #[default]
    Oldest,
    /// The newest.
    Newest,
}

/// A page of records.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct AuditRecords {
    /// Records with their hashes, each as it was written.
    #[schemars(with = "Vec<Record>")]
    items: Vec<Box<RawValue>>,
    /// What to pass as `after` for what follows; absent at the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    next: Option<String>,
}

/// How far the audit trail has come.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Checkpoint {
    /// `HASH:SEQ`, as `audit verify --expect` takes it.
    checkpoint: String,
    /// Number of the last record; zero for none.
    seq: u64,
    /// Its hash.
    hash: Hash,
    /// Of the store: the first record follows its hash.
    epoch: Epoch,
    time: Timestamp,
}

pub(super) async fn list(State(api): State<Arc<Api>>, Params(query): Params<AuditQuery>) -> Result<Response, Problem> {
    let limit = query.limit.unwrap_or(100);
    if !(1..=1000).contains(&limit) {
        return Err(Problem::malformed(FieldError::new("limit", "must be between 1 and 1000")));
    }
    let (mut items, mut looked, mut after) = (Vec::new(), 0, query.after);
    loop {
        let rows = query.read(&api, after).await?;
        let done = rows.len() < STEP;
        for AuditRow { seq, sealed } in rows {
            looked += 1;
            after = Some(seq);
            if serde_json::from_str(&sealed.text).is_ok_and(|record: Record| query.wants(&record))
                && let Ok(line) = RawValue::from_string(sealed.line())
            {
                items.push(line);
            }
            if items.len() == limit {
                return Ok(page(items, after));
            }
        }
        if done || looked >= MOST {
            return Ok(page(items, after.filter(|_| !done)));
        }
    }
}

fn page(items: Vec<Box<RawValue>>, next: Option<u64>) -> Response {
    respond::json(StatusCode::OK, &AuditRecords { items, next: next.map(|seq| seq.to_string()) })
}

pub(super) async fn checkpoint(State(api): State<Arc<Api>>) -> Result<Response, Problem> {
    let tip = api.core.store().audit_tip().await?;
    let body = Checkpoint {
        checkpoint: tip.to_string(),
        seq: tip.seq,
        hash: tip.hash,
        epoch: api.core.index().position().epoch,
        time: api.core.clock().now().wall,
    };
    Ok(respond::json(StatusCode::OK, &body))
}

// === impl AuditQuery ===

impl AuditQuery {
    async fn read(&self, api: &Api, after: Option<u64>) -> Result<Vec<AuditRow>, Problem> {
        let store = api.core.store();
        Ok(match self.order {
            Order::Oldest => store.audit_since(after.unwrap_or(0), STEP).await?,
            Order::Newest => store.audit_before(after.unwrap_or(u64::MAX), STEP).await?,
        })
    }

    fn wants(&self, record: &Record) -> bool {
        let is = |wanted: &Option<String>, have: &str| wanted.as_ref().is_none_or(|w| w == have);
        let of_action = |wanted: &String| {
            record.action.strip_prefix(wanted.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        let of_object = |wanted: &String| {
            let changed = |c: &crate::control::audit::Changed| format!("{}/{}", c.kind, c.key).starts_with(wanted);
            record.object.starts_with(wanted) || record.changes.iter().any(changed)
        };
        is(&self.author, &record.author)
            && is(&self.request_id, &record.request_id)
            && self.action.as_ref().is_none_or(of_action)
            && self.object.as_ref().is_none_or(of_object)
            && self.outcome.is_none_or(|wanted| wanted == record.outcome)
            && self.since.is_none_or(|since| record.at >= since)
            && self.until.is_none_or(|until| record.at <= until)
    }
}
