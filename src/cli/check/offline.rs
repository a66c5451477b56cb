//! A decision from a sidecar's state on disk, without a sidecar.
//!
//! Reads the directory without changing or locking it; the signature is checked like at start. The lease on disk is
//! respected, so that state from yesterday answers as a sidecar would: `system.stale`.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use super::super::failure::Failure;
use super::super::files;
use crate::admin::CheckAnswer;
use crate::authz::{Door, Header, Peer, Request};
use crate::cache::{CacheSizes, Gate};
use crate::clock::{SharedClock, SystemClock};
use crate::state::State;
use crate::sync::disk;
use crate::wire::VerifyKey;

/// Decides on `request` from the state in `directory`.
pub(super) fn decide(
    directory: &Path,
    verify_key_file: &Path,
    (method, path, host): (&str, &str, &str),
    (headers, body): (&[(String, String)], Option<&[u8]>),
    peer: Peer<'_>,
    explain: bool,
) -> Result<Value, Failure> {
    let key = VerifyKey::parse(&files::read_text(verify_key_file)?)
        .map_err(|e| Failure::error(format!("`{}`: {e}", verify_key_file.display())))?;
    let clock: SharedClock = Arc::new(SystemClock::new());
    let place = directory.display();
    let offline = disk::load_offline(directory, key, None, &clock)
        .map_err(|e| Failure::error(format!("cannot read the state in `{place}`: {e}")))?;
    let problems: Vec<String> = offline.problems.iter().map(ToString::to_string).collect();
    let Some(snapshot) = offline.snapshot else {
        let why = if problems.is_empty() { "there is none".to_owned() } else { problems.join("; ") };
        return Err(Failure::error(format!("no usable state in `{place}`: {why}")));
    };
    let state = Arc::new(State::new());
    match offline.lease {
        Some(lease) => drop(state.restore(snapshot, lease)),
        None => drop(state.publish(snapshot)),
    }
    let gate = Gate::new(state, clock, CacheSizes { tokens: 0, decisions: 0 });
    let headers =
        headers.iter().map(|(name, value)| Header { name: name.as_bytes(), value: value.as_bytes() }).collect();
    let (scheme, partial_body) = ("https", false);
    let request = Request { door: Door::Check, method, path, host, scheme, headers, partial_body, body, peer };
    let (decision, steps) = gate.explain(&request);
    let steps = if explain { steps } else { Vec::new() };
    serde_json::to_value(CheckAnswer::new(&decision, &steps, None)).map_err(|e| Failure::error(e.to_string()))
}
