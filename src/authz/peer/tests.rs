//! Certificates through the engine: each mode with each credential, proxies that are listed and not, and contradictions.
//!
//! Long because each contradiction is a test of its own.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::json;

use super::*;
use crate::authz::{Decision, Inputs, NoMemo, Request, decide, explain};
use crate::clock::{Clock, Timestamp};
use crate::object::{Authentication, Kind};
use crate::testing::certificates::{SERIAL, client_cert, der, params, svid, url_encoded, valid, xfcc};
use crate::testing::{Estate, request};

const MODES: [(&str, Authentication); 4] = [
    ("token", Authentication::Token),
    ("certificate", Authentication::Certificate),
    ("any", Authentication::Any),
    ("both", Authentication::Both),
];

/// An estate with one route for each mode, on which everybody may do everything.
struct World {
    estate: Estate,
    settings: Settings,
}

impl World {
    fn new() -> Self {
        let mut estate = Estate::new();
        let route = |name: &str| json!({"name": name, "path": format!("/{name}"), "authentication": name});
        let routes: Vec<_> = MODES.iter().map(|(name, _)| route(name)).collect();
        estate.put(Kind::Service, &json!({"name": "mtls", "routes": routes}));
        estate.put_policies(r#"@id("all") permit(principal, action, resource);"#);
        estate.put(
            Kind::Workload,
            &json!({"id": Estate::id("gateway"), "kind": "service", "owner": "team", "environment": "production"}),
        );
        Self { estate, settings: Settings::default() }
    }

    fn listing(proxies: &[&str]) -> Self {
        Self::believing(proxies, &[ForwardingHeader::Xfcc, ForwardingHeader::ClientCert])
    }

    fn believing(proxies: &[&str], headers: &[ForwardingHeader]) -> Self {
        let peer = |proxy: &&str| match proxy.parse() {
            Ok(network) => ProxyPeer::Network(network),
            Err(_) => ProxyPeer::SpiffeId(SpiffeId::parse(&Estate::id(proxy)).unwrap()),
        };
        let each = proxies.iter().map(peer);
        let trusted_proxies =
            each.flat_map(|peer| headers.iter().map(move |&header| TrustedProxy { peer: peer.clone(), header }));
        Self { settings: Settings { trusted_proxies: trusted_proxies.collect() }, ..Self::new() }
    }

    fn now(&self) -> u64 {
        self.estate.clock.now().wall.as_secs()
    }

    fn svid(&self, name: &str) -> Vec<u8> {
        svid(&Estate::id(name), self.now())
    }

    fn bearer(&self, name: &str) -> (&'static str, String) {
        ("authorization", format!("Bearer {}", self.estate.token(name)))
    }

    fn inputs<'a>(&'a self, snapshot: &'a Snapshot) -> Inputs<'a> {
        let (lease, now) = (Some(self.estate.lease()), self.estate.clock.now());
        Inputs { snapshot: Some(snapshot), lease, now, proofs: None, settings: &self.settings, uses: None }
    }

    fn ask(&self, path: &str, headers: &[(&str, String)], certificate: Option<&[u8]>) -> Decision {
        self.ask_from(path, headers, certificate, None)
    }

    fn ask_from(
        &self,
        path: &str,
        headers: &[(&str, String)],
        certificate: Option<&[u8]>,
        address: Option<&str>,
    ) -> Decision {
        let snapshot = self.estate.snapshot();
        let certificate = certificate.map(url_encoded);
        let address = address.map(|address| address.parse().unwrap());
        let peer = Peer { principal: None, certificate: certificate.as_deref(), address };
        let request = Request { peer, ..request("GET", path, headers) };
        let (explained, steps) = explain(&request, self.inputs(&snapshot));
        let decided = decide(&request, self.inputs(&snapshot), &NoMemo);
        assert_eq!(decided.reason, explained.reason, "{steps:?}");
        decided
    }
}

#[test]
fn each_mode_takes_what_it_says() {
    let world = World::new();
    let token = [world.bearer("storefront")];
    let (own, other) = (world.svid("storefront"), world.svid("agent"));
    use Reason::{AllowPolicy as Allow, CredentialMissing as Missing, CredentialSubject as Differ, PolicyNoMatch};
    // Nothing; a token; a certificate; both of one workload; both of two.
    let expected = [
        ("/token", [Missing, Allow, Missing, Allow, Allow]),
        ("/certificate", [Missing, Missing, Allow, Allow, Differ]),
        ("/any", [Missing, Allow, Allow, Allow, Differ]),
        ("/both", [Missing, Missing, Missing, Allow, Differ]),
        ("/no-route", [Missing, PolicyNoMatch, PolicyNoMatch, PolicyNoMatch, PolicyNoMatch]),
    ];
    for (path, reasons) in expected {
        let asked: [(&[_], Option<&[u8]>); 5] =
            [(&[], None), (&token, None), (&[], Some(&own)), (&token, Some(&own)), (&token, Some(&other))];
        for ((headers, certificate), reason) in asked.into_iter().zip(reasons) {
            let decision = world.ask(path, headers, certificate);
            let shown = format!("{path} token {} certificate {}", !headers.is_empty(), certificate.is_some());
            assert_eq!(decision.reason, reason, "{shown}: {:?}", decision.detail);
            let id = Estate::id("storefront");
            let known = reason.family() != "credential";
            assert_eq!(decision.workload.as_deref(), known.then_some(&*id), "{shown}");
            let counted =
                known && certificate.is_some() && !matches!((path, headers), ("/token", _) | ("/no-route", [_]));
            assert_eq!(decision.certificate_serial.as_deref(), counted.then_some(SERIAL), "{shown}");
        }
    }
}

#[test]
fn a_route_for_tokens_does_not_look_at_certificates_and_the_others_refuse_bad_ones() {
    let world = World::new();
    let token = [world.bearer("storefront")];
    let id = Estate::id("storefront");
    let at = |from, until| {
        let mut p = params(&id, world.now());
        valid(&mut p, from, until);
        der(&p)
    };
    let now = world.now();
    let foreign = svid("spiffe://other.example/storefront", now);
    let nobody = world.svid("nobody");
    let bad = [
        (at(now - 20, now), Reason::CredentialExpired),
        (at(now + 20, now + 40), Reason::CredentialNotYetValid),
        (foreign, Reason::CredentialIssuerUntrusted),
        (b"not DER".to_vec(), Reason::CredentialMalformed),
        (nobody, Reason::CredentialSubject),
    ];
    for (certificate, reason) in &bad {
        for path in ["/certificate", "/any", "/both"] {
            assert_eq!(world.ask(path, &token, Some(certificate)).reason, *reason, "{path}");
        }
        assert_eq!(world.ask("/certificate", &[], Some(certificate)).reason, *reason);
        assert_eq!(world.ask("/token", &token, Some(certificate)).reason, Reason::AllowPolicy);
    }
    // A bad token is not made good by a certificate.
    let forged = [("authorization", "Bearer a.b.c".to_owned())];
    for (path, _) in MODES {
        let decision = world.ask(&format!("/{path}"), &forged, Some(&world.svid("storefront")));
        assert_eq!(decision.reason, Reason::CredentialMalformed, "{path}");
    }
}

#[test]
fn a_principal_that_is_not_the_certificates_is_refused() {
    let world = World::new();
    let snapshot = world.estate.snapshot();
    let certificate = url_encoded(&world.svid("storefront"));
    let (own, other) = (Estate::id("storefront"), Estate::id("agent"));
    for (principal, reason) in [(&own, Reason::AllowPolicy), (&other, Reason::CredentialSubject)] {
        let peer = Peer { principal: Some(principal), certificate: Some(&certificate), address: None };
        let request = Request { peer, ..request("GET", "/certificate", &[]) };
        assert_eq!(decide(&request, world.inputs(&snapshot), &NoMemo).reason, reason);
    }
    // Without its certificate a principal proves nothing that can be revoked.
    let peer = Peer { principal: Some(&own), ..Peer::default() };
    let request = Request { peer, ..request("GET", "/certificate", &[]) };
    assert_eq!(decide(&request, world.inputs(&snapshot), &NoMemo).reason, Reason::CredentialMissing);
}

#[test]
fn revocations_of_serial_workload_and_issuer_end_a_certificate_and_tokens_before_does_not() {
    let revoked = |target: serde_json::Value| {
        let mut world = World::new();
        world.estate.revoke(&target);
        world.ask("/certificate", &[], Some(&world.svid("storefront"))).reason
    };
    let id = Estate::id("storefront");
    assert_eq!(revoked(json!({"kind": "certificate", "serial": SERIAL})), Reason::RevokedKey);
    assert_eq!(revoked(json!({"kind": "workload", "workload": id})), Reason::RevokedWorkload);
    assert_eq!(revoked(json!({"kind": "issuer", "issuer": "test"})), Reason::RevokedIssuer);
    let before = Timestamp::from_secs(1_900_000_000);
    assert_eq!(revoked(json!({"kind": "tokens_before", "workload": id, "before": before})), Reason::AllowPolicy);
    assert_eq!(revoked(json!({"kind": "certificate", "serial": "ffff"})), Reason::AllowPolicy);
}

#[test]
fn an_issuer_without_keys_vouches_for_no_certificate() {
    let mut world = World::new();
    world.estate.put(
        Kind::Issuer,
        &json!({"name": "test", "kind": "spiffe", "trust_domain": "test.example", "audiences": ["a"], "jwks": {"keys": []}}),
    );
    let decision = world.ask("/certificate", &[], Some(&world.svid("storefront")));
    assert_eq!(decision.reason, Reason::CredentialIssuerUntrusted);
}

#[test]
fn what_an_unlisted_peer_forwards_is_never_used() {
    for world in [World::new(), World::listing(&["gateway", "10.0.0.0/8"])] {
        let victim = world.svid("storefront");
        let forged = [("x-forwarded-client-cert", xfcc(&victim, &Estate::id("storefront")))];
        let rfc9440 = [("client-cert", client_cert(&victim))];
        for headers in [&forged, &rfc9440] {
            assert_eq!(world.ask("/certificate", headers, None).reason, Reason::CredentialMissing);
            assert_eq!(
                world.ask_from("/certificate", headers, None, Some("192.0.2.1")).reason,
                Reason::CredentialMissing
            );
            let own = world.ask("/certificate", headers, Some(&world.svid("agent")));
            assert_eq!(own.workload.as_deref(), Some(&*Estate::id("agent")), "{:?}", own.reason);
        }
        let garbage = [("x-forwarded-client-cert", "\"".to_owned()), ("client-cert", "x".to_owned())];
        assert_eq!(world.ask("/certificate", &garbage, Some(&world.svid("agent"))).reason, Reason::AllowPolicy);
    }
}

#[test]
fn a_listed_proxy_speaks_for_its_client_and_never_for_itself() {
    let client = Estate::id("storefront");
    for (listed, own, address) in [("gateway", Some("gateway"), None), ("10.0.0.0/8", None, Some("::ffff:10.1.2.3"))] {
        let world = World::listing(&[listed]);
        let own = own.map(|name| world.svid(name));
        let ask = |headers: &[(&str, String)]| world.ask_from("/certificate", headers, own.as_deref(), address);
        let certificate = world.svid("storefront");
        let other = world.svid("agent");
        let (good, spoof) = (xfcc(&certificate, &client), xfcc(&other, &Estate::id("agent")));

        let accepted = ask(&[("x-forwarded-client-cert", good.clone())]);
        assert_eq!((accepted.reason, accepted.workload.as_deref()), (Reason::AllowPolicy, Some(&*client)));
        assert_eq!(ask(&[("Client-Cert", client_cert(&certificate))]).workload.as_deref(), Some(&*client));
        assert_eq!(ask(&[]).reason, Reason::CredentialMissing, "its own certificate is not its client's");

        // The client wrote what comes first, in a list or in a line of its own.
        let joined = format!("{spoof},{good}");
        assert_eq!(ask(&[("x-forwarded-client-cert", joined)]).workload.as_deref(), Some(&*client));
        let lines = [("x-forwarded-client-cert", spoof.clone()), ("x-forwarded-client-cert", good.clone())];
        assert_eq!(ask(&lines).workload.as_deref(), Some(&*client));

        let one = |value: String| ask(&[("x-forwarded-client-cert", value)]).reason;
        assert_eq!(one("Hash=00;URI=spiffe://test.example/storefront".to_owned()), Reason::CredentialMalformed);
        assert_eq!(one(good.replace("Hash=", "Hash=0")), Reason::InputHeaderMismatch);
        assert_eq!(one(xfcc(&certificate, &Estate::id("agent"))), Reason::InputHeaderMismatch);
        assert_eq!(one(format!("{good};URI={client}")), Reason::CredentialMalformed);
        assert_eq!(one(format!("{good};cert=x")), Reason::CredentialMalformed);
        assert_eq!(one(format!("Subject=\"{spoof},{good}")), Reason::CredentialMalformed);

        let both = |field: &[u8]| {
            ask(&[("x-forwarded-client-cert", good.clone()), ("client-cert", client_cert(field))]).reason
        };
        assert_eq!(both(&certificate), Reason::AllowPolicy);
        assert_eq!(both(&other), Reason::InputHeaderMismatch);
        let twice = [("client-cert", client_cert(&certificate)), ("Client-Cert", client_cert(&certificate))];
        assert_eq!(ask(&twice).reason, Reason::InputDuplicateHeader);
    }
}

#[test]
fn a_proxy_is_believed_in_its_own_header_and_spelling_only() {
    let client = Estate::id("storefront");
    let world = World::believing(&["gateway"], &[ForwardingHeader::Xfcc]);
    let (gateway, certificate, victim) = (world.svid("gateway"), world.svid("storefront"), world.svid("agent"));
    let ask = |headers: &[(&str, String)]| world.ask("/certificate", headers, Some(&gateway));
    let good = ("x-forwarded-client-cert", xfcc(&certificate, &client));
    // A client without a certificate sends what the gateway does not know and passes on.
    assert_eq!(ask(&[("client-cert", client_cert(&victim))]).reason, Reason::CredentialMissing);
    assert_eq!(ask(&[good.clone(), ("client-cert", client_cert(&victim))]).reason, Reason::InputHeaderMismatch);
    let spoof = ("x_forwarded_client_cert", xfcc(&victim, &Estate::id("agent")));
    assert_eq!(ask(std::slice::from_ref(&spoof)).reason, Reason::CredentialMissing);
    assert_eq!(ask(&[good.clone(), spoof]).workload.as_deref(), Some(&*client));

    let world = World::believing(&["gateway"], &[ForwardingHeader::ClientCert]);
    let ask = |headers: &[(&str, String)]| world.ask("/certificate", headers, Some(&gateway));
    assert_eq!(ask(&[good]).reason, Reason::CredentialMissing);
    assert_eq!(ask(&[("client_cert", client_cert(&victim))]).reason, Reason::CredentialMissing);
    assert_eq!(ask(&[("client-cert", client_cert(&certificate))]).workload.as_deref(), Some(&*client));
}

#[test]
fn a_proxy_whose_certificate_does_not_count_is_not_listed() {
    let headers =
        |world: &World| [("x-forwarded-client-cert", xfcc(&world.svid("storefront"), &Estate::id("storefront")))];
    let mut world = World::listing(&["gateway"]);
    let mut own = params(&Estate::id("gateway"), world.now());
    own.serial_number = Some(rcgen::SerialNumber::from_slice(&[0x77]));
    let mut ended = own.clone();
    valid(&mut ended, world.now() - 20, world.now());
    assert_eq!(world.ask("/certificate", &headers(&world), Some(&der(&ended))).reason, Reason::CredentialExpired);
    assert_eq!(world.ask("/certificate", &headers(&world), Some(&der(&own))).reason, Reason::AllowPolicy);
    world.estate.revoke(&json!({"kind": "certificate", "serial": "77"}));
    assert_eq!(world.ask("/certificate", &headers(&world), Some(&der(&own))).reason, Reason::RevokedKey);
}

#[test]
fn a_delegated_token_agrees_with_the_certificate_of_who_acts() {
    let mut world = World::new();
    let keys = json!({"keys": [world.estate.signer.public_jwk()]});
    world.estate.put(
        Kind::Issuer,
        &json!({"name": "test", "kind": "spiffe", "trust_domain": "test.example", "max_delegation_depth": 1,
                "audiences": [crate::testing::AUDIENCE], "jwks": keys}),
    );
    let mut claims = world.estate.claims("storefront");
    claims["act"] = json!({"sub": Estate::id("agent")});
    let token = [("authorization", format!("Bearer {}", world.estate.signer.sign(&claims).unwrap()))];
    let ask = |name: &str| world.ask("/both", &token, Some(&world.svid(name)));
    let agreed = ask("agent");
    assert_eq!(agreed.reason, Reason::AllowPolicy, "{:?}", agreed.detail);
    assert_eq!(agreed.actor.as_deref(), Some(&*Estate::id("agent")));
    assert_eq!(ask("storefront").reason, Reason::CredentialSubject);
}

#[test]
fn networks() {
    let contains =
        |network: &str, address: &str| network.parse::<Network>().unwrap().contains(address.parse().unwrap());
    assert!(contains("10.0.0.0/8", "10.255.0.1") && !contains("10.0.0.0/8", "11.0.0.1"));
    assert!(contains("192.0.2.7", "192.0.2.7") && !contains("192.0.2.7/32", "192.0.2.8"));
    assert!(contains("10.0.0.0/8", "::ffff:10.0.0.1") && !contains("10.0.0.0/8", "::1"));
    assert!(contains("2001:db8::/32", "2001:db8:1::1") && !contains("2001:db8::/32", "2001:db9::1"));
    assert!(contains("128.0.0.0/1", "200.0.0.1") && !contains("128.0.0.0/1", "100.0.0.1"));
    let errors = [
        ("", NetworkError::Form),
        ("10.0.0.0/33", NetworkError::Form),
        ("10.0.0.0/08", NetworkError::Form),
        ("10.0.0.0/", NetworkError::Form),
        ("10.0.0.0/8/8", NetworkError::Form),
        ("gateway", NetworkError::Form),
        ("::ffff:10.0.0.0/104", NetworkError::Form),
        ("10.0.0.1/8", NetworkError::HostBits),
        ("2001:db8::1/32", NetworkError::HostBits),
        ("0.0.0.0/0", NetworkError::Everybody),
        ("::/0", NetworkError::Everybody),
    ];
    for (text, error) in errors {
        assert_eq!(text.parse::<Network>().unwrap_err(), error, "{text}");
    }
    assert_eq!("10.0.0.0/8".parse::<Network>().unwrap().to_string(), "10.0.0.0/8");
}

#[test]
fn a_revoked_certificate_proves_no_possession() {
    let mut world = World::listing(&["gateway"]);
    let (own, gateway) = (world.svid("storefront"), world.svid("gateway"));
    let bound = |world: &World, der: &[u8]| {
        let mut claims = world.estate.claims("storefront");
        let thumbprint = URL_SAFE_NO_PAD.encode(credential::certificate_thumbprint(der));
        claims["cnf"] = json!({"x5t#S256": thumbprint});
        [("authorization", format!("Bearer {}", world.estate.signer.sign(&claims).unwrap()))]
    };
    let (to_own, to_gateway) = (bound(&world, &own), bound(&world, &gateway));
    assert_eq!(world.ask("/token", &to_own, Some(&own)).reason, Reason::AllowPolicy);
    assert_eq!(world.ask("/token", &to_gateway, Some(&gateway)).reason, Reason::CredentialPopMissing, "a proxy's own");
    world.estate.revoke(&json!({"kind": "certificate", "serial": SERIAL}));
    assert_eq!(world.ask("/token", &to_own, Some(&own)).reason, Reason::RevokedKey);
    // Revoked, it is no listed proxy any more, but still no client that could prove anything.
    assert_eq!(world.ask("/token", &to_gateway, Some(&gateway)).reason, Reason::RevokedKey);
}

#[test]
fn a_revoked_serial_number_counts_also_where_a_certificate_is_no_svid() {
    let mut world = World::new();
    let mut plain = params("spiffe://test.example/replaced", world.now());
    plain.subject_alt_names.clear();
    let plain = der(&plain);
    let mut claims = world.estate.claims("storefront");
    claims["cnf"] = json!({"x5t#S256": URL_SAFE_NO_PAD.encode(credential::certificate_thumbprint(&plain))});
    let token = [("authorization", format!("Bearer {}", world.estate.signer.sign(&claims).unwrap()))];
    assert_eq!(world.ask("/token", &token, Some(&plain)).reason, Reason::AllowPolicy);
    world.estate.revoke(&json!({"kind": "certificate", "serial": SERIAL}));
    assert_eq!(world.ask("/token", &token, Some(&plain)).reason, Reason::RevokedKey);
}

#[test]
fn an_issuer_whose_keys_are_refused_vouches_for_no_certificate() {
    let mut world = World::new();
    let own = world.svid("storefront");
    assert_eq!(world.ask("/certificate", &[], Some(&own)).reason, Reason::AllowPolicy);
    let twin = |world: &World, name: &str| {
        json!({
            "name": name, "kind": "spiffe", "trust_domain": "test.example", "audiences": ["a"],
            "jwks": {"keys": [world.estate.signer.public_jwk()]},
        })
    };
    let before = world.estate.snapshot();
    let change = world.estate.put(Kind::Issuer, &twin(&world, "twin"));
    let mut builder = crate::authz::Builder::on(&before);
    builder.apply(change);
    let (snapshot, bad) = builder.finish(world.estate.position());
    assert_eq!(bad.len(), 2, "both are told of");
    let certificate = url_encoded(&own);
    let peer = Peer { principal: None, certificate: Some(&certificate), address: None };
    let request = Request { peer, ..request("GET", "/certificate", &[]) };
    assert_eq!(decide(&request, world.inputs(&snapshot), &NoMemo).reason, Reason::CredentialIssuerUntrusted);
}
