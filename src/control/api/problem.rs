//! What the API answers when it does not do what was asked: RFC 9457 problems, with the fields that are wrong.
//!
//! Plane: control. The one place that maps errors to HTTP. Messages repeat what the caller sent or what it may read
//! anyway; the text of a store failure goes to the log, not to the caller.

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::JsonSchema;
use serde::Serialize;

use crate::control::commit::CommitError;
use crate::control::desk::Refusal;
use crate::control::operator_policy::Denied;
use crate::control::operators::OperatorError;
use crate::control::store::StoreError;
use crate::grant::{RuleError, policy};
use crate::object::FieldError;
use crate::policy::PolicyErrors;

/// A problem, as answered.
#[derive(Debug)]
pub(super) struct Problem(Box<Inner>);

#[derive(Debug)]
struct Inner {
    status: StatusCode,
    headers: Vec<(header::HeaderName, HeaderValue)>,
    body: Body,
}

/// A problem (RFC 9457).
#[derive(Debug, Serialize, JsonSchema)]
#[schemars(rename = "Problem")]
pub(super) struct Body {
    /// A URI that names the kind of problem.
    r#type: String,
    /// The kind of problem, for people.
    title: &'static str,
    /// The status of the answer.
    status: u16,
    /// What is wrong with this request.
    detail: String,
    /// What is wrong with it, one by one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    errors: Vec<Issue>,
}

/// One thing that is wrong with a request.
#[derive(Debug, Default, Serialize, JsonSchema)]
pub(super) struct Issue {
    /// The member of the body, the parameter or the header, as in `routes[0].path`; empty for the whole.
    field: String,
    /// The member of the body as a JSON pointer (RFC 6901), as in `/routes/0/path`. Absent when it is not in the body.
    #[serde(skip_serializing_if = "Option::is_none")]
    pointer: Option<String>,
    /// What is wrong with it.
    message: String,
    /// The policy that it is about.
    #[serde(skip_serializing_if = "Option::is_none")]
    policy: Option<String>,
    /// The line in the policy text, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<usize>,
    /// The column in that line, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    column: Option<usize>,
    /// What could help.
    #[serde(skip_serializing_if = "Option::is_none")]
    help: Option<String>,
}

// === impl Problem ===

impl Problem {
    fn new(status: StatusCode, slug: &str, title: &'static str, detail: impl Into<String>) -> Self {
        let body = Body {
            r#type: format!("https://portcullis.dev/problems/{slug}"),
            title,
            status: status.as_u16(),
            detail: detail.into(),
            errors: Vec::new(),
        };
        Self(Box::new(Inner { status, headers: Vec::new(), body }))
    }

    fn with_header(mut self, name: header::HeaderName, value: &'static str) -> Self {
        self.0.headers.push((name, HeaderValue::from_static(value)));
        self
    }

    fn with_issues(mut self, issues: impl IntoIterator<Item = Issue>) -> Self {
        self.0.body.errors.extend(issues);
        self
    }

