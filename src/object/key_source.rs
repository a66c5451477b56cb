//! Where the control plane keeps an issuer's key set up to date from.
//!
//! Pure: only says where. Nothing but the control plane fetches, and only from hosts and networks that its own
//! configuration lists; a sidecar receives the key set and never the need to fetch.

use serde::{Deserialize, Serialize};

use super::issuer::{IssuerKind, Jwks};
use super::{FieldError, check_text};
use crate::credential::SpiffeId;

/// A source of keys.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum KeySource {
    /// A key set at an https URL (RFC 7517).
    JwksUri {
        /// The URL.
        url: String,
    },
    /// `jwks_uri` of the OpenID provider metadata below the issuer's own URL (OpenID Connect Discovery 1.0, section 4).
    Discovery {},
    /// A SPIFFE bundle endpoint with Web PKI (Federation standard, section 5.2.1).
    HttpsWeb {
        /// The URL.
        url: String,
    },
    /// A SPIFFE bundle endpoint that shows an X.509-SVID (Federation standard, section 5.2.2).
    HttpsSpiffe {
        /// The URL.
        url: String,
        /// The SPIFFE ID that the endpoint must show.
        endpoint_id: SpiffeId,
        /// A bundle with the X.509 authorities of the endpoint's trust domain, for when `jwks` holds none of them: before
        /// the first fetch, or when the endpoint is in another trust domain.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        endpoint_bundle: Option<Jwks>,
    },
    /// The SPIFFE Workload API at the socket of the control plane's configuration.
    WorkloadApi {},
    /// A file in the key directory of the control plane's configuration, read again when it changes.
    File {
        /// Its name, without a path.
        name: String,
    },
}

// === impl KeySource ===

impl KeySource {
    /// The names used in documents, by number.
    pub const NAMES: [&'static str; 6] = ["jwks_uri", "discovery", "https_web", "https_spiffe", "workload_api", "file"];

    /// Which kind of source it is: the place of its name in [`KeySource::NAMES`].
    pub const fn number(&self) -> usize {
        match self {
            Self::JwksUri { .. } => 0,
            Self::Discovery {} => 1,
            Self::HttpsWeb { .. } => 2,
            Self::HttpsSpiffe { .. } => 3,
            Self::WorkloadApi {} => 4,
            Self::File { .. } => 5,
        }
    }

    /// The name used in documents.
    pub fn name(&self) -> &'static str {
        Self::NAMES.get(self.number()).copied().unwrap_or_default()
    }

    pub(super) fn check(&self, kind: IssuerKind) -> Result<(), FieldError> {
        let fits = match self {
            Self::HttpsWeb { .. } | Self::HttpsSpiffe { .. } | Self::WorkloadApi {} => kind == IssuerKind::Spiffe,
            Self::JwksUri { .. } | Self::Discovery {} => kind != IssuerKind::Spiffe,
            Self::File { .. } => true,
        };
        if !fits {
            let message = format!("issuers of kind `{kind}` do not have keys from `{}`", self.name());
            return Err(FieldError::new("keys_from.type", message));
        }
        match self {
            Self::JwksUri { url } | Self::HttpsWeb { url } => check_url(url),
            Self::HttpsSpiffe { url, endpoint_bundle, .. } => {
                check_url(url)?;
                endpoint_bundle.as_ref().map_or(Ok(()), |bundle| {
                    bundle.check().map_err(|e| FieldError::new("keys_from.endpoint_bundle", e.to_string()))
                })
            }
            Self::File { name } => {
                let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
                if name.is_empty() || name.len() > 128 || name.starts_with('.') || !name.bytes().all(ok) {
                    let message = format!("`{name}` is not a file name without a path");
                    return Err(FieldError::new("keys_from.name", message));
                }
                Ok(())
            }
            Self::Discovery {} | Self::WorkloadApi {} => Ok(()),
        }
    }
}

/// What the shape of a URL alone can tell; the control plane checks host and address before it fetches.
fn check_url(url: &str) -> Result<(), FieldError> {
    check_text("keys_from.url", url, 2048)?;
    let host = url.strip_prefix("https://").and_then(|rest| rest.split(['/', '?', '#']).next());
    match host {
        Some(host) if !host.is_empty() && !host.contains('@') && !url.contains('#') => Ok(()),
        _ => Err(FieldError::new("keys_from.url", format!("`{url}` is not an https URL without user and fragment"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_source_is_called_what_its_document_says() {
        let url = "https://a.example/keys".to_owned();
        for source in [
            KeySource::JwksUri { url: url.clone() },
            KeySource::Discovery {},
            KeySource::HttpsWeb { url: url.clone() },
            KeySource::HttpsSpiffe { url, endpoint_id: "spiffe://a/b".parse().unwrap(), endpoint_bundle: None },
            KeySource::WorkloadApi {},
            KeySource::File { name: "keys.json".to_owned() },
        ] {
            assert_eq!(serde_json::to_value(&source).unwrap()["type"], source.name());
        }
    }
}
