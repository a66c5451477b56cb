//! A request mix: which requests, how often, with which tokens, and which answers are right.
//!
//! Plane: composition. YAML, unknown keys refused with line and column; what only makes sense as a whole is refused by the
//! name of the request. Tokens are given inline, in files (one a line), or as a key that new ones are minted with, so that
//! a server sees each of them once. Nothing here prints a token.

mod shares;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

pub use self::shares::Shares;
use self::shares::{Group, apply};
use super::expect::Expect;
use crate::credential::TokenSigner;

/// What requests are made of.
#[derive(Debug)]
pub struct Mix {
    /// At least one.
    pub(super) requests: Vec<Template>,
}

/// One kind of request.
#[derive(Debug)]
pub(super) struct Template {
    pub(super) name: String,
    pub(super) weight: f64,
    pub(super) method: String,
    pub(super) paths: Vec<String>,
    pub(super) host: String,
    pub(super) scheme: String,
    /// Lower-case names.
    pub(super) headers: BTreeMap<String, String>,
    pub(super) tokens: Tokens,
    pub(super) expect: Expect,
}

/// Where the tokens of a request come from.
pub(super) enum Tokens {
    /// It has none.
    None,
    /// In turn, over and over.
    Pool(Vec<String>),
    /// A new one each time.
    Mint(Box<Mint>),
}

/// How new tokens are made.
#[derive(Debug)]
pub(super) struct Mint {
    pub(super) signer: TokenSigner,
    pub(super) audience: String,
    pub(super) subjects: Vec<String>,
    pub(super) lifetime: Option<Duration>,
    pub(super) claims: BTreeMap<String, serde_json::Value>,
}

/// One request, for those who have no mix.
#[derive(Clone)]
pub struct Single {
    /// Method.
    pub method: String,
    /// Path, with its query.
    pub path: String,
    /// Host.
    pub host: String,
    /// Other headers.
    pub headers: Vec<(String, String)>,
    /// A token, sent as `authorization: Bearer`.
    pub token: Option<String>,
}

