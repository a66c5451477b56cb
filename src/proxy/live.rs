//! Every request that was let through and whose answer has not ended, to be decided on again when the state changes.
//!
//! Plane: hot path. INVARIANT: from the moment before a request is sent until its body and its answer have both ended it is
//! among these, and a change of the state that came after its decision is never missed: who enters says which change was the
//! last that the decision may have seen. Nothing is spent and no proof is used up by deciding again. An error there is a cut.

use std::fmt;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::task::AtomicWaker;
use tokio::sync::Notify;

use crate::authz::Decision;
use crate::door::{Checked, Checks};

/// Locks are shared by so few that nobody waits.
const SHARDS: usize = 16;
/// So many are decided on before others have their turn.
const BATCH: usize = 64;
/// A body of so many bytes is long.
const LONG: usize = 16 << 10;
/// At most once in this time, however fast changes come.
const PAUSE: Duration = Duration::from_millis(20);

/// All of them.
#[derive(Debug)]
pub(super) struct Live {
    checks: Checks,
    shards: [Shard; SHARDS],
    next: AtomicUsize,
    poke: Notify,
    interval: Duration,
}

type Shard = Mutex<Slots>;

#[derive(Debug, Default)]
struct Slots {
    entries: Vec<Option<Arc<Entry>>>,
    free: Vec<usize>,
}

/// A request that was let through.
pub(super) struct Entry {
    pub(super) checked: Checked,
    cut: OnceLock<Decision>,
    /// Of the answer, or of the tunnel.
    waker: AtomicWaker,
    /// Of the request's body.
    sending: AtomicWaker,
}

/// An entry, until it is dropped.
#[derive(Debug)]
pub(super) struct Stream {
    live: Arc<Live>,
    entry: Arc<Entry>,
    shard: usize,
    slot: usize,
}

// === impl Live ===

impl Live {
    pub(super) fn new(checks: Checks, interval: Duration) -> Arc<Self> {
        let (shards, next, poke) = (Default::default(), AtomicUsize::new(0), Notify::new());
        Arc::new(Self { checks, shards, next, poke, interval })
    }

    /// The last change of the state, for [`Self::enter`]. Before the decision.
    pub(super) fn seen(&self) -> u64 {
        self.checks.gate().map_or(0, |gate| gate.state().changes().seen())
    }

    /// Enters what was let through by a decision that may have seen no later change than that.
    pub(super) fn enter(self: &Arc<Self>, checked: Checked, seen: u64) -> Stream {
        let entry =
            Arc::new(Entry { checked, cut: OnceLock::new(), waker: AtomicWaker::new(), sending: AtomicWaker::new() });
        let shard = self.next.fetch_add(1, Ordering::Relaxed) % SHARDS;
        let slot = self.lock(shard).map_or(0, |mut slots| slots.put(Arc::clone(&entry)));
        if self.seen() != seen {
            self.poke.notify_one();
        }
        Stream { live: Arc::clone(self), entry, shard, slot }
    }

    /// Decides again whenever that may come out differently, until it is dropped.
    pub(super) async fn watch(self: Arc<Self>) {
        let Some(gate) = self.checks.gate().cloned() else { return };
        let mut seen = self.seen();
        loop {
            tokio::select! {
                () = gate.state().changes().after(seen) => {}
                () = self.poke.notified() => {}
                // A token or a grant ends, and the state grows stale, without a change.
                () = tokio::time::sleep(self.interval) => {}
            }
            seen = self.seen();
            self.decide_again().await;
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn decide_again(&self) {
        for shard in 0..SHARDS {
            let entries: Vec<Arc<Entry>> = match self.lock(shard) {
                Some(slots) => slots.entries.iter().flatten().cloned().collect(),
                None => continue,
            };
            for batch in entries.chunks(BATCH) {
                for entry in batch.iter().filter(|entry| !entry.is_cut()) {
                    if let Some(denial) = self.checks.recheck(&entry.checked) {
                        self.checks.tell(&entry.checked.request, &denial);
                        let _first = entry.cut.set(denial);
                        entry.waker.wake();
                        entry.sending.wake();
                    }
                    // A long message takes as long to read as many others together.
                    if entry.checked.request.body.as_ref().is_some_and(|body| body.len() > LONG) {
                        tokio::task::yield_now().await;
                    }
                }
                tokio::task::yield_now().await;
            }
        }
    }

    fn lock(&self, shard: usize) -> Option<MutexGuard<'_, Slots>> {
        self.shards.get(shard).map(|slots| slots.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

// === impl Slots ===

impl Slots {
    fn put(&mut self, entry: Arc<Entry>) -> usize {
        if let Some(slot) = self.free.pop()
            && let Some(place) = self.entries.get_mut(slot)
        {
            *place = Some(entry);
            return slot;
        }
        self.entries.push(Some(entry));
        self.entries.len() - 1
    }

    fn remove(&mut self, slot: usize) {
        if let Some(place) = self.entries.get_mut(slot)
            && place.take().is_some()
        {
            self.free.push(slot);
        }
    }
}

// === impl Entry ===

impl Entry {
    pub(super) fn is_cut(&self) -> bool {
        self.cut.get().is_some()
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry").field("id", &self.checked.decision.id).finish_non_exhaustive()
    }
}

// === impl Stream ===

impl Stream {
    pub(super) fn entry(&self) -> &Arc<Entry> {
        &self.entry
    }

    /// Ready once it is not allowed any more. One task waits at a time.
    pub(super) fn poll_cut(&self, cx: &mut Context<'_>) -> Poll<&Decision> {
        if self.entry.cut.get().is_none() {
            self.entry.waker.register(cx.waker());
        }
        self.entry.cut.get().map_or(Poll::Pending, Poll::Ready)
    }

    /// The same for the body of the request, which may go on after the answer has ended.
    pub(super) fn poll_sending_cut(&self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.entry.is_cut() {
            self.entry.sending.register(cx.waker());
        }
        if self.entry.is_cut() { Poll::Ready(()) } else { Poll::Pending }
    }

    /// Waits until it is not allowed any more.
    pub(super) async fn cut(&self) -> &Decision {
        std::future::poll_fn(|cx| self.poll_cut(cx)).await
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(mut slots) = self.live.lock(self.shard) {
            slots.remove(self.slot);
        }
    }
}
