//! The verification pool: who is served, in which order, and who is told that it is too late.

use std::sync::mpsc;

use super::*;

const LONG: Duration = Duration::from_secs(3600);
const ANY: Source = Source::Connection(1);

fn pool(queue: usize, max_wait: Duration) -> VerificationPool {
    VerificationPool::start(VerificationLimits { threads: 1, queue, wait: None, max_wait }).unwrap()
}

/// Occupies the only thread until the sender is dropped.
fn occupy(pool: &VerificationPool) -> mpsc::Sender<()> {
    let (entered, is_in) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    pool.submit(Deferred::Token, ANY, move |_| {
        entered.send(()).unwrap();
        let _ = released.recv();
    })
    .unwrap();
    is_in.recv().unwrap();
    release
}

#[test]
fn a_full_queue_turns_away_at_once_and_serves_in_order() {
    let pool = pool(2, LONG);
    let release = occupy(&pool);
    let (told, heard) = mpsc::channel();
    for n in [1, 2] {
        let told = told.clone();
        pool.submit(Deferred::Token, ANY, move |turn| told.send((n, turn)).unwrap()).unwrap();
    }
    assert_eq!(pool.submit(Deferred::Token, ANY, |_| {}), Err(QueueFull));
    drop(release);
    assert_eq!([heard.recv().unwrap(), heard.recv().unwrap()], [(1, Turn::Now), (2, Turn::Now)]);
    assert_eq!(pool.submit(Deferred::Token, ANY, |_| {}), Ok(2), "there is room again");
}

#[cfg(target_os = "linux")]
#[test]
fn it_gives_way_to_those_who_answer() {
    let nice = || rustix::process::getpriority_process(None).unwrap();
    let (told, heard) = mpsc::channel();
    let pool = pool(2, LONG);
    pool.submit(Deferred::Token, ANY, move |_| told.send(nice()).unwrap()).unwrap();
    assert_eq!(heard.recv().unwrap(), (nice() + GIVE_WAY).min(19));
}

/// Who is served, in order, of a token and proofs that wait for the only thread.
fn served(tokens: usize, proofs: usize, queue: usize) -> Vec<Deferred> {
    let pool = pool(queue, LONG);
    let release = occupy(&pool);
    let (told, heard) = mpsc::channel();
    for (what, count) in [(Deferred::Token, tokens), (Deferred::Proof, proofs)] {
        for _ in 0..count {
            let told = told.clone();
            pool.submit(what, ANY, move |_| told.send(what).unwrap()).unwrap();
        }
    }
    drop((release, told));
    heard.iter().collect()
}

#[test]
fn proofs_have_room_of_their_own_and_go_before_tokens() {
    let pool = pool(2, LONG);
    let release = occupy(&pool);
    for what in [Deferred::Token, Deferred::Proof] {
        assert_eq!([0; 3].map(|_| pool.submit(what, ANY, |_| {})), [Ok(2), Ok(2), Err(QueueFull)], "{what:?}");
    }
    drop(release);
    use Deferred::{Proof, Token};
    assert_eq!(served(2, 2, 2), [Proof, Proof, Token, Token]);
}

#[test]
fn a_token_gets_its_turn_under_a_flood_of_proofs() {
    use Deferred::{Proof, Token};
    let four_then_one = [Proof, Proof, Proof, Proof, Token];
    assert_eq!(served(3, 20, 100)[..15], four_then_one.repeat(3));
    // Proofs with no token behind them keep none waiting.
    assert_eq!(served(0, 20, 100), [Proof; 20]);
}

#[test]
fn a_token_that_is_too_late_uses_up_no_turn() {
    let since = Instant::now();
    let job = || Job { since, run: Box::new(|_| {}) };
    let mut queue = Queue { proofs_in_a_row: PROOFS_IN_A_ROW, ..Queue::default() };
    assert!([job(), job()].into_iter().all(|job| queue.tokens.push(ANY, job, 2).is_ok()));
    assert!(queue.proofs.push(ANY, job(), 2).is_ok());
    let mut pop = |max_wait| queue.pop(max_wait).map(|(_, turn)| (turn, queue.tokens.len(), queue.proofs.len()));
    assert_eq!(pop(Duration::ZERO), Some((Turn::TooLate, 1, 1)));
    assert_eq!(pop(LONG), Some((Turn::Now, 0, 1)), "the next token, before any proof");
    assert_eq!(pop(LONG), Some((Turn::Now, 0, 0)));
    assert_eq!(pop(LONG), None);
}

