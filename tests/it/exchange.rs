//! Token exchange from one end to the other: the command line, a control plane, a sidecar asked as Envoy asks, and npm
//! `jose`, which knows nothing of us, at the published key set.

use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::{Value, json};

use super::envoy::root;
use super::oidc_provider::installed;
use super::running::{DOMAIN, Site};

const ISSUER: &str = "https://control.test";

async fn site() -> Site {
    Site::open_with(&format!("tokens: {{ issuer: '{ISSUER}' }}\n")).await
}

impl Site {
    /// Asks for a token for `agent`; answers the exit status and what was said.
    async fn exchange(&self, args: &[&str]) -> (i32, Value) {
        std::fs::write(self.path("agent.jwt"), self.token("agent", ISSUER)).unwrap();
        let server = format!("http://{}", self.api);
        let subject = self.path("agent.jwt");
        let mut all = vec!["credential", "exchange", "--server", &server, "--subject-token-file", &subject];
        all.extend(args);
        all.extend(["--output", "json"]);
        let all: Vec<String> = all.into_iter().map(str::to_owned).collect();
        let run = move || super::running::portcullis(&all.iter().map(String::as_str).collect::<Vec<_>>());
        let output = tokio::task::spawn_blocking(run).await.unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.code().unwrap(), serde_json::from_slice(&output.stdout).unwrap_or(Value::String(said)))
    }

    /// Approves a request as bob.
    async fn approve(&self, request: &Value) -> Value {
        let grant = &request["object"];
        self.must("bob", &["grant", "approve", grant["id"].as_str().unwrap()]).await
    }
}

/// What a refused exchange says to ask for, posted as it stands.
async fn post(site: &Site, request: &Value) -> Value {
    let token = std::fs::read_to_string(site.path("alice")).unwrap();
    let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().unwrap();
    let url = format!("http://{}/v1/grant-requests", site.api);
    let answer = client.post(url).bearer_auth(token.trim()).json(request).send().await.unwrap();
    assert_eq!(answer.status(), 201);
    answer.json().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_denied_exchange_becomes_a_token_that_does_what_it_says_and_dies_with_its_grant() {
    portcullis::tls::install_provider();
    let site = site().await;
    let sidecar = site.sidecar().await;
    let wanted = ["--audience", "payments", "--scope", "write"];
    let (status, refused) = site.exchange(&wanted).await;
    assert_eq!((status, &refused["error"]), (1, &json!("access_denied")), "{refused}");
    assert_eq!(refused["reason"], json!("entitlement.no_grant"));

    let asked = post(&site, &refused["grant_request"]).await;
    let (status, waits) = site.exchange(&wanted).await;
    assert_eq!((status, &waits["error"]), (1, &json!("authorization_pending")), "{waits}");
    let granted = site.approve(&asked).await;
    let (status, issued) = site.exchange(&wanted).await;
    assert_eq!(status, 0, "{issued}");
    assert_eq!(issued["grant_id"], granted["object"]["id"]);
    let token = issued["access_token"].as_str().unwrap();

    let allowed = sidecar.comes_to(200, "POST", "/refunds/7", token).await;
    let upstream = |name: &str| allowed.upstream.iter().find(|(n, _)| n == name).map(|(_, value)| value.clone());
    assert_eq!(upstream("x-portcullis-grant").as_deref(), issued["grant_id"].as_str());
    assert_eq!(upstream("x-portcullis-workload"), Some(format!("{DOMAIN}/agent")));
    let read = sidecar.check("GET", "/refunds/7", token).await;
    assert_eq!((read.status, read.reason.as_str()), (403, "entitlement.scope"));
    let elsewhere = sidecar.check("GET", "/catalog/1", token).await;
    assert_eq!((elsewhere.status, elsewhere.reason.as_str()), (401, "credential"), "it is for another service");

    site.must("bob", &["grant", "revoke", issued["grant_id"].as_str().unwrap(), "--wait", "10s"]).await;
    let over = sidecar.check("POST", "/refunds/7", token).await;
    assert_eq!((over.status, over.reason.as_str()), (403, "revoked.grant"));
    let (_, refused) = site.exchange(&wanted).await;
    assert_eq!(refused["reason"], json!("revoked.grant"));

    sidecar.server.stop().await;
    site.control.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stranger_verifies_a_token_by_the_published_keys_before_and_after_a_rotation() {
    portcullis::tls::install_provider();
    let site = site().await;
    let request = json!({
        "workload": format!("{DOMAIN}/agent"), "resources": ["payments"], "actions": ["write"], "duration_seconds": 600,
    });
    site.approve(&post(&site, &request).await).await;
    let (status, first) = site.exchange(&["--audience", "payments"]).await;
    assert_eq!(status, 0, "{first}");
    let sidecar = site.sidecar().await;
    let first = first["access_token"].as_str().unwrap().to_owned();
    sidecar.comes_to(200, "POST", "/refunds/7", &first).await;
    let known = jose(&site, &first).await.unwrap();
    assert_eq!(known["claims"]["aud"], json!("payments"));
    assert_eq!(known["claims"]["sub"], json!(format!("{DOMAIN}/agent")));

    let rotated = site.must("alice", &["credential", "rotate", "--at-once"]).await;
    assert_eq!(rotated["object"]["state"], json!("active"));
    let (_, second) = site.exchange(&["--audience", "payments"]).await;
    let second = second["access_token"].as_str().unwrap().to_owned();
    let known = jose(&site, &second).await.unwrap();
    assert_eq!(known["header"]["kid"], rotated["object"]["kid"]);
    jose(&site, &first).await.expect("the old key is published until its tokens are over");
    sidecar.comes_to(200, "POST", "/refunds/7", &second).await;
    sidecar.comes_to(200, "POST", "/refunds/7", &first).await;

    let kid = rotated["object"]["kid"].as_str().unwrap();
    site.must("alice", &["credential", "revoke-key", kid, "--reason", "test", "--wait", "10s"]).await;
    assert_eq!(sidecar.check("POST", "/refunds/7", &second).await.status, 401);
    let refused = jose(&site, &second).await.unwrap_err();
    assert!(refused.contains("JWKSNoMatchingKey") || refused.contains("ERR_JWKS_NO_MATCHING_KEY"), "{refused}");
    let listed = site.must("alice", &["credential", "keys", "--all"]).await;
    let states: Vec<&str> = listed["items"].as_array().unwrap().iter().map(|k| k["state"].as_str().unwrap()).collect();
    assert!(states.contains(&"gone") && states.contains(&"retiring"), "{states:?}");

    sidecar.server.stop().await;
    site.control.stop().await;
}

/// What npm `jose` makes of a token.
async fn jose(site: &Site, token: &str) -> Result<Value, String> {
    let jwks = format!("http://{}/.well-known/jwks.json", site.api);
    let token = token.to_owned();
    let run = move || {
        let installed = installed();
        let mut child = Command::new(installed.join("node/bin/node"))
            .arg(root().join("tests/it/oidc/verify.mjs"))
            .arg(&installed)
            .args([&*jwks, ISSUER, "payments"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("node runs; tests/it/oidc/install.sh installs it");
        child.stdin.take().unwrap().write_all(token.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        match output.status.success() {
            true => Ok(serde_json::from_slice(&output.stdout).unwrap()),
            false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
        }
    };
    tokio::task::spawn_blocking(run).await.unwrap()
}
