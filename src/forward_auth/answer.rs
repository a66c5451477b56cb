//! A decision in the words of the proxy that asked.
//!
//! Pure. INVARIANT: a 200 is written only with a permit in hand. A denial is an answer that the proxy takes for a denial:
//! Envoy takes any 5xx for a failure, which opens the gate under `failure_mode_allow`, so it is told 429 in place of 503;
//! nginx knows 401 and 403, so it is told one of them, with the status, the reason and the body in headers. What cannot be
//! told is still a denial.

use bytes::Bytes;
use http::header::CACHE_CONTROL;
use http::{HeaderName, HeaderValue, Response, StatusCode};

use super::dialect::Dialect;
use crate::door::Checked;
use crate::door::answer::{Upstream, denial, upstream};

/// Headers that Envoy removes from the client's request, joined by commas.
const ENVOY_REMOVE: HeaderName = HeaderName::from_static("x-envoy-auth-headers-to-remove");
const REASON: HeaderName = HeaderName::from_static("x-portcullis-reason");
/// The status of a denial, where it could not be the answer's.
const STATUS: HeaderName = HeaderName::from_static("x-portcullis-status");
/// The body of a denial, for a proxy that drops it.
const PROBLEM: HeaderName = HeaderName::from_static("x-portcullis-problem");
const DPOP_NONCE: HeaderName = HeaderName::from_static("dpop-nonce");
/// So long a body can be told in a header: nginx buffers 4 KiB of them by default.
const MAX_PROBLEM: usize = 2048;

/// The response to a proxy.
pub(super) fn answer(dialect: Dialect, checked: &Checked) -> Response<Bytes> {
    match upstream(checked) {
        Some(upstream) => allow(dialect, checked, upstream),
        None => deny(dialect, denial(checked)),
    }
}

/// A denial that nothing more is known of.
pub(super) fn bare_denial() -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    *response.status_mut() = StatusCode::FORBIDDEN;
    response
}

fn allow(dialect: Dialect, checked: &Checked, Upstream { set, remove }: Upstream) -> Response<Bytes> {
    let mut response = Response::new(Bytes::new());
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    for (name, value) in set {
        headers.insert(name, value);
    }
    if let Some(Ok(nonce)) = checked.decision.dpop_nonce.as_deref().map(HeaderValue::from_str) {
        headers.insert(DPOP_NONCE, nonce);
    }
    if dialect == Dialect::Envoy {
        // For its access log. Not for the upstream: it is among those to remove.
        headers.insert(REASON, HeaderValue::from_static(checked.decision.reason.code()));
        let names: Vec<&str> = remove.iter().map(HeaderName::as_str).collect();
        match HeaderValue::from_str(&names.join(",")) {
            Ok(names) => drop(headers.insert(ENVOY_REMOVE, names)),
            // No name of a header is anything but ASCII; if one were, the client's own would reach the upstream.
            Err(_) => return bare_denial(),
        }
    }
    response
}

