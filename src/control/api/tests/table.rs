//! What the table of operations promises of all of them.

use axum::body::Body;
use axum::http::Request;
use serde_json::{Value, json};

use super::harness::{STOREFRONT, Site, workload, workload_path};
use crate::control::api::routes;

#[tokio::test]
async fn nothing_but_what_is_public_is_answered_without_a_token() {
    let site = Site::new().await;
    let public: Vec<_> = routes::table().into_iter().filter(|o| o.route.public).map(|o| o.route.path).collect();
    let published = ["/.well-known/jwks.json", "/.well-known/spiffe-bundle"];
    assert_eq!(public, [&["/openapi.json", "/v1/token"][..], &published].concat());
    for operation in routes::table() {
        let path = operation.route.path.replace("{id}", "x").replace("{name}", "x").replace("{kid}", "x");
        let request = Request::builder().method(operation.route.method.as_str()).uri(&path);
        let answer = site.send(request.body(Body::empty()).unwrap()).await;
        assert_eq!(answer.status == 401, !operation.route.public, "{path}: {answer:?}");
    }
}

#[tokio::test]
async fn the_document_is_served() {
    let site = Site::new().await;
    let request = Request::builder().uri("/openapi.json").body(Body::empty()).unwrap();
    let answer = site.send(request).await.expect(200);
    assert_eq!(answer.header("content-type"), "application/json");
    assert_eq!(answer.body["openapi"], "3.1.0");
    assert_eq!(answer.body["paths"]["/v1/grant-requests"]["post"]["x-portcullis-action"], "grant.request");
}

#[tokio::test]
async fn a_problem_points_to_the_member_that_is_wrong() {
    let site = Site::new().await;
    site.furnish().await;
    let mut of_label = workload(STOREFRONT);
    of_label["labels"] = json!({ "a.b/c": 7 });
    let mut missing = workload(STOREFRONT);
    missing.as_object_mut().unwrap().remove("owner");
    let mut mapping = workload(STOREFRONT);
    mapping["credentials"] = json!([{ "issuer": "test", "when": {}, "colour": "red" }]);
    let mut role = workload(STOREFRONT);
    role["roles"] = json!(["fine", "Not!"]);
    let cases =
        [(of_label, "/labels/a.b~1c"), (missing, "/owner"), (mapping, "/credentials/0/colour"), (role, "/roles/1")];
    for (body, pointer) in cases {
        let answer = site.call("PUT", &workload_path(STOREFRONT), body).await.expect(422);
        assert_eq!(answer.body["errors"][0]["pointer"], pointer, "{}", answer.body);
    }
    // What is not in the body is named, and not pointed to.
    let answer = site.call("GET", "/v1/workloads?limit=0", Value::Null).await.expect(400);
    assert_eq!(
        (&answer.body["errors"][0]["field"], &answer.body["errors"][0]["pointer"]),
        (&json!("limit"), &Value::Null)
    );
}
