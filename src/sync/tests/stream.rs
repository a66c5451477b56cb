//! Following a real control plane: catching up, receipts, partition, restart, scope.
//! Long because each story of a stream is a test of its own, on one set of helpers.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status};

use super::plane::{Plane, eventually};
use crate::authz::{Builder, Change};
use crate::clock::Clock;
use crate::object::{Kind, Object};
use crate::wire::proto::sync_client::SyncClient as RawClient;
use crate::wire::proto::{self, ClientFrame, Cursor, Hello, ServerFrame, client_frame::Frame, payload::Body};
use crate::wire::{RETRY_AFTER, Revision};

/// Reads raw frames until there are enough, or the error that the stream ends with.
pub(super) async fn raw(
    plane: &Plane,
    cursor: Option<Cursor>,
    enough: impl Fn(&[ServerFrame]) -> bool,
) -> Result<Vec<ServerFrame>, Status> {
    let token = std::fs::read_to_string(plane.tokens.path().join("token")).unwrap();
    raw_at(plane.address, token, cursor, enough).await
}

/// [`raw`], without a control plane that is borrowed.
pub(super) async fn raw_at(
    address: SocketAddr,
    token: String,
    cursor: Option<Cursor>,
    enough: impl Fn(&[ServerFrame]) -> bool,
) -> Result<Vec<ServerFrame>, Status> {
    let mut client = RawClient::connect(format!("http://{address}")).await.unwrap();
    let hello = Hello { cursor, instance: uuid::Uuid::new_v4().to_string(), version: "t".into(), want_snapshot: false };
    let (out, frames) = tokio::sync::mpsc::channel(4);
    out.send(ClientFrame { frame: Some(Frame::Hello(hello)) }).await.unwrap();
    let mut request = tonic::Request::new(ReceiverStream::new(frames));
    if !token.is_empty() {
        request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    }
    let mut inbound = client.watch(request).await?.into_inner();
    let mut got = Vec::new();
    while !enough(&got) {
        let next = tokio::time::timeout(Duration::from_secs(10), inbound.next()).await.expect("a frame in time");
        got.push(next.expect("an open stream")?);
    }
    Ok(got)
}

fn body(frame: &ServerFrame) -> Body {
    <proto::Payload as prost::Message>::decode(frame.payload.clone()).unwrap().body.unwrap()
}

pub(super) fn bookmarked(frames: &[ServerFrame]) -> bool {
    frames.last().is_some_and(|f| matches!(body(f), Body::Bookmark(_)))
}

fn contains(haystack: &[u8], needle: impl AsRef<[u8]>) -> bool {
    let needle = needle.as_ref();
    haystack.windows(needle.len()).any(|w| w == needle)
}

/// The id of a grant, as it stands in keys and in the compact form.
fn forms_of(id: crate::object::GrantId) -> [Vec<u8>; 2] {
    [id.to_string().into_bytes(), id.0.as_bytes().to_vec()]
}

