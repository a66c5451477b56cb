//! Ten thousand sidecars on one machine: budgets B8 and B9 of the design, against a real `portcullis control`.
//!
//! Makes a directory with a CA, a server certificate, an issuer, and a credential for each sidecar; starts the control
//! plane as a process of its own; registers the issuer and the services through its API; connects the simulated fleet
//! (this process) over TLS; revokes, disconnects, restarts, and reports. Read with `benches/README.md`.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    clippy::indexing_slicing,
    reason = "a bench that cannot run should stop, and it reports to the terminal"
)]

use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use portcullis::bench::fleet::{Api, Bench, Credential, Identities, Options, Plan, Process, Report};
use portcullis::clock::{Clock, SystemClock};
use portcullis::credential::{SpiffeId, TokenSigner};
use portcullis::sync::BackoffConfig;
use portcullis::wire::VerifyKey;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose, SanType};
use serde_json::{Value, json};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const AUDIENCE: &str = "portcullis-control";
const ISSUER: &str = "fleet";
const DOMAIN: &str = "fleet.example";

struct Settings {
    sidecars: usize,
    identities: usize,
    certificates: bool,
    binary: PathBuf,
    plan: Plan,
    restart: bool,
    verify_every: usize,
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let flag = |name: &str| args.iter().position(|a| a == name).and_then(|i| args.get(i + 1)).cloned();
    let has = |name: &str| args.iter().any(|a| a == name);
    let number = |name: &str, default: usize| flag(name).and_then(|n| n.parse().ok()).unwrap_or(default);
    if !has("--bench") {
        return; // `cargo test --benches` builds and starts benches; there is nothing to test here.
    }
    let sidecars = number("--sidecars", 1_000);
    let seconds = |name: &str, default: usize| Duration::from_secs(number(name, default) as u64);
    let settings = Settings {
        sidecars,
        // As real fleets are: about fifty instances of each enforcement point.
        identities: number("--identities", sidecars.div_ceil(50)).clamp(1, sidecars.max(1)),
        certificates: has("--certificates"),
        binary: flag("--binary").map_or_else(|| PathBuf::from(env!("CARGO_BIN_EXE_portcullis")), PathBuf::from),
        plan: Plan {
            revocations: number("--revocations", 20),
            burst: number("--burst", 20),
            pause: Duration::from_millis(number("--pause-ms", 500) as u64),
            wait: Duration::from_secs(30),
            rest: seconds("--rest", 10),
            reconnect: !has("--no-reconnect"),
            herd: number("--herd", sidecars.div_ceil(4).min(2_000)),
            limit: seconds("--limit", 180),
            issuer: ISSUER.to_owned(),
        },
        restart: !has("--no-restart"),
        verify_every: number("--verify-every", 16),
    };
    portcullis::tls::install_provider();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().expect("a runtime");
    let report = runtime.block_on(run(&settings));
    runtime.shutdown_background();
    let mut document = serde_json::to_value(&report).expect("JSON");
    document["identities"] = settings.identities.into();
    document["credential"] = if settings.certificates { "x509" } else { "token" }.into();
    if let Some(path) = flag("--json") {
        std::fs::write(path, format!("{document:#}\n")).expect("the report's file");
    }
    println!("{document:#}");
    summary(&report);
    assert!(report.is_good(), "a sidecar was left behind, or a frame was out of place");
}

