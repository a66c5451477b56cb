//! SPIFFE bundle endpoints: who may answer, and which bundle replaces which.

use std::time::Duration;

use serde_json::{Value, json};

use super::endpoint::Ca;
use super::harness::{Site, bundle, config, eventually, jwk, spiffe};
use crate::control::keys::KeysConfig;

const ENDPOINT: &str = "spiffe://td.example/bundles";

fn https_spiffe(url: &str, endpoint_bundle: Option<&Value>) -> Value {
    let mut source = json!({ "type": "https_spiffe", "url": url, "endpoint_id": ENDPOINT });
    if let Some(bundle) = endpoint_bundle {
        source["endpoint_bundle"] = bundle.clone();
    }
    source
}

#[tokio::test]
async fn an_older_bundle_never_replaces_a_newer_one_and_an_empty_one_revokes() {
    let ca = Ca::new();
    let endpoint = ca.endpoint().await;
    endpoint.serve_json("/bundle", &bundle(&["seven"], 7));
    let site = Site::new(config(&ca)).await;
    site.put(&spiffe("td", &json!({ "type": "https_web", "url": endpoint.url("/bundle") }))).await;
    site.comes_to_kids("td", &["seven"]).await;
    eventually("its sequence is shown", || site.status("td").sequence == Some(7)).await;
    // The hint of ten seconds holds: only an unknown key id has it asked sooner.
    let next = |body: &Value| {
        endpoint.serve_json("/bundle", body);
        site.keys.key_is_missing("td");
    };
    next(&bundle(&["six"], 6));
    site.fails_with("td", "rollback", "has `spiffe_sequence` 6, and 7 is held").await;
    assert_eq!(site.kids("td"), ["seven"]);
    next(&json!({ "keys": [], "spiffe_sequence": 6 }));
    let failures = site.status("td").failures;
    eventually("refused again", || site.status("td").failures > failures).await;
    assert_eq!(site.kids("td"), ["seven"], "an old empty one does not revoke");
    next(&json!({ "keys": [jwk("x", "jwt-svid")], "spiffe_sequence": "8" }));
    site.fails_with("td", "invalid", "`spiffe_sequence` is not a whole number").await;
    next(&bundle(&["eight"], 8));
    site.comes_to_kids("td", &["eight"]).await;
    next(&json!({ "keys": [], "spiffe_sequence": 9 }));
    site.comes_to_kids("td", &[]).await;
}

#[tokio::test]
async fn an_endpoint_with_the_right_svid_is_believed_and_the_bundle_then_vouches_for_it() {
    let (first, second) = (Ca::new(), Ca::new());
    let endpoint = first.endpoint_with_id(ENDPOINT).await;
    let mut with_authority = bundle(&["one"], 1);
    with_authority["keys"].as_array_mut().unwrap().push(first.authority());
    endpoint.serve_json("/bundle", &with_authority);
    let initial = json!({ "keys": [first.authority()] });
    let site = Site::new(config(&second)).await;
    site.put(&spiffe("td", &https_spiffe(&endpoint.url("/bundle"), Some(&initial)))).await;
    site.comes_to_kids("td", &["one"]).await;

    // The authority is replaced: the endpoint it vouched for is not believed any more, although the initial bundle
    // still names it.
    let mut rotated = bundle(&["two"], 2);
    rotated["keys"].as_array_mut().unwrap().push(second.authority());
    endpoint.serve_json("/bundle", &rotated);
    site.keys.key_is_missing("td");
    site.comes_to_kids("td", &["two"]).await;
    endpoint.serve_json("/bundle", &bundle(&["three"], 3));
    site.keys.key_is_missing("td");
    site.fails_with("td", "unreachable", "certificate").await;
    assert_eq!(site.kids("td"), ["two"]);
}

#[tokio::test]
async fn an_endpoint_with_another_svid_is_not_asked_for_anything() {
    let (ca, stranger) = (Ca::new(), Ca::new());
    let initial = json!({ "keys": [ca.authority()] });
    let site = Site::new(config(&ca)).await;
    let named = |ids: &[&str]| ids.iter().map(|id| rcgen::SanType::URI((*id).try_into().unwrap())).collect::<Vec<_>>();
    let cases = [
        ("other-id", ca.endpoint_with_id("spiffe://td.example/other").await),
        ("other-domain", ca.endpoint_with_id("spiffe://evil.example/bundles").await),
        ("two-ids", ca.endpoint_as(named(&[ENDPOINT, "spiffe://td.example/other"])).await),
        ("web-certificate", ca.endpoint().await),
        ("other-authority", stranger.endpoint_with_id(ENDPOINT).await),
    ];
    for (name, endpoint) in &cases {
        endpoint.serve_json("/bundle", &bundle(&["stolen"], 1));
        let mut issuer = spiffe(name, &https_spiffe(&endpoint.url("/bundle"), Some(&initial)));
        issuer["trust_domain"] = json!(format!("{name}.example"));
        site.put(&issuer).await;
        site.fails_with(name, "unreachable", "127.0.0.1").await;
        assert_eq!(site.kids(name), [""; 0], "{name}");
        assert_eq!(endpoint.times_asked(), 0, "{name}");
    }
    let (_, endpoint) = &cases[0];
    site.put(&spiffe("td", &https_spiffe(&endpoint.url("/bundle"), None))).await;
    site.fails_with("td", "refused", "neither `jwks` nor `keys_from.endpoint_bundle`").await;
}

