//! `portcullis token verify`, the real binary: verdicts, exit statuses, batches, and what is wrong with the input.
//!
//! Also that every document in `docs/credentials.md` and `examples/issuers/` is one that the control plane takes.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use portcullis::credential::{TokenSigner, check_issuer};
use portcullis::object::{Issuer, IssuerKind, Kind, Object, Workload};
use serde::Deserialize as _;
use serde_json::{Value, json};

const NOW: u64 = 1_800_000_000;

/// A directory with an issuer, its keys, two workloads and somebody who signs.
struct Site {
    dir: tempfile::TempDir,
    signer: TokenSigner,
}

impl Site {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let signer = TokenSigner::generate_es256("k").unwrap();
        let site = Self { dir, signer };
        site.write(
            "issuer.yaml",
            "issuer:\n  name: prod\n  kind: spiffe\n  trust_domain: prod.example\n  audiences: [shop]\n---\n\
             service: { name: passed-over, routes: [] }\n",
        );
        site.write("jwks.json", &json!({"keys": [site.signer.public_jwk()]}).to_string());
        site.write(
            "beside.yaml",
            "{name: prod, kind: spiffe, trust_domain: prod.example, audiences: [shop], jwks_file: jwks.json}",
        );
        let workload = |name: &str| json!({"id": format!("spiffe://prod.example/{name}"), "kind": "agent", "owner": "o", "environment": "e"});
        site.write("workloads.yaml", &format!("workload: {}\n---\n{}\n", workload("web"), workload("other")));
        site
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    }

    fn token(&self, changes: Value) -> String {
        let mut claims = json!({"sub": "spiffe://prod.example/web", "aud": "shop", "iat": NOW, "exp": NOW + 60});
        claims.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        self.signer.sign(&claims).unwrap()
    }

    /// Runs in the directory, so that files go by their names.
    fn run(&self, args: &[&str], input: &str) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .args(["token", "verify"])
            .args(args)
            .current_dir(self.dir.path())
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_owned();
        let writer = std::thread::spawn(move || drop(stdin.write_all(input.as_bytes())));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output
    }

    /// With the usual issuer, keys and time.
    fn verdict(&self, args: &[&str]) -> (i32, Value) {
        let output = self.run(&[&["--issuer", "issuer.yaml", "--jwks", "jwks.json"], args].concat(), "");
        let text = String::from_utf8_lossy(&output.stderr);
        (status(&output), serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {text}")))
    }
}

