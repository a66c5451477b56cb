//! Key sets over https: what is fetched, what is refused, and what stays.

use std::time::Duration;

use serde_json::json;

use super::endpoint::{Ca, Say};
use super::harness::{Site, config, eventually, jwk, jwks, oidc};
use crate::control::keys::{AUTHOR, KeysConfig};
use crate::control::store::{Expect, Write};
use crate::object::{Kind, Object};
use crate::wire::Revision;

fn jwks_uri(url: &str) -> serde_json::Value {
    json!({ "type": "jwks_uri", "url": url })
}

#[tokio::test]
async fn a_key_set_is_fetched_rotated_and_emptied() {
    let ca = Ca::new();
    let endpoint = ca.endpoint().await;
    endpoint.serve_json("/keys", &jwks(&["one"]));
    let site = Site::new(config(&ca)).await;
    site.put(&oidc("idp", &jwks_uri(&endpoint.url("/keys")))).await;
    site.comes_to_kids("idp", &["one"]).await;
    let log = site.core.index().since(Revision(0), 9).unwrap();
    let authors: Vec<_> = log.iter().map(|l| l.commit.author.to_string()).collect();
    assert_eq!(authors, ["operator", AUTHOR], "an ordinary commit, and one only");

    endpoint.serve_json("/keys", &jwks(&["one", "two"]));
    site.comes_to_kids("idp", &["one", "two"]).await;
    endpoint.serve_json("/keys", &json!({ "keys": [] }));
    site.comes_to_kids("idp", &[]).await;
    eventually("a reading", || site.status("idp").last_success.is_some()).await;
    let status = site.status("idp");
    assert_eq!((status.source, status.failures, status.last_error), ("jwks_uri", 0, None));
    assert!(status.next_refresh.is_some() && status.last_change.is_some());
    let text = site.metrics.exposition().render();
    assert!(text.contains("portcullis_key_fetches_total{result=\"changed\",source=\"jwks_uri\"} 3\n"), "{text}");
}

