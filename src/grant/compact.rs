//! What a sidecar gets of a grant: what enforcement reads and nothing else, in one short binary form.
//!
//! Pure. Who asked, why, who voted and the ticket stay in the control plane, as does the digest that votes repeat: here the
//! signature over the frame speaks for all of it. INVARIANT: each grant has exactly one encoding (names sorted, none twice,
//! no byte without meaning), so that equal bytes are equal grants; a version, state or flag that is not known is an error,
//! because a condition that is skipped would widen the grant. Reading copies no text and allocates nothing for most grants.
//!
//! In this order, numbers big-endian: version (1 byte), state (1), flags (2), id (16), [`WorkloadKey`] (16), then as the
//! flags say `not_before`, `not_after`, `ended_at` (8 each, milliseconds), `uses` (4); resources and actions (a count in 1
//! byte; each a length in 1 byte and text); path (length in 2 bytes; a [pattern](Template::pattern)), conditions and exact
//! call (length in 4 bytes; JSON).

use std::borrow::Cow;
use std::fmt::Display;

use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

use super::shards::{Shard, WorkloadKey};
use crate::authz::Template;
use crate::clock::Timestamp;
use crate::object::{ExactCall, FieldError, Grant, GrantConditions, GrantId, GrantState, from_json};

/// The version of the form.
const VERSION: u8 = 1;
/// The most names in a list, and the longest pattern.
const MAX_NAMES: u8 = 64;
const MAX_PATTERN: usize = 1024;

/// Where the workload is.
const WORKLOAD_AT: usize = 1 + 1 + 2 + 16;

const NOT_BEFORE: u16 = 1;
const NOT_AFTER: u16 = 1 << 1;
const ENDED_AT: u16 = 1 << 2;
const USES: u16 = 1 << 3;
const PATH: u16 = 1 << 4;
const CONDITIONS: u16 = 1 << 5;
const CALL: u16 = 1 << 6;
const BREAK_GLASS: u16 = 1 << 7;
const KNOWN: u16 = NOT_BEFORE | NOT_AFTER | ENDED_AT | USES | PATH | CONDITIONS | CALL | BREAK_GLASS;

/// States by their numbers.
const STATES: [GrantState; 9] = [
    GrantState::Pending,
    GrantState::Scheduled,
    GrantState::Active,
    GrantState::Ended,
    GrantState::Exhausted,
    GrantState::Revoked,
    GrantState::Denied,
    GrantState::Withdrawn,
    GrantState::ExpiredUnapproved,
];

/// A grant as a sidecar reads it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompactGrant<'a> {
    /// Its id.
    pub id: GrantId,
    /// Whose it is.
    pub workload: WorkloadKey,
    /// What for: services or routes.
    pub resources: Names<'a>,
    /// Which actions.
    pub actions: Names<'a>,
    /// Narrows it to the paths of this pattern.
    pub path: Option<&'a str>,
    /// Where in its life it is.
    pub state: GrantState,
    /// When it starts to count.
    pub not_before: Option<Timestamp>,
    /// When it ends.
    pub not_after: Option<Timestamp>,
    /// When it ended, once it has.
    pub ended_at: Option<Timestamp>,
    /// Whether it is break-glass.
    pub break_glass: bool,
    /// How many requests it allows.
    pub uses: Option<u32>,
    /// What must hold of a request.
    pub conditions: GrantConditions,
    /// Narrows it to one call.
    pub call: Option<ExactCall>,
}

/// Names, sorted, none twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Names<'a>(&'a [u8]);

/// What is left to read.
struct Rest<'a>(&'a [u8]);

// === impl CompactGrant ===

