//! Leaves out of the answer to `tools/list` what the caller may not use, for a door that sees answers: the reverse proxy.
//!
//! Pure. What stays is byte for byte what the server sent, tool by tool; a list that may be kept is for this caller alone then. INVARIANT: fails closed. An answer in which another
//! parser could find other tools than this one is an error, and is not to be passed on; a tool without a name is left out.
//! This is a courtesy to the client and no protection: each call is decided on when it comes.

use std::borrow::Cow;
use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::terms::is_variant;
use crate::credential::{Skip, Text};

/// How deep an answer may nest, and how many members an object of it may have.
const LIMITS: Skip = Skip::within(96, 100_000);
/// The largest answer that is filtered, or event of a stream, in bytes.
pub const MAX_TOOLS_ANSWER: usize = 4 << 20;
/// For whom a client may keep a list.
const SCOPE: &str = "cacheScope";
const BOM: &[u8] = "\u{feff}".as_bytes();

/// Why an answer must not be passed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unfilterable {
    /// Not one JSON object that has one reading.
    #[error("the answer is not a JSON-RPC message that can be read in one way")]
    Message,
    /// An event of a stream that does not end.
    #[error("an event of the stream is larger than {MAX_TOOLS_ANSWER} bytes")]
    TooLarge,
}

/// Filters a `text/event-stream`, piece by piece as it comes.
#[derive(Debug, Default)]
pub struct EventFilter {
    /// What has come of an event that is not complete.
    pending: Vec<u8>,
    /// How many of the first bytes have come.
    begun: usize,
    /// The last line break was a carriage return, and a line feed that follows is part of it.
    after_return: bool,
}

/// An object, member by member as it stands.
struct Entries<'a>(Vec<(Cow<'a, str>, &'a RawValue)>);