/// What is wrong with a mix.
#[derive(Debug, thiserror::Error)]
pub enum MixError {
    /// A file cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not a mix; the message has line and column.
    #[error("`{}`: {message}", path.display())]
    Syntax {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// A request of it cannot be made.
    #[error("request `{name}`: {message}")]
    Request {
        /// Its name.
        name: String,
        /// What is wrong.
        message: String,
    },
    /// The whole cannot be.
    #[error("{0}")]
    Whole(String),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    #[serde(default)]
    headers: BTreeMap<String, String>,
    #[serde(default = "default_host")]
    host: String,
    #[serde(default = "default_scheme")]
    scheme: String,
    #[serde(default)]
    shares: Shares,
    requests: Vec<RawRequest>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRequest {
    name: String,
    #[serde(default = "default_weight")]
    weight: f64,
    #[serde(default = "default_method")]
    method: String,
    paths: Vec<String>,
    host: Option<String>,
    #[serde(default)]
    headers: BTreeMap<String, String>,
    token: Option<RawToken>,
    #[serde(default)]
    expect: Expect,
}

#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct RawToken {
    text: Option<String>,
    file: Option<PathBuf>,
    mint: Option<RawMint>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMint {
    key_file: PathBuf,
    kid: String,
    audience: String,
    subjects: Vec<String>,
    #[serde(default)]
    lifetime_seconds: Option<u64>,
    #[serde(default)]
    claims: BTreeMap<String, serde_json::Value>,
}

fn default_host() -> String {
    "localhost".to_owned()
}

fn default_scheme() -> String {
    "https".to_owned()
}

fn default_method() -> String {
    "GET".to_owned()
}

const fn default_weight() -> f64 {
    1.0
}

// === impl Mix ===

impl Mix {
    /// Reads a mix. Its shares, and then those given here, override the weights.
    pub fn load(path: &Path, shares: Shares) -> Result<Self, MixError> {
        let text = read(path)?;
        Self::parse(path, &text, shares)
    }

    /// The same, of a text that came from `path`. The files that it names are relative to that.
    pub fn parse(path: &Path, text: &str, shares: Shares) -> Result<Self, MixError> {
        let raw: Raw = serde_yaml_ng::from_str(text)
            .map_err(|e| MixError::Syntax { path: path.to_owned(), message: e.to_string() })?;
        let directory = path.parent().unwrap_or(Path::new("."));
        let mut requests = Vec::new();
        for request in raw.requests {
            let mut headers = raw.headers.clone();
            headers.extend(request.headers);
            let tokens = match request.token {
                None => Tokens::None,
                Some(token) => token.load(directory, &request.name)?,
            };
            requests.push(Template {
                name: request.name,
                weight: request.weight,
                method: request.method,
                paths: request.paths,
                host: request.host.unwrap_or_else(|| raw.host.clone()),
                scheme: raw.scheme.clone(),
                headers: headers.into_iter().map(|(k, v)| (k.to_ascii_lowercase(), v)).collect(),
                tokens,
                expect: request.expect,
            });
        }
        let shares = Shares {
            never_seen: shares.never_seen.or(raw.shares.never_seen),
            denied: shares.denied.or(raw.shares.denied),
        };
        Self::checked(requests, shares)
    }

    /// A mix of one request.
    pub fn single(single: Single) -> Result<Self, MixError> {
        let template = Template {
            name: "request".to_owned(),
            weight: 1.0,
            method: single.method,
            paths: vec![single.path],
            host: single.host,
            scheme: default_scheme(),
            headers: single.headers.into_iter().map(|(k, v)| (k.to_ascii_lowercase(), v)).collect(),
            tokens: single.token.map_or(Tokens::None, |token| Tokens::Pool(vec![token])),
            expect: Expect::Any,
        };
        Self::checked(vec![template], Shares::default())
    }

    /// Expects this of every request.
    pub fn expect(&mut self, expect: Expect) {
        self.requests.iter_mut().for_each(|request| request.expect = expect);
    }

    fn checked(mut requests: Vec<Template>, shares: Shares) -> Result<Self, MixError> {
        for request in &requests {
            request.check()?;
        }
        apply(&mut requests, shares)?;
        if !requests.iter().any(|r| r.weight > 0.0) {
            return Err(MixError::Whole("no request has a weight above 0".to_owned()));
        }
        Ok(Self { requests })
    }
}

// === impl Template ===

impl Template {
    fn check(&self) -> Result<(), MixError> {
        let wrong = |message: String| Err(MixError::Request { name: self.name.clone(), message });
        if !self.weight.is_finite() || self.weight < 0.0 {
            return wrong(format!("`weight: {}` is not a number of at least 0", self.weight));
        }
        if http::Method::from_bytes(self.method.as_bytes()).is_err() {
            return wrong(format!("`{}` is not a method", self.method));
        }
        if self.paths.is_empty() {
            return wrong("`paths` is empty".to_owned());
        }
        for path in &self.paths {
            if !path.starts_with('/') || path.parse::<http::Uri>().is_err() {
                return wrong(format!("`{path}` is not a path, which starts with `/`"));
            }
        }
        if http::HeaderValue::from_str(&self.host).is_err() || self.host.is_empty() {
            return wrong(format!("`{}` is not a host", self.host));
        }
        for (name, value) in &self.headers {
            if http::HeaderName::from_bytes(name.as_bytes()).is_err() || name.starts_with(':') {
                return wrong(format!("`{name}` is not the name of a header"));
            }
            if http::HeaderValue::from_str(value).is_err() {
                return wrong(format!("the value of `{name}` is not that of a header"));
            }
        }
        if !matches!(self.tokens, Tokens::None) && self.headers.contains_key("authorization") {
            return wrong("it has both a token and an `authorization` header".to_owned());
        }
        Ok(())
    }

    /// Which of the groups that shares speak of it belongs to.
    const fn group(&self) -> Group {
        match (&self.tokens, self.expect) {
            (Tokens::Mint(_), _) => Group::NeverSeen,
            (_, Expect::Deny | Expect::Status(400..)) => Group::Denied,
            _ => Group::Other,
        }
    }
}

// === impl RawToken ===

impl RawToken {
    fn load(self, directory: &Path, name: &str) -> Result<Tokens, MixError> {
        let wrong = |message: String| MixError::Request { name: name.to_owned(), message };
        match (self.text, self.file, self.mint) {
            (Some(text), None, None) => Ok(Tokens::Pool(vec![token(&text).map_err(wrong)?])),
            (None, Some(file), None) => {
                let path = directory.join(file);
                let text = read(&path)?;
                let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
                let tokens: Vec<String> = lines
                    .map(|line| token(line).map_err(|e| wrong(format!("`{}`: {e}", path.display()))))
                    .collect::<Result<_, _>>()?;
                if tokens.is_empty() {
                    return Err(wrong(format!("`{}` holds no token", path.display())));
                }
                Ok(Tokens::Pool(tokens))
            }
            (None, None, Some(mint)) => {
                let path = directory.join(mint.key_file);
                let pem = zeroize::Zeroizing::new(read(&path)?);
                let signer = TokenSigner::from_pkcs8_pem(&pem, mint.kid)
                    .map_err(|e| wrong(format!("`{}`: {e}", path.display())))?;
                if mint.subjects.is_empty() {
                    return Err(wrong("`mint.subjects` is empty".to_owned()));
                }
                Ok(Tokens::Mint(Box::new(Mint {
                    signer,
                    audience: mint.audience,
                    subjects: mint.subjects,
                    lifetime: mint.lifetime_seconds.map(Duration::from_secs),
                    claims: mint.claims,
                })))
            }
            _ => Err(wrong("`token` needs exactly one of `text`, `file` and `mint`".to_owned())),
        }
    }
}

/// A token as a header can carry it. The message does not repeat it.
fn token(text: &str) -> Result<String, String> {
    let fits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    if fits { Ok(text.to_owned()) } else { Err("a token is one word of printable ASCII".to_owned()) }
}

fn read(path: &Path) -> Result<String, MixError> {
    std::fs::read_to_string(path).map_err(|source| MixError::Read { path: path.to_owned(), source })
}

impl std::fmt::Debug for RawToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RawToken").field("file", &self.file).field("mint", &self.mint).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::None => f.write_str("None"),
            Self::Pool(tokens) => write!(f, "Pool({} tokens)", tokens.len()),
            Self::Mint(mint) => mint.fmt(f),
        }
    }
}

impl std::fmt::Debug for Single {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Single").field("method", &self.method).field("path", &self.path).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
