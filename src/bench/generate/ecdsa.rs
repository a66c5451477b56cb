//! ES256 signatures that depend on nothing but key and message (RFC 6979), so that a seed gives the same tokens anywhere.
//!
//! Plane: composition; no I/O. For throw-away keys of benchmarks only: the arithmetic takes a time that depends on the key,
//! which a signer with a secret to keep must never do. Everybody else signs with [`crate::credential::TokenSigner`].
//! Points are multiplied by the cryptographic library; here is only what it does not offer, arithmetic modulo the order.

use aws_lc_rs::agreement::{ECDH_P256, PrivateKey};
use aws_lc_rs::digest::{SHA256, digest};
use aws_lc_rs::hmac;

/// A number below 2^256, lowest limb first.
type Number = [u64; 4];

/// The order of P-256 (FIPS 186-5, SP 800-186, section 3.2.1.3).
const ORDER: Number = [0xf3b9_cac2_fc63_2551, 0xbce6_faad_a717_9e84, 0xffff_ffff_ffff_ffff, 0xffff_ffff_0000_0000];
const ZERO: Number = [0; 4];
const ONE: Number = [1, 0, 0, 0];

/// The public key of a private one: an uncompressed point. `None` when `private` is 0 or not below the order.
pub(super) fn public_key(private: &[u8; 32]) -> Option<Vec<u8>> {
    let key = PrivateKey::from_private_key(&ECDH_P256, private).ok()?;
    Some(key.compute_public_key().ok()?.as_ref().to_vec())
}

/// Signs `message` with ECDSA on P-256 and SHA-256; `r` and `s`, as in a JWS (RFC 7518, section 3.4).
pub(super) fn sign(private: &[u8; 32], message: &[u8]) -> Option<[u8; 64]> {
    let mut hash = [0; 32];
    hash.copy_from_slice(digest(&SHA256, message).as_ref());
    let d = from_bytes(private);
    let e = reduce(from_bytes(&hash));
    let mut nonces = Nonces::new(private, &to_bytes(e));
    // One attempt in 2^32 or fewer is refused; sixteen in a row are not seen.
    for _ in 0..16 {
        let k = nonces.next();
        let Some(point) = public_key(&k) else { continue };
        let x: [u8; 32] = point.get(1..33)?.try_into().ok()?;
        let r = reduce(from_bytes(&x));
        let s = multiply(inverse(reduce(from_bytes(&k))), add(e, multiply(r, d)));
        if r != ZERO && s != ZERO {
            let mut signature = [0; 64];
            let (left, right) = signature.split_at_mut(32);
            left.copy_from_slice(&to_bytes(r));
            right.copy_from_slice(&to_bytes(s));
            return Some(signature);
        }
    }
    None
}

/// The nonces of RFC 6979, section 3.2.
struct Nonces {
    key: [u8; 32],
    value: [u8; 32],
    first: bool,
}

impl Nonces {
    fn new(private: &[u8; 32], hash: &[u8; 32]) -> Self {
        let mut nonces = Self { key: [0; 32], value: [1; 32], first: true };
        for step in [0, 1] {
            nonces.key = mac(&nonces.key, &[&nonces.value, &[step], private, hash]);
            nonces.value = mac(&nonces.key, &[&nonces.value]);
        }
        nonces
    }

    fn next(&mut self) -> [u8; 32] {
        if !std::mem::take(&mut self.first) {
            self.key = mac(&self.key, &[&self.value, &[0]]);
            self.value = mac(&self.key, &[&self.value]);
        }
        self.value = mac(&self.key, &[&self.value]);
        self.value
    }
}

fn mac(key: &[u8; 32], parts: &[&[u8]]) -> [u8; 32] {
    let mut context = hmac::Context::with_key(&hmac::Key::new(hmac::HMAC_SHA256, key));
    for part in parts {
        context.update(part);
    }
    let mut out = [0; 32];
    out.copy_from_slice(context.sign().as_ref());
    out
}

// === arithmetic modulo the order; every argument is below it ===

fn from_bytes(bytes: &[u8; 32]) -> Number {
    let mut number = ZERO;
    for (limb, eight) in number.iter_mut().rev().zip(bytes.chunks_exact(8)) {
        *limb = eight.iter().fold(0, |n, b| n << 8 | u64::from(*b));
    }
    number
}

fn to_bytes(number: Number) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (limb, eight) in number.iter().rev().zip(bytes.chunks_exact_mut(8)) {
        eight.copy_from_slice(&limb.to_be_bytes());
    }
    bytes
}

fn is_below(a: Number, b: Number) -> bool {
    a.iter().rev().lt(b.iter().rev())
}

