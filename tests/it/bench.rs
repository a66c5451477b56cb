//! `portcullis bench` as it is used: the binary against a server, and the engine through the real Envoy.

use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use envoy_types::pb::envoy::service::auth::v3::authorization_server::{Authorization, AuthorizationServer};
use envoy_types::pb::envoy::service::auth::v3::{CheckRequest, CheckResponse};
use portcullis::bench::{self, Mix, Pace, Settings, Shares};
use portcullis::clock::{Clock, SystemClock};
use portcullis::ext_authz::{Config, Listeners};
use portcullis::telemetry;
use portcullis::testing::Estate;

use crate::door;
use crate::envoy::Envoy;
use crate::envoy_config::echo_service;

struct Allows;

#[tonic::async_trait]
impl Authorization for Allows {
    async fn check(&self, _: tonic::Request<CheckRequest>) -> Result<tonic::Response<CheckResponse>, tonic::Status> {
        Ok(tonic::Response::new(CheckResponse::default()))
    }
}

async fn allows() -> String {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_service(AuthorizationServer::new(Allows));
    tokio::spawn(server.serve_with_incoming(incoming));
    format!("grpc://{address}")
}

async fn portcullis(args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
    command.args(args).stdin(Stdio::null());
    tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_exit_status_says_whether_the_answers_were_right() {
    let (dir, url) = (tempfile::tempdir().unwrap(), allows().await);
    let page = dir.path().join("report.html");
    let (one, two) = (format!("one={url}"), format!("two={url}"));
    let pid = format!("one={}", std::process::id());
    let common = ["bench", "run", "--target", &one, "--rate", "200", "--duration", "300ms", "--warm-up", "0s"];
    let run = |more: &[&str]| {
        let args: Vec<String> = common.iter().chain(more).map(|a| (*a).to_owned()).collect();
        async move { portcullis(&args.iter().map(String::as_str).collect::<Vec<_>>()).await }
    };

    let right = run(&["--target", &two, "--pid", &pid, "--expect", "allow", "--html", page.to_str().unwrap()]).await;
    let text = String::from_utf8(right.stdout).unwrap();
    assert_eq!(right.status.code(), Some(0), "{text}");
    assert!(text.contains("two against one") && text.contains("p99.99") && text.contains("of CPU an answer"), "{text}");
    assert!(text.lines().all(|line| line.chars().count() <= 100), "{text}");
    assert!(right.stderr.is_empty(), "no progress where there is no terminal: {:?}", right.stderr);
    assert!(std::fs::read_to_string(page).unwrap().ends_with("</html>"));

    let wrong = run(&["--rounds", "1", "--expect", "deny"]).await;
    let text = String::from_utf8(wrong.stdout).unwrap();
    assert_eq!(wrong.status.code(), Some(1), "{text}");
    assert!(text.contains("WRONG 60 answers") && text.contains("expected deny, got allow"), "{text}");

    let json = run(&["--rounds", "1", "--output", "json"]).await;
    let report: serde_json::Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!((json.status.code(), &report["targets"][0]["answered"]), (Some(0), &60.into()));

    for (args, part) in [
        (&["--mix", "/none.yaml"][..], "cannot read `/none.yaml`"),
        (&["--target", "two=unix:/none.sock"], "target `two` at `unix:/none.sock` cannot be reached"),
        (&["--expect", "maybe"], "`maybe`"),
        (&["--pid", "one=4294967295"], "process 4294967295"),
    ] {
        let refused = run(args).await;
        let said = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(2), "{said}");
        assert!(said.contains(part), "{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_generated_estate_is_one_that_the_commands_take() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("estate");
    let place = out.to_str().unwrap();
    let generate = ["bench", "generate", "--grants", "20", "--workloads", "5", "--tokens", "5", "--out", place];
    let made = portcullis(&[&generate[..], &["--control-store", "--output", "json"]].concat()).await;
    assert_eq!(made.status.code(), Some(0), "{}", String::from_utf8_lossy(&made.stderr));
    let made: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!(made["objects"], 20 + 5 + 4 + 3);
    let file = |name: &str| format!("{place}/{name}");
    for (command, config) in [("sidecar", "sidecar.yaml"), ("control", "control.yaml")] {
        let checked = portcullis(&[command, "--config", &file(config), "--check"]).await;
        assert_eq!(checked.status.code(), Some(0), "{}", String::from_utf8_lossy(&checked.stderr));
    }
    let again = portcullis(&generate).await;
    let said = String::from_utf8(again.stderr).unwrap();
    assert!(again.status.code() == Some(2) && said.contains("not empty"), "{said}");
    let absurd = portcullis(&["bench", "generate", "--grants", "99999999999", "--out", &file("more")]).await;
    let said = String::from_utf8(absurd.stderr).unwrap();
    assert!(absurd.status.code() == Some(2) && said.contains("from 0 to 10000000"), "{said}");
    assert!(!out.join("more").exists(), "nothing was made");
}

#[tokio::test(flavor = "multi_thread")]
async fn load_goes_through_the_real_envoy() {
    let clock = Arc::new(SystemClock::new());
    let estate = Estate::new_at(clock.now().wall);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let listeners = Listeners { tcp: Some(listener), ..Default::default() };
    let gate = door::gate(&door::state(&estate, &clock), &clock);
    let (_, _drain) = door::serve(gate, listeners, Config::default(), telemetry::Output::Off);
    let configuration = door::on_free_ports("sidecar-grpc-tcp.yaml", echo_service().await)
        .replace("port_value: 9191", &format!("port_value: {}", address.port()));
    let report = tokio::task::spawn_blocking(move || {
        let envoy = Envoy::start(&configuration);
        let text = format!(
            "requests:\n  - {{name: read, weight: 3, paths: [/catalog/1], token: {{text: {0}}}, expect: allow}}\n  \
             - {{name: no-token, paths: [/catalog/1], expect: 401}}\n  \
             - {{name: no-policy, method: DELETE, paths: [/catalog/1], token: {{text: {0}}}, expect: deny}}\n",
            estate.token("storefront"),
        );
        let mix = Mix::parse(std::path::Path::new("mix.yaml"), &text, Shares::default()).unwrap();
        let settings = Settings {
            targets: vec![format!("envoy=http://{}", envoy.address).parse().unwrap()],
            pace: Pace::Rate(100.0),
            connections: 2,
            streams: 2,
            rounds: 1,
            duration: Duration::from_secs(2),
            warm_up: Duration::from_millis(200),
            timeout: Duration::from_secs(5),
            pids: vec![],
            threads: 1,
            most_requests: 1000,
        };
        bench::run(&mix, &settings, |_| ()).unwrap()
    });
    let report = report.await.unwrap();
    let envoy = &report.targets[0];
    assert_eq!((envoy.answered, envoy.failed, envoy.wrong), (200, 0, 0), "{:?} {:?}", envoy.examples, envoy.failures);
    assert!(envoy.answers["200"] > 100 && envoy.answers["401"] > 20, "{:?}", envoy.answers);
}
