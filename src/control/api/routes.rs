//! The table of all operations. What is not in it is not served, not documented, and not allowed to anybody.
//!
//! Plane: control. To add one: a line here with its action and its types; its problems follow from what it takes, and
//! `docs/openapi.json` is made anew as its test says. Rows are in the order of the document.
//! Long because it is one table.

use std::collections::BTreeSet;

use super::audit::{self, AuditQuery, AuditRecords, Checkpoint};
use super::exchange::{self, TokenAnswer, TokenForm, TokenRefused};
use super::grant_policies::{self, GrantPoliciesPublished, NewGrantPolicySet};
use super::grants::{self, GrantQuery, Reason, ShownGrant};
use super::issuers::{self, KeysShown};
use super::lifecycle::{self, ResumeBody, RetireQuery, SuspendBody};
use super::lifts::{self, LiftBody};
use super::openapi;
use super::operation::{Method, Operation, delete, get, post, put};
use super::operator_policies::{self, NewOperatorPolicies, OperatorPoliciesPublished, OperatorPoliciesShown};
use super::operators::{self, NewOperator, OperatorCreated};
use super::policies::{self, NewPolicySet, PolicyPublished};
use super::requests::{self, Approval, Denial, Nothing};
use super::respond::{Listed, PageQuery, WaitQuery, Written};
use super::reviews::{self, Note, ReviewQuery};
use super::revocations::{self, NewRevocation};
use super::services;
use super::signing_keys::{self, KeyRevocation, KeyRotation};
use super::status::{self, Status};
use super::watch::WatchQuery;
use super::workloads::{self, WorkloadQuery};
use crate::control::fleet::EnforcementPoint;
use crate::control::operator_policy::Action;
use crate::control::operators::Operator;
use crate::credential::SpiffeId;
use crate::grant::NewGrantRequest;
use crate::object::{
    Grant, GrantId, GrantPolicySet, Issuer, Lift, PolicySet, Review, Revocation, Service, SigningKey, Workload,
};

/// All operations.
pub(super) fn table() -> Vec<Operation> {
    [
        status(),
        operators(),
        operator_policies(),
        audit(),
        issuers(),
        workloads(),
        services(),
        policies(),
        grant_policies(),
        grants(),
        reviews(),
        revocations(),
        tokens(),
    ]
    .into_iter()
    .flatten()
    .collect()
}

/// The actions that operations have, sorted, each once: what policies for operators may name.
pub fn actions() -> Vec<&'static str> {
    let mut actions: Vec<&str> = table().iter().map(|o| o.route.action).collect();
    actions.sort_unstable();
    actions.dedup();
    actions
}

fn status() -> Vec<Operation> {
    vec![
        get("/openapi.json", "openapi.show", "Show this document", openapi::show)
            .public()
            .answers::<serde_json::Value>(200, "An OpenAPI 3.1 document"),
        get("/v1/status", "status.show", "Where the control plane stands", status::show)
            .answers::<Status>(200, "Its position, version and time"),
        get("/v1/enforcement-points", "status.points", "List the enforcement points", status::enforcement_points)
            .query::<PageQuery>()
            .answers::<Listed<EnforcementPoint>>(200, "A page of instances, each with what it has applied"),
    ]
}

fn operators() -> Vec<Operation> {
    vec![
        get("/v1/operators", "operator.list", "List operators", operators::list)
            .query::<PageQuery>()
            .answers::<Listed<Operator>>(200, "A page of operators, by name, also those that have been revoked"),
        post("/v1/operators", "operator.create", "Create an operator", operators::create)
            .body::<NewOperator>()
            .leads_to("/object/name", &["operator_revoke"])
            .answers::<OperatorCreated<'static>>(201, "The operator, with its token: it is never shown again")
            .problem(409),
        delete("/v1/operators/{name}", "operator.revoke", "Revoke an operator", operators::revoke)
            .named::<String>("The operator's name")
            .answers_nothing(204, "It is revoked: its token is not accepted any more")
            .problem(409),
    ]
}

/// The same, with whether they only read.
pub fn operator_actions() -> BTreeSet<Action> {
    let table = table();
    let private = table.iter().filter(|o| !o.route.public);
    let reads = |name: &str| table.iter().filter(|o| o.route.action == name).all(|o| o.route.method == Method::Get);
    private.map(|o| Action { name: o.route.action, reads: reads(o.route.action) }).collect()
}