fn deny(dialect: Dialect, mut response: Response<Bytes>) -> Response<Bytes> {
    let status = response.status();
    let told = match dialect {
        Dialect::Traefik | Dialect::Caddy => status,
        Dialect::Envoy if status.is_server_error() => StatusCode::TOO_MANY_REQUESTS,
        Dialect::Envoy => status,
        Dialect::Nginx if status == StatusCode::UNAUTHORIZED => status,
        Dialect::Nginx => StatusCode::FORBIDDEN,
    };
    *response.status_mut() = told;
    if matches!(dialect, Dialect::Envoy | Dialect::Nginx) {
        response.headers_mut().insert(STATUS, HeaderValue::from(status.as_u16()));
    }
    if dialect == Dialect::Nginx {
        let body = std::mem::take(response.body_mut());
        let is_plain = body.len() <= MAX_PROBLEM && body.iter().all(|b| matches!(b, b' '..=b'~'));
        if let (true, Ok(problem)) = (is_plain, HeaderValue::from_maybe_shared(body)) {
            response.headers_mut().insert(PROBLEM, problem);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::authz::{Decision, DecisionId, Reason};
    use crate::clock::Timestamp;
    use crate::forward_auth::read::unread;

    fn answered(dialect: Dialect, reason: Reason, sent: &[(&'static str, &'static str)]) -> Response<Bytes> {
        let mut request = unread();
        for (name, value) in sent {
            request.headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        let decision = Decision::for_test(reason, DecisionId::new(Timestamp::from_secs(1)));
        answer(dialect, &Checked::for_test(decision, request))
    }

    fn header<'a>(response: &'a Response<Bytes>, name: &str) -> Option<&'a str> {
        response.headers().get(name).map(|value| value.to_str().unwrap())
    }

    #[test]
    fn every_reason_is_a_denial_that_its_proxy_takes_for_one() {
        for &reason in Reason::ALL.iter().filter(|reason| !reason.is_allow()) {
            for dialect in Dialect::ALL {
                let response = answered(dialect, reason, &[]);
                let status = response.status().as_u16();
                let is_denial = match dialect {
                    Dialect::Envoy => (400..500).contains(&status),
                    Dialect::Nginx => status == 401 || status == 403,
                    Dialect::Traefik | Dialect::Caddy => status == reason.http_status(),
                };
                assert!(is_denial, "{dialect:?}, {reason}: {status}");
                assert_eq!(status == 401, reason.http_status() == 401, "{dialect:?}, {reason}");
                assert_eq!(header(&response, "x-portcullis-reason"), Some(reason.code()), "{dialect:?}");
                assert_eq!(header(&response, "retry-after").is_some(), reason.http_status() == 503, "{dialect:?}");
                assert_eq!(header(&response, "www-authenticate").is_some(), reason.http_status() == 401);
                let told = header(&response, "x-portcullis-status").map(|status| status.parse().unwrap());
                let in_header = matches!(dialect, Dialect::Envoy | Dialect::Nginx);
                assert_eq!(told, in_header.then_some(reason.http_status()), "{dialect:?}");
                let problem = match dialect {
                    Dialect::Nginx => header(&response, "x-portcullis-problem").unwrap().as_bytes(),
                    _ => response.body(),
                };
                let problem: serde_json::Value = serde_json::from_slice(problem).unwrap();
                assert_eq!(problem["reason"], reason.code(), "{dialect:?}");
                assert_eq!(header(&response, "x-portcullis-workload"), None, "{dialect:?}");
            }
        }
    }

    #[test]
    fn an_allow_sets_what_is_known_and_envoy_is_told_what_to_remove() {
        let sent = [("x-portcullis-actor", "evil"), ("x_portcullis_workload", "evil")];
        for dialect in Dialect::ALL {
            let response = answered(dialect, Reason::AllowPolicy, &sent);
            assert_eq!((response.status().as_u16(), response.body().len()), (200, 0), "{dialect:?}");
            assert_eq!(header(&response, "x-portcullis-workload"), Some("spiffe://td/w"));
            assert!(header(&response, "x-portcullis-decision-id").is_some());
            assert_eq!(header(&response, "x-portcullis-actor"), None);
            let reason = (dialect == Dialect::Envoy).then_some("allow.policy");
            assert_eq!(header(&response, "x-portcullis-reason"), reason, "for Envoy's log alone");
            let removed = header(&response, "x-envoy-auth-headers-to-remove");
            assert_eq!(removed.is_some(), dialect == Dialect::Envoy);
            for name in removed.iter().flat_map(|names| names.split(',')).filter(|name| *name != "x-portcullis-reason")
            {
                assert!(header(&response, name).is_none(), "Envoy removes after it sets: `{name}`");
            }
            let all =
                ["x-portcullis-actor", "x-portcullis-grant", "x-portcullis-min-revision", "x_portcullis_workload"];
            let named = |name: &&str| removed.is_none_or(|names| names.split(',').any(|n| n == *name));
            assert!(all.iter().all(named), "{removed:?}");
        }
    }

    #[test]
    fn a_body_that_no_header_can_hold_is_left_out_and_denied_all_the_same() {
        for body in ["\u{e9}".to_owned(), "x".repeat(MAX_PROBLEM + 1), "a\nb".to_owned()] {
            let mut response = Response::new(Bytes::from(body));
            *response.status_mut() = StatusCode::SERVICE_UNAVAILABLE;
            let response = deny(Dialect::Nginx, response);
            assert_eq!((response.status().as_u16(), header(&response, "x-portcullis-problem")), (403, None));
        }
    }
}
