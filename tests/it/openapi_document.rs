//! The REST API against its OpenAPI document, by schemathesis (PyPI): called in every way that the document allows and many
//! that it does not, a real control plane never fails, and never answers with anything that the document does not say.
//!
//! A test that needs schemathesis never passes without it: what cannot be installed fails the test, with the installer's
//! words. The same calls are made each time: the seed is fixed.

use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::process;

use super::envoy::root;
use super::running::{DOMAIN, Site};

/// How long the calls may take, beside what starting takes.
const LIMIT: Duration = Duration::from_secs(170);

/// Where schemathesis is: `PORTCULLIS_SCHEMATHESIS`, or where the installer puts it.
fn installed() -> PathBuf {
    // Empty: the installer has failed already. It is run again, so that the test can say why.
    if let Some(path) = std::env::var_os("PORTCULLIS_SCHEMATHESIS").filter(|path| !path.is_empty()) {
        return path.into();
    }
    let installer = root().join("tests/it/openapi/install.sh");
    let output = Command::new("bash").arg(&installer).stdin(std::process::Stdio::null()).output().expect("bash runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} failed:\n{said}", installer.display());
    String::from_utf8(output.stdout).expect("a UTF-8 path").trim().into()
}

/// Grants in different states of life.
async fn grants(site: &Site) -> Vec<String> {
    let workload = format!("{DOMAIN}/agent");
    let ask = ["grant", "request", "--workload", &workload, "--resource", "payments/refunds", "--action", "write"];
    let mut ids = Vec::new();
    for then in ["approve", "deny", "withdraw", "revoke", "", ""] {
        let asked = site.must("alice", &[&ask[..], &["--duration", "5m"]].concat()).await;
        let id = asked["object"]["id"].as_str().unwrap().to_owned();
        match then {
            "withdraw" | "revoke" => drop(site.must("alice", &["grant", then, &id]).await),
            "" => {}
            vote => drop(site.must("bob", &["grant", vote, &id]).await),
        }
        ids.push(id);
    }
    ids
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn schemathesis_finds_no_failure_and_nothing_undocumented() {
    let place = installed();
    // It calls without a credential more often than anybody may.
    let unlimited = "operators: { limits: { failures_per_minute: 0, calls_per_second: 0 } }\n";
    let site = Site::open_with(unlimited).await;
    site.must("alice", &["operator", "create", "carol", "--write-token", &site.path("carol")]).await;
    let config = std::fs::read_to_string(root().join("tests/it/openapi/schemathesis.toml")).unwrap();
    let ids: Vec<String> = grants(&site).await.iter().map(|id| json!(id).to_string()).collect();
    assert!(config.contains("[GRANTS]"));
    std::fs::write(site.path("schemathesis.toml"), config.replace("[GRANTS]", &format!("[{}]", ids.join(", "))))
        .unwrap();

    let url = format!("http://{}", site.api);
    let token = std::fs::read_to_string(site.path("alice")).unwrap();
    let status = async || -> Value {
        let status = reqwest::Client::builder().no_proxy().build().unwrap().get(format!("{url}/v1/status"));
        status.bearer_auth(token.trim()).send().await.unwrap().error_for_status().unwrap().json().await.unwrap()
    };
    let before = status().await["revision"].as_u64().unwrap();
    let calls = async |more: &[&str]| -> String {
        let mut calls = process::Command::new("python3");
        calls
            .env("PYTHONPATH", &place)
            .env("PYTHONDONTWRITEBYTECODE", "1")
            .arg(place.join("bin/schemathesis"))
            .args(["--config-file", &site.path("schemathesis.toml"), "run", &format!("{url}/openapi.json")])
            .args(["--url", &url, "--header", &format!("Authorization: Bearer {}", token.trim())])
            .args([
                "--checks",
                "all",
                "--max-examples",
                "8",
                "--seed",
                "1",
                "--workers",
                "1",
                "--request-timeout",
                "20",
            ])
            .args(["--suppress-health-check", "all", "--generation-database", "none", "--no-color"])
            .arg("--continue-on-failure")
            .args(more)
            .current_dir(site.dir.path())
            .kill_on_drop(true);
        let output = tokio::time::timeout(LIMIT, calls.output()).await.expect("it ends in time").expect("python3 runs");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
        said
    };
    // It remembers the names that it has seen, and must not revoke the operator that it calls as: that operation is called
    // apart, with other names.
    let phases = ["--phases", "examples,coverage,fuzzing,stateful", "--max-time", "70"];
    let said = calls(&[&phases[..], &["--exclude-operation-id", "operator_revoke"]].concat()).await;
    assert!(said.contains("Coverage") && said.contains("Stateful"), "{said}");
    // The examples come first, and each of them makes something.
    // It did reach what is behind the checks of form: things were written.
    let after = status().await["revision"].as_u64().unwrap();
    assert!(after > before + 5, "only {} changes were made: {said}", after - before);
    calls(&["--phases", "coverage,fuzzing", "--max-time", "10", "--include-operation-id", "operator_revoke"]).await;
    assert!(status().await["revision"].as_u64() >= Some(after));
    site.control.stop().await;
}
