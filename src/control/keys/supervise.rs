//! Has a task that panics start over.
//!
//! Plane: control. A keeper that is gone without a word would leave revoked keys in force, so a panic is an error in the
//! log, is told to whoever shows how the keys stand, and is followed by a new start, no more than one a second. It ends
//! when the task ends by itself, and is stopped by being dropped.

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;

/// The wait before a new start.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs what `start` makes until it ends. `failed` is called after each panic.
pub(super) async fn run<F: Future<Output = ()>>(what: &'static str, start: impl Fn() -> F, failed: impl Fn()) {
    // Nothing of a task that has panicked is used again but its status, which is written in whole.
    while let Err(panic) = AssertUnwindSafe(start()).catch_unwind().await {
        let said = panic.downcast_ref::<&str>().copied().or_else(|| panic.downcast_ref::<String>().map(String::as_str));
        tracing::error!(task = what, panic = said.unwrap_or_default(), "a task has failed, and starts over");
        failed();
        tokio::time::sleep(PAUSE).await;
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_panic_is_told_and_followed_by_a_new_start() {
        let (starts, told) = (Cell::new(0), Cell::new(0));
        let start = || {
            starts.set(starts.get() + 1);
            let nth = starts.get();
            async move {
                tokio::task::yield_now().await;
                assert!(nth > 2, "the {nth}th time");
            }
        };
        let began = tokio::time::Instant::now();
        run("a test", start, || told.set(told.get() + 1)).await;
        assert_eq!((starts.get(), told.get()), (3, 2), "ended by itself the third time");
        assert_eq!(began.elapsed(), 2 * PAUSE, "no more than one start a second");
    }
}
