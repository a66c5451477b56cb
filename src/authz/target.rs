//! Whether a URI in a proof of possession is that of the request (RFC 3986, section 6.2; RFC 9449, section 4.3, check 9).
//!
//! Pure. Compared after normalisation: scheme and host in any case, the scheme's own port left out, the path in the one
//! spelling that the engine decides on. Query and fragment are ignored. A service that names its origins is known by
//! those and no other; one that does not is known by what the request says of itself, which its sender chose. What
//! cannot be read is not the request's URI.

use std::borrow::Cow;

use super::path::CanonicalPath;

/// The URI of a request, but for its query.
#[derive(Debug, Clone, Copy)]
pub(super) struct Target<'a> {
    /// The origins that clients know the service by; empty: the request's own.
    pub(super) origins: &'a [Box<str>],
    /// The request's scheme, as the proxy saw it; empty if it does not say, and then only `origins` can match.
    pub(super) scheme: &'a str,
    /// The request's authority, as sent.
    pub(super) authority: &'a str,
    pub(super) path: &'a CanonicalPath<'a>,
}

/// Scheme, host and port.
#[derive(Debug, PartialEq, Eq)]
struct Origin<'a> {
    is_https: bool,
    /// In lower case.
    host: Cow<'a, str>,
    port: u16,
}

// === impl Target ===

impl Target<'_> {
    /// Whether `uri` is this.
    pub(super) fn is(&self, uri: &str) -> bool {
        let Some((scheme, rest)) = uri.split_once("://") else { return false };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let Some((authority, path)) = rest.split_at_checked(end) else { return false };
        let path = path.split(['?', '#']).next().unwrap_or_default();
        let Some(origin) = Origin::new(scheme, authority) else { return false };
        let ours = if self.origins.is_empty() {
            Origin::new(self.scheme, self.authority).is_some_and(|own| own == origin)
        } else {
            self.origins.iter().filter_map(|known| Origin::parse(known)).any(|known| known == origin)
        };
        // An empty path and `/` are the same (RFC 3986, section 6.2.3).
        let path = if path.is_empty() { "/" } else { path };
        ours && CanonicalPath::parse(path).is_ok_and(|path| path == *self.path)
    }
}

// === impl Origin ===

impl<'a> Origin<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let (scheme, authority) = text.split_once("://")?;
        Self::new(scheme, authority)
    }

    fn new(scheme: &str, authority: &'a str) -> Option<Self> {
        let is_https = match scheme {
            s if s.eq_ignore_ascii_case("https") => true,
            s if s.eq_ignore_ascii_case("http") => false,
            _ => return None,
        };
        // The port follows the last colon that is not inside an IPv6 address. No user information: `@` is refused.
        let (host, port) = match authority.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port),
            _ => (authority, ""),
        };
        let port = match port {
            "" if is_https => 443,
            "" => 80,
            port if port.bytes().all(|b| b.is_ascii_digit()) && !port.starts_with('0') => port.parse().ok()?,
            _ => return None,
        };
        let name = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        let address = |b: u8| b.is_ascii_hexdigit() || matches!(b, b':' | b'.');
        let valid = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            Some(inner) => !inner.is_empty() && inner.bytes().all(address),
            None => !host.is_empty() && host.bytes().all(name),
        };
        if !valid {
            return None;
        }
        let host = match host.bytes().any(|b| b.is_ascii_uppercase()) {
            true => Cow::Owned(host.to_ascii_lowercase()),
            false => Cow::Borrowed(host),
        };
        Some(Self { is_https, host, port })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is(origins: &[&str], scheme: &str, authority: &str, path: &str, uri: &str) -> bool {
        let origins: Vec<Box<str>> = origins.iter().map(|o| (*o).into()).collect();
        let path = CanonicalPath::parse(path).unwrap();
        Target { origins: &origins, scheme, authority, path: &path }.is(uri)
    }

    #[test]
    fn one_uri_in_its_equal_spellings() {
        for uri in [
            "https://shop.example/a/%40",
            "HTTPS://SHOP.example:443/a/@",
            "https://shop.example:/a/@?q=1",
            "https://shop.example/a/%40#f",
        ] {
            assert!(is(&[], "https", "shop.example", "/a/@?x=2", uri), "{uri}");
            assert!(is(&[], "https", "Shop.Example:443", "/a/%40", uri), "{uri}");
            assert!(is(&["https://shop.example"], "http", "10.0.0.1", "/a/@", uri), "{uri}");
        }
        assert!(is(&[], "http", "[::1]:8080", "/", "http://[::1]:8080"));
        assert!(is(&["https://b.example", "https://a.example:8443"], "", "", "/x", "https://a.example:8443/x"));
    }

    #[test]
    fn anything_else_is_another_uri() {
        for uri in [
            "",
            "/a/@",
            "shop.example/a/@",
            "http://shop.example/a/@",
            "ftp://shop.example/a/@",
            "https:/shop.example/a/@",
            "https:///a/@",
            "https://shop.example./a/@",
            "https://shop.example:444/a/@",
            "https://shop.example:0443/a/@",
            "https://shop.example:+443/a/@",
            "https://shop.example:99999/a/@",
            "https://user@shop.example/a/@",
            "https://shop.example@evil.example/a/@",
            "https://evil.example/a/@",
            "https://shop.example.evil.example/a/@",
            "https://shop%2Eexample/a/@",
            "https://shop.example\\/a/@",
            "https://shop.example/A/@",
            "https://shop.example/a/@/",
            "https://shop.example/a/b/../@",
            "https://shop.example/a%2F@",
            "https://shop.example//a/@",
            "https://shop.example?/a/@",
            "https://shop.example#/a/@",
            " https://shop.example/a/@",
        ] {
            assert!(!is(&[], "https", "shop.example", "/a/@", uri), "{uri}");
            assert!(!is(&["https://shop.example"], "https", "evil.example", "/a/@", uri), "{uri}");
        }
        assert!(!is(&[], "", "shop.example", "/a", "https://shop.example/a"), "no scheme, no match");
        assert!(!is(&["https://shop.example"], "https", "other.example", "/a", "https://other.example/a"));
    }
}
