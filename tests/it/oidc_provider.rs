//! A real OpenID provider (npm `oidc-provider`): its keys by discovery, its RFC 9068 access tokens at a sidecar, and its
//! key rotation found out by a token whose key nobody knows yet.
//!
//! A test that needs the provider never passes without it: what cannot be installed fails the test, with the installer's
//! words.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose, SanType};
use serde_json::{Value, json};

use super::envoy::root;
use super::running::{DOMAIN, Site};

/// What its tokens are for.
const AUDIENCE: &str = "https://api.test";
/// How often the control plane lets itself be told of unknown keys.
const COOLDOWN: Duration = Duration::from_secs(3);
/// How long the provider may take to listen.
const START: Duration = Duration::from_secs(60);

struct Provider {
    child: Child,
    /// The lines that it writes.
    said: mpsc::Receiver<String>,
    dir: tempfile::TempDir,
    issuer: String,
    http: reqwest::Client,
}

/// The directory with its `node_modules`, and the `node` that runs it: `PORTCULLIS_OIDC_PROVIDER`, or where the installer puts it.
pub(crate) fn installed() -> PathBuf {
    // Empty: the installer has failed already. It is run again, so that the test can say why.
    if let Some(path) = std::env::var_os("PORTCULLIS_OIDC_PROVIDER").filter(|path| !path.is_empty()) {
        return path.into();
    }
    let installer = root().join("tests/it/oidc/install.sh");
    let output = Command::new("bash").arg(&installer).stdin(Stdio::null()).output().expect("bash runs");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{} failed:\n{said}", installer.display());
    String::from_utf8(output.stdout).expect("a UTF-8 path").trim().into()
}

impl Provider {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str| dir.path().join(name);
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let mut params = CertificateParams::new(vec![]).unwrap();
        params.subject_alt_names = vec![SanType::IpAddress("127.0.0.1".parse().unwrap())];
        let key = KeyPair::generate().unwrap();
        std::fs::write(file("ca.pem"), ca.pem()).unwrap();
        std::fs::write(file("cert.pem"), params.signed_by(&key, &ca).unwrap().pem()).unwrap();
        std::fs::write(file("key.pem"), key.serialize_pem()).unwrap();
        let installed = installed();
        let mut child = Command::new(installed.join("node/bin/node"))
            .arg(root().join("tests/it/oidc/provider.mjs"))
            .arg(&installed)
            .args([file("cert.pem"), file("key.pem")])
            .arg(AUDIENCE)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(file("log")).unwrap())
            .spawn()
            .expect("node runs; tests/it/oidc/install.sh installs it");
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let (say, said) = mpsc::channel();
        // Ends with the provider's output, or with the test.
        std::thread::spawn(move || lines.map_while(Result::ok).try_for_each(|line| say.send(line)));
        portcullis::tls::install_provider();
        let root = reqwest::Certificate::from_pem(ca.pem().as_bytes()).unwrap();
        let http = reqwest::Client::builder().no_proxy().tls_certs_only([root]).build().unwrap();
        let mut provider = Self { child, said, dir, issuer: String::new(), http };
        provider.issuer = provider.listen();
        provider
    }

    /// Who it says it is, among the notices that it writes as well.
    fn listen(&self) -> String {
        let until = Instant::now() + START;
        let why = loop {
            match self.said.recv_timeout(until.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    let said: Option<Value> = serde_json::from_str(&line).ok();
                    if let Some(issuer) = said.as_ref().and_then(|said| said["issuer"].as_str()) {
                        return issuer.to_owned();
                    }
                }
                Err(why) => break why,
            }
        };
        panic!(
            "oidc-provider does not listen ({why}): {}",
            std::fs::read_to_string(self.dir.path().join("log")).unwrap()
        );
    }

    /// Starts over with new keys.
    fn rotate(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"rotate\n").unwrap();
        assert_eq!(self.listen(), self.issuer);
    }

    fn ca_file(&self) -> String {
        self.dir.path().join("ca.pem").display().to_string()
    }

    /// An access token by the client credentials grant.
    async fn token(&self) -> String {
        let form = "grant_type=client_credentials&client_id=pipeline&client_secret=a+secret+of+the+test&scope=api";
        let request = self.http.post(format!("{}/token", self.issuer)).body(form);
        let request = request.header("content-type", "application/x-www-form-urlencoded");
        let answer: Value = request.send().await.unwrap().json().await.unwrap();
        answer["access_token"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned()
    }
}

