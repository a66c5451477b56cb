//! What narrows a grant to some requests, compiled: conditions, one exact call, a number of uses.
//!
//! Pure; time is an argument. Kept beside the index's entries, because few grants have any. INVARIANT: every condition
//! has to hold, and what is not known of a request holds nothing: no address, a header twice or under another spelling,
//! a body that the check did not carry whole. A document that does not compile is no grant.

use core::net::IpAddr;
use std::cell::OnceCell;
use std::time::Duration;

use super::compact::CompactGrant;
use crate::authz::{Header, Network};
use crate::clock::Timestamp;
use crate::object::{ExactCall, GrantConditions, GrantId, GrantState, TimeWindow, Weekday};

/// The limits of one grant.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Limits {
    networks: Box<[Network]>,
    environments: Texts,
    headers: Box<[(Box<str>, Texts)]>,
    windows: Box<[Window]>,
    /// MCP tools.
    tools: Texts,
    call: Option<Call>,
    uses: Option<u32>,
    /// When it would end whose last use has been spent: what was let through by it may go on until then.
    spent_until: Option<Timestamp>,
}

/// Any of some texts.
type Texts = Box<[Box<str>]>;

/// What a request is like, as far as limits ask.
#[derive(Debug)]
pub struct Circumstances<'a> {
    /// The client's address, as the proxy says.
    pub address: Option<IpAddr>,
    /// Every header.
    pub headers: &'a [Header<'a>],
    /// The method, as sent.
    pub method: &'a str,
    /// Path and query, as sent.
    pub target: &'a str,
    /// The body, as bytes, if the check carried it.
    pub body: Option<&'a [u8]>,
    /// The MCP tool that it calls, if it does.
    pub tool: Option<&'a str>,
    /// The grant by which it was let through before, of which its use has been spent.
    pub spent: Option<GrantId>,
    /// SHA-256 of the body, once somebody asked.
    digest: OnceCell<Option<[u8; 32]>>,
}

/// Why a grant that is in force does not cover a request. The later, the more telling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Unmet {
    /// It is for another environment.
    Environment,
    /// Another condition does not hold.
    Condition,
    /// It depends on a body that is not known.
    Body,
}

/// A part of the week, in milliseconds of its days.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Window {
    /// One bit a day, Monday first.
    days: u8,
    from: u64,
    to: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Call {
    method: Box<str>,
    target: Box<str>,
    body: Option<[u8; 32]>,
}

const MINUTE: u64 = 60_000;
const DAY: u64 = 24 * 60 * MINUTE;

// === impl Limits ===

impl Limits {
    /// Those of a grant; `None` if one of them cannot be understood.
    pub(super) fn of(grant: &CompactGrant<'_>) -> Option<Self> {
        let GrantConditions { source_networks, environments, headers, windows, tools } = &grant.conditions;
        let texts = |list: &[String]| list.iter().map(|text| text.as_str().into()).collect::<Texts>();
        Some(Self {
            networks: source_networks.iter().map(|text| text.parse().ok()).collect::<Option<_>>()?,
            environments: texts(environments),
            headers: headers.iter().map(|(name, values)| (name.as_str().into(), texts(values))).collect(),
            windows: windows.iter().map(Window::of).collect::<Option<_>>()?,
            tools: texts(tools),
            call: match &grant.call {
                Some(call) => Some(Call::of(call)?),
                None => None,
            },
            uses: grant.uses,
            spent_until: grant.not_after.filter(|_| grant.state == GrantState::Exhausted),
        })
    }

    /// How many requests it allows, if not any number.
    pub(super) const fn uses(&self) -> Option<u32> {
        self.uses
    }

    /// When it would end, if its last use has been spent.
    pub(super) const fn spent_until(&self) -> Option<Timestamp> {
        self.spent_until
    }

    /// Whether its exact call and its tools, if it is for such, are those of the request, whatever the body.
    pub(super) fn is_for(&self, request: &Circumstances<'_>) -> bool {
        let tool = |tool: &str| self.tools.iter().any(|name| **name == *tool);
        if !self.tools.is_empty() && !request.tool.is_some_and(tool) {
            return false;
        }
        self.call.as_ref().is_none_or(|call| *call.method == *request.method && *call.target == *request.target)
    }

