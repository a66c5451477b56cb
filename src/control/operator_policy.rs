//! Operator policies: who may call which operation of the API, on what.
//!
//! Plane: control; pure, apart from the cache. Cedar, over a schema that is made of the table of operations. Put to it
//! are only things that are known before a body is read: who calls, the operation's action, and the object that its path
//! names. Fails closed: an error denies, because a policy that fails to evaluate might have been a forbid. INVARIANT:
//! nobody is locked out for good: the operator `bootstrap` with its token may always publish, and a set under which
//! whoever publishes it could not publish the next one is refused.

use std::collections::{BTreeSet, HashSet};
use std::fmt::Write as _;
use std::str::FromStr;
use std::sync::Arc;

use cedar_policy::{
    Authorizer, Context, Decision, Entities, Entity, EntityId, EntityTypeName, EntityUid, PolicySet, Request,
    RestrictedExpression, Schema,
};

use super::compiled::Compiled;
use super::index::Index;
use super::operators::BOOTSTRAP;
use super::principal::{Principal, PrincipalKind, Via};
use crate::credential::SpiffeId;
use crate::object::{Kind, Object, OperatorPolicySet};
use crate::policy::{PolicyError, PolicyErrors, parse_strictly};
use crate::wire::Revision;

/// Publishing, and what one needs for it.
const FAMILY: &str = "operator_policy.";
/// What publishing is called.
pub const PUBLISH: &str = "operator_policy.publish";
/// The group of all actions that only read.
const READ: &str = "read";
/// What workloads may do on themselves as long as nothing else is published.
const OF_WORKLOADS: [&str; 4] = ["grant.request", "grant.show", "grant.withdraw", "grant.drop"];

/// An operation, as policies see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Action {
    /// As in `grant.approve`.
    pub name: &'static str,
    /// Whether it only reads.
    pub reads: bool,
}

/// What an operation is on, as its path says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Subject {
    /// As in `grant`: the family of the action.
    pub kind: String,
    /// What the path names; empty for a list and for what is new.
    pub name: String,
    /// The workload that it is of, where it is a workload's.
    pub workload: Option<SpiffeId>,
}

/// A compiled set.
#[derive(Debug)]
pub struct OperatorPolicies {
    set: PolicySet,
    /// Their ids, in the order of the text.
    pub ids: Vec<String>,
}

/// Why a call is not allowed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Denied {
    /// Policies forbid it.
    #[error("operator policies forbid `{action}`: {}", .policies.join(", "))]
    Forbidden {
        /// What.
        action: String,
        /// Which ones.
        policies: Vec<String>,
    },
    /// No policy permits it.
    #[error("no operator policy permits `{0}`")]
    NoMatch(String),
    /// It could not be evaluated.
    #[error("the operator policies could not be evaluated for `{0}`")]
    Failed(String),
}

/// The policies in force.
#[derive(Debug)]
pub struct InForce {
    index: Arc<Index>,
    actions: Arc<BTreeSet<Action>>,
    compiled: Compiled<OperatorPolicies>,
}

/// The schema that is made of these actions.
pub fn schema_text(actions: &BTreeSet<Action>) -> String {
    let mut text = String::from(
        r#"// Whom a provider vouches to be in it; its id is as the provider spells it.
entity Group;
// An operator or a person of a provider; its id is its name.
entity Operator in [Group] {
  // "person" or "automation"
  kind: String,
  // how it proved who it is: "token", "oidc" or "certificate"
  via: String,
};
// A registered workload with its own token; its id is its SPIFFE ID.
entity Workload;
// What is acted on, KIND/NAME; without a name a list, or something new.
entity Object {
  kind: String,
  name: String,
  // of whom it is, where it is a workload's: grants, requests, workloads
  workload?: Workload,
};
// Everything that only reads.
action "read";
"#,
    );
    let families: BTreeSet<&str> = actions.iter().filter_map(|a| Some(a.name.split_once('.')?.0)).collect();
    for family in families.into_iter().filter(|family| *family != READ) {
        let _infallible = writeln!(text, "action \"{family}\";");
    }
    for action in actions {
        let mut groups: Vec<String> =
            action.name.split_once('.').map(|(family, _)| format!("\"{family}\"")).into_iter().collect();
        if action.reads {
            groups.push(format!("\"{READ}\""));
        }
        let within = if groups.is_empty() { String::new() } else { format!(" in [{}]", groups.join(", ")) };
        let _infallible = writeln!(
            text,
            "action \"{}\"{within} appliesTo {{ principal: [Operator, Workload], resource: [Object] }};",
            action.name
        );
    }
    text
}

