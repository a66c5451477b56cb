//! The credentials of a simulated fleet: a directory with a manifest and the files that it names.
//!
//! Plane: composition. One entry is one sidecar's credential: an identity, its services as the control plane's
//! configuration has them, and a token file or a certificate with its key. Entries may share an identity, as instances
//! of one enforcement point do; when there are fewer entries than sidecars, they are used in turn. Files are read at each
//! connection, as a sidecar does. A manifest that cannot be read or used is an error before anything connects.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::credential::SpiffeId;
use crate::wire::ScopeId;

/// The manifest's name in the directory.
pub const MANIFEST: &str = "identities.json";

/// All credentials.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identities {
    /// One for each sidecar.
    pub identities: Vec<Credential>,
    #[serde(skip)]
    directory: PathBuf,
}

/// One sidecar's credential. File names are relative to the manifest's directory.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Credential {
    /// The enforcement point's SPIFFE ID.
    pub identity: SpiffeId,
    /// Its services, as the control plane's configuration has them.
    pub services: Vec<String>,
    /// A file with a token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token_file: Option<PathBuf>,
    /// An X.509-SVID and its chain, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cert_file: Option<PathBuf>,
    /// Its key, PEM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key_file: Option<PathBuf>,
}

/// Why there are no credentials.
#[derive(Debug, thiserror::Error)]
pub enum IdentitiesError {
    /// The manifest cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The manifest.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// It is not a manifest.
    #[error("`{}`: {source}", path.display())]
    Parse {
        /// The manifest.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// It names nobody.
    #[error("`{}` names no identity", .0.display())]
    Empty(PathBuf),
    /// A certificate without a key, or the other way round.
    #[error("`{0}`: `cert_file` and `key_file` go together")]
    HalfCertificate(SpiffeId),
}

/// A credential with its scope, and files with their whole paths.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) scope: ScopeId,
    pub(super) token_file: Option<PathBuf>,
    pub(super) identity_files: Option<(PathBuf, PathBuf)>,
}

impl Identities {
    /// Credentials whose files are in `directory`.
    pub fn new(directory: &Path, identities: Vec<Credential>) -> Self {
        Self { identities, directory: directory.to_owned() }
    }

    /// Reads the manifest in `directory`.
    pub fn load(directory: &Path) -> Result<Self, IdentitiesError> {
        let path = directory.join(MANIFEST);
        let text = std::fs::read(&path).map_err(|source| IdentitiesError::Read { path: path.clone(), source })?;
        let found: Self =
            serde_json::from_slice(&text).map_err(|source| IdentitiesError::Parse { path: path.clone(), source })?;
        if found.identities.is_empty() {
            return Err(IdentitiesError::Empty(path));
        }
        Ok(Self { directory: directory.to_owned(), ..found })
    }

    /// Credentials for `count` sidecars.
    pub(super) fn take(&self, count: usize) -> Result<Vec<Member>, IdentitiesError> {
        if self.identities.is_empty() && count > 0 {
            return Err(IdentitiesError::Empty(self.directory.join(MANIFEST)));
        }
        let at = |file: &PathBuf| self.directory.join(file);
        let members = self.identities.iter().map(|c| {
            let identity_files = match (&c.cert_file, &c.key_file) {
                (Some(cert), Some(key)) => Some((at(cert), at(key))),
                (None, None) => None,
                _ => return Err(IdentitiesError::HalfCertificate(c.identity.clone())),
            };
            let scope = ScopeId::new(&c.identity, c.services.iter().map(String::as_str));
            Ok(Member { scope, token_file: c.token_file.as_ref().map(at), identity_files })
        });
        let members = members.collect::<Result<Vec<_>, _>>()?;
        Ok(members.iter().cycle().take(count).cloned().collect())
    }
}
