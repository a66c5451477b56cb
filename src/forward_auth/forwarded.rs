//! What a proxy says about its client's request in `X-Forwarded-*` or `X-Original-*`.
//!
//! Pure. The proxy overwrites the exact names of its own family; whatever else could be taken for them is the client's.
//! INVARIANT: each is there once, under its exact name: two of one, or `_` for `-`, is refused. The other family is not
//! used; if it says another method, path or host, somebody along the way may believe that one, and it is refused.

use core::net::{IpAddr, SocketAddr};

use http::{HeaderMap, HeaderValue};

use super::read::Refusal;
use crate::authz::Reason;

/// A set of headers with one beginning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Family {
    /// `X-Forwarded-*`.
    Forwarded,
    /// `X-Original-*`.
    Original,
}

/// What they say, unparsed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Forwarded<'a> {
    pub(super) method: Option<&'a str>,
    pub(super) scheme: Option<&'a str>,
    pub(super) host: Option<&'a str>,
    pub(super) target: Option<&'a str>,
    pub(super) client: Option<&'a str>,
}

// === impl Family ===

impl Family {
    const fn prefix(self) -> &'static str {
        match self {
            Self::Forwarded => "x-forwarded-",
            Self::Original => "x-original-",
        }
    }

    /// What this family says.
    pub(super) fn read(self, headers: &HeaderMap) -> Result<Forwarded<'_>, Refusal> {
        let mut found = Forwarded::default();
        for (name, value) in headers {
            let name = name.as_str();
            let Some(rest) = self.strip(name) else { continue };
            let slot = if is_spelled(rest, "method") {
                &mut found.method
            } else if is_spelled(rest, "proto") {
                &mut found.scheme
            } else if is_spelled(rest, "host") {
                &mut found.host
            } else if is_spelled(rest, "uri") {
                &mut found.target
            } else if is_spelled(rest, "for") {
                &mut found.client
            } else {
                continue;
            };
            if slot.replace(text(value)?).is_some() || name.contains('_') {
                let detail = "a header that the proxy sets occurs twice, or in another spelling";
                return Err((Reason::InputDuplicateHeader, detail));
            }
        }
        Ok(found)
    }

    /// The name without the prefix, which may be spelled with `_`.
    fn strip(self, name: &str) -> Option<&str> {
        let (start, rest) = name.split_at_checked(self.prefix().len())?;
        is_spelled(start, self.prefix()).then_some(rest)
    }

    const fn other(self) -> Self {
        match self {
            Self::Forwarded => Self::Original,
            Self::Original => Self::Forwarded,
        }
    }
}

// === impl Forwarded ===

impl Forwarded<'_> {
    /// Whether no header of the other family says another method, path or host.
    pub(super) fn agrees(&self, own: Family, headers: &HeaderMap) -> bool {
        let other = own.other();
        headers.iter().all(|(name, value)| {
            let said = match other.strip(name.as_str()) {
                Some(rest) if is_spelled(rest, "method") => self.method,
                // `X-Original-URL` is another name of it, which some frameworks take for the path.
                Some(rest) if is_spelled(rest, "uri") || is_spelled(rest, "url") => self.target,
                Some(rest) if is_spelled(rest, "host") => self.host,
                _ => return true,
            };
            said.is_some_and(|said| said.as_bytes() == value.as_bytes())
        })
    }

    /// The address of the proxy's client: the last of the list, which the proxy itself wrote.
    pub(super) fn address(&self) -> Result<Option<IpAddr>, Refusal> {
        let Some(list) = self.client else { return Ok(None) };
        let last = list.rsplit(',').next().unwrap_or(list).trim();
        let address = last.parse().or_else(|_not_an_ip| last.parse::<SocketAddr>().map(|address| address.ip()));
        address.map(Some).map_err(|_neither| (Reason::InputMalformed, "the client's address is none"))
    }
}

/// Compares names as a server may that takes `_` for `-`. They are in lower case.
fn is_spelled(name: &str, canonical: &str) -> bool {
    name.len() == canonical.len()
        && name.bytes().zip(canonical.bytes()).all(|(a, b)| a == b || (a == b'_' && b == b'-'))
}

