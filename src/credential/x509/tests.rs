//! X.509-SVIDs: what counts, and every rule broken one at a time.

use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType,
    SerialNumber,
};

use super::*;
use crate::testing::certificates::{SERIAL, der, params, pem, svid, uri, url_encoded, valid};
use CredentialReason::{Expired, Malformed, NotYetValid, Subject, Typ};

const NOW: u64 = 1_800_000_000;
const ID: &str = "spiffe://test.example/storefront";

fn now() -> Timestamp {
    Timestamp::from_secs(NOW)
}

#[test]
fn a_good_certificate_says_who_until_when_and_which() {
    let der = svid(ID, NOW);
    let read = X509Svid::parse(&der).unwrap();
    assert_eq!((read.id.as_str(), &*read.serial), (ID, SERIAL));
    assert_eq!(read.not_after, Timestamp::from_secs(NOW + 3600));
    assert_eq!(read.thumbprint, certificate_thumbprint(&der));
    read.check_time(now()).unwrap();
    for text in [url_encoded(&der), pem(&der), pem(&der).replace('\n', "\r\n")] {
        assert_eq!(certificate_from_pem(&text).unwrap(), der);
    }
    assert_ne!(certificate_memo_key(&der), certificate_thumbprint(&der));
}

#[test]
fn a_certificate_without_extended_key_usage_or_with_other_names_beside_is_good() {
    let mut p = params(ID, NOW);
    p.extended_key_usages.clear();
    p.subject_alt_names.push(SanType::DnsName("storefront.example".try_into().unwrap()));
    p.key_usages.push(KeyUsagePurpose::KeyEncipherment);
    p.is_ca = IsCa::ExplicitNoCa;
    assert_eq!(X509Svid::parse(&der(&p)).unwrap().id.as_str(), ID);
}

#[test]
fn each_rule_of_the_standard_is_enforced() {
    let refused = |change: &dyn Fn(&mut CertificateParams), reason, detail: &str| {
        let mut p = params(ID, NOW);
        change(&mut p);
        let rejection = X509Svid::parse(&der(&p)).unwrap_err();
        assert_eq!(rejection.reason, reason, "{rejection}");
        assert!(rejection.detail.contains(detail), "{rejection}");
    };
    refused(&|p| p.subject_alt_names.clear(), Subject, "no URI name");
    refused(&|p| p.subject_alt_names.push(uri("spiffe://test.example/other")), Subject, "more than one URI");
    refused(&|p| p.subject_alt_names.push(uri("https://test.example/")), Subject, "more than one URI");
    refused(&|p| p.subject_alt_names = vec![uri("https://test.example/a")], Subject, "SPIFFE ID");
    refused(&|p| p.subject_alt_names = vec![uri("spiffe://test.example")], Subject, "SPIFFE ID");
    refused(&|p| p.subject_alt_names = vec![uri("spiffe://TEST.example/a")], Subject, "SPIFFE ID");
    refused(&|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained), Typ, "a CA's");
    refused(&|p| p.key_usages.push(KeyUsagePurpose::KeyCertSign), Typ, "signs certificates");
    refused(&|p| p.key_usages.push(KeyUsagePurpose::CrlSign), Typ, "signs certificates");
    refused(&|p| p.key_usages = vec![KeyUsagePurpose::KeyEncipherment], Typ, "not for signatures");
    refused(&|p| p.key_usages.clear(), Typ, "does not say its key usage");
    refused(&|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth], Typ, "not for clients");
    refused(&|p| p.serial_number = Some(SerialNumber::from_slice(&[0x11; 21])), Malformed, "serial");
    let unknown = |critical| {
        let mut extension = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99999, 1], vec![5, 0]);
        extension.set_criticality(critical);
        extension
    };
    refused(&|p| p.custom_extensions = vec![unknown(true)], Malformed, "not understood");
    let mut p = params(ID, NOW);
    p.custom_extensions = vec![unknown(false)];
    assert!(X509Svid::parse(&der(&p)).is_ok(), "one that is not critical may be unknown");
    let key_usage_twice = CustomExtension::from_oid_content(&[2, 5, 29, 15], vec![3, 2, 7, 128]);
    refused(&|p| p.custom_extensions = vec![key_usage_twice.clone()], Malformed, "twice");
}

