//! How often one caller may call: a token bucket for each, in bounded memory.
//!
//! Plane: control. A bucket is one number, the time at which it will be full again, so one that is full need not be
//! kept. When there are more callers with buckets that are not full than are kept, the others share one bucket.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// How many buckets are kept.
const MAX_BUCKETS: usize = 10_000;

/// How often.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many in this time, on average.
    pub calls: u32,
    /// In this time.
    pub per: Duration,
    /// How many at once after a rest.
    pub burst: u32,
}

/// The buckets of all callers.
#[derive(Debug)]
pub(super) struct Buckets<K> {
    rate: Rate,
    inner: Mutex<Inner<K>>,
}

#[derive(Debug)]
struct Inner<K> {
    full_at: HashMap<K, Instant>,
    others: Option<Instant>,
}

// === impl Buckets ===

impl<K: Hash + Eq> Buckets<K> {
    pub(super) fn new(rate: Rate) -> Self {
        Self { rate, inner: Mutex::new(Inner { full_at: HashMap::new(), others: None }) }
    }

    /// Takes one call out of a caller's bucket; when it is empty, says after which time it is worth trying again.
    pub(super) fn take(&self, key: K) -> Result<(), Duration> {
        let now = Instant::now();
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.full_at.len() >= MAX_BUCKETS && !inner.full_at.contains_key(&key) {
            inner.full_at.retain(|_, full_at| *full_at > now);
        }
        let crowded = inner.full_at.len() >= MAX_BUCKETS && !inner.full_at.contains_key(&key);
        let full_at = if crowded { inner.others } else { inner.full_at.get(&key).copied() };
        let full_at = full_at.unwrap_or(now).max(now);
        let step = self.rate.per / self.rate.calls.max(1);
        let next = full_at + step;
        if let Some(wait) = next.duration_since(now).checked_sub(step * self.rate.burst.max(1))
            && !wait.is_zero()
        {
            return Err(wait);
        }
        if crowded {
            inner.others = Some(next);
        } else {
            inner.full_at.insert(key, next);
        }
        Ok(())
    }
}

/// What addresses have a bucket together: who has one IPv6 address usually has all of a /64.
pub(super) fn neighbourhood(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => IpAddr::V4(v4),
            None => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() >> 64 << 64)),
        },
        v4 @ IpAddr::V4(_) => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATE: Rate = Rate { calls: 10, per: Duration::from_secs(1), burst: 3 };

    #[tokio::test(start_paused = true)]
    async fn a_bucket_gives_a_burst_and_then_its_rate_to_each_caller() {
        let buckets = Buckets::new(RATE);
        for _ in 0..3 {
            buckets.take("a").unwrap();
        }
        assert_eq!(buckets.take("a"), Err(Duration::from_millis(100)));
        assert_eq!(buckets.take("a"), Err(Duration::from_millis(100)), "asking costs nothing");
        buckets.take("b").unwrap();
        tokio::time::advance(Duration::from_millis(100)).await;
        buckets.take("a").unwrap();
        assert!(buckets.take("a").is_err());
        tokio::time::advance(Duration::from_secs(3600)).await;
        assert_eq!((0..10).filter(|_| buckets.take("a").is_ok()).count(), 3, "a rest gives no more than the burst");
    }

    #[tokio::test(start_paused = true)]
    async fn memory_is_bounded_and_those_beyond_share_one_bucket() {
        let buckets = Buckets::new(RATE);
        for n in 0..MAX_BUCKETS {
            buckets.take(n).unwrap();
        }
        let beyond = (MAX_BUCKETS..MAX_BUCKETS + 100).filter(|n| buckets.take(*n).is_ok()).count();
        assert_eq!(beyond, 3);
        assert!(buckets.take(0).is_ok(), "who has a bucket keeps it");
        assert_eq!(buckets.inner.lock().unwrap().full_at.len(), MAX_BUCKETS);
        tokio::time::advance(Duration::from_secs(1)).await;
        buckets.take(MAX_BUCKETS).unwrap();
        assert_eq!(buckets.inner.lock().unwrap().full_at.len(), 1, "full ones are forgotten");
    }

    #[test]
    fn neighbours_share_a_bucket() {
        let of = |text: &str| neighbourhood(text.parse().unwrap());
        assert_eq!(of("2001:db8::1"), of("2001:db8::ffff:1"));
        assert_ne!(of("2001:db8::1"), of("2001:db8:0:1::1"));
        assert_eq!(of("::ffff:192.0.2.1"), of("192.0.2.1"));
        assert_ne!(of("192.0.2.1"), of("192.0.2.2"));
    }
}
