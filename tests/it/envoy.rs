//! The real Envoy 1.40, for any test that wants it: found or installed, started on free ports, stopped on drop.
//!
//! A test that needs Envoy never passes without it: what cannot be installed fails the test, with the installer's words.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// A running Envoy.
#[derive(Debug)]
pub(crate) struct Envoy {
    child: Child,
    /// Where its one listener listens.
    pub(crate) address: SocketAddr,
    directory: tempfile::TempDir,
}

/// An HTTP/1.1 answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
}

/// The repository's root.
pub(crate) fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Envoy's binary: `PORTCULLIS_ENVOY`, or the one that the demo's installer puts into `.cache/`.
pub(crate) fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("PORTCULLIS_ENVOY") {
            return path.into();
        }
        let installer = root().join("examples/demo/install-envoy.sh");
        let output = Command::new("bash").arg(&installer).stdin(Stdio::null()).output().expect("bash runs");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{} failed:\n{said}", installer.display());
        String::from_utf8(output.stdout).expect("a UTF-8 path").trim().into()
    })
}

/// What Envoy says of a configuration file: `Ok`, or its complaint.
pub(crate) fn validate(file: &Path) -> Result<(), String> {
    let output = Command::new(binary()).args(["--mode", "validate", "-c"]).arg(file).output().expect("Envoy runs");
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

impl Envoy {
    /// Starts Envoy on `configuration`, in which the listener and admin ports are 0, and waits until it answers.
    pub(crate) fn start(configuration: &str) -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let [config, admin, log] = ["envoy.yaml", "admin", "log"].map(|f| directory.path().join(f));
        std::fs::write(&config, configuration).expect("written");
        let log = std::fs::File::create(log).expect("a log file");
        let child = Command::new(binary())
            .arg("-c")
            .arg(&config)
            .arg("--admin-address-path")
            .arg(&admin)
            // Several Envoys on one host: no shared memory between them.
            .args(["--disable-hot-restart", "--concurrency", "1", "--log-level", "warning"])
            .args(["--file-flush-interval-msec", "50"])
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle"))
            .stderr(log)
            .spawn()
            .expect("Envoy starts");
        let mut envoy = Self { child, address: SocketAddr::from(([127, 0, 0, 1], 0)), directory };
        envoy.address = envoy.wait_for_listener(&admin);
        envoy
    }

    /// Its process, for what it costs.
    #[allow(dead_code, reason = "a bench alone asks")]
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it has written so far: access log, warnings.
    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default()
    }

    /// Sends `request` as it stands and reads the answer until Envoy closes the connection.
    pub(crate) fn send(&self, request: &[u8]) -> Answer {
        exchange(self.address, request).expect("an answer")
    }

    /// `GET path`, with further header lines.
    pub(crate) fn get(&self, path: &str, headers: &[&str]) -> Answer {
        let headers: String = headers.iter().map(|h| format!("{h}\r\n")).collect();
        self.send(format!("GET {path} HTTP/1.1\r\nHost: test\r\nConnection: close\r\n{headers}\r\n").as_bytes())
    }

    fn wait_for_listener(&mut self, admin: &Path) -> SocketAddr {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            let listener = std::fs::read_to_string(admin)
                .ok()
                .and_then(|a| a.trim().parse::<SocketAddr>().ok())
                .and_then(|a| exchange(a, b"GET /listeners HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").ok())
                .and_then(|a| a.body.lines().find_map(|l| l.split_once("::")?.1.trim().parse::<SocketAddr>().ok()));
            if let Some(address) = listener {
                return address;
            }
            let ended = self.child.try_wait().expect("a state");
            assert!(ended.is_none() && Instant::now() < deadline, "Envoy did not come up ({ended:?}):\n{}", self.log());
            // Envoy offers nothing to wait on before its admin address is written.
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Sends `request` as it stands and reads the answer until the connection is closed.
pub(crate) fn exchange(address: SocketAddr, request: &[u8]) -> std::io::Result<Answer> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    stream.write_all(request)?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok());
    let status = status.ok_or_else(|| std::io::Error::other(format!("`{head}` is not an answer")))?;
    // The admin interface and the upstream may use chunks: for a test that looks for text it is enough to keep them.
    Ok(Answer { status, head: head.to_owned(), body: body.to_owned() })
}
