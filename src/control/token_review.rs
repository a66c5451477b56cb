//! Kubernetes TokenReview: the API server of a cluster confirms a sidecar's service account token (`authentication.k8s.io/v1`).
//!
//! Plane: control. Comes after the verification offline and never in its place, once for each stream that is opened, and
//! never for a request: it finds what no signature shows, that a pod or an account is gone. Fails closed: whatever is not
//! a clear yes for this very account and audience is a no. Nothing is remembered. INVARIANT: both tokens, the sidecar's
//! and ours, are in that one request and in no message. Asks nobody but the URL in the configuration.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use reqwest::{StatusCode, Url};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use zeroize::Zeroizing;

use super::keys::{FetchError, http};
use crate::credential::{VerifiedToken, strict_json};
use crate::object::{IssuerKind, claim};
use crate::tls;

const API_VERSION: &str = "authentication.k8s.io/v1";
const KIND: &str = "TokenReview";
/// The longest token of ours that is read from a file.
const MAX_TOKEN_FILE: u64 = 64 * 1024;

/// The API server that confirms the tokens of one issuer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenReviewConfig {
    /// Name of the issuer.
    pub issuer: String,
    /// The https URL that the paths of the API are below.
    pub url: String,
    /// PEM file with the CA certificates that vouch for it.
    pub ca_file: PathBuf,
    /// File with the token that we show it.
    pub token_file: PathBuf,
}

/// Settings of token reviews.
#[derive(Debug, Clone)]
pub struct TokenReviewSettings {
    /// Who confirms whose tokens. Tokens of other issuers need no confirmation.
    pub servers: Vec<TokenReviewConfig>,
    /// How long a review may take, all in all. Sidecars wait ten seconds for their stream.
    pub timeout: Duration,
    /// The largest answer.
    pub max_bytes: usize,
    /// How many reviews go on at a time: a fleet that comes back does not flood an API server.
    pub max_concurrent: usize,
}

/// Has tokens confirmed.
#[derive(Debug)]
pub(super) struct TokenReviews {
    servers: HashMap<String, TokenReviewConfig>,
    timeout: Duration,
    max_bytes: usize,
    permits: Semaphore,
}

/// Why a token is not confirmed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unconfirmed {
    /// The answer is no.
    #[error("the API server does not confirm it: {0}")]
    Denied(&'static str),
    /// There is no answer that could be read.
    #[error("no TokenReview: {}", .0.message)]
    Unanswered(FetchError),
}

impl Default for TokenReviewSettings {
    fn default() -> Self {
        Self { servers: Vec::new(), timeout: Duration::from_secs(5), max_bytes: 256 << 10, max_concurrent: 32 }
    }
}

// === impl TokenReviews ===

impl TokenReviews {
    pub(super) fn new(settings: TokenReviewSettings) -> Self {
        tls::install_provider();
        let TokenReviewSettings { servers, timeout, max_bytes, max_concurrent } = settings;
        let servers = servers.into_iter().map(|server| (server.issuer.clone(), server)).collect();
        Self { servers, timeout, max_bytes, permits: Semaphore::new(max_concurrent) }
    }

    /// Has `token`, which `verified` was read from, confirmed for `audience` if its issuer's tokens have to be.
    pub(super) async fn confirm(
        &self,
        token: &str,
        verified: &VerifiedToken,
        audience: &str,
    ) -> Result<(), Unconfirmed> {
        let Some(server) = self.servers.get(&*verified.issuer) else { return Ok(()) };
        if verified.kind != IssuerKind::Kubernetes {
            return Err(Unconfirmed::Denied("its issuer is not of kind `kubernetes`, so the API server is not asked"));
        }
        let asked = async {
            let _permit = self.permits.acquire().await.map_err(|e| FetchError::refused(e.to_string()))?;
            ask(server, token, audience, self.timeout, self.max_bytes).await
        };
        let late = || FetchError::unreachable("the API server did not answer in time");
        let answer = tokio::time::timeout(self.timeout, asked).await.unwrap_or_else(|_elapsed| Err(late()));
        judge(&answer.map_err(Unconfirmed::Unanswered)?, verified, audience)
    }
}

