//! The process's own log, and the export of traces.
//!
//! Plane: cross-cutting. Lines go to standard error through a thread of its own, so that a slow terminal stalls no
//! check; what that thread cannot keep up with is dropped. The level can be changed while running. With an OTLP
//! endpoint, our own spans (and only ours: the exporter's would feed on themselves) are exported in batches.

use std::io;
use std::time::Duration;

use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{SpanExporter, WithExportConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{Sampler, SdkTracerProvider};
use tracing::Dispatch;
use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{EnvFilter, Layer, Registry, filter, fmt, reload};

use super::spans::CheckTracer;

/// How a log line is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// One JSON object a line.
    Json,
    /// For people.
    Text,
}

/// What to log and where to send traces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug`, `trace`, or directives as in `info,portcullis::sync=debug`.
    pub level: String,
    /// How lines are written.
    pub format: LogFormat,
    /// The address of an OTLP gRPC collector, as in `http://127.0.0.1:4317`.
    pub otlp_endpoint: Option<String>,
    /// `service.name` of exported traces.
    pub service_name: &'static str,
}

/// Changes the log level while running. Cheap to clone; clones share.
#[derive(Debug, Clone)]
pub struct LevelHandle(reload::Handle<EnvFilter, Registry>);

/// Keeps the log's thread and the trace exporter going; dropping it flushes both.
#[derive(Debug)]
#[must_use = "dropping it ends the log"]
pub struct Logging {
    level: LevelHandle,
    tracer: Option<CheckTracer>,
    provider: Option<SdkTracerProvider>,
    _writer: WorkerGuard,
    #[cfg(test)]
    dispatch: Option<Dispatch>,
}

/// Why the log cannot be set up or its level not be changed.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The level cannot be parsed.
    #[error("`{level}` is not a log level: {error}")]
    Level {
        /// What was asked for.
        level: String,
        /// What is wrong with it.
        error: filter::ParseError,
    },
    /// The exporter refuses its endpoint.
    #[error("traces cannot be exported to `{endpoint}`: {error}")]
    Otlp {
        /// The endpoint.
        endpoint: String,
        /// What is wrong with it.
        error: opentelemetry_otlp::ExporterBuildError,
    },
    /// Another log is in place already.
    #[error("a log has been set up before")]
    AlreadySet,
    /// The log has ended.
    #[error("the log has ended")]
    Ended,
}

/// Sets up the process's log. Within a tokio runtime, which also carries the export of traces.
pub fn init(config: &LogConfig) -> Result<Logging, LogError> {
    let (dispatch, logging) = build(config, io::stderr())?;
    tracing::dispatcher::set_global_default(dispatch).map_err(|_set| LogError::AlreadySet)?;
    Ok(logging)
}

/// A log that goes nowhere, for tests of what changes its level.
#[cfg(test)]
pub(crate) fn detached(config: &LogConfig) -> Result<Logging, LogError> {
    let (dispatch, mut logging) = build(config, io::sink())?;
    logging.dispatch = Some(dispatch);
    Ok(logging)
}

fn build(config: &LogConfig, out: impl io::Write + Send + 'static) -> Result<(Dispatch, Logging), LogError> {
    let (writer, guard) = NonBlockingBuilder::default().thread_name("log").finish(out);
    let (filter, handle) = reload::Layer::new(parse(&config.level)?);
    let lines = match config.format {
        LogFormat::Json => fmt::layer().json().flatten_event(true).with_writer(writer).boxed(),
        LogFormat::Text => fmt::layer().with_ansi(false).with_writer(writer).boxed(),
    };
    let provider =
        config.otlp_endpoint.as_deref().map(|endpoint| exporter(endpoint, config.service_name)).transpose()?;
    let spans = provider.as_ref().map(|provider| {
        let ours = filter::filter_fn(|metadata| metadata.target().starts_with("portcullis"));
        tracing_opentelemetry::layer().with_tracer(provider.tracer("portcullis")).with_filter(ours)
    });
    let dispatch = Dispatch::new(tracing_subscriber::registry().with(filter).with(lines).with(spans));
    let tracer = provider.as_ref().map(|provider| CheckTracer::new(provider.tracer("portcullis")));
    let logging = Logging {
        level: LevelHandle(handle),
        tracer,
        provider,
        _writer: guard,
        #[cfg(test)]
        dispatch: None,
    };
    Ok((dispatch, logging))
}

