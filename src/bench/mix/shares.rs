//! Shares: how large a part of a mix requests with new tokens are, and those that are to be denied, whatever weights say.
//!
//! Plane: composition; no I/O. Within a group the weights keep their proportions. A share that no request can fill is
//! refused.

use serde::Deserialize;

use super::{MixError, Template};

/// How large a part of the requests is of a kind, whatever their weights say.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shares {
    /// Of those with new tokens.
    pub never_seen: Option<f64>,
    /// Of those that are expected to be denied, and have no new token.
    pub denied: Option<f64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Group {
    NeverSeen,
    Denied,
    Other,
}

/// Scales the weights of each group so that the shares come out, in percent.
pub(super) fn apply(requests: &mut [Template], shares: Shares) -> Result<(), MixError> {
    if shares == Shares::default() {
        return Ok(());
    }
    let sum =
        |requests: &[Template], group| requests.iter().filter(|r| r.group() == group).map(|r| r.weight).sum::<f64>();
    let total: f64 = requests.iter().map(|r| r.weight).sum();
    let mut left = 1.0;
    let mut scale = Vec::new();
    for (group, share, name) in
        [(Group::NeverSeen, shares.never_seen, "never_seen"), (Group::Denied, shares.denied, "denied")]
    {
        let have = sum(requests, group);
        let share = share.unwrap_or(if total > 0.0 { have / total } else { 0.0 });
        if !(0.0..=1.0).contains(&share) {
            return Err(MixError::Whole(format!("`{name}: {share}` is not a share between 0 and 1")));
        }
        if share > 0.0 && have <= 0.0 {
            return Err(MixError::Whole(format!("`{name}: {share}`, but the mix has no such request")));
        }
        left -= share;
        scale.push((group, if have > 0.0 { share / have } else { 0.0 }));
    }
    let others = sum(requests, Group::Other);
    if left < -1e-9 || (left > 1e-9 && others <= 0.0) {
        let why = "the shares of `never_seen` and `denied` leave more or less to other requests than there is";
        return Err(MixError::Whole(why.to_owned()));
    }
    scale.push((Group::Other, if others > 0.0 { left.max(0.0) / others } else { 0.0 }));
    for request in requests {
        let of = scale.iter().find(|(group, _)| *group == request.group());
        request.weight *= 100.0 * of.map_or(0.0, |(_, by)| *by);
    }
    Ok(())
}
