//! A file that remembers which instances exist, so that a restarted control plane knows whose word is missing.
//!
//! Plane: control. One line an instance, appended before its first frame is answered; rewritten when instances are
//! forgotten. A torn last line is an instance that was never answered. Writing is not synced: it has to survive this
//! process, and a sidecar whose line a power failure took reconnects, or denies after its staleness bound.

use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::Arc;

use super::Key;
use crate::credential::SpiffeId;

/// The file.
#[derive(Debug)]
pub(super) struct Registry {
    path: PathBuf,
    file: std::fs::File,
}

impl Registry {
    /// Opens or creates the file and reads what it holds.
    pub(super) fn open(path: PathBuf) -> io::Result<(Self, Vec<Key>)> {
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(e),
        };
        let whole = text.rsplit_once('\n').map_or("", |(whole, _torn)| whole);
        let known: Vec<_> = whole.lines().filter_map(parse).collect();
        let mut registry = Self { file: std::fs::OpenOptions::new().create(true).append(true).open(&path)?, path };
        registry.try_rewrite(known.iter().map(|(identity, instance)| (identity, &**instance)))?;
        Ok((registry, known))
    }

    /// Adds an instance.
    pub(super) fn add(&mut self, identity: &SpiffeId, instance: &str) {
        if let Err(e) = self.file.write_all(format!("{identity} {instance}\n").as_bytes()) {
            self.failed(&e);
        }
    }

    /// Keeps only these instances.
    pub(super) fn rewrite<'a>(&mut self, instances: impl Iterator<Item = (&'a SpiffeId, &'a str)>) {
        if let Err(e) = self.try_rewrite(instances) {
            self.failed(&e);
        }
    }

    fn try_rewrite<'a>(&mut self, instances: impl Iterator<Item = (&'a SpiffeId, &'a str)>) -> io::Result<()> {
        let text: String = instances.map(|(identity, instance)| format!("{identity} {instance}\n")).collect();
        let temporary = self.path.with_extension("tmp");
        std::fs::write(&temporary, text)?;
        std::fs::rename(&temporary, &self.path)?;
        self.file = std::fs::OpenOptions::new().append(true).open(&self.path)?;
        Ok(())
    }

    fn failed(&self, error: &io::Error) {
        tracing::error!(file = %self.path.display(), %error, "the list of enforcement points could not be written");
    }
}

fn parse(line: &str) -> Option<Key> {
    let (identity, instance) = line.split_once(' ')?;
    Some((SpiffeId::parse(identity).ok()?, Arc::from(instance)))
}
