//! TLS configurations from PEM files, and a listener that hands over finished handshakes.
//!
//! Plane: cross-cutting. rustls with aws-lc-rs only, no environment variables, no system roots: who is trusted is
//! what the configuration names. Every error names the file. Fails closed: a file that cannot be read, is empty or
//! does not fit its key is an error at start, never a listener without TLS. Private keys are never logged.

mod accept;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SupportedProtocolVersion};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

pub use self::accept::{AcceptLimits, Accepted, Listen, PeerInfo, accept};

/// The application protocol of gRPC.
pub const ALPN_H2: &[u8] = b"h2";
/// The application protocol of plain HTTP.
pub const ALPN_HTTP1: &[u8] = b"http/1.1";

/// Only TLS 1.3: for connections of which both ends are ours.
pub const TLS13: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13];
/// TLS 1.2 and 1.3: for connections from other people's software.
pub const TLS12_UP: &[&SupportedProtocolVersion] = &[&rustls::version::TLS13, &rustls::version::TLS12];

/// The files of a TLS server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerFiles {
    /// Its certificate chain, leaf first.
    pub cert_file: PathBuf,
    /// Its private key.
    pub key_file: PathBuf,
    /// The CA certificates that client certificates must chain to. Without it, none are asked for.
    pub client_ca_file: Option<PathBuf>,
}

/// The files of a TLS client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientFiles {
    /// The CA certificates that the server's must chain to.
    pub ca_file: PathBuf,
    /// The client's own certificate chain and private key.
    pub identity: Option<(PathBuf, PathBuf)>,
}

/// What is wrong with the files of a TLS configuration.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file could not be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file is not PEM, or holds nothing of what it is for.
    #[error("`{}` holds no usable {what}: {reason}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
        /// Why it was not found.
        reason: String,
    },
    /// rustls refused the combination.
    #[error("certificate `{}` cannot be used: {reason}", path.display())]
    Config {
        /// The certificate's file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// There is no such configuration, whatever the certificates.
    #[error("TLS cannot be set up: {0}")]
    Setup(String),
}

/// Makes aws-lc-rs the process's provider, once. Code that is given a configuration never needs it; `reqwest` does.
pub fn install_provider() {
    static ONCE: std::sync::Once = std::sync::Once::new();
    ONCE.call_once(|| {
        // An error means that one is installed already; there is only one to choose from.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    });
}

/// The configuration of a server. Clients may stay without a certificate: what they then must show is up to the door.
pub fn server_config(
    files: &ServerFiles,
    versions: &[&'static SupportedProtocolVersion],
    alpn: &[&[u8]],
) -> Result<Arc<ServerConfig>, TlsError> {
    let refused = |e: &dyn std::fmt::Display| TlsError::Config { path: files.cert_file.clone(), reason: e.to_string() };
    let builder =
        ServerConfig::builder_with_provider(provider()).with_protocol_versions(versions).map_err(|e| refused(&e))?;
    let builder = match &files.client_ca_file {
        Some(path) => {
            let roots = Arc::new(roots(path)?);
            let verifier = WebPkiClientVerifier::builder_with_provider(roots, provider())
                .allow_unauthenticated()
                .build()
                .map_err(|e| TlsError::Config { path: path.clone(), reason: e.to_string() })?;
            builder.with_client_cert_verifier(verifier)
        }
        None => builder.with_no_client_auth(),
    };
    let mut config = builder
        .with_single_cert(certificates(&files.cert_file)?, private_key(&files.key_file)?)
        .map_err(|e| refused(&e))?;
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Ok(Arc::new(config))
}

/// The configuration of a client.
pub fn client_config(
    files: &ClientFiles,
    versions: &[&'static SupportedProtocolVersion],
    alpn: &[&[u8]],
) -> Result<Arc<ClientConfig>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .map_err(|e| TlsError::Config { path: files.ca_file.clone(), reason: e.to_string() })?
        .with_root_certificates(roots(&files.ca_file)?);
    let mut config = match &files.identity {
        Some((cert, key)) => builder
            .with_client_auth_cert(certificates(cert)?, private_key(key)?)
            .map_err(|e| TlsError::Config { path: cert.clone(), reason: e.to_string() })?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = alpn.iter().map(|p| p.to_vec()).collect();
    Ok(Arc::new(config))
}

/// The certificates in a PEM file, at least one.
pub fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let text = read(path)?;
    let content = |reason: String| TlsError::Content { path: path.to_owned(), what: "certificate", reason };
    let certs: Vec<_> =
        CertificateDer::pem_slice_iter(&text).collect::<Result<_, _>>().map_err(|e| content(e.to_string()))?;
    if certs.is_empty() {
        return Err(content("no `CERTIFICATE` section".to_owned()));
    }
    Ok(certs)
}

/// The private key in a PEM file. Warns when others than its owner may read it.
pub fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let text = zeroize::Zeroizing::new(read(path)?);
    warn_if_exposed(path);
    PrivateKeyDer::from_pem_slice(&text).map_err(|e| TlsError::Content {
        path: path.to_owned(),
        what: "private key",
        reason: e.to_string(),
    })
}

/// Warns when a secret's file may be read or written by others than its owner.
pub fn warn_if_exposed(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    if let Ok(meta) = std::fs::metadata(path)
        && meta.permissions().mode() & 0o077 != 0
    {
        let mode = format!("{:o}", meta.permissions().mode() & 0o777);
        tracing::warn!(file = %path.display(), mode, "a secret's file is open to others than its owner; use mode 0600");
    }
}

fn roots(path: &Path) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    for cert in certificates(path)? {
        store.add(cert).map_err(|e| TlsError::Content {
            path: path.to_owned(),
            what: "CA certificate",
            reason: e.to_string(),
        })?;
    }
    Ok(store)
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    std::fs::read(path).map_err(|source| TlsError::Read { path: path.to_owned(), source })
}

/// The one provider of cryptography.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_name_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let missing = dir.path().join("missing.pem");
        assert!(certificates(&missing).unwrap_err().to_string().contains("missing.pem"));
        let empty = dir.path().join("empty.pem");
        std::fs::write(&empty, "").unwrap();
        assert!(certificates(&empty).unwrap_err().to_string().contains("empty.pem` holds no usable certificate"));
        assert!(private_key(&empty).unwrap_err().to_string().contains("empty.pem` holds no usable private key"));
        let broken = dir.path().join("broken.pem");
        std::fs::write(&broken, "-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n").unwrap();
        assert!(certificates(&broken).is_err());
    }

    #[test]
    fn a_certificate_and_a_foreign_key_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        let other = rcgen::KeyPair::generate().unwrap();
        let files = ServerFiles {
            cert_file: dir.path().join("cert.pem"),
            key_file: dir.path().join("key.pem"),
            client_ca_file: None,
        };
        std::fs::write(&files.cert_file, made.cert.pem()).unwrap();
        std::fs::write(&files.key_file, other.serialize_pem()).unwrap();
        let e = server_config(&files, TLS13, &[ALPN_H2]).unwrap_err();
        assert!(e.to_string().contains("cert.pem` cannot be used"), "{e}");
        std::fs::write(&files.key_file, made.signing_key.serialize_pem()).unwrap();
        server_config(&files, TLS13, &[ALPN_H2]).unwrap();
    }
}
