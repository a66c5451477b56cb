//! Sections that both kinds of process have.
//!
//! Plane: composition. Raw and validated forms side by side: behind `validate` an invalid value cannot exist. Unknown
//! keys are refused, with their place; a missing section means its documented defaults.

use serde::{Deserialize, Serialize};

use super::values::HttpUrl;

/// Logs and traces.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Telemetry")]
pub struct RawTelemetry {
    /// The least severe level that is logged. Can be changed while running, at the admin endpoint `/loglevel`.
    pub log_level: LogLevel,
    /// `json`: one object a line, for machines. `text`: for people.
    pub log_format: LogFormat,
    /// Where OpenTelemetry traces are sent (OTLP over gRPC), as in `http://127.0.0.1:4317`. Without it: nowhere.
    pub otlp_endpoint: Option<HttpUrl>,
}

/// Logs and traces, validated.
#[derive(Debug, Clone)]
pub struct Telemetry {
    /// The least severe level that is logged.
    pub log_level: LogLevel,
    /// How a line looks.
    pub log_format: LogFormat,
    /// Where traces are sent.
    pub otlp_endpoint: Option<String>,
}

/// Severity of log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogLevel {
    /// Only what needs somebody to act.
    Error,
    /// And what may need it soon.
    Warn,
    /// And what happened, rarely.
    #[default]
    Info,
    /// And why.
    Debug,
    /// And everything.
    Trace,
}

/// How a log line looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// One JSON object a line.
    #[default]
    Json,
    /// Plain text.
    Text,
}

impl LogLevel {
    /// The name used in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

impl RawTelemetry {
    /// Turns it into the runtime form.
    pub fn validate(self) -> Telemetry {
        Telemetry {
            log_level: self.log_level,
            log_format: self.log_format,
            otlp_endpoint: self.otlp_endpoint.map(|url| url.to_string()),
        }
    }
}
