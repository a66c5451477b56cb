//! Simulation: the real sync server and clients over TLS on a network that partitions, holds and heals, on hosts that
//! crash and come back, with clocks that are set, while grants come and go and things are revoked.
//!
//! Everything runs in one thread on simulated time (turmoil), drawn from a seed. A failure names the seed; `SIM_SEEDS`
//! (as in `7` or `100..200`) says which to run instead of the few that are always run. A seed leaves the same trace each
//! time, so a failure can be repeated.
//!
//! What is not simulated: the store (the log is in memory and survives a crash of the control plane, as a database
//! would) and disks that lose writes (see `src/sync/disk/tests.rs`).
#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "helpers of tests fail by panicking, as the tests themselves do"
)]

#[path = "../../src/testing/certificates.rs"]
mod certificates;
mod history;
mod hosts;
mod observe;

#[cfg(test)]
mod tests {
    use super::history::run;

    /// The seeds that are always run.
    const SEEDS: std::ops::Range<u64> = 0..4;

    #[test]
    fn invariant_02_no_allow_after_a_receipt_under_partition_crash_and_clock_step() {
        for seed in seeds() {
            let trace = run(seed);
            let some =
                |what: &str| assert!(trace.iter().any(|line| line.contains(what)), "seed {seed} without `{what}`");
            ["allow.policy", "allow.grant", "receipt of", "Partitioned"].into_iter().for_each(some);
        }
    }

    #[test]
    fn a_seed_leaves_the_same_trace_each_time() {
        for seed in seeds().take(2) {
            let (first, second) = (run(seed), run(seed));
            let differs = first.iter().zip(&second).find(|(one, other)| one != other);
            assert_eq!(differs, None, "seed {seed} cannot be repeated");
            assert_eq!(first.len(), second.len(), "seed {seed} cannot be repeated");
        }
    }

    fn seeds() -> std::ops::Range<u64> {
        let Ok(text) = std::env::var("SIM_SEEDS") else { return SEEDS };
        let number = |text: &str| text.trim().parse().expect("SIM_SEEDS is a number or a range as in 100..200");
        match text.split_once("..") {
            Some((from, to)) => number(from)..number(to),
            None => number(&text)..number(&text) + 1,
        }
    }
}