impl<'a> CompactGrant<'a> {
    /// Reads the form.
    pub fn read(form: &'a [u8]) -> Result<Self, FieldError> {
        let mut rest = Rest(form);
        let [version, state] = rest.array("state")?;
        if version != VERSION {
            return Err(error("version", format_args!("`{version}` is not a form of grants that is known here")));
        }
        let Some(state) = STATES.get(usize::from(state)).copied() else {
            return Err(error("state", format_args!("`{state}` is not a state of grants that is known here")));
        };
        let flags = u16::from_be_bytes(rest.array("flags")?);
        if flags & !KNOWN != 0 {
            return Err(error("flags", format_args!("`{flags:#06x}` has one that is not known here")));
        }
        let id = GrantId(Uuid::from_bytes(rest.array("id")?));
        let workload = WorkloadKey(rest.array("workload")?);
        let not_before = rest.time(flags & NOT_BEFORE, "not_before")?;
        let not_after = rest.time(flags & NOT_AFTER, "not_after")?;
        let ended_at = rest.time(flags & ENDED_AT, "ended_at")?;
        let uses = if flags & USES == 0 { None } else { Some(u32::from_be_bytes(rest.array("uses")?)) };
        let (resources, actions) = (rest.names("resources")?, rest.names("actions")?);
        let path = if flags & PATH == 0 { None } else { Some(rest.pattern()?) };
        let (mut conditions, mut call) = (GrantConditions::default(), None);
        if flags & CONDITIONS != 0 {
            conditions = rest.json("conditions")?;
            conditions.check()?;
            if conditions.is_empty() {
                return Err(error("conditions", "there are none"));
            }
        }
        if flags & CALL != 0 {
            let found: ExactCall = rest.json("call")?;
            found.check()?;
            call = Some(found);
        }
        if !rest.0.is_empty() {
            return Err(error("", "something follows the grant"));
        }
        match (not_before, not_after) {
            (Some(from), Some(to)) if to <= from => return Err(error("not_after", "it ends before it starts")),
            (None, _) | (_, None) if matches!(state, GrantState::Active | GrantState::Scheduled) => {
                return Err(error("not_after", "an active grant has a start and an end"));
            }
            _ => {}
        }
        let break_glass = flags & BREAK_GLASS != 0;
        Ok(Self {
            id,
            workload,
            resources,
            actions,
            path,
            state,
            not_before,
            not_after,
            ended_at,
            break_glass,
            uses,
            conditions,
            call,
        })
    }

    /// Whether what it covers depends on more than workload, resource, action, path and time, or changes with each use.
    pub fn is_limited(&self) -> bool {
        !self.conditions.is_empty() || self.call.is_some() || self.uses.is_some()
    }

    /// The form of a grant. Empty, which nobody reads, if it cannot be said in it; then its document is not a valid one.
    pub fn encode(grant: &Grant) -> Vec<u8> {
        let mut form = Vec::with_capacity(Self::usual_len(grant));
        if write(grant, &mut form).is_none() {
            form.clear();
        }
        form
    }

    /// About how long the form of a grant is.
    pub fn usual_len(grant: &Grant) -> usize {
        let resources = grant.resources.iter().map(|r| r.service.len() + r.route.as_ref().map_or(0, String::len) + 2);
        let actions = grant.actions.iter().map(|a| a.len() + 1);
        64 + resources.chain(actions).sum::<usize>() + grant.path.as_ref().map_or(0, String::len)
    }
}

fn write(grant: &Grant, form: &mut Vec<u8>) -> Option<()> {
    let ended_at = grant.ended.as_ref().map(|e| e.at);
    let when = |condition: bool, flag: u16| if condition { flag } else { 0 };
    let flags = when(grant.not_before.is_some(), NOT_BEFORE)
        | when(grant.not_after.is_some(), NOT_AFTER)
        | when(ended_at.is_some(), ENDED_AT)
        | when(grant.uses.is_some(), USES)
        | when(grant.path.is_some(), PATH)
        | when(!grant.conditions.is_empty(), CONDITIONS)
        | when(grant.call.is_some(), CALL)
        | when(grant.break_glass, BREAK_GLASS);
    let state = STATES.iter().position(|s| *s == grant.state)?;
    form.extend([VERSION, u8::try_from(state).ok()?]);
    form.extend(flags.to_be_bytes());
    form.extend(grant.id.0.as_bytes());
    form.extend(WorkloadKey::of(grant.workload.as_str()).0);
    for time in [grant.not_before, grant.not_after, ended_at].into_iter().flatten() {
        form.extend(time.as_millis().to_be_bytes());
    }
    if let Some(uses) = grant.uses {
        form.extend(uses.to_be_bytes());
    }
    write_names(grant.resources.iter().map(ToString::to_string).collect(), form)?;
    write_names(grant.actions.iter().map(String::as_str).collect(), form)?;
    if let Some(path) = &grant.path {
        let pattern = pattern(path)?;
        form.extend(u16::try_from(pattern.len()).ok()?.to_be_bytes());
        form.extend(pattern.as_bytes());
    }
    let json = |value: serde_json::Result<Vec<u8>>, form: &mut Vec<u8>| {
        let value = value.ok()?;
        form.extend(u32::try_from(value.len()).ok()?.to_be_bytes());
        form.extend(value);
        Some(())
    };
    if !grant.conditions.is_empty() {
        json(serde_json::to_vec(&grant.conditions), form)?;
    }
    if let Some(call) = &grant.call {
        json(serde_json::to_vec(call), form)?;
    }
    Some(())
}

fn write_names<T: AsRef<str> + Ord>(mut names: Vec<T>, form: &mut Vec<u8>) -> Option<()> {
    names.sort_unstable();
    names.dedup();
    form.push(u8::try_from(names.len()).ok()?);
    for name in names {
        let name = name.as_ref();
        form.push(u8::try_from(name.len()).ok()?);
        form.extend(name.as_bytes());
    }
    Some(())
}

