//! What `portcullis token verify` says of a token: the sidecar's own verification and mapping, without a sidecar.
//!
//! Plane: composition. Offline: nothing is fetched, no server is asked. A token is judged as a bearer would show it, so that
//! one which is bound to a key is refused unless the caller waives the proof. INVARIANT: claims are told only of a token whose
//! signature verified. Revocations, grants and policy are not looked at.

use std::collections::BTreeSet;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use serde::Serialize;
use serde_json::Value;

use super::failure::Failure;
use super::output::{Out, printable};
use crate::authz::{Builder, Change, Snapshot, identify};
use crate::clock::Timestamp;
use crate::credential::{self, CredentialReason, IssuerSet, VerifiedToken};
use crate::object::{FieldError, Issuer, IssuerKind, Kind, Object, Workload};
use crate::wire::Position;

/// Issuers, and workloads if there are any, ready to judge tokens.
#[derive(Debug)]
pub(super) struct Verifier {
    issuers: IssuerSet,
    /// What is wrong with keys: such an issuer has none, as in a sidecar.
    problems: Vec<String>,
    workloads: Option<Box<Snapshot>>,
    without_proof: bool,
}

/// What is said of a token. Members are never left out; what is not known is null.
#[derive(Debug, Default, Serialize)]
pub(super) struct Verdict {
    valid: bool,
    /// The reason code of a refusal.
    reason: Option<&'static str>,
    detail: Option<String>,
    issuer: Option<String>,
    kind: Option<IssuerKind>,
    kid: Option<String>,
    subject: Option<String>,
    /// The workload; null where the claims would have to be mapped and no workloads were given.
    workload: Option<String>,
    /// Who acts for the subject, current actor first.
    actors: Vec<String>,
    /// The members of `cnf`: how the token is bound.
    confirmation: Vec<String>,
    issued_at: Option<Timestamp>,
    not_before: Option<Timestamp>,
    expires_at: Option<Timestamp>,
    /// The time it was judged at.
    now: Option<Timestamp>,
    claims: Option<Value>,
    /// Issuers that count as having no keys, and why.
    issuer_problems: Vec<String>,
}

// === impl Verifier ===

impl Verifier {
    pub(super) fn new(issuers: &[Issuer], workloads: Option<&[Workload]>, without_proof: bool) -> Self {
        let (set, errors) = IssuerSet::compile(issuers);
        let problems: BTreeSet<String> = errors.iter().map(|(name, e)| format!("issuer `{name}`: {e}")).collect();
        let snapshot = |workloads: &[Workload]| {
            let objects = issuers.iter().cloned().map(|i| Object::Issuer(Box::new(i)));
            let mut builder = Builder::empty();
            for object in objects.chain(workloads.iter().cloned().map(Object::Workload)) {
                let (kind, key, body) = (object.kind(), object.key(), Some(Bytes::from(object.to_json())));
                builder.apply(Change { kind, key, body });
            }
            Box::new(builder.finish(Position::NONE).0)
        };
        let problems = problems.into_iter().collect();
        Self { issuers: set, problems, workloads: workloads.map(snapshot), without_proof }
    }

    /// Judges one token.
    pub(super) fn judge(&self, token: &str, now: Timestamp) -> Verdict {
        let mut verdict = Verdict { now: Some(now), issuer_problems: self.problems.clone(), ..Verdict::default() };
        match credential::verify(token, &self.issuers, now) {
            Ok(verified) => self.judge_verified(verified, token, &mut verdict),
            Err(rejection) => verdict.refuse(rejection.reason.code(), rejection.detail),
        }
        verdict
    }

    fn judge_verified(&self, token: VerifiedToken, text: &str, verdict: &mut Verdict) {
        verdict.valid = true;
        verdict.issuer = Some(token.issuer.to_string());
        verdict.kind = Some(token.kind);
        verdict.kid = Some(token.kid.to_string());
        verdict.subject = Some(token.subject.to_string());
        verdict.workload = token.workload.as_ref().map(ToString::to_string);
        verdict.actors = token.actors.iter().map(|actor| actor.subject.to_string()).collect();
        verdict.issued_at = token.issued_at;
        verdict.not_before = token.not_before;
        verdict.expires_at = Some(token.expires_at);
        verdict.claims = claims(text);
        let methods = verdict.claims.as_ref().and_then(|claims| claims.get("cnf")?.as_object());
        verdict.confirmation = methods.into_iter().flat_map(|m| m.keys().cloned()).collect();
        if token.confirmation.is_some() && !self.without_proof {
            let detail = "the token has `cnf`: it does not count without a proof of possession";
            return verdict.refuse(CredentialReason::PopMissing.code(), detail);
        }
        let Some(snapshot) = &self.workloads else { return };
        match identify(token, snapshot) {
            Ok(identity) => verdict.workload = Some(identity.workload.to_string()),
            Err((reason, detail)) => verdict.refuse(reason.code(), detail.as_deref().unwrap_or(reason.title())),
        }
    }
}

/// The claims of a token that was verified, and so read strictly, before.
fn claims(token: &str) -> Option<Value> {
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    serde_json::from_slice(&payload).ok()
}

// === impl Verdict ===

impl Verdict {
    pub(super) const fn is_valid(&self) -> bool {
        self.valid
    }

    fn refuse(&mut self, reason: &'static str, detail: &str) {
        self.valid = false;
        self.reason = Some(reason);
        self.detail = Some(detail.to_owned());
        self.workload = None;
    }

    /// One line for people.
    pub(super) fn summary(&self) -> String {
        let detail = self.detail.as_deref().unwrap_or_default();
        match self.reason {
            Some(reason) => format!("refused  {reason}: {detail}"),
            None => {
                format!("valid    {}", printable(self.workload.as_ref().or(self.subject.as_ref()).map_or("", |s| s)))
            }
        }
    }

    /// The verdict for people.
    pub(super) fn print(&self, out: &mut Out<'_>) -> Result<(), Failure> {
        out.line(self.summary())?;
        let time = |time: Option<Timestamp>| time.map(|t| t.to_string());
        let list = |all: &[String]| (!all.is_empty()).then(|| all.join(", "));
        for (name, value) in [
            ("issuer", self.issuer.clone()),
            ("kind", self.kind.map(|k| k.to_string())),
            ("kid", self.kid.clone()),
            ("subject", self.subject.clone()),
            ("workload", self.workload.clone()),
            ("actors", list(&self.actors)),
            ("bound by", list(&self.confirmation)),
            ("issued at", time(self.issued_at)),
            ("not before", time(self.not_before)),
            ("expires at", time(self.expires_at)),
        ] {
            if let Some(value) = value {
                out.line(format!("  {name:<10}  {}", printable(&value)))?;
            }
        }
        for problem in &self.issuer_problems {
            out.line(format!("  {}", printable(problem)))?;
        }
        Ok(())
    }
}

/// Parses an object's document in any of the forms that commands take: as it is, or under the name of its kind.
pub(super) fn parse(kind: Kind, document: &Value) -> Result<Object, FieldError> {
    let body = match document.get(kind.name()) {
        Some(inner @ Value::Object(_)) => inner,
        _ => document,
    };
    Object::parse(kind, body.to_string().as_bytes())
}
