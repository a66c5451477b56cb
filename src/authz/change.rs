//! Changes to a snapshot, as they come and as they are once their documents have been read.
//!
//! Pure. Reading is most of the work of a change and needs no snapshot, so that several can be read beside each other.
//! A grant comes in its [compact form](CompactGrant), everything else as its document. What cannot be read, or is about
//! another object, is carried along as the error that it is.

use bytes::Bytes;

use crate::grant::CompactGrant;
use crate::object::{FieldError, Kind, Object};

/// One change to an object, as the control plane has it.
#[derive(Debug, Clone)]
pub struct Change {
    /// Its kind.
    pub kind: Kind,
    /// Its key.
    pub key: String,
    /// The new document; `None` deletes it.
    pub body: Option<Bytes>,
}

/// A change that has been read.
#[derive(Debug)]
pub struct Prepared {
    pub(super) kind: Kind,
    pub(super) key: String,
    pub(super) parsed: Result<Parsed, FieldError>,
}

/// What a change says.
#[derive(Debug)]
pub(super) enum Parsed {
    /// The object is gone.
    Gone,
    /// The form of a grant, which can be read.
    Grant(Bytes),
    /// Any other object.
    Object(Box<Object>),
}

// === impl Change ===

impl Change {
    /// What is sent of it: of a grant its compact form. What is no grant is sent as it is.
    pub fn sent(&self) -> Option<Bytes> {
        let body = self.body.as_ref()?;
        match (self.kind == Kind::Grant).then(|| Object::parse(Kind::Grant, body)) {
            Some(Ok(Object::Grant(grant))) => Some(CompactGrant::encode(&grant).into()),
            _ => Some(body.clone()),
        }
    }
}

// === impl Prepared ===

impl Prepared {
    /// Reads a change as it was sent.
    pub fn sent(kind: Kind, key: String, body: Option<Bytes>) -> Self {
        let of_another = |key: &dyn std::fmt::Display| Err(FieldError::new("", format!("it is about `{key}`")));
        let parsed = match body {
            None => Ok(Parsed::Gone),
            Some(form) if kind == Kind::Grant => match CompactGrant::read(&form).map(|grant| grant.id) {
                Ok(id) if key.parse() == Ok(id) => Ok(Parsed::Grant(form)),
                Ok(id) => of_another(&id),
                Err(e) => Err(e),
            },
            Some(body) => match Object::parse(kind, &body) {
                Ok(object) if object.has_key(&key) => Ok(Parsed::Object(Box::new(object))),
                Ok(object) => of_another(&object.key()),
                Err(e) => Err(e),
            },
        };
        Self { kind, key, parsed }
    }
}

impl From<Change> for Prepared {
    fn from(change: Change) -> Self {
        let body = change.sent();
        Self::sent(change.kind, change.key, body)
    }
}
