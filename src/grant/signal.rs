//! Tells tasks that something has changed, on whatever runtime, or on none.
//!
//! Pure: the standard library's wakers and nothing else. A signal that rings before anybody waits is not lost, because who
//! waits says which one they have seen. Who stops waiting leaves a waker behind; so many are kept, and a waker too many
//! only makes somebody look again.

use std::future::{Future, poll_fn};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::task::{Poll, Waker};

/// How many wakers are kept.
const MAX_WAKERS: usize = 65_536;

/// The signal.
#[derive(Debug, Default)]
pub struct Signal {
    rung: AtomicU64,
    wakers: Mutex<Vec<Waker>>,
}

// === impl Signal ===

impl Signal {
    /// What is seen by whoever looks now.
    pub fn seen(&self) -> u64 {
        self.rung.load(Ordering::SeqCst)
    }

    /// Wakes whoever waits.
    pub fn ring(&self) {
        self.rung.fetch_add(1, Ordering::SeqCst);
        self.wake();
    }

    /// Waits until it rings, or has since `seen`.
    pub fn after(&self, seen: u64) -> impl Future<Output = ()> + Send + '_ {
        poll_fn(move |cx| {
            if self.seen() != seen {
                return Poll::Ready(());
            }
            let mut wakers = self.wakers.lock().unwrap_or_else(PoisonError::into_inner);
            let is_full = wakers.len() >= MAX_WAKERS;
            let gone = if is_full { std::mem::take(&mut *wakers) } else { Vec::new() };
            if !wakers.iter().rev().take(8).any(|waker| waker.will_wake(cx.waker())) {
                wakers.push(cx.waker().clone());
            }
            drop(wakers);
            gone.into_iter().for_each(Waker::wake);
            // It may have rung between the look and the entry.
            if self.seen() == seen { Poll::Pending } else { Poll::Ready(()) }
        })
    }

    fn wake(&self) {
        let wakers = std::mem::take(&mut *self.wakers.lock().unwrap_or_else(PoisonError::into_inner));
        wakers.into_iter().for_each(Waker::wake);
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::sync::Arc;
    use std::sync::atomic::AtomicUsize;
    use std::task::{Context, Wake};

    use super::*;

    #[derive(Default)]
    struct Count(AtomicUsize);

    impl Wake for Count {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn a_ring_wakes_once_and_is_not_missed_by_who_comes_late() {
        let signal = Signal::default();
        let count = Arc::new(Count::default());
        let waker = Waker::from(Arc::clone(&count));
        let mut cx = Context::from_waker(&waker);
        let seen = signal.seen();
        let mut waits = pin!(signal.after(seen));
        assert!(waits.as_mut().poll(&mut cx).is_pending() && waits.as_mut().poll(&mut cx).is_pending());
        signal.ring();
        assert_eq!(count.0.load(Ordering::SeqCst), 1);
        assert!(waits.as_mut().poll(&mut cx).is_ready());
        assert!(pin!(signal.after(seen)).poll(&mut cx).is_ready(), "it has rung since");
        assert!(pin!(signal.after(signal.seen())).poll(&mut cx).is_pending());
    }
}
