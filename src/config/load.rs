//! Reads a configuration file strictly, then lays the environment over it.
//!
//! Every raw type has all its keys optional, so a document that holds a single key is a valid one. That is how an
//! environment variable is checked: as the document that it stands for, on its own, so that the error names the
//! variable. What is required is checked once everything has been merged.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde_yaml_ng::{Mapping, Value};

/// The start of the name of every variable that overrides a configuration value.
const PREFIX: &str = "PORTCULLIS__";

/// The largest configuration file and the largest key file.
const MAX_FILE: u64 = 16 * 1024 * 1024;

/// The environment variables that override configuration values.
#[derive(Debug, Clone, Default)]
pub struct Environment(Vec<(String, String)>);

/// What is wrong with a configuration, and where.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("cannot read `{}`: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not what the schema says.
    #[error("{}:{line}:{column}: {message}", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// Line, from 1.
        line: usize,
        /// Column, from 1.
        column: usize,
        /// What is wrong there.
        message: String,
    },
    /// An environment variable is not what the schema says.
    #[error("environment variable `{variable}`: {message}")]
    Environment {
        /// Its name.
        variable: String,
        /// What is wrong with it.
        message: String,
    },
    /// A value, or the lack of it, makes no sense.
    #[error("`{key}`: {message}")]
    Value {
        /// The key, as in `control_plane.url`.
        key: String,
        /// What is wrong with it.
        message: String,
    },
    /// A file that the configuration names cannot be used.
    #[error("`{key}`: cannot use `{}`: {message}", path.display())]
    File {
        /// The key that names the file.
        key: String,
        /// The file.
        path: PathBuf,
        /// Why not.
        message: String,
    },
}

// === impl Environment ===

impl Environment {
    /// The overrides among this process's environment variables.
    pub fn of_process() -> Self {
        let all = std::env::vars_os().filter_map(|(k, v)| {
            let name = k.to_str().filter(|name| name.starts_with(PREFIX))?.to_owned();
            Some((name, v.to_string_lossy().into_owned()))
        });
        Self::new(all)
    }

    /// These overrides, in the order of their names.
    pub fn new(variables: impl IntoIterator<Item = (String, String)>) -> Self {
        let mut all: Vec<_> = variables.into_iter().filter(|(name, _)| name.starts_with(PREFIX)).collect();
        all.sort();
        Self(all)
    }
}

// === impl ConfigError ===

impl ConfigError {
    pub(super) fn value(key: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Value { key: key.into(), message: message.into() }
    }

    pub(super) fn file(key: impl Into<String>, path: &Path, message: impl ToString) -> Self {
        Self::File { key: key.into(), path: path.to_owned(), message: message.to_string() }
    }
}

/// Reads `path` into `T` and lays `env` over it.
pub(super) fn load<T: DeserializeOwned>(path: &Path, env: &Environment) -> Result<T, ConfigError> {
    let read = |source| ConfigError::Read { path: path.to_owned(), source };
    let text = read_bounded(path).and_then(|b| String::from_utf8(b).map_err(std::io::Error::other)).map_err(read)?;
    parse(path, &text, env)
}

/// Parses `text`, read from `path`, into `T` and lays `env` over it.
pub(super) fn parse<T: DeserializeOwned>(path: &Path, text: &str, env: &Environment) -> Result<T, ConfigError> {
    let at = |e: &serde_yaml_ng::Error| located(path, e);
    let mut document: Value = serde_yaml_ng::from_str(text).map_err(|e| at(&e))?;
    if document.is_null() {
        document = Value::Mapping(Mapping::new());
    } else {
        // For its errors: only this pass knows lines and columns.
        let _strict: T = serde_yaml_ng::from_str(text).map_err(|e| at(&e))?;
    }
    for (variable, value) in &env.0 {
        let layer = as_document::<T>(variable, value)?;
        merge(&mut document, layer);
    }
    serde_yaml_ng::from_value(document).map_err(|e| at(&e))
}

/// The document with the one key that `variable` stands for.
fn as_document<T: DeserializeOwned>(variable: &str, value: &str) -> Result<Value, ConfigError> {
    let fail = |message: String| ConfigError::Environment { variable: variable.to_owned(), message };
    let path = variable.strip_prefix(PREFIX).unwrap_or(variable).to_ascii_lowercase();
    let nest = |leaf: Value| {
        path.split("__").collect::<Vec<_>>().into_iter().rev().fold(leaf, |inner, key| {
            let mut map = Mapping::new();
            map.insert(Value::String(key.to_owned()), inner);
            Value::Mapping(map)
        })
    };
    let as_yaml: Value = serde_yaml_ng::from_str(value).unwrap_or_else(|_not_yaml| Value::String(value.to_owned()));
    let as_text = nest(Value::String(value.to_owned()));
    let document = nest(as_yaml);
    match serde_yaml_ng::from_value::<T>(document.clone()) {
        Ok(_) => Ok(document),
        // `123` may be meant as text; only where text does not do either is it an error.
        Err(_) if serde_yaml_ng::from_value::<T>(as_text.clone()).is_ok() => Ok(as_text),
        Err(e) => Err(fail(e.to_string())),
    }
}

fn merge(base: &mut Value, layer: Value) {
    match (base, layer) {
        (Value::Mapping(base), Value::Mapping(layer)) => {
            for (key, value) in layer {
                match base.get_mut(&key) {
                    Some(slot) => merge(slot, value),
                    None => {
                        base.insert(key, value);
                    }
                }
            }
        }
        (base, layer) => *base = layer,
    }
}

fn located(path: &Path, e: &serde_yaml_ng::Error) -> ConfigError {
    let (line, column) = e.location().map_or((1, 1), |at| (at.line(), at.column()));
    let text = e.to_string();
    let message = text.rsplit_once(" at line ").map_or(text.as_str(), |(before, _)| before).to_owned();
    ConfigError::Parse { path: path.to_owned(), line, column, message }
}

/// Reads a file that a key names; the error names both.
pub(super) fn read_named(key: &str, path: &Path) -> Result<Vec<u8>, ConfigError> {
    let bytes = read_bounded(path).map_err(|e| ConfigError::file(key, path, e))?;
    if bytes.is_empty() {
        return Err(ConfigError::file(key, path, "it is empty"));
    }
    Ok(bytes)
}

fn read_bounded(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    std::fs::File::open(path)?.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(std::io::Error::other("it is larger than 16 MiB"));
    }
    Ok(bytes)
}