/// What counts as long as nothing is published.
pub fn default_text(actions: &BTreeSet<Action>) -> String {
    let known = |name: &&&str| actions.iter().any(|action| action.name == **name);
    let own = |names: &[&str]| names.iter().map(|name| format!("Action::\"{name}\"")).collect::<Vec<_>>().join(", ");
    let of_workloads: Vec<&str> = OF_WORKLOADS.iter().filter(known).copied().collect();
    let (on_new, on_own): (Vec<&str>, Vec<&str>) = of_workloads.into_iter().partition(|name| *name == "grant.request");
    format!(
        r#"// Operators that were created here, by token or certificate, may do everything.
@id("operators")
permit(principal is Operator, action, resource) when {{ principal.via == "token" || principal.via == "certificate" }};

// Workloads may ask for grants, and look at, take back and drop their own. That they ask for themselves is a rule of the API.
@id("workloads-ask")
permit(principal is Workload, action in [{}], resource);
@id("workloads-own")
permit(principal is Workload, action in [{}], resource)
when {{ resource has workload && resource.workload == principal }};

// People of providers may do nothing until a set is published that says what.
"#,
        own(&on_new),
        own(&on_own),
    )
}

// === impl OperatorPolicies ===

impl OperatorPolicies {
    /// Validates and compiles.
    pub fn compile(text: &str, actions: &BTreeSet<Action>) -> Result<Self, PolicyErrors> {
        let plain = |message: String| {
            PolicyErrors(vec![PolicyError { policy: None, line: None, column: None, message, help: None }])
        };
        let schema = Schema::from_str(&schema_text(actions)).map_err(|e| plain(e.to_string()))?;
        let policies = parse_strictly(text, &schema)?;
        let ids = policies.iter().map(|p| p.id().to_string()).collect();
        let set = PolicySet::from_policies(policies).map_err(|e| plain(e.to_string()))?;
        Ok(Self { set, ids })
    }

    /// Whether a principal may do this.
    pub fn check(&self, principal: &Principal, action: Action, subject: &Subject) -> Result<(), Denied> {
        let asked = || {
            let (caller, object) = (entity_of(principal)?, object_of(subject)?);
            let (caller_uid, object_uid) = (caller.uid(), object.uid());
            let act = entity_of_action(action)?;
            let act_uid = act.uid();
            let entities = Entities::from_entities([caller, object, act], None).ok()?;
            let request = Request::new(caller_uid, act_uid, object_uid, Context::empty(), None).ok()?;
            Some(Authorizer::new().is_authorized(&request, &self.set, &entities))
        };
        let failed = || Denied::Failed(action.name.to_owned());
        let response = asked().ok_or_else(failed)?;
        if response.diagnostics().errors().next().is_some() {
            return Err(failed());
        }
        let mut policies: Vec<String> = response.diagnostics().reason().map(ToString::to_string).collect();
        policies.sort_unstable();
        match response.decision() {
            Decision::Allow => Ok(()),
            Decision::Deny if policies.is_empty() => Err(Denied::NoMatch(action.name.to_owned())),
            Decision::Deny => Err(Denied::Forbidden { action: action.name.to_owned(), policies }),
        }
    }
}

fn entity_of(principal: &Principal) -> Option<Entity> {
    if let PrincipalKind::Workload(id) = &principal.kind {
        return Some(Entity::new_no_attrs(uid("Workload", id.as_str())?, HashSet::new()));
    }
    let via = match principal.via {
        Via::Token => "token",
        Via::Oidc => "oidc",
        Via::Certificate => "certificate",
        Via::Workload | Via::System => return None,
    };
    let text = |s: &str| RestrictedExpression::new_string(s.to_owned());
    let attrs = [("kind".to_owned(), text(principal.kind.name())), ("via".to_owned(), text(via))];
    let groups: Option<HashSet<EntityUid>> = principal.groups.iter().map(|group| uid("Group", group)).collect();
    Entity::new(uid("Operator", &principal.name)?, attrs.into(), groups?).ok()
}

