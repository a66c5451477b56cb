//! `operators:` of `control.yaml`: who else than operators with tokens may call the API, and how often.
//!
//! Plane: composition. Fails closed: by default nobody. What callers may do once they are known is not said here but by
//! the operator policies that are published.

use std::collections::HashSet;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::load::{self, ConfigError};
use super::values::Span;
use crate::control::callers::{CallersConfig, CertificateName, CertificateRule, ProviderConfig, Rate, WorkloadCallers};
use crate::control::principal::OperatorKind;
use crate::control::token_review::TokenReviewSettings;
use crate::control::workload_identity::Vouchers;
use crate::object::{Conditions, KeySource, Object, SigningAlgorithm, TokenType};

/// Who else than operators with tokens may call the API, and how often.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Operators")]
pub struct RawOperators {
    /// OpenID providers whose tokens are people's.
    pub providers: Vec<RawProvider>,
    /// Operators with client certificates. Needs `tls`.
    pub certificates: Option<RawCertificates>,
    /// Workloads with their own tokens.
    pub workloads: Option<RawWorkloadCallers>,
    /// How often one may call.
    pub limits: RawLimits,
}

/// An OpenID provider whose tokens are people's. Its host must be in `keys.allowed_hosts`.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Provider")]
pub struct RawProvider {
    /// What comes before `:` in the names of its people.
    pub name: String,
    /// The exact value of `iss`, an https URL.
    pub issuer: String,
    /// The audience that a token must name.
    pub audience: String,
    /// What its tokens are.
    #[serde(default)]
    pub token_type: TokenType,
    /// Signature algorithms that its tokens may use. Without it, those of OIDC issuers.
    #[serde(default)]
    pub algorithms: Option<Vec<SigningAlgorithm>>,
    /// The longest life of a token.
    #[serde(default = "hour")]
    pub max_lifetime: Span,
    /// Where its key set is. Without it, OpenID Connect Discovery says.
    #[serde(default)]
    pub jwks_uri: Option<String>,
    /// The claim that names the person, for good: an address that somebody else may have next year is none. A JSON pointer
    /// if it starts with `/`.
    #[serde(default = "sub")]
    pub name_claim: String,
    /// The claim with the groups, which every token must then have, if only as an empty list. Without it nobody is in any.
    #[serde(default)]
    pub groups_claim: Option<String>,
    /// What else must hold of the claims, as in the `when` of a workload's credentials.
    #[serde(default)]
    pub required_claims: Conditions,
    /// Whether they are people or automation.
    #[serde(default)]
    pub kind: OperatorKind,
}

/// Operators with client certificates.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "Certificates")]
pub struct RawCertificates {
    /// PEM file with the CA certificates that may vouch for operators.
    pub ca_file: PathBuf,
    /// Whose certificates have which name.
    pub operators: Vec<RawCertificate>,
}

/// Whose certificates have which name: exactly one of `uri`, `dns`, `email` and `subject`.
#[derive(Debug, Clone, Default, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Certificate")]
pub struct RawCertificate {
    /// Required. Name of an operator that exists. When it is revoked, its certificates do not count any more.
    pub operator: String,
    /// A URI of the subject alternative names.
    pub uri: Option<String>,
    /// A DNS name of them.
    pub dns: Option<String>,
    /// An e-mail address of them.
    pub email: Option<String>,
    /// The whole subject, as in `CN=alice, O=Example`.
    pub subject: Option<String>,
}

/// Workloads with their own tokens.
#[derive(Debug, Clone, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "WorkloadCallers")]
pub struct RawWorkloadCallers {
    /// The audience that a token must name.
    pub audience: String,
    /// Names of the issuers whose tokens count. Empty: all.
    #[serde(default)]
    pub trust: Vec<String>,
}

/// How often one may call.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Limits")]
pub struct RawLimits {
    /// Calls of one principal a second, on average. 0: no limit.
    pub calls_per_second: u32,
    /// Calls of one principal at once.
    pub calls_burst: u32,
    /// Calls without a good credential from one address (IPv6: one /64) a minute, on average. More are answered 429 and
    /// counted instead of recorded. 0: no limit.
    pub failures_per_minute: u32,
    /// Such calls at once.
    pub failures_burst: u32,
}

/// Who may call, validated.
#[derive(Debug, Clone, Default)]
pub struct OperatorsConfig {
    /// For the API.
    pub callers: CallersConfig,
    /// For TLS: who may vouch for operators' certificates.
    pub client_ca_file: Option<PathBuf>,
}

const fn hour() -> Span {
    Span::secs(3600)
}

fn sub() -> String {
    "sub".to_owned()
}

impl Default for RawLimits {
    fn default() -> Self {
        Self { calls_per_second: 2000, calls_burst: 4000, failures_per_minute: 60, failures_burst: 60 }
    }
}

// === impl RawOperators ===