    /// 400: the request cannot be read.
    pub(super) fn malformed(error: FieldError) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "malformed", "the request cannot be read", error.message.clone())
            .with_issues([error.into()])
    }

    /// 401: nobody that is known.
    pub(super) fn unauthenticated(presented: bool) -> Self {
        // RFC 6750, section 3.1: no error code when no token came.
        let (challenge, detail) = if presented {
            (r#"Bearer realm="portcullis", error="invalid_token""#, "the token is not that of an operator")
        } else {
            (r#"Bearer realm="portcullis""#, "an operator's bearer token is needed")
        };
        Self::new(StatusCode::UNAUTHORIZED, "unauthenticated", "who is asking is not known", detail)
            .with_header(header::WWW_AUTHENTICATE, challenge)
    }

    /// 403: known, but not allowed to.
    pub(super) fn forbidden(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, "forbidden", "this operator may not do that", detail)
    }

    /// 429: too many calls.
    pub(super) fn too_many(wait: std::time::Duration) -> Self {
        Self::wait("too many calls", wait)
    }

    /// 429: too many idempotency keys of one caller.
    pub(super) fn too_many_keys(caller: &str, wait: std::time::Duration) -> Self {
        Self::wait(&format!("`{caller}` has used too many idempotency keys"), wait)
    }

    fn wait(what: &str, wait: std::time::Duration) -> Self {
        let seconds = wait.as_secs().saturating_add(u64::from(wait.subsec_nanos() > 0)).max(1);
        let detail = format!("{what}; worth trying again in {seconds} s");
        let mut problem = Self::new(StatusCode::TOO_MANY_REQUESTS, "too_many", "too many calls", detail);
        problem.0.headers.push((header::RETRY_AFTER, HeaderValue::from(seconds)));
        problem
    }

    /// 404.
    pub(super) fn not_found(what: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::NOT_FOUND, "not_found", "there is no such thing", format!("there is no {what}"))
    }

    /// 405.
    pub(super) fn method() -> Self {
        let detail = "see the `allow` header";
        Self::new(StatusCode::METHOD_NOT_ALLOWED, "method", "this resource has no such method", detail)
    }

    /// 409: well-formed, but not in the state that things are in.
    pub(super) fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "conflict", "the state of things does not allow it", detail)
    }

    /// 422: the idempotency key stands for something else.
    pub(super) fn key_taken() -> Self {
        let detail = "the same caller has used this key with another path or body";
        let issue = FieldError::new(super::idempotency::KEY, detail).into();
        let title = "the idempotency key stands for another request";
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "idempotency_key", title, detail).with_issues([issue])
    }

    /// 412: the precondition of the request does not hold.
    pub(super) fn precondition(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PRECONDITION_FAILED, "precondition", "the object has changed", detail)
    }

    /// 413.
    pub(super) fn too_large(limit: usize) -> Self {
        let detail = format!("at most {limit} bytes are read");
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "too_large", "the body is too large", detail)
    }

    /// 415.
    pub(super) fn media_type() -> Self {
        let detail = "the body must be `application/json`";
        Self::new(StatusCode::UNSUPPORTED_MEDIA_TYPE, "media_type", "the body's type is not supported", detail)
    }

    /// 422: the document is not a valid one.
    pub(super) fn invalid(error: FieldError) -> Self {
        let pointer = pointer(&error.field);
        Self::invalid_at(error, pointer)
    }

    /// 422, at a place in the document that is known better than by the field's name.
    pub(super) fn invalid_at(error: FieldError, pointer: String) -> Self {
        let detail = if error.field.is_empty() { error.message.clone() } else { error.to_string() };
        let issue = Issue { pointer: Some(pointer), ..error.into() };
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", "the document is not valid", detail).with_issues([issue])
    }

    /// 500.
    pub(super) fn internal() -> Self {
        let detail = "the control plane's log says more, under this request's id";
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, "internal", "the control plane has failed", detail)
    }

    /// 503, worth trying again.
    pub(super) fn unavailable(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, "unavailable", "the control plane cannot do that now", detail)
            .with_header(header::RETRY_AFTER, "1")
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let Inner { status, headers, body } = *self.0;
        // Strings and numbers always serialise.
        let bytes = serde_json::to_vec(&body).unwrap_or_default();
        let mut response = (status, bytes).into_response();
        let problem = HeaderValue::from_static("application/problem+json");
        response.headers_mut().insert(header::CONTENT_TYPE, problem);
        response.headers_mut().extend(headers);
        response
    }
}

impl From<FieldError> for Problem {
    fn from(error: FieldError) -> Self {
        Self::invalid(error)
    }
}

impl From<PolicyErrors> for Problem {
    fn from(errors: PolicyErrors) -> Self {
        let detail = errors.to_string();
        Self::new(StatusCode::UNPROCESSABLE_ENTITY, "invalid", "the policy text is not valid", detail).with_issues(
            errors.0.into_iter().map(|e| Issue {
                field: "text".to_owned(),
                pointer: Some("/text".to_owned()),
                message: e.message,
                policy: e.policy,
                line: e.line,
                column: e.column,
                help: e.help,
            }),
        )
    }
}

impl From<RuleError> for Problem {
    fn from(error: RuleError) -> Self {
        let detail = error.to_string();
        match error {
            RuleError::OwnRequest(_)
            | RuleError::NotRequester(_)
            | RuleError::Owner(_)
            | RuleError::Delegator(_)
            | RuleError::NotAnOperator(_) => Self::forbidden(detail),
            RuleError::State { .. }
            | RuleError::VotedAlready(_)
            | RuleError::Unapproved { .. }
            | RuleError::NotYet(_)
            | RuleError::Lapsed(_)
            | RuleError::TooLate(_) => Self::conflict(detail),
            RuleError::Digest { .. } => {
                let issue = Issue::from(FieldError::new("digest", detail.clone()));
                Self::conflict(detail).with_issues([Issue { pointer: Some("/digest".to_owned()), ..issue }])
            }
        }
    }
}

