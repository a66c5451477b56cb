//! JSON Schemas of the configuration files, generated from the raw types and checked in under `docs/config/`.
//!
//! Plane: composition. Pure. A test fails when a checked-in schema is not what the types say, and tells how to make it
//! anew. Required keys are not marked: the environment may supply them.

use super::{RawControl, RawSidecar};

/// The schema of `sidecar.yaml`, as pretty-printed JSON with a final newline.
pub fn sidecar() -> String {
    pretty(&schemars::schema_for!(RawSidecar))
}

/// The schema of `control.yaml`, as pretty-printed JSON with a final newline.
pub fn control() -> String {
    pretty(&schemars::schema_for!(RawControl))
}

fn pretty(schema: &schemars::Schema) -> String {
    // A schema is a JSON value already.
    let mut text = serde_json::to_string_pretty(schema).unwrap_or_default();
    text.push('\n');
    text
}