/// The pattern of a template. Without names in it, it is its own, and needs no parsing.
fn pattern(template: &str) -> Option<Cow<'_, str>> {
    if template.contains('{') {
        return Template::parse(template).ok().map(|t| Cow::Owned(t.pattern().to_owned()));
    }
    Some(Cow::Borrowed(template))
}

/// Where a grant stands in a snapshot, by its form: beside those that a sidecar keeps together.
pub fn place(form: &[u8]) -> u16 {
    let workload = form.get(WORKLOAD_AT..).and_then(<[u8]>::first_chunk);
    workload.map_or(0, |workload| Shard::of(workload).number())
}

/// The forms in a batch, each behind its length in 4 bytes. One that is cut off is the last, and an error.
pub fn split(batch: &[u8]) -> impl Iterator<Item = Result<&[u8], FieldError>> {
    let mut rest = Rest(batch);
    std::iter::from_fn(move || {
        if rest.0.is_empty() {
            return None;
        }
        let form = rest.long("grants");
        if form.is_err() {
            rest.0 = &[];
        }
        Some(form)
    })
}

/// Adds a form to a batch.
pub fn join(batch: &mut Vec<u8>, form: &[u8]) {
    batch.extend(u32::try_from(form.len()).unwrap_or(u32::MAX).to_be_bytes());
    batch.extend(form);
}

// === impl Names ===

impl<'a> Names<'a> {
    /// Each name.
    pub fn iter(self) -> impl Iterator<Item = &'a str> {
        let mut rest = Rest(self.0);
        // Read once already, so that nothing ends it early.
        std::iter::from_fn(move || rest.name().and_then(|name| std::str::from_utf8(name).ok()))
    }

    /// What equal lists have in common.
    pub const fn as_bytes(self) -> &'a [u8] {
        self.0
    }
}

// === impl Rest ===

impl<'a> Rest<'a> {
    fn array<const N: usize>(&mut self, field: &str) -> Result<[u8; N], FieldError> {
        let (array, rest) = self.0.split_first_chunk::<N>().ok_or_else(|| cut_off(field))?;
        self.0 = rest;
        Ok(*array)
    }

    fn take(&mut self, len: usize, field: &str) -> Result<&'a [u8], FieldError> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or_else(|| cut_off(field))?;
        self.0 = rest;
        Ok(taken)
    }

    fn time(&mut self, flag: u16, field: &str) -> Result<Option<Timestamp>, FieldError> {
        if flag == 0 {
            return Ok(None);
        }
        Ok(Some(Timestamp::from_millis(u64::from_be_bytes(self.array(field)?))))
    }

    fn name(&mut self) -> Option<&'a [u8]> {
        let (len, rest) = self.0.split_first()?;
        let (name, rest) = rest.split_at_checked(usize::from(*len))?;
        self.0 = rest;
        Some(name)
    }

    fn names(&mut self, field: &str) -> Result<Names<'a>, FieldError> {
        let [count] = self.array(field)?;
        if !(1..=MAX_NAMES).contains(&count) {
            return Err(error(field, "1 to 64 are needed"));
        }
        let all = self.0;
        let mut last: &[u8] = &[];
        for _ in 0..count {
            let name = self.name().ok_or_else(|| cut_off(field))?;
            if name <= last || std::str::from_utf8(name).is_err() {
                return Err(error(field, "they are not names in their order"));
            }
            last = name;
        }
        let len = all.len() - self.0.len();
        Ok(Names(all.get(..len).unwrap_or_default()))
    }

    fn pattern(&mut self) -> Result<&'a str, FieldError> {
        let len = usize::from(u16::from_be_bytes(self.array("path")?));
        let text = self.take(len, "path")?;
        let fits = |b: &u8| b.is_ascii_graphic() && !matches!(b, b'{' | b'}');
        if !text.starts_with(b"/") || len > MAX_PATTERN || !text.iter().all(fits) {
            return Err(error("path", "it is not a pattern of paths"));
        }
        std::str::from_utf8(text).map_err(|_not_ascii| error("path", "it is not a pattern of paths"))
    }

    fn long(&mut self, field: &str) -> Result<&'a [u8], FieldError> {
        let len = u32::from_be_bytes(self.array(field)?);
        self.take(usize::try_from(len).unwrap_or(usize::MAX), field)
    }

    /// A document, written as we would write it.
    fn json<T: Serialize + DeserializeOwned>(&mut self, field: &str) -> Result<T, FieldError> {
        let text = self.long(field)?;
        let value: T = from_json(text)?;
        match serde_json::to_vec(&value) {
            Ok(same) if same == text => Ok(value),
            _ => Err(error(field, "it is written in an unusual way")),
        }
    }
}

fn error(field: &str, message: impl Display) -> FieldError {
    FieldError::new(field, message.to_string())
}

fn cut_off(field: &str) -> FieldError {
    error(field, "the grant is cut off")
}

#[cfg(test)]
mod tests;