impl RawOperators {
    pub(super) fn validate(self, has_tls: bool) -> Result<OperatorsConfig, ConfigError> {
        let providers = self.providers.into_iter().enumerate().map(|(i, raw)| raw.validate(i));
        let providers: Vec<ProviderConfig> = providers.collect::<Result<_, _>>()?;
        for (i, provider) in providers.iter().enumerate() {
            let before = providers.iter().take(i);
            if matches!(provider.name.as_str(), "spiffe" | "system") {
                let key = format!("operators.providers[{i}].name");
                let message = format!("`{}` is what workloads or the system are called by", provider.name);
                return Err(ConfigError::value(key, message));
            }
            if before.clone().any(|other| other.name == provider.name) {
                let key = format!("operators.providers[{i}].name");
                return Err(ConfigError::value(key, format!("`{}` occurs twice", provider.name)));
            }
            if before.clone().any(|other| other.issuer == provider.issuer) {
                let key = format!("operators.providers[{i}].issuer");
                return Err(ConfigError::value(key, format!("`{}` occurs twice", provider.issuer)));
            }
        }
        let (client_ca_file, certificates) = match self.certificates {
            None => (None, Vec::new()),
            Some(_) if !has_tls => {
                let why = "client certificates come with TLS, so `tls` is required";
                return Err(ConfigError::value("operators.certificates", why));
            }
            Some(raw) => raw.validate()?,
        };
        let workloads = self.workloads.map(RawWorkloadCallers::validate).transpose()?;
        let (calls, failures) = self.limits.validate()?;
        let callers = CallersConfig { providers, certificates, workloads, calls, failures };
        Ok(OperatorsConfig { callers, client_ca_file })
    }
}

impl RawProvider {
    fn validate(self, i: usize) -> Result<ProviderConfig, ConfigError> {
        let key = |name: &str| format!("operators.providers[{i}].{name}");
        if !self.issuer.starts_with("https://") {
            return Err(ConfigError::value(key("issuer"), format!("`{}` is not an https URL", self.issuer)));
        }
        for (name, claim) in [("name_claim", Some(&self.name_claim)), ("groups_claim", self.groups_claim.as_ref())] {
            if claim.is_some_and(String::is_empty) {
                return Err(ConfigError::value(key(name), "must not be empty"));
            }
        }
        let keys = self.jwks_uri.map_or(KeySource::Discovery {}, |url| KeySource::JwksUri { url });
        let provider = ProviderConfig {
            name: self.name,
            issuer: self.issuer,
            audience: self.audience,
            token_type: self.token_type,
            algorithms: self.algorithms,
            max_lifetime_seconds: self.max_lifetime.0.as_secs(),
            keys,
            name_claim: self.name_claim,
            groups_claim: self.groups_claim,
            required: self.required_claims,
            kind: self.kind,
        };
        Object::Issuer(Box::new(provider.issuer())).check().map_err(|e| {
            let field = match e.field.as_str() {
                "audiences" => "audience",
                "max_lifetime_seconds" => "max_lifetime",
                field if field.starts_with("keys_from") => "jwks_uri",
                field => field,
            };
            ConfigError::value(key(field), e.message)
        })?;
        if provider.token_type == TokenType::Transaction {
            return Err(ConfigError::value(key("token_type"), "transaction tokens authenticate nobody"));
        }
        Ok(provider)
    }
}

impl RawCertificates {
    fn validate(self) -> Result<(Option<PathBuf>, Vec<CertificateRule>), ConfigError> {
        load::read_named("operators.certificates.ca_file", &self.ca_file)?;
        let mut seen = HashSet::new();
        let mut rules = Vec::with_capacity(self.operators.len());
        for (i, raw) in self.operators.into_iter().enumerate() {
            let key = format!("operators.certificates.operators[{i}]");
            if raw.operator.is_empty() {
                return Err(ConfigError::value(format!("{key}.operator"), "is required"));
            }
            let mut names = [
                raw.uri.map(CertificateName::Uri),
                raw.dns.map(CertificateName::Dns),
                raw.email.map(CertificateName::Email),
                raw.subject.map(CertificateName::Subject),
            ]
            .into_iter()
            .flatten();
            let (Some(name), None) = (names.next(), names.next()) else {
                return Err(ConfigError::value(key, "needs exactly one of `uri`, `dns`, `email` and `subject`"));
            };
            if !seen.insert(format!("{name:?}")) {
                return Err(ConfigError::value(key, "this name occurs twice"));
            }
            rules.push(CertificateRule { operator: raw.operator, name });
        }
        Ok((Some(self.ca_file), rules))
    }
}

impl RawWorkloadCallers {
    fn validate(self) -> Result<WorkloadCallers, ConfigError> {
        if self.audience.is_empty() {
            return Err(ConfigError::value("operators.workloads.audience", "must not be empty"));
        }
        let vouchers = if self.trust.is_empty() { Vouchers::All } else { Vouchers::Named(self.trust) };
        Ok(WorkloadCallers { audience: self.audience, vouchers, reviews: TokenReviewSettings::default() })
    }
}

impl RawLimits {
    fn validate(self) -> Result<(Option<Rate>, Option<Rate>), ConfigError> {
        let rate = |name: &str, calls: u32, per: Duration, burst: u32| {
            if calls > 0 && burst == 0 {
                return Err(ConfigError::value(format!("operators.limits.{name}"), "must be at least 1"));
            }
            Ok((calls > 0).then_some(Rate { calls, per, burst }))
        };
        let (second, minute) = (Duration::from_secs(1), Duration::from_secs(60));
        Ok((
            rate("calls_burst", self.calls_per_second, second, self.calls_burst)?,
            rate("failures_burst", self.failures_per_minute, minute, self.failures_burst)?,
        ))
    }
}