#[tokio::test]
async fn invariant_05_incremental_state_equals_a_full_rebuild() {
    let mut plane = Plane::start(1000).await;
    let follower = plane.sidecar(None);
    follower.reaches(plane.index.position()).await;
    let (kept, change) = plane.estate.grant("agent", "payments/refunds", &["write"], None, 600);
    plane.commit(vec![change]);
    for round in 0..40_u64 {
        let change = match round % 8 {
            0 => plane.estate.grant("storefront", "payments/refunds", &["write"], None, 60 + round).1,
            1 => plane.estate.revoke(&json!({"kind": "token", "issuer": "test", "jti": format!("j{round}")})),
            2 => plane.estate.put(
                Kind::Workload,
                &json!({"id": format!("spiffe://test.example/w{round}"),
                "kind": "agent", "owner": "team", "environment": "production"}),
            ),
            3 => {
                let keys = plane.estate.changes();
                let victim =
                    keys.iter().filter(|c| matches!(c.kind, Kind::Grant | Kind::Workload)).nth(round as usize % 3);
                let victim = victim.unwrap().clone();
                plane.estate.delete(victim.kind, &victim.key)
            }
            4 => plane.estate.put_policies(&format!("@id(\"p{round}\") forbid(principal, action, resource);")),
            5 => plane.estate.put(
                Kind::Service,
                &json!({"name": "catalog", "routes": [{"name": format!("r{round}"), "path": "/c/{*}"}]}),
            ),
            6 => plane.estate.revoke_grant(kept.id),
            _ => plane.estate.delete(Kind::Service, "catalog"),
        };
        plane.commit(vec![change]);
        if round % 5 == 0 {
            follower.reaches(plane.index.position()).await;
        }
    }
    follower.reaches(plane.index.position()).await;
    let newcomer = plane.sidecar(None);
    newcomer.reaches(plane.index.position()).await;
    assert_eq!(follower.digest(), newcomer.digest(), "by deltas and by snapshot over the wire");
    let (position, all) = plane.index.all();
    let mut builder = Builder::empty();
    for stored in all {
        builder.apply(Change { kind: stored.kind, key: stored.key.to_string(), body: Some(stored.body.clone()) });
    }
    assert_eq!(follower.digest(), builder.finish(position).0.digest(), "and from the log's own objects");
    assert_eq!(follower.stats.read().snapshots, 1, "the follower needed one snapshot only");
}

#[tokio::test]
async fn invariant_02_a_receipt_waits_for_the_checks_that_use_the_old_state() {
    let mut plane = Plane::start(100).await;
    let sidecar = plane.sidecar(None);
    sidecar.reaches(plane.index.position()).await;
    let (grant, change) = plane.estate.grant("agent", "payments/refunds", &["write"], None, 600);
    let granted = plane.commit(vec![change]);
    let (fleet, clock) = (Arc::clone(&plane.fleet), Arc::clone(&plane.estate.clock));
    let receipt = |position, wait| {
        let (fleet, now) = (Arc::clone(&fleet), clock.now().wall);
        async move { fleet.receipt(position, now, wait).await }
    };
    assert!(receipt(granted, Duration::from_secs(10)).await.complete);
    // A check is under way on the state that still has the grant; bookmarks go on replacing the world meanwhile.
    let check = sidecar.state.load();
    assert_eq!(check.snapshot.as_ref().unwrap().position(), granted);
    let change = plane.estate.revoke_grant(grant.id);
    let revoked = plane.commit(vec![change]);
    sidecar.reaches(revoked).await;
    assert!(!receipt(revoked, Duration::from_millis(300)).await.complete, "an allow from before may still come out");
    drop(check);
    let done = receipt(revoked, Duration::from_secs(10)).await;
    assert!(done.complete && done.applied.len() == 1, "{done:?}");
}

#[tokio::test]
async fn a_check_that_outlives_a_renewal_still_holds_back_the_receipt() {
    let mut plane = Plane::start(100).await;
    let sidecar = plane.sidecar(None);
    sidecar.reaches(plane.index.position()).await;
    let check = sidecar.state.load();
    // A bookmark has replaced the world that the check holds, with the same snapshot in a new world.
    let held = check.lease;
    plane.estate.clock.advance(Duration::from_secs(1));
    eventually("the lease is renewed", || sidecar.state.load().lease != held).await;
    let change = plane.estate.delete(Kind::Workload, &crate::testing::Estate::id("ci"));
    let position = plane.commit(vec![change]);
    sidecar.reaches(position).await;
    let now = plane.estate.clock.now().wall;
    assert!(!plane.fleet.receipt(position, now, Duration::from_millis(300)).await.complete);
    drop(check);
    assert!(plane.fleet.receipt(position, now, Duration::from_secs(10)).await.complete);
}

