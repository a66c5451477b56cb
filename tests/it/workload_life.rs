//! The life of a workload where it counts: at a running sidecar, suspended, resumed, and rid of a grant before its time.

use super::running::{DOMAIN, Site};

const AUDIENCE: &str = "portcullis-demo";

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_receipt_for_a_step_means_that_the_next_check_goes_by_it() {
    let site = Site::open().await;
    let sidecar = site.sidecar().await;
    let (storefront, id) = (site.token("storefront", AUDIENCE), format!("{DOMAIN}/storefront"));
    assert_eq!(sidecar.check("GET", "/catalog/1", &storefront).await.status, 200);

    let ask = ["grant", "request", "--workload", &id, "--resource", "payments/refunds", "--action", "write"];
    let ask = [&ask[..], &["--duration", "5m", "--reason", "ticket 7"]].concat();
    let requested = site.must("alice", &ask).await;
    let grant = requested["object"]["id"].as_str().unwrap();
    site.must("bob", &["grant", "approve", grant]).await;
    sidecar.comes_to(200, "POST", "/refunds/7", &storefront).await;

    let suspended = site.must("bob", &["workload", "suspend", &id, "--reason", "odd traffic", "--wait", "20s"]).await;
    assert_eq!(suspended["receipt"]["complete"], true, "{suspended}");
    // Who is not authenticated learns the family only; the record says which.
    for (method, path) in [("GET", "/catalog/1"), ("POST", "/refunds/7")] {
        let denied = sidecar.check(method, path, &storefront).await;
        assert_eq!((denied.status, denied.reason.as_str()), (401, "revoked"), "{path}");
    }
    let agent = site.token("agent", AUDIENCE);
    assert_eq!(sidecar.check("POST", "/refunds/7", &agent).await.status, 403, "nobody else is");

    // A later sidecar, and one that starts over, learn of it with everything else.
    sidecar.server.stop().await;
    let sidecar = site.sidecar().await;
    assert_eq!(sidecar.check("GET", "/catalog/1", &storefront).await.reason, "revoked");

    let resumed = site.must("bob", &["workload", "resume", &id, "--reason", "false alarm", "--wait", "20s"]).await;
    assert_eq!(resumed["receipt"]["complete"], true, "{resumed}");
    assert_eq!(sidecar.check("GET", "/catalog/1", &storefront).await.status, 200);
    assert_eq!(sidecar.check("POST", "/refunds/7", &storefront).await.status, 200, "its grant is not over yet");

    let dropped = site.must("alice", &["grant", "drop", grant, "--wait", "20s"]).await;
    assert_eq!(dropped["receipt"]["complete"], true, "{dropped}");
    let denied = sidecar.check("POST", "/refunds/7", &storefront).await;
    assert_eq!((denied.status, denied.reason.as_str()), (403, "entitlement.grant_expired"));
    assert_eq!(sidecar.check("GET", "/catalog/1", &storefront).await.status, 200);

    // A lifted revocation leaves the sidecar's state as if it had never been, also after a restart from disk.
    let revoked = site.must("bob", &["revoke", "workload", &id, "--wait", "20s"]).await;
    assert_eq!(sidecar.check("GET", "/catalog/1", &storefront).await.reason, "revoked");
    let revocation = revoked["object"]["id"].as_str().unwrap();
    let lifted = site.must("bob", &["revoke", "lift", revocation, "--reason", "a mistake", "--wait", "20s"]).await;
    assert_eq!(lifted["receipt"]["complete"], true, "{lifted}");
    assert_eq!(sidecar.check("GET", "/catalog/1", &storefront).await.status, 200);
    sidecar.server.stop().await;
    let sidecar = site.sidecar().await;
    assert_eq!(sidecar.check("GET", "/catalog/1", &storefront).await.status, 200);

    let retired = site.must("bob", &["workload", "retire", &id, "--reason", "replaced", "--wait", "20s"]).await;
    assert_eq!(retired["receipt"]["complete"], true, "{retired}");
    assert_eq!(sidecar.check("GET", "/catalog/1", &storefront).await.reason, "revoked");
    sidecar.server.stop().await;
    site.control.stop().await;
}
