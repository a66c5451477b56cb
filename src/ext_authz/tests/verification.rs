//! What a flood of tokens that have to be verified does to the door: nothing to warm checks, and never an allow.
//!
//! The one thread of the pool is held by a job of the test, so that what waits, waits for certain.

use std::future::Future;
use std::pin::Pin;
use std::task::Poll;

use envoy_types::pb::envoy::config::core::v3::address::Address as OneOf;
use envoy_types::pb::envoy::config::core::v3::{Address, SocketAddress};
use envoy_types::pb::envoy::service::auth::v3::CheckRequest;
use envoy_types::pb::envoy::service::auth::v3::attribute_context::Peer;

use super::*;
use crate::authz::Deferred;
use crate::cache::{AdaptiveLimits, Source, VerificationLimits};
use crate::credential::TokenSigner;
use crate::testing::{Estate, KeyHolder, changed};

/// A door on a real gate, whose pool has one thread.
struct Flooded {
    estate: Estate,
    known: String,
    forged: String,
    client_key: KeyHolder,
    /// Known, and bound to that key.
    bound: String,
    telemetry: Arc<Telemetry>,
    channel: Channel,
    client: AuthorizationClient<Channel>,
    /// Holds the thread until it is dropped.
    release: mpsc::Sender<()>,
    drain: Drain,
    served: JoinHandle<std::io::Result<()>>,
}

type Answer = Pin<Box<dyn Future<Output = CheckResponse> + Send>>;

async fn start(queue: usize, max_wait: Duration) -> Flooded {
    start_with(queue, max_wait, Config::default()).await
}

async fn start_with(queue: usize, max_wait: Duration, config: Config) -> Flooded {
    let estate = Estate::new();
    let gate = Arc::new(Gate::new(estate.state(), estate.clock.clone(), CacheSizes { tokens: 10, decisions: 10 }));
    // Known before the flood begins: one good token, and one that is known to be forged.
    let known = estate.token("storefront");
    let other = TokenSigner::generate_es256(estate.signer.kid()).unwrap();
    let forged = other.sign(&estate.claims("storefront")).unwrap();
    let client_key = KeyHolder::new();
    // The proofs that were used before the start are not known.
    estate.clock.advance(Duration::from_secs(100));
    let cnf = serde_json::json!({"cnf": {"jkt": client_key.thumbprint()}});
    let bound = estate.signer.sign(&changed(estate.claims("storefront"), &cnf)).unwrap();
    for (token, reason) in
        [(&known, Reason::AllowPolicy), (&forged, Reason::CredentialSignature), (&bound, Reason::CredentialPopMissing)]
    {
        let headers = [("authorization", format!("Bearer {token}"))];
        assert_eq!(gate.check(&crate::testing::request("GET", "/catalog/1", &headers)).reason, reason);
    }
    let pool = VerificationPool::start(VerificationLimits { threads: 1, queue, wait: None, max_wait }).unwrap();
    let (entered, is_in) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    pool.submit(Deferred::Token, Source::Connection(0), move |_| {
        entered.send(()).unwrap();
        let _ = released.recv();
    })
    .unwrap();
    is_in.recv().unwrap();
    let metrics = Arc::new(SidecarMetrics::new().unwrap());
    let off = RecordsConfig { output: Output::Off, queue: 1 };
    let records = Records::start(off, metrics.records_dropped().clone()).unwrap();
    let telemetry = Telemetry::new(metrics, records, None, estate.clock.clone());
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = format!("http://{}", tcp.local_addr().unwrap());
    let (drain, signal) = drain::channel();
    let listeners = Listeners { tcp: Some(tcp), ..Default::default() };
    let decide = Decide::Gate(gate);
    let served = tokio::spawn(serve_with(listeners, decide, pool, telemetry.clone(), Readiness::new(), config, signal));
    let channel = Endpoint::from_shared(at).unwrap().connect().await.unwrap();
    let client = AuthorizationClient::new(channel.clone());
    Flooded { estate, known, forged, client_key, bound, telemetry, channel, client, release, drain, served }
}

/// A check of the catalog under this token.
fn read(token: &str) -> CheckRequest {
    let mut request = check("/catalog/1");
    let http = request.attributes.as_mut().unwrap().request.as_mut().unwrap().http.as_mut().unwrap();
    http.host = "shop.example".to_owned();
    http.headers.insert("authorization".to_owned(), format!("Bearer {token}"));
    request
}

