//! Waiting for what becomes of a grant: following its states, and waiting until a request is decided.
//!
//! Plane: composition, a client of the control plane's API. A stream that is cut off is taken up again after the last
//! event that was seen; a control plane that stays away for longer than a moment is an error, never an end.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::api::{Api, cell, items};
use super::failure::{Answer, Failure, Outcome};
use super::output::{Out, printable};

/// The longest that one request waits.
const STEP: Duration = Duration::from_secs(60);
/// How often a list is looked at.
const LOOK: Duration = Duration::from_secs(2);
/// How often in a row a stream may fail to begin.
const TRIES: usize = 5;

/// The request once it is decided, or as it is after `wait`.
pub(super) async fn until_decided(api: &Api, id: &str, wait: Duration) -> Result<Value, Failure> {
    let deadline = Instant::now() + wait;
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let step = left.clamp(Duration::from_secs(1), STEP);
        let query = [("wait", format!("{}s", step.as_secs())), ("until", "decided".to_owned())];
        let request = api.get_wait(&["grant-requests", id], &query, step).await?;
        if cell(&request, "state") != "pending" || left <= step {
            return Ok(request);
        }
    }
}

/// Tells each state of a grant until it is over.
pub(super) async fn follow(out: &mut Out<'_>, api: &Api, id: &str) -> Outcome {
    let mut last: Option<String> = None;
    let mut failures = 0;
    loop {
        let mut stream = match api.events(&["grants", id], &[("until", "ended".to_owned())], last.as_deref()).await {
            Ok(Some(stream)) => stream,
            Ok(None) => return Ok(Answer::Yes),
            Err(failure @ Failure::Refused { .. }) => return Err(failure),
            Err(failure) => {
                failures += 1;
                if last.is_none() || failures >= TRIES {
                    return Err(failure);
                }
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
        };
        failures = 0;
        let mut events = Events::default();
        while let Ok(Some(bytes)) = stream.chunk().await {
            for (event, document) in events.feed(&bytes)? {
                tell(out, &document)?;
                out.flush()?;
                last = Some(event);
            }
        }
    }
}

/// One line, or one document a line for programs.
fn tell(out: &mut Out<'_>, grant: &Value) -> Result<(), Failure> {
    if out.is_json() {
        return out.line(grant.to_string());
    }
    let end = grant.get("ended").unwrap_or(&Value::Null);
    let (when, who) = match cell(end, "at") {
        at if !at.is_empty() => (at, format!("by {} {}", cell(end, "by"), cell(end, "reason"))),
        _ => match grant.get("votes").and_then(Value::as_array).and_then(|votes| votes.last()) {
            Some(vote) => (cell(vote, "at"), format!("{} by {}", cell(vote, "vote"), cell(vote, "approver"))),
            None => (cell(grant, "requested_at"), format!("asked for by {}", cell(grant, "requested_by"))),
        },
    };
    out.line(format!("{when}  {:<18} {}", cell(grant, "state"), printable(who.trim_end())))
}

/// Tells every grant of the list, and then each whose state changes, until it is interrupted.
pub(super) async fn follow_list(out: &mut Out<'_>, api: &Api, query: &[(&str, String)]) -> Outcome {
    let mut known: BTreeMap<String, String> = BTreeMap::new();
    loop {
        let answer = api.list(&["grants"], query).await?;
        let mut seen = BTreeMap::new();
        for grant in items(&answer) {
            let (id, state) = (cell(grant, "id"), cell(grant, "state"));
            if known.get(&id) != Some(&state) {
                if out.is_json() {
                    out.line(grant.to_string())?;
                } else {
                    let what = format!(
                        "{} {} on {}",
                        cell(grant, "workload"),
                        cell(grant, "actions"),
                        cell(grant, "resources")
                    );
                    out.line(format!("{id}  {state:<18} {}", printable(&what)))?;
                }
            }
            seen.insert(id, state);
        }
        // With a filter, what has left the list has changed as well.
        let text = !out.is_json();
        for id in known.keys().filter(|id| text && !seen.contains_key(*id)) {
            out.line(format!("{id}  not in the list any more"))?;
        }
        out.flush()?;
        known = seen;
        tokio::time::sleep(LOOK).await;
    }
}

/// Server-sent events out of the pieces that they arrive in.
#[derive(Debug, Default)]
struct Events {
    rest: Vec<u8>,
}

impl Events {
    /// The longest event that is taken.
    const LONGEST: usize = 4 << 20;

    /// The events that are whole by now: each with its id and document.
    fn feed(&mut self, bytes: &[u8]) -> Result<Vec<(String, Value)>, Failure> {
        self.rest.extend_from_slice(bytes);
        let mut events = Vec::new();
        while let Some(end) = self.rest.windows(2).position(|two| two == b"\n\n") {
            let event: Vec<u8> = self.rest.drain(..end + 2).collect();
            let text = String::from_utf8_lossy(&event).into_owned();
            let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim_start);
            if let (Some(id), Some(data)) = (field("id:"), field("data:")) {
                let document = serde_json::from_str(data)
                    .map_err(|e| Failure::error(format!("the control plane sent an event that is not JSON: {e}")))?;
                events.push((id.to_owned(), document));
            }
        }
        if self.rest.len() > Self::LONGEST {
            return Err(Failure::error("the control plane sent an event that does not end"));
        }
        Ok(events)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::cli::output::Format;

    #[test]
    fn events_are_read_from_any_pieces() {
        let text =
            b"retry: 1000\n\nid: e.1\nevent: state\ndata: {\"state\":\"pending\"}\n\n: still waiting\n\nid: e.2\n\
                     event: state\ndata: {\"state\":\"active\"}\n\n";
        for size in 1..text.len() {
            let mut events = Events::default();
            let read: Vec<_> = text.chunks(size).flat_map(|piece| events.feed(piece).unwrap()).collect();
            let expected = [("e.1", json!({ "state": "pending" })), ("e.2", json!({ "state": "active" }))];
            assert_eq!(read, expected.map(|(id, document)| (id.to_owned(), document)), "pieces of {size}");
        }
        assert!(Events::default().feed(b"id: 1\ndata: {\n\n").is_err());
    }

    #[test]
    fn a_state_is_told_with_who_brought_it_about() {
        let mut grant = json!({ "state": "pending", "requested_by": "alice", "requested_at": "T1" });
        let told = |grant: &Value| {
            let mut text = Vec::new();
            tell(&mut Out::to(&mut text, Format::Text), grant).unwrap();
            String::from_utf8(text).unwrap()
        };
        assert_eq!(told(&grant), "T1  pending            asked for by alice\n");
        grant["votes"] = json!([{ "approver": "bob", "vote": "approve", "at": "T2" }]);
        grant["state"] = json!("active");
        assert_eq!(told(&grant), "T2  active             approve by bob\n");
        grant["ended"] = json!({ "by": "carol\u{1b}[2J", "at": "T3", "reason": "" });
        assert!(!told(&grant).contains('\u{1b}'), "nothing that a terminal would obey");
    }
}