fn operator_policies() -> Vec<Operation> {
    vec![
        get(
            "/v1/operator-policies/current",
            "operator_policy.show",
            "Show who may call what",
            operator_policies::current,
        )
        .tagged()
        .answers::<OperatorPoliciesShown>(200, "The policies in force, or the default, with the schema"),
        post(
            "/v1/operator-policies",
            "operator_policy.publish",
            "Publish who may call what",
            operator_policies::publish,
        )
        .about("A set under which whoever publishes it could not publish the next one is refused.")
        .body::<NewOperatorPolicies>()
        .tagged()
        .conditional()
        .answers::<OperatorPoliciesPublished>(200, "It is valid, or was in force already")
        .answers::<OperatorPoliciesPublished>(201, "It is in force"),
    ]
}

fn audit() -> Vec<Operation> {
    vec![
        get("/v1/audit", "audit.list", "List audit records", audit::list)
            .about(
                "Each record is the bytes that were hashed. A page looks at a bounded number of records: it may hold \
                    none and still have a `next`.",
            )
            .query::<AuditQuery>()
            .answers::<AuditRecords>(200, "A page of records"),
        get("/v1/audit/checkpoint", "audit.checkpoint", "Show how far the audit trail has come", audit::checkpoint)
            .answers::<Checkpoint>(200, "The last record's hash and number"),
    ]
}

fn issuers() -> Vec<Operation> {
    const NAME: &str = "The issuer's name";
    vec![
        get("/v1/issuers", "issuer.list", "List issuers", issuers::list)
            .query::<PageQuery>()
            .answers::<Listed<Issuer>>(200, "A page of issuers, by name"),
        get("/v1/issuers/{name}", "issuer.show", "Show an issuer", issuers::show)
            .named::<String>(NAME)
            .tagged()
            .answers::<Issuer>(200, "The issuer"),
        put("/v1/issuers/{name}", "issuer.put", "Trust an issuer, or change it", issuers::put)
            .named::<String>(NAME)
            .tagged()
            .conditional()
            .body::<Issuer>()
            .leads_to("/object/name", &["issuer_show", "issuer_keys", "issuer_delete"])
            .answers::<Written<Issuer>>(200, "It was there; `committed_at` is absent when it was as wanted already")
            .answers::<Written<Issuer>>(201, "It is new")
            .problem(409),
        delete("/v1/issuers/{name}", "issuer.delete", "Delete an issuer", issuers::delete)
            .about("Ends every token that it has issued.")
            .named::<String>(NAME)
            .conditional()
            .answers::<Written<Nothing>>(200, "It is gone")
            .problem(409),
        get("/v1/issuers/{name}/keys", "issuer.keys", "Show how an issuer's keys stand", issuers::keys)
            .named::<String>(NAME)
            .answers::<KeysShown>(200, "How many there are, and how fetching them goes"),
    ]
}

fn workloads() -> Vec<Operation> {
    const ID: &str = "The workload's SPIFFE ID, percent-encoded";
    vec![
        get("/v1/workloads", "workload.list", "List workloads", workloads::list)
            .query::<WorkloadQuery>()
            .answers::<Listed<Workload>>(200, "A page of workloads, by id"),
        get("/v1/workloads/{id}", "workload.show", "Show a workload", workloads::show)
            .named::<SpiffeId>(ID)
            .tagged()
            .answers::<Workload>(200, "The workload"),
        put("/v1/workloads/{id}", "workload.put", "Register a workload, or change it", workloads::put)
            .named::<SpiffeId>(ID)
            .tagged()
            .conditional()
            .body::<Workload>()
            .leads_to("/object/id", &["workload_show", "workload_retire"])
            .answers::<Written<Workload>>(200, "It was there; `committed_at` is absent when it was as wanted already")
            .answers::<Written<Workload>>(201, "It is new")
            .problem(409),
        delete("/v1/workloads/{id}", "workload.retire", "Retire a workload", lifecycle::retire)
            .about("Ends the workload, its grants and its requests in one revision. Its id is never registered again.")
            .named::<SpiffeId>(ID)
            .conditional()
            .query::<RetireQuery>()
            .answers::<Written<Nothing>>(200, "It is retired; `revoked_grants` has the ids of what ended with it"),
        post("/v1/workloads/{id}/suspend", "workload.suspend", "Suspend a workload", lifecycle::suspend)
            .about("Whatever it shows is refused everywhere until it is resumed. Suspending it again changes nothing.")
            .named::<SpiffeId>(ID)
            .tagged()
            .conditional()
            .query::<WaitQuery>()
            .optional_body::<SuspendBody>()
            .answers::<Written<Workload>>(200, "It is suspended")
            .problem(409),
        post("/v1/workloads/{id}/resume", "workload.resume", "Resume a suspended workload", lifecycle::resume)
            .about("Lifts its suspension and no other revocation: `still_revoked_by` names those.")
            .named::<SpiffeId>(ID)
            .tagged()
            .conditional()
            .query::<WaitQuery>()
            .body::<ResumeBody>()
            .answers::<Written<Workload>>(200, "It is not suspended")
            .problem(409),
    ]
}

