//! Follows the agent's stream, and holds what it said last.
//!
//! Plane: cross-cutting. Each message is the whole: what is not in it any more is not believed any more. A stream that
//! ends is opened again, with full jitter; until then, and when a message cannot be used, what is held stays until the
//! SVID in it ends. At that instant there is nothing, and whoever asks gets no connection.

use std::sync::Arc;
use std::time::Duration;

use rustls_pki_types::UnixTime;
use tokio::sync::watch;

use super::endpoint::{Endpoint, describe, request};
use super::message::Held;
use crate::credential::SpiffeId;
use crate::offload::offload;
use crate::wire::workload_api::spiffe_workload_api_client::SpiffeWorkloadApiClient;
use crate::wire::workload_api::{X509svidRequest, X509svidResponse};

/// The largest message: an SVID and the bundles of all trust domains that it may meet.
const MAX_MESSAGE: usize = 4 << 20;
/// The bounds of the first wait and of every wait before the stream is opened again.
const RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(30));
/// A wall clock may jump: it is looked at this often.
const LOOK: Duration = Duration::from_secs(10);

/// Where an SVID comes from, and which.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where the agent is.
    pub endpoint: Endpoint,
    /// Which SVID, when it has several for this process. Without it, the first.
    pub spiffe_id: Option<SpiffeId>,
}

/// What an agent says, as long as it counts.
#[derive(Debug)]
pub struct Source {
    settings: Settings,
    held: watch::Sender<Option<Arc<Held>>>,
}

// === impl Source ===

impl Source {
    /// Holds nothing before [`Self::run`].
    pub fn new(settings: Settings) -> Arc<Self> {
        Arc::new(Self { settings, held: watch::Sender::new(None) })
    }

    /// Where it comes from.
    pub const fn settings(&self) -> &Settings {
        &self.settings
    }

    /// What counts now. The time is that which TLS verifies certificates by.
    pub(super) fn current(&self) -> Option<Arc<Held>> {
        self.held.borrow().as_ref().filter(|held| UnixTime::now().as_secs() < held.not_after).cloned()
    }

    /// Waits until there is an SVID in time.
    pub async fn present(&self) {
        let mut changes = self.held.subscribe();
        while self.current().is_none() {
            // The sender is ours: it is there as long as we are.
            let _changed = changes.changed().await;
        }
    }

    /// Waits until there is none.
    pub async fn lapsed(&self) {
        let mut changes = self.held.subscribe();
        while let Some(held) = self.current() {
            let left = Duration::from_secs(held.not_after.saturating_sub(UnixTime::now().as_secs()));
            let _changed_or_late = tokio::time::timeout(left.min(LOOK), changes.changed()).await;
        }
    }

    /// Keeps the stream open until it is dropped.
    pub async fn run(self: Arc<Self>) {
        let mut failures: u32 = 0;
        loop {
            let mut spoke = false;
            let why = self.follow(&mut spoke).await;
            failures = if spoke { 1 } else { failures.saturating_add(1) };
            if failures.is_power_of_two() {
                let endpoint = &self.settings.endpoint;
                let holds = self.current().map(|held| held.not_after);
                tracing::warn!(%endpoint, why, holds_until = holds, "the Workload API cannot be followed; what is held stays until it ends");
            }
            let bound = RETRY.0.saturating_mul(1 << failures.saturating_sub(1).min(20)).min(RETRY.1);
            tokio::time::sleep(bound.mul_f64(rand::random::<f64>())).await;
        }
    }

    /// Follows the stream until it ends; answers why.
    async fn follow(&self, spoke: &mut bool) -> String {
        let channel = match self.settings.endpoint.connect().await {
            Ok(channel) => channel,
            Err(why) => return why,
        };
        let mut client = SpiffeWorkloadApiClient::new(channel).max_decoding_message_size(MAX_MESSAGE);
        let mut stream = match client.fetch_x509svid(request(X509svidRequest {})).await {
            Ok(response) => response.into_inner(),
            Err(status) => return describe(&status),
        };
        loop {
            match stream.message().await {
                Ok(Some(message)) => {
                    *spoke = true;
                    self.take(message).await;
                }
                Ok(None) => return "it ended the stream".to_owned(),
                Err(status) => return describe(&status),
            }
        }
    }

    async fn take(&self, message: X509svidResponse) {
        let wanted = self.settings.spiffe_id.clone();
        let read = offload(move || Held::read(&message, wanted.as_ref(), UnixTime::now())).await;
        match read {
            Ok(Ok(held)) => {
                tracing::info!(spiffe_id = %held.id, not_after = held.not_after, believes = ?held.names(), "an SVID has come");
                self.held.send_replace(Some(Arc::new(held)));
            }
            Ok(Err(why)) => {
                tracing::error!(%why, "what the Workload API sent cannot be used; what is held stays until it ends")
            }
            Err(unfinished) => tracing::error!(%unfinished, "an SVID could not be read"),
        }
    }
}

#[cfg(test)]
impl Source {
    /// Holds this.
    pub(super) fn holding(settings: Settings, held: Held) -> Arc<Self> {
        Arc::new(Self { settings, held: watch::Sender::new(Some(Arc::new(held))) })
    }
}