/// The sum, and what did not fit.
fn carrying_add(a: Number, b: Number) -> (Number, bool) {
    let (mut sum, mut carry) = (ZERO, false);
    for ((to, a), b) in sum.iter_mut().zip(a).zip(b) {
        let (half, first) = a.overflowing_add(b);
        let (whole, second) = half.overflowing_add(u64::from(carry));
        (*to, carry) = (whole, first || second);
    }
    (sum, carry)
}

fn wrapping_subtract(a: Number, b: Number) -> Number {
    let (mut difference, mut borrow) = (ZERO, false);
    for ((to, a), b) in difference.iter_mut().zip(a).zip(b) {
        let (half, first) = a.overflowing_sub(b);
        let (whole, second) = half.overflowing_sub(u64::from(borrow));
        (*to, borrow) = (whole, first || second);
    }
    difference
}

/// Of any number below 2^256, which is less than twice the order.
fn reduce(a: Number) -> Number {
    if is_below(a, ORDER) { a } else { wrapping_subtract(a, ORDER) }
}

fn add(a: Number, b: Number) -> Number {
    let (sum, carry) = carrying_add(a, b);
    if carry { wrapping_subtract(sum, ORDER) } else { reduce(sum) }
}

fn subtract(a: Number, b: Number) -> Number {
    let difference = wrapping_subtract(a, b);
    if is_below(a, b) { carrying_add(difference, ORDER).0 } else { difference }
}

fn multiply(a: Number, b: Number) -> Number {
    let mut product = ZERO;
    for limb in a.iter().rev() {
        for bit in (0..64).rev() {
            product = add(product, product);
            if limb >> bit & 1 == 1 {
                product = add(product, b);
            }
        }
    }
    product
}

fn shift(a: Number, top: bool) -> Number {
    let [a0, a1, a2, a3] = a;
    [a0 >> 1 | a1 << 63, a1 >> 1 | a2 << 63, a2 >> 1 | a3 << 63, a3 >> 1 | u64::from(top) << 63]
}

const fn is_even(a: Number) -> bool {
    let [low, ..] = a;
    low & 1 == 0
}

/// Half of `a`, modulo the order.
fn half(a: Number) -> Number {
    if is_even(a) {
        return shift(a, false);
    }
    let (sum, carry) = carrying_add(a, ORDER);
    shift(sum, carry)
}

/// By the binary extended Euclidean algorithm. `a` is not 0.
fn inverse(a: Number) -> Number {
    let (mut u, mut v, mut x, mut y) = (a, ORDER, ONE, ZERO);
    while u != ONE && v != ONE {
        while is_even(u) {
            (u, x) = (shift(u, false), half(x));
        }
        while is_even(v) {
            (v, y) = (shift(v, false), half(y));
        }
        if is_below(u, v) {
            (v, y) = (wrapping_subtract(v, u), subtract(y, x));
        } else {
            (u, x) = (wrapping_subtract(u, v), subtract(x, y));
        }
    }
    if u == ONE { x } else { y }
}

#[cfg(test)]
mod tests {
    use aws_lc_rs::signature::{ECDSA_P256_SHA256_FIXED, UnparsedPublicKey};

    use super::*;

    fn bytes(hex: &str) -> Vec<u8> {
        let digit = |b: &u8| char::from(*b).to_digit(16).unwrap() as u8;
        hex.as_bytes().chunks(2).map(|pair| digit(&pair[0]) << 4 | digit(&pair[1])).collect()
    }

    #[test]
    fn signatures_are_those_of_rfc_6979() {
        // Appendix A.2.5, SHA-256.
        let key = bytes("C9AFA9D845BA75166B5C215767B1D6934E50C3DB36E89B127B8A622B120F6721").try_into().unwrap();
        for (message, expected) in [
            (
                "sample",
                "EFD48B2AACB6A8FD1140DD9CD45E81D69D2C877B56AAF991C34D0EA84EAF3716\
                 F7CB1C942D657C41D436C7A1B6E29F65F3E900DBB9AFF4064DC4AB2F843ACDA8",
            ),
            (
                "test",
                "F1ABB023518351CD71D881567B1EA663ED3EFCF6C5132B354F28D3B0B7D38367\
                 019F4113742A2B14BD25926B49C649155F267E60D3814B4C0CC84250E46F0083",
            ),
        ] {
            assert_eq!(sign(&key, message.as_bytes()).unwrap().to_vec(), bytes(expected), "{message}");
        }
    }

    #[test]
    fn every_signature_verifies() {
        for n in 0..50_u8 {
            let key: [u8; 32] = digest(&SHA256, &[n]).as_ref().try_into().unwrap();
            let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, public_key(&key).unwrap());
            let signature = sign(&key, &[n, 1]).unwrap();
            public.verify(&[n, 1], &signature).unwrap();
            assert!(public.verify(&[n, 2], &signature).is_err());
        }
        assert_eq!(public_key(&[0; 32]), None);
        assert_eq!(public_key(&[0xff; 32]), None, "not below the order");
    }
}
