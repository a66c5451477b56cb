//! Revocations: ending a token, a workload's tokens, a workload, an issuer, a key or a grant.
//!
//! Plane: control. Append-only: there is no way to delete one here, and lifting one leaves a record (`lifts`). A target
//! that nothing matches is refused, because a misspelt revocation would be a false comfort.

use std::sync::Arc;

use axum::extract::State;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Deserialize;
use uuid::Uuid;

use super::Api;
use super::extract::{Caller, Name, Params};
use super::grants;
use super::idempotency::{Keyed, Made};
use super::problem::Problem;
use super::respond::{Page, PageQuery, WaitQuery, document};
use crate::authz::MAX_CLOCK_SKEW;
use crate::clock::Timestamp;
use crate::control::core::Plan;
use crate::control::index::Index;
use crate::control::rules;
use crate::control::store::{Expect, Guard, Write};
use crate::credential::certificate_serial;
use crate::object::{FieldError, IssuerKind, Kind, Object, Revocation, Target};
use crate::wire::Revision;

/// What to end.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewRevocation {
    target: Target,
    /// For the record.
    #[serde(default)]
    #[schemars(length(max = 1000))]
    reason: String,
}

pub(super) async fn list(State(api): State<Arc<Api>>, Params(query): Params<PageQuery>) -> Result<Response, Problem> {
    Ok(Page::try_from(query)?.list(&api, Kind::Revocation, |_| true).await)
}

pub(super) async fn show(State(api): State<Arc<Api>>, Name(id): Name) -> Result<Response, Problem> {
    let index = api.core.index();
    let missing = || match index.get(Kind::Lift, &id) {
        Some(_) => Problem::not_found(format_args!("revocation `{id}` in force: see `/v1/lifts/{id}`")),
        None => Problem::not_found(format_args!("revocation `{id}`")),
    };
    Ok(document(&api, &*index.get(Kind::Revocation, &id).ok_or_else(missing)?))
}

pub(super) async fn create(
    State(api): State<Arc<Api>>,
    caller: Caller,
    Params(query): Params<WaitQuery>,
    Keyed(key, new): Keyed<NewRevocation>,
) -> Result<Response, Problem> {
    let wait = query.duration()?;
    let made = key
        .make(&api, &caller.intent("revocation.create"), |index| {
            if let Some((standing, revision)) = retirement(index, &new.target) {
                let location = format!("/v1/revocations/{}", standing.id);
                return Ok(Plan::new(Made::found(location, standing, revision)));
            }
            let Plan { guards, changes, answer } = plan(&api, index, &caller, &new)?;
            Ok(Plan { guards, changes, answer: Made::created(format!("/v1/revocations/{}", answer.id), answer) })
        })
        .await?;
    Ok(made.respond(&api, wait).await)
}

fn plan(api: &Api, index: &Index, caller: &Caller, new: &NewRevocation) -> Result<Plan<Revocation>, Problem> {
    let now = api.core.clock().now().wall;
    if let Target::Grant { grant } = &new.target {
        let id = grant.to_string();
        if index.get(Kind::Grant, &id).is_none() {
            return Err(FieldError::new("target.grant", format!("there is no grant `{id}`")).into());
        }
        let plan = grants::revocation(index, &id, caller, &new.reason, now)?;
        let Some(revocation) = plan.answer.revocation else {
            return Err(Problem::conflict(format!("grant `{id}` has been revoked already")));
        };
        return Ok(Plan { guards: plan.guards, changes: plan.changes, answer: revocation });
    }
    check_target(index, &new.target, now)?;
    let revocation = Revocation {
        id: Uuid::new_v4(),
        target: in_one_form(&new.target),
        reason: new.reason.clone(),
        created_by: caller.name().to_owned(),
        created_at: now,
    };
    let object = Object::Revocation(revocation.clone());
    object.check()?;
    let mut plan = Plan::new(revocation).write(Write::put(&object, Expect::Absent));
    if let Target::Workload { workload } = &new.target
        && let Some(stored) = index.get(Kind::Workload, workload.as_str())
    {
        // It is not retired meanwhile.
        let (kind, key) = (Kind::Workload, stored.key.to_string());
        plan = plan.guard(Guard::Object { kind, key, expect: Expect::Revision(stored.revision) });
    }
    Ok(plan)
}

/// The revocation by which a workload was retired, and its revision. INVARIANT: none of that workload comes after it, so
/// that it can be told from those before: to revoke what has been retired is to find that it has been.
pub(super) fn retirement(index: &Index, target: &Target) -> Option<(Revocation, Revision)> {
    let Target::Workload { workload } = target else { return None };
    if !rules::is_retired(index, workload.as_str()) {
        return None;
    }
    let last = index.revocations_of(workload.as_str()).into_iter().max_by_key(|revocation| revocation.revision)?;
    Some((rules::as_revocation(&last)?.clone(), last.revision))
}

/// A serial number as every enforcement point and every list shows it.
fn in_one_form(target: &Target) -> Target {
    match target {
        Target::Certificate { serial } => {
            Target::Certificate { serial: certificate_serial(serial).unwrap_or_else(|| serial.clone()) }
        }
        other => other.clone(),
    }
}

fn check_target(index: &Index, target: &Target, now: Timestamp) -> Result<(), FieldError> {
    let issuer = |name: &str| match index.get(Kind::Issuer, name) {
        Some(_) => Ok(()),
        None => Err(FieldError::new("target.issuer", format!("there is no issuer `{name}`"))),
    };
    let workload = |id: &crate::credential::SpiffeId| {
        let known = index.get(Kind::Workload, id.as_str()).is_some() || rules::is_retired(index, id.as_str());
        if known { Ok(()) } else { Err(FieldError::new("target.workload", format!("`{id}` is not registered"))) }
    };
    match target {
        Target::Token { issuer: name, .. } | Target::Issuer { issuer: name } => issuer(name),
        Target::Key { issuer: name, kid } => {
            issuer(name)?;
            let stored = index.get(Kind::Issuer, name);
            let stored = stored.as_deref().and_then(rules::as_issuer);
            // A key may be revoked before it is published, and after it has been taken back: it may come again.
            if stored.is_some_and(|i| i.keys_from.is_some()) {
                return Ok(());
            }
            let keys = stored.map_or(&[][..], |i| i.jwks.keys.as_slice());
            if keys.iter().any(|k| k.get("kid").and_then(|v| v.as_str()) == Some(kid)) {
                return Ok(());
            }
            Err(FieldError::new("target.kid", format!("issuer `{name}` has no key `{kid}`")))
        }
        Target::Workload { workload: id } => workload(id),
        Target::TokensBefore { workload: id, before } => {
            workload(id)?;
            if *before > now.saturating_add(MAX_CLOCK_SKEW) {
                return Err(FieldError::new("target.before", format!("`{before}` is in the future")));
            }
            Ok(())
        }
        Target::BoundObject { issuer: name, .. } => {
            issuer(name)?;
            let stored = index.get(Kind::Issuer, name);
            match stored.as_deref().and_then(rules::as_issuer).map(|i| i.kind) {
                Some(IssuerKind::Kubernetes) => Ok(()),
                _ => Err(FieldError::new("target.issuer", format!("tokens of `{name}` are not bound to objects"))),
            }
        }
        Target::Delegator { workload: id } => workload(id),
        // Certificates are not registered: any serial number can be one.
        Target::Certificate { .. } | Target::Grant { .. } => Ok(()),
    }
}
