//! The real binary: exit statuses, messages, streams.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.args(args).env_clear().stdin(Stdio::null());
    command
}

fn run(args: &[&str]) -> Output {
    command(args).output().unwrap()
}

fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

fn status(output: &Output) -> i32 {
    output.status.code().unwrap()
}

fn repository(path: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path).display().to_string()
}

/// A port of this machine on which nobody listens.
fn closed_port() -> u16 {
    std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

#[test]
fn help_and_version_are_answers_and_usage_errors_are_not() {
    let help = run(&["grant", "approve", "--help"]);
    assert_eq!(status(&help), 0);
    assert!(stdout(&help).contains("Example:") && stdout(&help).contains("PORTCULLIS_TOKEN_FILE"));
    assert!(stdout(&help).lines().all(|l| l.chars().count() <= 100), "{}", stdout(&help));
    let version = run(&["--version"]);
    assert_eq!(status(&version), 0);
    assert!(stdout(&version).starts_with(concat!("portcullis ", env!("CARGO_PKG_VERSION"))));
    assert!(stdout(&version).contains("cedar: 4."), "{}", stdout(&version));
    for usage in [&["grnt"][..], &["grant", "approve"], &["revoke", "token", "--issuer", "x"], &[]] {
        let output = run(usage);
        assert_eq!(status(&output), 2, "{usage:?}");
        assert!(stdout(&output).is_empty() && !output.stderr.is_empty(), "{usage:?}");
    }
}

#[test]
fn a_bad_configuration_names_file_line_and_column_and_exits_2() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sidecar.yaml");
    std::fs::write(&path, "listeners:\n  admn: 127.0.0.1:1\n").unwrap();
    let path = path.display().to_string();
    let output = run(&["sidecar", "--config", &path]);
    assert_eq!(status(&output), 2);
    assert!(stderr(&output).contains(&format!("{path}:2:3: listeners: unknown field `admn`")), "{}", stderr(&output));
    let missing = run(&["control", "--config", "/nowhere/control.yaml", "--check"]);
    assert_eq!(status(&missing), 2);
    assert!(stderr(&missing).contains("/nowhere/control.yaml"), "{}", stderr(&missing));
    let output = command(&["sidecar", "--config", &path, "--check"]).env("PORTCULLIS__CACHE__TOKENZ", "1").output();
    assert_eq!(status(&output.unwrap()), 2);
}

#[test]
fn a_valid_configuration_is_said_to_be_valid() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("control.yaml");
    std::fs::write(&path, "insecure_loopback: true\n").unwrap();
    let path = path.display().to_string();
    let output = run(&["control", "--config", &path, "--check"]);
    assert_eq!(status(&output), 0, "{}", stderr(&output));
    let refused = command(&["control", "--config", &path, "--check"])
        .env("PORTCULLIS__LISTENERS__API", "0.0.0.0:9180")
        .output()
        .unwrap();
    assert_eq!(status(&refused), 2);
    assert!(stderr(&refused).contains("`listeners.api`"), "{}", stderr(&refused));
}

#[test]
fn schemas_are_printed_as_they_are_checked_in() {
    for file in ["sidecar", "control"] {
        let output = run(&["config", "schema", file]);
        let path = repository(&format!("docs/config/{file}.schema.json"));
        assert_eq!(stdout(&output), std::fs::read_to_string(path).unwrap());
    }
}

#[test]
fn an_unreachable_control_plane_is_named_with_what_to_try() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "secret-token\n").unwrap();
    let token = token.display().to_string();
    let server = format!("http://127.0.0.1:{}", closed_port());
    let output = run(&["fleet", "--server", &server, "--token-file", &token]);
    assert_eq!(status(&output), 2);
    let text = stderr(&output);
    assert!(text.contains(&server) && text.contains("refused") && text.contains("--server"), "{text}");
    assert!(!text.contains("secret-token"));
    let check = run(&["check", "--path", "/", "--admin", &server]);
    assert_eq!(status(&check), 2);
    assert!(stderr(&check).contains("is the sidecar running?"), "{}", stderr(&check));
}

