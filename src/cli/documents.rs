//! Objects in files: YAML or JSON, one or several documents.
//!
//! Plane: composition. Read whole before the first is sent: a file with one bad document changes nothing. Errors name
//! the file, the document and the field.

use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use super::failure::Failure;
use super::files;

/// Reads every document of a file, or of standard input for `-`.
pub(super) fn read(path: &Path) -> Result<Vec<Value>, Failure> {
    parse(&path.display().to_string(), &files::read_text(path)?)
}

/// Reads the one document of a file.
pub(super) fn read_one(path: &Path) -> Result<Value, Failure> {
    let mut all = read(path)?;
    match (all.pop(), all.len()) {
        (Some(one), 0) => Ok(one),
        _ => Err(Failure::error(format!("`{}` must hold exactly one document", path.display()))),
    }
}

/// Parses every document in `text`, which came from `name`.
pub(super) fn parse(name: &str, text: &str) -> Result<Vec<Value>, Failure> {
    let mut all = Vec::new();
    for document in serde_yaml_ng::Deserializer::from_str(text) {
        let value = serde_yaml_ng::Value::deserialize(document)
            .and_then(|yaml| serde_json::to_value(yaml).map_err(serde::de::Error::custom))
            .map_err(|e: serde_yaml_ng::Error| Failure::error(format!("`{name}`: {e}")))?;
        match value {
            Value::Null => {}
            Value::Object(_) => all.push(value),
            _ => return Err(Failure::error(format!("`{name}`: a document is a mapping with the fields of an object"))),
        }
    }
    Ok(all)
}

/// Reads the one object of a file, for a command that knows its kind: the object itself, or as `apply` takes it,
/// under the name of its kind.
pub(super) fn object(path: &Path, kind: &str) -> Result<Value, Failure> {
    let value = read_one(path)?;
    Ok(match value.get(kind) {
        Some(inner @ Value::Object(_)) => inner.clone(),
        _ => value,
    })
}
