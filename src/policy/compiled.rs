//! A policy set, compiled into slices by the scope of its policies.
//!
//! Pure. A request is evaluated against the slices whose principal and resource can match, and nothing else, so the
//! cost of a decision follows the policies that can apply and not the size of the set. INVARIANT: slicing changes no
//! answer; `tests.rs` compares it with evaluating everything.

use std::collections::HashMap;

use cedar_policy::{ActionConstraint, EntityUid, Policy, PolicySet, PrincipalConstraint, ResourceConstraint};

use super::asked::Told;
use super::reads::Reads;
use super::schema::Names;
use super::validate::{PolicyErrors, parse};
use crate::object;

/// A compiled policy set.
#[derive(Debug, Default)]
pub struct CompiledPolicies {
    /// Principals that some policy's scope names, by Cedar's text form.
    principals: HashMap<Box<str>, u32>,
    /// Resources that some policy's scope names.
    resources: HashMap<Box<str>, u32>,
    /// The policies by the numbers of their principal and resource; [`ANY`] where the scope names none.
    slices: HashMap<(u32, u32), Slice>,
    reads: Reads,
    len: usize,
}

/// The policies of one scope.
#[derive(Debug)]
pub(super) struct Slice {
    pub(super) policies: PolicySet,
    /// Whether any of them reads the grant. One that does not says the same with a grant as without.
    pub(super) reads_grant: bool,
    /// Those that ask whether there is a method, a path or a host.
    presence: Vec<Presence>,
}

/// A policy that asks whether the context has what every request has. Without a request it would take the answer for no.
#[derive(Debug)]
struct Presence {
    id: Box<str>,
    /// The actions that its scope names; `None` for any.
    actions: Option<Vec<Box<str>>>,
    reads: Reads,
}

/// What a [`Slice`] is made of.
type Parts = (Vec<Policy>, bool, Vec<Presence>);

/// Stands for an unconstrained principal or resource.
pub(super) const ANY: u32 = 0;

/// Why a policy set could not be compiled.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// It does not validate.
    #[error(transparent)]
    Invalid(#[from] PolicyErrors),
    /// Cedar refused to put policies into a set.
    #[error("{0}")]
    Set(String),
}

// === impl CompiledPolicies ===

impl CompiledPolicies {
    /// Validates and compiles.
    pub fn compile(set: &object::PolicySet) -> Result<Self, CompileError> {
        let valid = parse(&set.text, Names { actions: &set.actions, arguments: &set.arguments })?;
        let mut compiled = Self { reads: Reads::of_all(&valid.reads), len: valid.policies.len(), ..Self::default() };
        let mut slices: HashMap<(u32, u32), Parts> = HashMap::new();
        for (policy, reads) in valid.policies.into_iter().zip(valid.reads) {
            let principal = scope_of_principal(&policy).map_or(ANY, |uid| number(&mut compiled.principals, &uid));
            let resource = scope_of_resource(&policy).map_or(ANY, |uid| number(&mut compiled.resources, &uid));
            let (policies, reads_grant, presence) = slices.entry((principal, resource)).or_default();
            presence.extend(Presence::of(&policy, reads));
            policies.push(policy);
            *reads_grant |= reads.grant;
        }
        for (scope, (policies, reads_grant, presence)) in slices {
            let policies = PolicySet::from_policies(policies).map_err(|e| CompileError::Set(e.to_string()))?;
            compiled.slices.insert(scope, Slice { policies, reads_grant, presence });
        }
        Ok(compiled)
    }

    /// Which inputs the policies read.
    pub const fn reads(&self) -> Reads {
        self.reads
    }

    /// Number of policies.
    pub const fn len(&self) -> usize {
        self.len
    }

    /// Whether there are no policies.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The slices that can apply to a principal with these text forms (its own and its roles') and a resource with
    /// these (its own and its service's).
    pub(super) fn slices<'a>(
        &'a self,
        principals: impl Iterator<Item = &'a str> + Clone,
        resources: impl Iterator<Item = &'a str> + Clone,
    ) -> impl Iterator<Item = &'a Slice> {
        let known = |of: &'a HashMap<Box<str>, u32>| move |name: &'a str| of.get(name).copied();
        let principals = std::iter::once(ANY).chain(principals.filter_map(known(&self.principals)));
        let resources = std::iter::once(ANY).chain(resources.filter_map(known(&self.resources)));
        principals.flat_map(move |p| resources.clone().filter_map(move |r| self.slices.get(&(p, r))))
    }
}

// === impl Slice ===

impl Slice {
    /// The policies that, asked about this action, ask for what was not told.
    pub(super) fn unanswerable<'a>(&'a self, action: &'a str, told: Told) -> impl Iterator<Item = &'a str> {
        let asks = move |one: &&Presence| {
            let untold = one.reads.has_request && !told.request() || one.reads.has_host && !told.host();
            untold && one.actions.as_ref().is_none_or(|names| names.iter().any(|name| **name == *action))
        };
        self.presence.iter().filter(asks).map(|one| &*one.id)
    }
}

// === impl Presence ===

impl Presence {
    fn of(policy: &Policy, reads: Reads) -> Option<Self> {
        if !reads.has_request && !reads.has_host {
            return None;
        }
        let name = |uid: &EntityUid| Box::from(uid.id().unescaped());
        // Actions are in no groups, so that one is in another only if it is that one.
        let actions = match policy.action_constraint() {
            ActionConstraint::Any => None,
            ActionConstraint::In(uids) => Some(uids.iter().map(name).collect()),
            ActionConstraint::Eq(uid) => Some(vec![name(&uid)]),
        };
        Some(Self { id: AsRef::<str>::as_ref(policy.id()).into(), actions, reads })
    }
}

fn number(names: &mut HashMap<Box<str>, u32>, uid: &EntityUid) -> u32 {
    // 0 is ANY; a set has fewer than 2^32 policies, so the count fits.
    let next = u32::try_from(names.len()).unwrap_or(u32::MAX).saturating_add(1);
    *names.entry(uid.to_string().into()).or_insert(next)
}

fn scope_of_principal(policy: &Policy) -> Option<EntityUid> {
    match policy.principal_constraint() {
        PrincipalConstraint::Any | PrincipalConstraint::Is(_) => None,
        PrincipalConstraint::Eq(uid) | PrincipalConstraint::In(uid) | PrincipalConstraint::IsIn(_, uid) => Some(uid),
    }
}

fn scope_of_resource(policy: &Policy) -> Option<EntityUid> {
    match policy.resource_constraint() {
        ResourceConstraint::Any | ResourceConstraint::Is(_) => None,
        ResourceConstraint::Eq(uid) | ResourceConstraint::In(uid) | ResourceConstraint::IsIn(_, uid) => Some(uid),
    }
}