/// Asks; the answer is JSON of whatever shape.
async fn ask(
    server: &TokenReviewConfig,
    token: &str,
    audience: &str,
    timeout: Duration,
    max_bytes: usize,
) -> Result<Value, FetchError> {
    let text = format!("{}/apis/{API_VERSION}/tokenreviews", server.url.trim_end_matches('/'));
    let url = Url::parse(&text).map_err(|e| FetchError::refused(format!("`url` is not a URL: {e}")))?;
    let host = url.host_str().unwrap_or_default().to_owned();
    let path = server.token_file.clone();
    let read = tokio::task::spawn_blocking(move || bearer(&path)).await;
    let authorization = read.map_err(|e| FetchError::refused(e.to_string()))??;
    let tls = http::private_ca(server.ca_file.clone(), "sync.token_review.ca_file").await?;
    let spec = json!({ "token": token, "audiences": [audience] });
    let review = json!({ "apiVersion": API_VERSION, "kind": KIND, "spec": spec }).to_string();
    let request = http::built(http::bounded(timeout), Some(tls))?
        .post(url)
        .header(AUTHORIZATION, authorization)
        .header(CONTENT_TYPE, "application/json")
        .header(ACCEPT, "application/json")
        .body(review);
    let response = request.send().await.map_err(|e| http::failed(&host, e))?;
    // What is created is an answer and not an object, and servers have said both.
    let body = http::body(response, &host, &[StatusCode::OK, StatusCode::CREATED], max_bytes).await?;
    strict_json(&body).map_err(|_not_json| FetchError::answer(format!("the answer of `{host}` is not strict JSON")))
}

/// The `authorization` header, from the token file as it is now: the kubelet replaces it well before its end.
fn bearer(path: &Path) -> Result<HeaderValue, FetchError> {
    let bad = |why: &str| FetchError::refused(format!("`sync.token_review.token_file`: `{}` {why}", path.display()));
    let failed = |e: std::io::Error| bad(&format!("cannot be read: {e}"));
    let file = std::fs::File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(bad("is not a file"));
    }
    let mut text = Zeroizing::new(String::new());
    file.take(MAX_TOKEN_FILE + 1).read_to_string(&mut text).map_err(failed)?;
    if text.trim().is_empty() || text.len() as u64 > MAX_TOKEN_FILE {
        return Err(bad("is empty, or too long for a token"));
    }
    let header = Zeroizing::new(format!("Bearer {}", text.trim()));
    let mut value = HeaderValue::from_str(&header).map_err(|_invalid| bad("holds something that is not a token"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Whether an answer is a yes for this account and audience.
fn judge(answer: &Value, verified: &VerifiedToken, audience: &str) -> Result<(), Unconfirmed> {
    let malformed = |why: &str| Err(Unconfirmed::Unanswered(FetchError::answer(format!("the answer {why}"))));
    let denied = |why| Err(Unconfirmed::Denied(why));
    if answer.get("apiVersion").is_none_or(|v| v != API_VERSION) || answer.get("kind").is_none_or(|v| v != KIND) {
        return malformed("is not a TokenReview");
    }
    let Some(status) = answer.get("status").filter(|status| status.is_object()) else {
        return malformed("has no `status`");
    };
    // Fields that are false or empty may be left out.
    match (status.get("error"), status.get("authenticated")) {
        (None, None | Some(Value::Bool(_))) => {}
        (Some(Value::String(error)), None | Some(Value::Bool(_))) if error.is_empty() => {}
        // Its text is not ours to repeat: it may hold what was asked about.
        (Some(Value::String(_)), _) => return denied("`status.error` is set"),
        _ => return malformed("has a `status` whose `error` is not text or whose `authenticated` is not a boolean"),
    }
    if status.get("authenticated") != Some(&Value::Bool(true)) {
        return denied("`status.authenticated` is not true");
    }
    let user = status.get("user");
    let of_user = |name: &str| user.and_then(|user| user.get(name));
    if of_user("username").and_then(Value::as_str) != Some(&*verified.subject) {
        return denied("`status.user.username` is not the `sub` of the token");
    }
    let claims = verified.claims.as_deref();
    let bound_uid = claims.and_then(|claims| claim(claims, "/kubernetes.io/serviceaccount/uid"));
    if of_user("uid").is_some_and(|uid| uid != "" && Some(uid) != bound_uid) {
        return denied("`status.user.uid` is not the UID of the token's service account");
    }
    // An API server that knows nothing of audiences leaves them out: then the token was not checked for ours.
    let audiences = status.get("audiences").and_then(Value::as_array);
    if !audiences.is_some_and(|audiences| audiences.iter().any(|a| a == audience)) {
        return denied("`status.audiences` does not have the audience that was asked for");
    }
    Ok(())
}

#[cfg(test)]
mod tests;
