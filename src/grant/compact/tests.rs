//! The compact form: what it keeps, what it leaves out, and that nothing else reads as one.
//!
//! Pure, like the module.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::object::{Kind, Object};

/// A grant that has everything, with some of it changed.
fn grant(changes: Value) -> Grant {
    let mut document = json!({
        "id": Uuid::from_u128(7), "workload": "spiffe://a.example/x", "resources": ["payments/refunds", "catalog"],
        "actions": ["write", "read", "write"], "path": "/refunds/{id}/{**}",
        "conditions": { "source_networks": ["10.0.0.0/8"], "headers": { "x-run": ["1"] } },
        "call": { "method": "POST", "path": "/refunds/7/x" }, "uses": 3, "reason": "secret reason",
        "ticket": "secret ticket", "break_glass": true, "requested_by": "secret person",
        "requested_at": "2026-01-31T12:00:00.000Z", "duration_seconds": 300, "digest": "", "state": "ended",
        "not_before": "2026-01-31T12:00:00.000Z", "not_after": "2026-01-31T12:05:00.000Z",
        "ended": { "by": "secret ender", "at": "2026-01-31T12:04:00.000Z", "reason": "secret end" },
    });
    if let Value::Object(changes) = changes {
        changes.into_iter().for_each(|(name, value)| document[name] = value);
    }
    let mut grant: Grant = serde_json::from_value(document).unwrap();
    grant.digest = grant.request_digest();
    grant
}

#[test]
fn it_keeps_what_enforcement_reads_and_nothing_of_the_rest() {
    let all = grant(Value::Null);
    let form = CompactGrant::encode(&all);
    let read = CompactGrant::read(&form).unwrap();
    assert_eq!(read.id, all.id);
    assert_eq!(read.workload, WorkloadKey::of("spiffe://a.example/x"));
    assert_eq!(read.resources.iter().collect::<Vec<_>>(), ["catalog", "payments/refunds"]);
    assert_eq!(read.actions.iter().collect::<Vec<_>>(), ["read", "write"], "each once");
    assert_eq!(read.path, Some("/refunds/*/**"));
    assert_eq!((read.state, read.break_glass, read.uses), (GrantState::Ended, true, Some(3)));
    assert_eq!((read.not_before, read.not_after), (all.not_before, all.not_after));
    assert_eq!(read.ended_at, all.ended.as_ref().map(|e| e.at));
    assert_eq!((&read.conditions, &read.call), (&all.conditions, &all.call));
    assert!(read.is_limited());
    assert!(!form.windows(6).any(|w| w == b"secret"), "who asked and why stays where it is");
}

#[test]
fn an_ordinary_grant_is_short() {
    let (nothing, none) = (json!({}), Value::Null);
    let plain =
        grant(json!({ "resources": ["payments/refunds"], "actions": ["write"], "path": "/refunds/*", "uses": none,
        "conditions": nothing, "call": none, "break_glass": false, "state": "active", "ended": none }));
    let form = CompactGrant::encode(&plain);
    assert!(form.len() < 100, "{} bytes", form.len());
    assert!(form.len() <= CompactGrant::usual_len(&plain), "one allocation");
    assert!(!CompactGrant::read(&form).unwrap().is_limited());
    assert!(Object::parse(Kind::Grant, &serde_json::to_vec(&plain).unwrap()).is_ok());
}

#[test]
fn each_state_survives() {
    for state in STATES {
        let one = grant(json!({ "state": state }));
        assert_eq!(CompactGrant::read(&CompactGrant::encode(&one)).unwrap().state, state);
    }
}

#[test]
fn a_template_without_names_is_its_own_pattern() {
    for text in ["/", "/a", "/a/", "/a/*", "/*/b", "/a/**", "/a/**.mpd", "/a/*/**/x", "/a/*.txt"] {
        assert_eq!(pattern(text).unwrap(), Template::parse(text).unwrap().pattern(), "{text}");
    }
    for (text, wanted) in [("/{*}", "/*"), ("/a/{id}/b", "/a/*/b"), ("/a/{rest=**}.m", "/a/**.m")] {
        assert_eq!(pattern(text).unwrap(), wanted);
    }
}

#[test]
fn what_is_not_known_is_refused_and_named() {
    let form = CompactGrant::encode(&grant(Value::Null));
    let spoilt = |at: usize, byte: u8| {
        let mut form = form.clone();
        form[at] = byte;
        CompactGrant::read(&form).map(drop).unwrap_err().field
    };
    assert_eq!(spoilt(0, 2), "version");
    assert_eq!(spoilt(1, 9), "state");
    assert_eq!(spoilt(2, 1), "flags");
    for len in 0..form.len() {
        assert!(CompactGrant::read(&form[..len]).is_err(), "cut off at {len}");
    }
    let longer = [&form[..], b"x"].concat();
    assert_eq!(CompactGrant::read(&longer).unwrap_err().message, "something follows the grant");
    let timeless = grant(json!({ "state": "active", "not_after": Value::Null }));
    assert_eq!(CompactGrant::read(&CompactGrant::encode(&timeless)).unwrap_err().field, "not_after");
    let backwards = grant(json!({ "not_after": "2026-01-31T11:00:00.000Z" }));
    assert_eq!(CompactGrant::read(&CompactGrant::encode(&backwards)).unwrap_err().field, "not_after");
    let odd = grant(json!({ "conditions": { "environments": ["Prod!"] } }));
    assert_eq!(CompactGrant::read(&CompactGrant::encode(&odd)).unwrap_err().field, "conditions.environments[0]");
}

#[test]
fn a_batch_is_what_was_put_into_it() {
    let (a, b) = (grant(Value::Null), grant(json!({ "id": Uuid::from_u128(8), "path": Value::Null })));
    let mut batch = Vec::new();
    let put = [a, b].map(|grant| CompactGrant::encode(&grant));
    put.iter().for_each(|form| join(&mut batch, form));
    let forms: Vec<&[u8]> = split(&batch).map(Result::unwrap).collect();
    assert_eq!(forms, put);
    let shard = |grant: &Grant| Shard::of(&WorkloadKey::of(grant.workload.as_str()).0).number();
    assert_eq!(place(&CompactGrant::encode(&grant(Value::Null))), shard(&grant(Value::Null)), "where the workload is");
    let cut: Vec<_> = split(&batch[..batch.len() - 1]).collect();
    assert!(cut.len() == 2 && cut[1].is_err(), "the one that is cut off is an error");
    assert_eq!(split(&[0, 0, 0]).map(|f| f.is_err()).collect::<Vec<_>>(), [true]);
}

proptest! {
    #[test]
    fn there_is_one_encoding_and_no_panic(
        at in 0_usize..200, byte: u8, noise in prop::collection::vec(any::<u8>(), 0..80),
    ) {
        let form = CompactGrant::encode(&grant(Value::Null));
        let before = CompactGrant::read(&form).unwrap();
        let mut other = form.clone();
        let at = at % other.len();
        if other[at] != byte {
            other[at] = byte;
            if let Ok(read) = CompactGrant::read(&other) {
                prop_assert_ne!(read, before, "two encodings of one grant differ at {}", at);
            }
        }
        let _ = CompactGrant::read(&noise);
        prop_assert!(split(&noise).count() <= noise.len());
    }
}