fn services() -> Vec<Operation> {
    const NAME: &str = "The service's name";
    vec![
        get("/v1/services", "service.list", "List services", services::list)
            .query::<PageQuery>()
            .answers::<Listed<Service>>(200, "A page of services, by name"),
        get("/v1/services/{name}", "service.show", "Show a service", services::show)
            .named::<String>(NAME)
            .tagged()
            .answers::<Service>(200, "The service"),
        put("/v1/services/{name}", "service.put", "Protect a service, or change it", services::put)
            .named::<String>(NAME)
            .tagged()
            .conditional()
            .body::<Service>()
            .leads_to("/object/name", &["service_show", "service_delete"])
            .answers::<Written<Service>>(200, "It was there; `committed_at` is absent when it was as wanted already")
            .answers::<Written<Service>>(201, "It is new")
            .problem(409),
        delete("/v1/services/{name}", "service.delete", "Delete a service", services::delete)
            .named::<String>(NAME)
            .conditional()
            .answers::<Written<Nothing>>(200, "It is gone")
            .problem(409),
    ]
}

fn policies() -> Vec<Operation> {
    vec![
        get("/v1/policies/current", "policy.show", "Show the policy set in force", policies::current)
            .tagged()
            .answers::<PolicySet>(200, "The policy set")
            .problem(404),
        post("/v1/policies", "policy.publish", "Validate and publish a policy set", policies::publish)
            .tagged()
            .conditional()
            .body::<NewPolicySet>()
            .large()
            .answers::<PolicyPublished>(200, "It is in force already, or `dry_run` was asked for")
            .answers::<PolicyPublished>(201, "It is in force"),
    ]
}

fn grant_policies() -> Vec<Operation> {
    vec![
        get(
            "/v1/grant-policies/current",
            "grant_policy.show",
            "Show the grant policies in force",
            grant_policies::current,
        )
        .tagged()
        .answers::<GrantPolicySet>(200, "The grant policies")
        .problem(404),
        post(
            "/v1/grant-policies",
            "grant_policy.publish",
            "Validate and publish grant policies",
            grant_policies::publish,
        )
        .about("They say who may ask for which grants for whom, under which terms, and who approves.")
        .tagged()
        .conditional()
        .body::<NewGrantPolicySet>()
        .answers::<GrantPoliciesPublished>(200, "They are in force already, or `dry_run` was asked for")
        .answers::<GrantPoliciesPublished>(201, "They are in force"),
    ]
}

fn reviews() -> Vec<Operation> {
    const ID: &str = "The id of the break-glass grant, which is the review's as well";
    vec![
        get("/v1/reviews", "review.list", "List reviews of break-glass grants", reviews::list)
            .query::<ReviewQuery>()
            .answers::<Listed<Review>>(200, "A page of reviews, by id"),
        get("/v1/reviews/{id}", "review.show", "Show a review", reviews::show)
            .named::<GrantId>(ID)
            .tagged()
            .answers::<Review>(200, "The review"),
        post("/v1/reviews/{id}/close", "review.close", "Close a review", reviews::close)
            .about("Only a person other than who asked for the grant closes its review.")
            .named::<GrantId>(ID)
            .body::<Note>()
            .answers::<Written<Review>>(200, "The review is closed")
            .problem(409),
    ]
}

