//! The sidecar under measurement: the real binary, its configuration, and what can be seen of it from outside.
//!
//! Readiness and the revision in force are read from its admin port, CPU and memory from `/proc`. A directory of its own
//! holds certificates, configuration and state.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, KeyUsagePurpose, SanType};

use super::plane::{IDENTITY, Plane, SERVICES};

/// Certificates, configuration and state.
pub(super) struct Site {
    pub(super) dir: tempfile::TempDir,
    admin: SocketAddr,
    pub(super) door: SocketAddr,
}

/// A running sidecar.
pub(super) struct Sidecar {
    child: Child,
    admin: SocketAddr,
    pub(super) door: SocketAddr,
    started: Instant,
    state: PathBuf,
}

impl Site {
    pub(super) fn new() -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut params = CertificateParams::new(vec![]).expect("parameters");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let ca = CertifiedIssuer::self_signed(params, KeyPair::generate().expect("a key")).expect("a CA");
        std::fs::write(dir.path().join("ca.pem"), ca.pem()).expect("written");
        let sans = [
            ("server", SanType::IpAddress("127.0.0.1".parse().expect("an address"))),
            ("sidecar", SanType::URI(IDENTITY.try_into().expect("a URI"))),
        ];
        for (name, san) in sans {
            let mut params = CertificateParams::new(vec![]).expect("parameters");
            params.subject_alt_names = vec![san];
            params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            let key = KeyPair::generate().expect("a key");
            let cert = params.signed_by(&key, &ca).expect("a certificate");
            std::fs::write(dir.path().join(format!("{name}.pem")), cert.pem()).expect("written");
            write_secret(&dir.path().join(format!("{name}.key")), &key.serialize_pem());
        }
        let [admin, door] = [(); 2].map(|()| free_port());
        Self { dir, admin, door }
    }

    /// How much is on disk.
    pub(super) fn state_bytes(&self) -> u64 {
        let files = std::fs::read_dir(self.dir.path().join("state")).expect("a state directory");
        files.map(|file| file.expect("a file").metadata().expect("its size").len()).sum()
    }

    pub(super) fn forget_state(&self) {
        let _ = std::fs::remove_dir_all(self.dir.path().join("state"));
    }

    fn configure(&self, plane: SocketAddr) -> PathBuf {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let config = format!(
            "listeners: {{ext_authz: {{tcp: \"{}\"}}, admin: \"{}\"}}\n\
             control_plane: {{url: \"https://{plane}\", ca_file: \"{}\", client_cert_file: \"{}\", client_key_file: \"{}\", verify_key_file: \"{}\"}}\n\
             scope: {{identity: \"{IDENTITY}\", services: [{}]}}\n\
             state: {{directory: \"{}\", max_staleness: 1h}}\n\
             records: {{output: \"off\"}}\n\
             telemetry: {{log_level: warn}}\n",
            self.door,
            self.admin,
            path("ca.pem"),
            path("sidecar.pem"),
            path("sidecar.key"),
            path("verify-key"),
            SERVICES.join(", "),
            path("state"),
        );
        let file = self.dir.path().join("sidecar.yaml");
        std::fs::write(&file, config).expect("written");
        file
    }
}

impl Sidecar {
    /// A sidecar of this control plane.
    pub(super) fn start(site: &Site, plane: &Plane) -> Self {
        Self::start_at(site, plane.address)
    }

    /// A sidecar whose control plane is away.
    pub(super) fn start_alone(site: &Site) -> Self {
        Self::start_at(site, "127.0.0.1:9".parse().expect("an address"))
    }

    fn start_at(site: &Site, plane: SocketAddr) -> Self {
        let config = site.configure(plane);
        let started = Instant::now();
        let child = Command::new(env!("CARGO_BIN_EXE_portcullis"))
            .args(["sidecar", "--config"])
            .arg(config)
            .stdout(Stdio::null())
            .spawn()
            .expect("a sidecar");
        Self { child, admin: site.admin, door: site.door, started, state: site.dir.path().join("state") }
    }

    /// How long after its start it was ready.
    pub(super) fn wait_until_ready(&self) -> Duration {
        self.wait(Duration::from_millis(2), || {
            self.get("/readyz").is_some_and(|answer| answer.starts_with("HTTP/1.1 200"))
        });
        self.started.elapsed()
    }

    /// Until this revision is in force.
    pub(super) fn wait_for_revision(&self, revision: u64) {
        self.wait(Duration::from_millis(10), || self.revision() >= revision);
    }

    /// Until a restart would find the state, with its date.
    pub(super) fn wait_for_state_on_disk(&self) {
        let there = |name: &str| self.state.join(name).exists();
        self.wait(Duration::from_millis(20), || there("high-water-mark") && there("bookmark"));
    }

    /// The revision in force; 0 before any.
    pub(super) fn revision(&self) -> u64 {
        let metrics = self.get("/metrics").unwrap_or_default();
        let line = metrics.lines().find_map(|line| line.strip_prefix("portcullis_snapshot_revision "));
        line.and_then(|n| n.trim().parse::<f64>().ok()).map_or(0, |n| n as u64)
    }

    /// Resident bytes, once they do not fall any more.
    pub(super) fn settled_memory(&self) -> u64 {
        let mut lowest = self.status("VmRSS:");
        let mut since = Instant::now();
        while since.elapsed() < Duration::from_secs(2) {
            std::thread::sleep(Duration::from_millis(100));
            let now = self.status("VmRSS:");
            if now < lowest - lowest / 200 {
                (lowest, since) = (now, Instant::now());
            }
        }
        self.status("VmRSS:")
    }

    /// The most that was ever resident, in bytes.
    pub(super) fn peak_memory(&self) -> u64 {
        self.status("VmHWM:")
    }

    /// User and system time so far.
    pub(super) fn cpu(&self) -> Duration {
        cpu_of(self.child.id())
    }

    /// As an operator stops it: it keeps its last bookmark.
    pub(super) fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a running sidecar");
        let _ = self.child.wait();
    }

    fn status(&self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).expect("a running sidecar");
        let line = status.lines().find_map(|line| line.strip_prefix(field)).expect("the field");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a size") * 1024
    }

    fn get(&self, path: &str) -> Option<String> {
        let mut stream = TcpStream::connect(self.admin).ok()?;
        stream.write_all(format!("GET {path} HTTP/1.1\r\nhost: bench\r\nconnection: close\r\n\r\n").as_bytes()).ok()?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    }

    fn wait(&self, step: Duration, mut done: impl FnMut() -> bool) {
        let begun = Instant::now();
        while !done() {
            assert!(begun.elapsed() < Duration::from_secs(180), "the sidecar gets nowhere");
            std::thread::sleep(step);
        }
    }
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// User and system time of a process, from `/proc/PID/stat`, in ticks of 10 ms.
pub(super) fn cpu_of(pid: u32) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).expect("a running process");
    let fields: Vec<&str> = stat.rsplit(')').next().expect("fields").split_whitespace().collect();
    Duration::from_millis([11, 12].iter().map(|&i| fields[i].parse::<u64>().expect("ticks") * 10).sum())
}

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port")
}

fn write_secret(path: &std::path::Path, text: &str) {
    use std::os::unix::fs::OpenOptionsExt;
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path).expect("a file");
    file.write_all(text.as_bytes()).expect("written");
}
