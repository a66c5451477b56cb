//! The verbs around a grant's life as the real binary against a running control plane: limits, renewal, waiting, a denial
//! that is submitted, grant policies with their steps, break-glass and its review, operator policies. Each once as it should
//! be typed, for people and for programs, and with slips, which the messages name.

use std::time::Duration;

use serde_json::{Value, json};

use super::cli_site::{NOBODY, Operator, local};
use super::running::{DOMAIN, Site};

const GRANT_POLICIES: &str = r#"@id("refunds") @approvals("lead:1") @max_duration("10m") @requires("ticket")
permit(principal, action == Action::"request", resource in Service::"payments");
@id("bob")
permit(principal == Operator::"bob", action == Action::"approve", resource)
when { context.step == "lead" };
@id("glass") @max_duration("10m")
permit(principal == Operator::"alice", action == Action::"break_glass", resource);
"#;

fn agent() -> String {
    format!("{DOMAIN}/agent")
}

/// What both kinds of requests have in common.
fn what<'a>(verb: &'a str, agent: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let what = ["--resource", "payments/refunds", "--action", "write"];
    [&["grant", verb, "--workload", agent], &what[..], more].concat()
}

fn id(answer: &Value) -> String {
    answer["object"]["id"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn grants_are_limited_renewed_and_waited_for() {
    let site = Site::open().await;
    let (alice, bob) = (Operator::of(&site, "alice"), Operator::of(&site, "bob"));
    let agent = agent();
    let ask = |more: &[&'static str]| what("request", &agent, &[&["--duration", "5m"], more].concat());

    let limits = ["--uses", "3", "--source-network", "10.0.0.0/8", "--header", "x-run: 42", "--ticket", "OPS-7"];
    let limits = [&limits[..], &["--window", "mon-fri,08:00-18:00", "--call", "POST /refunds/7"]].concat();
    let told = ["10.0.0.0/8", "header x-run: 42", "mon,tue,wed,thu,fri 08:00-18:00 UTC", "POST /refunds/7", "OPS-7"];
    alice.says(&ask(&limits), &told).await;
    let limited = id(&alice.json(&ask(&limits)).await);
    let shown = alice.both(&["grant", "show", &limited], &["3: 0 spent, 0 at enforcement points, 3 left"]).await;
    assert_eq!(shown["use_counts"], json!({ "spent": 0, "held": 0, "left": 3 }), "{shown}");
    alice.refused(&ask(&["--uses", "0"]), &["uses"]).await;
    alice.refused(&ask(&["--source-network", "10.0.0"]), &["source_networks", "10.0.0"]).await;
    for (slip, named) in [
        (["--uses", "many"], "'many'"),
        (["--header", "nocolon"], "'nocolon'"),
        (["--window", "noon"], "'noon'"),
        (["--call", "POST"], "METHOD PATH"),
        (["--starts-at", "soon"], "'soon'"),
        (["--body-sha256", "00"], "--call"),
        (["--wait", "soon"], "'soon'"),
    ] {
        alice.mistyped(&ask(&slip), &[named]).await;
    }

    bob.says(&["grant", "approve", &limited], &["approved", "active until"]).await;
    let renewal = alice.both(&["grant", "renew", &limited, "--duration", "4m"], &["requested", &limited]).await;
    let renewed = &renewal["object"];
    assert_eq!((&renewed["renews"], &renewed["uses"]), (&json!(limited), &json!(3)), "{renewal}");
    assert_eq!((&renewed["duration_seconds"], &renewed["conditions"]), (&json!(240), &shown["conditions"]));
    alice.refused(&["grant", "renew", NOBODY], &[NOBODY]).await;
    alice.mistyped(&["grant", "renew", "not-an-id"], &["'not-an-id'", "not a grant id"]).await;

    for (vote, reason, status) in [("approve", "let me in", 0), ("deny", "let me in too", 1)] {
        let waiting = ask(&["--wait", "30s", "--no-reuse"]);
        let waiting = [&waiting[..], &["--reason", reason]].concat();
        let voting = async {
            let pending = ["grant", "list", "--state", "pending"];
            let found = loop {
                let listed = bob.json(&pending).await;
                let items = listed["items"].as_array().unwrap().clone();
                if let Some(found) = items.into_iter().find(|grant| grant["reason"] == reason) {
                    break found;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            };
            bob.says(&["grant", vote, found["id"].as_str().unwrap()], &[]).await;
        };
        let (waited, ()) = tokio::join!(alice.types(&waiting, &[]), voting);
        waited.names(status, &[]);
        let state = if status == 0 { "active" } else { "denied" };
        assert!(
            waited.stdout.contains("waiting for its approval") && waited.stdout.contains(state),
            "{}",
            waited.stdout
        );
    }

    alice.says(&["grant", "drop", &limited], &["dropped"]).await;
    let over = alice.both(&["grant", "show", &limited, "--watch"], &["ended", "by alice"]).await;
    assert_eq!(over["state"], "ended", "the last state ends the watch");
    alice.refused(&["grant", "show", NOBODY, "--watch"], &[NOBODY]).await;

    let (denial, other) = (site.path("denial.json"), site.path("other.json"));
    let request = json!({ "workload": agent, "resources": ["payments/refunds"], "actions": ["write"],
                          "duration_seconds": 60, "submit_to": "https://elsewhere.example" });
    std::fs::write(&denial, json!({ "reason": "entitlement.no_grant", "grant_request": request }).to_string()).unwrap();
    std::fs::write(&other, json!({ "reason": "credential" }).to_string()).unwrap();
    alice.says(&["grant", "request", "--from-denial", &denial, "--no-reuse"], &["requested"]).await;
    alice.mistyped(&["grant", "request", "--from-denial", &other], &["grant_request", "`credential`"]).await;
    alice.mistyped(&["grant", "request", "--from-denial", "/nowhere/d.json"], &["`/nowhere/d.json`"]).await;
    site.control.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn grant_policies_break_glass_and_reviews_from_the_command_line() {
    let site = Site::open().await;
    let (alice, bob) = (Operator::of(&site, "alice"), Operator::of(&site, "bob"));
    let (good, bad) = (site.path("grants.cedar"), site.path("bad-grants.cedar"));
    std::fs::write(&good, GRANT_POLICIES).unwrap();
    std::fs::write(&bad, GRANT_POLICIES.replace("@requires(\"ticket\")", "@requires(\"luck\")")).unwrap();

    local(&["grant-policy", "check", &good]).await.says(&["valid: 3 policies", "refunds"]);
    let checked = local(&["grant-policy", "check", &bad]).await;
    assert!(
        checked.status == 1 && checked.stdout.contains(&bad) && checked.stdout.contains("luck"),
        "{}",
        checked.stdout
    );
    let checked = local(&["grant-policy", "check", &bad, "--output", "json"]).await.json(1);
    assert_eq!(checked["valid"], false, "{checked}");
    alice.refused(&["grant-policy", "show"], &["grant policies"]).await;
    alice.says(&["grant-policy", "publish", &good, "--dry-run"], &["valid: 3 policies"]).await;
    alice.refused(&["grant-policy", "show"], &["grant policies"]).await;
    alice.refused(&["grant-policy", "publish", &bad], &["luck"]).await;
    alice.mistyped(&["grant-policy", "publish", "/nowhere/g.cedar"], &["`/nowhere/g.cedar`"]).await;
    let published = alice.both(&["grant-policy", "publish", &good], &["valid: 3 policies", "published"]).await;
    assert_eq!(published["object"]["author"], "alice", "{published}");
    let shown = alice.both(&["grant-policy", "show"], &["@id(\"refunds\")"]).await;
    assert_eq!(shown["text"], GRANT_POLICIES);

    let agent = agent();
    let ask = what("request", &agent, &["--duration", "5m", "--ticket", "OPS-7"]);
    alice.refused(&what("request", &agent, &["--duration", "5m"]), &["ticket"]).await;
    alice.says(&ask, &["grant policy `refunds`", "lead: 0 of 1, needs 1 more"]).await;
    let asked = id(&alice.json(&ask).await);
    bob.types(&["grant", "approve", &asked, "--step", "security"], &[]).await.names(1, &["`security` is no step"]);
    bob.says(&["grant", "approve", &asked, "--step", "lead"], &["approved", "active until"]).await;

    let glass = |more: &[&'static str]| {
        what("break-glass", &agent, &[&["--reason", "incident 7: refunds are stuck"], more].concat())
    };
    alice.says(&glass(&["--duration", "5m"]), &["break-glass", "next: portcullis review close"]).await;
    let broken = id(&alice.json(&glass(&["--duration", "5m"])).await);
    bob.refused(&glass(&["--duration", "5m"]), &["no grant policy permits it"]).await;
    alice.refused(&glass(&["--duration", "2h"]), &["duration_seconds"]).await;
    alice.refused(&glass(&["--duration", "5m", "--uses", "1"]), &["uses"]).await;
    alice.mistyped(&what("break-glass", &agent, &["--duration", "5m"]), &["--reason"]).await;

    bob.both(&["review", "list", "--state", "open"], &["GRANT", &broken, "open", "alice"]).await;
    bob.mistyped(&["review", "list", "--state", "perhaps"], &["'perhaps'"]).await;
    let open =
        bob.both(&["review", "show", &broken], &["incident 7", "it waits for somebody other than who asked"]).await;
    assert!(open.get("closed").is_none(), "{open}");
    bob.refused(&["review", "show", NOBODY], &[NOBODY]).await;
    bob.mistyped(&["review", "show", "not-an-id"], &["'not-an-id'"]).await;
    bob.mistyped(&["review", "close", &broken], &["--note"]).await;
    bob.refused(&["review", "close", &broken, "--note", " "], &["note"]).await;
    alice.refused(&["review", "close", &broken, "--note", "fine"], &["nobody reviews what they asked for"]).await;
    bob.refused(&["review", "close", NOBODY, "--note", "fine"], &[NOBODY]).await;
    bob.says(&["review", "close", &broken, "--note", "three refunds, all right"], &["closed the review of", &broken])
        .await;
    bob.refused(&["review", "close", &broken, "--note", "again"], &["`bob` closed this review"]).await;
    bob.both(&["review", "show", &broken], &["closed by bob", "three refunds, all right"]).await;
    let closed = bob.json(&["review", "list", "--state", "closed"]).await;
    assert_eq!(closed["items"][0]["grant"], json!(broken), "{closed}");
    site.control.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn operator_policies_from_the_command_line() {
    let site = Site::open().await;
    let (alice, bob) = (Operator::of(&site, "alice"), Operator::of(&site, "bob"));
    let file = |name: &str, text: &str| {
        let path = site.path(name);
        std::fs::write(&path, text).unwrap();
        path
    };
    let all = "@id(\"all\") permit(principal, action, resource);\n";
    let no_audit = "@id(\"no-audit\") forbid(principal == Operator::\"bob\", action in Action::\"audit\", resource);\n";
    let good = file("ops.cedar", &format!("{all}{no_audit}"));
    let bad = file("bad-ops.cedar", "@id(\"x\") permit(principal, action == Action::\"grant.fly\", resource);\n");
    let locked = file("locked.cedar", "@id(\"read\") permit(principal, action in Action::\"read\", resource);\n");

    // Text for a file, which is as wide as it is.
    let schema = local(&["operator-policy", "schema"]).await;
    assert!(schema.status == 0 && schema.stdout.contains("action \"grant.approve\""), "{}", schema.stdout);
    let schema = local(&["operator-policy", "schema", "--output", "json"]).await.json(0);
    assert!(schema["schema"].as_str().unwrap().contains("grant.approve"));
    local(&["operator-policy", "check", &good]).await.says(&["valid: 2 policies", "no-audit"]);
    let checked = local(&["operator-policy", "check", &bad]).await;
    assert!(
        checked.status == 1 && checked.stdout.contains(&bad) && checked.stdout.contains("fly"),
        "{}",
        checked.stdout
    );
    let default = alice.types(&["operator-policy", "show"], &[]).await;
    assert!(default.status == 0 && default.stdout.contains("@id(\"operators\")"), "{}", default.stdout);
    let default = alice.json(&["operator-policy", "show"]).await;
    assert!(default.get("author").is_none(), "nobody has published one: {default}");
    alice.says(&["operator-policy", "publish", &good, "--dry-run"], &["valid: 2 policies"]).await;
    bob.both(&["audit", "list"], &["SEQ"]).await;
    alice.refused(&["operator-policy", "publish", &bad], &["fly"]).await;
    alice.refused(&["operator-policy", "publish", &locked], &["`alice` could not publish"]).await;
    alice.mistyped(&["operator-policy", "publish", "/nowhere/o.cedar"], &["`/nowhere/o.cedar`"]).await;
    alice.both(&["operator-policy", "publish", &good], &["valid: 2 policies", "published"]).await;
    let shown = alice.both(&["operator-policy", "show"], &["no-audit"]).await;
    assert_eq!(shown["author"], "alice", "{shown}");
    bob.refused(&["audit", "list"], &["`audit.list`", "no-audit"]).await;
    alice.says(&["audit", "list"], &["SEQ"]).await;
    site.control.stop().await;
}
