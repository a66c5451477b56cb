//! The private halves of signing keys: one file of mode 0600 each, in a directory of mode 0700.
//!
//! Plane: control. Nothing here is ever logged or sent. INVARIANT: a file with a key never exists with a wider mode, not
//! even for a moment, and is on the disk before its key is announced. A key whose file is gone or does not read is no key.

use std::collections::HashMap;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use zeroize::Zeroizing;

use crate::credential::TokenSigner;

/// Where private halves are kept.
#[derive(Debug)]
pub(super) struct Vault {
    directory: PathBuf,
    /// Those that were read or made, by id.
    read: Mutex<HashMap<String, Arc<TokenSigner>>>,
}

// === impl Vault ===

impl Vault {
    /// Opens the directory, or makes it.
    pub(super) fn open(directory: &Path) -> io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory)?;
        Ok(Self { directory: directory.to_owned(), read: Mutex::default() })
    }

    /// Makes a key. It is on the disk when this returns.
    pub(super) fn make(&self) -> io::Result<Arc<TokenSigner>> {
        let signer = TokenSigner::generate_named_by_thumbprint().map_err(io::Error::other)?;
        let pem = signer.pkcs8_pem().map_err(io::Error::other)?;
        let mut file =
            std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(self.file(signer.kid()))?;
        file.write_all(pem.as_bytes())?;
        file.sync_all()?;
        std::fs::File::open(&self.directory)?.sync_all()?;
        let signer = Arc::new(signer);
        self.lock().insert(signer.kid().to_owned(), Arc::clone(&signer));
        Ok(signer)
    }

    /// The private half of a key, if it is there and is that key's.
    pub(super) fn signer(&self, kid: &str) -> Option<Arc<TokenSigner>> {
        if let Some(signer) = self.lock().get(kid) {
            return Some(Arc::clone(signer));
        }
        // An id that is no file name of ours is none of ours.
        let is_ours = kid.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'));
        if !is_ours {
            return None;
        }
        let path = self.file(kid);
        let pem = Zeroizing::new(std::fs::read_to_string(&path).ok()?);
        crate::tls::warn_if_exposed(&path);
        match TokenSigner::from_pkcs8_pem(&pem, kid) {
            Ok(signer) => {
                let signer = Arc::new(signer);
                self.lock().insert(kid.to_owned(), Arc::clone(&signer));
                Some(signer)
            }
            Err(error) => {
                tracing::error!(file = %path.display(), %error, "a private key cannot be read");
                None
            }
        }
    }

    /// Destroys every private half but those of `kept`.
    pub(super) fn keep_only(&self, kept: &[&str]) {
        self.lock().retain(|kid, _| kept.contains(&kid.as_str()));
        let Ok(entries) = std::fs::read_dir(&self.directory) else { return };
        for entry in entries.flatten() {
            let name = entry.file_name();
            let kid = name.to_str().and_then(|name| name.strip_suffix(".pem"));
            if kid.is_some_and(|kid| !kept.contains(&kid))
                && let Err(error) = std::fs::remove_file(entry.path())
            {
                tracing::warn!(file = %entry.path().display(), %error, "a private key that is over cannot be removed");
            }
        }
    }

    fn file(&self, kid: &str) -> PathBuf {
        self.directory.join(format!("{kid}.pem"))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<String, Arc<TokenSigner>>> {
        self.read.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_private_outlives_the_process_and_is_destroyed() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join("token-keys");
        let (first, second) = {
            let vault = Vault::open(&place).unwrap();
            (vault.make().unwrap(), vault.make().unwrap())
        };
        let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&place), 0o700);
        assert_eq!(mode(&place.join(format!("{}.pem", first.kid()))), 0o600);
        let vault = Vault::open(&place).unwrap();
        assert_eq!(vault.signer(first.kid()).unwrap().public_jwk(), first.public_jwk());
        assert!(vault.signer("../token-keys/x").is_none());
        vault.keep_only(&[second.kid()]);
        assert!(vault.signer(first.kid()).is_none(), "destroyed");
        assert!(vault.signer(second.kid()).is_some());
        std::fs::write(place.join("damaged.pem"), "damaged").unwrap();
        assert!(vault.signer("damaged").is_none());
    }
}
