//! What a call asks, read from its body.
//!
//! Pure. Strict JSON: distinct members at any depth, bounded depth and width; members that nobody knows are ignored, as the
//! API says. INVARIANT: what is missing or of another type is an error of the whole body, or of the one evaluation that lacks
//! it, and no evaluation is guessed. The subject's token is taken out of what policies read.

use serde_json::{Map, Value};

use super::Config;
use super::names::{Resource, Subject};
use crate::authz::{AboutCall, Evaluation};
use crate::credential::strict_json;
use crate::policy::{AskedFacts, Properties, Told};

/// Where a subject's token is, among its properties.
const TOKEN: &str = "token";
/// A longer type, id or name is none.
const MAX_NAME: usize = 2048;
/// What the evaluations of a list may inherit in all: each gets a copy of it, in bytes of JSON.
pub(super) const MAX_INHERITED: usize = 1 << 20;
/// The properties that say which request an evaluation is about, by member.
const OF_REQUEST: [(&str, &str); 3] = [("action", "method"), ("resource", "path"), ("resource", "host")];

/// Why a body, or one evaluation of it, cannot be read.
pub(super) type Unreadable = String;

/// One evaluation, read.
#[derive(Debug, Clone)]
pub(super) struct Wanted {
    pub(super) subject: Subject,
    token: Option<String>,
    pub(super) resource: Resource,
    action: String,
    /// Method and path, when both are told, and the host, if it is.
    call: Option<([String; 2], Option<String>)>,
    asked: AskedFacts,
}

/// One of several evaluations.
pub(super) type One = Result<Wanted, Unreadable>;

/// All evaluations of a call.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) all: Vec<One>,
    /// Whether they came in a list, and are answered in one.
    pub(super) is_list: bool,
    pub(super) semantic: Semantic,
}

/// When a list of evaluations ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Semantic {
    #[default]
    ExecuteAll,
    DenyOnFirstDeny,
    PermitOnFirstPermit,
}

/// Which part of an evaluation a search is for, and leaves out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Subject,
    Resource,
    Action,
}

/// A subject, a resource or an action.
#[derive(Debug, Clone)]
struct Entity {
    kind: String,
    id: String,
    properties: Properties,
}

/// A body that is a JSON object.
pub(super) fn read(body: &[u8]) -> Result<Map<String, Value>, Unreadable> {
    match strict_json(body) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err("the body is not a JSON object".to_owned()),
        Err(e) => Err(format!("the body {}", e.message)),
    }
}

// === impl Batch ===

impl Batch {
    /// One evaluation, or those of the list.
    pub(super) fn read(mut body: Map<String, Value>, config: &Config) -> Result<Self, Unreadable> {
        let semantic = Semantic::read(body.remove("options"))?;
        let list = match body.remove("evaluations") {
            None => Vec::new(),
            Some(Value::Array(list)) => list,
            Some(_) => return Err("`evaluations` is not an array".to_owned()),
        };
        if list.is_empty() {
            return Ok(Self { all: vec![Ok(Wanted::read(body, None, config)?)], is_list: false, semantic });
        }
        if list.len() > config.max_evaluations {
            return Err(format!("more than {} evaluations", config.max_evaluations));
        }
        for name in ["subject", "action", "resource", "context"] {
            if body.get(name).is_some_and(|value| !value.is_object()) {
                return Err(format!("`{name}` is not an object"));
            }
        }
        // INVARIANT: a body costs no more than a bounded multiple of its size.
        let shared = ["subject", "action", "resource", "context"].into_iter().filter_map(|name| body.get(name));
        let bytes: usize = shared.map(|value| value.to_string().len()).sum();
        if bytes.saturating_mul(list.len()) > MAX_INHERITED {
            return Err(format!("the evaluations would inherit more than {MAX_INHERITED} bytes in all"));
        }
        let one = |value| match value {
            Value::Object(own) => Wanted::read(inherit(own, &body), None, config),
            _ => Err("the evaluation is not an object".to_owned()),
        };
        Ok(Self { all: list.into_iter().map(one).collect(), is_list: true, semantic })
    }
}

/// An evaluation with what it leaves out taken from the top level: whole members, and of a member that is there what it has
/// to have (`type`, `id`, `name`) and has not.
fn inherit(mut own: Map<String, Value>, top: &Map<String, Value>) -> Map<String, Value> {
    for (name, required) in
        [("subject", &["type", "id"][..]), ("resource", &["type", "id"]), ("action", &["name"]), ("context", &[])]
    {
        let Some(default) = top.get(name) else { continue };
        match own.get_mut(name) {
            None => _ = own.insert(name.to_owned(), default.clone()),
            Some(Value::Object(member)) => {
                for field in required {
                    if let (false, Some(value)) = (member.contains_key(*field), default.get(*field)) {
                        member.insert((*field).to_owned(), value.clone());
                    }
                }
            }
            Some(_) => {}
        }
    }
    own
}

// === impl Wanted ===

