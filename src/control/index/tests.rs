//! The index: how far deltas reach back, and whom an object concerns.

use super::*;

fn commit(revision: u64, key: &str, body: &'static [u8]) -> Arc<Commit> {
    let object = (!body.is_empty()).then(|| Object::parse(Kind::Service, body).unwrap());
    let (key, revision) = (Arc::from(key), Revision(revision));
    let stored = Stored::new(Kind::Service, key, revision, Bytes::from_static(body), object);
    Arc::new(Commit {
        revision,
        at: Timestamp::from_secs(1),
        author: Arc::from("test"),
        changes: vec![Arc::new(stored)],
    })
}

#[test]
fn deltas_reach_back_to_the_floor_and_no_further() {
    let epoch = Epoch::starting(Timestamp::from_secs(1));
    let index = Index::new(epoch, Revision(0), [], 2);
    index.apply(commit(1, "a", br#"{"name":"a","routes":[]}"#)).unwrap();
    index.apply(commit(2, "b", br#"{"name":"b","routes":[]}"#)).unwrap();
    index.apply(commit(3, "a", b"")).unwrap();
    assert_eq!(index.apply(commit(5, "a", b"")).unwrap_err().have, Revision(3), "a gap is refused");
    assert!(index.since(Revision(0), 9).is_none(), "below the floor");
    assert_eq!(index.since(Revision(1), 9).unwrap().len(), 2);
    assert!(index.since(Revision(3), 9).unwrap().is_empty());
    assert!(index.since(Revision(4), 9).is_none(), "in the future");
    let live: Vec<_> = index.list(Kind::Service).iter().map(|s| s.key.to_string()).collect();
    assert_eq!(live, ["b"]);
    assert_eq!(index.floor(), Revision(1));
    let log = index.since(Revision(1), 1).unwrap();
    assert_eq!(log.len(), 1, "no more than asked for");
    let ours = [Box::from("a")];
    let last = index.since(Revision(2), 9).unwrap().remove(0);
    assert!(last.changes[0].before.includes(&ours), "a deletion concerns whom the last version concerned");
    assert_eq!(last.changes[0].audience, Audience::Nobody);
}

#[test]
fn what_concerns_a_sidecar_is_what_a_walk_over_everything_finds() {
    let mut estate = crate::testing::Estate::new();
    let (both, kept) = (["catalog", "payments"].map(Box::from), ["payments"].map(Box::from));
    let index = Index::new(Epoch::starting(Timestamp::from_secs(1)), Revision(0), [], 9);
    let commit = |changes: Vec<crate::authz::Change>| {
        let revision = index.position().revision.next();
        let stored = |c: crate::authz::Change| {
            let object = c.body.as_ref().map(|b| Object::parse(c.kind, b).unwrap());
            let (key, body) = (Arc::from(c.key), c.body.unwrap_or_default());
            Arc::new(Stored::new(c.kind, key, revision, body, object))
        };
        let changes = changes.into_iter().map(stored).collect();
        let (at, author) = (Timestamp::from_secs(1), Arc::from("test"));
        index.apply(Arc::new(Commit { revision, at, author, changes })).unwrap();
    };
    let same = |services: &[Box<str>]| {
        let found = index.concerning(services).1;
        let inner = index.read();
        let walked: Vec<_> = inner.live.values().filter(|s| concerns(s, &inner.live, services)).collect();
        assert_eq!(found.len(), walked.len(), "{services:?}");
        let (grants, of_grants) = (inner.grants.count, inner.live.keys().filter(|(k, _)| *k == Kind::Grant).count());
        assert_eq!(grants, of_grants);
        assert!(found.iter().zip(walked).all(|(a, b)| Arc::ptr_eq(a, b)), "{services:?}");
        drop(inner);
        assert!(index.count_concerning(services) >= found.len());
        found.iter().filter(|s| s.kind == Kind::Grant).count()
    };
    commit(estate.changes());
    let (ended, change) = estate.grant("agent", "payments/refunds", &["write"], None, 600);
    commit(vec![change]);
    let (mut moved, change) = estate.grant("agent", "payments/refunds", &["write"], None, 600);
    commit(vec![change, estate.grant("agent", "catalog", &["read"], None, 600).1]);
    assert_eq!((same(&kept), same(&both), same(&[Box::from("other")])), (2, 3, 0));
    commit(vec![estate.delete(Kind::Grant, &ended.id.to_string())]);
    moved.resources = vec!["catalog".parse().unwrap(), "payments".parse().unwrap()];
    moved.digest = moved.request_digest();
    commit(vec![estate.put_object(&Object::Grant(Box::new(moved.clone())))]);
    assert_eq!((same(&kept), same(&both)), (1, 2), "one that two services have comes once");
    moved.resources.pop();
    moved.digest = moved.request_digest();
    commit(vec![estate.put_object(&Object::Grant(Box::new(moved)))]);
    assert_eq!((same(&kept), same(&both)), (0, 2), "what moved away is gone");
}
