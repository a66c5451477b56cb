//! The engine's memo on two bounded moka caches, and a small one of tokens whose signature was bad.
//!
//! Plane: shared. Bounded by number of entries; what was not used for longest goes first. INVARIANT: what was just verified or
//! decided is known for the next request, however full a cache is and whatever it holds: tokens are rotated and policies
//! replaced, so an entry that was popular may well be dead, and is no reason to turn a new one away (as moka's default policy
//! would). Reading never extends an entry's life, and every entry goes after an hour whatever its use, so that what is no longer
//! reachable does not stay.

use std::fmt;
use std::hash::Hash;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use moka::policy::EvictionPolicy;
use moka::sync::{Cache, CacheBuilder};

use crate::authz::{KnownAnswer, KnownCertificate, KnownToken, Memo};

/// Sizes of the two caches, in entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheSizes {
    /// Verified tokens, and certificates that were read.
    pub tokens: u64,
    /// Decisions.
    pub decisions: u64,
}

/// Counters of one cache since start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheCounters {
    /// Look-ups that found an entry that still counts.
    pub hits: u64,
    /// Look-ups that did not.
    pub misses: u64,
    /// Entries that were dropped for room or age.
    pub evictions: u64,
    /// Entries now, roughly.
    pub entries: u64,
}

/// The two caches.
pub(super) struct MokaMemo {
    credentials: Counted<[u8; 32], Credential>,
    answers: Counted<Box<[u8]>, Arc<KnownAnswer>>,
    /// The version of the issuers under which the signature of a token was found bad.
    forged: Cache<[u8; 32], u64, foldhash::fast::RandomState>,
}

/// The memo as one decision uses it.
#[derive(Debug)]
pub(super) struct View<'a> {
    memo: &'a MokaMemo,
    /// Whether look-ups of credentials are counted: not in a decision that was deferred after they had been.
    counts_credentials: bool,
}

/// What the first cache holds. The kind is in the entry, not only in its key: neither can pass for the other.
#[derive(Debug, Clone)]
enum Credential {
    Token(Arc<KnownToken>),
    Certificate(Arc<KnownCertificate>),
}

struct Counted<K, V> {
    cache: Cache<K, V, foldhash::fast::RandomState>,
    hits: AtomicU64,
    misses: AtomicU64,
    evictions: Arc<AtomicU64>,
}

const MAX_AGE: Duration = Duration::from_secs(3600);
/// How many tokens with bad signatures are remembered. Who sends always new ones only wears this cache out.
const MAX_FORGED: u64 = 10_000;

fn bounded<K, V>(capacity: u64) -> CacheBuilder<K, V, Cache<K, V>>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    Cache::builder().max_capacity(capacity).time_to_live(MAX_AGE).eviction_policy(EvictionPolicy::lru())
}

// === impl MokaMemo ===

impl MokaMemo {
    pub(super) fn new(sizes: CacheSizes) -> Self {
        let forged = bounded(MAX_FORGED).build_with_hasher(foldhash::fast::RandomState::default());
        Self { credentials: Counted::new(sizes.tokens), answers: Counted::new(sizes.decisions), forged }
    }

    /// For a decision that begins.
    pub(super) const fn view(&self) -> View<'_> {
        View { memo: self, counts_credentials: true }
    }

    /// For a decision that is made again because it was deferred.
    pub(super) const fn view_again(&self) -> View<'_> {
        View { memo: self, counts_credentials: false }
    }

    pub(super) fn tokens(&self) -> CacheCounters {
        self.credentials.counters()
    }

    pub(super) fn answers(&self) -> CacheCounters {
        self.answers.counters()
    }
}

impl fmt::Debug for MokaMemo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MokaMemo").field("tokens", &self.tokens()).field("answers", &self.answers()).finish()
    }
}

// === impl View ===

impl View<'_> {
    fn count<T>(&self, found: Option<T>) -> Option<T> {
        if self.counts_credentials { self.memo.credentials.count(found) } else { found }
    }
}

