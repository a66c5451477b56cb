//! Changes to a snapshot, as they come and as they are once their documents have been read.
//!
//! Pure. Reading is most of the work of a change and needs no snapshot, so that several can be read beside each other.
//! A document that cannot be read, or that is about another object, is carried along as the error that it is.

use bytes::Bytes;

use crate::object::{FieldError, Kind, Object};

/// One change to an object.
#[derive(Debug, Clone)]
pub struct Change {
    /// Its kind.
    pub kind: Kind,
    /// Its key.
    pub key: String,
    /// The new document; `None` deletes it.
    pub body: Option<Bytes>,
}

/// A change whose document has been read.
#[derive(Debug)]
pub struct Prepared {
    pub(super) kind: Kind,
    pub(super) key: String,
    /// The new object; `None` deletes it.
    pub(super) parsed: Result<Option<Object>, FieldError>,
}

// === impl Prepared ===

impl From<Change> for Prepared {
    fn from(change: Change) -> Self {
        let Change { kind, key, body } = change;
        let parsed = match &body {
            None => Ok(None),
            Some(body) => Object::parse(kind, body).and_then(|object| match object.has_key(&key) {
                true => Ok(Some(object)),
                false => Err(FieldError::new("", format!("the document is about `{}`", object.key()))),
            }),
        };
        Self { kind, key, parsed }
    }
}