#[tokio::test]
async fn a_partition_ends_with_a_delta() {
    let mut plane = Plane::start(100).await;
    let sidecar = plane.sidecar(None);
    sidecar.reaches(plane.index.position()).await;
    plane.stop().await;
    let (_, change) = plane.estate.grant("agent", "payments/refunds", &["write"], None, 600);
    let position = plane.commit(vec![change]);
    plane.run().await;
    sidecar.reaches(position).await;
    assert_eq!(sidecar.stats.read().snapshots, 1, "no second snapshot");
    let receipt = plane.fleet.receipt(position, plane.estate.clock.now().wall, Duration::from_secs(10)).await;
    assert!(receipt.complete, "{receipt:?}");
}

#[tokio::test]
async fn invariant_07_resume_after_compaction_never_loses_a_delete() {
    let mut plane = Plane::start(3).await;
    let (grant, change) = plane.estate.grant("agent", "payments/refunds", &["write"], None, 600);
    plane.commit(vec![change]);
    let sidecar = plane.sidecar(None);
    sidecar.reaches(plane.index.position()).await;
    let before = sidecar.digest();
    plane.stop().await;
    let change = plane.estate.delete(Kind::Grant, &grant.id.to_string());
    plane.commit(vec![change]);
    for i in 0..5 {
        let change = plane.estate.revoke(&json!({"kind": "token", "issuer": "test", "jti": format!("j{i}")}));
        plane.commit(vec![change]);
    }
    plane.run().await;
    sidecar.reaches(plane.index.position()).await;
    assert_eq!(sidecar.stats.read().snapshots, 2, "the log does not reach back: a snapshot");
    assert_ne!(sidecar.digest(), before);
    let count = |kind| {
        sidecar.state.load().snapshot.as_ref().unwrap().counts().into_iter().find(|(k, _)| *k == kind).unwrap().1
    };
    assert_eq!((count(Kind::Grant), count(Kind::Revocation)), (0, 5), "the deleted grant is gone");
}

#[tokio::test]
async fn invariant_08_no_byte_of_an_out_of_scope_grant_reaches_a_sidecar() {
    let mut plane = Plane::stopped(100, &["catalog"]);
    let (foreign, first) = plane.estate.grant("agent", "payments/refunds", &["write"], None, 611);
    let (own, second) = plane.estate.grant("agent", "catalog/items", &["write"], None, 622);
    plane.commit(vec![first, second]);
    let change = plane.estate.revoke_grant(foreign.id);
    let foreign_revocation = change.key.clone();
    plane.commit(vec![change]);
    plane.run().await;
    let mut seen = raw(&plane, None, bookmarked).await.unwrap();
    assert!(matches!(body(&seen[0]), Body::Begin(_)));
    // And by deltas: changed, revoked, deleted, together with something of its own, and alone.
    let cursor =
        Cursor { epoch: plane.index.position().epoch.to_string(), revision: plane.index.position().revision.0 };
    let mut ended = foreign.clone();
    ended.reason = "a foreign reason".to_owned();
    ended.digest = ended.request_digest();
    let change = plane.estate.put_object(&Object::Grant(Box::new(ended)));
    plane.commit(vec![change]);
    let one = plane.estate.revoke_grant(foreign.id);
    let other = plane.estate.revoke_grant(own.id);
    let (one_key, other_key) = (one.key.clone(), other.key.clone());
    plane.commit(vec![one, other]);
    let one = plane.estate.delete(Kind::Grant, &foreign.id.to_string());
    let other = plane.estate.delete(Kind::Grant, &own.id.to_string());
    plane.commit(vec![one, other]);
    let change = plane.estate.delete(Kind::Service, "payments");
    plane.commit(vec![change]);
    let by_delta = raw(&plane, Some(cursor), bookmarked).await.unwrap();
    assert!(matches!(body(&by_delta[0]), Body::Delta(_)));
    seen.extend(by_delta);
    for secret in
        [foreign.id.to_string(), foreign_revocation, one_key, "payments".to_owned(), "a foreign reason".to_owned()]
    {
        // The policy text names what it names; it goes to every sidecar.
        let text_of = |f: &ServerFrame| match body(f) {
            Body::Delta(d) => d.objects,
            Body::Chunk(c) => c.objects,
            _ => vec![],
        };
        for frame in &seen {
            for object in text_of(frame).iter().filter(|o| o.kind != Kind::PolicySet as i32) {
                let bytes = prost::Message::encode_to_vec(object);
                assert!(!contains(&bytes, &secret), "`{secret}` in {object:?}");
            }
            if let Body::Chunk(chunk) = body(frame) {
                assert!(!contains(&chunk.grants, &secret), "`{secret}` among the grants");
            }
            for id in forms_of(foreign.id) {
                assert!(!contains(&frame.payload, id), "the id of the foreign grant in a raw frame");
            }
        }
    }
    let all: Vec<u8> = seen.iter().flat_map(|f| f.payload.to_vec()).collect();
    assert!(forms_of(own.id).iter().all(|id| contains(&all, id)), "its own are there: in the snapshot, and deleted");
    assert!(
        !contains(&all, &own.requested_by) && !contains(&all, &own.digest),
        "but not who asked, nor what is voted on"
    );
    assert!(contains(&all, &other_key), "and their revocation");
}

