//! The listener: real sockets, limits, shutdown.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::harness::Site;
use crate::control::api::{ServeLimits, serve};

#[tokio::test]
async fn it_serves_cuts_off_slow_heads_and_stops_when_told() {
    let site = Site::new().await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let shutdown = CancellationToken::new();
    let limits = ServeLimits { header_timeout: Duration::from_millis(200), ..ServeLimits::default() };
    let server = tokio::spawn(serve(listener, None, site.router(), limits, shutdown.clone()));

    let mut slow = TcpStream::connect(address).await.unwrap();
    slow.write_all(b"GET /v1/status HTTP/1.1\r\nhost: x\r\n").await.unwrap();
    let mut rest = Vec::new();
    slow.read_to_end(&mut rest).await.unwrap();
    assert!(!String::from_utf8_lossy(&rest).contains(" 200 "), "a head that never ends is cut off");

    let mut silent = TcpStream::connect(address).await.unwrap();
    assert_eq!(silent.read_to_end(&mut rest).await.unwrap(), 0, "and so is who says nothing");

    let mut stream = TcpStream::connect(address).await.unwrap();
    let head = format!(
        "GET /v1/status HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\nconnection: close\r\n\r\n",
        site.token
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");

    let idle = TcpStream::connect(address).await.unwrap();
    shutdown.cancel();
    server.await.unwrap();
    assert!(TcpStream::connect(address).await.is_err(), "nothing new is accepted");
    drop(idle);
}
