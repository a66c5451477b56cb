//! A traced check through the real door: its span reaches an OTLP collector, over gRPC, below the caller's.
//!
//! The collector is HTTP/2 by hand and reads the few fields of the export that are asked about.

use http_body_util::BodyExt;
use hyper::body::{Frame, Incoming};
use prost::Message;
use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::*;
use crate::telemetry::{LogConfig, LogFormat, detached};

const EXPORT: &str = "/opentelemetry.proto.collector.trace.v1.TraceService/Export";
const TRACE_ID: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT_ID: &str = "b7ad6b7169203331";

#[derive(Clone, PartialEq, prost::Message)]
struct Export {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ResourceSpans {
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ScopeSpans {
    #[prost(message, repeated, tag = "2")]
    spans: Vec<ExportedSpan>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct ExportedSpan {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<Attribute>,
}

#[derive(Clone, PartialEq, prost::Message)]
struct Attribute {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<Text>,
}

/// The text of an attribute, if it is one.
#[derive(Clone, PartialEq, prost::Message)]
struct Text {
    #[prost(string, tag = "1")]
    text: String,
}

/// Answers one export and hands over its spans.
async fn collect(
    request: http::Request<Incoming>,
    spans: UnboundedSender<ExportedSpan>,
) -> Result<http::Response<impl hyper::body::Body<Data = bytes::Bytes, Error = std::convert::Infallible>>, hyper::Error>
{
    assert_eq!(request.uri().path(), EXPORT);
    let body = request.into_body().collect().await?.to_bytes();
    assert_eq!(body[0], 0, "not compressed");
    let export = Export::decode(&body[5..]).unwrap();
    for span in export.resource_spans.into_iter().flat_map(|r| r.scope_spans).flat_map(|s| s.spans) {
        let _nobody_asks_any_more = spans.send(span);
    }
    let trailers = http::HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
    let frames = [Frame::data(bytes::Bytes::from_static(&[0; 5])), Frame::trailers(trailers)].map(Ok);
    let body = http_body_util::StreamBody::new(futures_util::stream::iter(frames));
    Ok(http::Response::builder().header("content-type", "application/grpc").body(body).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_traced_check_is_exported_below_its_caller_and_an_untraced_one_is_not() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let (spans, mut exported) = unbounded_channel();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let service = hyper::service::service_fn(|request| collect(request, spans.clone()));
        let server = hyper::server::conn::http2::Builder::new(hyper_util::rt::TokioExecutor::new());
        let _gone = server.serve_connection(TokioIo::new(stream), service).await;
    });
    let config = LogConfig {
        level: "off".to_owned(),
        format: LogFormat::Json,
        otlp_endpoint: Some(endpoint),
        service_name: "test",
    };
    let log = detached(&config).unwrap();
    let running = start_traced(Config::default(), by_path, log.check_tracer()).await;
    let mut client = running.client().await;
    let mut ask = async |path: &str, traceparent: Option<String>| {
        let mut request = check(path);
        let http = request.attributes.as_mut().unwrap().request.as_mut().unwrap().http.as_mut().unwrap();
        http.headers.extend(traceparent.map(|value| ("traceparent".to_owned(), value)));
        client.check(request).await.unwrap().into_inner()
    };
    assert!(is_allowed(&ask("/ok/untraced", None).await));
    assert!(is_allowed(&ask("/ok/unsampled", Some(format!("00-{TRACE_ID}-{PARENT_ID}-00"))).await));
    assert!(!is_allowed(&ask("/traced", Some(format!("00-{TRACE_ID}-{PARENT_ID}-01"))).await));
    // The end of the log flushes what has not been exported.
    tokio::task::spawn_blocking(move || drop(log)).await.unwrap();

    let span = tokio::time::timeout(Duration::from_secs(10), exported.recv()).await.expect("a span").unwrap();
    assert_eq!(span.name, "portcullis.check");
    assert_eq!((hex(&span.trace_id), hex(&span.parent_span_id)), (TRACE_ID.to_owned(), PARENT_ID.to_owned()));
    let attribute = |name: &str| span.attributes.iter().find(|a| a.key == name).and_then(|a| a.value.clone());
    assert_eq!(attribute("portcullis.reason").unwrap().text, "policy.no_match");
    let records = running.records();
    assert_eq!(
        attribute("portcullis.decision_id").unwrap().text,
        records[2]["decision_id"].as_str().unwrap(),
        "{records:?}"
    );
    assert!(exported.try_recv().is_err(), "nothing else was exported");
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