async fn run(settings: &Settings) -> Report {
    let tell = |line: &str| eprintln!("{line}");
    let directory = tempfile::tempdir().expect("a directory");
    let started = Instant::now();
    let (site, identities) = Site::make(directory.path(), settings);
    eprintln!("credentials were made in {:.1} s", started.elapsed().as_secs_f64());
    let mut control = Control::start(&site, &settings.binary).await;
    let api = Api::new(&site.api, Some(&site.ca), &site.token()).expect("an API client");
    site.register(&api, settings).await;
    let options = Options {
        control: site.sync.parse().expect("a URL"),
        ca_file: Some(site.ca.clone()),
        verify_key: VerifyKey::parse(&site.read("data/verify-key")).expect("a key"),
        sidecars: settings.sidecars,
        verify_every: settings.verify_every,
        timeout: Duration::from_secs(30),
        backoff: BackoffConfig::default(),
    };
    let plan = settings.plan.clone();
    let mut bench =
        Bench::start(options, &identities, plan, Some(api), Some(control.process()), &tell).await.expect("a fleet");
    bench.run(&identities, &tell).await.expect("a run");
    if settings.restart {
        control.kill();
        eprintln!("the control plane was killed");
        while bench.fleet.counts().current > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        control = Control::start(&site, &settings.binary).await;
        bench.restarted(Some(control.process()));
        bench.joined("restart", &|_| {}, &tell).await;
    }
    bench.report()
}

fn summary(report: &Report) {
    let mib = |bytes: u64| bytes / (1024 * 1024);
    for joined in &report.joined {
        let took = joined.all_current_ms.map_or_else(|| "NOT IN TIME".to_owned(), |ms| format!("{:.2} s", ms / 1000.0));
        println!("{:<10} all {} current after {took} ({} attempts)", joined.what, report.sidecars, joined.attempts);
    }
    for (name, spread) in [("one", &report.single), ("burst", &report.burst), ("under herd", &report.under_herd)] {
        let Some(spread) = spread else { continue };
        for (what, p) in [
            ("commit to acknowledged", spread.commit_to_acknowledged_ms),
            ("request to applied", spread.request_to_applied_ms),
            ("request to receipt", spread.receipt_ms),
        ] {
            let Some(p) = p else { continue };
            println!("{name:<10} {what:<23} p50 {:7.1}  p99 {:7.1}  max {:7.1} ms", p.p50, p.p99, p.max);
        }
        println!(
            "{name:<10} {:.0} bytes to each, control CPU {:.1} ms",
            spread.bytes_each,
            spread.cpu_ms.unwrap_or(0.0)
        );
    }
    if let (Some(idle), Some(cores)) = (report.idle, report.idle_cores) {
        println!("at rest    control {} MiB, {cores:.3} cores", mib(idle.resident_bytes));
    }
    if let (Some(control), Some(fleet)) = (report.control, report.fleet) {
        println!(
            "at the end control {} MiB (peak {} MiB), fleet {} MiB",
            mib(control.resident_bytes),
            mib(control.peak_bytes),
            mib(fleet.resident_bytes)
        );
    }
}

// === the site ===

/// A directory with everything a control plane and its fleet need.
struct Site {
    directory: PathBuf,
    ca: PathBuf,
    api: String,
    sync: String,
    admin: String,
    issuer: Value,
}

