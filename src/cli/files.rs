//! Reading what commands are given, and writing what they make. Errors name the file.
//!
//! Plane: composition. Secrets are read into memory that is wiped, and written with mode 0600 to a new file; an
//! existing one is never overwritten by accident. Sizes are bounded.

use std::io::Read;
use std::path::Path;

use zeroize::Zeroizing;

use super::failure::Failure;
use crate::app::files;

/// The largest input.
const MAX: u64 = 32 * 1024 * 1024;

/// Reads a text file, or standard input for `-`.
pub(super) fn read_text(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let result = if path == Path::new("-") {
        std::io::stdin().lock().take(MAX).read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|f| f.take(MAX).read_to_string(&mut text))
    };
    result.map_err(|e| Failure::error(format!("cannot read `{}`: {e}", path.display())))?;
    Ok(text)
}

/// Reads a secret on one line.
pub(super) fn read_secret(path: &Path) -> Result<Zeroizing<String>, Failure> {
    let text = Zeroizing::new(read_text(path)?);
    let line = text.trim();
    if line.is_empty() || line.chars().any(char::is_control) {
        return Err(Failure::error(format!("`{}` does not hold one line of text", path.display())));
    }
    Ok(Zeroizing::new(line.to_owned()))
}

/// Writes a secret into a file of mode 0600.
pub(super) fn write_secret(path: &Path, text: &str) -> Result<(), Failure> {
    files::write_secret(path, text).map_err(|e| Failure::error(format!("cannot write `{}`: {e}", path.display())))
}

/// Writes a file that everybody may read.
pub(super) fn write_public(path: &Path, text: &str) -> Result<(), Failure> {
    files::write_public(path, text).map_err(|e| Failure::error(format!("cannot write `{}`: {e}", path.display())))
}
