//! The few calls of the control plane's REST API that a measurement makes.
//!
//! Plane: composition; a client. The token is held zeroised and never printed. Plain text goes to loopback only.

use std::path::Path;
use std::time::Duration;

use reqwest::{Certificate, Client, Method, Url};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::control::fleet::Receipt;
use crate::wire::Position;

/// A client with an operator's token.
pub struct Api {
    http: Client,
    base: Url,
    token: Zeroizing<String>,
}

/// Why a call failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    /// The address is of no use.
    #[error("`{0}` is not an https:// URL, nor http:// to a loopback address")]
    Url(String),
    /// A file cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The call did not get through.
    #[error("the API does not answer: {0}")]
    Http(#[from] reqwest::Error),
    /// It was refused.
    #[error("the API answered {status}: {body}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What it said.
        body: String,
    },
    /// The answer is not what the API is documented to answer.
    #[error("the API's answer has no usable `{0}`")]
    Answer(&'static str),
}

impl Api {
    /// A client of the API at `url`.
    pub fn new(url: &str, ca_file: Option<&Path>, token_file: &Path) -> Result<Self, ApiError> {
        let read = |path: &Path| {
            std::fs::read_to_string(path).map_err(|source| ApiError::Read { path: path.to_owned(), source })
        };
        let base = Url::parse(url).map_err(|_invalid| ApiError::Url(url.to_owned()))?;
        let host = base.host_str().unwrap_or_default().trim_matches(['[', ']']);
        let local = host == "localhost" || host.parse::<core::net::IpAddr>().is_ok_and(|ip| ip.is_loopback());
        if base.scheme() != "https" && !(base.scheme() == "http" && local) {
            return Err(ApiError::Url(url.to_owned()));
        }
        crate::tls::install_provider();
        let mut http = Client::builder().redirect(reqwest::redirect::Policy::none()).pool_max_idle_per_host(64);
        if local {
            http = http.no_proxy();
        }
        if base.scheme() == "http" {
            http = http.tls_certs_only([]);
        } else if let Some(path) = ca_file {
            http = http.tls_certs_only(Certificate::from_pem_bundle(read(path)?.as_bytes())?);
        }
        let token = Zeroizing::new(Zeroizing::new(read(token_file)?).trim().to_owned());
        Ok(Self { http: http.build()?, base, token })
    }

    /// Revokes a token that nobody has. With `wait`, the receipt comes with the answer.
    pub(super) async fn revoke(
        &self,
        issuer: &str,
        wait: Option<Duration>,
    ) -> Result<(Position, Option<Receipt>), ApiError> {
        let jti = format!("bench-fleet-{}", uuid::Uuid::new_v4());
        let body =
            json!({"target": {"kind": "token", "issuer": issuer, "jti": jti}, "reason": "portcullis bench fleet"});
        let wait_for = wait.map(|w| format!("?wait={}ms", w.as_millis())).unwrap_or_default();
        let timeout = Duration::from_secs(30).saturating_add(wait.unwrap_or_default());
        let answer = self.call(Method::POST, &format!("v1/revocations{wait_for}"), &body, timeout).await?;
        let position = answer.get("position").and_then(Value::as_str).and_then(|p| p.parse().ok());
        let position = position.ok_or(ApiError::Answer("position"))?;
        let receipt = match answer.get("receipt").filter(|r| !r.is_null()) {
            Some(receipt) => {
                Some(serde_json::from_value(receipt.clone()).map_err(|_malformed| ApiError::Answer("receipt"))?)
            }
            None => None,
        };
        Ok((position, receipt))
    }

    /// Writes one object, as `PUT /v1/PATH` does.
    pub async fn put(&self, path: &str, body: &Value) -> Result<Value, ApiError> {
        self.call(Method::PUT, &format!("v1/{path}"), body, Duration::from_secs(30)).await
    }

    async fn call(&self, method: Method, path: &str, body: &Value, timeout: Duration) -> Result<Value, ApiError> {
        let url = self.base.join(path).map_err(|_invalid| ApiError::Url(path.to_owned()))?;
        let request = self.http.request(method, url).timeout(timeout).bearer_auth(self.token.as_str()).json(body);
        let response = request.send().await?;
        let status = response.status();
        if !status.is_success() {
            let body = response.text().await.unwrap_or_default().chars().take(500).collect();
            return Err(ApiError::Refused { status: status.as_u16(), body });
        }
        Ok(response.json().await?)
    }
}

impl std::fmt::Debug for Api {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Api").field("base", &self.base.as_str()).finish_non_exhaustive()
    }
}
