//! Tests of decision records: what is written, that nothing waits, that losses are counted.

use std::io::Read;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::authz::{Decision, DecisionId, Door, Reason};
use crate::clock::Timestamp;
use crate::object::GrantId;
use crate::wire::{Epoch, Position, Revision};

fn counter() -> IntCounter {
    IntCounter::new("dropped", "dropped").unwrap()
}

fn decision(reason: Reason) -> Decision {
    Decision::for_test(reason, DecisionId::new(Timestamp::from_millis(1_700_000_000_042)))
}

fn record(reason: Reason, path: &str) -> Record {
    Record::new(Door::ExtAuthz, decision(reason), "GET", path, Duration::from_nanos(12_900))
}

fn line(record: &Record) -> Value {
    let mut out = Vec::new();
    Writer::default().write(record, &mut out);
    assert_eq!(out.iter().filter(|&&b| b == b'\n').count(), 1, "one line: {}", String::from_utf8_lossy(&out));
    serde_json::from_slice(&out).unwrap()
}

#[test]
fn says_everything_about_an_allow() {
    let epoch = Epoch::starting(Timestamp::from_millis(1_600_000_000_000));
    let mut d = decision(Reason::AllowGrant);
    d.position = Some(Position { epoch, revision: Revision(42) });
    d.behind_ms = 17;
    d.grant = Some(GrantId(uuid::Uuid::nil()));
    d.actor = Some(Arc::from("spiffe://td/actor"));
    d.earlier_actors = Some(Arc::from([Arc::from("spiffe://td/first")]));
    d.policies = Arc::from([Box::from("grants"), Box::from("catalog \"read\"")]);
    d.token_id = Some(Arc::from("jti-1"));
    d.certificate_serial = Some(Arc::from("a1b2c"));
    d.cached = true;
    let id = d.id.to_string();
    let json = line(&Record::new(Door::ExtAuthz, d, "POST", "/refunds/7?card=4111", Duration::from_nanos(12_900)));
    assert_eq!(
        json,
        serde_json::json!({
            "time": "2023-11-14T22:13:20.042Z", "decision_id": id, "decision": "allow", "reason": "allow.grant",
            "door": "ext_authz", "workload": "spiffe://td/w", "subject": "spiffe://td/w", "actor": "spiffe://td/actor",
            "earlier_actors": ["spiffe://td/first"],
            "resource": "payments/refunds", "action": "write", "token_id": "jti-1",
            "certificate_serial": "a1b2c",
            "grant_id": "00000000-0000-0000-0000-000000000000", "method": "POST", "path": "/refunds/7",
            "policies": ["grants", "catalog \"read\""], "revision": format!("{epoch}.42"), "behind_ms": 17,
            "cached": true, "duration_us": 12,
        })
    );
}

#[test]
fn leaves_out_what_is_not_known() {
    let id = DecisionId::new(Timestamp::from_millis(1_700_000_000_999));
    let d = Decision::refuse(id, Reason::InputMalformed, "no http attributes");
    let json = line(&Record::new(Door::Check, d, "", "", Duration::ZERO));
    assert_eq!(
        json,
        serde_json::json!({
            "time": "2023-11-14T22:13:20.999Z", "decision_id": id.to_string(), "decision": "deny",
            "reason": "input.malformed", "door": "check", "detail": "no http attributes", "cached": false,
            "duration_us": 0,
        })
    );
}

#[test]
fn long_paths_are_cut_between_characters() {
    let path = format!("/{}é", "a".repeat(1022));
    let json = line(&record(Reason::AllowPolicy, &path));
    assert_eq!(json["path"].as_str().unwrap(), format!("/{}", "a".repeat(1022)));
}

proptest! {
    /// Whatever a client puts into a path, a record is one line of JSON that says the same.
    #[test]
    fn any_path_round_trips(path in "\\PC{0,40}|[\\x00-\\x7f]{0,40}") {
        let json = line(&record(Reason::PolicyNoMatch, &path));
        let expected = path.split('?').next().unwrap();
        prop_assert_eq!(json.get("path").and_then(Value::as_str).unwrap_or(""), expected);
    }
}

