//! Where keys may be fetched from: hosts by an allow-list, and addresses that are on the public internet or listed.
//!
//! Plane: control. Against requests forged by way of an issuer's URL (SSRF): a host must be listed, every address is
//! judged after the name has been resolved, and the connection is then made to judged addresses only, so that a name
//! that resolves differently a moment later changes nothing. Fails closed: what is not known to be public is not.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::str::FromStr;

use reqwest::Url;

use super::error::FetchError;
use crate::authz::Network;

/// A host that may be asked for keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostPattern {
    /// This host name or IP address.
    Exact(String),
    /// Every name that ends with this, which starts with a dot.
    Below(String),
}

/// What may be asked for keys, beside what is public.
#[derive(Debug, Clone, Default)]
pub struct Allowed {
    /// Hosts. Empty: none.
    pub hosts: Vec<HostPattern>,
    /// Networks that are not public and may be connected to all the same.
    pub networks: Vec<Network>,
}

/// A URL whose host is allowed, with the addresses to connect to.
#[derive(Debug)]
pub(super) struct Vetted {
    pub(super) host: String,
    pub(super) addresses: Vec<SocketAddr>,
}

// === impl Allowed ===

impl Allowed {
    /// Resolves the host of `url`, and keeps the addresses that may be connected to.
    pub(super) async fn vet(&self, url: &Url) -> Result<Vetted, FetchError> {
        if url.scheme() != "https" || !url.username().is_empty() || url.password().is_some() {
            return Err(FetchError::refused("keys come from an https URL without user name and password only"));
        }
        let host = url.host_str().unwrap_or_default();
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        if !self.hosts.iter().any(|pattern| pattern.matches(bare)) {
            return Err(FetchError::refused(format!("host `{bare}` is not in `keys.allowed_hosts`")));
        }
        let port = url.port_or_known_default().unwrap_or(443);
        let resolved: Vec<SocketAddr> = match bare.parse::<IpAddr>() {
            Ok(ip) => vec![SocketAddr::new(ip, port)],
            Err(_name) => tokio::net::lookup_host((bare, port))
                .await
                .map_err(|e| FetchError::unreachable(format!("host `{bare}` cannot be resolved: {e}")))?
                .collect(),
        };
        let addresses: Vec<SocketAddr> = resolved.iter().copied().filter(|a| self.may_connect(a.ip())).collect();
        if addresses.is_empty() {
            let what = resolved.first().map_or_else(|| "no address".to_owned(), |a| format!("`{}`", a.ip()));
            let why = format!("host `{bare}` has {what}, which is neither public nor in `keys.allowed_networks`");
            return Err(FetchError::refused(why));
        }
        Ok(Vetted { host: host.to_owned(), addresses })
    }

    fn may_connect(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        is_public(ip) || self.networks.iter().any(|network| network.contains(ip))
    }
}

/// Whether an address is of the public internet (IANA special-purpose registries, RFC 6890).
fn is_public(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(ip) => is_public_v4(ip),
        IpAddr::V6(ip) => is_public_v6(ip),
    }
}

fn is_public_v4(ip: Ipv4Addr) -> bool {
    let [a, b, c, _] = ip.octets();
    let special = match a {
        0 | 10 | 127 => true,
        100 => (64..128).contains(&b),
        169 => b == 254,
        172 => (16..32).contains(&b),
        192 => matches!((b, c), (168, _) | (0, 0 | 2) | (88, 99)),
        198 => matches!((b, c), (18 | 19, _) | (51, 100)),
        203 => (b, c) == (0, 113),
        _ => a >= 224,
    };
    !special
}

fn is_public_v6(ip: Ipv6Addr) -> bool {
    let [a, b, ..] = ip.segments();
    // Global unicast, less the protocol assignments (Teredo among them), documentation, and 6to4, which embeds an
    // address of the other family.
    let special = match a {
        0x2001 => b < 0x200 || b == 0xdb8,
        0x2002 => true,
        0x3fff => b < 0x1000,
        _ => false,
    };
    a & 0xe000 == 0x2000 && !special
}