#[test]
fn of_a_queue_that_stands_none_waits_longer_than_it_should_be() {
    let (start, wait) = (Instant::now(), Duration::from_millis(20));
    let limits = VerificationLimits { threads: 1, queue: 256, wait: Some(wait), max_wait: LONG };
    let queue = Queue { standing: Some(start), ..Queue::default() };
    assert_eq!(queue.patience(&limits, start + STANDING / 2), LONG, "a burst may take its time");
    assert_eq!(queue.patience(&limits, start + STANDING), wait);
    assert_eq!(Queue::default().patience(&limits, start + STANDING), LONG, "nothing waits");
    let fixed = VerificationLimits { wait: None, ..limits };
    assert_eq!(queue.patience(&fixed, start + STANDING), LONG);
    let hasty = VerificationLimits { max_wait: wait, ..limits };
    assert_eq!(queue.patience(&hasty, start + STANDING), wait, "the bound is the bound");
}

#[test]
fn a_queue_that_was_empty_once_does_not_stand() {
    let pool = pool(2, LONG);
    let standing = || pool.0.lock().standing.is_some();
    let release = occupy(&pool);
    assert!(!standing(), "its only job has its turn");
    let (told, heard) = mpsc::channel();
    pool.submit(Deferred::Token, ANY, move |_| told.send(()).unwrap()).unwrap();
    assert!(standing());
    drop(release);
    heard.recv().unwrap();
    assert!(!standing());
}

#[test]
fn what_waits_too_long_is_told_so() {
    let pool = pool(1, Duration::ZERO);
    let (told, heard) = mpsc::channel();
    pool.submit(Deferred::Token, ANY, move |turn| told.send(turn).unwrap()).unwrap();
    assert_eq!(heard.recv().unwrap(), Turn::TooLate);
}

#[test]
fn a_job_that_panics_ends_alone() {
    let pool = pool(2, LONG);
    let (told, heard) = mpsc::channel();
    let lost = told.clone();
    pool.submit(Deferred::Token, ANY, move |_| {
        let _lost = lost;
        panic!("as a bug would");
    })
    .unwrap();
    pool.submit(Deferred::Token, ANY, move |turn| told.send(turn).unwrap()).unwrap();
    assert_eq!(heard.iter().collect::<Vec<_>>(), [Turn::Now]);
}

#[test]
fn what_still_waits_at_the_end_is_dropped() {
    let pool = pool(1, LONG);
    let release = occupy(&pool);
    let (told, heard) = mpsc::channel();
    pool.submit(Deferred::Token, ANY, move |turn| told.send(turn).unwrap()).unwrap();
    drop(pool);
    assert_eq!(heard.recv().ok(), None, "dropped, not run");
    drop(release);
}

#[test]
fn a_source_that_sends_much_keeps_no_other_waiting() {
    let pool = pool(4, LONG);
    let release = occupy(&pool);
    let (told, heard) = mpsc::channel();
    let submit = |from, name| {
        let told = told.clone();
        pool.submit(Deferred::Token, Source::Connection(from), move |turn| told.send((name, turn)).unwrap()).is_ok()
    };
    assert!(["a1", "a2", "a3", "a4"].map(|name| submit(1, name)).iter().all(|&taken| taken));
    assert!(!submit(1, "a5"), "its own room is full");
    assert!(submit(2, "b1"), "another source is heard");
    assert_eq!(heard.try_recv().unwrap(), ("a4", Turn::MadeRoom), "at the cost of the one that has most");
    drop(release);
    let order: Vec<_> = (0..4).map(|_| heard.recv().unwrap()).collect();
    assert_eq!(order, [("a1", Turn::Now), ("b1", Turn::Now), ("a2", Turn::Now), ("a3", Turn::Now)]);
}

#[test]
fn as_many_wait_as_can_be_verified_in_time() {
    let wait = Some(Duration::from_millis(20));
    let limits = VerificationLimits { threads: 2, queue: 256, wait, max_wait: LONG };
    let mut usual = UsualTime::default();
    let mut after = |times: u32, took| {
        (0..times).for_each(|_| usual.learn(took));
        usual.room(&limits)
    };
    let (fast, slow) = (Duration::from_micros(70), Duration::from_millis(2));
    assert_eq!(after(0, fast), 256, "nothing is known yet: the bound");
    assert_eq!(after(100, fast), 256);
    assert!(after(1, Duration::from_secs(2)) > 200, "the machine stood still once");
    assert_eq!(after(100, fast), 256);
    assert!((18..=24).contains(&after(100, slow)), "20 ms of two threads");
    assert_eq!(after(100, Duration::from_secs(1)), 8, "never none");
    assert_eq!(after(200, fast), 256, "and back");
    assert_eq!(usual.room(&VerificationLimits { wait: None, ..limits }), 256);
    assert_eq!(usual.room(&VerificationLimits { queue: 3, ..limits }), 3, "the bound is the bound");
}
