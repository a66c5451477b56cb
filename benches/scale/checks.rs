//! Warm checks at a fixed rate, while something else goes on.
//!
//! Checks are sent at their times whatever becomes of the ones before, and latency counts from the intended time, so that
//! a stall is not left out. Every answer must be an allow.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use envoy_types::pb::envoy::service::auth::v3::attribute_context::{HttpRequest, Request};
use envoy_types::pb::envoy::service::auth::v3::authorization_client::AuthorizationClient;
use envoy_types::pb::envoy::service::auth::v3::{AttributeContext, CheckRequest};
use hdrhistogram::Histogram;
use tonic::transport::Channel;

use super::sidecar::Sidecar;

/// A client.
pub(super) struct Checks {
    runtime: tokio::runtime::Runtime,
    client: AuthorizationClient<Channel>,
    request: CheckRequest,
}

impl Checks {
    pub(super) fn new(sidecar: &Sidecar, token: &str) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", sidecar.door)).expect("an address");
        let channel = runtime.block_on(endpoint.connect()).expect("a connection");
        let headers = HashMap::from([("authorization".to_owned(), format!("Bearer {token}"))]);
        let http = HttpRequest {
            method: "GET".to_owned(),
            path: "/catalog/1".to_owned(),
            host: "shop.example".to_owned(),
            scheme: "https".to_owned(),
            headers,
            ..HttpRequest::default()
        };
        let request = Request { http: Some(http), ..Request::default() };
        let request = CheckRequest {
            attributes: Some(AttributeContext { request: Some(request), ..AttributeContext::default() }),
        };
        Self { runtime, client: AuthorizationClient::new(channel), request }
    }

    /// Latencies in microseconds.
    pub(super) fn at_rate(&self, rate: u64, time: Duration) -> Histogram<u64> {
        let begun = Instant::now();
        self.while_(rate, || begun.elapsed() < time)
    }

    /// The same for as long as something is so, which is asked 50 times a second from another thread.
    pub(super) fn while_(&self, rate: u64, mut goes_on: impl FnMut() -> bool) -> Histogram<u64> {
        let stop = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let latencies = Arc::new(Mutex::new(Histogram::new(3).expect("a histogram")));
        let (stopped, recorded) = (Arc::clone(&stop), Arc::clone(&latencies));
        let (client, request) = (self.client.clone(), self.request.clone());
        let load = self.runtime.spawn(async move {
            let start = Instant::now();
            let mut tasks = Vec::new();
            for n in 0.. {
                let due = start + Duration::from_nanos(n * 1_000_000_000 / rate);
                tokio::time::sleep_until(due.into()).await;
                if stopped.load(std::sync::atomic::Ordering::Relaxed) {
                    break;
                }
                let (mut client, request, latencies) = (client.clone(), request.clone(), Arc::clone(&recorded));
                tasks.push(tokio::spawn(async move {
                    let response = client.check(request).await.expect("an answer").into_inner();
                    let took = u64::try_from(due.elapsed().as_micros()).expect("a short time");
                    assert_eq!(response.status.expect("a status").code, 0, "a warm check must be an allow");
                    latencies.lock().expect("no panic").record(took.max(1)).expect("a latency");
                }));
            }
            for task in tasks {
                task.await.expect("a check");
            }
        });
        while goes_on() {
            std::thread::sleep(Duration::from_millis(20));
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        self.runtime.block_on(load).expect("the load");
        Arc::into_inner(latencies).expect("every check has ended").into_inner().expect("no panic")
    }
}
