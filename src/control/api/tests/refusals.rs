//! What is wrong with a request, and that the answer says where.

use axum::body::Body;
use axum::http::{Request, header};
use serde_json::{Value, json};

use super::harness::{STOREFRONT, Site, catalog, issuer, payments, refund_request, workload, workload_path};

#[tokio::test]
async fn nobody_gets_an_answer_without_an_operators_token() {
    let site = Site::new().await;
    for path in ["/v1/status", "/v1/grants", "/no/such/path"] {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let answer = site.send(request).await.expect(401);
        assert_eq!(answer.header("www-authenticate"), r#"Bearer realm="portcullis""#);
    }
    let wrong = format!("{}x", site.token);
    for value in [format!("Bearer {wrong}"), format!("Basic {}", site.token), site.token.clone(), "Bearer ".to_owned()]
    {
        let request = Request::get("/v1/status").header(header::AUTHORIZATION, &value).body(Body::empty()).unwrap();
        let answer = site.send(request).await.expect(401);
        assert!(answer.header("www-authenticate").contains("invalid_token"), "{value}");
    }
    let mut twice = site.request(&site.token, "GET", "/v1/status", None);
    twice.headers_mut().append(header::AUTHORIZATION, format!("Bearer {}", site.token).parse().unwrap());
    site.send(twice).await.expect(401);

    let carol = site.operator("carol").await;
    site.call_as(&carol, "GET", "/v1/status", Value::Null).await.expect(200);
    site.call("DELETE", "/v1/operators/carol", Value::Null).await.expect(204);
    site.call_as(&carol, "GET", "/v1/status", Value::Null).await.expect(401);
    site.call("DELETE", "/v1/operators/carol", Value::Null).await.expect(404);
    site.call("DELETE", "/v1/operators/bootstrap", Value::Null).await.expect(409);
    site.call("POST", "/v1/operators", json!({ "name": "carol" })).await.expect(409);
    site.call("POST", "/v1/operators", json!({ "name": "Not A Name" })).await.expect(422).names("name", "1 to 63");
    let listed = site.get("/v1/operators").await.body.to_string();
    assert!(!listed.contains("sha256") && !listed.contains("ptc_op_"), "{listed}");
}

#[tokio::test]
async fn requests_that_are_not_http_as_it_should_be() {
    let site = Site::new().await;
    site.get("/v1/nothing").await.expect(404);
    site.get("/v1/services/nothing").await.expect(404);
    let answer = site.call("PATCH", "/v1/services/catalog", json!({})).await.expect(405);
    for method in ["GET", "PUT", "DELETE"] {
        assert!(answer.header("allow").contains(method), "{:?}", answer.headers);
    }
    let mut text = site.request(&site.token, "PUT", "/v1/services/catalog", Some(&catalog()));
    text.headers_mut().insert(header::CONTENT_TYPE, "text/plain".parse().unwrap());
    site.send(text).await.expect(415);
    let large = json!({ "name": "catalog", "hosts": [], "routes": [], "x": "x".repeat(70_000) });
    site.call("PUT", "/v1/services/catalog", large).await.expect(413);
    for broken in ["{", "", "{\"name\":\"catalog\",\"routes\":[]} trailing", "\u{0}"] {
        let mut request = site.request(&site.token, "PUT", "/v1/services/catalog", None);
        *request.body_mut() = Body::from(broken);
        site.send(request).await.expect(400);
    }
    site.call("POST", "/v1/grants/x/revoke?wait=90s", json!({})).await.expect(400).names("wait", "`90s`");
    site.call("POST", "/v1/grants/x/revoke?wait=soon", json!({})).await.expect(400).names("wait", "`soon`");
    site.call("POST", "/v1/grants/x/revoke", json!({})).await.expect(404);
    assert_eq!(site.revision(), 0);
}

#[tokio::test]
async fn the_request_id_is_the_callers_or_a_new_one() {
    let site = Site::new().await;
    let mut request = site.request(&site.token, "GET", "/v1/status", None);
    request.headers_mut().insert("x-request-id", "abc-1".parse().unwrap());
    assert_eq!(site.send(request).await.header("x-request-id"), "abc-1");
    let mut request = site.request(&site.token, "GET", "/v1/status", None);
    request.headers_mut().insert("x-request-id", "a b".parse().unwrap());
    let made = site.send(request).await;
    assert!(uuid::Uuid::try_parse(made.header("x-request-id")).is_ok());
}

#[tokio::test]
async fn documents_that_are_wrong_name_the_field() {
    let site = Site::new().await;
    site.furnish().await;
    let before = site.revision();
    let storefront = workload_path(STOREFRONT);
    let storefront = storefront.as_str();
    let with = |mut document: Value, pointer: &str, value: Value| {
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        let parent = document.pointer_mut(parent).unwrap();
        match parent {
            Value::Array(items) => items[key.parse::<usize>().unwrap()] = value,
            _ => parent[key] = value,
        }
        document
    };
    let cases = [
        ("/v1/services/payments", with(payments(), "/colour", json!(1)), "colour", "unknown field"),
        ("/v1/services/payments", with(payments(), "/routes/1/colour", json!(1)), "routes[1].colour", "unknown field"),
        ("/v1/services/payments", json!({ "name": "payments" }), "routes", "missing field"),
        ("/v1/services/payments", with(payments(), "/routes/0/path", json!("no-slash")), "routes[0].path", "no-slash"),
        ("/v1/services/payments", with(payments(), "/routes/1/name", json!("refunds")), "routes[1].name", "twice"),
        ("/v1/services/payments", with(payments(), "/routes/0/methods", json!(["get"])), "routes[0].methods[0]", "get"),
        ("/v1/services/other", payments(), "name", "the path says `other`"),
        (
            "/v1/issuers/test",
            with(issuer("test", "test.example"), "/audiences", json!([])),
            "audiences",
            "at least one",
        ),
        (
            "/v1/issuers/test",
            with(issuer("test", "test.example"), "/trust_domain", json!("moved.example")),
            "trust_domain",
            "cannot change",
        ),
        ("/v1/issuers/second", issuer("second", "test.example"), "trust_domain", "issuer `test` vouches"),
        (storefront, workload("spiffe://test.example/other"), "id", "the path says"),
        (storefront, with(workload(STOREFRONT), "/kind", json!("robot")), "kind", "unknown variant"),
        (storefront, with(workload(STOREFRONT), "/owner", json!("")), "owner", "needs an owner"),
    ];
    for (path, document, field, text) in cases {
        site.call("PUT", path, document).await.expect(422).names(field, text);
    }
    let bad_key = with(issuer("test", "test.example"), "/jwks/keys/0/x", json!("AAAA"));
    let answer = site.call("PUT", "/v1/issuers/test", bad_key).await.expect(422);
    assert!(answer.body["errors"][0]["field"].as_str().unwrap().starts_with("jwks.keys[0]"), "{}", answer.body);
    assert_eq!(site.revision(), before, "nothing was written");
}

#[tokio::test]
async fn a_policy_that_does_not_validate_says_line_and_column() {
    let site = Site::new().await;
    site.furnish().await;
    let before = site.revision();
    let typo = "@id(\"a\") permit(principal, action, resource);\n@id(\"b\")\npermit(principal, action, resource)\n  when { context.nope };\n";
    for (text, line) in [(typo, 4), ("@id(\"a\") permit(principal, action, resource);\n@id(\"b\") permit(oops", 2)] {
        for dry_run in [false, true] {
            let answer =
                site.call("POST", "/v1/policies", json!({ "text": text, "dry_run": dry_run })).await.expect(422);
            let error = &answer.body["errors"][0];
            assert_eq!((&error["field"], &error["line"]), (&json!("text"), &json!(line)), "{}", answer.body);
            assert!(error["column"].as_u64().is_some_and(|c| c > 1), "{}", answer.body);
        }
    }
    let nameless = site.call("POST", "/v1/policies", json!({ "text": "permit(principal, action, resource);" })).await;
    nameless.expect(422).names("text", "@id");
    let valid =
        json!({ "text": "@id(\"x\") permit(principal, action == Action::\"audit\", resource);", "dry_run": true });
    let dry = site.call("POST", "/v1/policies", valid).await.expect(200);
    assert_eq!(dry.body["report"]["ids"], json!(["x"]));
    assert_eq!(dry.body["object"]["actions"], json!(["audit"]), "actions of routes are known");
    assert_eq!(site.revision(), before, "a dry run writes nothing");
}

#[tokio::test]
async fn requests_for_what_cannot_be_had() {
    let site = Site::new().await;
    site.furnish().await;
    let before = site.revision();
    let cases: &[(&str, Value, &str, &str)] = &[
        ("duration_seconds", json!(0), "duration_seconds", "between 1 and"),
        ("duration_seconds", json!(-5), "duration_seconds", "-5"),
        ("duration_seconds", json!(601), "duration_seconds", "at most 600"),
        ("workload", json!("spiffe://test.example/unknown"), "workload", "not registered"),
        ("workload", json!("https://test.example/x"), "workload", "spiffe://"),
        ("resources", json!([]), "resources", "1 to 64"),
        ("resources", json!(["nothing"]), "resources[0]", "there is no `nothing`"),
        ("resources", json!(["payments/nothing"]), "resources[0]", "there is no `payments/nothing`"),
        ("resources", json!(["payments/refunds", "a/b/c"]), "resources[1]", "a/b/c"),
        ("actions", json!(["audit"]), "actions[0]", "they have: delete, read, write"),
        ("path", json!("/reports/{*}"), "path", "no request to these resources"),
        ("path", json!("refunds"), "path", "refunds"),
        // When a grant starts and ends follows from its approval: nobody can ask for one that ends before it starts.
        ("not_before", json!("2099-01-01T00:00:00Z"), "not_before", "unknown field"),
        ("not_after", json!("2020-01-01T00:00:00Z"), "not_after", "unknown field"),
    ];
    for (field, value, named, text) in cases {
        let mut request = refund_request();
        request[*field] = value.clone();
        site.call("POST", "/v1/grant-requests", request).await.expect(422).names(named, text);
    }
    let mut whole = refund_request();
    (whole["resources"], whole["duration_seconds"]) = (json!(["payments"]), json!(601));
    let answer = site.call("POST", "/v1/grant-requests", whole.clone()).await.expect(422);
    answer.names("duration_seconds", "`payments` lasts at most 600");
    whole["duration_seconds"] = json!(600);
    assert_eq!(site.revision(), before);
    site.call("POST", "/v1/grant-requests", whole).await.expect(201);
}

#[tokio::test]
async fn revocations_of_what_is_not_there() {
    let site = Site::new().await;
    site.furnish().await;
    let cases = [
        (json!({ "kind": "token", "issuer": "tset", "jti": "x" }), "target.issuer", "no issuer `tset`"),
        (json!({ "kind": "key", "issuer": "test", "kid": "key-9" }), "target.kid", "no key `key-9`"),
        (json!({ "kind": "workload", "workload": "spiffe://test.example/typo" }), "target.workload", "not registered"),
        (json!({ "kind": "grant", "grant": uuid::Uuid::nil() }), "target.grant", "there is no grant"),
        (json!({ "kind": "grant", "grant": "not-an-id" }), "target", "`not-an-id` is not a grant id"),
        (
            json!({ "kind": "tokens_before", "workload": STOREFRONT, "before": "2099-01-01T00:00:00Z" }),
            "target.before",
            "future",
        ),
        (
            json!({ "kind": "certificate", "serial": "serial=0a" }),
            "target.serial",
            "`serial=0a` is not a serial number",
        ),
        (json!({ "kind": "certificate", "serial": "00" }), "target.serial", "not a serial number"),
        (json!({ "kind": "token", "issuer": "test", "jti": "x", "colour": 1 }), "target.colour", "unknown field"),
    ];
    for (target, field, text) in cases {
        site.call("POST", "/v1/revocations", json!({ "target": target })).await.expect(422).names(field, text);
    }
}
