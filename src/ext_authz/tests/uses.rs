//! A door on a real gate, whose uses come while a check waits, or do not.

use std::time::Instant;

use envoy_types::pb::envoy::service::auth::v3::CheckRequest;

use super::*;
use crate::cache::VerificationLimits;
use crate::grant::ledger::UseAnswer;
use crate::state::State;
use crate::testing::{Estate, KeyHolder, changed};

struct Counting {
    estate: Estate,
    state: Arc<State>,
    client: AuthorizationClient<Channel>,
    drain: Drain,
}

/// `agent` has a grant of three uses on refunds.
async fn start() -> Counting {
    let mut estate = Estate::new();
    let asked = estate.ask("agent", "payments/refunds", &["write"], None, 3600);
    estate.grant_as(asked, |grant| grant.uses = Some(3));
    let state = estate.state();
    let gate = Gate::new(Arc::clone(&state), estate.clock.clone(), CacheSizes { tokens: 10, decisions: 10 });
    // The proofs that were used before the start are not known.
    estate.clock.advance(Duration::from_secs(100));
    let pool = VerificationPool::start(VerificationLimits::default()).unwrap();
    let metrics = Arc::new(SidecarMetrics::new().unwrap());
    let off = RecordsConfig { output: Output::Off, queue: 1 };
    let records = Records::start(off, metrics.records_dropped().clone()).unwrap();
    let telemetry = Telemetry::new(metrics, records, None, estate.clock.clone());
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = format!("http://{}", tcp.local_addr().unwrap());
    let (drain, signal) = drain::channel();
    let listeners = Listeners { tcp: Some(tcp), ..Default::default() };
    let decide = Decide::Gate(Arc::new(gate));
    tokio::spawn(serve_with(listeners, decide, pool, telemetry, Readiness::new(), Config::default(), signal));
    let client = AuthorizationClient::new(Endpoint::from_shared(at).unwrap().connect().await.unwrap());
    Counting { estate, state, client, drain }
}

fn refund(headers: &[(&str, String)]) -> CheckRequest {
    let mut request = check("/refunds/7");
    let http = request.attributes.as_mut().unwrap().request.as_mut().unwrap().http.as_mut().unwrap();
    http.method = "POST".to_owned();
    http.host = "shop.example".to_owned();
    http.scheme = "https".to_owned();
    http.headers.extend(headers.iter().map(|(name, value)| ((*name).to_owned(), value.clone())));
    request
}

impl Counting {
    async fn ask(&self, headers: &[(&str, String)]) -> (String, CheckResponse) {
        let response = self.client.clone().check(refund(headers)).await.unwrap().into_inner();
        let fields = &response.dynamic_metadata.as_ref().unwrap().fields;
        let reason = match fields["reason"].kind.as_ref().unwrap() {
            envoy_types::pb::google::protobuf::value::Kind::StringValue(reason) => reason.clone(),
            other => panic!("{other:?}"),
        };
        (reason, response)
    }

    /// Answers what is asked, once it has been waited for.
    async fn gives(&self, granted: u32) {
        let purse = self.state.purse();
        let now = self.estate.clock.now().mono;
        let message = loop {
            if let [message] = purse.messages(now, usize::MAX)[..] {
                break message;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        };
        tokio::time::sleep(Duration::from_millis(20)).await;
        let place = (message.grant, message.report.account);
        purse.answered(place, message.number, UseAnswer::Given(granted), Duration::from_secs(60), now);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_check_waits_for_a_use_and_no_longer_than_envoy_does() {
    let site = start().await;
    let headers = [("authorization", format!("Bearer {}", site.estate.token("agent")))];
    // The first takes the verification of its token, the second does not.
    for granted in [1, 2] {
        let ((reason, response), ()) = tokio::join!(site.ask(&headers), site.gives(granted));
        assert_eq!((reason.as_str(), response.status.unwrap().code), ("allow.grant", 0));
    }
    let begun = Instant::now();
    let (reason, response) = site.ask(&headers).await;
    let took = begun.elapsed();
    assert_eq!(reason, "system.uses");
    assert!((Duration::from_millis(120)..Duration::from_millis(500)).contains(&took), "{took:?}");
    let Some(HttpResponse::DeniedResponse(denied)) = response.http_response else { panic!("not a denial") };
    assert_eq!(denied.status.unwrap().code, 503);
    assert!(denied.headers.iter().any(|h| h.header.as_ref().unwrap().key == "retry-after"));
    assert_eq!(site.state.purse().counts().spent, 2);
    site.drain.begin(Duration::from_secs(1));
}

/// The proof of possession is used up once, by the decision that found no use; deciding again is no replay.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proof_is_used_up_once_over_the_wait() {
    let site = start().await;
    let key = KeyHolder::new();
    let cnf = serde_json::json!({"cnf": {"jkt": key.thumbprint()}});
    let token = site.estate.signer.sign(&changed(site.estate.claims("agent"), &cnf)).unwrap();
    let now = site.estate.clock.now().wall;
    let claims = KeyHolder::dpop_claims("POST", "https://shop.example/refunds/7", &token, now);
    let headers = [("authorization", format!("DPoP {token}")), ("dpop", key.dpop(&claims))];
    let ((reason, _), ()) = tokio::join!(site.ask(&headers), site.gives(2));
    assert_eq!(reason, "allow.grant");
    assert_eq!(site.ask(&headers).await.0, "credential.replay");
    assert_eq!(site.state.purse().counts().spent, 1);
    site.drain.begin(Duration::from_secs(1));
}