#[test]
fn a_token_is_never_sent_in_plain_text_to_another_machine_and_never_missing() {
    let dir = tempfile::tempdir().unwrap();
    let token = dir.path().join("token");
    std::fs::write(&token, "secret-token\n").unwrap();
    let token = token.display().to_string();
    let output = run(&["fleet", "--server", "http://192.0.2.1:9180", "--token-file", &token]);
    assert_eq!(status(&output), 2);
    assert!(stderr(&output).contains("plain text"), "{}", stderr(&output));
    let none = run(&["fleet"]);
    assert_eq!(status(&none), 2);
    assert!(stderr(&none).contains("PORTCULLIS_TOKEN_FILE"), "{}", stderr(&none));
}

#[test]
fn policies_are_checked_offline_with_place_and_exit_status() {
    let good = run(&["policy", "check", &repository("examples/demo/policies.cedar")]);
    assert_eq!(status(&good), 0, "{}", stderr(&good));
    assert!(stdout(&good).contains("refunds-are-jit"), "{}", stdout(&good));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.cedar");
    std::fs::write(&path, "@id(\"a\")\npermit (principal, action, resource) when { context.nothing };\n").unwrap();
    let path = path.display().to_string();
    let bad = run(&["policy", "check", &path]);
    assert_eq!(status(&bad), 1);
    assert!(stdout(&bad).contains(&format!("{path}:")) && stdout(&bad).contains("nothing"), "{}", stdout(&bad));
    let json = run(&["policy", "check", &path, "--output", "json"]);
    assert_eq!(status(&json), 1);
    let json: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(json["valid"], false);
}

#[test]
fn a_demo_issuer_makes_keys_and_tokens_in_private_files() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let keygen =
        ["token", "keygen", "--key-file", &path("k"), "--jwks-file", &path("jwks"), "--kid", "one"].map(str::to_owned);
    let keygen: Vec<&str> = keygen.iter().map(String::as_str).collect();
    assert_eq!(status(&run(&keygen)), 0);
    assert_eq!(std::fs::metadata(path("k")).unwrap().permissions().mode() & 0o777, 0o600);
    let jwks: serde_json::Value = serde_json::from_slice(&std::fs::read(path("jwks")).unwrap()).unwrap();
    assert_eq!(jwks["keys"][0]["kid"], "one");
    assert!(jwks["keys"][0].get("d").is_none());
    assert_eq!(status(&run(&keygen)), 2, "a key is not replaced unasked");
    let issue = run(&[
        "token",
        "issue",
        "--key-file",
        &path("k"),
        "--kid",
        "one",
        "--subject",
        "spiffe://a.example/x",
        "--audience",
        "y",
        "--ttl",
        "1m",
        "--exp-offset",
        "-10m",
        "--claim",
        "n=7",
        "--output",
        "json",
    ]);
    assert_eq!(status(&issue), 0, "{}", stderr(&issue));
    let issued: serde_json::Value = serde_json::from_slice(&issue.stdout).unwrap();
    assert_eq!(issued["token"].as_str().unwrap().split('.').count(), 3);
    let claims = &issued["claims"];
    assert_eq!(claims["n"], 7);
    assert_eq!(claims["iat"].as_u64().unwrap() - claims["exp"].as_u64().unwrap(), 540);
}

#[test]
fn a_reader_that_goes_away_is_not_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("decisions.jsonl");
    let mut file = std::fs::File::create(&path).unwrap();
    for _ in 0..50_000 {
        writeln!(file, "{{\"reason\":\"allow.policy\",\"workload\":\"spiffe://a/b\"}}").unwrap();
    }
    let path = path.display().to_string();
    let mut child = command(&["decisions", "tail", "--file", &path, "-n", "50000"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert_eq!(status(&output), 0, "{}", stderr(&output));
    assert!(output.stderr.is_empty(), "{}", stderr(&output));
}