#[test]
fn seconds_and_positions_are_not_mixed_up_between_records() {
    let epoch = Epoch::starting(Timestamp::from_millis(1_600_000_000_000));
    let mut writer = Writer::default();
    for (ms, rev) in [(1_000_u64, 1_u64), (1_999, 1), (2_000, 2), (1_500, 1), (0, 3)] {
        let mut d = Decision::for_test(Reason::AllowPolicy, DecisionId::new(Timestamp::from_millis(ms)));
        d.position = Some(Position { epoch, revision: Revision(rev) });
        let mut out = Vec::new();
        writer.write(&Record::new(Door::ExtAuthz, d, "GET", "/", Duration::ZERO), &mut out);
        let json: Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(json["time"].as_str().unwrap().parse::<Timestamp>().unwrap(), Timestamp::from_millis(ms));
        assert_eq!(json["revision"], format!("{epoch}.{rev}"));
    }
}

#[test]
fn every_record_reaches_the_file_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("records.jsonl");
    let dropped = counter();
    let output = Output::File { path: path.clone(), max_bytes: u64::MAX, keep: 1 };
    let records = Records::start(RecordsConfig { output, queue: 65_536 }, dropped.clone()).unwrap();
    let records = Arc::new(records);
    let threads: Vec<_> = (0..2)
        .map(|t| {
            let records = records.clone();
            thread::spawn(move || {
                for i in 0..20_000 {
                    records.push(|| record(Reason::AllowPolicy, &format!("/{t}/{i}")));
                }
            })
        })
        .collect();
    for t in threads {
        t.join().unwrap();
    }
    assert!(records.flush(Duration::from_secs(30)));
    assert_eq!(dropped.get(), 0);
    let text = std::fs::read_to_string(&path).unwrap();
    let mut next = [0, 0];
    for l in text.lines() {
        let json: Value = serde_json::from_str(l).unwrap();
        let (t, i) = json["path"].as_str().unwrap().trim_start_matches('/').split_once('/').unwrap();
        let t: usize = t.parse().unwrap();
        assert_eq!(i.parse::<usize>().unwrap(), next[t]);
        next[t] += 1;
    }
    assert_eq!(next, [20_000, 20_000]);
}

#[test]
fn a_full_queue_drops_and_counts_and_never_blocks() {
    // A pipe that nobody reads: the writer blocks in `write` once it is full.
    let (mut reader, sink) = io::pipe().unwrap();
    let dropped = counter();
    let (hand_over, receive) = std::sync::mpsc::sync_channel::<Arc<Shared>>(1);
    let thread = thread::spawn(move || run(&receive.recv().unwrap(), Sink::Pipe(sink)));
    let shared = Arc::new(Shared {
        queue: Mutex::default(),
        settled: Condvar::new(),
        capacity: 1000,
        dropped: dropped.clone(),
        writer: thread.thread().clone(),
    });
    hand_over.send(shared.clone()).unwrap();
    let records = Records(Some(shared));
    let pushed = 20_000;
    for i in 0..pushed {
        records.push(|| record(Reason::AllowPolicy, &format!("/{i}")));
    }
    assert!(!records.flush(Duration::from_millis(20)), "the writer is stuck");
    let lost = dropped.get();
    assert!(lost > 0, "a pipe holds less than {pushed} records");
    let read = thread::spawn(move || {
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    });
    assert!(records.shutdown(Duration::from_secs(30)));
    thread.join().unwrap();
    let written = read.join().unwrap().lines().count() as u64;
    assert_eq!(written + dropped.get(), pushed, "every record is either written or counted");
}

#[test]
fn records_that_cannot_be_written_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("records.jsonl");
    let dropped = counter();
    let output = Output::File { path: path.clone(), max_bytes: u64::MAX, keep: 1 };
    let records = Records::start(RecordsConfig { output, queue: 100 }, dropped.clone()).unwrap();
    std::fs::remove_file(&path).unwrap();
    std::fs::create_dir(&path).unwrap();
    records.push(|| record(Reason::AllowPolicy, "/lost"));
    assert!(records.flush(Duration::from_secs(30)));
    assert_eq!(dropped.get(), 1);
    std::fs::remove_dir(&path).unwrap();
    records.push(|| record(Reason::AllowPolicy, "/kept"));
    drop(records);
    assert_eq!(dropped.get(), 1);
    assert!(std::fs::read_to_string(&path).unwrap().contains("\"/kept\""));
}

#[test]
fn an_output_that_cannot_be_opened_is_an_error_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let output = Output::File { path: dir.path().join("no/such/dir"), max_bytes: 1, keep: 1 };
    assert!(Records::start(RecordsConfig { output, queue: 1 }, counter()).is_err());
}
