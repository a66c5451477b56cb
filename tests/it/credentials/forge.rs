//! Makes the token of a case: a good one of its template, changed in the points that the case names and in no other.
//!
//! What a case breaks is named by a word (`signature: der`), so that a reader of the file sees the attack and not its bytes.

use aws_lc_rs::hmac;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as B64;
use portcullis::testing::SigningKey;
use serde_json::{Map, Value};

use super::corpus::{Case, Corpus, Part};

impl Corpus {
    /// The token of this case, on a template of its own or on this one.
    pub(crate) fn token(&self, template: &str, case: &Case) -> String {
        let template = case.template.as_deref().unwrap_or(template);
        let template = self.templates.get(template).unwrap_or_else(|| panic!("{}: no `{template}`", case.name));
        let header = case.header.build(&template.header);
        let claims = case.claims.build(&template.claims);
        let signed_claims = case.signed_claims.as_ref().map_or_else(|| claims.clone(), |p| p.build(&template.claims));
        let key = self.key(case.key.as_ref().unwrap_or(&template.key));
        let signed = format!("{}.{}", B64.encode(&header), B64.encode(signed_claims));
        let by_header =
            serde_json::from_slice::<Value>(&header).ok().and_then(|h| Some(h.get("alg")?.as_str()?.to_owned()));
        let algorithm = case.sign.clone().or(by_header).unwrap_or_default();
        let signature = match &case.hmac {
            Some(by) => mac(&algorithm, &secret(&by.secret, self.key(&by.of)), signed.as_bytes()),
            None => key.sign(&algorithm, signed.as_bytes()),
        };
        let signature = case.signature.as_ref().map_or(signature.clone(), |how| spoil(how, &signature));
        let parts = [B64.encode(header), B64.encode(claims), B64.encode(signature)];
        let form = case.token.as_deref().unwrap_or("{header}.{claims}.{signature}");
        let mut token = expand(form);
        for (name, part) in ["{header}", "{claims}", "{signature}"].into_iter().zip(&parts) {
            token = token.replace(name, part);
        }
        token.replace("{stray}", &stray(&parts[2]))
    }

    fn key(&self, name: &str) -> &SigningKey {
        self.keys.get(name).unwrap_or_else(|| panic!("no key `{name}`"))
    }
}

impl Part {
    fn build(&self, template: &Map<String, Value>) -> Vec<u8> {
        if let Some(text) = &self.text {
            return expand(text).into_bytes();
        }
        if let Some(text) = &self.bytes {
            return bytes(text);
        }
        let mut members = template.clone();
        members.extend(self.with.clone());
        members.retain(|name, value| !value.is_null() && !self.raw.contains_key(name));
        let known = members.iter().map(|(name, value)| format!("{}:{value}", Value::from(name.as_str())));
        let raw = self.raw.iter().map(|(name, text)| format!("{}:{text}", Value::from(name.as_str())));
        let text = format!("{{{}{}}}", known.chain(raw).collect::<Vec<_>>().join(","), self.tail);
        expand(&text).into_bytes()
    }
}

/// Replaces `<<x*N>>` by N times x.
fn expand(text: &str) -> String {
    let mut out = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("<<") {
        let (inside, after) = after.split_once(">>").expect("`>>` after `<<`");
        let (unit, times) = inside.rsplit_once('*').expect("`*` in `<<>>`");
        out.push_str(before);
        out.push_str(&unit.repeat(times.parse().expect("a number in `<<>>`")));
        rest = after;
    }
    out + rest
}

fn bytes(text: &str) -> Vec<u8> {
    let mut parts = text.split("\\x");
    let mut out = parts.next().unwrap_or_default().as_bytes().to_vec();
    for part in parts {
        let (hex, rest) = part.split_at(2);
        out.push(u8::from_str_radix(hex, 16).expect("two hexadecimal digits"));
        out.extend_from_slice(rest.as_bytes());
    }
    out
}

