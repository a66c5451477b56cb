//! What the next server is told about the client's connection: `Forwarded` (RFC 7239) and `X-Forwarded-*`.
//!
//! Pure; hot path. INVARIANT: what a client says of itself in these headers, in any spelling, is neither decided on nor does
//! it reach the upstream; only a listed peer, which is a proxy of ours, is added to, and only by the names themselves. What never changes on a connection is made once for it.

use core::net::IpAddr;
use std::fmt::Write;

use http::{HeaderMap, HeaderName, HeaderValue};
use smallvec::SmallVec;

const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
const PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Beside all that begin with `x-forwarded-`.
const OTHERS: [&str; 7] =
    ["forwarded", "x-real-ip", "x-client-ip", "true-client-ip", "client-cert", "client-cert-chain", "via"];

/// What is said of one connection.
#[derive(Debug, Clone)]
pub(super) struct Said {
    /// The client's address.
    address: HeaderValue,
    scheme: HeaderValue,
    /// `for=…;proto=…`, without the host.
    element: String,
    /// It is a proxy of ours, whose own word is kept.
    is_listed: bool,
}

// === impl Said ===

impl Said {
    pub(super) fn new(address: IpAddr, scheme: &'static str, is_listed: bool) -> Self {
        let address = address.to_canonical();
        let element = match address {
            IpAddr::V4(address) => format!("for={address};proto={scheme}"),
            IpAddr::V6(address) => format!("for=\"[{address}]\";proto={scheme}"),
        };
        // An address is always a header value.
        let text = HeaderValue::from_str(&address.to_string());
        let address = text.unwrap_or(HeaderValue::from_static("unknown"));
        Self { address, scheme: HeaderValue::from_static(scheme), element, is_listed }
    }

    /// Takes out what the client may not say. `counts` tells what is to stay nevertheless.
    pub(super) fn take_out(&self, headers: &mut HeaderMap, counts: impl Fn(&str) -> bool) {
        let goes = |name: &&HeaderName| {
            let name = name.as_str();
            is_ours(name) && (!self.is_listed || name.contains('_')) && !counts(name)
        };
        let names: SmallVec<[HeaderName; 4]> = headers.keys().filter(goes).cloned().collect();
        names.iter().for_each(|name| drop(headers.remove(name)));
    }

    /// Says it in `headers`, in place of what the client said.
    pub(super) fn write(&self, headers: &mut HeaderMap, host: &str) {
        self.take_out(headers, |_name| false);
        let mut element = String::with_capacity(self.element.len() + host.len() + 8);
        element.push_str(&self.element);
        // Only what needs no escape within quotes; the host has been judged before.
        if !host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic() && b != b'"' && b != b'\\') {
            let _ = write!(element, ";host=\"{host}\"");
        }
        if let Ok(element) = HeaderValue::try_from(element) {
            headers.append(FORWARDED, element);
        }
        headers.append(FOR, self.address.clone());
        if !headers.contains_key(PROTO) {
            headers.insert(PROTO, self.scheme.clone());
        }
        if !headers.contains_key(HOST)
            && let Ok(host) = HeaderValue::from_str(host)
        {
            headers.insert(HOST, host);
        }
    }
}

/// Whether a server could take the name for one that tells of the client's connection.
pub(super) fn is_ours(name: &str) -> bool {
    let first = name.as_bytes().first();
    if !matches!(first, Some(b'x' | b'f' | b't' | b'c' | b'v')) {
        return false;
    }
    let same = |ours: &str| ours.bytes().zip(name.bytes()).all(|(a, b)| a == b || (a == b'-' && b == b'_'));
    let prefix = "x-forwarded-";
    (name.len() > prefix.len() && same(prefix)) || OTHERS.iter().any(|ours| ours.len() == name.len() && same(ours))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sent() -> HeaderMap {
        let mut headers = HeaderMap::new();
        for name in [
            "forwarded",
            "x-forwarded-for",
            "x_forwarded_for",
            "x-forwarded-client-cert",
            "x-forwarded-proto",
            "x-real-ip",
            "x_real-ip",
            "client-cert",
            "x-kept",
            "content-type",
        ] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static("10.0.0.1"));
        }
        headers
    }

    fn text(headers: &HeaderMap, name: &str) -> Vec<String> {
        headers.get_all(name).iter().map(|v| v.to_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn a_clients_own_word_is_replaced() {
        let mut headers = sent();
        Said::new("::ffff:192.0.2.1".parse().unwrap(), "https", false).write(&mut headers, "a:1");
        assert_eq!(text(&headers, "forwarded"), ["for=192.0.2.1;proto=https;host=\"a:1\""]);
        assert_eq!(text(&headers, "x-forwarded-for"), ["192.0.2.1"]);
        assert_eq!(text(&headers, "x-forwarded-proto"), ["https"]);
        assert_eq!(text(&headers, "x-forwarded-host"), ["a:1"]);
        assert_eq!(headers.len(), 6, "{headers:?}");
    }

    #[test]
    fn a_listed_peers_word_is_added_to() {
        let mut headers = sent();
        Said::new("2001:db8::1".parse().unwrap(), "http", true).write(&mut headers, "");
        assert_eq!(text(&headers, "forwarded"), ["10.0.0.1", "for=\"[2001:db8::1]\";proto=http"]);
        assert_eq!(text(&headers, "x-forwarded-for"), ["10.0.0.1", "2001:db8::1"]);
        assert_eq!(text(&headers, "x-forwarded-proto"), ["10.0.0.1"]);
        for alias in ["x_forwarded_for", "x_real-ip"] {
            assert!(!headers.contains_key(alias), "another spelling is not what our proxy writes: {alias}");
        }
    }

    #[test]
    fn what_would_break_out_of_the_quotes_is_left_out() {
        let mut headers = HeaderMap::new();
        Said::new("192.0.2.1".parse().unwrap(), "http", false).write(&mut headers, "a\";for=\"10.0.0.1");
        assert_eq!(text(&headers, "forwarded"), ["for=192.0.2.1;proto=http"]);
    }
}