impl Wanted {
    /// Reads one; `searched` may be missing, and what is there of it beside its type is ignored.
    pub(super) fn read(
        mut body: Map<String, Value>,
        searched: Option<Part>,
        config: &Config,
    ) -> Result<Self, Unreadable> {
        let id_of = |part: Part| if searched == Some(part) { Id::Ignored } else { Id::Required("id") };
        let mut subject = Entity::read(&mut body, "subject", Some("type"), id_of(Part::Subject))?;
        let mut resource = Entity::read(&mut body, "resource", Some("type"), id_of(Part::Resource))?;
        let mut action = match searched {
            Some(Part::Action) => Entity { kind: String::new(), id: String::new(), properties: Properties::default() },
            _ => Entity::read(&mut body, "action", None, Id::Required("name"))?,
        };
        let context = match body.remove("context") {
            None => Properties::default(),
            Some(Value::Object(context)) => Properties::of(context),
            Some(_) => return Err("`context` is not an object".to_owned()),
        };
        // INVARIANT: no policy reads it, whether it counts or not.
        let token = subject.properties.take(TOKEN).filter(|_| searched != Some(Part::Subject));
        let (method, path) = (action.properties.get("method"), resource.properties.get("path"));
        let host = || resource.properties.get("host").map(str::to_owned);
        let call = method.zip(path).map(|(method, path)| ([method, path].map(str::to_owned), host()));
        Ok(Self {
            subject: match searched {
                Some(Part::Subject) => Subject::Nobody("a search is for it"),
                _ => Subject::read(&subject.kind, &subject.id, config),
            },
            token,
            resource: Resource::read(&resource.kind, &resource.id, config),
            action: std::mem::take(&mut action.id),
            call,
            asked: AskedFacts {
                subject: [subject.kind, subject.id],
                resource: [std::mem::take(&mut resource.kind), resource.id],
                subject_properties: subject.properties,
                action_properties: action.properties,
                resource_properties: resource.properties,
                context,
                told: Told::default(),
            },
        })
    }

    /// As the engine takes it.
    pub(super) fn evaluation(&self) -> Evaluation<'_> {
        Evaluation {
            subject: self.subject.about(self.token.as_deref()),
            resource: self.resource.about(),
            action: &self.action,
            call: self.call.as_ref().map(|([method, path], host)| AboutCall { method, path, host: host.as_deref() }),
            asked: self.asked.clone(),
            min_revision: None,
        }
    }

    /// Method and path, for what is told of it.
    pub(super) fn told(&self) -> (&str, &str) {
        self.call.as_ref().map_or(("", ""), |([method, path], _)| (method, path))
    }

    /// The type of the subject, as it was said.
    pub(super) fn subject_type(&self) -> &str {
        let [kind, _] = &self.asked.subject;
        kind
    }

    /// The type of the resource, as it was said.
    pub(super) fn resource_type(&self) -> &str {
        let [kind, _] = &self.asked.resource;
        kind
    }
}

/// What identifies an entity beside its type.
#[derive(Clone, Copy)]
enum Id {
    Required(&'static str),
    Ignored,
}

// === impl Entity ===

impl Entity {
    fn read(
        body: &mut Map<String, Value>,
        name: &'static str,
        kind: Option<&'static str>,
        id: Id,
    ) -> Result<Self, Unreadable> {
        let mut object = match body.remove(name) {
            Some(Value::Object(object)) => object,
            Some(_) => return Err(format!("`{name}` is not an object")),
            None => return Err(format!("`{name}` is missing")),
        };
        let mut text = |field: &str| match object.remove(field) {
            Some(Value::String(text)) if text.len() <= MAX_NAME => Ok(text),
            Some(Value::String(_)) => Err(format!("`{name}.{field}` is longer than {MAX_NAME} bytes")),
            Some(_) => Err(format!("`{name}.{field}` is not a string")),
            None => Err(format!("`{name}.{field}` is missing")),
        };
        let kind = kind.map(&mut text).transpose()?.unwrap_or_default();
        let id = match id {
            Id::Required(field) => text(field)?,
            Id::Ignored => String::new(),
        };
        let properties = match object.remove("properties") {
            None => Properties::default(),
            Some(Value::Object(properties)) => {
                for (of, field) in std::iter::once(("subject", TOKEN)).chain(OF_REQUEST) {
                    if name == of && properties.get(field).is_some_and(|value| !value.is_string()) {
                        return Err(format!("`{name}.properties.{field}` is not a string"));
                    }
                }
                Properties::of(properties)
            }
            Some(_) => return Err(format!("`{name}.properties` is not an object")),
        };
        Ok(Self { kind, id, properties })
    }
}

// === impl Semantic ===

impl Semantic {
    fn read(options: Option<Value>) -> Result<Self, Unreadable> {
        let options = match options {
            None => return Ok(Self::default()),
            Some(Value::Object(options)) => options,
            Some(_) => return Err("`options` is not an object".to_owned()),
        };
        match options.get("evaluations_semantic").map(Value::as_str) {
            None | Some(Some("execute_all")) => Ok(Self::ExecuteAll),
            Some(Some("deny_on_first_deny")) => Ok(Self::DenyOnFirstDeny),
            Some(Some("permit_on_first_permit")) => Ok(Self::PermitOnFirstPermit),
            Some(_) => Err("`options.evaluations_semantic` is none of `execute_all`, `deny_on_first_deny` and \
                            `permit_on_first_permit`"
                .to_owned()),
        }
    }

    /// Whether nothing follows this decision.
    pub(super) const fn ends_with(self, permitted: bool) -> bool {
        match self {
            Self::ExecuteAll => false,
            Self::DenyOnFirstDeny => !permitted,
            Self::PermitOnFirstPermit => permitted,
        }
    }
}