    /// Holds a request against the conditions and the body. Until when the answer is good.
    pub(super) fn judge(
        &self,
        request: &Circumstances<'_>,
        environment: &str,
        now: Timestamp,
    ) -> Result<Timestamp, Unmet> {
        if !self.environments.is_empty() && !self.environments.iter().any(|name| **name == *environment) {
            return Err(Unmet::Environment);
        }
        let address = |address: IpAddr| self.networks.iter().any(|network| network.contains(address));
        let from_there = self.networks.is_empty() || request.address.is_some_and(address);
        let headers = self.headers.iter().all(|(name, values)| {
            request.single_header(name).is_some_and(|value| values.iter().any(|v| v.as_bytes() == value))
        });
        let until = match &*self.windows {
            [] => Some(Timestamp::MAX),
            windows => windows.iter().filter_map(|window| window.end(now)).max(),
        };
        let (true, true, Some(until)) = (from_there, headers, until) else { return Err(Unmet::Condition) };
        match self.call.as_ref().and_then(|call| call.body) {
            None => Ok(until),
            Some(wanted) => match request.body_digest() {
                None => Err(Unmet::Body),
                Some(digest) if digest == wanted => Ok(until),
                Some(_) => Err(Unmet::Condition),
            },
        }
    }
}

// === impl Circumstances ===

impl<'a> Circumstances<'a> {
    /// Those of a request.
    pub const fn new(
        (method, target): (&'a str, &'a str),
        headers: &'a [Header<'a>],
        address: Option<IpAddr>,
        body: Option<&'a [u8]>,
    ) -> Self {
        Self { address, headers, method, target, body, tool: None, spent: None, digest: OnceCell::new() }
    }

    /// Those of a request that calls this MCP tool, if it calls one.
    pub fn with_tool(self, tool: Option<&'a str>) -> Self {
        Self { tool, ..self }
    }

    /// Those of a request that was let through by this grant, if by one, and has spent its use.
    pub fn once_let_through(self, spent: Option<GrantId>) -> Self {
        Self { spent, ..self }
    }

    /// The value of a header that occurs once. One that some server could take for it counts as an occurrence, and is
    /// not it.
    fn single_header(&self, name: &str) -> Option<&'a [u8]> {
        let same = |a: u8, b: u8| a.eq_ignore_ascii_case(&b) || (a == b'_' && b == b'-');
        let is =
            |h: &&Header<'_>| h.name.len() == name.len() && h.name.iter().zip(name.bytes()).all(|(a, b)| same(*a, b));
        let mut found = self.headers.iter().filter(is);
        match (found.next(), found.next()) {
            (Some(header), None) if header.name.eq_ignore_ascii_case(name.as_bytes()) => Some(header.value),
            _ => None,
        }
    }

    /// SHA-256 of the whole body, if that is known. That there is none is known only from `content-length: 0`: a proxy
    /// that does not send bodies to the check sends nothing either way.
    fn body_digest(&self) -> Option<[u8; 32]> {
        *self.digest.get_or_init(|| {
            let body = match self.body {
                Some(body) if !body.is_empty() => body,
                _ => (self.single_header("content-length") == Some(b"0")).then_some(&[][..])?,
            };
            let mut out = [0; 32];
            let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, body);
            out.iter_mut().zip(digest.as_ref()).for_each(|(to, from)| *to = *from);
            Some(out)
        })
    }
}

// === impl Window ===

impl Window {
    fn of(window: &TimeWindow) -> Option<Self> {
        let (from, to) = window.minutes()?;
        let days = match &*window.days {
            [] => 0x7f,
            days => days.iter().fold(0, |all, day| all | bit(*day)),
        };
        Some(Self { days, from: u64::from(from) * MINUTE, to: u64::from(to) * MINUTE })
    }

    /// When it ends, if `now` is in it.
    fn end(self, now: Timestamp) -> Option<Timestamp> {
        let (day, in_day) = (now.as_millis() / DAY, now.as_millis() % DAY);
        // The first of January 1970 was a Thursday.
        let today = 1_u8 << ((day + 3) % 7);
        let within = self.days & today != 0 && (self.from..self.to).contains(&in_day);
        within.then(|| now.saturating_add(Duration::from_millis(self.to - in_day)))
    }
}

const fn bit(day: Weekday) -> u8 {
    1 << match day {
        Weekday::Mon => 0,
        Weekday::Tue => 1,
        Weekday::Wed => 2,
        Weekday::Thu => 3,
        Weekday::Fri => 4,
        Weekday::Sat => 5,
        Weekday::Sun => 6,
    }
}

// === impl Call ===

impl Call {
    fn of(call: &ExactCall) -> Option<Self> {
        let body = match &call.body_sha256 {
            None => None,
            Some(text) => Some(unhex(text)?),
        };
        Some(Self { method: call.method.as_str().into(), target: call.path.as_str().into(), body })
    }
}

fn unhex(text: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if pairs.len() != out.len() || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in out.iter_mut().zip(pairs) {
        let digit = |c: &u8| char::from(*c).to_digit(16);
        *byte = u8::try_from(digit(high)? * 16 + digit(low)?).ok()?;
    }
    Some(out)
}

#[cfg(test)]
mod tests;
