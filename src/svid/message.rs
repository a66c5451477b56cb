//! What a message of the Workload API says: one SVID with its key, and the authorities of each trust domain (SPIFFE
//! Workload API, section 5.2.2).
//!
//! Plane: cross-cutting. Strict about what would be shown to others and about its own trust domain; a federated bundle
//! that cannot be used leaves its own trust domain without authorities and no other. Keys are never logged.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::credential::{SpiffeId, TlsEnd, X509Svid, check_trust_domain};
use crate::tls::provider;
use crate::wire::workload_api::{X509svid, X509svidResponse};

/// Certificates that are shown: a leaf and what leads to an authority.
const MAX_CHAIN: usize = 16;

/// What an agent said last.
pub(super) struct Held {
    pub(super) id: SpiffeId,
    pub(super) key: Arc<CertifiedKey>,
    /// In seconds; at this instant it has ended.
    pub(super) not_after: u64,
    /// By the name of the trust domain.
    domains: HashMap<Box<str>, Domain>,
}

/// Who vouches for the workloads of a trust domain.
pub(super) struct Domain {
    pub(super) clients: Arc<dyn ClientCertVerifier>,
    pub(super) roots: Arc<RootCertStore>,
}

/// Why what it said cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum Unusable {
    #[error("it holds no SVID")]
    None,
    #[error("it holds no SVID of `{0}`")]
    NotAmong(SpiffeId),
    #[error("the SVID cannot be used: {0}")]
    Svid(String),
    #[error("the bundle of `{0}` cannot be used: {1}")]
    Bundle(Box<str>, String),
}

// === impl Held ===

impl Held {
    /// Reads a message. Of several SVIDs it takes `wanted`, or else the first.
    pub(super) fn read(message: &X509svidResponse, wanted: Option<&SpiffeId>, now: UnixTime) -> Result<Self, Unusable> {
        let svid = match wanted {
            Some(id) => message.svids.iter().find(|svid| svid.spiffe_id == id.as_str()),
            None => message.svids.first(),
        };
        let svid = svid.ok_or_else(|| wanted.cloned().map_or(Unusable::None, Unusable::NotAmong))?;
        let (leaf, key) = own(svid)?;
        let not_after = leaf.not_after.as_secs();
        if not_after <= now.as_secs() {
            return Err(Unusable::Svid("it has ended".to_owned()));
        }
        let own: Box<str> = leaf.id.trust_domain().into();
        let bundle = Domain::read(&svid.bundle).map_err(|why| Unusable::Bundle(own.clone(), why))?;
        let mut domains = HashMap::from([(own, bundle)]);
        for (id, der) in &message.federated_bundles {
            let name = id.strip_prefix("spiffe://").filter(|name| check_trust_domain(name).is_ok());
            let Some(name) = name.filter(|name| !domains.contains_key(*name)) else { continue };
            match Domain::read(der) {
                Ok(domain) => drop(domains.insert(name.into(), domain)),
                Err(why) => tracing::error!(
                    trust_domain = name,
                    why,
                    "a federated bundle cannot be used: nobody there is believed"
                ),
            }
        }
        if !message.crl.is_empty() {
            tracing::warn!(
                "the Workload API sends revocation lists, which are not looked at: revoke certificates here"
            );
        }
        Ok(Self { id: leaf.id, key: Arc::new(key), not_after, domains })
    }

    /// Who vouches for the workloads of a trust domain, if anybody.
    pub(super) fn domain(&self, name: &str) -> Option<&Domain> {
        self.domains.get(name)
    }

    /// The trust domains of which a certificate may be believed, in order.
    pub(super) fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = self.domains.keys().map(|name| &**name).collect();
        names.sort_unstable();
        names
    }
}

impl fmt::Debug for Held {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Held").field("id", &self.id).field("not_after", &self.not_after).finish_non_exhaustive()
    }
}

/// The certificate that is shown, and the chain with its key.
fn own(svid: &X509svid) -> Result<(X509Svid, CertifiedKey), Unusable> {
    let bad = |why: &dyn ToString| Unusable::Svid(why.to_string());
    let chain = certificates(&svid.x509_svid).map_err(|why| bad(&why))?;
    if chain.len() > MAX_CHAIN {
        return Err(bad(&"its chain is too long"));
    }
    let leaf = chain.first().ok_or_else(|| bad(&"there is no certificate"))?;
    let parsed = X509Svid::parse_of(TlsEnd::Client, leaf).or_else(|_| X509Svid::parse_of(TlsEnd::Server, leaf));
    let parsed = parsed.map_err(|why| bad(&why.detail))?;
    if parsed.id.as_str() != svid.spiffe_id {
        return Err(bad(&"its certificate is of another SPIFFE ID"));
    }
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(svid.x509_svid_key.to_vec()));
    let key = CertifiedKey::from_der(chain, key, &provider()).map_err(|why| bad(&why))?;
    Ok((parsed, key))
}

/// DER certificates, one after another.
fn certificates(mut der: &[u8]) -> Result<Vec<CertificateDer<'static>>, &'static str> {
    let mut all = Vec::new();
    while !der.is_empty() {
        let (rest, _) = X509Certificate::from_der(der).map_err(|_unreadable| "a certificate cannot be parsed")?;
        let one = der.get(..der.len() - rest.len()).unwrap_or_default();
        all.push(CertificateDer::from(one.to_vec()));
        der = rest;
    }
    Ok(all)
}

// === impl Domain ===

impl Domain {
    fn read(der: &[u8]) -> Result<Self, String> {
        let mut roots = RootCertStore::empty();
        for certificate in certificates(der)? {
            roots.add(certificate).map_err(|e| e.to_string())?;
        }
        let roots = Arc::new(roots);
        let clients = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), provider()).build();
        let clients = clients.map_err(|e| e.to_string())?;
        Ok(Self { clients, roots })
    }
}
