//! The Unix socket that Envoy connects to. Plane: cross-cutting, at start and end.
//!
//! INVARIANT: nobody can connect before the socket has its mode, and a socket on which somebody still listens is not
//! taken over: it is bound under another name in the same directory, given its mode, and renamed into place. What is
//! in the way is replaced only if it is a socket that nobody listens on.

use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net;
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// A bound Unix socket; its file is removed when it is dropped.
#[derive(Debug)]
pub struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    identity: (u64, u64),
}

// === impl UnixSocket ===

impl UnixSocket {
    /// Binds `path` with `mode`, as in `0o660`. Within a tokio runtime.
    pub fn bind(path: impl Into<PathBuf>, mode: u32) -> io::Result<Self> {
        let path = path.into();
        let in_context = |error: io::Error| io::Error::new(error.kind(), format!("`{}`: {error}", path.display()));
        let (listener, identity) = bind(&path, mode).map_err(in_context)?;
        Ok(Self { listener, path, identity })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub(super) const fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        // Only our own: a successor may have taken the place.
        if std::fs::symlink_metadata(&self.path).is_ok_and(|m| identity(&m) == self.identity) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn bind(path: &Path, mode: u32) -> io::Result<(UnixListener, (u64, u64))> {
    match std::fs::symlink_metadata(path) {
        Ok(there) if !there.file_type().is_socket() => {
            return Err(io::Error::new(io::ErrorKind::AlreadyExists, "is in the way and not a socket"));
        }
        Ok(_) if net::UnixStream::connect(path).is_ok() => {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "somebody listens on it"));
        }
        Ok(_) => {}
        Err(absent) if absent.kind() == io::ErrorKind::NotFound => {}
        Err(other) => return Err(other),
    }
    let name = path.file_name().ok_or_else(|| io::Error::other("is not the path of a file"))?;
    let mut temporary = std::ffi::OsString::from(".");
    temporary.push(name);
    temporary.push(format!(".{}", std::process::id()));
    let temporary = path.with_file_name(temporary);
    remove_if_there(&temporary)?;
    let listener = net::UnixListener::bind(&temporary)?;
    let placed = (|| {
        std::fs::set_permissions(&temporary, std::fs::Permissions::from_mode(mode))?;
        let identity = identity(&std::fs::symlink_metadata(&temporary)?);
        std::fs::rename(&temporary, path)?;
        listener.set_nonblocking(true)?;
        Ok((UnixListener::from_std(listener)?, identity))
    })();
    if placed.is_err() {
        remove_if_there(&temporary)?;
    }
    placed
}

fn identity(metadata: &std::fs::Metadata) -> (u64, u64) {
    (metadata.dev(), metadata.ino())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn takes_over_what_is_stale_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("authz.sock");
        let entries = || std::fs::read_dir(dir.path()).unwrap().count();

        let first = UnixSocket::bind(&path, 0o660).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        assert_eq!(entries(), 1, "nothing temporary is left");
        let error = UnixSocket::bind(&path, 0o660).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains("authz.sock"), "{error}");
        drop(first);
        assert_eq!(entries(), 0, "removed at the end");

        // What a crash leaves behind.
        drop(net::UnixListener::bind(&path).unwrap());
        assert_eq!(entries(), 1);
        let second = UnixSocket::bind(&path, 0o600).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().mode() & 0o777, 0o600);
        let connected = net::UnixStream::connect(&path).unwrap();
        second.listener().accept().await.unwrap();
        drop(connected);

        // Somebody else's socket in our place is not ours to remove.
        std::fs::remove_file(&path).unwrap();
        let _theirs = net::UnixListener::bind(&path).unwrap();
        drop(second);
        assert_eq!(entries(), 1);

        let file = dir.path().join("file");
        std::fs::write(&file, "precious").unwrap();
        assert_eq!(UnixSocket::bind(&file, 0o660).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    }
}
