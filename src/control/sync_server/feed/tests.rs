//! Feeds: who shares what, who joins where, and what is kept.

use super::log::{KEPT, KEPT_BY_ALL, KEPT_FOR};
use super::*;
use crate::clock::{Clock, ManualClock, Timestamp};
use crate::control::fleet::{Fleet, FleetConfig, PointConfig};
use crate::control::index::{Commit, Stored};
use crate::object::{Kind, Object};
use crate::testing::Estate;
use crate::wire::proto::{Payload, ServerFrame};
use crate::wire::{Epoch, SigningKey};
use prost::Message;

struct Setup {
    estate: Estate,
    clock: Arc<ManualClock>,
    index: Arc<Index>,
    key: Arc<SigningKey>,
    kept: Arc<AtomicUsize>,
}

struct AtOnce;

impl Pace for AtOnce {
    fn linger(&self) -> Duration {
        Duration::from_millis(100)
    }

    fn gather(&self) -> Duration {
        Duration::ZERO
    }
}

const TERMS: Terms = Terms {
    lease: Duration::from_secs(10),
    max_staleness: Duration::from_secs(300),
    shared_for: Duration::from_millis(500),
};

impl Setup {
    fn new(ring: usize) -> Self {
        let estate = Estate::new();
        let clock = Arc::clone(&estate.clock);
        let index = Arc::new(Index::new(Epoch::starting(Timestamp::from_secs(1)), Revision(0), [], ring));
        Self { estate, clock, index, key: Arc::new(SigningKey::generate().unwrap().0), kept: Arc::default() }
    }

    /// The feed of an enforcement point, as the server makes it.
    fn feed(&self, name: &str, service: &str) -> Arc<Feed> {
        let identity = crate::credential::SpiffeId::parse(&Estate::id(name)).unwrap();
        let points = vec![PointConfig { identity: identity.clone(), services: vec![service.to_owned()] }];
        let config = FleetConfig { points, max_staleness: TERMS.max_staleness, registry_file: None, max_instances: 9 };
        let point = Fleet::open(self.clock.clone(), config).unwrap().point(&identity).unwrap();
        let sealer = Sealer::new(Arc::clone(&self.key), self.index.position().epoch, &point.scope);
        Feed::start(Arc::clone(&self.index), sealer, &point, Arc::new(AtOnce), &self.kept)
    }

    fn commit(&self, change: crate::authz::Change) -> Revision {
        let revision = self.index.position().revision.next();
        let object = change.body.as_ref().map(|b| Object::parse(change.kind, b).unwrap());
        let (key, body) = (Arc::from(change.key), change.body.unwrap_or_default());
        let stored = Arc::new(Stored::new(change.kind, key, revision, body, object));
        let (at, author) = (self.clock.now().wall, Arc::from("test"));
        self.index.apply(Arc::new(Commit { revision, at, author, changes: vec![stored] })).unwrap();
        revision
    }

    fn grant(&mut self, service: &str) -> (String, Revision) {
        let (grant, change) = self.estate.grant("agent", service, &["write"], None, 600);
        (grant.id.to_string(), self.commit(change))
    }

    fn revoke(&mut self, jti: usize) -> Revision {
        let target = serde_json::json!({"kind": "token", "issuer": "test", "jti": jti.to_string()});
        let change = self.estate.revoke(&target);
        self.commit(change)
    }
}

/// Whether a message has the id of a grant in it, as text or as bytes.
fn holds(message: &[u8], id: &str) -> bool {
    let bytes = uuid::Uuid::try_parse(id).unwrap();
    message.windows(id.len()).any(|w| w == id.as_bytes()) || message.windows(16).any(|w| w == bytes.as_bytes())
}

/// What is inside a message, after its signature was checked.
fn opened(setup: &Setup, message: &Bytes) -> Payload {
    let frame = ServerFrame::decode(&message[super::super::frames::PREFIX..]).unwrap();
    assert_eq!(message[0], 0, "not compressed");
    assert_eq!(u32::from_be_bytes(message[1..5].try_into().unwrap()) as usize, message.len() - 5);
    setup.key.verify_key().verify(&frame.payload, &frame.signature).unwrap();
    Payload::decode(frame.payload).unwrap()
}

fn delta(next: Next) -> Made {
    match next {
        Next::Delta(made) => made,
        other => panic!("a delta was due: {other:?}"),
    }
}

