//! From a source to a key set: what is asked, and how the answer becomes a set of the issuer.
//!
//! Plane: control. Only fetches and reads; whether the set is taken is decided in `install`. What an issuer's metadata
//! says counts only when it names that very issuer, and where it points to is vetted like everything else.

use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::FetchError;
use super::http::{Http, Peer};
use super::spiffe_tls;
use super::workload_api::Hub;
use crate::credential::{SpiffeId, parse_key_set, strict_json};
use crate::object::{Issuer, Jwks, KeySource};

/// Where everything comes from.
#[derive(Debug)]
pub(super) struct Sources {
    pub(super) http: Http,
    /// The key directory.
    pub(super) directory: Option<PathBuf>,
    pub(super) workload_api: Option<Arc<Hub>>,
}

// === impl Sources ===

impl Sources {
    /// The key set that the issuer's source holds now.
    pub(super) async fn fetch(&self, issuer: &Issuer, source: &KeySource) -> Result<Jwks, FetchError> {
        match source {
            KeySource::JwksUri { url } | KeySource::HttpsWeb { url } => {
                Ok(parse_key_set(&self.http.get(url, Peer::WebPki).await?)?)
            }
            KeySource::Discovery {} => self.discover(issuer.authority()).await,
            KeySource::HttpsSpiffe { url, endpoint_id, endpoint_bundle } => {
                let bundle = bundle_of_endpoint(issuer, endpoint_id, endpoint_bundle.as_ref())?;
                let peer = Peer::Configured(spiffe_tls::client(endpoint_id, bundle)?);
                Ok(parse_key_set(&self.http.get(url, peer).await?)?)
            }
            KeySource::WorkloadApi {} => {
                let hub = self.workload_api.as_ref();
                hub.ok_or_else(|| FetchError::refused("`keys.workload_api` is not configured"))?
                    .bundle(issuer.authority())
            }
            KeySource::File { name } => {
                let directory = self.directory.as_ref();
                let directory = directory.ok_or_else(|| FetchError::refused("`keys.directory` is not configured"))?;
                let (path, max) = (directory.join(name), self.http.max_bytes);
                let read = tokio::task::spawn_blocking(move || read_file(&path, max)).await;
                Ok(parse_key_set(&read.map_err(|e| FetchError::unreachable(e.to_string()))??)?)
            }
        }
    }

    /// OpenID Connect Discovery 1.0, section 4: metadata below the issuer's URL, and the key set that it names.
    async fn discover(&self, issuer: &str) -> Result<Jwks, FetchError> {
        if !issuer.starts_with("https://") || issuer.contains(['?', '#']) {
            let why = format!("`{issuer}` has no metadata: it is not an https URL without query and fragment");
            return Err(FetchError::refused(why));
        }
        let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let metadata = self.http.get(&url, Peer::WebPki).await?;
        let metadata = strict_json(&metadata).map_err(|e| FetchError::invalid(format!("the metadata {e}")))?;
        let member = |name: &str| metadata.get(name).and_then(serde_json::Value::as_str);
        if member("issuer") != Some(issuer) {
            let why = format!("the metadata is not that of `{issuer}`: its `issuer` is missing or another");
            return Err(FetchError::invalid(why));
        }
        let Some(jwks_uri) = member("jwks_uri") else {
            return Err(FetchError::invalid("the metadata has no `jwks_uri`"));
        };
        Ok(parse_key_set(&self.http.get(jwks_uri, Peer::WebPki).await?)?)
    }
}

/// The bundle that vouches for the endpoint: the issuer's own when the endpoint is in its trust domain, or, until it has
/// been fetched for the first time, the one that the operator gave for the purpose. Another domain's is always given.
fn bundle_of_endpoint<'a>(
    issuer: &'a Issuer,
    endpoint: &SpiffeId,
    given: Option<&'a Jwks>,
) -> Result<&'a Jwks, FetchError> {
    if endpoint.trust_domain() == issuer.authority() {
        if spiffe_tls::has_authorities(&issuer.jwks) {
            return Ok(&issuer.jwks);
        }
        // What the bundle has revoked since does not vouch for it again.
        if issuer.keys_fetched {
            let why = "the bundle that was fetched has no X.509 authority, so nothing can vouch for its endpoint; \
                       delete the issuer and put it anew";
            return Err(FetchError::refused(why));
        }
    }
    given.ok_or_else(|| FetchError::refused("neither `jwks` nor `keys_from.endpoint_bundle` has an X.509 authority"))
}

fn read_file(path: &Path, max: usize) -> Result<Vec<u8>, FetchError> {
    let name = path.file_name().unwrap_or_default().display();
    let failed = |e: std::io::Error| FetchError::unreachable(format!("file `{name}` of the key directory: {e}"));
    // Opening a pipe would wait for who writes to it.
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let file = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path).map_err(failed)?;
    // Not a pipe or a device, from which reading might never end.
    if !file.metadata().map_err(failed)?.is_file() {
        return Err(FetchError::refused(format!("`{name}` of the key directory is not a file")));
    }
    let mut bytes = Vec::new();
    file.take(max as u64 + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() > max {
        return Err(FetchError::answer(format!("file `{name}` of the key directory has more than {max} bytes")));
    }
    Ok(bytes)
}
