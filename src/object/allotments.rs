//! The book of a grant's uses: what was handed out to enforcement points, what they gave back, what is spent.
//!
//! Pure. The control plane's alone; one book a grant, from the first use that is asked for. INVARIANT: what accounts hold
//! and what is spent never comes to more than the grant's uses; a document of which that is not true is refused. Numbers of
//! an account only ever grow, so that a report that comes twice, or late, changes nothing.

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::{FieldError, GrantId};
use crate::clock::Timestamp;
use crate::credential::SpiffeId;

/// How many accounts are open at a time at most.
pub const MAX_ACCOUNTS: usize = 1024;

/// The uses of one grant.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Allotments {
    /// The grant, whose id is the book's as well.
    pub grant: GrantId,
    /// How many uses it has.
    pub uses: u32,
    /// What closed accounts have spent, with what they never gave back.
    pub spent: u32,
    /// The open accounts.
    pub accounts: Vec<UseAccount>,
}

/// What one process of an enforcement point was given.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct UseAccount {
    /// Its id: random, and used for nothing else ever.
    pub id: Uuid,
    /// Who has it.
    pub holder: SpiffeId,
    /// How many uses it was ever given.
    pub granted: u32,
    /// How many it says are spent.
    pub spent: u32,
    /// How many it gave back.
    pub returned: u32,
    /// When what it holds is no longer to be spent.
    pub until: Timestamp,
}

/// What has become of a grant's uses. They add up to all that it has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct UseCounts {
    /// Known to be spent, or lost with whoever held them.
    pub spent: u32,
    /// Handed out to enforcement points, which have not said yet what became of them.
    pub held: u32,
    /// Nobody has them.
    pub left: u32,
}

// === impl Allotments ===

impl Allotments {
    /// A book with nothing in it.
    pub const fn new(grant: GrantId, uses: u32) -> Self {
        Self { grant, uses, spent: 0, accounts: Vec::new() }
    }

    /// How many uses nobody has: they are not spent and in no account.
    pub fn available(&self) -> u32 {
        let held = self.accounts.iter().fold(self.spent, |sum, account| sum.saturating_add(account.kept()));
        self.uses.saturating_sub(held)
    }

    /// How many are known to be spent.
    pub fn all_spent(&self) -> u32 {
        self.accounts.iter().fold(self.spent, |sum, account| sum.saturating_add(account.spent))
    }

    /// What has become of them.
    pub fn counts(&self) -> UseCounts {
        let (spent, left) = (self.all_spent(), self.available());
        UseCounts { spent, held: self.uses.saturating_sub(spent).saturating_sub(left), left }
    }

    pub(super) fn check(&self) -> Result<(), FieldError> {
        if self.accounts.len() > MAX_ACCOUNTS {
            return Err(FieldError::new("accounts", format!("at most {MAX_ACCOUNTS} are allowed")));
        }
        for (i, account) in self.accounts.iter().enumerate() {
            if account.returned.checked_add(account.spent).is_none_or(|sum| sum > account.granted) {
                return Err(FieldError::new(format!("accounts[{i}]"), "more was spent and returned than was given"));
            }
        }
        let sum = self.accounts.iter().try_fold(self.spent, |sum, account| sum.checked_add(account.kept()));
        match sum {
            Some(sum) if sum <= self.uses => Ok(()),
            _ => Err(FieldError::new("accounts", "more was given than the grant has uses")),
        }
    }
}

// === impl UseAccount ===

impl UseAccount {
    /// What it was given and has not given back: spent, or to be spent.
    pub const fn kept(&self) -> u32 {
        self.granted.saturating_sub(self.returned)
    }
}
