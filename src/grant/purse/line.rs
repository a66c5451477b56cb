//! Those who wait for a use of one grant, first come, first called.
//!
//! Pure: the standard library's wakers. As many are called as there are uses, so that a use that arrives does not have
//! everybody decide again for it. INVARIANT: whoever has been called counts as such until they leave; what they did not
//! take is then there for the next.

use std::collections::BTreeMap;
use std::task::{Context, Poll, Waker};

/// The line.
#[derive(Debug, Default)]
pub(super) struct Line {
    /// Those who have not been called, by their numbers.
    waiting: BTreeMap<u64, Option<Waker>>,
    /// How many have been called and have not left.
    called: u32,
}

// === impl Line ===

impl Line {
    pub(super) fn enter(&mut self, number: u64) {
        self.waiting.insert(number, None);
    }

    /// Ready once `number` has been called.
    pub(super) fn poll(&mut self, number: u64, cx: &Context<'_>) -> Poll<()> {
        match self.waiting.get_mut(&number) {
            None => Poll::Ready(()),
            Some(waker) => {
                if !waker.as_ref().is_some_and(|waker| waker.will_wake(cx.waker())) {
                    *waker = Some(cx.waker().clone());
                }
                Poll::Pending
            }
        }
    }

    pub(super) fn leave(&mut self, number: u64) {
        if self.waiting.remove(&number).is_none() {
            self.called = self.called.saturating_sub(1);
        }
    }

    /// Has as many called as there are uses.
    pub(super) fn call(&mut self, uses: u32) {
        while self.called < uses
            && let Some((_, waker)) = self.waiting.pop_first()
        {
            self.called += 1;
            waker.into_iter().for_each(Waker::wake);
        }
    }

    pub(super) fn call_all(&mut self) {
        self.call(u32::MAX);
    }

    /// How many are in it, called ones included.
    pub(super) fn len(&self) -> u32 {
        self.called.saturating_add(u32::try_from(self.waiting.len()).unwrap_or(u32::MAX))
    }
}
