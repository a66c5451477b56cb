//! The decision corpus through the reverse proxy: each case as a client would send it, over a connection that the PROXY
//! protocol says is from where the case says.
//!
//! Left out are what a client cannot send through it: another enforcing proxy's word about the body, a certificate of the
//! connection without TLS, and proofs of possession, which name another scheme and are used up by then.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use portcullis::authz::Reason;
use portcullis::cache::Gate;
use portcullis::door::{self, Checks};
use portcullis::drain::{self, Drain};
use portcullis::proxy::{self, Protocol};
use portcullis::telemetry::{Output, Records, RecordsConfig, SidecarMetrics, Telemetry};
use tokio::net::TcpListener;

use crate::reverse_proxy::{config, raw, upstream};
use crate::reverse_proxy_upstream::Service;

pub(crate) struct ProxyDoor {
    address: SocketAddr,
    _drain: Drain,
}

impl ProxyDoor {
    pub(crate) async fn of(gate: &Arc<Gate>, services: Vec<String>, behind: &Service) -> Self {
        let metrics = Arc::new(SidecarMetrics::new().unwrap());
        let records = RecordsConfig { output: Output::Off, queue: 1 };
        let records = Records::start(records, metrics.records_dropped().clone()).unwrap();
        let telemetry = Telemetry::new(metrics, records, None, Arc::clone(gate.clock()));
        let checks = Checks::new(Arc::clone(gate), telemetry, &door::Config::default()).unwrap();
        let one = upstream(&[behind.address], Protocol::Http1);
        let mut config = config(one.clone());
        config.upstreams =
            services.into_iter().map(|service| proxy::UpstreamConfig { service, ..one.clone() }).collect();
        // Where a case tells of a body that never comes.
        config.limits.head_timeout = std::time::Duration::from_secs(1);
        config.listener.proxy_protocol = vec!["127.0.0.0/8".parse().unwrap()];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (drain, signal) = drain::channel();
        tokio::spawn(proxy::serve(proxy::Bound::new(listener, config).unwrap(), checks, signal));
        Self { address, _drain: drain }
    }

    /// Sends a case, and holds the answer against what it should be.
    pub(crate) async fn check(
        &self,
        name: &str,
        (method, path, host): (&str, &str, &str),
        (headers, body): (&[(String, String)], Option<&str>),
        address: Option<IpAddr>,
        expected: Reason,
    ) {
        let mut bytes = b"\r\n\r\n\0\r\nQUIT\n".to_vec();
        match address {
            None => bytes.extend([0x20, 0, 0, 0]),
            Some(IpAddr::V4(ip)) => {
                bytes.extend([0x21, 0x11, 0, 12]);
                bytes.extend(ip.octets());
                bytes.extend([10, 0, 0, 1, 0, 1, 0, 1]);
            }
            Some(IpAddr::V6(ip)) => {
                bytes.extend([0x21, 0x21, 0, 36]);
                bytes.extend(ip.octets());
                bytes.extend([0; 20]);
            }
        }
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
        headers.iter().for_each(|(name, value)| head.push_str(&format!("{name}: {value}\r\n")));
        if let Some(body) = body.filter(|_| headers.iter().all(|(name, _)| name != "content-length")) {
            head.push_str(&format!("Content-Length: {}\r\n", body.len()));
        }
        bytes.extend(format!("{head}\r\n{}", body.unwrap_or_default()).into_bytes());
        let answer = raw(self.address, &bytes).await;
        let status = answer.get(9..12).unwrap_or_else(|| panic!("{name}: {answer:?}"));
        let expected_status = if expected.is_allow() { 200 } else { expected.http_status() };
        assert_eq!(status, expected_status.to_string(), "{name}: {answer}");
        let said = answer.lines().find_map(|line| line.strip_prefix("x-portcullis-reason: "));
        match said {
            // An answer without a body does not show what the upstream saw.
            _ if expected.is_allow() && method == "HEAD" => {}
            _ if expected.is_allow() => {
                assert!(answer.contains("\"x-portcullis-workload\":\"spiffe://"), "{name}: {answer}");
            }
            Some(said) => assert!(said == expected.code() || said == expected.family(), "{name}: `{said}`"),
            // What is refused before it is read as HTTP has no decision to tell of.
            None => assert_eq!(expected.family(), "input", "{name}: {answer}"),
        }
    }
}