// === impl HostPattern ===

impl HostPattern {
    fn matches(&self, host: &str) -> bool {
        match self {
            Self::Exact(name) => name == host,
            Self::Below(suffix) => {
                host.len() > suffix.len() && host.ends_with(suffix.as_str()) && host.parse::<IpAddr>().is_err()
            }
        }
    }
}

impl FromStr for HostPattern {
    type Err = String;

    fn from_str(s: &str) -> Result<Self, Self::Err> {
        let bad = |why: &str| format!("`{s}` is not a host such as `idp.example` or `*.example.org`: {why}");
        if let Ok(ip) = s.parse::<IpAddr>() {
            return Ok(Self::Exact(ip.to_string()));
        }
        let (name, below) = match s.strip_prefix("*.") {
            Some(rest) => (rest, true),
            None => (s, false),
        };
        let is_label = |label: &str| {
            (1..=63).contains(&label.len())
                && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
                && !label.starts_with('-')
                && !label.ends_with('-')
        };
        if name.len() > 253 || !name.split('.').all(is_label) {
            return Err(bad("it has no scheme, port or path, and `*` only stands in front of a dot"));
        }
        if below && !name.contains('.') {
            return Err(bad("a whole top-level domain is too much"));
        }
        let name = name.to_ascii_lowercase();
        Ok(if below { Self::Below(format!(".{name}")) } else { Self::Exact(name) })
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(name) => f.write_str(name),
            Self::Below(suffix) => write!(f, "*{suffix}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_public_addresses_are_public() {
        for ip in ["8.8.8.8", "1.1.1.1", "100.128.0.1", "172.32.0.1", "2606:4700::1111", "2a00:1450::1"] {
            assert!(is_public(ip.parse().unwrap()), "{ip}");
        }
        for ip in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.16.0.1",
            "192.0.0.8",
            "192.168.1.1",
            "198.18.0.1",
            "224.0.0.1",
            "240.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "fe80::1",
            "fd00::1",
            "ff02::1",
            "2001:db8::1",
            "2001::1",
            "2002:7f00:1::",
            "64:ff9b::7f00:1",
            "::127.0.0.1",
            "::ffff:10.0.0.1",
            "::ffff:8.8.8.8",
        ] {
            assert!(!is_public(ip.parse().unwrap()), "{ip}");
        }
    }

    #[test]
    fn a_mapped_address_is_judged_as_what_it_stands_for() {
        let allowed = Allowed { hosts: Vec::new(), networks: vec!["10.0.0.0/8".parse().unwrap()] };
        assert!(allowed.may_connect("::ffff:10.0.0.1".parse().unwrap()));
        assert!(allowed.may_connect("::ffff:8.8.8.8".parse().unwrap()));
        assert!(!allowed.may_connect("::ffff:127.0.0.1".parse().unwrap()));
    }

    #[test]
    fn hosts_match_exactly_or_below_a_suffix() {
        let matches = |pattern: &str, host: &str| pattern.parse::<HostPattern>().unwrap().matches(host);
        assert!(matches("IdP.example", "idp.example"));
        assert!(!matches("idp.example", "idp.example.evil"));
        assert!(matches("*.example.org", "a.b.example.org"));
        assert!(!matches("*.example.org", "example.org"));
        assert!(!matches("*.example.org", "evilexample.org"));
        assert!(matches("127.0.0.1", "127.0.0.1"));
        assert!(matches("::1", "::1"));
        for bad in ["", "*", "*.com", "a.*.b", "https://idp.example", "idp.example:443", "a..b", "idp.example.", "-a.b"]
        {
            let error = bad.parse::<HostPattern>().unwrap_err();
            assert!(error.contains(&format!("`{bad}`")), "{error}");
        }
    }
}
