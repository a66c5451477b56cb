//! Workloads: registering and editing them.
//!
//! Plane: control. The id is for ever: it cannot change, and once retired it is never registered again. Everything else
//! of the document can be replaced, except whether it is suspended: see `lifecycle`.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Deserialize;

use super::extract::{Caller, Document, Name, Params, Precondition};
use super::problem::Problem;
use super::respond::{Page, document};
use super::{Api, named};
use crate::control::index::Stored;
use crate::control::rules;
use crate::control::store::Guard;
use crate::object::{FieldError, Kind, Object, Workload, WorkloadKind};

/// Query of the list.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WorkloadQuery {
    /// Only those that this team or person answers for.
    owner: Option<String>,
    /// Only those of this environment.
    environment: Option<String>,
    /// Only those of this kind.
    kind: Option<WorkloadKind>,
    /// Only those that are suspended, or that are not.
    suspended: Option<bool>,
    /// How many at most; 100 unless given.
    #[schemars(range(min = 1, max = 1000))]
    limit: Option<usize>,
    /// The `next` of the page before.
    after: Option<String>,
}

pub(super) async fn list(
    State(api): State<Arc<Api>>,
    Params(query): Params<WorkloadQuery>,
) -> Result<Response, Problem> {
    let WorkloadQuery { owner, environment, kind, suspended, limit, after } = query;
    let wanted = |stored: &Stored| {
        rules::as_workload(stored).is_some_and(|w| {
            owner.as_ref().is_none_or(|owner| w.owner == *owner)
                && environment.as_ref().is_none_or(|environment| w.environment == *environment)
                && kind.is_none_or(|kind| w.kind == kind)
                && suspended.is_none_or(|suspended| w.suspended.is_some() == suspended)
        })
    };
    Ok(Page::new(limit, after)?.list(&api, Kind::Workload, wanted).await)
}

pub(super) async fn show(State(api): State<Arc<Api>>, Name(id): Name) -> Result<Response, Problem> {
    let stored = api.core.index().get(Kind::Workload, &id);
    Ok(document(&api, &*stored.ok_or_else(|| Problem::not_found(format_args!("workload `{id}`")))?))
}

pub(super) async fn put(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Name(id): Name,
    precondition: Precondition,
    Document(workload): Document<Workload>,
) -> Result<Response, Problem> {
    named::same_name("id", &id, workload.id.as_str())?;
    Object::Workload(workload.clone()).check()?;
    named::put_made(&api, &caller, "workload.put", &precondition, (Kind::Workload, &id), |index, stored| {
        if rules::is_retired(index, &id) {
            let message = format!("`{id}` has been retired; ids of workloads are not used again");
            return Err(Problem::conflict(message));
        }
        let since = index.position().revision;
        rules::mappings(index, &workload)?;
        let by_issuers = !workload.credentials.is_empty();
        let by_issuers = by_issuers.then_some(Guard::KindUnchanged { kind: Kind::Issuer, since });
        // Somebody may register and retire this very id meanwhile.
        let is_new = stored.is_none().then_some(Guard::KindUnchanged { kind: Kind::Revocation, since });
        let guards = by_issuers.into_iter().chain(is_new).collect();
        Ok((Object::Workload(keeping_suspension(&workload, stored)?), guards))
    })
    .await
}

/// What a document makes of the registered workload. INVARIANT: replacing it neither suspends nor resumes.
fn keeping_suspension(document: &Workload, stored: Option<&Stored>) -> Result<Workload, FieldError> {
    let suspended = stored.and_then(rules::as_workload).and_then(|known| known.suspended.clone());
    if document.suspended.is_some() && document.suspended != suspended {
        let message = "is set by suspending the workload and taken away by resuming it, not by replacing it";
        return Err(FieldError::new("suspended", message));
    }
    Ok(Workload { suspended, ..document.clone() })
}