impl Flooded {
    /// A token of `storefront` that nobody has seen.
    fn fresh(&self, jti: &str) -> String {
        let mut claims = self.estate.claims("storefront");
        claims["jti"] = jti.into();
        self.estate.signer.sign(&claims).unwrap()
    }

    fn ask(&self, token: &str) -> Answer {
        self.send(read(token))
    }

    /// Asks for a client at this address.
    fn ask_from(&self, address: &str, token: &str) -> Answer {
        let mut request = read(token);
        let socket = SocketAddress { address: address.to_owned(), ..SocketAddress::default() };
        let address = Address { address: Some(OneOf::SocketAddress(socket)) };
        request.attributes.as_mut().unwrap().source = Some(Peer { address: Some(address), ..Peer::default() });
        self.send(request)
    }

    fn send(&self, request: CheckRequest) -> Answer {
        let mut client = self.client.clone();
        Box::pin(async move { client.check(request).await.unwrap().into_inner() })
    }

    /// Asks with the bound token and a good proof.
    fn ask_with_proof(&self) -> Answer {
        let uri = "https://shop.example/catalog/1";
        let claims = KeyHolder::dpop_claims("GET", uri, &self.bound, self.estate.clock.now().wall);
        let (mut client, mut request) = (self.client.clone(), read(&self.known));
        let http = request.attributes.as_mut().unwrap().request.as_mut().unwrap().http.as_mut().unwrap();
        http.scheme = "https".to_owned();
        http.headers.insert("authorization".to_owned(), format!("DPoP {}", self.bound));
        http.headers.insert("dpop".to_owned(), self.client_key.dpop(&claims));
        Box::pin(async move { client.check(request).await.unwrap().into_inner() })
    }

    /// Asks, and returns once the check waits to be verified, for which others wait already.
    async fn ask_and_wait(&self, token: &str, others: i64) -> JoinHandle<CheckResponse> {
        let asked = tokio::spawn(self.ask(token));
        self.until_waiting(Deferred::Token, others + 1).await;
        asked
    }

    async fn until_waiting(&self, what: Deferred, n: i64) {
        let waiting = async {
            while self.telemetry.metrics().verification_waiting(what).get() != n {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), waiting).await.expect("they come to wait");
    }

    fn shed(&self) -> u64 {
        self.telemetry.metrics().verification_shed(Deferred::Token).get()
    }
}

