//! The life of signing keys: when one is made, takes over, retires and goes.
//!
//! Plane: control; pure, the time is an argument. INVARIANT: a key signs nothing before everybody who verifies has had
//! time to learn of it; the one exception is the very first, of which nobody has an older set. There is always a next key,
//! announced long before it is needed, so that a revocation of the one that signs need not wait for it. One that retires
//! stays published until the last token that it signed is over.

use std::time::Duration;

use crate::clock::Timestamp;
use crate::object::{Ending, SigningKey, SigningKeyState};

/// How long things take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    /// From the first publication of a key to its first signature.
    pub(super) announce: Duration,
    /// How long a key signs.
    pub(super) rotate_every: Duration,
    /// How long a key stays published after its last signature.
    pub(super) overlap: Duration,
    /// How long a key that is gone is remembered.
    pub(super) remember: Duration,
}

/// The keys as they should be now.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Next {
    /// All that there are, changed or not.
    pub(super) keys: Vec<SigningKey>,
    /// Ids of those that are forgotten.
    pub(super) forgotten: Vec<String>,
    /// The keys that are missing, by the time from which each may sign.
    pub(super) missing: Vec<Timestamp>,
}

/// What is due now. `held` says whether the private half of a key is there: without it, a key is of no use.
pub(super) fn due(keys: &[SigningKey], terms: Terms, now: Timestamp, held: impl Fn(&str) -> bool) -> Next {
    let mut next = Next { keys: Vec::with_capacity(keys.len()), forgotten: Vec::new(), missing: Vec::new() };
    for key in keys {
        let over = |since: Option<Timestamp>, time: Duration| since.is_some_and(|t| t.saturating_add(time) <= now);
        let mut key = key.clone();
        match key.state {
            SigningKeyState::Announced if !held(&key.kid) => end(&mut key, now),
            SigningKeyState::Active if !held(&key.kid) => retire(&mut key, now),
            SigningKeyState::Retiring if over(key.retired_at, terms.overlap) => end(&mut key, now),
            SigningKeyState::Gone if over(key.gone_at, terms.remember) => {
                next.forgotten.push(key.kid);
                continue;
            }
            _ => {}
        }
        next.keys.push(key);
    }
    let turn = |key: &SigningKey| key.activated_at.is_none_or(|at| at.saturating_add(terms.rotate_every) <= now);
    let is_due = next.keys.iter().find(|key| key.state == SigningKeyState::Active).is_none_or(turn);
    if let Some(successor) = successor(&mut next.keys)
        && (is_due || successor.wanted)
        && successor.usable_from <= now
    {
        let kid = successor.kid.clone();
        take_over(&mut next.keys, &kid, now);
    }
    let has = |state| next.keys.iter().any(|key| key.state == state);
    if keys.is_empty() {
        next.missing.push(now);
    }
    if !has(SigningKeyState::Announced) {
        next.missing.push(now.saturating_add(terms.announce));
    }
    next
}

/// A key that was just made. One that may sign at once does.
pub(super) fn made(kid: &str, jwk: serde_json::Value, by: &str, now: Timestamp, usable_from: Timestamp) -> SigningKey {
    let at_once = usable_from <= now;
    SigningKey {
        kid: kid.to_owned(),
        jwk,
        state: if at_once { SigningKeyState::Active } else { SigningKeyState::Announced },
        created_by: by.to_owned(),
        created_at: now,
        usable_from,
        wanted: false,
        activated_at: at_once.then_some(now),
        retired_at: None,
        gone_at: None,
        revoked: None,
    }
}

/// Has the next key take over as soon as it may; with `at_once`, now, whoever has not heard of it yet.
pub(super) fn rotate(keys: &mut [SigningKey], at_once: bool, now: Timestamp) -> Option<SigningKey> {
    let successor = successor(keys)?;
    let kid = successor.kid.clone();
    if at_once || successor.usable_from <= now {
        take_over(keys, &kid, now);
    } else {
        successor.wanted = true;
    }
    keys.iter().find(|key| key.kid == kid).cloned()
}

/// Ends a key now: it is published no more, and the tokens that it signed are nobody's. Answers whether it was there.
pub(super) fn revoke(keys: &mut [SigningKey], kid: &str, by: &str, reason: &str, now: Timestamp) -> bool {
    let Some(key) = keys.iter_mut().find(|key| key.kid == kid && key.is_published()) else { return false };
    end(key, now);
    key.revoked = Some(Ending { by: by.to_owned(), at: now, reason: reason.to_owned() });
    true
}

/// The key that takes over next: the one that was announced first.
fn successor(keys: &mut [SigningKey]) -> Option<&mut SigningKey> {
    let announced = keys.iter_mut().filter(|key| key.state == SigningKeyState::Announced);
    announced.min_by_key(|key| key.usable_from)
}

fn take_over(keys: &mut [SigningKey], kid: &str, now: Timestamp) {
    for key in keys {
        if key.kid == kid {
            (key.state, key.activated_at, key.wanted) = (SigningKeyState::Active, Some(now), false);
        } else if key.state == SigningKeyState::Active {
            retire(key, now);
        }
    }
}

const fn retire(key: &mut SigningKey, now: Timestamp) {
    (key.state, key.retired_at) = (SigningKeyState::Retiring, Some(now));
}