/// An action with the groups that the schema has it in.
fn entity_of_action(action: Action) -> Option<Entity> {
    let family = action.name.split_once('.').map(|(family, _)| family);
    let groups = family.into_iter().chain(action.reads.then_some(READ));
    let groups: Option<HashSet<EntityUid>> = groups.map(|group| uid("Action", group)).collect();
    Some(Entity::new_no_attrs(uid("Action", action.name)?, groups?))
}

fn object_of(subject: &Subject) -> Option<Entity> {
    let text = |s: &str| RestrictedExpression::new_string(s.to_owned());
    let mut attrs = std::collections::HashMap::from([
        ("kind".to_owned(), text(&subject.kind)),
        ("name".to_owned(), text(&subject.name)),
    ]);
    if let Some(id) = &subject.workload {
        attrs.insert("workload".to_owned(), RestrictedExpression::new_entity_uid(uid("Workload", id.as_str())?));
    }
    Entity::new(uid("Object", &format!("{}/{}", subject.kind, subject.name))?, attrs, HashSet::new()).ok()
}

fn uid(kind: &'static str, id: &str) -> Option<EntityUid> {
    let kind: EntityTypeName = kind.parse().ok()?;
    Some(EntityUid::from_type_name_and_id(kind, EntityId::new(id)))
}

// === impl InForce ===

impl InForce {
    /// Those of the log, over these actions.
    pub fn new(index: Arc<Index>, actions: BTreeSet<Action>) -> Self {
        Self { index, actions: Arc::new(actions), compiled: Compiled::default() }
    }

    /// The actions that policies are about.
    pub fn actions(&self) -> &BTreeSet<Action> {
        &self.actions
    }

    /// Whether a principal may do this now.
    pub async fn check(&self, principal: &Principal, action: &str, subject: &Subject) -> Result<(), Denied> {
        // INVARIANT: whatever is published, the first operator can publish something else.
        let is_first = principal.via == Via::Token && &*principal.name == BOOTSTRAP;
        if is_first && action.starts_with(FAMILY) {
            return Ok(());
        }
        let failed = || Denied::Failed(action.to_owned());
        let known = self.actions.iter().find(|known| known.name == action).ok_or_else(failed)?;
        self.current().await.ok_or_else(failed)?.check(principal, *known, subject)
    }

    /// Whether `policies` would let this principal publish the next set.
    pub fn may_publish_again(&self, policies: &OperatorPolicies, principal: &Principal) -> bool {
        let subject = Subject { kind: "operator_policy".to_owned(), ..Subject::default() };
        let is_first = principal.via == Via::Token && &*principal.name == BOOTSTRAP;
        let publish = self.actions.iter().find(|action| action.name == PUBLISH);
        is_first || publish.is_some_and(|publish| policies.check(principal, *publish, &subject).is_ok())
    }

    /// Compiled once for each set; nothing when the one that is published cannot be used.
    async fn current(&self) -> Option<Arc<OperatorPolicies>> {
        let published = self.index.get(Kind::OperatorPolicySet, OperatorPolicySet::KEY);
        let revision = published.as_ref().map_or(Revision(0), |stored| stored.revision);
        if let Some(known) = self.compiled.known(revision) {
            return known;
        }
        let actions = Arc::clone(&self.actions);
        let compile = move || {
            let text = match published.as_ref().and_then(|stored| stored.object.as_ref()) {
                Some(Object::OperatorPolicySet(set)) => set.text.clone(),
                _ => default_text(&actions),
            };
            let unusable = |errors: &PolicyErrors| {
                tracing::error!(%revision, %errors, "the operator policies cannot be used: nobody may do anything but publish others");
            };
            OperatorPolicies::compile(&text, &actions).inspect_err(unusable).ok()
        };
        self.compiled.of(revision, compile).await
    }
}

#[cfg(test)]
mod tests;
