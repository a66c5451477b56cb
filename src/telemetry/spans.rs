//! One OpenTelemetry span per check that Envoy's trace samples.
//!
//! Plane: hot path, when tracing is on. The parent is the W3C trace context of the checked request's headers.
//! INVARIANT: a check whose parent is not sampled, or that has none, makes no span, so that an untraced request costs
//! one search for a header and nobody can make us trace what Envoy does not. Nothing waits: the exporter's queue is
//! bounded and drops.

use std::time::{Duration, UNIX_EPOCH};

use opentelemetry::propagation::{Extractor, TextMapPropagator};
use opentelemetry::trace::{Span, SpanContext, SpanKind, TraceContextExt, Tracer};
use opentelemetry::{Context, KeyValue};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use opentelemetry_sdk::trace::SdkTracer;

use crate::authz::{Decision, Door, Header};
use crate::clock::Timestamp;

/// `00-` trace id `-` span id `-` flags; later versions are longer.
const TRACEPARENT_LEN: usize = 55;

/// Makes the spans of checks.
#[derive(Debug, Clone)]
pub struct CheckTracer(SdkTracer);

/// A sampled remote span.
#[derive(Debug)]
pub(super) struct Parent(SpanContext);

struct TraceHeaders<'a> {
    traceparent: &'a str,
    tracestate: Option<&'a str>,
}

// === impl CheckTracer ===

impl CheckTracer {
    pub(super) fn new(tracer: SdkTracer) -> Self {
        Self(tracer)
    }

    /// The trace context of a request, if it is sampled. One that is sent twice is none.
    pub(super) fn parent(&self, headers: &[Header<'_>]) -> Option<Parent> {
        let single = |name: &str| {
            let mut found = headers.iter().filter(|h| h.name.eq_ignore_ascii_case(name.as_bytes()));
            let value = std::str::from_utf8(found.next()?.value).ok()?;
            found.next().is_none().then_some(value)
        };
        // The propagator accepts shortened ids.
        let traceparent = single("traceparent").filter(|value| value.len() >= TRACEPARENT_LEN)?;
        let headers = TraceHeaders { traceparent, tracestate: single("tracestate") };
        let context = TraceContextPropagator::new().extract_with_context(&Context::new(), &headers);
        let parent = context.span().span_context().clone();
        (parent.is_valid() && parent.is_sampled()).then_some(Parent(parent))
    }

    /// Hands a finished check's span to the exporter.
    pub(super) fn record(
        &self,
        parent: &Parent,
        ended: Timestamp,
        door: Door,
        decision: &Decision,
        method: &str,
        duration: Duration,
    ) {
        let end = UNIX_EPOCH + Duration::from_millis(ended.as_millis());
        let mut attributes = vec![
            KeyValue::new("portcullis.door", door.name()),
            KeyValue::new("portcullis.reason", decision.reason.code()),
            KeyValue::new("portcullis.decision_id", decision.id.to_string()),
            KeyValue::new("portcullis.cached", decision.cached),
            KeyValue::new("http.request.method", method.to_owned()),
        ];
        for (name, value) in [
            ("portcullis.workload", &decision.workload),
            ("portcullis.resource", &decision.resource),
            ("portcullis.action", &decision.action),
        ] {
            if let Some(value) = value {
                attributes.push(KeyValue::new(name, value.clone()));
            }
        }
        let context = Context::new().with_remote_span_context(parent.0.clone());
        let mut span = self
            .0
            .span_builder("portcullis.check")
            .with_kind(SpanKind::Server)
            .with_start_time(end.checked_sub(duration).unwrap_or(end))
            .with_attributes(attributes)
            .start_with_context(&self.0, &context);
        span.end_with_timestamp(end);
    }
}

// === impl TraceHeaders ===

impl Extractor for TraceHeaders<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match key {
            "traceparent" => Some(self.traceparent),
            "tracestate" => self.tracestate,
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        vec!["traceparent", "tracestate"]
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use opentelemetry::trace::TracerProvider;
    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanExporter};

    use super::*;
    use crate::authz::{DecisionId, Reason};

    #[derive(Debug, Clone, Default)]
    struct Collected(Arc<Mutex<Vec<SpanData>>>);

    impl SpanExporter for Collected {
        async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
            self.0.lock().unwrap().extend(batch);
            Ok(())
        }
    }

    const SAMPLED: &[u8] = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn header<'a>(name: &'a str, value: &'a [u8]) -> Header<'a> {
        Header { name: name.as_bytes(), value }
    }

    #[test]
    fn a_span_continues_the_callers_trace() {
        let collected = Collected::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(collected.clone()).build();
        let tracer = CheckTracer::new(provider.tracer("test"));
        let parent = tracer.parent(&[header("accept", b"*/*"), header("Traceparent", SAMPLED)]).unwrap();
        let decision = Decision::for_test(Reason::AllowGrant, DecisionId::new(Timestamp::from_secs(1)));
        let ended = Timestamp::from_millis(1_700_000_000_500);
        tracer.record(&parent, ended, Door::ExtAuthz, &decision, "GET", Duration::from_millis(3));
        let spans = collected.0.lock().unwrap();
        let span = &spans[0];
        assert_eq!(span.span_context.trace_id().to_string(), "0af7651916cd43dd8448eb211c80319c");
        assert_eq!(span.parent_span_id.to_string(), "b7ad6b7169203331");
        assert_eq!(span.end_time.duration_since(span.start_time).unwrap(), Duration::from_millis(3));
        let reason = span.attributes.iter().find(|a| a.key.as_str() == "portcullis.reason").unwrap();
        assert_eq!(reason.value.as_str(), "allow.grant");
    }

    #[test]
    fn only_a_single_valid_sampled_parent_is_followed() {
        let provider = SdkTracerProvider::builder().build();
        let tracer = CheckTracer::new(provider.tracer("test"));
        let unsampled = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00";
        for headers in [
            &[][..],
            &[header("traceparent", unsampled)],
            &[header("traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b71-01")],
            &[header("traceparent", b"\xff")],
            &[header("traceparent", b"00-00000000000000000000000000000000-b7ad6b7169203331-01")],
            &[header("traceparent", SAMPLED), header("traceparent", SAMPLED)],
        ] {
            assert!(tracer.parent(headers).is_none(), "{headers:?}");
        }
        assert!(tracer.parent(&[header("traceparent", SAMPLED)]).is_some());
    }
}