const fn end(key: &mut SigningKey, now: Timestamp) {
    (key.state, key.gone_at) = (SigningKeyState::Gone, Some(now));
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const TERMS: Terms = Terms {
        announce: Duration::from_secs(600),
        rotate_every: Duration::from_secs(3600),
        overlap: Duration::from_secs(360),
        remember: Duration::from_secs(10_000),
    };

    /// Keys, and what the world has seen of them.
    struct World {
        keys: Vec<SigningKey>,
        now: Timestamp,
        made: usize,
    }

    impl World {
        fn new() -> Self {
            Self { keys: Vec::new(), now: Timestamp::from_secs(1_000_000), made: 0 }
        }

        fn tick(&mut self, secs: u64) {
            self.now = self.now.saturating_add(Duration::from_secs(secs));
            let next = due(&self.keys, TERMS, self.now, |_| true);
            self.keys = next.keys;
            for usable_from in next.missing {
                self.made += 1;
                let kid = format!("k{}", self.made);
                self.keys.push(made(&kid, json!({"kid": kid}), "system", self.now, usable_from));
            }
        }

        fn of(&self, state: SigningKeyState) -> Vec<&str> {
            self.keys.iter().filter(|k| k.state == state).map(|k| k.kid.as_str()).collect()
        }
    }

    #[test]
    fn the_first_key_signs_at_once_and_every_other_after_its_time() {
        use SigningKeyState::{Active, Announced, Gone, Retiring};
        let mut world = World::new();
        world.tick(0);
        assert_eq!((world.of(Active), world.of(Announced)), (vec!["k1"], vec!["k2"]));
        world.tick(3599);
        assert_eq!((world.of(Active), world.of(Announced)), (vec!["k1"], vec!["k2"]));
        world.tick(1);
        assert_eq!((world.of(Active), world.of(Retiring), world.of(Announced)), (vec!["k2"], vec!["k1"], vec!["k3"]));
        world.tick(359);
        assert_eq!(world.of(Retiring), ["k1"], "its last token is not over yet");
        world.tick(1);
        assert_eq!((world.of(Retiring), world.of(Gone)), (vec![], vec!["k1"]));
        world.tick(10_000);
        assert!(!world.keys.iter().any(|k| k.kid == "k1"), "forgotten");
    }

    #[test]
    fn a_rotation_waits_for_the_announcement_unless_told_not_to() {
        use SigningKeyState::{Active, Announced};
        let mut world = World::new();
        world.tick(0);
        world.tick(60);
        let asked = rotate(&mut world.keys, false, world.now).unwrap();
        assert!(asked.wanted && asked.state == Announced);
        world.tick(539);
        assert_eq!(world.of(Active), ["k1"]);
        world.tick(1);
        assert_eq!(world.of(Active), ["k2"], "600 seconds after it was announced");
        let kid = rotate(&mut world.keys, true, world.now).unwrap().kid;
        assert_eq!((world.of(Active), kid.as_str()), (vec!["k3"], "k3"));
    }

    #[test]
    fn what_is_revoked_or_lost_is_followed_by_the_next_when_that_may_sign() {
        use SigningKeyState::{Active, Announced, Gone};
        let mut world = World::new();
        world.tick(0);
        assert!(revoke(&mut world.keys, "k1", "alice", "leaked", world.now));
        assert!(!revoke(&mut world.keys, "k1", "alice", "leaked", world.now), "it is gone");
        world.tick(1);
        assert_eq!((world.of(Active), world.of(Announced), world.of(Gone)), (vec![], vec!["k2"], vec!["k1"]));
        world.tick(599);
        assert_eq!(world.of(Active), ["k2"]);
        let next = due(&world.keys, TERMS, world.now, |_| false);
        assert!(next.keys.iter().all(|k| k.state != Active && k.state != Announced), "nobody can sign with these");
        assert_eq!(next.missing, [world.now.saturating_add(TERMS.announce)], "not at once: older sets are about");
    }

    proptest! {
        /// Whatever is asked for and however time passes: no key signs before it was announced long enough, at most one
        /// signs at a time, and a key is published until the last token that it can have signed is over.
        #[test]
        fn keys_are_known_before_and_after_they_sign(
            steps in prop::collection::vec((0..2000u64, 0..6u8), 1..60)
        ) {
            let mut world = World::new();
            let mut signed: Vec<(String, Timestamp)> = Vec::new();
            let mut revoked: Vec<String> = Vec::new();
            for (secs, ask) in steps {
                world.tick(secs);
                match ask {
                    0 => drop(rotate(&mut world.keys, false, world.now)),
                    1 => {
                        if let Some(kid) = world.of(SigningKeyState::Active).first().map(|k| (*k).to_owned()) {
                            revoke(&mut world.keys, &kid, "alice", "", world.now);
                            revoked.push(kid);
                        }
                    }
                    _ => {}
                }
                let active = world.of(SigningKeyState::Active);
                prop_assert!(active.len() <= 1);
                for key in world.keys.iter().filter(|k| k.state == SigningKeyState::Active) {
                    let known_for = world.now.since(key.created_at);
                    prop_assert!(key.kid == "k1" || known_for >= TERMS.announce, "{} after {known_for:?}", key.kid);
                    signed.push((key.kid.clone(), world.now));
                }
                for (kid, at) in &signed {
                    let alive = world.now.since(*at) < Duration::from_secs(300);
                    let published = world.keys.iter().any(|k| k.kid == *kid && k.is_published());
                    prop_assert!(!alive || published || revoked.contains(kid), "{kid} signed at {at}");
                }
            }
        }
    }
}
