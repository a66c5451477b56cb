//! The control plane's signing key: made at first start, kept in its data directory.
//!
//! The private half has mode 0600 and is never logged; the public half lies beside it for sidecars to be configured
//! with. INVARIANT: a key that is there is never replaced: sidecars would refuse whatever a new one signs.

use std::path::Path;

use zeroize::Zeroizing;

use super::{BuildError, files};
use crate::wire::SigningKey;

/// The private half.
const SIGNING_KEY: &str = "signing-key";
/// The public half.
const VERIFY_KEY: &str = "verify-key";

/// Reads the key in `directory`, or makes one.
pub(super) fn signing_key(directory: &Path) -> Result<SigningKey, BuildError> {
    let path = directory.join(SIGNING_KEY);
    let failed = |e: &dyn ToString| BuildError::File { path: path.clone(), reason: e.to_string() };
    let key = match std::fs::read_to_string(&path) {
        Ok(text) => {
            crate::tls::warn_if_exposed(&path);
            SigningKey::parse(&Zeroizing::new(text)).map_err(|e| failed(&e))?
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            let (key, text) = SigningKey::generate().map_err(|e| failed(&e))?;
            files::write_secret(&path, &text).map_err(|e| failed(&e))?;
            tracing::info!(file = %path.display(), "made a signing key; sidecars are configured with `{VERIFY_KEY}`");
            key
        }
        Err(e) => return Err(failed(&e)),
    };
    let public = directory.join(VERIFY_KEY);
    let text = format!("{}\n", key.verify_key());
    if std::fs::read_to_string(&public).ok().as_deref() != Some(&text) {
        files::write_public(&public, &text)
            .map_err(|e| BuildError::File { path: public.clone(), reason: e.to_string() })?;
    }
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_made_once_and_a_damaged_one_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let first = signing_key(dir.path()).unwrap();
        let again = signing_key(dir.path()).unwrap();
        assert_eq!(first.verify_key(), again.verify_key());
        let public = std::fs::read_to_string(dir.path().join(VERIFY_KEY)).unwrap();
        assert_eq!(public.trim(), first.verify_key().to_string());
        std::fs::write(dir.path().join(SIGNING_KEY), "damaged").unwrap();
        let error = signing_key(dir.path()).unwrap_err().to_string();
        assert!(error.contains("signing-key"), "{error}");
        assert_eq!(std::fs::read_to_string(dir.path().join(SIGNING_KEY)).unwrap(), "damaged");
    }
}
