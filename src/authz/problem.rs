//! Denial bodies: RFC 9457 problem documents. Minimal stand-in; the `routes` branch has the real one.

use std::borrow::Cow;

use smallvec::SmallVec;

use super::Decision;

/// The body of a denial.
pub fn body(decision: &Decision, grant_request_url: Option<&str>) -> Vec<u8> {
    let _ = grant_request_url;
    serde_json::json!({
        "type": format!("https://portcullis.dev/problems/{}", shown(decision)),
        "title": decision.reason.title(), "status": decision.reason.http_status(),
        "reason": shown(decision), "decision_id": decision.id.to_string(),
    })
    .to_string()
    .into_bytes()
}

/// The headers of a denial.
pub fn headers(decision: &Decision) -> SmallVec<[(&'static str, Cow<'static, str>); 8]> {
    let mut out = SmallVec::new();
    out.push(("content-type", Cow::Borrowed("application/problem+json")));
    out.push(("x-portcullis-reason", Cow::Borrowed(shown(decision))));
    out.push(("x-portcullis-decision-id", Cow::Owned(decision.id.to_string())));
    out
}

fn shown(decision: &Decision) -> &'static str {
    if decision.is_authenticated() || matches!(decision.reason.family(), "input" | "system") {
        decision.reason.code()
    } else {
        decision.reason.family()
    }
}