#[tokio::test]
async fn a_revision_without_anything_in_scope_still_advances_the_cursor() {
    let mut plane = Plane::stopped(100, &["catalog"]);
    plane.run().await;
    let mut config = plane.client_config(None);
    config.services = vec!["catalog".to_owned()];
    let sidecar = super::plane::Sidecar::start(config, plane.estate.clock.clone());
    sidecar.reaches(plane.index.position()).await;
    let (_, change) = plane.estate.grant("agent", "payments/refunds", &["write"], None, 600);
    let position = plane.commit(vec![change]);
    let receipt = plane.fleet.receipt(position, plane.estate.clock.now().wall, Duration::from_secs(10)).await;
    assert!(receipt.complete && receipt.applied.len() == 1, "{receipt:?}");
    assert_eq!(sidecar.position(), Some(position));
}

#[tokio::test]
async fn a_restart_answers_from_disk_and_resumes_by_delta() {
    let dir = tempfile::tempdir().unwrap();
    let mut plane = Plane::start(100).await;
    let sidecar = plane.sidecar(Some(dir.path()));
    sidecar.reaches(plane.index.position()).await;
    let (_, change) = plane.estate.grant("agent", "payments/refunds", &["write"], None, 600);
    let position = plane.commit(vec![change]);
    assert!(plane.fleet.receipt(position, plane.estate.clock.now().wall, Duration::from_secs(10)).await.complete);
    let (digest, instance) = (sidecar.digest(), plane.fleet.list(position)[0].instance.clone());
    sidecar.stop().await;
    plane.stop().await;
    let sidecar = plane.sidecar(Some(dir.path()));
    assert_eq!(sidecar.position(), Some(position), "at once, from disk, without a control plane");
    assert_eq!(sidecar.digest(), digest);
    let lease = sidecar.state.load().lease.expect("a dated state");
    assert!(lease.age(plane.estate.clock.now()) < Duration::from_secs(60));
    plane.estate.clock.advance(Duration::from_secs(400));
    let age = lease.age(plane.estate.clock.now());
    assert!(age > lease.max_staleness, "and it ages: {age:?}");
    let (_, change) = plane.estate.grant("agent", "payments/refunds", &["write"], None, 700);
    let position = plane.commit(vec![change]);
    plane.write_token(json!({}));
    plane.run().await;
    sidecar.reaches(position).await;
    assert_eq!(sidecar.stats.read().snapshots, 0, "a delta is enough");
    assert!(plane.fleet.receipt(position, plane.estate.clock.now().wall, Duration::from_secs(10)).await.complete);
    assert_eq!(plane.fleet.list(position)[0].instance, instance, "the same instance as before");
}

