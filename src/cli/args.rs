//! Parsers of argument values that several commands share.
//!
//! Plane: composition. Parsed before anything is sent, so that a slip of the pen never reaches a server; a value that
//! does not parse is a usage error (exit status 2) that repeats it in backticks.

use std::time::Duration;

use crate::clock::Timestamp;

/// `5m`, `1h 30m`.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|e| format!("not a duration such as `5s` or `1h`: {e}"))
}

/// `10s`, or `-10s`: seconds before or after.
pub(super) fn offset(text: &str) -> Result<i64, String> {
    let (sign, rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text),
    };
    let secs = i64::try_from(duration(rest)?.as_secs()).map_err(|e| e.to_string())?;
    Ok(sign * secs)
}

/// `name=value`.
pub(super) fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=VALUE")?;
    if name.is_empty() {
        return Err("the name is empty".to_owned());
    }
    Ok((name.to_owned(), value.to_owned()))
}

/// `Name: value`.
pub(super) fn header(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once(':').ok_or("expected NAME: VALUE")?;
    if name.trim().is_empty() {
        return Err("the name is empty".to_owned());
    }
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

/// An RFC 3339 time.
pub(super) fn timestamp(text: &str) -> Result<Timestamp, String> {
    text.parse().map_err(|e| format!("not a time such as 2026-01-31T12:00:00Z: {e}"))
}

/// An RFC 3339 time, or whole Unix seconds.
pub(super) fn instant(text: &str) -> Result<Timestamp, String> {
    match text.parse::<u64>() {
        Ok(secs) if secs <= Timestamp::MAX.as_secs() => Ok(Timestamp::from_secs(secs)),
        Ok(_) => Err("not a time before the year 10000".to_owned()),
        Err(_not_seconds) => timestamp(text),
    }
}