fn grants() -> Vec<Operation> {
    const ID: &str = "The id of the grant and of its request";
    const WAITING: &str = "With `wait` the answer comes when what `until` says has come, or after that time with the state as \
        it is then. With `Accept: text/event-stream` every state is an event (`event: state`, the grant as `data`) until \
        that has come; a stream that was cut off goes on after `Last-Event-ID`, and 204 says that nothing more will come.";
    vec![
        get("/v1/grant-requests", "grant.list", "List requests that have not become grants", requests::list)
            .called("grant_request_list")
            .query::<GrantQuery>()
            .answers::<Listed<Grant>>(200, "A page of requests, by id"),
        post("/v1/grant-requests", "grant.request", "Request a grant", requests::create)
            .about("The `grant_request` of a denial can be posted as it stands.")
            .body::<NewGrantRequest>()
            .example(
                "denial",
                r#"{ "workload": "spiffe://demo.portcullis.local/agent", "resources": ["payments/refunds"],
                     "actions": ["write"], "duration_seconds": 900, "reason": "refund run 42" }"#,
            )
            .example(
                "limited",
                r#"{ "workload": "spiffe://demo.portcullis.local/storefront", "resources": ["payments/payouts"],
                     "actions": ["write"], "duration_seconds": 300, "uses": 1, "ticket": "OPS-7",
                     "reason": "one payout, in working hours",
                     "conditions": { "windows": [{ "days": ["mon", "fri"], "from": "08:00", "to": "18:00" }] } }"#,
            )
            .leads_to("/object/id", &["grant_request_show", "grant_approve", "grant_deny", "grant_withdraw"])
            .leads_to("/object/id", &["grant_show", "grant_revoke"])
            .located()
            .keyed()
            .answers::<Written<Grant>>(200, "A grant in force that gives all of it, unless `reuse` is false")
            .answers::<Written<Grant>>(201, "The request; a grant at once where policies approve it, or as break-glass")
            .problem(409),
        get("/v1/grant-requests/{id}", "grant.show", "Show a request, or wait for it", grants::show)
            .called("grant_request_show")
            .about(WAITING)
            .named::<GrantId>(ID)
            .tagged()
            .query::<WatchQuery>()
            .answers::<ShownGrant>(200, "The request, or the grant that it has become")
            .streams("The stream that `Last-Event-ID` is of has nothing more to tell"),
        post("/v1/grant-requests/{id}/approve", "grant.approve", "Approve a request", requests::approve)
            .named::<GrantId>(ID)
            .body::<Approval>()
            .answers::<Written<Grant>>(200, "The vote counts")
            .problem(409),
        post("/v1/grant-requests/{id}/deny", "grant.deny", "Deny a request", requests::deny)
            .named::<GrantId>(ID)
            .body::<Denial>()
            .answers::<Written<Grant>>(200, "The request is denied")
            .problem(409),
        post("/v1/grant-requests/{id}/withdraw", "grant.withdraw", "Withdraw a request", requests::withdraw)
            .named::<GrantId>(ID)
            .optional_body::<Nothing>()
            .answers::<Written<Grant>>(200, "The request is withdrawn")
            .problem(409),
        get("/v1/grants", "grant.list", "List grants and requests", grants::list)
            .query::<GrantQuery>()
            .answers::<Listed<Grant>>(200, "A page of grants and requests, by id"),
        get("/v1/grants/{id}", "grant.show", "Show a grant, or wait for it", grants::show)
            .about(WAITING)
            .named::<GrantId>(ID)
            .tagged()
            .query::<WatchQuery>()
            .answers::<ShownGrant>(200, "The grant, or the request for it")
            .streams("The stream that `Last-Event-ID` is of has nothing more to tell"),
        post("/v1/grants/{id}/drop", "grant.drop", "Give a grant back before its time is over", grants::drop_early)
            .about("For who asked for it, and for the workload whose it is.")
            .named::<GrantId>(ID)
            .query::<WaitQuery>()
            .optional_body::<Reason>()
            .answers::<Written<Grant>>(200, "The grant has ended")
            .problem(409),
        post("/v1/grants/{id}/revoke", "grant.revoke", "Revoke a grant", grants::revoke)
            .about("Revoking what is revoked already succeeds, with the position at which it was.")
            .named::<GrantId>(ID)
            .query::<WaitQuery>()
            .optional_body::<Reason>()
            .answers::<Written<Grant>>(200, "The grant is revoked")
            .problem(409),
    ]
}

