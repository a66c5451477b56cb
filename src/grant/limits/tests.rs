//! Tests of limits against plain readings of the same documents.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::object::Grant;

/// Limits of a grant with these fields.
fn limits(fields: Value) -> Limits {
    let mut document = json!({
        "id": uuid::Uuid::nil(), "workload": "spiffe://a/w", "resources": ["payments"], "actions": ["write"],
        "requested_by": "alice", "requested_at": Timestamp::from_secs(1), "duration_seconds": 60, "digest": "",
        "state": "pending",
    });
    fields.as_object().unwrap().iter().for_each(|(name, value)| document[name] = value.clone());
    let mut grant: Grant = serde_json::from_value(document).unwrap();
    grant.digest = grant.request_digest();
    assert_eq!(crate::object::Object::Grant(Box::new(grant.clone())).check(), Ok(()));
    let form = CompactGrant::encode(&grant);
    Limits::of(&CompactGrant::read(&form).unwrap()).unwrap()
}

const DAYS: [&str; 7] = ["mon", "tue", "wed", "thu", "fri", "sat", "sun"];

fn clock(minutes: u64) -> String {
    format!("{:02}:{:02}", minutes / 60, minutes % 60)
}

proptest! {
    /// Against a calendar that is walked minute by minute: a window holds in its minutes, until its end.
    #[test]
    fn a_window_is_what_the_calendar_says(
        windows in prop::collection::vec((prop::collection::btree_set(0..7usize, 0..4), 0..1440u64, 1..=1440u64), 1..4),
        week in 0..3000u64, day in 0..7u64, minute in 0..1440u64, ms in 0..60_000u64,
    ) {
        // 1970-01-05 was a Monday.
        let now = Timestamp::from_millis(((4 + week * 7 + day) * 1440 + minute) * 60_000 + ms);
        let windows: Vec<_> = windows.into_iter().map(|(days, from, long)| (days, from, (from + long).min(1440))).collect();
        let documents: Vec<Value> = windows
            .iter()
            .map(|(days, from, to)| {
                let days: Vec<&str> = days.iter().map(|d| DAYS[*d]).collect();
                json!({"days": days, "from": clock(*from), "to": clock(*to)})
            })
            .collect();
        let limits = limits(json!({"conditions": {"windows": documents}}));
        let holds = |minute: u64| {
            let today = |days: &std::collections::BTreeSet<usize>| days.is_empty() || days.contains(&(day as usize));
            windows.iter().any(|(days, from, to)| today(days) && (*from..*to).contains(&minute))
        };
        let request = Circumstances::new(("GET", "/"), &[], None, None);
        match limits.judge(&request, "production", now) {
            Err(unmet) => prop_assert!(!holds(minute) && unmet == Unmet::Condition),
            Ok(until) => {
                prop_assert!(holds(minute) && now < until);
                // Whatever the answer is good for, the calendar agrees with.
                let minutes = until.since(now).as_millis() as u64 + ms;
                prop_assert_eq!(minutes % 60_000, 0);
                prop_assert!((minute..minute + minutes / 60_000).all(holds));
            }
        }
    }

    #[test]
    fn no_header_bytes_panic_and_only_the_value_itself_holds(
        headers in prop::collection::vec((prop_oneof![Just("x-run".to_owned()), Just("X_Run".to_owned()), Just("X-RUN".to_owned()), "[a-z-]{0,6}"], prop_oneof![Just(b"7".to_vec()), any::<Vec<u8>>()]), 0..4),
    ) {
        let limits = limits(json!({"conditions": {"headers": {"x-run": ["7"]}}}));
        let list: Vec<_> = headers.iter().map(|(name, value)| Header { name: name.as_bytes(), value }).collect();
        let request = Circumstances::new(("GET", "/"), &list, None, None);
        let named: Vec<_> = headers.iter().filter(|(n, _)| n.to_lowercase().replace('_', "-") == "x-run").collect();
        let expected = named.len() == 1 && named[0].0.contains('-') && named[0].1 == b"7";
        prop_assert_eq!(limits.judge(&request, "production", Timestamp::from_secs(1)).is_ok(), expected);
    }
}

#[test]
fn of_several_conditions_every_one_has_to_hold_and_the_most_telling_is_told() {
    let limits = limits(json!({
        "conditions": {"source_networks": ["10.0.0.0/8"], "environments": ["production"]},
        "call": {"method": "POST", "path": "/a?b", "body_sha256":
                 "2d711642b726b04401627ca9fbac32f5c8530fb1903cc4db02258717921a4881"},
    }));
    let inside = "10.1.1.1".parse().ok();
    let judge = |address, environment, body: Option<&[u8]>| {
        let request = Circumstances::new(("POST", "/a?b"), &[], address, body);
        assert!(limits.is_for(&request));
        limits.judge(&request, environment, Timestamp::from_secs(1))
    };
    assert_eq!(judge(inside, "production", Some(b"x")), Ok(Timestamp::MAX));
    assert_eq!(judge(inside, "production", Some(b"y")), Err(Unmet::Condition));
    assert_eq!(judge(inside, "production", None), Err(Unmet::Body));
    assert_eq!(judge(None, "production", None), Err(Unmet::Condition), "no body would help");
    assert_eq!(judge(inside, "staging", None), Err(Unmet::Environment));
    for (method, target) in [("GET", "/a?b"), ("POST", "/a"), ("POST", "/a?b&"), ("POST", "/A?b")] {
        assert!(!limits.is_for(&Circumstances::new((method, target), &[], None, None)));
    }
}

#[test]
fn a_document_that_slipped_through_is_no_limits() {
    for (conditions, call) in [
        (json!({"source_networks": ["10.0.0.0/99"]}), Value::Null),
        (json!({"windows": [{"from": "8", "to": "9"}]}), Value::Null),
        (json!({}), json!({"method": "GET", "path": "/", "body_sha256": "zz"})),
    ] {
        let document = json!({
            "id": uuid::Uuid::nil(), "workload": "spiffe://a/w", "resources": ["payments"], "actions": ["write"],
            "requested_by": "alice", "requested_at": Timestamp::from_secs(1), "duration_seconds": 60, "digest": "",
            "state": "pending", "conditions": conditions, "call": call,
        });
        let grant: Grant = serde_json::from_value(document).unwrap();
        // Neither the form nor, if it got so far, the limits.
        assert!(CompactGrant::read(&CompactGrant::encode(&grant)).is_err());
        let (conditions, call) = (grant.conditions.clone(), grant.call.clone());
        let plain = Grant { conditions: GrantConditions::default(), call: None, ..grant };
        let form = CompactGrant::encode(&plain);
        let slipped = CompactGrant { conditions, call, ..CompactGrant::read(&form).unwrap() };
        assert_eq!(Limits::of(&slipped), None);
    }
}