#[tokio::test]
async fn what_is_no_key_set_leaves_the_keys_that_are_held() {
    let ca = Ca::new();
    let endpoint = ca.endpoint().await;
    endpoint.serve_json("/keys", &jwks(&["good"]));
    let site = Site::new(KeysConfig { max_bytes: 8 << 10, timeout: Duration::from_secs(1), ..config(&ca) }).await;
    site.put(&oidc("idp", &jwks_uri(&endpoint.url("/keys")))).await;
    site.comes_to_kids("idp", &["good"]).await;
    let revision = site.core.index().position().revision;

    let mut weak = jwk("weak", "sig");
    weak["x"] = json!("AAAA");
    let private = json!({ "keys": [{ "kty": "oct", "kid": "k", "k": "AAAA" }] });
    let doubled = r#"{"keys":[{"kty":"EC","kid":"a","kid":"b"}]}"#;
    for (say, result, part) in [
        (Say::Status(500), "bad_answer", "answered 500"),
        (Say::Redirect(endpoint.url("/elsewhere")), "bad_answer", "redirects are not followed"),
        (Say::Body("x".repeat(9000)), "bad_answer", "more than 8192 bytes"),
        (Say::Endless(64 << 10), "bad_answer", "more than 8192 bytes"),
        (Say::Body("not json".to_owned()), "invalid", "strict JSON"),
        (Say::Body(doubled.to_owned()), "invalid", "duplicate member"),
        (Say::Body(r#"{"keys":null}"#.to_owned()), "invalid", "not an array"),
        (Say::Body(private.to_string()), "invalid", "private or symmetric"),
        (Say::Body(json!({ "keys": [weak] }).to_string()), "invalid", "jwks.keys[0].x"),
        (Say::Body(json!({ "keys": vec![json!({}); 101] }).to_string()), "invalid", "at most 100"),
        (Say::Silence, "unreachable", "no whole answer within 1 s"),
    ] {
        let before = site.status("idp").failures;
        endpoint.say("/keys", say);
        // The first of two may have been on its way before.
        eventually("two more failures", || {
            site.keys.key_is_missing("idp");
            site.status("idp").failures >= before + 2
        })
        .await;
        site.fails_with("idp", result, part).await;
        assert_eq!(site.kids("idp"), ["good"], "{part}");
    }
    endpoint.serve_json("/elsewhere", &jwks(&["stolen"]));
    assert_eq!(site.core.index().position().revision, revision, "nothing was committed");
}

#[tokio::test]
async fn only_listed_hosts_and_vetted_addresses_are_asked() {
    let ca = Ca::new();
    let endpoint = ca.endpoint().await;
    endpoint.serve_json("/keys", &jwks(&["one"]));
    let by_name = format!("https://localhost:{}/keys", endpoint.address.port());
    let allowing = |hosts: &[&str], networks: &[&str]| {
        let mut config = config(&ca);
        config.allowed.hosts = hosts.iter().map(|h| h.parse().unwrap()).collect();
        config.allowed.networks = networks.iter().map(|n| n.parse().unwrap()).collect();
        config
    };
    for (config, url, part) in [
        (allowing(&[], &["127.0.0.0/8"]), endpoint.url("/keys"), "`127.0.0.1` is not in `keys.allowed_hosts`"),
        (allowing(&["*.example.org"], &["127.0.0.0/8"]), by_name.clone(), "`localhost` is not in `keys.allowed_hosts`"),
        (allowing(&["127.0.0.1"], &[]), endpoint.url("/keys"), "neither public nor in `keys.allowed_networks`"),
        (allowing(&["localhost"], &["10.0.0.0/8"]), by_name.clone(), "neither public nor in `keys.allowed_networks`"),
    ] {
        let site = Site::new(config).await;
        site.put(&oidc("idp", &jwks_uri(&url))).await;
        site.fails_with("idp", "refused", part).await;
        assert_eq!(site.kids("idp"), [""; 0]);
    }
    assert_eq!(endpoint.times_asked(), 0, "nothing was connected to");
    let site = Site::new(allowing(&["localhost"], &["127.0.0.0/8"])).await;
    site.put(&oidc("idp", &jwks_uri(&by_name))).await;
    site.comes_to_kids("idp", &["one"]).await;
}

#[tokio::test]
async fn a_server_that_another_ca_vouches_for_is_not_believed() {
    let (ours, theirs) = (Ca::new(), Ca::new());
    let endpoint = theirs.endpoint().await;
    endpoint.serve_json("/keys", &jwks(&["one"]));
    let site = Site::new(config(&ours)).await;
    site.put(&oidc("idp", &jwks_uri(&endpoint.url("/keys")))).await;
    site.fails_with("idp", "unreachable", "certificate").await;
    assert_eq!(endpoint.times_asked(), 0);
}

#[tokio::test]
async fn discovery_takes_the_metadata_of_that_very_issuer_only() {
    let ca = Ca::new();
    let endpoint = ca.endpoint().await;
    endpoint.serve_json("/tenant/keys", &jwks(&["one"]));
    let site = Site::new(config(&ca)).await;
    let mut issuer = oidc("idp", &json!({ "type": "discovery" }));
    issuer["issuer"] = json!(endpoint.url("/tenant"));
    let metadata = "/tenant/.well-known/openid-configuration";
    let good = json!({ "issuer": endpoint.url("/tenant"), "jwks_uri": endpoint.url("/tenant/keys") });
    let other = |member: &str, value: &str| {
        let mut changed = good.clone();
        changed[member] = json!(value);
        Say::Body(changed.to_string())
    };
    endpoint.say(metadata, Say::Status(404));
    site.put(&issuer).await;
    for (say, result, part) in [
        (Say::Status(404), "bad_answer", "answered 404"),
        (other("issuer", &endpoint.url("/tenant/")), "invalid", "not that of"),
        (other("issuer", &endpoint.url("")), "invalid", "not that of"),
        (Say::Body(json!({ "issuer": endpoint.url("/tenant") }).to_string()), "invalid", "no `jwks_uri`"),
        (other("jwks_uri", "http://127.0.0.1/keys"), "refused", "https URL"),
        (other("jwks_uri", "https://169.254.169.254/keys"), "refused", "`169.254.169.254` is not in"),
        (other("jwks_uri", "file:///etc/passwd"), "refused", "https URL"),
    ] {
        endpoint.say(metadata, say);
        site.keys.key_is_missing("idp");
        site.fails_with("idp", result, part).await;
        assert_eq!(site.kids("idp"), [""; 0], "{part}");
    }
    endpoint.serve_json(metadata, &good);
    site.comes_to_kids("idp", &["one"]).await;
}

#[tokio::test]
async fn one_bad_issuer_delays_no_other_and_sets_are_never_merged() {
    let ca = Ca::new();
    let endpoint = ca.endpoint().await;
    endpoint.say("/slow", Say::Silence);
    endpoint.serve_json("/a", &jwks(&["of-a"]));
    endpoint.serve_json("/b", &jwks(&["of-b"]));
    let site = Site::new(KeysConfig { timeout: Duration::from_secs(60), ..config(&ca) }).await;
    for name in ["slow", "a", "b"] {
        site.put(&oidc(name, &jwks_uri(&endpoint.url(&format!("/{name}"))))).await;
    }
    site.comes_to_kids("a", &["of-a"]).await;
    site.comes_to_kids("b", &["of-b"]).await;
    endpoint.serve_json("/a", &jwks(&["of-a-2"]));
    site.comes_to_kids("a", &["of-a-2"]).await;
    assert_eq!(site.kids("b"), ["of-b"]);
    assert_eq!(site.kids("slow"), [""; 0]);
}

#[tokio::test]
async fn issuers_are_followed_while_running_and_operators_edits_stay() {
    let ca = Ca::new();
    let endpoint = ca.endpoint().await;
    endpoint.serve_json("/one", &jwks(&["one"]));
    endpoint.serve_json("/two", &jwks(&["two"]));
    let site = Site::new(config(&ca)).await;
    let mut issuer = oidc("idp", &jwks_uri(&endpoint.url("/one")));
    site.put(&issuer).await;
    site.comes_to_kids("idp", &["one"]).await;

    // Another source, and another field.
    issuer["keys_from"] = jwks_uri(&endpoint.url("/two"));
    issuer["audiences"] = json!(["others"]);
    site.put(&issuer).await;
    site.comes_to_kids("idp", &["two"]).await;
    assert_eq!(site.issuer("idp").unwrap().audiences, ["others"]);
    let mut edited = site.issuer("idp").unwrap();
    edited.max_lifetime_seconds = 60;
    let write = Write::put(&Object::Issuer(Box::new(edited)), Expect::Any);
    site.core.commit(crate::control::store::Unit::new("operator", "", "").with(write)).await.unwrap();
    endpoint.serve_json("/two", &jwks(&["three"]));
    site.comes_to_kids("idp", &["three"]).await;
    assert_eq!(site.issuer("idp").unwrap().max_lifetime_seconds, 60);

    // No source any more: nobody touches the keys.
    let asked = {
        let mut plain = site.issuer("idp").unwrap();
        plain.keys_from = None;
        let write = Write::put(&Object::Issuer(Box::new(plain)), Expect::Any);
        site.core.commit(crate::control::store::Unit::new("operator", "", "").with(write)).await.unwrap();
        eventually("let go", || site.keys.status("idp").is_none()).await;
        endpoint.times_asked()
    };
    assert_eq!(site.kids("idp"), ["three"]);
    site.put(&issuer).await;
    eventually("taken up again", || endpoint.times_asked() > asked).await;
    site.comes_to_kids("idp", &["three"]).await;

    site.delete("idp").await;
    endpoint.serve_json("/two", &jwks(&["four"]));
    eventually("let go", || site.keys.status("idp").is_none()).await;
    assert!(site.core.index().get(Kind::Issuer, "idp").is_none(), "and never put back");
}

#[tokio::test]
async fn an_unknown_key_id_has_the_source_asked_once_a_cooldown() {
    let ca = Ca::new();
    let endpoint = ca.endpoint().await;
    endpoint.serve_json("/keys", &jwks(&["one"]));
    let cooldown = Duration::from_secs(2);
    let hour = Duration::from_secs(3600);
    let site = Site::new(KeysConfig { refresh_interval: hour, unknown_kid_cooldown: cooldown, ..config(&ca) }).await;
    site.put(&oidc("idp", &jwks_uri(&endpoint.url("/keys")))).await;
    site.comes_to_kids("idp", &["one"]).await;
    endpoint.serve_json("/keys", &jwks(&["one", "two"]));
    site.keys.key_is_missing("nobody");
    site.keys.key_is_missing("idp");
    eventually("the new key", || {
        site.keys.key_is_missing("idp");
        site.kids("idp") == ["one", "two"]
    })
    .await;
    // Counted from before the first answer, which may have taken its time on a busy machine.
    assert!(endpoint.first_gap() >= cooldown / 2, "{:?}", endpoint.first_gap());
    assert_eq!(endpoint.times_asked(), 2, "however often it was reported");
}

#[tokio::test]
async fn a_file_is_read_again_when_it_changes() {
    let ca = Ca::new();
    let dir = tempfile::tempdir().unwrap();
    let put = |text: &str| {
        std::fs::write(dir.path().join("new"), text).unwrap();
        std::fs::rename(dir.path().join("new"), dir.path().join("idp.json")).unwrap();
    };
    let site = Site::new(KeysConfig { directory: Some(dir.path().to_owned()), ..config(&ca) }).await;
    site.put(&oidc("idp", &json!({ "type": "file", "name": "idp.json" }))).await;
    site.fails_with("idp", "unreachable", "file `idp.json` of the key directory").await;
    put(&jwks(&["one"]).to_string());
    site.comes_to_kids("idp", &["one"]).await;
    put("{");
    site.fails_with("idp", "invalid", "strict JSON").await;
    assert_eq!(site.kids("idp"), ["one"]);
    put(&jwks(&["two"]).to_string());
    site.comes_to_kids("idp", &["two"]).await;
    put(&json!({ "keys": [] }).to_string());
    site.comes_to_kids("idp", &[]).await;
    let nowhere = Site::new(config(&ca)).await;
    nowhere.put(&oidc("idp", &json!({ "type": "file", "name": "idp.json" }))).await;
    nowhere.fails_with("idp", "refused", "`keys.directory` is not configured").await;
}
