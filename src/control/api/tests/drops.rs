//! Giving a grant back early: by who asked for it, by whose it is, and by nobody else.

use std::time::Duration;

use serde_json::{Value, json};

use super::harness::{STOREFRONT, Site};
use crate::clock::Clock;
use crate::control::api::extract::Caller;
use crate::control::api::grants::dropping;
use crate::control::principal::{Principal, PrincipalKind, Via};
use crate::object::{GrantState, Kind};

#[tokio::test]
async fn who_asked_for_a_grant_gives_it_back() {
    let site = Site::new().await;
    site.furnish().await;
    let (alice, bob) = (site.operator("alice").await, site.operator("bob").await);
    let grant = site.ask(&alice).await;
    let id = grant["id"].as_str().unwrap();
    let (drop, approve) = (format!("/v1/grants/{id}/drop?wait=1s"), format!("/v1/grant-requests/{id}/approve"));
    site.call_as(&alice, "POST", &drop, Value::Null).await.expect(409);
    site.call_as(&bob, "POST", &approve, json!({ "digest": grant["digest"] })).await.expect(200);
    site.clock.advance(Duration::from_secs(60));

    let refused = site.call_as(&bob, "POST", &drop, Value::Null).await.expect(403);
    assert!(refused.body["detail"].as_str().unwrap().contains("only `alice`"), "{}", refused.body);
    let revocations = site.core.index().list(Kind::Revocation).len();
    let dropped = site.call_as(&alice, "POST", &drop, json!({ "reason": "not needed" })).await.expect(200);
    let ended = &dropped.body["object"]["ended"];
    assert_eq!((&dropped.body["object"]["state"], &ended["by"]), (&json!("ended"), &json!("alice")));
    assert_eq!((&ended["at"], &ended["reason"]), (&json!(site.clock.now().wall), &json!("not needed")));
    assert_eq!(dropped.body["receipt"]["revision"], dropped.body["position"]);
    assert_eq!(dropped.body["receipt"]["complete"], true);
    assert_eq!(site.core.index().list(Kind::Revocation).len(), revocations, "nobody revoked anything");

    // Who lost the answer asks again; what is over stays so.
    site.clock.advance(Duration::from_secs(5));
    let again = site.call_as(&alice, "POST", &drop, Value::Null).await.expect(200);
    assert_eq!((&again.body["position"], &again.body["object"]), (&dropped.body["position"], &dropped.body["object"]));
    site.call_as(&bob, "POST", &format!("/v1/grants/{id}/revoke"), Value::Null).await.expect(409);
    site.call_as(&bob, "POST", &approve, json!({ "digest": grant["digest"] })).await.expect(409);
    site.call_as(&alice, "POST", "/v1/grants/nothing/drop", Value::Null).await.expect(404);
}

#[tokio::test]
async fn a_workload_gives_back_its_own_and_no_other() {
    let site = Site::new().await;
    site.furnish().await;
    let (alice, bob) = (site.operator("alice").await, site.operator("bob").await);
    let grant = site.ask(&alice).await;
    let id = grant["id"].as_str().unwrap();
    let approve = format!("/v1/grant-requests/{id}/approve");
    site.call_as(&bob, "POST", &approve, json!({ "digest": grant["digest"] })).await.expect(200);
    let as_workload = |workload: &str| Caller {
        principal: Principal::new(workload, PrincipalKind::Workload(workload.parse().unwrap()), Via::Workload),
        request_id: "1".into(),
    };
    let plan = |caller: &Caller| dropping(site.core.index(), id, caller, "", site.clock.now().wall);
    assert!(plan(&as_workload("spiffe://test.example/other")).is_err());
    // A person of that name is no workload.
    let person =
        Caller { principal: Principal::new(STOREFRONT, PrincipalKind::Person, Via::Oidc), ..as_workload(STOREFRONT) };
    assert!(plan(&person).is_err());
    let (dropped, _) = plan(&as_workload(STOREFRONT)).unwrap().answer;
    assert_eq!((dropped.state, &*dropped.ended.unwrap().by), (GrantState::Ended, STOREFRONT));
}
