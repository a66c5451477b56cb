//! A body of 1 GiB in each direction, and what it takes of memory: the same whatever its size.
#![allow(clippy::print_stdout, reason = "what is measured is told")]

use std::time::Instant;

use portcullis::proxy::Protocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::reverse_proxy::{Proxy, config, upstream};
use crate::reverse_proxy_upstream::Service;

const GIB: u64 = 1 << 30;
/// Client, proxy, and service, all in this process.
const MAY_GROW_BY: u64 = 48 << 20;

/// The resident memory of this process.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

/// The most that it is while `work` goes on.
async fn most<T>(work: impl Future<Output = T>) -> (T, u64) {
    let mut work = std::pin::pin!(work);
    let mut looks = tokio::time::interval(std::time::Duration::from_millis(20));
    let mut most = 0;
    loop {
        tokio::select! {
            done = &mut work => return (done, most.max(resident())),
            _ = looks.tick() => most = most.max(resident()),
        }
    }
}

/// In a process of its own: other tests in this one take memory too.
#[test]
fn a_gibibyte_goes_through_in_constant_memory() {
    const ALONE: &str = "PORTCULLIS_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap().block_on(both_ways());
    }
    let name = "reverse_proxy_bulk::a_gibibyte_goes_through_in_constant_memory";
    let mut alone = std::process::Command::new(std::env::current_exe().unwrap());
    let output = alone.args(["--exact", name, "--nocapture"]).env(ALONE, "1").output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    println!("{said}");
    assert!(output.status.success(), "{said}\n{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(said.matches("2 x 1 GiB").count(), 2, "both protocols were measured: {said}");
}

async fn both_ways() {
    let service = Service::start().await;
    for protocol in [Protocol::Http1, Protocol::Http2] {
        let proxy = Proxy::open(config(upstream(&[service.address], protocol))).await;
        transfer(&proxy, 16 << 20).await;
        let before = resident();
        let started = Instant::now();
        let (_, most) = most(transfer(&proxy, GIB)).await;
        let grown = most.saturating_sub(before);
        println!("{protocol:?}: 2 x 1 GiB in {:?}, resident memory {before} + {grown} B", started.elapsed());
        assert!(grown < MAY_GROW_BY, "{protocol:?}: grew by {grown} B");
    }
}

/// So many bytes up, and then so many down.
async fn transfer(proxy: &Proxy, bytes: u64) {
    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    let head = proxy.head("POST /app/count", &[&format!("Content-Length: {bytes}"), "Connection: close"]);
    stream.write_all(head.as_bytes()).await.unwrap();
    let piece = vec![0; 65_536];
    let mut left = bytes;
    while left > 0 {
        let now = usize::try_from(left).unwrap().min(piece.len());
        stream.write_all(&piece[..now]).await.unwrap();
        left -= now as u64;
    }
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.contains(&format!("\r\n\r\n{bytes:x}")) || answer.contains(&bytes.to_string()), "{answer}");

    let mut stream = TcpStream::connect(proxy.address).await.unwrap();
    let head = proxy.head(&format!("GET /app/bytes?n={bytes}"), &["Connection: close"]);
    stream.write_all(head.as_bytes()).await.unwrap();
    let (mut sum, mut piece) = (0, vec![0; 65_536]);
    loop {
        match stream.read(&mut piece).await.unwrap() {
            0 => break,
            read => sum += read as u64,
        }
    }
    // With the head and the chunks' lengths around it.
    assert!(sum > bytes && sum < bytes + bytes / 100 + 4096, "{sum} of {bytes}");
}