impl Site {
    fn make(directory: &Path, settings: &Settings) -> (Self, Identities) {
        let write = |name: &str, text: &str| std::fs::write(directory.join(name), text).expect("a file");
        let mut params = CertificateParams::new(vec![]).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA");
        write("ca.pem", &ca.pem());
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).expect("parameters");
        params.subject_alt_names.push(SanType::IpAddress("127.0.0.1".parse().expect("an address")));
        write("server.pem", &params.signed_by(&key, &ca).expect("a certificate").pem());
        write("server.key", &key.serialize_pem());
        private(&directory.join("server.key"));
        let signer = TokenSigner::generate_es256("fleet-1").expect("a key");
        let issuer = json!({
            "name": ISSUER, "kind": "spiffe", "trust_domain": DOMAIN, "audiences": [AUDIENCE],
            "jwks": {"keys": [signer.public_jwk()]},
        });
        let now = SystemClock::new().now().wall.as_secs();
        let name = |n: usize| SpiffeId::parse(&format!("spiffe://{DOMAIN}/sidecar-{n}")).expect("an id");
        let mut credentials = Vec::new();
        for n in 0..settings.sidecars {
            let point = n % settings.identities;
            let identity = name(point);
            let mut credential = Credential {
                identity: identity.clone(),
                services: vec![format!("service-{point}")],
                token_file: None,
                cert_file: None,
                key_file: None,
            };
            if settings.certificates {
                let (cert, key_file) = (format!("{n}.pem"), format!("{n}.key"));
                let mut params = CertificateParams::default();
                params.subject_alt_names = vec![SanType::URI(identity.as_str().try_into().expect("a URI"))];
                params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
                let key = KeyPair::generate().expect("a key");
                write(&cert, &params.signed_by(&key, &ca).expect("a certificate").pem());
                write(&key_file, &key.serialize_pem());
                private(&directory.join(&key_file));
                (credential.cert_file, credential.key_file) = (Some(cert.into()), Some(key_file.into()));
            } else {
                let file = format!("{n}.token");
                let claims = json!({"sub": identity, "aud": [AUDIENCE], "iat": now, "exp": now + 3_000, "jti": format!("sidecar-{n}")});
                write(&file, &signer.sign(&claims).expect("a token"));
                private(&directory.join(&file));
                credential.token_file = Some(file.into());
            }
            credentials.push(credential);
        }
        let [api, sync, admin] = free_ports();
        let points: Vec<Value> = (0..settings.identities)
            .map(|n| json!({"identity": name(n), "services": [format!("service-{n}")]}))
            .collect();
        let file = |name: &str| directory.join(name).display().to_string();
        // JSON is YAML.
        let config = json!({
            "listeners": {"api": format!("127.0.0.1:{api}"), "sync": format!("127.0.0.1:{sync}"), "admin": format!("127.0.0.1:{admin}")},
            "data_directory": file("data"),
            "tls": {"cert_file": file("server.pem"), "key_file": file("server.key"), "client_ca_file": file("ca.pem")},
            "sync": {"audience": AUDIENCE, "trust": [ISSUER], "enforcement_points": points},
            "telemetry": {"log_level": "warn"},
        });
        write("control.yaml", &config.to_string());
        let site = Self {
            directory: directory.to_owned(),
            ca: directory.join("ca.pem"),
            api: format!("https://127.0.0.1:{api}"),
            sync: format!("https://127.0.0.1:{sync}"),
            admin: format!("http://127.0.0.1:{admin}"),
            issuer,
        };
        (site, Identities::new(directory, credentials))
    }

    /// The issuer, a service for each enforcement point, and a policy of some size.
    async fn register(&self, api: &Api, settings: &Settings) {
        api.put(&format!("issuers/{ISSUER}"), &self.issuer).await.expect("the issuer");
        for n in 0..settings.identities {
            let routes = json!([{"name": "all", "path": format!("/service-{n}/{{**}}")}]);
            let service = json!({"name": format!("service-{n}"), "routes": routes});
            api.put(&format!("services/service-{n}"), &service).await.expect("a service");
        }
    }

    fn token(&self) -> PathBuf {
        self.directory.join("data/bootstrap-token")
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.directory.join(name)).expect("a file")
    }
}

fn private(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).expect("permissions");
}

/// Ports that were free a moment ago; held together, so that they differ.
fn free_ports() -> [u16; 3] {
    let held = [(); 3].map(|()| TcpListener::bind("127.0.0.1:0").expect("a port"));
    held.each_ref().map(|l| l.local_addr().expect("an address").port())
}

/// A control plane.
struct Control(Child);

impl Control {
    async fn start(site: &Site, binary: &Path) -> Self {
        let child = Command::new(binary)
            .args(["control", "--config"])
            .arg(site.directory.join("control.yaml"))
            .stdout(Stdio::null())
            .spawn()
            .expect("a control plane");
        let control = Self(child);
        let client = reqwest::Client::builder().no_proxy().tls_certs_only([]).build().expect("a client");
        for _ in 0..600 {
            if client.get(format!("{}/readyz", site.admin)).send().await.is_ok_and(|r| r.status().is_success()) {
                return control;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        panic!("the control plane did not get ready");
    }

    fn process(&self) -> Process {
        Process(self.0.id())
    }

    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        self.kill();
    }
}