/// Lets the feeds' own tasks run.
async fn settle() {
    for _ in 0..8 {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn streams_of_one_scope_share_the_bytes_and_those_of_two_never_do() {
    let mut setup = Setup::new(100);
    let (ours, theirs) = (setup.feed("one", "payments"), setup.feed("two", "payments"));
    let other = setup.feed("one", "catalog");
    let (id, to) = setup.grant("payments/refunds");
    settle().await;
    let (first, second) = (delta(ours.next(Revision(0))), delta(ours.next(Revision(0))));
    assert_eq!(first.message.as_ptr(), second.message.as_ptr(), "encoded and signed once");
    assert_eq!((first.from, first.to), (Revision(0), to));
    let of_theirs = delta(theirs.next(Revision(0)));
    let (a, b) = (opened(&setup, &first.message), opened(&setup, &of_theirs.message));
    assert_ne!(a.scope, b.scope, "the same services, another identity: another scope");
    assert!(matches!(other.next(Revision(0)), Next::Nothing), "nothing of its own");
    let marked = other.bookmark(Revision(0), setup.clock.now(), TERMS).unwrap();
    let all = marked.before.iter().map(|m| &m.message).chain([&marked.message]);
    for message in all {
        assert!(!holds(message, &id), "no byte of it, its id included");
    }
}

#[tokio::test]
async fn a_bookmark_is_shared_while_it_is_fresh_and_says_nothing_that_is_not_so() {
    let mut setup = Setup::new(100);
    let feed = setup.feed("one", "payments");
    let say = |setup: &Setup, at| feed.bookmark(Revision(at), setup.clock.now(), TERMS).unwrap();
    let first = say(&setup, 0);
    setup.clock.advance(Duration::from_millis(400));
    assert_eq!(say(&setup, 0).message.as_ptr(), first.message.as_ptr(), "fresh enough");
    setup.clock.advance(Duration::from_millis(200));
    let second = say(&setup, 0);
    assert_ne!(second.message.as_ptr(), first.message.as_ptr());
    // A commit: the bookmark of before is given to nobody any more, and whoever is behind gets the delta first.
    let (_, to) = setup.grant("payments/refunds");
    settle().await;
    let third = say(&setup, 0);
    assert_eq!(third.before.iter().map(|m| m.to).collect::<Vec<_>>(), [to]);
    match opened(&setup, &third.message).body.unwrap() {
        Body::Bookmark(b) => {
            assert_eq!(b.revision, to.0);
            assert_eq!(b.server_time_ms, setup.clock.now().wall.as_millis());
        }
        other => panic!("{other:?}"),
    }
    // One that the feed's task has not seen yet: a new bookmark looks at the index itself, after its time was read.
    setup.clock.advance(Duration::from_secs(1));
    let (_, to) = setup.grant("payments/refunds");
    assert_eq!(say(&setup, 1).before.last().unwrap().to, to, "it cannot hide behind the bookmark");
}

#[tokio::test]
async fn one_that_joins_between_two_deltas_is_given_exactly_what_it_lacks() {
    let mut setup = Setup::new(1000);
    setup.grant("payments/refunds");
    let feed = setup.feed("one", "payments");
    // Of no concern: gathered, so the feed has no delta that begins or ends here.
    let (_, elsewhere) = setup.grant("catalog");
    settle().await;
    assert!(matches!(feed.next(Revision(1)), Next::Nothing), "not told of yet");
    let (id, tip) = setup.grant("payments/refunds");
    settle().await;
    assert_eq!((delta(feed.next(Revision(1))).from, delta(feed.next(Revision(1))).to), (Revision(1), tip));
    // From in between, from before the feed, and from where it stands.
    let between = delta(feed.next(elsewhere));
    assert_eq!((between.from, between.to), (elsewhere, tip));
    match opened(&setup, &between.message).body.unwrap() {
        Body::Delta(d) => assert_eq!(d.objects.iter().map(|o| &o.key).collect::<Vec<_>>(), [&id]),
        other => panic!("{other:?}"),
    }
    let again = delta(feed.next(elsewhere));
    assert_eq!(between.message.as_ptr(), again.message.as_ptr(), "others in the same place share it");
    assert_eq!(delta(feed.next(Revision(0))).to, tip);
    assert!(matches!(feed.next(tip), Next::Nothing));
    // One that joined where the index stands, ahead of what the feed has told of.
    let (_, ahead) = setup.grant("catalog");
    assert!(matches!(feed.next(ahead), Next::Nothing));
    let after = setup.revoke(1);
    settle().await;
    assert_eq!((delta(feed.next(ahead)).from, delta(feed.next(ahead)).to), (ahead, after));
}

#[tokio::test(start_paused = true)]
async fn what_is_kept_has_one_bound_for_all_and_ends_with_time() {
    let mut setup = Setup::new(100);
    let feed = setup.feed("one", "payments");
    setup.kept.store(KEPT_BY_ALL, Ordering::Relaxed);
    let (_, first) = setup.grant("payments");
    settle().await;
    assert!(feed.lock().deltas.is_empty(), "no room");
    assert_eq!(delta(feed.next(Revision(0))).to, first, "made again from the log");

    setup.kept.store(0, Ordering::Relaxed);
    let (_, second) = setup.grant("payments");
    settle().await;
    assert_eq!(feed.lock().deltas.len(), 1);
    assert!(setup.kept.load(Ordering::Relaxed) > 0);
    tokio::time::advance(KEPT_FOR + Duration::from_secs(1)).await;
    feed.bookmark(second, setup.clock.now(), TERMS).unwrap();
    assert_eq!((feed.lock().deltas.len(), setup.kept.load(Ordering::Relaxed)), (0, 0));
    assert_eq!(delta(feed.next(first)).to, second);
}

#[tokio::test]
async fn a_slow_stream_pins_no_memory_and_catches_up_merged() {
    let mut setup = Setup::new(10_000);
    let feed = setup.feed("one", "payments");
    let mut tip = Revision(0);
    for n in 0..1_000 {
        tip = setup.revoke(n);
        settle().await;
    }
    {
        let log = feed.lock();
        assert!(log.deltas.len() <= KEPT && log.bytes <= KEPT_BYTES, "{} deltas", log.deltas.len());
        assert_eq!(log.bytes, log.deltas.iter().map(|kept| kept.made.message.len()).sum::<usize>());
        assert!(log.merged.len() <= MERGED_KEPT);
        let merged: usize = log.merged.iter().map(|kept| kept.made.message.len()).sum();
        assert_eq!(setup.kept.load(Ordering::Relaxed), log.bytes + merged);
    }
    let merged = delta(feed.next(Revision(0)));
    assert_eq!((merged.from, merged.to), (Revision(0), tip), "one delta for a thousand");
    // Below the log's floor only a snapshot is left.
    let mut small = Setup::new(10);
    let feed = small.feed("one", "payments");
    for n in 0..50 {
        small.revoke(n);
    }
    settle().await;
    assert!(matches!(feed.next(Revision(0)), Next::Snapshot));
    assert!(feed.bookmark(Revision(0), small.clock.now(), TERMS).is_none());
}

#[tokio::test]
async fn a_snapshot_is_shared_while_it_is_being_sent_and_nothing_has_changed() {
    let mut setup = Setup::new(1000);
    for change in setup.estate.changes() {
        setup.commit(change);
    }
    let (id, _) = setup.grant("payments/refunds");
    let feed = setup.feed("one", "payments");
    let (first, at) = feed.snapshot().await.unwrap();
    assert_eq!(at, setup.index.position().revision);
    let (elsewhere, moved_on) = setup.grant("catalog");
    let (second, at) = feed.snapshot().await.unwrap();
    assert!(Arc::ptr_eq(&first, &second), "a change elsewhere does not matter");
    assert_eq!(at, moved_on, "and it is as good as a new one: nobody is offered an older revision than it has");
    match opened(&setup, &second.begin(feed.sealer(), at)).body.unwrap() {
        Body::Begin(begin) => assert_eq!(begin.revision, moved_on.0),
        other => panic!("{other:?}"),
    }
    let chunks = [&first, &second].map(|s| s.chunk(feed.sealer(), 0).unwrap());
    assert_eq!(chunks[0].as_ptr(), chunks[1].as_ptr(), "each chunk is encoded once");
    assert!(holds(&chunks[0], &id) && !holds(&chunks[0], &elsewhere));
    assert!(first.chunk(feed.sealer(), 1).is_none());
    setup.revoke(1);
    let (third, _) = feed.snapshot().await.unwrap();
    assert!(!Arc::ptr_eq(&first, &third), "a newcomer is not sent what has ended");
    let weak = Arc::downgrade(&third);
    drop((first, second, third));
    assert!(weak.upgrade().is_none(), "when the last has sent it, it is gone");
}

#[tokio::test]
async fn a_feed_ends_with_its_last_stream() {
    let setup = Setup::new(10);
    let feed = setup.feed("one", "payments");
    let before = Arc::strong_count(&setup.index);
    drop(feed);
    settle().await;
    assert!(Arc::strong_count(&setup.index) < before);
    assert!(setup.index.list(Kind::Issuer).is_empty());
}