#[test]
fn an_extended_key_usage_has_to_name_the_end_that_shows_the_certificate() {
    use ExtendedKeyUsagePurpose::{ClientAuth, ServerAuth};
    for (usages, client, server) in [
        (vec![], true, true),
        (vec![ClientAuth], true, false),
        (vec![ServerAuth], false, true),
        (vec![ServerAuth, ClientAuth], true, true),
    ] {
        let mut p = params(ID, NOW);
        p.extended_key_usages = usages;
        let is_good = |end| X509Svid::parse_of(end, &der(&p)).is_ok();
        assert_eq!((is_good(TlsEnd::Client), is_good(TlsEnd::Server)), (client, server), "{:?}", p.extended_key_usages);
    }
    let mut ca = params(ID, NOW);
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    assert_eq!(X509Svid::parse_of(TlsEnd::Server, &der(&ca)).unwrap_err().reason, Typ);
}

#[test]
fn times_are_held_to_the_second() {
    let mut p = params(ID, NOW);
    valid(&mut p, NOW - 10, NOW + 10);
    let read = X509Svid::parse(&der(&p)).unwrap();
    let reason = |at: u64| read.check_time(Timestamp::from_secs(at)).err().map(|r| r.reason);
    assert_eq!(reason(NOW + 9), None);
    assert_eq!(reason(NOW + 10), Some(Expired));
    assert_eq!(reason(NOW - 15), None, "the leeway of our clock");
    assert_eq!(reason(NOW - 16), Some(NotYetValid));
}

#[test]
fn what_is_not_exactly_one_certificate_is_refused() {
    let good = svid(ID, NOW);
    let mut trailing = good.clone();
    trailing.push(0);
    for der in [&trailing[..], &[], &good[..good.len() - 1], b"\x30\x80\x00\x00", &vec![0x30; MAX_CERTIFICATE + 1]] {
        assert_eq!(X509Svid::parse(der).unwrap_err().reason, Malformed);
    }
    let text = pem(&good);
    let cases = [
        String::new(),
        format!("{text}{text}"),
        format!("{text}-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"),
        format!("hello\n{text}"),
        format!("{text}hello"),
        text.replace("CERTIFICATE", "TRUSTED CERTIFICATE"),
        text.replace("-----END CERTIFICATE-----\n", ""),
        text.replacen('M', "*", 1),
        url_encoded(&good).replacen("%0A", "%0", 1),
        url_encoded(&good).replacen("%0A", "%zz", 1),
        url_encoded(&good) + "%",
        "A".repeat(MAX_CERTIFICATE + 1),
    ];
    for (n, case) in cases.iter().enumerate() {
        assert_eq!(certificate_from_pem(case).unwrap_err().reason, Malformed, "case {n}");
    }
}

#[test]
fn every_prefix_and_every_changed_byte_is_read_without_a_panic() {
    let good = svid(ID, NOW);
    for end in 0..good.len() {
        assert!(X509Svid::parse(&good[..end]).is_err());
    }
    for at in 0..good.len() {
        for byte in [0, 0x7f, 0x80, 0xff, good[at] ^ 1] {
            let mut changed = good.clone();
            changed[at] = byte;
            // Which bytes matter is the signature's business; that it is one workload's certificate is ours.
            if let Ok(read) = X509Svid::parse(&changed) {
                assert!(!read.id.path().is_empty() && !read.serial.is_empty());
            }
        }
    }
}

#[test]
fn serials_are_compared_in_one_form() {
    for text in ["a1b2c", "0A1B2C", "0a:1b:2c", "0x0a1b2c", "00:0A:1B:2C"] {
        assert_eq!(certificate_serial(text).as_deref(), Some(SERIAL), "{text}");
    }
    for text in ["", "0", "00:00", "-0a", "0a 1b", "serial=0a", ":0a", "0a:", "0a::1b", "ä", &"1".repeat(41)] {
        assert_eq!(certificate_serial(text), None, "{text}");
    }
}
