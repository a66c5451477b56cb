//! `portcullis token`: a demo issuer on the command line. Makes a key, and JWT-SVIDs signed with it; see `verify` for judging.
//!
//! For trying things out and for tests; in production a SPIFFE implementation such as SPIRE issues. A key is written
//! with mode 0600 and never printed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, Subcommand};
use serde_json::{Map, Value, json};

use super::failure::{Answer, Failure, Outcome};
use super::output::Out;
use super::verify::VerifyArgs;
use super::{args, files};
use crate::clock::{Clock, SystemClock, Timestamp};
use crate::credential::{SpiffeId, TokenSigner};

/// Verify tokens offline; a demo issuer: keys and JWT-SVIDs.
#[derive(Debug, Subcommand)]
#[command(
    after_help = "Example:\n  portcullis token keygen --key-file issuer.key --jwks-file jwks.json --kid demo\n  \
    portcullis token issue --key-file issuer.key --kid demo --subject spiffe://example.org/agent --audience portcullis"
)]
pub(super) enum TokenCommand {
    /// Make an ES256 key; write the private half for `issue`, the public half for `issuer put --jwks`.
    #[command(
        after_help = "Example:\n  portcullis token keygen --key-file issuer.key --jwks-file jwks.json --kid 2026-01"
    )]
    Keygen(KeygenArgs),
    /// Issue a JWT-SVID.
    #[command(after_help = "Example:\n  portcullis token issue --key-file issuer.key --kid 2026-01 \\\n    \
        --subject spiffe://example.org/agent --audience portcullis --ttl 5m")]
    Issue(IssueArgs),
    Verify(VerifyArgs),
}

/// Where a key goes.
#[derive(Debug, Args)]
pub(super) struct KeygenArgs {
    /// File for the private key (mode 0600).
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
    /// File for the public key set.
    #[arg(long, value_name = "FILE")]
    jwks_file: PathBuf,
    /// The key's id.
    #[arg(long, default_value = "key-1")]
    kid: String,
    /// Replace a key that is there already.
    #[arg(long)]
    force: bool,
}

/// What a token says.
#[derive(Debug, Args)]
pub(super) struct IssueArgs {
    /// The private key, as `keygen` wrote it.
    #[arg(long, value_name = "FILE")]
    key_file: PathBuf,
    /// The key's id.
    #[arg(long, default_value = "key-1")]
    kid: String,
    /// Whom it is for.
    #[arg(long, value_name = "SPIFFE_ID")]
    subject: SpiffeId,
    /// Whom it is to be shown to; may be repeated.
    #[arg(long, required = true)]
    audience: Vec<String>,
    /// How long it is valid.
    #[arg(long, default_value = "5m", value_parser = args::duration)]
    ttl: Duration,
    /// Moves `iat` by so much, as in `-10m`.
    #[arg(long, default_value = "0s", value_parser = args::offset, allow_hyphen_values = true, value_name = "OFFSET")]
    iat_offset: i64,
    /// Moves `exp` by so much, as in `-10m`.
    #[arg(long, default_value = "0s", value_parser = args::offset, allow_hyphen_values = true, value_name = "OFFSET")]
    exp_offset: i64,
    /// The `jti` claim. Default: a random UUID.
    #[arg(long)]
    jti: Option<String>,
    /// Another claim; JSON where it is valid JSON, else text; may be repeated.
    #[arg(long, value_name = "NAME=VALUE", value_parser = args::pair)]
    claim: Vec<(String, String)>,
    /// Write the token to this file (mode 0600) instead of printing it.
    #[arg(long, value_name = "FILE")]
    write: Option<PathBuf>,
}

impl TokenCommand {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        match self {
            Self::Keygen(args) => args.run(out),
            Self::Issue(args) => args.run(out),
            Self::Verify(args) => args.run(out),
        }
    }

    /// Whether its results are for programs unless somebody asks for text.
    pub(super) const fn is_for_programs(&self) -> bool {
        matches!(self, Self::Verify(_))
    }
}

impl KeygenArgs {
    fn run(self, out: &mut Out<'_>) -> Outcome {
        if self.key_file.exists() && !self.force {
            let path = self.key_file.display();
            return Err(Failure::error(format!("`{path}` is there already; --force replaces it, and its tokens die")));
        }
        keygen(&self.key_file, &self.jwks_file, &self.kid)?;
        if out.is_json() {
            out.json(&json!({ "kid": self.kid, "key_file": self.key_file, "jwks_file": self.jwks_file }))?;
        } else {
            out.line(format!("private key: {} (mode 0600)", self.key_file.display()))?;
            out.line(format!("public keys: {}", self.jwks_file.display()))?;
        }
        Ok(Answer::Yes)
    }
}

/// Makes a key and writes both halves.
pub(super) fn keygen(key_file: &Path, jwks_file: &Path, kid: &str) -> Result<TokenSigner, Failure> {
    let fail = |e: crate::credential::SignerError| Failure::error(format!("cannot make a key: {e}"));
    let signer = TokenSigner::generate_es256(kid).map_err(fail)?;
    files::write_secret(key_file, &signer.pkcs8_pem().map_err(fail)?)?;
    let jwks = json!({ "keys": [signer.public_jwk()] });
    files::write_public(jwks_file, &format!("{jwks:#}\n"))?;
    Ok(signer)
}

impl IssueArgs {
    fn run(self, out: &mut Out<'_>) -> Outcome {
        let pem = zeroize::Zeroizing::new(files::read_text(&self.key_file)?);
        let signer = TokenSigner::from_pkcs8_pem(&pem, self.kid.as_str())
            .map_err(|e| Failure::error(format!("`{}`: {e}", self.key_file.display())))?;
        let claims = self.claims(SystemClock::new().now().wall);
        let token = signer.sign(&claims).map_err(|e| Failure::error(format!("cannot sign: {e}")))?;
        match &self.write {
            Some(path) => files::write_secret(path, &format!("{token}\n"))?,
            None if out.is_json() => out.json(&json!({ "token": token, "claims": claims }))?,
            None => out.line(token)?,
        }
        Ok(Answer::Yes)
    }

    fn claims(&self, now: Timestamp) -> Value {
        let moved = |secs: u64, by: i64| secs.saturating_add_signed(by);
        let now = now.as_secs();
        let mut claims = Map::new();
        claims.insert("sub".to_owned(), json!(self.subject));
        claims.insert("aud".to_owned(), json!(self.audience));
        claims.insert("iat".to_owned(), json!(moved(now, self.iat_offset)));
        claims.insert("exp".to_owned(), json!(moved(now.saturating_add(self.ttl.as_secs()), self.exp_offset)));
        let jti = self.jti.clone().unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        claims.insert("jti".to_owned(), json!(jti));
        for (name, text) in &self.claim {
            claims.insert(name.clone(), serde_json::from_str(text).unwrap_or_else(|_plain| json!(text)));
        }
        Value::Object(claims)
    }
}
