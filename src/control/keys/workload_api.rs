//! A client of the SPIFFE Workload API that holds the bundles of all trust domains.
//!
//! Plane: control. One connection for all issuers. Both streams send full state: a trust domain that is not in a message
//! has no keys any more. Nothing is unloaded for want of a connection: what was sent last counts until the next message.
//! Only when both streams have spoken is there a bundle, so that half of one never replaces a whole one. The socket's
//! file is what is trusted: whoever may replace it may be the Workload API.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;
use tokio::sync::watch;
use tonic::{Status, Streaming};
use x509_parser::prelude::{FromDer, X509Certificate};

use super::error::FetchError;
use super::schedule;
use crate::credential::parse_key_set;
use crate::object::Jwks;
use crate::svid::{Endpoint, describe, request};
use crate::wire::workload_api::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use crate::wire::workload_api::{JwtBundlesRequest, X509BundlesRequest};

/// How often it is tried to connect at the least.
const RETRY: Duration = Duration::from_secs(30);
/// The largest message: all trust domains together.
const MAX_MESSAGE: usize = 16 << 20;

/// The connection, and what came over it.
#[derive(Debug)]
pub(super) struct Hub {
    socket: PathBuf,
    state: watch::Sender<State>,
}

/// Bundles as they were sent last, by the SPIFFE ID of the trust domain.
#[derive(Debug, Clone, Default)]
struct State {
    jwt: Option<Arc<HashMap<String, Vec<u8>>>>,
    x509: Option<Arc<HashMap<String, Vec<u8>>>>,
    /// Why it is not connected.
    error: Option<String>,
}

// === impl Hub ===

impl Hub {
    pub(super) fn new(socket: PathBuf) -> Arc<Self> {
        Arc::new(Self { socket, state: watch::Sender::new(State::default()) })
    }

    /// Tells of every message and every loss of the connection.
    pub(super) fn subscribe(&self) -> watch::Receiver<impl Sized + use<>> {
        self.state.subscribe()
    }

    /// The bundle of a trust domain: empty when the Workload API does not have it.
    pub(super) fn bundle(&self, trust_domain: &str) -> Result<Jwks, FetchError> {
        let State { jwt, x509, error } = self.state.borrow().clone();
        if let Some(error) = error {
            return Err(FetchError::unreachable(error));
        }
        let (Some(jwt), Some(x509)) = (jwt, x509) else {
            return Err(FetchError::unreachable("the Workload API has not sent both kinds of bundles yet"));
        };
        let id = format!("spiffe://{trust_domain}");
        let mut set = Jwks::default();
        if let Some(json) = jwt.get(&id) {
            set.keys = parse_key_set(json)?.keys;
            for key in set.keys.iter_mut().filter_map(serde_json::Value::as_object_mut) {
                // The standard has plain key sets here, in which SPIRE leaves the use out: it follows from the call.
                key.entry("use").or_insert_with(|| "jwt-svid".into());
            }
        }
        if let Some(der) = x509.get(&id) {
            set.keys.extend(authorities(der)?);
        }
        set.check()?;
        Ok(set)
    }

    /// Keeps both streams open until it is dropped.
    pub(super) async fn run(self: Arc<Self>) {
        let mut failures: u32 = 0;
        loop {
            let spoke = self.state.borrow().jwt.clone();
            let error = self.follow().await;
            // A stream that said something was a good one.
            let said_something = match (&spoke, &self.state.borrow().jwt) {
                (Some(before), Some(after)) => !Arc::ptr_eq(before, after),
                (None, after) => after.is_some(),
                (Some(_), None) => false,
            };
            failures = if said_something { 1 } else { failures.saturating_add(1) };
            let wait = schedule::after_failure(RETRY, failures);
            let message = format!("the Workload API at `{}`: {error}", self.socket.display());
            if failures == 1 {
                tracing::warn!(error = message, "the Workload API cannot be followed; keys that are held stay");
            }
            self.state.send_modify(|state| state.error = Some(message));
            tokio::time::sleep(wait).await;
        }
    }

    /// Follows both streams until one ends; answers why.
    async fn follow(&self) -> String {
        let channel = match Endpoint::Unix(self.socket.clone()).connect().await {
            Ok(channel) => channel,
            Err(error) => return error,
        };
        let mut client = SpiffeWorkloadApiClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let mut x509_client = client.clone();
        let jwt = async {
            let stream = client.fetch_jwt_bundles(request(JwtBundlesRequest {})).await;
            let take = |state: &mut State, m: crate::wire::workload_api::JwtBundlesResponse| {
                let bundles = m.bundles.into_iter().map(|(id, json)| (id, json.to_vec()));
                state.jwt = Some(Arc::new(bundles.collect()));
            };
            self.read(stream, take).await
        };
        let x509 = async {
            let stream = x509_client.fetch_x509_bundles(request(X509BundlesRequest {})).await;
            let take = |state: &mut State, m: crate::wire::workload_api::X509BundlesResponse| {
                let bundles = m.bundles.into_iter().map(|(id, der)| (id, der.to_vec()));
                state.x509 = Some(Arc::new(bundles.collect()));
            };
            self.read(stream, take).await
        };
        tokio::select! {
            error = jwt => error,
            error = x509 => error,
        }
    }

    async fn read<M>(
        &self,
        stream: Result<tonic::Response<Streaming<M>>, Status>,
        take: impl Fn(&mut State, M),
    ) -> String {
        let mut stream = match stream {
            Ok(response) => response.into_inner(),
            Err(status) => return describe(&status),
        };
        loop {
            match stream.message().await {
                Ok(Some(message)) => self.state.send_modify(|state| {
                    take(state, message);
                    state.error = None;
                }),
                Ok(None) => return "it ended the stream".to_owned(),
                Err(status) => return describe(&status),
            }
        }
    }
}

/// DER certificates, one after another, as keys of a bundle.
fn authorities(mut der: &[u8]) -> Result<Vec<serde_json::Value>, FetchError> {
    let mut keys = Vec::new();
    while !der.is_empty() {
        let (rest, cert) = X509Certificate::from_der(der)
            .map_err(|_unreadable| FetchError::invalid("an X.509 authority of the Workload API cannot be parsed"))?;
        let length = der.len() - rest.len();
        let one = der.get(..length).unwrap_or_default();
        let kty = if cert.public_key().algorithm.algorithm == x509_parser::oid_registry::OID_PKCS1_RSAENCRYPTION {
            "RSA"
        } else {
            "EC"
        };
        keys.push(json!({ "kty": kty, "use": "x509-svid", "x5c": [STANDARD.encode(one)] }));
        der = rest;
    }
    Ok(keys)
}
