//! A memo that remembers the one token, and no answer: what is left of a check is everything but the signature and the
//! decision cache. For the benches of cold checks without crypto.
//! Bounded by being one; never an answer that evaluation would not give.

use std::sync::{Arc, OnceLock};

use portcullis::authz::{KnownAnswer, KnownToken, Memo};

#[derive(Default)]
pub(crate) struct NoCrypto(OnceLock<Arc<KnownToken>>);

impl Memo for NoCrypto {
    fn token(&self, _: &[u8; 32], usable: impl Fn(&KnownToken) -> bool) -> Option<Arc<KnownToken>> {
        self.0.get().filter(|k| usable(k)).cloned()
    }
    fn keep_token(&self, _: [u8; 32], token: &Arc<KnownToken>) {
        let _ = self.0.set(Arc::clone(token));
    }
    fn answer(&self, _: &[u8], _: impl Fn(&KnownAnswer) -> bool) -> Option<Arc<KnownAnswer>> {
        None
    }
    fn keep_answer(&self, _: &[u8], _: &Arc<KnownAnswer>) {}
}
