//! Whose key a refused token asked for.
//!
//! Pure. Asked after a decision of `credential.kid_unknown`, so that somebody can see whether the issuer has a new key.
//! It reads the request again instead of carrying the name through every decision: only this failure pays for it. It
//! decides nothing.

use std::sync::Arc;

use super::authenticate::token_of;
use super::intake::intake;
use super::request::Request;
use super::snapshot::Snapshot;
use crate::credential;

/// The name of the issuer that judges the request's token, if there is one.
pub fn issuer_of_token<'s>(request: &Request<'_>, snapshot: &'s Snapshot) -> Option<&'s Arc<str>> {
    let intake = intake(request).ok()?;
    let token = token_of(&intake, snapshot).ok()??.token;
    credential::issuer_of(token, &snapshot.issuers)
}