#[tokio::test]
async fn a_state_of_another_form_is_refused_and_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let mut plane = Plane::start(100).await;
    let sidecar = plane.sidecar(Some(dir.path()));
    sidecar.reaches(plane.index.position()).await;
    let digest = sidecar.digest();
    sidecar.stop().await;
    plane.stop().await;
    let file = dir.path().join("snapshot-00000001");
    let mut bytes = std::fs::read(&file).unwrap();
    let place = bytes[..16].iter().position(u8::is_ascii_digit).unwrap();
    bytes[place] = b'1';
    std::fs::write(&file, bytes).unwrap();
    let sidecar = plane.sidecar(Some(dir.path()));
    assert_eq!(sidecar.position(), None, "what is not understood is no state");
    plane.write_token(json!({}));
    plane.run().await;
    sidecar.reaches(plane.index.position()).await;
    assert_eq!((sidecar.digest(), sidecar.stats.read().snapshots), (digest, 1));
    sidecar.stop().await;
    plane.stop().await;
    assert!(plane.sidecar(Some(dir.path())).position().is_some(), "the one in its place is read");
}

#[tokio::test]
async fn who_is_not_an_enforcement_point_gets_nothing() {
    let mut plane = Plane::start(100).await;
    let refused = |code: Code, part: &'static str, result: Result<Vec<ServerFrame>, Status>| {
        let status = result.expect_err(part);
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(part), "{status}");
    };
    std::fs::write(plane.tokens.path().join("token"), "").unwrap();
    refused(Code::Unauthenticated, "no credential", raw(&plane, None, bookmarked).await);
    let now = plane.estate.clock.now().wall.as_secs();
    for (change, part) in [
        (json!({"aud": ["portcullis-test"]}), "audience"),
        (json!({"exp": now}), "expired"),
        (json!({"sub": "spiffe://elsewhere.example/sidecar"}), "issuer_untrusted"),
    ] {
        plane.write_token(change);
        refused(Code::Unauthenticated, part, raw(&plane, None, bookmarked).await);
    }
    plane.write_token(json!({"sub": "spiffe://test.example/other"}));
    refused(Code::PermissionDenied, "not configured as an enforcement point", raw(&plane, None, bookmarked).await);
    plane.write_token(json!({}));
    raw(&plane, None, bookmarked).await.unwrap();
    let change = plane.estate.revoke(&json!({"kind": "token", "issuer": "test", "jti": "sidecar-1"}));
    plane.commit(vec![change]);
    refused(Code::Unauthenticated, "this token was revoked", raw(&plane, None, bookmarked).await);
    // Another issuer than those trusted for sidecars does not count, however good it is.
    plane.stop().await;
    plane.config.trusted_issuers = vec!["another".to_owned()];
    plane.run().await;
    plane.write_token(json!({"jti": "sidecar-2"}));
    refused(Code::Unauthenticated, "issuer_untrusted", raw(&plane, None, bookmarked).await);
}

#[tokio::test]
async fn a_stream_ends_when_its_credential_does() {
    let mut plane = Plane::start(100).await;
    let change = plane.estate.revoke(&json!({"kind": "workload", "workload": super::frames::identity()}));
    let stream = raw(&plane, None, |_| false);
    tokio::pin!(stream);
    tokio::select! {
        r = &mut stream => panic!("{r:?}"),
        () = eventually("the stream is open", || plane.fleet.streams() == 1) => {}
    }
    plane.commit(vec![change]);
    let status = stream.await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unauthenticated, "this identity was revoked"));
}

#[tokio::test]
async fn a_revocation_between_the_call_and_the_hello_counts() {
    let mut plane = Plane::start(100).await;
    let mut client = RawClient::connect(format!("http://{}", plane.address)).await.unwrap();
    let (out, frames) = tokio::sync::mpsc::channel(1);
    let mut request = tonic::Request::new(ReceiverStream::new(frames));
    let token = std::fs::read_to_string(plane.tokens.path().join("token")).unwrap();
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    let mut inbound = client.watch(request).await.unwrap().into_inner();
    let change = plane.estate.revoke(&json!({"kind": "token", "issuer": "test", "jti": "sidecar-1"}));
    plane.commit(vec![change]);
    let hello = Hello { instance: uuid::Uuid::new_v4().to_string(), version: "t".into(), ..Hello::default() };
    out.send(ClientFrame { frame: Some(Frame::Hello(hello)) }).await.unwrap();
    let first = tokio::time::timeout(Duration::from_secs(10), inbound.next()).await.unwrap().unwrap();
    assert_eq!(first.unwrap_err().message(), "this token was revoked", "and no frame came first");
}

