//! A proxy's question, read: who asks about which request of whose.
//!
//! Pure. INVARIANT: the method, the path and the host are those that the proxy tells of its client's request, never those of
//! the question itself, except in Envoy's dialect, where the question repeats them. What is missing, or cannot be read with
//! certainty, is refused; what it means is left to the engine.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, HOST, TRANSFER_ENCODING, UPGRADE};
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Method};

use super::dialect::Dialect;
use super::forwarded::{Family, Forwarded};
use crate::authz::{Door, Reason};
use crate::door::{Asked, OwnedPeer, is_alias};

/// Set by Envoy when it sends only a part of the body.
const PARTIAL_BODY: &str = "x-envoy-auth-partial-body";
/// Spellings of our own headers in one request; each is named in the answer, for Envoy to remove it.
const MAX_ALIASES: usize = 32;

/// Why a question cannot be decided on.
pub(super) type Refusal = (Reason, &'static str);

/// The request that is asked about. `own` is what follows Envoy's prefix.
pub(super) fn asked(dialect: Dialect, own: &str, head: Parts, body: Option<Bytes>) -> Result<Asked, Refusal> {
    let headers = &head.headers;
    if headers.keys().filter(|name| is_alias(name.as_str().as_bytes())).count() > MAX_ALIASES {
        return Err((Reason::InputMalformed, "too many headers begin as ours do"));
    }
    let said = match dialect {
        Dialect::Envoy => Forwarded {
            method: Some(head.method.as_str()),
            target: Some(own),
            host: Some(host(headers)?),
            ..Family::Forwarded.read(headers)?
        },
        Dialect::Traefik | Dialect::Caddy => Family::Forwarded.read(headers)?,
        Dialect::Nginx => Family::Original.read(headers)?,
    };
    let family = if dialect == Dialect::Nginx { Family::Original } else { Family::Forwarded };
    if dialect != Dialect::Envoy && !said.agrees(family, headers) {
        return Err((Reason::InputHeaderMismatch, "headers name another method, path or host than the proxy does"));
    }
    let (Some(method), Some(target), Some(host)) = (said.method, said.target, said.host) else {
        return Err((Reason::InputMalformed, "the proxy does not tell the method, the path or the host"));
    };
    if Method::from_bytes(method.as_bytes()).is_err() {
        return Err((Reason::InputMalformed, "the method is none"));
    }
    let (method, path, host) = (method.to_owned(), target.to_owned(), host.to_owned());
    let (is_websocket, scheme, address) = (is_websocket(said.scheme), scheme(said.scheme)?, said.address()?);
    let partial_body = headers.get_all(PARTIAL_BODY).iter().any(|v| v.as_bytes().eq_ignore_ascii_case(b"true"));
    let peer = OwnedPeer { address, ..OwnedPeer::default() };
    let (door, mut headers) = (Door::ForwardAuth, head.headers);
    // These are of the question: it has no body where the client's request may have one, and `content-length: 0` would pass
    // for the client's word that there is none.
    headers.remove(CONTENT_LENGTH);
    headers.remove(TRANSFER_ENCODING);
    if is_websocket && !headers.contains_key(UPGRADE) {
        // The proxy has kept the header for itself, and says so in another way.
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    }
    Ok(Asked { door, method, path, host, scheme, headers, partial_body, body, peer })
}

/// A question of which nothing is known, for what is told of its refusal.
pub(super) fn unread() -> Asked {
    Asked {
        door: Door::ForwardAuth,
        method: String::new(),
        path: String::new(),
        host: String::new(),
        scheme: Cow::Borrowed(""),
        headers: HeaderMap::new(),
        partial_body: false,
        body: None,
        peer: OwnedPeer::default(),
    }
}

fn host(headers: &HeaderMap) -> Result<&str, Refusal> {
    let mut values = headers.get_all(HOST).iter();
    match (values.next().map(http::HeaderValue::to_str), values.next()) {
        (None, _) => Ok(""),
        (Some(Ok(host)), None) => Ok(host),
        (Some(Err(_)), _) => Err((Reason::InputMalformed, "the host is not ASCII")),
        (Some(_), Some(_)) => Err((Reason::InputDuplicateHeader, "two hosts")),
    }
}

/// Whether the client asks for a WebSocket, which Traefik tells by the scheme alone.
fn is_websocket(scheme: Option<&str>) -> bool {
    scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("ws") || scheme.eq_ignore_ascii_case("wss"))
}

