//! What is generated is the same each time, is taken by everything that has to read it, and does what the mix expects.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::*;
use crate::authz::{Door, Header, Peer, Request};
use crate::cache::{CacheSizes, Gate};
use crate::clock::{ManualClock, SharedClock};
use crate::config::{ControlConfig, Environment, SidecarConfig};
use crate::control::store::{SqliteStore, Store};
use crate::state::State;
use crate::sync::disk;
use crate::wire::VerifyKey;

const SIZE: Size = Size { grants: 40, workloads: 12, policies: 6, services: 3 };
const HOUR: Duration = Duration::from_secs(3600);

fn now() -> Timestamp {
    Timestamp::from_secs(1_800_000_000)
}

async fn make(out: &Path, seed: u64, control_store: bool) -> (Estate, Made) {
    let estate = Estate::new(SIZE, seed, now(), HOUR).unwrap();
    let options = Options { out: out.to_owned(), tokens: 12, control_store, documents: control_store };
    let mut last = (0, 0);
    let made = generate(&estate, &options, |done, total| last = (done, total)).await.unwrap();
    assert_eq!(last.0, last.1, "progress ends at its total");
    (estate, made)
}

fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let mut out = BTreeMap::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if path.is_dir() {
            out.extend(files(&path).into_iter().map(|(k, v)| (format!("{name}/{k}"), v)));
        } else {
            out.insert(name, std::fs::read(&path).unwrap());
        }
    }
    out
}

#[tokio::test]
async fn the_same_seed_gives_the_same_bytes() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("estate");
    let mut made = Vec::new();
    for (n, seed) in [7, 7, 8].into_iter().enumerate() {
        make(&out, seed, false).await;
        let moved = dir.path().join(n.to_string());
        std::fs::rename(&out, &moved).unwrap();
        made.push(files(&moved));
    }
    assert!(made[0].len() > 10, "{:?}", made[0].keys());
    assert!(made[0] == made[1], "two runs differ");
    for name in ["sidecar/snapshot-00000001", "issuer.key", "verify-key", "sidecar.jwt"] {
        assert_ne!(made[0][name], made[2][name], "{name} does not follow from the seed");
    }
}

#[tokio::test]
async fn secrets_are_private() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("estate");
    make(&out, 1, true).await;
    for name in ["issuer.key", "sidecar.jwt", "control/signing-key", "tokens/read-s0.txt"] {
        let mode = std::fs::metadata(out.join(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{name}");
    }
    let again = Options { out: out.clone(), tokens: 1, control_store: false, documents: false };
    let estate = Estate::new(SIZE, 1, now(), HOUR).unwrap();
    assert!(matches!(generate(&estate, &again, |_, _| ()).await, Err(GenerateError::Taken(_))));
}

#[tokio::test]
async fn the_state_answers_and_the_store_holds_the_same() {
    let dir = tempfile::tempdir().unwrap();
    let out = dir.path().join("estate");
    let (estate, made) = make(&out, 3, true).await;
    let environment = Environment::default();
    let sidecar = SidecarConfig::load(&out.join("sidecar.yaml"), &environment).unwrap();
    let control = ControlConfig::load(&out.join("control.yaml"), &environment).unwrap();
    assert_eq!(sidecar.state.directory, made.out.join("sidecar"));
    assert_eq!(sidecar.scope.services, control.sync.enforcement_points[0].services);
    let clock: SharedClock = Arc::new(ManualClock::new(now().saturating_add(Duration::from_secs(60))));
    let key = VerifyKey::parse(&std::fs::read_to_string(out.join("verify-key")).unwrap()).unwrap();
    let offline = disk::load_offline(&out.join("sidecar"), key, Some(estate.scope().unwrap()), &clock).unwrap();
    assert!(offline.problems.is_empty(), "{:?}", offline.problems);
    let (snapshot, lease) = (offline.snapshot.unwrap(), offline.lease.unwrap());
    assert_eq!(snapshot.position(), made.position);

    let state = Arc::new(State::new());
    state.restore(snapshot, lease);
    let gate = Gate::new(state, clock, CacheSizes { tokens: 0, decisions: 0 });
    let decide = |method: &str, path: &str, token: &str| {
        let bearer = format!("Bearer {token}");
        let headers = [Header { name: b"authorization", value: bearer.as_bytes() }].into_iter().collect();
        let (host, scheme, peer) = ("shop.example", "https", Peer::default());
        let (partial_body, body) = (false, None);
        let request = Request { door: Door::Check, method, path, host, scheme, headers, partial_body, body, peer };
        let (decision, _) = gate.explain(&request);
        (decision.permit().is_some(), decision.reason)
    };
    for g in 0..SIZE.grants {
        let (w, s) = (estate.workload_of(g), estate.service_of(g));
        let token = estate.token(&workload(w), AUDIENCE).unwrap();
        let readable = service(estate.readable_by(w));
        for (method, path, allowed) in [
            ("POST", format!("/{}/refunds/1", service(s)), true),
            ("GET", format!("/{readable}/items/1"), true),
            ("DELETE", format!("/{readable}/items/1"), false),
            ("GET", format!("/s{}/items/1", (estate.readable_by(w) + 1) % SIZE.services), false),
        ] {
            let (got, reason) = decide(method, &path, &token);
            assert_eq!(got, allowed, "grant {g}: {method} {path}: {reason:?}");
        }
    }

    let store = SqliteStore::open(&out.join("control"), now()).await.unwrap();
    let loaded = store.load().await.unwrap();
    assert_eq!((store.epoch(), loaded.revision), (made.position.epoch, made.position.revision));
    let expected: Vec<_> = estate.objects().map(Result::unwrap).map(|o| (o.kind(), o.key(), o.to_json())).collect();
    let mut sorted = expected.clone();
    sorted.sort();
    let found: Vec<_> = loaded.objects.iter().map(|o| (o.kind, o.key.clone(), o.body.to_vec())).collect();
    assert!(found == sorted, "the store holds other objects");
    assert!(loaded.log.is_empty(), "the log is not kept");
    let grants = |all: &[(crate::object::Kind, String, Vec<u8>)]| {
        all.iter().filter(|o| o.0 == crate::object::Kind::Grant).map(|o| o.1.clone()).collect::<Vec<_>>()
    };
    assert_eq!(grants(&expected), grants(&sorted), "grants come in the order of a snapshot");
}

#[test]
fn grants_are_spread_over_all_workloads() {
    for workloads in [1, 2, 7, 12, 100] {
        let size = Size { grants: 0, workloads, ..SIZE };
        let estate = Estate::new(size, 5, now(), HOUR).unwrap();
        let mut seen: Vec<u64> = (0..workloads).map(|g| estate.workload_of(g)).collect();
        seen.sort_unstable();
        assert_eq!(seen, (0..workloads).collect::<Vec<_>>());
    }
}

#[test]
fn absurd_numbers_are_refused() {
    let at = |size, now, lifetime| Estate::new(size, 1, now, lifetime).map(|_| ()).unwrap_err().to_string();
    for (size, part) in [
        (Size { grants: 10_000_001, ..SIZE }, "`10000001` grants"),
        (Size { workloads: 0, ..SIZE }, "`0` workloads"),
        (Size { policies: 1, ..SIZE }, "`1` policies"),
        (Size { services: u64::MAX, ..SIZE }, "services"),
    ] {
        assert!(at(size, now(), HOUR).contains(part));
    }
    assert!(at(SIZE, now(), Duration::from_secs(86_401)).contains("24h"));
    assert!(at(SIZE, Timestamp::MAX, HOUR).contains("too late"));
}