/// A public key in the form in which a confused verifier takes it for a secret.
pub(crate) fn secret(form: &str, key: &SigningKey) -> Vec<u8> {
    match form {
        "pem" => key.spki_pem().into_bytes(),
        "pem-without-newline" => key.spki_pem().trim_end().as_bytes().to_vec(),
        "der" => key.spki_der(),
        "jwk" => key.public_jwk().to_string().into_bytes(),
        "n" | "x" => B64.decode(key.public_jwk()[form].as_str().unwrap()).unwrap(),
        "n-as-text" => key.public_jwk()["n"].as_str().unwrap().as_bytes().to_vec(),
        "point" => key.spki_der().split_off(26),
        "empty" => Vec::new(),
        other => panic!("no form `{other}`"),
    }
}

pub(crate) fn mac(algorithm: &str, secret: &[u8], message: &[u8]) -> Vec<u8> {
    let algorithm = match algorithm {
        "HS384" => hmac::HMAC_SHA384,
        "HS512" => hmac::HMAC_SHA512,
        _ => hmac::HMAC_SHA256,
    };
    hmac::sign(&hmac::Key::new(algorithm, secret), message).as_ref().to_vec()
}

/// A signature, spoilt in a way that has a name.
pub(crate) fn spoil(how: &str, good: &[u8]) -> Vec<u8> {
    let flip = |at: usize| {
        let mut bytes = good.to_vec();
        bytes[at] ^= 1;
        bytes
    };
    let (r, s) = good.split_at(good.len() / 2);
    match how {
        "empty" => Vec::new(),
        "flip-first" => flip(0),
        "flip-last" => flip(good.len() - 1),
        "append-zero" => [good, &[0]].concat(),
        "append-many" => [good, &[0xff; 64]].concat(),
        "prepend-zero" => [&[0], good].concat(),
        "drop-last" => good[..good.len() - 1].to_vec(),
        "drop-first" => good[1..].to_vec(),
        "half" => r.to_vec(),
        "twice" => [good, good].concat(),
        "swap-halves" => [s, r].concat(),
        "zeros" => vec![0; good.len()],
        "ones" => vec![0xff; good.len()],
        "r-zero" => [&vec![0; r.len()], s].concat(),
        "s-zero" => [r, &vec![0; s.len()]].concat(),
        "one-byte" => vec![0],
        "reversed" => good.iter().rev().copied().collect(),
        "der" => der(r, s),
        "as-text" => B64.encode(good).into_bytes(),
        // The identity of the group, and zero: what verifies any message under a key of small order.
        "identity" => [&[1], &[0; 63][..]].concat(),
        // S + L: the other spelling of the same Ed25519 signature (RFC 8032, section 5.1.7, refuses it).
        "s-plus-order" => [r, &plus_order(s)].concat(),
        other => panic!("no way `{other}` to spoil a signature"),
    }
}

/// R and S as a DER `ECDSA-Sig-Value`.
fn der(r: &[u8], s: &[u8]) -> Vec<u8> {
    let integer = |n: &[u8]| {
        let significant: Vec<u8> = n.iter().copied().skip_while(|b| *b == 0).collect();
        let pad = significant.first().is_none_or(|b| *b >= 0x80).then_some(0);
        let body: Vec<u8> = pad.into_iter().chain(significant).collect();
        [&[2, u8::try_from(body.len()).unwrap()], &body[..]].concat()
    };
    let body = [integer(r), integer(s)].concat();
    [&[0x30, u8::try_from(body.len()).unwrap()], &body[..]].concat()
}

fn plus_order(s: &[u8]) -> Vec<u8> {
    const ORDER: [u8; 32] = [
        0xed, 0xd3, 0xf5, 0x5c, 0x1a, 0x63, 0x12, 0x58, 0xd6, 0x9c, 0xf7, 0xa2, 0xde, 0xf9, 0xde, 0x14, 0, 0, 0, 0, 0,
        0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x10,
    ];
    let mut carry = 0;
    let sum = s.iter().zip(ORDER).map(|(a, b)| {
        let sum = u16::from(*a) + u16::from(b) + carry;
        carry = sum >> 8;
        sum.to_le_bytes()[0]
    });
    sum.collect()
}

/// The last character with one of the bits set that encode nothing; a lax decoder reads the same bytes.
fn stray(encoded: &str) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let Some(before_last) = encoded.len().checked_sub(1) else { return String::new() };
    let (rest, last) = encoded.split_at(before_last);
    let index = ALPHABET.iter().position(|c| *c == last.as_bytes()[0]).unwrap();
    format!("{rest}{}", char::from(ALPHABET[index | 1]))
}