#[tokio::test]
async fn a_stream_ends_when_its_token_expires_and_the_next_takes_the_fresh_one() {
    let plane = Plane::start(100).await;
    let now = plane.estate.clock.now().wall.as_secs();
    plane.write_token(json!({"exp": now + 1}));
    let sidecar = plane.sidecar(None);
    sidecar.reaches(plane.index.position()).await;
    plane.write_token(json!({"exp": now + 3000}));
    eventually("a second stream", || sidecar.stats.read().connects == 2 && sidecar.stats.read().connected).await;
    assert_eq!(sidecar.stats.read().snapshots, 1);
}

#[tokio::test]
async fn newcomers_do_not_keep_others_from_resuming() {
    let mut plane = Plane::stopped(100, &["catalog", "payments"]);
    plane.config.max_snapshots = 0;
    plane.run().await;
    let status = raw(&plane, None, bookmarked).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.metadata().get(RETRY_AFTER).unwrap(), "20");
    let tip = plane.index.position();
    let cursor = Cursor { epoch: tip.epoch.to_string(), revision: 0 };
    let frames = raw(&plane, Some(cursor), bookmarked).await.unwrap();
    assert!(matches!(body(&frames[0]), Body::Delta(d) if (d.from, d.to) == (0, tip.revision.0)));
    // A cursor ahead of the log is a mistake that a snapshot could not mend.
    let cursor = Cursor { epoch: tip.epoch.to_string(), revision: tip.revision.0 + 1 };
    let status = raw(&plane, Some(cursor), bookmarked).await.unwrap_err();
    assert_eq!(status.code(), Code::FailedPrecondition);
}

