//! One GET for a document of keys, under limits; the parts of it are there for the control plane's other requests too.
//!
//! Plane: control. https only, no proxy, no redirect, no cookie, a body up to a bound; the caller bounds the time. Keys are
//! asked for without a credential of ours, and on connections to vetted addresses only. A client is made for each request, so
//! that a changed CA file counts at the next one and nothing of one issuer's connection is used for another's. Any other
//! answer than the expected status fails.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, ClientBuilder, Response, StatusCode, Url, redirect};
use rustls::ClientConfig;

use super::error::FetchError;
use super::vet::{Allowed, Vetted};
use crate::tls::{self, ClientFiles};

/// How documents are fetched.
#[derive(Debug, Clone)]
pub(super) struct Http {
    pub(super) allowed: Allowed,
    /// Trusted instead of the system's CAs.
    pub(super) ca_file: Option<PathBuf>,
    pub(super) timeout: Duration,
    pub(super) max_bytes: usize,
}

/// Who may answer.
#[derive(Debug, Clone)]
pub(super) enum Peer {
    /// Whoever has a certificate for the host.
    WebPki,
    /// Whom this configuration lets in.
    Configured(Arc<ClientConfig>),
}

// === impl Http ===

impl Http {
    /// Fetches a document.
    pub(super) async fn get(&self, url: &str, peer: Peer) -> Result<Vec<u8>, FetchError> {
        let url = Url::parse(url).map_err(|e| FetchError::refused(format!("it is not a URL: {e}")))?;
        let vetted = self.allowed.vet(&url).await?;
        let host = vetted.host.clone();
        let client = self.client(vetted, peer).await?;
        let request = client.get(url).header(reqwest::header::ACCEPT, "application/json");
        let response = request.send().await.map_err(|e| failed(&host, e))?;
        body(response, &host, &[StatusCode::OK], self.max_bytes).await
    }

    pub(super) async fn client(&self, vetted: Vetted, peer: Peer) -> Result<Client, FetchError> {
        let configured = match (peer, &self.ca_file) {
            (Peer::Configured(config), _) => Some(config),
            (Peer::WebPki, Some(path)) => Some(private_ca(path.clone(), "keys.ca_file").await?),
            (Peer::WebPki, None) => None,
        };
        let builder = bounded(self.timeout).resolve_to_addrs(&vetted.host, &vetted.addresses);
        built(builder, configured)
    }
}

/// A client that makes one bounded request, to whom it was told and no further.
pub(in crate::control) fn bounded(timeout: Duration) -> ClientBuilder {
    Client::builder()
        .https_only(true)
        .no_proxy()
        .redirect(redirect::Policy::none())
        .http1_only()
        .referer(false)
        .pool_max_idle_per_host(0)
        .timeout(timeout)
        .user_agent(concat!("portcullis/", env!("CARGO_PKG_VERSION")))
}

/// With this TLS instead of the system's CAs, if there is one.
pub(in crate::control) fn built(
    mut builder: ClientBuilder,
    tls: Option<Arc<ClientConfig>>,
) -> Result<Client, FetchError> {
    if let Some(config) = tls {
        builder = builder.tls_backend_preconfigured((*config).clone());
    }
    builder.build().map_err(|e| FetchError::refused(format!("no HTTP client: {}", causes(&e))))
}

/// TLS that trusts the CAs of the file which the configuration has under `key`.
pub(in crate::control) async fn private_ca(ca_file: PathBuf, key: &str) -> Result<Arc<ClientConfig>, FetchError> {
    let files = ClientFiles { ca_file, identity: None };
    let read = move || tls::client_config(&files, tls::TLS12_UP, &[tls::ALPN_HTTP1]);
    let config = tokio::task::spawn_blocking(read).await.map_err(|e| FetchError::refused(e.to_string()))?;
    config.map_err(|e| FetchError::refused(format!("`{key}`: {e}")))
}

/// The body of an answer, if its status is one of `good` and it has at most `max` bytes.
pub(in crate::control) async fn body(
    mut response: Response,
    host: &str,
    good: &[StatusCode],
    max: usize,
) -> Result<Vec<u8>, FetchError> {
    let status = response.status();
    if status.is_redirection() {
        let code = status.as_u16();
        return Err(FetchError::answer(format!("`{host}` answered {code}, and redirects are not followed")));
    }
    if !good.contains(&status) {
        return Err(FetchError::answer(format!("`{host}` answered {}", status.as_u16())));
    }
    let too_large = || FetchError::answer(format!("`{host}` answered with more than {max} bytes"));
    if response.content_length().is_some_and(|n| n > max as u64) {
        return Err(too_large());
    }
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(|e| failed(host, e))? {
        if body.len() + chunk.len() > max {
            return Err(too_large());
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body)
}

/// A request that was not answered.
pub(in crate::control) fn failed(host: &str, error: reqwest::Error) -> FetchError {
    FetchError::unreachable(format!("`{host}`: {}", causes(&error.without_url())))
}

/// An error with what caused it, on one line.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}