impl Memo for View<'_> {
    fn token(&self, digest: &[u8; 32], usable: impl Fn(&KnownToken) -> bool) -> Option<Arc<KnownToken>> {
        let found = self.memo.credentials.cache.get(digest).and_then(|known| match known {
            Credential::Token(token) if usable(&token) => Some(token),
            Credential::Token(_) | Credential::Certificate(_) => None,
        });
        self.count(found)
    }

    fn keep_token(&self, digest: [u8; 32], token: &Arc<KnownToken>) {
        self.memo.credentials.cache.insert(digest, Credential::Token(Arc::clone(token)));
    }

    fn certificate(&self, digest: &[u8; 32]) -> Option<Arc<KnownCertificate>> {
        let found = self.memo.credentials.cache.get(digest).and_then(|known| match known {
            Credential::Certificate(certificate) => Some(certificate),
            Credential::Token(_) => None,
        });
        self.count(found)
    }

    fn keep_certificate(&self, digest: [u8; 32], certificate: &Arc<KnownCertificate>) {
        self.memo.credentials.cache.insert(digest, Credential::Certificate(Arc::clone(certificate)));
    }

    fn answer(&self, key: &[u8], usable: impl Fn(&KnownAnswer) -> bool) -> Option<Arc<KnownAnswer>> {
        self.memo.answers.count(self.memo.answers.cache.get(key).filter(|k| usable(k)))
    }

    fn keep_answer(&self, key: &[u8], answer: &Arc<KnownAnswer>) {
        self.memo.answers.cache.insert(Box::from(key), Arc::clone(answer));
    }

    fn is_forged(&self, digest: &[u8; 32], global_version: u64) -> bool {
        self.memo.forged.get(digest).is_some_and(|version| version == global_version)
    }

    fn keep_forged(&self, digest: [u8; 32], global_version: u64) {
        self.memo.forged.insert(digest, global_version);
    }
}

// === impl Counted ===

impl<K, V> Counted<K, V>
where
    K: Hash + Eq + Send + Sync + 'static,
    V: Clone + Send + Sync + 'static,
{
    fn new(capacity: u64) -> Self {
        let evictions = Arc::new(AtomicU64::new(0));
        let counter = Arc::clone(&evictions);
        let cache = bounded(capacity)
            .eviction_listener(move |_, _, cause| {
                if cause.was_evicted() {
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            })
            .build_with_hasher(foldhash::fast::RandomState::default());
        Self { cache, hits: AtomicU64::new(0), misses: AtomicU64::new(0), evictions }
    }

    fn count<T>(&self, found: Option<T>) -> Option<T> {
        let counter = if found.is_some() { &self.hits } else { &self.misses };
        counter.fetch_add(1, Ordering::Relaxed);
        found
    }

    fn counters(&self) -> CacheCounters {
        CacheCounters {
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
            evictions: self.evictions.load(Ordering::Relaxed),
            entries: self.cache.entry_count(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_new_is_known_though_the_cache_is_full_of_what_was_popular() {
        let counted: Counted<u64, u64> = Counted::new(100);
        let [popular, new] = [0..100_u64, 1_000..1_200];
        for key in popular.clone() {
            counted.cache.insert(key, key);
            (0..20).for_each(|_| assert_eq!(counted.cache.get(&key), Some(key)));
        }
        counted.cache.run_pending_tasks();
        for key in new {
            assert_eq!(counted.cache.get(&0), Some(0), "what is in use stays");
            counted.cache.insert(key, key);
            counted.cache.run_pending_tasks();
            assert_eq!(counted.cache.get(&key), Some(key), "as if verified a moment ago");
        }
        assert_eq!((counted.counters().entries, counted.counters().evictions), (100, 200));
        assert_eq!(popular.filter(|key| counted.cache.contains_key(key)).count(), 1);
    }
}