const LONG: Duration = Duration::from_secs(3600);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn warm_checks_are_answered_while_verification_is_full() {
    let door = start(1, LONG).await;
    let waits = door.ask_and_wait(&door.fresh("a"), 0).await;
    assert_eq!(denial(&door.ask(&door.fresh("b")).await), (503, "system".to_owned()), "the queue is full");
    assert_eq!(door.shed(), 1);
    // Whatever needs no signature needs no place either.
    assert!(is_allowed(&door.ask(&door.known).await));
    for refused in [&*door.forged, "garbage", "a.b.c", &door.fresh("c").replacen('.', ".x", 1)] {
        assert_eq!(denial(&door.ask(refused).await), (401, "credential".to_owned()));
    }
    assert_eq!(door.shed(), 1);
    drop(door.release);
    assert!(is_allowed(&waits.await.unwrap()), "what waited is decided like any other");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn forged_tokens_do_not_crowd_out_proofs() {
    let door = start(1, LONG).await;
    let forged = TokenSigner::generate_es256(door.estate.signer.kid()).unwrap();
    let forged = forged.sign(&door.estate.claims("storefront")).unwrap();
    let forged = door.ask_and_wait(&forged, 0).await;
    assert_eq!(denial(&door.ask(&door.fresh("b")).await), (503, "system".to_owned()), "no token gets in any more");
    let first = tokio::spawn(door.ask_with_proof());
    door.until_waiting(Deferred::Proof, 1).await;
    // Proofs have a bound as well.
    assert_eq!(denial(&door.ask_with_proof().await), (503, "system".to_owned()));
    let shed = [Deferred::Token, Deferred::Proof].map(|w| door.telemetry.metrics().verification_shed(w).get());
    assert_eq!(shed, [1, 1]);
    drop(door.release);
    assert!(is_allowed(&first.await.unwrap()));
    assert_eq!(denial(&forged.await.unwrap()), (401, "credential".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_09_waiting_too_long_to_be_verified_is_never_an_allow() {
    let door = start(2, Duration::ZERO).await;
    let late = door.ask_and_wait(&door.fresh("a"), 0).await;
    let Flooded { release, telemetry, .. } = door;
    drop(release);
    assert_eq!(denial(&late.await.unwrap()), (503, "system".to_owned()));
    assert_eq!(telemetry.metrics().verification_shed(Deferred::Token).get(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_goes_away_leaves_nothing_to_verify_and_a_drain_waits_for_the_others() {
    let door = start(2, LONG).await;
    let gone = door.ask_and_wait(&door.fresh("a"), 0).await;
    let stays = door.ask_and_wait(&door.fresh("b"), 1).await;
    gone.abort();
    let _aborted = gone.await;
    door.drain.begin(Duration::from_secs(60));
    let Flooded { release, telemetry, channel, client, served, .. } = door;
    drop(release);
    assert!(is_allowed(&stays.await.unwrap()));
    while telemetry.metrics().verification_waiting(Deferred::Token).get() != 0 {
        tokio::task::yield_now().await;
    }
    drop((channel, client));
    tokio::time::timeout(Duration::from_secs(10), served).await.unwrap().unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_floods_does_not_crowd_out_another() {
    let door = start(2, LONG).await;
    let forged = ["x", "y"].map(|jti| {
        let other = TokenSigner::generate_es256(door.estate.signer.kid()).unwrap();
        other.sign(&changed(door.estate.claims("storefront"), &serde_json::json!({"jti": jti}))).unwrap()
    });
    let first = tokio::spawn(door.ask_from("10.0.0.66", &forged[0]));
    door.until_waiting(Deferred::Token, 1).await;
    let second = tokio::spawn(door.ask_from("10.0.0.66", &forged[1]));
    door.until_waiting(Deferred::Token, 2).await;
    assert_eq!(denial(&door.ask_from("10.0.0.66", &door.fresh("a")).await), (503, "system".to_owned()));
    // It comes over the same connection; only the client's address tells it apart.
    let good = tokio::spawn(door.ask_from("10.0.0.1", &door.fresh("b")));
    assert_eq!(denial(&second.await.unwrap()), (503, "system".to_owned()), "it made room");
    assert_eq!(door.shed(), 2);
    drop(door.release);
    assert!(is_allowed(&good.await.unwrap()));
    assert_eq!(denial(&first.await.unwrap()), (401, "credential".to_owned()));
}

/// Limits that follow any delay at all, down to one check that takes a verification.
fn strict() -> Config {
    let adaptive = AdaptiveLimits { min: 16, delay: LONG, cold_delay: Duration::from_nanos(1) };
    Config { adaptive: Some(adaptive), ..Config::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn invariant_09_overload_sheds_unknown_tokens_first_and_never_allows() {
    let door = start_with(1_000, LONG, strict()).await;
    // A check under way whose message does not arrive. It was sent before what follows on this connection.
    let mut grpc = tonic::client::Grpc::new(door.channel.clone());
    grpc.ready().await.unwrap();
    let path = "/envoy.service.auth.v3.Authorization/Check".parse().unwrap();
    let never = tonic::Request::new(futures_util::stream::pending::<CheckRequest>());
    let mut stuck =
        Box::pin(grpc.client_streaming(never, path, tonic_prost::ProstCodec::<_, CheckResponse>::default()));
    assert!(std::future::poll_fn(|cx| Poll::Ready(stuck.as_mut().poll(cx).is_pending())).await);
    // Every answer takes more than a nanosecond, so the limit comes down once a window has passed.
    let shed = async {
        let mut n = 0_u64;
        loop {
            n += 1;
            assert!(is_allowed(&door.ask(&door.known).await), "a known token is answered meanwhile");
            let others = door.telemetry.metrics().verification_waiting(Deferred::Token).get();
            let asked = tokio::spawn(door.ask(&door.fresh(&format!("fresh-{n}"))));
            while !asked.is_finished() && door.telemetry.metrics().verification_waiting(Deferred::Token).get() == others
            {
                tokio::task::yield_now().await;
            }
            if asked.is_finished() {
                return asked.await.unwrap();
            }
            asked.abort();
        }
    };
    let shed = tokio::time::timeout(Duration::from_secs(30), shed).await.expect("the limit follows");
    assert_eq!(denial(&shed), (503, "system".to_owned()));
    assert!(door.telemetry.metrics().exposition().render().contains("portcullis_overload_limit{class=\"cold\"} 1\n"));
    let health =
        HealthClient::new(door.channel.clone()).check(HealthCheckRequest { service: SERVICE.to_owned() }).await;
    assert_eq!(health.unwrap().into_inner().status, 1, "overload is not unreadiness");
}