#[tokio::test]
async fn a_domain_that_revoked_itself_is_not_revived_by_the_authority_it_revoked() {
    revokes_itself(&json!({ "keys": [], "spiffe_sequence": 1 }), &[]).await;
    revokes_itself(&json!({ "keys": [] }), &[]).await;
    // Without an authority, but not empty.
    revokes_itself(&bundle(&["left"], 1), &["left"]).await;
}

async fn revokes_itself(last: &Value, left: &[&str]) {
    let ca = Ca::new();
    let endpoint = ca.endpoint_with_id(ENDPOINT).await;
    let initial = json!({ "keys": [ca.authority()] });
    endpoint.serve_json("/bundle", last);
    let site = Site::new(config(&ca)).await;
    site.put(&spiffe("td", &https_spiffe(&endpoint.url("/bundle"), Some(&initial)))).await;
    eventually("emptied", || site.issuer("td").is_some_and(|i| i.keys_fetched)).await;
    endpoint.serve_json("/bundle", &bundle(&["again"], 2));
    site.keys.key_is_missing("td");
    site.fails_with("td", "refused", "has no X.509 authority").await;
    assert_eq!(site.kids("td"), left);
}

#[tokio::test]
async fn other_contents_under_the_same_sequence_are_an_error() {
    let ca = Ca::new();
    let endpoint = ca.endpoint().await;
    let held = bundle(&["a", "b"], 7);
    endpoint.serve_json("/bundle", &held);
    let site = Site::new(config(&ca)).await;
    site.put(&spiffe("td", &json!({ "type": "https_web", "url": endpoint.url("/bundle") }))).await;
    site.comes_to_kids("td", &["a", "b"]).await;
    endpoint.serve_json("/bundle", &bundle(&["c"], 7));
    site.keys.key_is_missing("td");
    site.fails_with("td", "rollback", "`spiffe_sequence` 7, which is held with other contents").await;
    assert_eq!(site.kids("td"), ["a", "b"]);
    // In another order they are the same contents.
    let mut reordered = held.clone();
    reordered["keys"].as_array_mut().unwrap().reverse();
    endpoint.serve_json("/bundle", &reordered);
    site.keys.key_is_missing("td");
    eventually("good again", || site.status("td").failures == 0).await;
    assert_eq!(site.kids("td"), ["a", "b"]);
}

#[tokio::test]
async fn a_bundle_in_a_file_does_not_go_back_either() {
    let ca = Ca::new();
    let dir = tempfile::tempdir().unwrap();
    let put = |body: &Value| {
        std::fs::write(dir.path().join("new"), body.to_string()).unwrap();
        std::fs::rename(dir.path().join("new"), dir.path().join("td.json")).unwrap();
    };
    put(&bundle(&["seven"], 7));
    let site = Site::new(KeysConfig { directory: Some(dir.path().to_owned()), ..config(&ca) }).await;
    site.put(&spiffe("td", &json!({ "type": "file", "name": "td.json" }))).await;
    site.comes_to_kids("td", &["seven"]).await;
    put(&bundle(&["six"], 6));
    site.fails_with("td", "rollback", "has `spiffe_sequence` 6, and 7 is held").await;
    assert_eq!(site.kids("td"), ["seven"]);
    put(&bundle(&["eight"], 8));
    site.comes_to_kids("td", &["eight"]).await;
}

#[tokio::test]
async fn the_publisher_says_how_often_it_is_asked() {
    let ca = Ca::new();
    let endpoint = ca.endpoint().await;
    endpoint.serve_json("/bundle", &bundle(&["one"], 1));
    let mut plain = bundle(&["one"], 1);
    plain.as_object_mut().unwrap().remove("spiffe_refresh_hint");
    endpoint.serve_json("/plain", &plain);
    let hour = Duration::from_secs(3600);
    let site = Site::new(KeysConfig { refresh_interval: hour, ..config(&ca) }).await;
    let wait = async |name: &str, path: &str| {
        site.put(&spiffe(name, &json!({ "type": "https_web", "url": endpoint.url(path) }))).await;
        site.comes_to_kids(name, &["one"]).await;
        let seconds = || {
            let status = site.status(name);
            let (next, last) = (status.next_refresh?, status.last_success?);
            Some(next.as_secs() - last.as_secs())
        };
        eventually("the next look is planned", || seconds().is_some()).await;
        seconds().unwrap()
    };
    let hinted = wait("td", "/bundle").await;
    assert!((8..=11).contains(&hinted), "its hint is 10 s, not {hinted}");
    let unhinted = wait("plain", "/plain").await;
    assert!((3239..=3601).contains(&unhinted), "the interval is an hour, not {unhinted} s");
}