impl From<CommitError> for Problem {
    fn from(error: CommitError) -> Self {
        match error {
            CommitError::Conflict(c) => Self::unavailable(format!("others kept changing what this rests on: {c}")),
            CommitError::Invalid { error, .. } => Self::invalid(error),
            CommitError::Malformed => {
                tracing::error!(%error, "a handler made a malformed unit");
                Self::internal()
            }
            CommitError::Unavailable(_) => Self::unavailable(
                "the store failed; whether the change was made is not known, so look before trying again",
            ),
            CommitError::Closed => Self::unavailable("the control plane is shutting down"),
        }
    }
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::Unknown(id) => Self::not_found(format_args!("grant or request `{id}`")),
            Refusal::Field(error) => Self::invalid(error),
            Refusal::Rule(error) => error.into(),
            Refusal::Policy(refusal) => refusal.into(),
            Refusal::Forbidden(detail) => Self::forbidden(detail),
            Refusal::Conflict(detail) => Self::conflict(detail),
            Refusal::Unreadable => Self::conflict(refusal.to_string()),
            Refusal::Commit(error) => error.into(),
        }
    }
}

impl From<policy::Refusal> for Problem {
    fn from(refusal: policy::Refusal) -> Self {
        let detail = refusal.to_string();
        let of = |policies: Vec<String>, message: &'static str| {
            Self::forbidden(detail.clone()).with_issues(policies.into_iter().map(move |policy| Issue {
                message: message.to_owned(),
                policy: Some(policy),
                ..Issue::default()
            }))
        };
        match refusal {
            policy::Refusal::Forbidden(policies) => of(policies, "this grant policy forbids it"),
            policy::Refusal::Failed(policies) => of(policies, "this grant policy failed to evaluate"),
            policy::Refusal::NoMatch => Self::forbidden(detail),
            policy::Refusal::Terms(error) => Self::invalid(error),
        }
    }
}

impl From<Denied> for Problem {
    fn from(denied: Denied) -> Self {
        Self::forbidden(denied.to_string())
    }
}

impl From<StoreError> for Problem {
    fn from(error: StoreError) -> Self {
        tracing::error!(%error, "the store could not be read");
        Self::unavailable("the store could not be read")
    }
}

impl From<OperatorError> for Problem {
    fn from(error: OperatorError) -> Self {
        let detail = error.to_string();
        match error {
            OperatorError::Name(_) => Self::invalid(FieldError::new("name", detail)),
            OperatorError::Taken(_) | OperatorError::Last(_) => Self::conflict(detail),
            OperatorError::Unknown(name) => Self::not_found(format_args!("operator `{name}`")),
            OperatorError::Random | OperatorError::Store(_) => {
                tracing::error!(%error, "operators could not be read or changed");
                Self::unavailable("operators could not be read or changed")
            }
        }
    }
}

// === impl Issue ===

impl From<FieldError> for Issue {
    fn from(e: FieldError) -> Self {
        Self { field: e.field, message: e.message, ..Self::default() }
    }
}

/// `routes[0].path` as a JSON pointer (RFC 6901).
fn pointer(field: &str) -> String {
    let parts = field.split(['.', '[']).map(|part| part.strip_suffix(']').unwrap_or(part));
    parts.filter(|part| !part.is_empty()).fold(String::new(), |mut pointer, part| {
        push_token(&mut pointer, part);
        pointer
    })
}

/// Goes one step further.
pub(super) fn push_token(pointer: &mut String, token: &str) {
    pointer.push('/');
    pointer.push_str(&token.replace('~', "~0").replace('/', "~1"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_a_pointer_into_the_body() {
        assert_eq!(pointer(""), "");
        assert_eq!(pointer("name"), "/name");
        assert_eq!(pointer("routes[0].grants.max_duration_seconds"), "/routes/0/grants/max_duration_seconds");
        assert_eq!(pointer("labels.a/b~c"), "/labels/a~1b~0c");
    }
}