#[tokio::test]
async fn an_acknowledgement_of_what_was_never_sent_ends_the_stream() {
    let plane = Plane::start(100).await;
    let mut client = RawClient::connect(format!("http://{}", plane.address)).await.unwrap();
    let token = std::fs::read_to_string(plane.tokens.path().join("token")).unwrap();
    let instance = uuid::Uuid::new_v4().to_string();
    let hello = Hello { cursor: None, instance, version: "t".into(), want_snapshot: false };
    let ack = proto::Ack { revision: 999 };
    let frames = [Frame::Hello(hello), Frame::Ack(ack)].map(|f| ClientFrame { frame: Some(f) });
    let frames = tokio_stream::iter(frames).chain(tokio_stream::pending());
    let mut request = tonic::Request::new(frames);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    let mut inbound = client.watch(request).await.unwrap().into_inner();
    let status = loop {
        match inbound.next().await.expect("an end with a reason") {
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    assert!(status.message().contains("`999` was never sent"), "{status}");
    assert_eq!(plane.fleet.list(plane.index.position())[0].position, None, "and counts for nothing");
}

#[tokio::test]
async fn pending_revisions_merge_into_one_delta_and_big_ones_are_not_split() {
    let mut plane = Plane::stopped(1000, &["catalog", "payments"]);
    let start = plane.index.position();
    let (grant, change) = plane.estate.grant("agent", "payments/refunds", &["write"], None, 600);
    plane.commit(vec![change]);
    for i in 0..50 {
        let (_, change) = plane.estate.grant("agent", "payments/refunds", &["write"], None, 600 + i);
        plane.commit(vec![change]);
    }
    let change = plane.estate.delete(Kind::Grant, &grant.id.to_string());
    plane.commit(vec![change]);
    // One revision larger than a delta is filled up to.
    let many: Vec<Change> =
        (0..5000).map(|i| plane.estate.grant("ci", "payments/refunds", &["write"], None, 600 + i).1).collect();
    let big = plane.commit(many);
    let last = plane.estate.revoke(&json!({"kind": "token", "issuer": "test", "jti": "x"}));
    let tip = plane.commit(vec![last]);
    plane.run().await;
    let cursor = Cursor { epoch: start.epoch.to_string(), revision: start.revision.0 };
    let frames = raw(&plane, Some(cursor), bookmarked).await.unwrap();
    let deltas: Vec<_> = frames
        .iter()
        .filter_map(|f| match body(f) {
            Body::Delta(d) => Some(d),
            _ => None,
        })
        .collect();
    assert_eq!(deltas.len(), 2, "merged as far as the size target goes");
    assert_eq!((deltas[0].from, deltas[0].to), (start.revision.0, big.revision.0), "the big revision is whole");
    assert_eq!((deltas[1].from, deltas[1].to), (big.revision.0, tip.revision.0));
    let of_grant: Vec<_> = deltas[0].objects.iter().filter(|o| o.key == grant.id.to_string()).collect();
    assert!(of_grant.len() == 1 && of_grant[0].deleted, "the last word on an object wins: {of_grant:?}");
    assert_eq!(deltas[0].objects.len(), 5051);
    assert!(Revision(deltas[1].to) == tip.revision && deltas[1].objects.len() == 1);
}

#[tokio::test]
async fn a_bookmark_from_the_future_renews_nothing() {
    let plane = Plane::start(100).await;
    // The sidecar's clock is an hour behind.
    let behind = Arc::new(crate::clock::ManualClock::new(
        plane.estate.clock.now().wall.saturating_sub(Duration::from_secs(3600)),
    ));
    let sidecar = super::plane::Sidecar::start(plane.client_config(None), behind.clone());
    sidecar.reaches(plane.index.position()).await;
    let tip = plane.commit(vec![]);
    sidecar.reaches(tip).await;
    assert_eq!(sidecar.state.load().lease, None);
    behind.advance(Duration::from_secs(3600));
    eventually("a lease, once the clock is right", || sidecar.state.load().lease.is_some()).await;
}

/// What etcd promises of a watch, looked at frame by frame and resumed at every revision.
#[tokio::test]
async fn invariant_01_a_stream_is_ordered_unique_atomic_reliable_resumable_and_bookmarked() {
    let mut plane = Plane::start(1000).await;
    let start = plane.index.position().revision.0;
    let epoch = plane.index.position().epoch.to_string();
    // Commits of one to three grants each: which revision wrote which keys.
    let mut written = Vec::new();
    for n in 0..12_u64 {
        let grants = 0..=(n % 3);
        let changes: Vec<Change> =
            grants.map(|_| plane.estate.grant("agent", "payments/refunds", &["write"], None, 60 + n).1).collect();
        let keys: Vec<String> = changes.iter().map(|c| c.key.clone()).collect();
        written.push((plane.commit(changes).revision.0, keys));
    }
    let tip = plane.index.position().revision.0;
    for cut in start..=tip {
        let cursor = Cursor { epoch: epoch.clone(), revision: cut };
        let mut at = cut;
        let mut seen = std::collections::BTreeMap::new();
        for frame in raw(&plane, Some(cursor), bookmarked).await.unwrap() {
            match body(&frame) {
                Body::Delta(delta) => {
                    assert_eq!(delta.from, at, "ordered: each delta goes on where the last one ended");
                    at = delta.to;
                    for object in delta.objects {
                        assert!((delta.from + 1..=delta.to).contains(&object.revision), "in the delta of its revision");
                        let twice = seen.insert(object.key.clone(), object.revision);
                        assert_eq!(twice, None, "unique: `{}` came twice", object.key);
                    }
                }
                Body::Bookmark(bookmark) => assert_eq!(bookmark.revision, at, "a bookmark confirms what was sent"),
                other => panic!("resumable: no snapshot is needed at {cut}, but {other:?} came"),
            }
        }
        assert_eq!(at, tip, "reliable: the stream reaches the tip");
        for (revision, keys) in written.iter().filter(|(revision, _)| *revision > cut) {
            for key in keys {
                assert_eq!(seen.remove(key), Some(*revision), "atomic: all of revision {revision}");
            }
        }
        assert!(seen.is_empty(), "nothing from before the cursor: {seen:?}");
    }
}
