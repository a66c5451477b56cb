//! The client's certificate: the connection's own, or the one that a listed proxy forwards.
//!
//! Pure. Nobody is listed by default, and headers of others are never used, whatever they say. INVARIANT: a listed
//! proxy's own certificate is never its client's; and of a forwarded list only the last element counts, which the proxy
//! itself wrote. What two headers, or two parts of one, say differently is refused. A proxy is known by its X.509-SVID,
//! held to the same rules as anybody's, or by its address.

use core::net::IpAddr;
use std::borrow::Cow;
use std::sync::Arc;

use smallvec::SmallVec;

use super::authenticate::Party;
use super::engine::{Denied, Memo, deny};
use super::intake::Intake;
use super::reason::Reason;
use super::request::Peer;
use super::snapshot::Snapshot;
use crate::clock::Now;
use crate::credential::{
    self, ForwardedCertificate, Rejection, SpiffeId, X509Svid, certificate_from_client_cert, certificate_from_pem,
    last_forwarded_certificate,
};

/// What the owner of an enforcement point says about the proxies in front of it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// The proxies whose word about their clients' certificates counts.
    pub trusted_proxies: Vec<TrustedProxy>,
}

/// A proxy, and where it says which certificate its client has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustedProxy {
    /// Who it is.
    pub peer: ProxyPeer,
    /// The header that it sets and removes from what its clients send. The other is not believed: a proxy that does not
    /// know it passes a client's own on.
    pub header: ForwardingHeader,
}

/// Where a proxy says which certificate its client has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ForwardingHeader {
    /// `x-forwarded-client-cert`.
    #[default]
    Xfcc,
    /// `Client-Cert` (RFC 9440).
    ClientCert,
}

/// How a proxy is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProxyPeer {
    /// By the X.509-SVID of its connection.
    SpiffeId(SpiffeId),
    /// By the address of its connection.
    Network(Network),
}

/// A range of addresses, as in `10.0.0.0/8`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Network {
    address: IpAddr,
    prefix: u8,
}

/// Why a text is not a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NetworkError {
    /// Not an address and a prefix length.
    #[error("expected an address and a prefix length, as in `10.0.0.0/8`")]
    Form,
    /// Bits after the prefix.
    #[error("has bits set after its prefix, so it is unclear what is meant")]
    HostBits,
    /// Everybody.
    #[error("would list every address")]
    Everybody,
}

/// A certificate that was read before: whose it is, and the workload by name.
#[derive(Debug)]
pub struct KnownCertificate {
    pub(super) svid: X509Svid,
    pub(super) party: Party,
}

/// The client's certificate, not judged yet.
#[derive(Debug)]
pub(super) struct Presented<'a> {
    der: Vec<u8>,
    /// What else was said to be its SPIFFE ID.
    claimed_id: Option<Cow<'a, str>>,
    pub(super) forwarded: bool,
}

/// The headers of a proxy that count.
type Believed = SmallVec<[ForwardingHeader; 2]>;

/// The client's certificate, if there is one.
pub(super) fn presented<'a>(
    peer: Peer<'a>,
    intake: &Intake<'a>,
    settings: &Settings,
    snapshot: &Snapshot,
    now: Now,
    memo: &impl Memo,
) -> Result<Option<Presented<'a>>, Denied> {
    if let Some(believed) = settings.believed(peer, snapshot, now, memo) {
        return forwarded(intake, &believed);
    }
    let Some(pem) = peer.certificate else { return Ok(None) };
    let der = certificate_from_pem(pem).map_err(rejected)?;
    Ok(Some(Presented { der, claimed_id: peer.principal.map(Cow::Borrowed), forwarded: false }))
}

