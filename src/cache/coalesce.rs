//! Coalescing of wake-ups under overload, as network cards do it with interrupts: a thread that has just refused a check takes
//! a short rest before it waits for the next, so that what arrives meanwhile is read and answered together.
//!
//! Plane: shared; called by the threads of a runtime when they have nothing left to do. A refusal costs a message each way, and
//! where every message wakes a thread, most of that goes to the kernel and to interrupting those that verify; what they save is
//! goodput. INVARIANT: nothing rests that has not refused since its last rest, so that a machine with time for all answers
//! nothing later; and no rest is longer than [`REST`].

use std::cell::Cell;
use std::time::Duration;

/// Little beside what is admitted under overload waits for, and a few checks at the rates at which it comes to that.
const REST: Duration = Duration::from_micros(200);

thread_local! {
    static HAS_REFUSED: Cell<bool> = const { Cell::new(false) };
}

/// This thread has refused a check because too much is asked.
pub fn has_refused() {
    HAS_REFUSED.set(true);
}

/// For [`on_thread_park`](tokio::runtime::Builder::on_thread_park) of a runtime whose tasks answer checks.
pub fn before_park() {
    if HAS_REFUSED.take() {
        std::thread::sleep(REST);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn only_a_thread_that_has_refused_rests_and_only_once() {
        has_refused();
        std::thread::scope(|scope| {
            scope.spawn(|| assert!(!HAS_REFUSED.get(), "others do not"));
        });
        let begun = Instant::now();
        before_park();
        assert!(begun.elapsed() >= REST);
        assert!(!HAS_REFUSED.get(), "the next time it has not");
    }

    #[test]
    fn a_thread_of_a_runtime_rests_when_it_has_nothing_to_do() {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).on_thread_park(before_park).build().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        runtime.spawn(async { has_refused() });
        // Each is a task of its own on the one thread, which is free in between.
        for _ in 0..1_000 {
            let tell = tell.clone();
            runtime.spawn(async move { tell.send(HAS_REFUSED.get()).unwrap() });
            if !told.recv().unwrap() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("it never rested");
    }
}