fn text(value: &HeaderValue) -> Result<&str, Refusal> {
    value.to_str().map_err(|_not_ascii| (Reason::InputMalformed, "a header that the proxy sets is not ASCII"))
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;

    fn headers(lines: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            map.append(name, HeaderValue::from_bytes(value.as_bytes()).unwrap());
        }
        map
    }

    #[test]
    fn a_family_is_read_whole_and_the_other_is_not_used() {
        let headers = headers(&[
            ("X-Forwarded-Method", "POST"),
            ("X-Forwarded-Proto", "https"),
            ("X-Forwarded-Host", "a.example"),
            ("X-Forwarded-Uri", "/a?b"),
            ("X-Forwarded-For", "10.0.0.1"),
            ("X-Forwarded-Port", "443"),
            ("X-Original-Method", "GET"),
        ]);
        let read = Family::Forwarded.read(&headers).unwrap();
        let [method, scheme, host] = ["POST", "https", "a.example"].map(Some);
        assert_eq!(read, Forwarded { method, scheme, host, target: Some("/a?b"), client: Some("10.0.0.1") });
        let read = Family::Original.read(&headers).unwrap();
        assert_eq!(read, Forwarded { method: Some("GET"), ..Forwarded::default() });
    }

    #[test]
    fn what_could_be_read_twice_is_refused() {
        for lines in [
            [("x-forwarded-uri", "/a"), ("x-forwarded-uri", "/a")],
            [("x-forwarded-uri", "/a"), ("x_forwarded_uri", "/b")],
            [("x-forwarded-method", "GET"), ("x-forwarded_method", "GET")],
            [("x-forwarded-for", "1.1.1.1"), ("x-forwarded-for", "2.2.2.2")],
            [("x-other", "1"), ("x_forwarded-host", "only the alias")],
        ] {
            assert_eq!(
                Family::Forwarded.read(&headers(&lines)).unwrap_err().0,
                Reason::InputDuplicateHeader,
                "{lines:?}"
            );
            assert!(Family::Original.read(&headers(&lines)).is_ok(), "{lines:?}");
        }
        let not_ascii = headers(&[("x-original-uri", "/\u{e9}")]);
        assert_eq!(Family::Original.read(&not_ascii).unwrap_err().0, Reason::InputMalformed);
    }

    #[test]
    fn the_other_family_may_say_the_same_and_nothing_else() {
        let own = Forwarded { method: Some("GET"), target: Some("/a"), host: Some("h"), ..Forwarded::default() };
        for (name, value, agrees) in [
            ("x-original-uri", "/a", true),
            ("x-original-uri", "/admin", false),
            ("x_original_uri", "/admin", false),
            ("x-original-url", "/admin", false),
            ("x-original-method", "POST", false),
            ("x-original-host", "h", true),
            ("x-original-host", "other", false),
            ("x-original-proto", "ftp", true),
            ("x-original-for", "1.1.1.1", true),
            ("x-forwarded-uri", "/b", true),
        ] {
            assert_eq!(own.agrees(Family::Forwarded, &headers(&[(name, value)])), agrees, "{name}: {value}");
        }
        let nothing = Forwarded::default();
        assert!(!nothing.agrees(Family::Original, &headers(&[("x-forwarded-method", "GET")])));
    }

    #[test]
    fn the_client_is_the_last_of_the_list() {
        let of = |client| Forwarded { client: Some(client), ..Forwarded::default() }.address();
        assert_eq!(of("6.6.6.6, 10.0.0.1"), Ok("10.0.0.1".parse().ok()));
        assert_eq!(of("10.0.0.1:4711"), Ok("10.0.0.1".parse().ok()));
        assert_eq!(of("[::1]:4711"), Ok("::1".parse().ok()));
        assert_eq!(of("2001:db8::1"), Ok("2001:db8::1".parse().ok()));
        for none in ["", "unknown", "10.0.0.1,", "10.0.0.1 10.0.0.2"] {
            assert_eq!(of(none).unwrap_err().0, Reason::InputMalformed, "{none}");
        }
        assert_eq!(Forwarded::default().address(), Ok(None));
    }
}