/// The certificate in the headers of a listed proxy.
fn forwarded<'a>(intake: &Intake<'a>, believed: &Believed) -> Result<Option<Presented<'a>>, Denied> {
    let beside = &intake.beside;
    let believes = |header| believed.contains(&header);
    let is_said = beside.xfcc.is_some() && believes(ForwardingHeader::Xfcc)
        || beside.client_cert.is_some() && believes(ForwardingHeader::ClientCert);
    if !is_said {
        return Ok(None);
    }
    let element = beside.xfcc.map(last_forwarded_certificate).transpose().map_err(rejected)?;
    let from_xfcc = element.map(from_xfcc).transpose()?;
    let field = beside.client_cert.map(certificate_from_client_cert).transpose().map_err(rejected)?;
    match (from_xfcc, field) {
        (Some(xfcc), Some(field)) if xfcc.der != field => {
            deny(Reason::InputHeaderMismatch, "`x-forwarded-client-cert` and `Client-Cert` differ")
        }
        (Some(xfcc), _) => Ok(Some(xfcc)),
        (None, Some(der)) => Ok(Some(Presented { der, claimed_id: None, forwarded: true })),
        (None, None) => Ok(None),
    }
}

fn from_xfcc(element: ForwardedCertificate<'_>) -> Result<Presented<'_>, Denied> {
    let Some(pem) = element.cert else {
        return deny(Reason::CredentialMalformed, "the last element of `x-forwarded-client-cert` has no `Cert`");
    };
    let der = certificate_from_pem(&pem).map_err(rejected)?;
    if element.hash.is_some_and(|hash| !hash.eq_ignore_ascii_case(&hex(&credential::certificate_thumbprint(&der)))) {
        return deny(Reason::InputHeaderMismatch, "`Hash` and `Cert` of `x-forwarded-client-cert` differ");
    }
    Ok(Presented { der, claimed_id: element.uri, forwarded: true })
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The X.509-SVID with this DER, from the memo when it was read before; its time counts now.
fn svid(der: &[u8], now: Now, memo: &impl Memo) -> Result<Arc<KnownCertificate>, Rejection> {
    let digest = credential::certificate_memo_key(der);
    let known = match memo.certificate(&digest) {
        Some(known) => known,
        None => {
            let svid = X509Svid::parse(der)?;
            let known = Arc::new(KnownCertificate { party: Party::of(svid.id.as_str()), svid });
            memo.keep_certificate(digest, &known);
            known
        }
    };
    known.svid.check_time(now.wall)?;
    Ok(known)
}

pub(super) fn rejected(rejection: Rejection) -> Denied {
    (Reason::from(rejection.reason), Some(Arc::from(rejection.detail)))
}

// === impl Presented ===

impl Presented<'_> {
    /// SHA-256 of it: what a token that is bound to a certificate names (RFC 8705). It need not be an X.509-SVID for that;
    /// but one that has been revoked, by its serial number or as what it is otherwise, proves nothing any more.
    pub(super) fn unrevoked_thumbprint(&self, snapshot: &Snapshot) -> Result<[u8; 32], Denied> {
        let revocations = &snapshot.revocations;
        let revoked = match X509Svid::parse(&self.der) {
            Ok(svid) => {
                let issuer = snapshot.issuers.of_certificates(svid.id.trust_domain());
                revocations.of_certificate(svid.id.as_str(), &svid.serial, issuer.map_or("", |issuer| &**issuer))
            }
            Err(_no_svid) => {
                credential::serial_of_certificate(&self.der).and_then(|serial| revocations.of_serial(&serial))
            }
        };
        match revoked {
            None => Ok(credential::certificate_thumbprint(&self.der)),
            Some(reason) => deny(reason, "the certificate that the token is bound to has been revoked"),
        }
    }

    /// Judges it: an X.509-SVID, valid now, of a trust domain that an issuer vouches for. Also gives that issuer.
    pub(super) fn verify(
        &self,
        snapshot: &Snapshot,
        now: Now,
        memo: &impl Memo,
    ) -> Result<(Arc<KnownCertificate>, Arc<str>), Denied> {
        let known = svid(&self.der, now, memo).map_err(rejected)?;
        if self.claimed_id.as_ref().is_some_and(|claimed| *claimed != known.svid.id.as_str()) {
            return match self.forwarded {
                true => deny(Reason::InputHeaderMismatch, "`URI` and `Cert` of `x-forwarded-client-cert` differ"),
                false => {
                    deny(Reason::CredentialSubject, "the peer's principal is not the SPIFFE ID of its certificate")
                }
            };
        }
        match snapshot.issuers.of_certificates(known.svid.id.trust_domain()) {
            Some(issuer) => Ok((known, Arc::clone(issuer))),
            None => {
                deny(Reason::CredentialIssuerUntrusted, "no issuer vouches for the trust domain of the certificate")
            }
        }
    }
}

// === impl Settings ===

impl Settings {
    /// Whether the word of the other end about its client's certificate could count, as far as that is clear without a state.
    pub fn may_believe(&self, peer: Peer<'_>) -> bool {
        let svid = || X509Svid::parse(&certificate_from_pem(peer.certificate?).ok()?).ok();
        self.trusted_proxies.iter().any(|proxy| match &proxy.peer {
            ProxyPeer::SpiffeId(id) => svid().is_some_and(|svid| svid.id == *id),
            ProxyPeer::Network(network) => peer.address.is_some_and(|address| network.contains(address)),
        })
    }

    /// The headers of the other end of the connection that count, if it is a listed proxy.
    fn believed(&self, peer: Peer<'_>, snapshot: &Snapshot, now: Now, memo: &impl Memo) -> Option<Believed> {
        if self.trusted_proxies.is_empty() {
            return None;
        }
        let own = self.is_by_certificate().then(|| certified(peer, snapshot, now, memo)).flatten();
        let is_peer = |proxy: &&TrustedProxy| match &proxy.peer {
            ProxyPeer::SpiffeId(id) => own.as_ref().is_some_and(|own| own.svid.id == *id),
            ProxyPeer::Network(network) => peer.address.is_some_and(|address| network.contains(address)),
        };
        let believed: Believed = self.trusted_proxies.iter().filter(is_peer).map(|proxy| proxy.header).collect();
        (!believed.is_empty()).then_some(believed)
    }

    fn is_by_certificate(&self) -> bool {
        self.trusted_proxies.iter().any(|proxy| matches!(proxy.peer, ProxyPeer::SpiffeId(_)))
    }
}

/// The certificate of the other end of the connection, if it counts and is not revoked.
fn certified(peer: Peer<'_>, snapshot: &Snapshot, now: Now, memo: &impl Memo) -> Option<Arc<KnownCertificate>> {
    let der = peer.certificate.and_then(|pem| certificate_from_pem(pem).ok())?;
    let own = Presented { der, claimed_id: peer.principal.map(Cow::Borrowed), forwarded: false };
    let (known, issuer) = own.verify(snapshot, now, memo).ok()?;
    let svid = &known.svid;
    let revoked = snapshot.revocations.of_certificate(svid.id.as_str(), &svid.serial, &issuer).is_some();
    (!revoked).then_some(known)
}

// === impl Network ===

impl Network {
    /// Whether `address` is in it. An IPv4 address in IPv6 form is that IPv4 address.
    pub fn contains(&self, address: IpAddr) -> bool {
        match (self.address, address.to_canonical()) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
                address.to_bits() & mask == network.to_bits()
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - u32::from(self.prefix)).unwrap_or(0);
                address.to_bits() & mask == network.to_bits()
            }
            _ => false,
        }
    }
}

impl core::str::FromStr for Network {
    type Err = NetworkError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (address, prefix) = match text.split_once('/') {
            Some((address, prefix)) => (address, Some(prefix)),
            None => (text, None),
        };
        let address: IpAddr = address.parse().map_err(|_not_an_address| NetworkError::Form)?;
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let prefix = match prefix {
            None => bits,
            Some(text) => {
                let number = text.parse::<u8>().ok().filter(|n| *n <= bits && n.to_string() == *text);
                number.ok_or(NetworkError::Form)?
            }
        };
        if prefix == 0 {
            return Err(NetworkError::Everybody);
        }
        let network = Self { address, prefix };
        if address != address.to_canonical() {
            return Err(NetworkError::Form);
        }
        if !network.contains(address) {
            return Err(NetworkError::HostBits);
        }
        Ok(network)
    }
}

impl core::fmt::Display for Network {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

#[cfg(test)]
mod tests;