fn scheme(said: Option<&str>) -> Result<Cow<'static, str>, Refusal> {
    match said {
        None => Ok(Cow::Borrowed("")),
        Some(scheme) if scheme.eq_ignore_ascii_case("https") => Ok(Cow::Borrowed("https")),
        Some(scheme) if scheme.eq_ignore_ascii_case("http") => Ok(Cow::Borrowed("http")),
        // What Traefik says of an upgrade to a WebSocket.
        Some(scheme) if scheme.eq_ignore_ascii_case("wss") => Ok(Cow::Borrowed("https")),
        Some(scheme) if scheme.eq_ignore_ascii_case("ws") => Ok(Cow::Borrowed("http")),
        Some(_) => Err((Reason::InputMalformed, "the scheme is neither http nor https")),
    }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    const USUAL: [(&str, &str); 6] = [
        ("host", "sidecar:9192"),
        ("x-forwarded-method", "POST"),
        ("x-forwarded-uri", "/refunds/7?x=1"),
        ("x-forwarded-host", "shop.example"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-for", "10.1.1.1"),
    ];

    fn head(method: &str, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().method(method).uri("/");
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn original() -> Vec<(&'static str, &'static str)> {
        let names =
            ["host", "x-original-method", "x-original-uri", "x-original-host", "x-original-proto", "x-original-for"];
        names.into_iter().zip(USUAL).map(|(name, (_, value))| (name, value)).collect()
    }

    #[test]
    fn every_dialect_tells_the_same_request() {
        let envoy = [("host", "shop.example"), ("x-forwarded-proto", "https"), ("x-forwarded-for", "10.1.1.1")];
        for (dialect, own, head) in [
            (Dialect::Envoy, "/refunds/7?x=1", head("POST", &envoy)),
            (Dialect::Traefik, "", head("GET", &USUAL)),
            (Dialect::Caddy, "", head("GET", &USUAL)),
            (Dialect::Nginx, "", head("GET", &original())),
        ] {
            let asked = asked(dialect, own, head.clone(), Some(Bytes::from_static(b"{}"))).unwrap();
            let told = (&*asked.method, &*asked.path, &*asked.host, &*asked.scheme);
            assert_eq!(told, ("POST", "/refunds/7?x=1", "shop.example", "https"), "{dialect:?}");
            assert_eq!(asked.peer.address, "10.1.1.1".parse().ok(), "{dialect:?}");
            assert_eq!((asked.door, asked.partial_body), (Door::ForwardAuth, false));
            assert_eq!(asked.headers, head.headers, "{dialect:?}: every header is asked about");
            assert_eq!(asked.body.as_deref(), Some(&b"{}"[..]));
        }
    }

    #[test]
    fn what_a_proxy_would_not_say_is_refused() {
        let with = |more: &[(&'static str, &'static str)]| {
            let mut lines = USUAL.to_vec();
            lines.extend(more);
            asked(Dialect::Traefik, "", head("GET", &lines), None).map(|_| ()).unwrap_err().0
        };
        assert_eq!(with(&[("x-forwarded-uri", "/other")]), Reason::InputDuplicateHeader);
        assert_eq!(with(&[("x_forwarded_method", "GET")]), Reason::InputDuplicateHeader);
        assert_eq!(with(&[("x-original-uri", "/other")]), Reason::InputHeaderMismatch);
        let aliases: Vec<_> = (0..33).map(|n| &*format!("x-portcullis-{n}").leak()).map(|name| (name, "1")).collect();
        assert_eq!(with(&aliases), Reason::InputMalformed);
        for (name, value) in [
            ("x-forwarded-method", "G ET"),
            ("x-forwarded-proto", "ftp"),
            ("x-forwarded-proto", "https, http"),
            ("x-forwarded-for", "somebody"),
        ] {
            let lines = USUAL.map(|(n, v)| if n == name { (n, value) } else { (n, v) });
            let refused = asked(Dialect::Caddy, "", head("GET", &lines), None).map(|_| ()).unwrap_err();
            assert_eq!(refused.0, Reason::InputMalformed, "{name}: {value}");
        }
        for missing in ["x-forwarded-method", "x-forwarded-uri", "x-forwarded-host"] {
            let lines: Vec<_> = USUAL.into_iter().filter(|(name, _)| *name != missing).collect();
            let refused = asked(Dialect::Caddy, "", head("GET", &lines), None).map(|_| ()).unwrap_err();
            assert_eq!(refused.0, Reason::InputMalformed, "{missing}");
        }
        // Of another dialect than the path says.
        assert!(asked(Dialect::Nginx, "", head("GET", &USUAL), None).is_err());
        let two_hosts = head("GET", &[("host", "a"), ("host", "b")]);
        assert_eq!(
            asked(Dialect::Envoy, "/", two_hosts, None).map(|_| ()).unwrap_err().0,
            Reason::InputDuplicateHeader
        );
    }

    #[test]
    fn the_framing_of_the_question_is_not_that_of_the_request() {
        let head =
            head("POST", &[("host", "h"), ("content-length", "0"), ("transfer-encoding", "chunked"), ("x-a", "1")]);
        let asked = asked(Dialect::Envoy, "/a", head, None).unwrap();
        let names: Vec<&str> = asked.headers.keys().map(http::HeaderName::as_str).collect();
        assert_eq!((names, asked.body), (vec!["host", "x-a"], None));
    }

    #[test]
    fn an_upgrade_that_only_the_scheme_tells_of_is_told_of() {
        for (scheme, meant) in [("wss", "https"), ("WS", "http")] {
            let lines = USUAL.map(|(n, v)| if n == "x-forwarded-proto" { (n, scheme) } else { (n, v) });
            let asked = asked(Dialect::Traefik, "", head("GET", &lines), None).unwrap();
            assert_eq!((&*asked.scheme, asked.headers[UPGRADE].to_str().unwrap()), (meant, "websocket"));
        }
        assert!(!asked(Dialect::Traefik, "", head("GET", &USUAL), None).unwrap().headers.contains_key(UPGRADE));
    }

    #[test]
    fn a_body_that_envoy_cut_is_told_of() {
        let cut = head("POST", &[("host", "h"), ("x-envoy-auth-partial-body", "true")]);
        assert!(asked(Dialect::Envoy, "/a", cut, None).unwrap().partial_body);
    }
}
