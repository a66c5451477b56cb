//! Configuration: a YAML file, the environment and nothing else become one validated runtime form.
//!
//! Plane: composition. Raw types mirror the file and refuse what they do not know; the validated types are what `app`
//! builds from, and an invalid one cannot exist. Secrets are named by file path, never written in the configuration.
//! Fails closed and early: whatever is wrong is a start-up error that names the file and line, the environment
//! variable, or the key. Plain text is only ever spoken on loopback, and only when asked for.

mod control;
mod keys;
mod load;
mod operators;
pub mod schema;
mod shared;
mod sidecar;
mod token_review;
mod tokens;
mod values;

#[cfg(test)]
mod tests;

pub use self::control::{
    ControlConfig, ControlListeners, EnforcementPoint, RawControl, RawControlListeners, RawEnforcementPoint, RawGrants,
    RawSync, RawTls, SyncConfig, TlsFiles,
};
pub use self::keys::RawKeys;
pub use self::load::{ConfigError, Environment};
pub use self::operators::{OperatorsConfig, RawOperators, RawWorkloadCallers};
pub use self::shared::{LogFormat, LogLevel, RawTelemetry, Telemetry};
pub use self::sidecar::{
    Authzen, Cache, CertificateHeader, ControlPlane, Credential, ForwardAuth, Limits, Overload, OverloadMode,
    RawAuthzen, RawCache, RawCaller, RawControlPlane, RawDialect, RawDrain, RawExtAuthz, RawForwardAuth, RawHealth,
    RawLimits, RawOverload, RawProof, RawProtocol, RawProxy, RawProxyTls, RawRecords, RawResourceType, RawScope,
    RawSidecar, RawSidecarListeners, RawState, RawSubjectType, RawTrustedProxy, RawUpstream, RawUpstreamTls,
    RawWorkloadApi, RecordOutput, Records, Scope, SidecarConfig, SidecarListeners, StateDirectory, Transport,
};
pub use self::token_review::RawTokenReview;
pub use self::tokens::{RawTokens, TokensConfig};
pub use self::values::{Address, Cidr, FileMode, HttpUrl, Identity, Span};