/// Filters one JSON-RPC message: the answer to `tools/list`, or any message of a stream. `allowed` says of each tool whether
/// it stays, in the order of its names; what it does not say is no. A message that lists no tools stays as it is.
pub fn filter_tools(json: &[u8], allowed: impl FnOnce(&[&str]) -> Vec<bool>) -> Result<Vec<u8>, Unfilterable> {
    let text = std::str::from_utf8(json).map_err(|_not_utf8| Unfilterable::Message)?;
    // All of it first, because a raw value is not looked into: no object in it has a member twice.
    let mut strict = serde_json::Deserializer::from_str(text);
    let strictly = LIMITS.deserialize(&mut strict).and_then(|()| strict.end());
    strictly.map_err(|_bad| Unfilterable::Message)?;
    let message = Entries::of(text)?;
    // A result that is no object has no tools.
    let Some(result) = message.get("result")?.filter(|result| result.get().starts_with('{')) else {
        return Ok(json.to_vec());
    };
    let members = Entries::of(result.get())?;
    let Some(tools) = members.get("tools")? else { return Ok(json.to_vec()) };
    let tools: Vec<&RawValue> = serde_json::from_str(tools.get()).map_err(|_no_list| Unfilterable::Message)?;
    let names: Vec<Option<Cow<'_, str>>> = tools.iter().map(|tool| name_of(tool.get())).collect();
    let known: Vec<&str> = names.iter().flatten().map(|name| &**name).collect();
    let mut answers = allowed(&known).into_iter();
    let stays = names.iter().map(|name| name.is_some() && answers.next().unwrap_or(false));
    let kept: Vec<&str> = tools.iter().zip(stays).filter(|(_, stays)| *stays).map(|(tool, _)| tool.get()).collect();
    let kept = format!("[{}]", kept.join(","));
    let mut changes = vec![("tools", &*kept)];
    // It is for this caller now, and what does not say for whom it is counts as for everybody (2026-07-28, "Caching").
    if members.get(SCOPE)?.is_some() || members.get("ttlMs")?.is_some() {
        changes.push((SCOPE, r#""private""#));
    }
    Ok(message.with(&[("result", &members.with(&changes))]).into_bytes())
}

// === impl EventFilter ===

impl EventFilter {
    /// How many bytes it keeps of an event that is not complete.
    pub fn held(&self) -> usize {
        self.pending.len()
    }

    /// Takes in the next piece, and gives what can go on to the client: whole events. After an error the stream is to be
    /// cut.
    pub fn push(
        &mut self,
        piece: &[u8],
        mut allowed: impl FnMut(&[&str]) -> Vec<bool>,
    ) -> Result<Vec<u8>, Unfilterable> {
        let mut out = Vec::with_capacity(piece.len());
        for &byte in piece {
            // A line break is CR LF, LF or CR; an event ends with an empty line. Each is written as LF.
            if std::mem::take(&mut self.after_return) && byte == b'\n' {
                continue;
            }
            self.after_return = byte == b'\r';
            self.pending.push(if byte == b'\r' { b'\n' } else { byte });
            // Whoever reads the stream skips a byte order mark at its start; then there is none that it could skip.
            if self.begun < BOM.len() {
                self.begun += 1;
                if *self.pending == *BOM {
                    self.pending.clear();
                    self.begun = 0;
                }
            }
            if self.pending.len() > MAX_TOOLS_ANSWER {
                return Err(Unfilterable::TooLarge);
            }
            if self.pending.ends_with(b"\n\n") || *self.pending == *b"\n" {
                filter_event(&self.pending, &mut allowed, &mut out)?;
                self.pending.clear();
            }
        }
        Ok(out)
    }
}

/// Filters one event: its `data` lines, joined, are a message.
fn filter_event(
    event: &[u8],
    allowed: &mut impl FnMut(&[&str]) -> Vec<bool>,
    out: &mut Vec<u8>,
) -> Result<(), Unfilterable> {
    let mut data: Option<Vec<u8>> = None;
    let mut others = Vec::with_capacity(event.len());
    for line in event.split(|b| *b == b'\n').filter(|line| !line.is_empty()) {
        let value = match line.strip_prefix(b"data") {
            Some([]) => Some(&[][..]),
            Some([b':', b' ', value @ ..] | [b':', value @ ..]) => Some(value),
            _ => None,
        };
        match (value, &mut data) {
            (Some(value), None) => data = Some(value.to_vec()),
            (Some(value), Some(data)) => {
                data.push(b'\n');
                data.extend_from_slice(value);
            }
            (None, _) if breaks_elsewhere(line) => return Err(Unfilterable::Message),
            (None, _) => {
                others.extend_from_slice(line);
                others.push(b'\n');
            }
        }
    }
    // Without data there is nothing to read; an empty one is how a server lets a client know the id of the stream.
    let filtered = match &data {
        Some(data) if !data.trim_ascii().is_empty() => filter_tools(data, allowed)?,
        _ => {
            out.extend_from_slice(event);
            return Ok(());
        }
    };
    out.extend_from_slice(&others);
    for line in filtered.split(|b| *b == b'\n') {
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(line);
        out.push(b'\n');
    }
    out.push(b'\n');
    Ok(())
}

/// Whether some readers find another line in a line: those that split at whatever Unicode calls a line break.
fn breaks_elsewhere(line: &[u8]) -> bool {
    let is_break = |c| matches!(c, '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}');
    std::str::from_utf8(line).map_or(true, |line| line.contains(is_break))
}

/// The name of a tool; `None` if it has none, or something that could pass for another.
fn name_of(tool: &str) -> Option<Cow<'_, str>> {
    let name = Entries::of(tool).ok()?.get("name").ok()??;
    serde_json::from_str(name.get()).ok().map(|Text(name)| name)
}

// === impl Entries ===

impl<'a> Entries<'a> {
    fn of(text: &'a str) -> Result<Self, Unfilterable> {
        serde_json::from_str(text).map_err(|_no_object| Unfilterable::Message)
    }

    /// The member of this name; an error if there is one that differs from it in case.
    fn get(&self, name: &str) -> Result<Option<&'a RawValue>, Unfilterable> {
        let mut found = None;
        for (member, value) in &self.0 {
            if *member == name {
                found = Some(*value);
            } else if is_variant(member, name) {
                return Err(Unfilterable::Message);
            }
        }
        Ok(found)
    }

    /// The object with other values for these members, whether it has them or not.
    fn with(&self, changes: &[(&str, &str)]) -> String {
        let changed = |member: &str| changes.iter().find(|(name, _)| *name == member).map(|(_, value)| *value);
        let old = self.0.iter().map(|(member, old)| (&**member, changed(member).unwrap_or(old.get())));
        let new = changes.iter().copied().filter(|(name, _)| self.0.iter().all(|(member, _)| *member != *name));
        // A text can always be written.
        let written = |(member, value)| format!("{}:{value}", serde_json::to_string(member).unwrap_or_default());
        format!("{{{}}}", old.chain(new).map(written).collect::<Vec<_>>().join(","))
    }
}