fn status(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn lines(output: &Output) -> Vec<Value> {
    let text = String::from_utf8(output.stdout.clone()).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_verdict_says_all_that_was_found_out_and_exits_0_or_1() {
    let site = Site::new();
    let token = site.token(json!({"jti": "j", "nbf": NOW - 1}));
    let (status, verdict) = site.verdict(&["--now", "1800000000", &token]);
    assert_eq!(status, 0, "{verdict}");
    let expected = json!({
        "valid": true, "reason": null, "detail": null, "issuer": "prod", "kind": "spiffe", "kid": "k",
        "subject": "spiffe://prod.example/web", "workload": "spiffe://prod.example/web", "actors": [], "confirmation": [],
        "issued_at": "2027-01-15T08:00:00.000Z", "not_before": "2027-01-15T07:59:59.000Z", "expires_at": "2027-01-15T08:01:00.000Z",
        "now": "2027-01-15T08:00:00.000Z", "issuer_problems": [],
        "claims": {"sub": "spiffe://prod.example/web", "aud": "shop", "iat": NOW, "exp": NOW + 60, "nbf": NOW - 1, "jti": "j"},
    });
    assert_eq!(verdict, expected);
    for (now, reason) in [("2027-01-15T08:01:00Z", "credential.expired"), ("1799999990", "credential.not_yet_valid")] {
        let (status, verdict) = site.verdict(&["--now", now, &token]);
        assert_eq!((status, &verdict["valid"], &verdict["reason"]), (1, &json!(false), &json!(reason)));
        assert!(
            verdict["claims"].is_null() && verdict["subject"].is_null(),
            "nothing of a token that did not verify: {verdict}"
        );
        assert!(verdict["detail"].is_string(), "{verdict}");
    }
    let (_, verdict) = site.verdict(&[&token]);
    assert!(verdict["now"].is_string(), "without --now, by the clock");
    let other = TokenSigner::generate_es256("k")
        .unwrap()
        .sign(&json!({"sub": "spiffe://prod.example/web", "aud": "shop", "exp": NOW + 60}));
    let (status, verdict) = site.verdict(&["--now", "1800000000", &other.unwrap()]);
    assert_eq!((status, &verdict["reason"], &verdict["claims"]), (1, &json!("credential.signature"), &Value::Null));
}

#[test]
fn workloads_proofs_and_audiences_count_when_they_are_given() {
    let site = Site::new();
    let now = ["--now", "1800000000"];
    let stranger = site.token(json!({"sub": "spiffe://prod.example/stranger"}));
    assert_eq!(site.verdict(&[&now[..], &[&stranger]].concat()).0, 0, "the signature alone");
    let (status, verdict) = site.verdict(&[&now[..], &["--workloads", "workloads.yaml", &stranger]].concat());
    assert_eq!((status, &verdict["reason"]), (1, &json!("credential.subject")));
    assert!(verdict["claims"].is_object() && verdict["workload"].is_null(), "it verified, and is nobody's: {verdict}");
    let (status, verdict) =
        site.verdict(&[&now[..], &["--workloads", "workloads.yaml", &site.token(json!({}))]].concat());
    assert_eq!((status, &verdict["workload"]), (0, &json!("spiffe://prod.example/web")));

    let bound = site.token(json!({"cnf": {"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}}));
    let (status, verdict) = site.verdict(&[&now[..], &[&bound]].concat());
    assert_eq!(
        (status, &verdict["reason"], &verdict["confirmation"]),
        (1, &json!("credential.pop_missing"), &json!(["jkt"]))
    );
    assert_eq!(site.verdict(&[&now[..], &["--without-proof", &bound]].concat()).0, 0);

    let elsewhere = site.token(json!({"aud": "elsewhere"}));
    assert_eq!(site.verdict(&[&now[..], &[&elsewhere]].concat()).1["reason"], "credential.audience");
    assert_eq!(site.verdict(&[&now[..], &["--audience", "x", "--audience", "elsewhere", &elsewhere]].concat()).0, 0);
}

#[test]
fn a_token_comes_from_a_file_or_standard_input_as_well() {
    let site = Site::new();
    let token = site.token(json!({}));
    site.write("token", &format!("{token}\n"));
    let args = ["--issuer", "beside.yaml", "--now", "1800000000"];
    assert_eq!(status(&site.run(&[&args[..], &["@token"]].concat(), "")), 0);
    assert_eq!(status(&site.run(&[&args[..], &["-"]].concat(), &format!("{token}\r\n"))), 0);
    let spoilt = site.run(&[&args[..], &["-"]].concat(), &format!(" {token}\n"));
    assert_eq!(status(&spoilt), 1, "white space that is no end of line is part of the token");
    let text = site.run(&[&args[..], &["--output", "text", "@token"]].concat(), "");
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(
        text.starts_with("valid    spiffe://prod.example/web\n") && text.contains("expires at  2027-01-15"),
        "{text}"
    );
    assert!(text.lines().all(|l| l.chars().count() <= 100) && !text.contains(&token), "{text}");
}

#[test]
fn what_cannot_be_judged_exits_2_and_says_why() {
    let site = Site::new();
    let token = site.token(json!({}));
    site.write("empty.yaml", "service: { name: x, routes: [] }\n");
    site.write("wrong.yaml", "issuer: { name: prod, kind: spiffe, audiences: [shop] }\n");
    site.write("private.json", r#"{"keys":[{"kty":"EC","d":"AA"}]}"#);
    site.write("keys.txt", "keys");
    site.write("two.yaml", "{name: a, kind: spiffe, trust_domain: a, audiences: [x]}\n---\n{name: b, kind: spiffe, trust_domain: b, audiences: [x]}\n");
    for (args, says) in [
        (&["--issuer", "issuer.yaml"][..], "required"),
        (&["--jwks", "jwks.json", "T"], "--issuer"),
        (&["--issuer", "nowhere.yaml", "T"], "nowhere.yaml"),
        (&["--issuer", "empty.yaml", "T"], "`empty.yaml` holds no issuer"),
        (&["--issuer", "wrong.yaml", "T"], "`trust_domain`"),
        (&["--issuer", "issuer.yaml", "--jwks", "private.json", "T"], "private"),
        (&["--issuer", "issuer.yaml", "--jwks", "keys.txt", "T"], "keys.txt"),
        (&["--issuer", "two.yaml", "--jwks", "jwks.json", "T"], "one issuer"),
        (&["--issuer", "issuer.yaml", "--now", "yesterday", "T"], "yesterday"),
        (&["--issuer", "issuer.yaml", "--now=-1", "T"], "--now"),
        (&["--issuer", "issuer.yaml", "--now", "253402300800", "T"], "10000"),
        (&["--issuer", "issuer.yaml", "--workloads", "issuer.yaml", "T"], "holds no workload"),
        (&["--issuer", "issuer.yaml", "@nowhere"], "nowhere"),
        (&["--issuer", "issuer.yaml", "--batch", "b", "T"], "--batch"),
        (&["--issuer", "issuer.yaml", "--batch", "nowhere.jsonl"], "nowhere.jsonl"),
    ] {
        let output = site.run(args, "");
        let text = String::from_utf8(output.stderr.clone()).unwrap();
        assert_eq!(status(&output), 2, "{args:?}: {text}");
        assert!(output.stdout.is_empty() && text.contains(says), "{args:?}: {text}");
        assert!(!text.contains(&token));
    }
}

#[test]
fn an_issuer_whose_keys_are_bad_has_none_and_that_is_said() {
    let site = Site::new();
    site.write("weak.json", r#"{"keys":[{"kty":"RSA","kid":"r","use":"jwt-svid","n":"gAAB","e":"AQAB"}]}"#);
    let output = site
        .run(&["--issuer", "issuer.yaml", "--jwks", "weak.json", "--now", "1800000000", &site.token(json!({}))], "");
    let verdict: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((status(&output), &verdict["reason"]), (1, &json!("credential.issuer_untrusted")));
    assert!(verdict["issuer_problems"][0].as_str().unwrap().contains("`jwks.keys[0].n`"), "{verdict}");
}

#[test]
fn a_batch_is_judged_to_its_end_in_order() {
    let site = Site::new();
    let good = site.token(json!({}));
    let other = TokenSigner::generate_es256("k").unwrap();
    let of_other = other.sign(&json!({"sub": "spiffe://b.example/x", "aud": "y", "exp": NOW + 60})).unwrap();
    let b = json!({"name": "b", "kind": "spiffe", "trust_domain": "b.example", "audiences": ["z"]});
    let batch = [
        json!({"id": "good", "token": good}).to_string(),
        json!({"id": 2, "token": good, "now": "2027-01-15T08:01:00Z"}).to_string(),
        json!({"id": [3], "token": of_other, "issuer": b, "jwks": {"keys": [other.public_jwk()]}, "audience": "y"})
            .to_string(),
        String::new(),
        "not JSON".to_owned(),
        json!({"id": "no token"}).to_string(),
        json!({"id": "misspelt", "token": good, "nwo": 1}).to_string(),
        json!({"id": "twice", "token": good}).to_string().replace("}", ",\"token\":\"x\"}"),
        json!({"id": "when", "token": good, "now": -5}).to_string(),
        json!({"id": "bad issuer", "token": good, "issuer": {"name": "B"}}).to_string(),
        json!({"id": "bad keys", "token": good, "jwks": {"keys": 7}}).to_string(),
        json!({"id": "long", "token": "x".repeat(1_100_000)}).to_string(),
        json!({"id": "audiences", "token": good, "audience": ["a", "shop"]}).to_string(),
        // No end of line.
        json!({"token": "x.y.z"}).to_string(),
    ]
    .join("\n");
    let args = ["--issuer", "beside.yaml", "--now", "1800000000", "--batch"];
    let path = site.write("batch.jsonl", &batch);
    let output = site.run(&[&args[..], &[&path]].concat(), "");
    let answers = lines(&output);
    let summary: Vec<_> = answers
        .iter()
        .map(|a| {
            (
                a["line"].as_u64().unwrap(),
                a["id"].clone(),
                a["reason"].as_str().unwrap_or(if a["valid"] == true { "ok" } else { "error" }),
            )
        })
        .collect();
    let expected = [
        (1, json!("good"), "ok"),
        (2, json!(2), "credential.expired"),
        (3, json!([3]), "ok"),
        (5, Value::Null, "error"),
        (6, json!("no token"), "error"),
        (7, json!("misspelt"), "error"),
        (8, json!("twice"), "error"),
        (9, json!("when"), "error"),
        (10, json!("bad issuer"), "error"),
        (11, json!("bad keys"), "error"),
        (12, Value::Null, "error"),
        (13, json!("audiences"), "ok"),
        (14, Value::Null, "credential.malformed"),
    ];
    assert_eq!(summary, expected);
    for (answer, says) in [
        (&answers[5], "nwo"),
        (&answers[6], "duplicate"),
        (&answers[7], "`now`"),
        (&answers[8], "issuer"),
        (&answers[9], "jwks"),
        (&answers[10], "1048576"),
    ] {
        assert!(answer["error"].as_str().unwrap().contains(says), "{answer}");
    }
    assert_eq!(status(&output), 2, "lines that could not be judged");
    assert!(!String::from_utf8(output.stdout).unwrap().contains(&good), "no token comes back");

    let one = |text: &str| status(&site.run(&[&args[..], &["-"]].concat(), text));
    assert_eq!(one(&format!("{}\n", json!({"token": good}))), 0);
    assert_eq!(one(&format!("{}\n{}\n", json!({"token": "x"}), json!({"token": good}))), 1);
    assert_eq!(one(""), 0, "of no lines, none was refused");
    let text =
        site.run(&[&args[..], &["-", "--output", "text"]].concat(), &json!({"id": "a", "token": good}).to_string());
    assert_eq!(String::from_utf8(text.stdout).unwrap(), "     1  a  valid    spiffe://prod.example/web\n");
}

#[test]
fn the_help_has_examples_and_fits() {
    let help = Site::new().run(&["--help"], "");
    let text = String::from_utf8(help.stdout).unwrap();
    assert!(
        text.contains("--batch vectors.jsonl > verdicts.jsonl") && text.contains("Other users of this machine"),
        "{text}"
    );
    assert!(text.lines().all(|l| l.chars().count() <= 100), "{text}");
}

#[test]
fn a_batch_can_bring_all_its_issuers() {
    let site = Site::new();
    let issuer = json!({"issuer": {"name": "prod", "kind": "spiffe", "trust_domain": "prod.example", "audiences": ["shop"],
                        "jwks": {"keys": [site.signer.public_jwk()]}}});
    let line = json!({"token": site.token(json!({})), "now": NOW, "issuer": [issuer]}).to_string();
    assert_eq!(status(&site.run(&["--batch", "-"], &line)), 0);
    let none = site.run(&["--batch", "-"], &json!({"token": "x"}).to_string());
    assert_eq!(status(&none), 2);
    assert!(lines(&none)[0]["error"].as_str().unwrap().contains("no issuer"));
}

// === Documents ===

fn repository(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// Every document of a text, as `apply` takes them; the issuers and workloads among them.
fn documents(name: &str, text: &str) -> (Vec<Issuer>, Vec<Workload>) {
    let (mut issuers, mut workloads) = (Vec::new(), Vec::new());
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let value: Value = serde_json::to_value(serde_yaml_ng::Value::deserialize(document).unwrap()).unwrap();
        let members: Vec<_> = value.as_object().unwrap_or_else(|| panic!("{name}: {value}")).iter().collect();
        let [(kind, body)] = members[..] else { panic!("{name}: a document has one member: {value}") };
        match Object::parse(kind.parse::<Kind>().unwrap(), body.to_string().as_bytes())
            .unwrap_or_else(|e| panic!("{name}: {e}"))
        {
            Object::Issuer(issuer) => issuers.push(*issuer),
            Object::Workload(workload) => workloads.push(workload),
            Object::Service(_) => {}
            other => panic!("{name}: {other:?}"),
        }
    }
    (issuers, workloads)
}

/// A mapping is for an issuer of the same text, and pins what the issuer's kind demands.
fn check(name: &str, text: &str) -> Vec<IssuerKind> {
    let (issuers, workloads) = documents(name, text);
    for issuer in &issuers {
        check_issuer(issuer).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    for mapping in workloads.iter().flat_map(|w| &w.credentials) {
        let issuer = issuers.iter().find(|i| i.name == mapping.issuer);
        let issuer = issuer.unwrap_or_else(|| panic!("{name}: a mapping for `{}`, which is not there", mapping.issuer));
        mapping.check_for(issuer.kind).unwrap_or_else(|e| panic!("{name}: {e}"));
    }
    issuers.into_iter().map(|i| i.kind).collect()
}

#[test]
fn the_example_issuers_load() {
    let mut kinds: Vec<String> = Vec::new();
    for entry in std::fs::read_dir(repository("examples/issuers")).unwrap() {
        let path = entry.unwrap().path();
        let found = check(&path.display().to_string(), &std::fs::read_to_string(&path).unwrap());
        assert!(!found.is_empty(), "{}: no issuer", path.display());
        kinds.extend(found.iter().map(ToString::to_string));
    }
    kinds.sort();
    kinds.dedup();
    assert_eq!(kinds, ["github", "kubernetes", "oidc", "portcullis", "spiffe"], "one of each kind");
}

#[test]
fn the_documents_of_the_guide_load() {
    let text = std::fs::read_to_string(repository("docs/credentials.md")).unwrap();
    let mut blocks = 0;
    let mut rest = text.as_str();
    while let Some((_, after)) = rest.split_once("```") {
        let (block, behind) = after.split_once("```").expect("a block has an end");
        let (language, body) = block.split_once('\n').unwrap();
        match language {
            "yaml" => drop(check("docs/credentials.md", body)),
            "json" => drop(serde_json::from_str::<Value>(body).unwrap_or_else(|e| panic!("{body}: {e}"))),
            "sh" => {}
            other => panic!("a block of `{other}`, which no test reads"),
        }
        blocks += u32::from(language == "yaml");
        rest = behind;
    }
    assert!(blocks >= 5, "{blocks} YAML blocks");
    for code in portcullis::credential::CredentialReason::ALL {
        assert!(text.contains(&format!("`{}`", code.code())), "`{code}` is not explained");
    }
}
