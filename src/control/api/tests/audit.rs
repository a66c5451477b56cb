//! What the audit trail says of calls: changes, refusals and failures, and nothing of polls or tokens.

use serde_json::{Value, json};

use super::harness::{STOREFRONT, Site, catalog, workload, workload_path};
use crate::control::audit::{Sealed, Tip, Verifier};

impl Site {
    /// The records that a query asks for, once the recorder has written those of `until`.
    async fn records(&self, query: &str, until: &str) -> Vec<Value> {
        for _ in 0..100 {
            let said = self.get(&format!("/v1/audit?limit=1000&{query}")).await.expect(200).body["items"].clone();
            let said = said.as_array().unwrap().clone();
            if said.iter().any(|record| record.to_string().contains(until)) {
                return said;
            }
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        panic!("`{until}` was never recorded");
    }
}

fn brief(record: &Value) -> [&str; 5] {
    ["author", "via", "action", "object", "outcome"].map(|name| record[name].as_str().unwrap_or(""))
}

#[tokio::test]
async fn changes_and_refusals_are_recorded_with_who_asked_and_how() {
    let site = Site::new().await;
    let alice = site.operator("alice").await;
    let mut request = site.request(&alice, "PUT", "/v1/services/catalog", Some(&catalog()));
    request.headers_mut().insert("x-request-id", "mine-1".parse().unwrap());
    site.send(request).await.expect(201);
    site.call_as(&alice, "PUT", "/v1/services/catalog", catalog()).await.expect(200);
    site.call_as(&alice, "GET", "/v1/services/nothing", Value::Null).await.expect(404);
    site.call_as(&alice, "PUT", "/v1/services/catalog", json!({ "name": "other" })).await.expect(422);
    site.call_as("ptc_op_wrong", "GET", "/v1/status", Value::Null).await.expect(401);
    let records = site.records("", "GET /v1/status").await;
    let said: Vec<[&str; 5]> = records.iter().map(brief).filter(|r| !r[2].starts_with("audit.")).collect();
    assert_eq!(
        said,
        [
            ["system", "system", "operator.create", "operator/bootstrap", "done"],
            ["bootstrap", "token", "operator.create", "operator/alice", "done"],
            ["alice", "token", "service.put", "service/catalog", "done"],
            ["alice", "token", "service.put", "PUT /v1/services/catalog", "refused"],
            ["", "", "status.show", "GET /v1/status", "refused"],
        ]
    );
    let put = records.iter().find(|r| r["revision"] == 1).unwrap();
    assert_eq!((&put["request_id"], &put["revision"], &put["kind"]), (&json!("mine-1"), &json!(1), &json!("person")));
    assert_eq!(put["changes"][0]["key"], "catalog");
    assert!(!json!(records).to_string().contains("ptc_op_"), "no token, not even a wrong one");
}

#[tokio::test]
async fn the_trail_is_listed_by_page_and_by_filter_and_verifies_as_it_is_answered() {
    let site = Site::new().await;
    site.call("PUT", "/v1/services/catalog", catalog()).await.expect(201);
    site.call("PUT", &workload_path(STOREFRONT), workload(STOREFRONT)).await.expect(201);
    site.call("DELETE", "/v1/services/catalog", Value::Null).await.expect(200);
    let count = async |query: &str| {
        let listed = site.get(&format!("/v1/audit?{query}")).await.expect(200);
        listed.body["items"].as_array().unwrap().len()
    };
    assert_eq!(count("action=service").await, 2);
    assert_eq!(count("action=service.put").await, 1);
    assert_eq!(count("action=serv").await, 0, "a family is not a prefix of letters");
    assert_eq!(count("object=service/cat").await, 2);
    assert_eq!(count("author=bootstrap&outcome=done&action=workload").await, 1);
    assert_eq!(count("author=nobody").await, 0);
    assert_eq!(count("until=2001-01-01T00:00:00Z").await, 0);
    site.get("/v1/audit?outcome=maybe").await.expect(400).names("outcome", "maybe");
    site.get("/v1/audit?limit=0").await.expect(400).names("limit", "between");
    site.get("/v1/audit?whose=me").await.expect(400).names("whose", "unknown");

    let checkpoint = site.get("/v1/audit/checkpoint").await.expect(200).body;
    let tip: Tip = checkpoint["checkpoint"].as_str().unwrap().parse().unwrap();
    let genesis = Tip::genesis(site.core.index().position().epoch);
    let (mut verifier, mut after) = (Verifier::new(vec![tip]).from_beginning(genesis), "0".to_owned());
    loop {
        let request = site.request(&site.token, "GET", &format!("/v1/audit?limit=2&after={after}"), None);
        let (text, next) = site.text(request).await;
        // The bytes of each item, not what a parser makes of them.
        let page: std::collections::BTreeMap<String, Box<serde_json::value::RawValue>> =
            serde_json::from_str(&text).unwrap();
        let items: Vec<Box<serde_json::value::RawValue>> = serde_json::from_str(page["items"].get()).unwrap();
        for line in items {
            verifier.record(None, &Sealed::of_line(line.get()).unwrap_or_else(|| panic!("{line}")));
        }
        let Some(next) = next else { break };
        after = next;
    }
    let verdict = verifier.finish();
    assert!(verdict.is_whole() && verdict.records >= 4, "{verdict:?}");

    let newest = site.get("/v1/audit?order=newest&limit=1").await.expect(200).body;
    assert!(newest["items"][0]["seq"].as_u64() >= Some(tip.seq), "{newest}");
}

#[tokio::test]
async fn a_word_of_the_caller_s_is_no_action() {
    let site = Site::new().await;
    site.call_as("ptc_op_wrong", "audit.begin", "/", Value::Null).await.expect(401);
    let records = site.records("", "other /").await;
    let said: Vec<[&str; 5]> = records.iter().map(brief).filter(|r| r[4] == "refused").collect();
    assert_eq!(said, [["", "", "other", "other /", "refused"]]);
}