impl<'de> Deserialize<'de> for Entries<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;

        impl<'de> Visitor<'de> for V {
            type Value = Entries<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut entries = Vec::new();
                while let Some((Text(name), value)) = map.next_entry::<Text<'de>, &'de RawValue>()? {
                    entries.push((name, value));
                }
                Ok(Entries(entries))
            }
        }

        d.deserialize_map(V)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filter(json: &str, allowed: &[&str]) -> Result<String, Unfilterable> {
        let kept = filter_tools(json.as_bytes(), |tools| tools.iter().map(|t| allowed.contains(t)).collect())?;
        Ok(String::from_utf8(kept).unwrap())
    }

    const LIST: &str = concat!(
        r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"a","inputSchema":{"type":"object","x":1.50}},"#,
        r#" {"name":"b\u0062"},{"title":"none"},{"name":7},"c"],"nextCursor":"z","ttlMs":1e2}}"#
    );

    #[test]
    fn what_stays_is_what_the_server_sent() {
        assert_eq!(
            filter(LIST, &["a"]).unwrap(),
            concat!(
                r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":"a","inputSchema":{"type":"object","x":1.50}}],"#,
                r#""nextCursor":"z","ttlMs":1e2,"cacheScope":"private"}}"#
            )
        );
        assert!(filter(LIST, &["bb"]).unwrap().contains(r#""tools":[{"name":"b\u0062"}],"#));
        assert!(filter(LIST, &["c", "none", "7"]).unwrap().contains(r#""tools":[],"#));
        for other in [
            r#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":"tools"}}"#,
            r#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{"resources":[{"name":"secret"}]}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":[]}"#,
        ] {
            assert_eq!(filter(other, &[]).unwrap(), other);
        }
    }

    #[test]
    fn what_a_client_could_read_otherwise_does_not_go_on() {
        for bad in [
            r#"{"result":{"tools":[]},"result":{"tools":[{"name":"secret"}]}}"#,
            r#"{"result":{"tools":[],"tools":[{"name":"secret"}]}}"#,
            r#"{"result":{"tools":[],"Tools":[{"name":"secret"}]}}"#,
            r#"{"result":{"tools":[{"name":"a","name":"secret"}]}}"#,
            r#"{"result":{"tools":{"name":"secret"}}}"#,
            r#"{"result":{"tools":[{"name":"a","description":"\ud800"}]}}"#,
            r#"[{"result":{"tools":[{"name":"secret"}]}}]"#,
            r#"{"result":{"tools":[{"name":"secret"}]}} x"#,
            "{\"result\":{\"tools\":[",
            "",
        ] {
            assert_eq!(filter(bad, &["a"]), Err(Unfilterable::Message), "{bad}");
        }
        assert_eq!(filter_tools(b"{\"a\":\"\xff\"}", |_| vec![]), Err(Unfilterable::Message));
        // Too few answers leave the rest out.
        let short = filter_tools(LIST.as_bytes(), |_| vec![]).unwrap();
        assert!(String::from_utf8(short).unwrap().contains(r#""tools":[],"#));
    }

    fn stream(pieces: &[&[u8]], allowed: &[&str]) -> Result<String, Unfilterable> {
        let mut filter = EventFilter::default();
        let mut out = Vec::new();
        for piece in pieces {
            out.extend(filter.push(piece, |tools| tools.iter().map(|t| allowed.contains(t)).collect())?);
        }
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn events_are_filtered_however_they_are_cut_and_broken() {
        let list = r#"{"result":{"tools":[{"name":"a"},{"name":"b"}]}}"#;
        let kept = "id: 1\nevent: message\ndata: {\"result\":{\"tools\":[{\"name\":\"a\"}]}}\n\n";
        for ends in ["\n", "\r\n", "\r"] {
            let text = ["id: 1", "event: message", &format!("data:{list}"), "", ""].join(ends);
            assert_eq!(stream(&[text.as_bytes()], &["a"]).unwrap(), kept, "{ends:?}");
            let bytes: Vec<&[u8]> = text.as_bytes().chunks(1).collect();
            assert_eq!(stream(&bytes, &["a"]).unwrap(), kept, "{ends:?}, byte by byte");
        }
        let (first, second) = list.split_at(11);
        let split = format!("data: {first}\ndata: {second}\n\n");
        assert_eq!(
            stream(&[split.as_bytes()], &["a"]).unwrap(),
            "data: {\"result\":{\"tools\":[{\"name\":\"a\"}]}}\n\n"
        );
        // However many marks there are: a reader skips one, and none is left for it.
        let marked = format!("\u{feff}\u{feff}data: {list}\n\n");
        assert!(
            stream(&[marked.as_bytes()], &["a"])
                .unwrap()
                .starts_with("data: {\"result\":{\"tools\":[{\"name\":\"a\"}]}}\n")
        );
        let other = ": keep-alive\n\nid: 0\ndata:\n\ndata: {\"method\":\"x\"}\n\n";
        assert_eq!(stream(&[other.as_bytes()], &[]).unwrap(), other);
        assert_eq!(stream(&[b"data: {\"result\""], &[]).unwrap(), "", "what is not complete waits");
        for bad in ["data: not json\n\n", "id: 1\u{2028}data: {}\n\n", ": x\u{85}\n\n", "id:\u{c}\ndata:{}\n\n"] {
            assert_eq!(stream(&[bad.as_bytes()], &[]), Err(Unfilterable::Message), "{bad:?}");
        }
        assert_eq!(stream(&[b"id: \xff\n\n"], &[]), Err(Unfilterable::Message));
        let endless = vec![b'x'; MAX_TOOLS_ANSWER + 1];
        assert_eq!(stream(&[&endless], &[]), Err(Unfilterable::TooLarge));
    }
}
