//! Files that are read again when they have changed.
//!
//! Plane: hot path's background. Looks at what the files say of themselves (time, size, inode), each second, because a
//! mounted secret changes by a link that is moved. What cannot be used changes nothing, and is told in the log; it is tried
//! again at the next change.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::tls::TlsError;

/// Files, and what they were like when they were last read.
#[derive(Debug)]
pub(super) struct Watched {
    paths: Vec<PathBuf>,
    seen: Vec<Option<Looks>>,
}

type Looks = (i64, i64, u64, u64);

// === impl Watched ===

impl Watched {
    pub(super) fn new(paths: Vec<PathBuf>) -> Self {
        let seen = look(&paths);
        Self { paths, seen }
    }

    /// Reads them again if one has changed.
    pub(super) async fn reload(&mut self, read: impl FnOnce() -> Result<(), TlsError> + Send + 'static) {
        if self.paths.is_empty() {
            return;
        }
        let paths = self.paths.clone();
        let Ok(seen) = tokio::task::spawn_blocking(move || look(&paths)).await else { return };
        if seen == self.seen {
            return;
        }
        self.seen = seen;
        match tokio::task::spawn_blocking(read).await {
            Ok(Ok(())) => tracing::info!(
                file = self.paths.first().map(|p| tracing::field::display(p.display())),
                "certificates were read again"
            ),
            Ok(Err(error)) => tracing::error!(%error, "changed certificates cannot be used; the ones before stay"),
            Err(_panicked) => tracing::error!("reading certificates panicked"),
        }
    }
}

fn look(paths: &[PathBuf]) -> Vec<Option<Looks>> {
    let one = |path: &PathBuf| {
        let meta = std::fs::metadata(path).ok()?;
        Some((meta.mtime(), meta.mtime_nsec(), meta.size(), meta.ino()))
    };
    paths.iter().map(one).collect()
}
