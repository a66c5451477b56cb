//! Client certificates of operators: what of one counts, and whose it is.
//!
//! Plane: control. The handshake has verified the chain against the CAs that the configuration names for operators, and
//! that the client holds the key; this only reads. A name matches exactly or not at all. INVARIANT: a certificate that
//! two operators could claim is nobody's.

use std::net::IpAddr;
use std::sync::Arc;

use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::clock::Timestamp;
use crate::credential::serial_of_certificate;

/// The other end of a connection. In the extensions of every request that came over one.
#[derive(Debug, Clone)]
pub struct Peer {
    /// Its address.
    pub address: IpAddr,
    /// The certificate that it has proved to hold.
    pub certificate: Option<Arc<PeerCertificate>>,
}

/// What of a verified certificate counts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Its serial number, as revocations have it.
    pub serial: Arc<str>,
    names: Vec<CertificateName>,
    not_before: Timestamp,
    not_after: Timestamp,
}

/// A name in a certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CertificateName {
    /// A URI of the subject alternative names.
    Uri(String),
    /// A DNS name of them.
    Dns(String),
    /// An e-mail address of them.
    Email(String),
    /// The whole subject, as in `CN=alice, O=Example`.
    Subject(String),
}

/// Whose certificates have which name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CertificateRule {
    /// The operator.
    pub operator: String,
    /// The name.
    pub name: CertificateName,
}

// === impl PeerCertificate ===

impl PeerCertificate {
    /// Reads a certificate; `None` when it is not one that can be read.
    pub fn parse(der: &[u8]) -> Option<Self> {
        let (rest, certificate) = X509Certificate::from_der(der).ok()?;
        if !rest.is_empty() {
            return None;
        }
        // The text of a subject escapes nothing. One with a value that could be taken for more of them is no name.
        let plain = |value: &str| value.trim() == value && !value.contains([',', '+', '=', '\\']);
        let is_plain = certificate.subject().iter_attributes().all(|part| part.as_str().is_ok_and(plain));
        let mut names: Vec<CertificateName> =
            is_plain.then(|| CertificateName::Subject(certificate.subject().to_string())).into_iter().collect();
        if let Some(extension) = certificate.subject_alternative_name().ok()? {
            names.extend(extension.value.general_names.iter().filter_map(|name| match name {
                GeneralName::URI(uri) => Some(CertificateName::Uri((*uri).to_owned())),
                GeneralName::DNSName(name) => Some(CertificateName::Dns((*name).to_owned())),
                GeneralName::RFC822Name(name) => Some(CertificateName::Email((*name).to_owned())),
                _ => None,
            }));
        }
        let time = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).ok().map(Timestamp::from_secs);
        Some(Self {
            serial: serial_of_certificate(der)?,
            names,
            not_before: time(certificate.validity().not_before)?,
            not_after: time(certificate.validity().not_after)?,
        })
    }

    /// The one operator whose it is, at this time: a connection may outlive its certificate.
    pub fn operator<'r>(&self, rules: &'r [CertificateRule], now: Timestamp) -> Option<&'r str> {
        if now < self.not_before || now >= self.not_after {
            return None;
        }
        let mut operators = rules.iter().filter(|rule| self.names.contains(&rule.name)).map(|rule| &*rule.operator);
        let operator = operators.next()?;
        operators.all(|other| other == operator).then_some(operator)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(names: &[CertificateName]) -> PeerCertificate {
        let (not_before, not_after) = (Timestamp::from_secs(100), Timestamp::from_secs(200));
        PeerCertificate { serial: Arc::from("1"), names: names.to_vec(), not_before, not_after }
    }

    #[test]
    fn a_subject_that_reads_like_another_is_no_name() {
        let subject_of = |parts: &[(rcgen::DnType, &str)]| {
            let mut params = rcgen::CertificateParams::default();
            params.distinguished_name = rcgen::DistinguishedName::new();
            parts.iter().for_each(|(kind, value)| params.distinguished_name.push(kind.clone(), *value));
            let made = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
            PeerCertificate::parse(made.der()).unwrap().names
        };
        let name = CertificateName::Subject("CN=alice, O=Example".to_owned());
        let two = [(rcgen::DnType::CommonName, "alice"), (rcgen::DnType::OrganizationName, "Example")];
        assert_eq!(subject_of(&two), [name]);
        assert_eq!(subject_of(&[(rcgen::DnType::CommonName, "alice, O=Example")]), []);
    }

    #[test]
    fn a_name_matches_exactly_by_kind_and_in_its_time() {
        let dns = |name: &str| CertificateName::Dns(name.to_owned());
        let rule = |operator: &str, name| CertificateRule { operator: operator.to_owned(), name };
        let rules = [rule("alice", dns("alice.example")), rule("bob", CertificateName::Uri("u:bob".to_owned()))];
        let now = Timestamp::from_secs(150);
        assert_eq!(certificate(&[dns("alice.example")]).operator(&rules, now), Some("alice"));
        for wrong in [dns("ALICE.example"), dns("*.example"), CertificateName::Email("alice.example".to_owned())] {
            assert_eq!(certificate(&[wrong]).operator(&rules, now), None);
        }
        let both = certificate(&[dns("alice.example"), CertificateName::Uri("u:bob".to_owned())]);
        assert_eq!(both.operator(&rules, now), None, "nobody's, when two could claim it");
        for outside in [99, 200] {
            let alice = certificate(&[dns("alice.example")]);
            assert_eq!(alice.operator(&rules, Timestamp::from_secs(outside)), None, "{outside}");
        }
    }
}
