//! The ways in which proxies ask, and the path of each.
//!
//! Pure. A dialect is known by the path alone, which the proxy's configuration says and no client can choose: of Envoy's,
//! the client's own path is only what follows.

/// How a proxy asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dialect {
    /// Envoy's HTTP ext_authz service: the client's method, and its path after a prefix.
    Envoy,
    /// Traefik's `forwardAuth`: `X-Forwarded-*`.
    Traefik,
    /// Caddy's `forward_auth`: `X-Forwarded-*`.
    Caddy,
    /// nginx's `auth_request`: `X-Original-*`, as the configuration sets them.
    Nginx,
}

impl Dialect {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Envoy, Self::Traefik, Self::Caddy, Self::Nginx];

    /// What it is asked under.
    pub const fn path(self) -> &'static str {
        match self {
            Self::Envoy => "/envoy",
            Self::Traefik => "/traefik",
            Self::Caddy => "/caddy",
            Self::Nginx => "/nginx",
        }
    }

    /// The dialect of a request target, and of Envoy's the client's own target.
    pub(super) fn of(target: &str) -> Option<(Self, &str)> {
        if let Some(own) = target.strip_prefix(Self::Envoy.path()) {
            return Some((Self::Envoy, own));
        }
        let path = target.split('?').next().unwrap_or(target);
        [Self::Traefik, Self::Caddy, Self::Nginx].into_iter().find(|d| d.path() == path).map(|d| (d, ""))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_path_tells_the_dialect() {
        assert_eq!(Dialect::of("/envoy/a/b?c"), Some((Dialect::Envoy, "/a/b?c")));
        // Whatever follows Envoy's prefix is for the engine to refuse.
        assert_eq!(Dialect::of("/envoy*"), Some((Dialect::Envoy, "*")));
        assert_eq!(Dialect::of("/envoy//a"), Some((Dialect::Envoy, "//a")));
        assert_eq!(Dialect::of("/envoy/traefik"), Some((Dialect::Envoy, "/traefik")));
        for dialect in [Dialect::Traefik, Dialect::Caddy, Dialect::Nginx] {
            assert_eq!(Dialect::of(dialect.path()), Some((dialect, "")));
            assert_eq!(Dialect::of(&format!("{}?a=b", dialect.path())), Some((dialect, "")));
        }
        for other in ["", "/", "/Envoy/a", "/traefik/", "/traefik/a", "/nginxx", "/access/v1/evaluation", "*"] {
            assert_eq!(Dialect::of(other), None, "{other}");
        }
    }
}