fn revocations() -> Vec<Operation> {
    vec![
        get("/v1/revocations", "revocation.list", "List revocations", revocations::list)
            .query::<PageQuery>()
            .answers::<Listed<Revocation>>(200, "A page of revocations, by id"),
        post("/v1/revocations", "revocation.create", "Revoke", revocations::create)
            .query::<WaitQuery>()
            .body::<NewRevocation>()
            .example(
                "token",
                r#"{ "target": { "kind": "token", "issuer": "demo", "jti": "8c1f6c53" }, "reason": "leaked" }"#,
            )
            .example(
                "delegator",
                r#"{ "target": { "kind": "delegator", "workload": "spiffe://demo.portcullis.local/ci" } }"#,
            )
            .example("certificate", r#"{ "target": { "kind": "certificate", "serial": "0a1b2c3d4e" } }"#)
            .example(
                "tokens_before",
                r#"{ "target": { "kind": "tokens_before", "workload": "spiffe://demo.portcullis.local/ci",
                     "before": "2026-01-01T00:00:00.000Z" }, "reason": "a runner was broken into" }"#,
            )
            .leads_to("/object/id", &["revocation_show"])
            .located()
            .keyed()
            .answers::<Written<Revocation>>(200, "The workload has been retired, by this revocation")
            .answers::<Written<Revocation>>(201, "The revocation")
            .problem(409),
        get("/v1/revocations/{id}", "revocation.show", "Show a revocation", revocations::show)
            .named::<uuid::Uuid>("The revocation's id")
            .tagged()
            .answers::<Revocation>(200, "The revocation"),
        post("/v1/revocations/{id}/lift", "revocation.lift", "Take a revocation out of force", lifts::create)
            .about("It stays on record. Of grants, retired workloads and suspensions, none can be lifted.")
            .named::<uuid::Uuid>("The revocation's id")
            .query::<WaitQuery>()
            .body::<LiftBody>()
            .answers::<Written<Lift>>(200, "It is lifted, now or before")
            .problem(409),
        get("/v1/lifts", "revocation.list", "List lifted revocations", lifts::list)
            .called("lift_list")
            .query::<PageQuery>()
            .answers::<Listed<Lift>>(200, "A page of records, by the id of the revocation"),
        get("/v1/lifts/{id}", "revocation.show", "Show a lifted revocation", lifts::show)
            .called("lift_show")
            .named::<uuid::Uuid>("The revocation's id")
            .tagged()
            .answers::<Lift>(200, "The record"),
    ]
}

fn tokens() -> Vec<Operation> {
    vec![
        post("/v1/token", "token.exchange", "Exchange a workload's token for a short-lived one", exchange::exchange)
            .about(
                "Token exchange (RFC 8693). Anybody may ask: who asks is said by the tokens in the form. Errors are those of \
                 OAuth; `access_denied` for want of a grant carries a `grant_request` to post.",
            )
            .public()
            .form::<TokenForm>()
            .answers::<TokenAnswer>(200, "The token")
            .refuses::<TokenRefused>(400, "No token, and why")
            .refuses::<TokenRefused>(429, "This workload has had as many as it may have in this time")
            .refuses::<TokenRefused>(503, "No token can be issued now")
            .problem(404),
        get("/v1/signing-keys", "signing_key.list", "List the keys that tokens are signed with", signing_keys::list)
            .query::<PageQuery>()
            .answers::<Listed<SigningKey>>(200, "A page of keys, by id"),
        post("/v1/signing-keys/rotate", "signing_key.rotate", "Have the next key sign", signing_keys::rotate)
            .about("It takes over once everybody who verifies has had time to learn of it; with `at_once`, now.")
            .query::<WaitQuery>()
            .optional_body::<KeyRotation>()
            .answers::<Written<SigningKey>>(200, "The next key; it signs when it is `active`")
            .problem(404)
            .problem(409),
        post("/v1/signing-keys/{kid}/revoke", "signing_key.revoke", "Revoke a key", signing_keys::revoke)
            .about("No token that it signed counts any more.")
            .named::<String>("The key's id")
            .query::<WaitQuery>()
            .optional_body::<KeyRevocation>()
            .answers::<Written<SigningKey>>(200, "It is published no more")
            .problem(409),
        get("/.well-known/jwks.json", "signing_key.published", "The public keys (RFC 7517)", signing_keys::jwks)
            .public()
            .answers::<serde_json::Value>(200, "A key set")
            .problem(404),
        get(
            "/.well-known/spiffe-bundle",
            "signing_key.published",
            "The same as a SPIFFE bundle",
            signing_keys::spiffe_bundle,
        )
        .called("signing_key_bundle")
        .public()
        .answers::<serde_json::Value>(200, "A trust bundle")
        .problem(404),
    ]
}
