//! What `dev` starts with: the objects of `examples/demo`, two operators, tokens.
//!
//! Goes through the REST API like anybody's automation. Tokens are short-lived and replaced well before they end.

use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::{Value, json};

use super::super::api::{Api, cell};
use super::super::apply::Item;
use super::super::failure::Failure;
use super::super::{documents, files, token};
use crate::clock::{Clock, SystemClock};
use crate::credential::TokenSigner;
use crate::drain::Signal;

/// The demo issuer.
pub(super) const ISSUER: &str = "demo";
const KID: &str = "demo";
/// What the demo's services expect as the audience of a token.
pub(super) const AUDIENCE: &str = "portcullis-demo";
const DOMAIN: &str = "spiffe://demo.portcullis.local";
/// How long tokens live, and how often they are replaced.
const TTL: Duration = Duration::from_secs(3600);
const RENEW: Duration = Duration::from_secs(600);

/// Documents of `examples/demo`, in the order in which they are applied.
const DOCUMENTS: [(&str, &str); 4] = [
    ("issuer.yaml", include_str!("../../../examples/demo/issuer.yaml")),
    ("workloads.yaml", include_str!("../../../examples/demo/workloads.yaml")),
    ("services.yaml", include_str!("../../../examples/demo/services.yaml")),
    ("policies.yaml", include_str!("../../../examples/demo/policies.yaml")),
];
const POLICIES: &str = include_str!("../../../examples/demo/policies.cedar");

/// The demo issuer at work.
#[derive(Debug)]
pub(super) struct Seed {
    directory: PathBuf,
    signer: TokenSigner,
    clock: SystemClock,
}

/// The SPIFFE ID of a workload of the demo.
pub(super) fn id(name: &str) -> String {
    format!("{DOMAIN}/{name}")
}

impl Seed {
    /// Makes sure that everything is there.
    pub(super) async fn plant(directory: &Path, server: &str, control: &Path) -> Result<Self, Failure> {
        let seed = Self { directory: directory.to_owned(), signer: signer(directory)?, clock: SystemClock::new() };
        let bootstrap = files::read_secret(&control.join(crate::app::control::BOOTSTRAP_TOKEN))?;
        let api = Api::new(server, bootstrap)?;
        let jwks = json!({ "keys": [seed.signer.public_jwk()] }).to_string();
        let read = |name: &str| match name {
            "jwks.json" => Ok(jwks.clone()),
            "policies.cedar" => Ok(POLICIES.to_owned()),
            other => Err(Failure::error(format!("`{other}` is not part of the demo"))),
        };
        for (name, text) in DOCUMENTS {
            for document in documents::parse(name, text)? {
                Item::new(document, &read)?.apply(&api).await?;
            }
        }
        for name in ["alice", "bob"] {
            operator(&api, server, name, &directory.join(format!("{name}.token"))).await?;
        }
        seed.issue()?;
        Ok(seed)
    }

    /// Replaces the tokens from time to time, until the drain begins.
    pub(super) async fn keep_fresh(self, signal: Signal) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(RENEW) => {}
                () = signal.draining() => return,
            }
            if let Err(Failure::Error(error)) = self.issue() {
                tracing::error!(error, "the demo's tokens could not be replaced");
            }
        }
    }

    fn issue(&self) -> Result<(), Failure> {
        let tokens =
            [("storefront", AUDIENCE), ("agent", AUDIENCE), ("ci", AUDIENCE), ("sidecar", super::SYNC_AUDIENCE)];
        let now = self.clock.now().wall.as_secs();
        for (name, audience) in tokens {
            let claims = json!({
                "sub": id(name), "aud": [audience, super::ISSUER], "iat": now, "exp": now.saturating_add(TTL.as_secs()),
                "jti": uuid::Uuid::new_v4(),
            });
            let token = self.signer.sign(&claims).map_err(|e| Failure::error(format!("cannot sign: {e}")))?;
            files::write_secret(&self.directory.join(format!("{name}.jwt")), &format!("{token}\n"))?;
        }
        Ok(())
    }
}

/// The demo issuer's key: the one that is there, or a new one.
fn signer(directory: &Path) -> Result<TokenSigner, Failure> {
    let (key, jwks) = (directory.join("issuer.key"), directory.join("jwks.json"));
    if !key.exists() {
        return token::keygen(&key, &jwks, KID);
    }
    let pem = zeroize::Zeroizing::new(files::read_text(&key)?);
    TokenSigner::from_pkcs8_pem(&pem, KID).map_err(|e| Failure::error(format!("`{}`: {e}", key.display())))
}

/// Creates an operator, unless its token is there and works.
async fn operator(api: &Api, server: &str, name: &str, file: &Path) -> Result<(), Failure> {
    if file.exists() {
        let theirs = Api::new(server, files::read_secret(file)?)?;
        return theirs.get(&["status"], &[]).await.map(|_status| ());
    }
    let answer: Value = match api.post(&["operators"], &json!({ "name": name })).await {
        Err(Failure::Refused { message, .. }) => {
            let place = file.display();
            return Err(Failure::error(format!(
                "`{place}` is gone, and cannot be made again ({message}): start anew with another --data-dir"
            )));
        }
        other => other?,
    };
    let token = zeroize::Zeroizing::new(cell(&answer, "token"));
    files::write_secret(file, &format!("{}\n", *token))
}