fn exporter(endpoint: &str, service_name: &'static str) -> Result<SdkTracerProvider, LogError> {
    let exporter = SpanExporter::builder()
        .with_tonic()
        .with_endpoint(endpoint)
        .with_timeout(Duration::from_secs(5))
        .build()
        .map_err(|error| LogError::Otlp { endpoint: endpoint.to_owned(), error })?;
    Ok(SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_sampler(Sampler::ParentBased(Box::new(Sampler::AlwaysOn)))
        .with_resource(Resource::builder().with_service_name(service_name).build())
        .build())
}

fn parse(level: &str) -> Result<EnvFilter, LogError> {
    EnvFilter::builder().parse(level).map_err(|error| LogError::Level { level: level.to_owned(), error })
}

// === impl LevelHandle ===

impl LevelHandle {
    /// The level in force.
    pub fn level(&self) -> Result<String, LogError> {
        self.0.with_current(ToString::to_string).map_err(|_ended| LogError::Ended)
    }

    /// Changes the level.
    pub fn set(&self, level: &str) -> Result<(), LogError> {
        self.0.reload(parse(level.trim())?).map_err(|_ended| LogError::Ended)
    }
}

// === impl Logging ===

impl Logging {
    /// Changes the level while running.
    pub fn level(&self) -> &LevelHandle {
        &self.level
    }

    /// Makes the spans of checks, when traces are exported.
    pub fn check_tracer(&self) -> Option<CheckTracer> {
        self.tracer.clone()
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        if let Some(provider) = self.provider.take() {
            // A collector that cannot be reached must not hold up the end of the process.
            let _ = provider.shutdown_with_timeout(Duration::from_secs(2));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(buf);
            Ok(buf.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn config(format: LogFormat) -> LogConfig {
        LogConfig { level: "info".to_owned(), format, otlp_endpoint: None, service_name: "test" }
    }

    #[test]
    fn level_changes_while_running() {
        let lines = Lines::default();
        let (dispatch, logging) = build(&config(LogFormat::Json), lines.clone()).unwrap();
        tracing::dispatcher::with_default(&dispatch, || {
            tracing::debug!("before");
            logging.level().set("portcullis=debug").unwrap();
            tracing::debug!(answer = 42, "after");
            assert!(matches!(logging.level().set("portcullis=loud"), Err(LogError::Level { .. })));
            tracing::debug!("still");
        });
        assert_eq!(logging.level().level().unwrap(), "portcullis=debug");
        let level = logging.level().clone();
        drop(logging);
        drop(dispatch);
        assert!(matches!(level.level(), Err(LogError::Ended)));
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
        let messages: Vec<&str> = lines.iter().map(|l| l["message"].as_str().unwrap()).collect();
        assert_eq!(messages, ["after", "still"]);
        assert_eq!(lines[0]["answer"], 42);
    }

    #[test]
    fn bad_settings_are_errors() {
        let bad_level = LogConfig { level: "a=b=c".to_owned(), ..config(LogFormat::Text) };
        assert!(matches!(build(&bad_level, io::sink()), Err(LogError::Level { .. })));
        let bad_endpoint = LogConfig { otlp_endpoint: Some("not a url".to_owned()), ..config(LogFormat::Text) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let _inside = runtime.enter();
        assert!(matches!(build(&bad_endpoint, io::sink()), Err(LogError::Otlp { .. })));
    }
}
