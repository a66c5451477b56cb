//! One GET for a document of keys, under limits.
//!
//! Plane: control. https only, no proxy, no redirect, no cookie, no credential of ours, a connection to vetted addresses
//! only, a body up to a bound; the caller bounds the time. A client is made for each request, so that a changed CA file
//! counts at the next one and nothing of one issuer's connection is used for another's. Any other answer than 200 fails.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use reqwest::{Client, Url, redirect};
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
        let failed = |e: reqwest::Error| FetchError::unreachable(format!("`{host}`: {}", causes(&e.without_url())));
        let request = client.get(url).header(reqwest::header::ACCEPT, "application/json");
        let mut response = request.send().await.map_err(failed)?;
        let status = response.status();
        if status.is_redirection() {
            let code = status.as_u16();
            return Err(FetchError::answer(format!("`{host}` answered {code}, and redirects are not followed")));
        }
        if status != reqwest::StatusCode::OK {
            return Err(FetchError::answer(format!("`{host}` answered {}", status.as_u16())));
        }
        let too_large = || FetchError::answer(format!("`{host}` answered with more than {} bytes", self.max_bytes));
        if response.content_length().is_some_and(|n| n > self.max_bytes as u64) {
            return Err(too_large());
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > self.max_bytes {
                return Err(too_large());
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }

    pub(super) async fn client(&self, vetted: Vetted, peer: Peer) -> Result<Client, FetchError> {
        let configured = match (peer, &self.ca_file) {
            (Peer::Configured(config), _) => Some(config),
            (Peer::WebPki, Some(path)) => Some(private_ca(path.clone()).await?),
            (Peer::WebPki, None) => None,
        };
        let mut builder = Client::builder()
            .https_only(true)
            .no_proxy()
            .redirect(redirect::Policy::none())
            .http1_only()
            .referer(false)
            .pool_max_idle_per_host(0)
            .timeout(self.timeout)
            .resolve_to_addrs(&vetted.host, &vetted.addresses)
            .user_agent(concat!("portcullis/", env!("CARGO_PKG_VERSION")));
        if let Some(config) = configured {
            builder = builder.tls_backend_preconfigured((*config).clone());
        }
        builder.build().map_err(|e| FetchError::refused(format!("no HTTP client: {}", causes(&e))))
    }
}

async fn private_ca(ca_file: PathBuf) -> Result<Arc<ClientConfig>, FetchError> {
    let files = ClientFiles { ca_file, identity: None };
    let read = move || tls::client_config(&files, tls::TLS12_UP, &[tls::ALPN_HTTP1]);
    let config = tokio::task::spawn_blocking(read).await.map_err(|e| FetchError::refused(e.to_string()))?;
    config.map_err(|e| FetchError::refused(format!("`keys.ca_file`: {e}")))
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
