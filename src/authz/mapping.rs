//! From the claims of a token to exactly one workload, by an index of what the mappings compare exactly.
//!
//! Pure. The cost of a look-up follows the number of different *sets of claim names* that an issuer's mappings compare,
//! of which an estate has a handful, and not the number of workloads. INVARIANT: the index only finds candidates; every
//! one is judged by its whole mapping. No match and more than one match are both refusals: a credential that could be
//! two workloads is nobody's.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::Value;
use smallvec::SmallVec;

use super::revocations::digest;
use crate::grant::{Key, ShardedMap, WorkloadKey};
use crate::object::{Condition, CredentialMapping, IssuerKind, Workload, claim};

/// The mappings of a snapshot's workloads.
#[derive(Debug, Clone)]
pub(super) struct Mappings {
    candidates: ShardedMap<Candidates>,
    /// Per issuer: the sets of claims that its mappings compare exactly, with the number of mappings that do.
    shapes: Arc<BTreeMap<Box<str>, Shapes>>,
    /// Changes with any mapping.
    version: u64,
}

type Candidates = SmallVec<[WorkloadKey; 1]>;
type Shapes = BTreeMap<Box<[Box<str>]>, usize>;

/// Why claims are not one workload's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Unmapped {
    Nobody,
    Several,
}

// === impl Unmapped ===

impl Unmapped {
    pub(super) const fn detail(self) -> &'static str {
        match self {
            Self::Nobody => "no registered workload has a credential mapping that these claims fulfil",
            Self::Several => "the claims fulfil the credential mappings of more than one workload",
        }
    }
}

// === impl Mappings ===

impl Mappings {
    pub(super) fn new(version: u64) -> Self {
        Self { candidates: ShardedMap::new(version), shapes: Arc::default(), version }
    }

    pub(super) const fn version(&self) -> u64 {
        self.version
    }

    /// Replaces the mappings of one workload.
    pub(super) fn replace(&mut self, old: Option<&Workload>, new: Option<&Workload>, version: u64) {
        let mappings = |workload: Option<&Workload>| workload.map_or(&[][..], |w| &w.credentials).to_vec();
        if mappings(old) == mappings(new) {
            return;
        }
        self.version = version;
        if let Some(workload) = old {
            let key = WorkloadKey::of(workload.id.as_str());
            for mapping in &workload.credentials {
                self.forget(mapping, key, version);
            }
        }
        if let Some(workload) = new {
            let key = WorkloadKey::of(workload.id.as_str());
            for mapping in &workload.credentials {
                self.add(mapping, key, version);
            }
        }
    }

    /// The one of `workloads` whose mapping these claims of a token of `issuer` fulfil; `document` is what a value is of.
    pub(super) fn resolve<'a, W: Clone>(
        &self,
        issuer: &str,
        kind: IssuerKind,
        claims: &Value,
        workloads: &'a ShardedMap<W>,
        document: impl Fn(&'a W) -> &'a Workload,
    ) -> Result<&'a W, Unmapped> {
        let mut found: Option<(&W, &Workload)> = None;
        for shape in self.shapes.get(issuer).into_iter().flat_map(BTreeMap::keys) {
            let values: Option<SmallVec<[&str; 8]>> =
                shape.iter().map(|name| claim(claims, name).and_then(Value::as_str)).collect();
            let Some(values) = values else { continue };
            let candidates = self.candidates.get(&address(issuer, shape, &values));
            for candidate in candidates.into_iter().flatten().filter_map(|key| workloads.get(&key.0)) {
                let workload = document(candidate);
                let fulfilled = workload.credentials.iter().any(|mapping| {
                    mapping.issuer == issuer && mapping.check_for(kind).is_ok() && mapping.holds(claims)
                });
                if !fulfilled || found.is_some_and(|(_, known)| known.id == workload.id) {
                    continue;
                }
                if found.replace((candidate, workload)).is_some() {
                    return Err(Unmapped::Several);
                }
            }
        }
        found.map(|(candidate, _)| candidate).ok_or(Unmapped::Nobody)
    }

    fn add(&mut self, mapping: &CredentialMapping, workload: WorkloadKey, version: u64) {
        let (shape, values) = exact(mapping);
        let address = address(&mapping.issuer, &shape, &values);
        self.candidates.update(address, version, |keys| keys.push(workload), |_| true);
        let of_issuer = Arc::make_mut(&mut self.shapes).entry(mapping.issuer.as_str().into()).or_default();
        *of_issuer.entry(shape).or_default() += 1;
    }

    fn forget(&mut self, mapping: &CredentialMapping, workload: WorkloadKey, version: u64) {
        let (shape, values) = exact(mapping);
        let address = address(&mapping.issuer, &shape, &values);
        let drop_one = |keys: &mut Candidates| {
            if let Some(at) = keys.iter().position(|key| *key == workload) {
                keys.remove(at);
            }
        };
        self.candidates.update(address, version, drop_one, |keys| !keys.is_empty());
        let shapes = Arc::make_mut(&mut self.shapes);
        let Some(of_issuer) = shapes.get_mut(mapping.issuer.as_str()) else { return };
        if let Some(count) = of_issuer.get_mut(&shape) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                of_issuer.remove(&shape);
            }
        }
        if of_issuer.is_empty() {
            shapes.remove(mapping.issuer.as_str());
        }
    }
}

/// The claims that a mapping compares with one text, and the texts.
fn exact(mapping: &CredentialMapping) -> (Box<[Box<str>]>, SmallVec<[&str; 8]>) {
    let texts = mapping.when.0.iter().filter_map(|(name, condition)| match condition {
        Condition::Text(text) => Some((Box::from(name.as_str()), text.as_str())),
        _ => None,
    });
    let (names, values): (Vec<Box<str>>, SmallVec<[&str; 8]>) = texts.unzip();
    (names.into(), values)
}

fn address(issuer: &str, shape: &[Box<str>], values: &[&str]) -> Key {
    let mut parts: SmallVec<[&str; 20]> = SmallVec::from_iter([issuer]);
    for (name, value) in shape.iter().zip(values) {
        parts.extend([&**name, *value]);
    }
    digest("mapping", &parts)
}
