//! A revocation on the whole system: a control plane, a sidecar with its proxy, and clients with open answers. Who revokes and
//! waits for the receipt knows that they are cut: the time from the receipt's arrival to what the client sees is measured.
#![allow(clippy::print_stdout, reason = "what is measured is told")]

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use http::Request;
use portcullis::config::Environment;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::reverse_proxy_upstream::Service;
use crate::running::{DOMAIN, Site};

/// What is promised.
const SOON: Duration = Duration::from_millis(250);
/// The machine may be busy in one of them, not in most.
const ROUNDS: usize = 5;

/// When a client knew, and whether it was told clearly.
type Cut = JoinHandle<Instant>;

fn head(line: &str, token: &str, more: &str) -> String {
    format!("{line} HTTP/1.1\r\nHost: demo.local\r\nAuthorization: Bearer {token}\r\n{more}\r\n")
}

/// Opens, and waits until something flows.
async fn open(proxy: SocketAddr, head: &str, flows: &[u8]) -> (TcpStream, Vec<u8>) {
    let mut stream = TcpStream::connect(proxy).await.unwrap();
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut seen = Vec::new();
    while !seen.windows(flows.len()).any(|w| w == flows) {
        assert!(stream.read_buf(&mut seen).await.unwrap() > 0, "{}", String::from_utf8_lossy(&seen));
    }
    (stream, seen)
}

async fn events(proxy: SocketAddr, token: &str) -> Cut {
    let (mut stream, mut seen) = open(proxy, &head("GET /refunds/events", token, ""), b"tick 2").await;
    tokio::spawn(async move {
        let _reset = stream.read_to_end(&mut seen).await;
        let at = Instant::now();
        assert!(!seen.ends_with(b"0\r\n\r\n"), "it does not look whole");
        at
    })
}

async fn websocket(proxy: SocketAddr, token: &str) -> Cut {
    let more = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: x\r\nSec-WebSocket-Version: 13\r\n";
    let (mut stream, mut seen) = open(proxy, &head("GET /refunds/ws", token, more), b"\x81\x04tick").await;
    tokio::spawn(async move {
        stream.read_to_end(&mut seen).await.unwrap();
        let at = Instant::now();
        assert!(seen.ends_with(&[&[0x88, 15, 0x03, 0xf0][..], b"revoked.grant"].concat()), "close 1008: {seen:?}");
        at
    })
}

async fn grpc(proxy: SocketAddr, token: &str) -> Cut {
    let (send, connection) = h2::client::handshake(TcpStream::connect(proxy).await.unwrap()).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("http://demo.local/catalog/stream")
        .header("authorization", format!("Bearer {token}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers");
    let (answer, mut up) = send.ready().await.unwrap().send_request(request.body(()).unwrap(), false).unwrap();
    up.send_data(bytes::Bytes::from_static(b"\0\0\0\0\x01a"), false).unwrap();
    let mut down = answer.await.unwrap().into_body();
    assert_eq!(&down.data().await.unwrap().unwrap()[..], b"\0\0\0\0\x01a");
    tokio::spawn(async move {
        // The call stays open at this end.
        let _up = up;
        while let Some(piece) = down.data().await {
            piece.unwrap();
        }
        let trailers = down.trailers().await.unwrap().expect("trailers");
        let at = Instant::now();
        assert_eq!(
            (&trailers["grpc-status"], &trailers["grpc-message"]),
            (&"7".parse().unwrap(), &"revoked.grant".parse().unwrap())
        );
        at
    })
}

/// Revokes over REST: when that was sent, and when the receipt was there.
async fn revoke(site: &Site, grant: &str) -> (Instant, Instant) {
    let token = std::fs::read_to_string(site.path("bob")).unwrap();
    let body = r#"{"reason":"done"}"#;
    let question = format!(
        "POST /v1/grants/{grant}/revoke?wait=10s HTTP/1.1\r\nHost: control\r\nAuthorization: Bearer {}\r\n\
         Content-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        token.trim(),
        body.len()
    );
    let mut stream = TcpStream::connect(site.api).await.unwrap();
    let sent = Instant::now();
    stream.write_all(question.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let at = Instant::now();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{answer}");
    let told: Value = serde_json::from_str(&body[body.find('{').unwrap()..=body.rfind('}').unwrap()]).unwrap();
    assert_eq!(told["receipt"]["complete"], true, "{told}");
    assert_eq!(told["receipt"]["applied"].as_array().unwrap().len(), 1, "by this sidecar: {told}");
    (sent, at)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn what_is_open_is_cut_within_250_ms_of_the_receipt() {
    let site = Site::open().await;
    let service = Service::start().await;
    // gRPC is a POST.
    let services = std::fs::read_to_string(site.path("seed/services.yaml")).unwrap();
    let services = crate::forward_auth::put(&services, "methods: [GET]", "methods: [GET, POST]");
    std::fs::write(site.path("services.yaml"), services).unwrap();
    site.must("alice", &["apply", "-f", &site.path("services.yaml")]).await;
    let at = service.address;
    let upstreams = format!(
        "proxy:\n  upstreams:\n    - {{ service: payments, addresses: ['{at}'] }}\n    \
         - {{ service: catalog, addresses: ['{at}'], protocol: http2 }}\n"
    );
    let environment = Environment::new([("PORTCULLIS__LISTENERS__PROXY".to_owned(), "127.0.0.1:0".to_owned())]);
    let sidecar = site.sidecar_with(&upstreams, &environment).await;
    let proxy = sidecar.proxy.unwrap();
    let (workload, agent) = (format!("{DOMAIN}/agent"), site.token("agent", "portcullis-demo"));

    let kinds = ["server-sent events", "WebSocket", "gRPC"];
    let mut late: [Vec<Duration>; 3] = Default::default();
    for _ in 0..ROUNDS {
        let ask = [
            "grant",
            "request",
            "--workload",
            &workload,
            "--resource",
            "payments/refunds",
            "--resource",
            "catalog/items",
        ];
        let ask =
            [&ask[..], &["--action", "read", "--action", "write", "--duration", "10m", "--reason", "test"]].concat();
        let asked = site.must("alice", &ask).await;
        let grant = asked["object"]["id"].as_str().unwrap();
        site.must("bob", &["grant", "approve", grant]).await;
        sidecar.comes_to(200, "GET", "/refunds/events", &agent).await;
        let open = [events(proxy, &agent).await, websocket(proxy, &agent).await, grpc(proxy, &agent).await];
        assert!(open.iter().all(|cut| !cut.is_finished()), "all three are open");
        let (sent, receipt) = revoke(&site, grant).await;
        println!("the receipt came {:?} after the revocation was sent", receipt.duration_since(sent));
        for ((late, kind), cut) in late.iter_mut().zip(kinds).zip(open) {
            let cut = tokio::time::timeout(Duration::from_secs(10), cut).await.expect("it is cut").unwrap();
            println!("{kind}: cut {:?} after the revocation was sent", cut.duration_since(sent));
            // Perhaps even before whoever revoked it has heard.
            late.push(cut.saturating_duration_since(receipt));
        }
        let after = sidecar.check("GET", "/refunds/events", &agent).await;
        assert_eq!((after.status, after.reason.as_str()), (403, "revoked.grant"));
    }
    for (kind, mut late) in kinds.into_iter().zip(late) {
        late.sort_unstable();
        println!("{kind}: cut after the receipt: median {:?}, of {late:?}", late[ROUNDS / 2]);
        assert!(late[ROUNDS / 2] <= SOON, "{kind}: {late:?}");
    }
    sidecar.server.stop().await;
    site.control.stop().await;
}