impl Drop for Provider {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

async fn apply(site: &Site, name: &str, document: &Value) {
    let file = site.path(&format!("{name}.json"));
    std::fs::write(&file, document.to_string()).unwrap();
    site.must("alice", &["apply", "-f", Path::new(&file).to_str().unwrap()]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn tokens_of_a_real_provider_count_and_a_rotated_key_is_found_through_them() {
    let mut provider = Provider::start();
    let keys = format!(
        "keys:\n  allowed_hosts: [127.0.0.1]\n  allowed_networks: [127.0.0.0/8]\n  ca_file: {}\n  \
         refresh_interval: 1h\n  unknown_kid_cooldown: {}s\n",
        provider.ca_file(),
        COOLDOWN.as_secs()
    );
    let site = Site::open_with(&keys).await;
    let sidecar = site.sidecar().await;
    let first = provider.token().await;
    let unknown = sidecar.check("GET", "/catalog/1", &first).await;
    assert_eq!((unknown.status, unknown.body["reason"].as_str()), (401, Some("credential")), "{unknown:?}");

    let issuer = json!({
        "issuer": {
            "name": "idp", "kind": "oidc", "token_type": "at+jwt", "issuer": provider.issuer,
            "audiences": [AUDIENCE], "keys_from": { "type": "discovery" },
        }
    });
    apply(&site, "issuer", &issuer).await;
    let workload = json!({
        "workload": {
            "id": format!("{DOMAIN}/pipeline"), "kind": "pipeline", "owner": "shop-team", "environment": "demo",
            "roles": ["storefront"],
            "credentials": [{ "issuer": "idp", "when": { "sub": "pipeline", "client_id": "pipeline" } }],
        }
    });
    apply(&site, "workload", &workload).await;
    let allowed = sidecar.comes_to(200, "GET", "/catalog/1", &first).await;
    let workload = allowed.upstream.iter().find(|(name, _)| name == "x-portcullis-workload");
    assert_eq!(workload.unwrap().1, format!("{DOMAIN}/pipeline"));
    let status = site.must("alice", &["issuer", "keys", "idp"]).await;
    assert_eq!((status["source"].as_str(), status["failures"].as_u64()), (Some("discovery"), Some(0)), "{status}");
    assert_eq!(status["keys"], 2, "{status}");

    // Applying the same document again does not drop the keys that were fetched.
    apply(&site, "issuer", &issuer).await;
    assert_eq!(site.must("alice", &["issuer", "keys", "idp"]).await["keys"], 2);

    // New keys, and nobody is due to look for an hour: the token itself has them fetched.
    provider.rotate();
    let second = provider.token().await;
    let refused = sidecar.check("GET", "/catalog/1", &second).await;
    assert_eq!(refused.status, 401, "{refused:?}");
    sidecar.comes_to(200, "GET", "/catalog/1", &second).await;
    let after = sidecar.comes_to(401, "GET", "/catalog/1", &first).await;
    assert_eq!(after.status, 401, "the old key is gone with the old set");
    let status = site.must("alice", &["issuer", "keys", "idp"]).await;
    assert_eq!(status["failures"], 0, "{status}");

    // A token of nobody's key changes nothing, and does not make the provider be asked all the time.
    let forged = site.signer.sign_with_header(
        &json!({ "alg": "ES256", "typ": "at+jwt", "kid": "forged" }),
        &json!({ "iss": provider.issuer, "sub": "pipeline", "client_id": "pipeline", "aud": AUDIENCE, "jti": "1",
                 "iat": 0, "exp": 4_000_000_000_u64 }),
    );
    let forged = sidecar.check("GET", "/catalog/1", &forged.unwrap()).await;
    assert_eq!(forged.status, 401, "{forged:?}");
    sidecar.server.stop().await;
    site.control.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn somebody_with_a_token_of_a_real_provider_may_do_what_is_published_and_is_named_after_it() {
    let mut provider = Provider::start();
    let config = format!(
        "keys:\n  allowed_hosts: [127.0.0.1]\n  allowed_networks: [127.0.0.0/8]\n  ca_file: {}\n  \
         refresh_interval: 1h\n  unknown_kid_cooldown: {}s\noperators:\n  providers:\n    \
         - {{ name: corp, issuer: '{}', audience: {AUDIENCE}, token_type: at+jwt, kind: automation, \
             required_claims: {{ client_id: pipeline }} }}\n",
        provider.ca_file(),
        COOLDOWN.as_secs(),
        provider.issuer,
    );
    let site = Site::open_with(&config).await;
    let token = site.path("corp.jwt");
    // The keys are fetched when the control plane starts, and that may take a moment.
    let until = Instant::now() + START;
    let comes_to = async |wanted: u64, args: &[&str]| loop {
        let (code, answer) = site.run("corp.jwt", args).await;
        let status = if code == 0 { 200 } else { answer["status"].as_u64().unwrap_or(401) };
        if status == wanted {
            return answer;
        }
        assert!(Instant::now() < until, "{args:?}: {answer}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    };
    std::fs::write(&token, provider.token().await).unwrap();
    let denied = comes_to(403, &["service", "list"]).await;
    assert!(denied["detail"].as_str().unwrap().contains("`service.list`"), "nothing by default: {denied}");

    let policies = site.path("ops.cedar");
    let default = site.must("alice", &["operator-policy", "show"]).await;
    let text = format!(
        "{}\n@id(\"corp\") permit(principal == Operator::\"corp:pipeline\", action in Action::\"read\", resource)\n\
         when {{ principal.kind == \"automation\" && principal.via == \"oidc\" }};\n",
        default["text"].as_str().unwrap()
    );
    std::fs::write(&policies, text).unwrap();
    site.must("alice", &["operator-policy", "publish", &policies]).await;
    comes_to(200, &["service", "list"]).await;
    comes_to(403, &["operator", "create", "eve"]).await;
    // What is refused is recorded behind the answer, in batches.
    let records = loop {
        let records = site.must("alice", &["audit", "list", "--author", "corp:pipeline"]).await;
        if !records["items"].as_array().unwrap().is_empty() {
            break records;
        }
        assert!(Instant::now() < until, "no record of the refusals");
        tokio::time::sleep(Duration::from_millis(50)).await;
    };
    assert_eq!((&records["items"][0]["via"], &records["items"][0]["kind"]), (&json!("oidc"), &json!("automation")));

    // The provider changes its keys: the old token ends, and the new one has the new keys fetched.
    provider.rotate();
    let old = std::fs::read_to_string(&token).unwrap();
    std::fs::write(&token, provider.token().await).unwrap();
    comes_to(200, &["service", "list"]).await;
    std::fs::write(&token, old).unwrap();
    assert_eq!(site.run("corp.jwt", &["service", "list"]).await.0, 2, "a token of a key that is gone");
    site.control.stop().await;
}
