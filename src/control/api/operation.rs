//! What one operation of the API is: method, path, action, handler, and all that is documented of it.
//!
//! Plane: control. The router and the OpenAPI document are both made of these, so nothing is served that is not
//! documented. INVARIANT: every operation has an action, which is known before anything is read of the body; who may
//! do it is decided on that name alone.

use std::sync::Arc;

use axum::handler::Handler;
use axum::routing::{MethodFilter, MethodRouter, on};
use schemars::{JsonSchema, Schema, SchemaGenerator};

use super::Api;
use super::problem::Body as ProblemBody;

/// What the front door knows of the operation that a request is for. In the extensions of every request for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Route {
    pub(super) method: Method,
    pub(super) path: &'static str,
    /// The name that policies for operators use, as in `grant.approve`. Several operations may share one.
    pub(super) action: &'static str,
    /// Whether anybody may, without saying who they are.
    pub(super) public: bool,
}

/// The methods that operations have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Method {
    Get,
    Put,
    Post,
    Delete,
}

/// The media type of a form.
pub(super) const FORM: &str = "application/x-www-form-urlencoded";

/// Writes a type's schema, by reference where it has a name.
pub(super) type SchemaOf = fn(&mut SchemaGenerator) -> Schema;

/// How large a body may be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Limit {
    /// As any document.
    Document,
    /// As a policy set, which is larger.
    Policies,
    /// As a few tokens.
    Form,
}

/// The body that an operation takes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Body {
    pub(super) schema: SchemaOf,
    pub(super) media_type: &'static str,
    /// Whether it may be left out.
    pub(super) optional: bool,
    pub(super) limit: Limit,
}

/// One way in which an operation succeeds.
#[derive(Debug, Clone)]
pub(super) struct Answer {
    pub(super) status: u16,
    pub(super) description: &'static str,
    /// Media types with their schemas; none when there is no body.
    pub(super) content: Vec<(&'static str, SchemaOf)>,
}

/// One operation: a row of the table in [`super::routes`].
#[derive(Debug)]
pub(super) struct Operation {
    pub(super) route: Route,
    pub(super) summary: &'static str,
    /// More about it; empty when the summary says all.
    pub(super) description: &'static str,
    /// What the one part of the path that is not fixed names, and its schema.
    pub(super) named: Option<(&'static str, SchemaOf)>,
    /// An object whose properties are the parameters of the query.
    pub(super) query: Option<SchemaOf>,
    pub(super) body: Option<Body>,
    /// Bodies as they may be sent, each with a name and as JSON.
    pub(super) examples: Vec<(&'static str, &'static str)>,
    pub(super) answers: Vec<Answer>,
    /// Statuses of problems, beside those that follow from what it takes.
    pub(super) problems: Vec<u16>,
    /// Its name in the document, when it is not that of its action.
    pub(super) id: Option<&'static str>,
    /// Answers with an entity tag.
    pub(super) tagged: bool,
    /// Says where what it has made is.
    pub(super) located: bool,
    /// The operations that what it has made is for, and where in the answer their part of the path is.
    pub(super) links: Vec<(&'static str, &'static str)>,
    /// Takes `Last-Event-ID`.
    pub(super) streams: bool,
    /// Takes `If-Match` and `If-None-Match: *`.
    pub(super) conditional: bool,
    /// Takes `Idempotency-Key`.
    pub(super) keyed: bool,
    pub(super) handler: MethodRouter<Arc<Api>>,
}

/// `GET path`.
pub(super) fn get<H, T>(path: &'static str, action: &'static str, summary: &'static str, handler: H) -> Operation
where
    H: Handler<T, Arc<Api>>,
    T: 'static,
{
    Operation::new(Method::Get, path, action, summary, on(MethodFilter::GET, handler))
}

/// `PUT path`.
pub(super) fn put<H, T>(path: &'static str, action: &'static str, summary: &'static str, handler: H) -> Operation
where
    H: Handler<T, Arc<Api>>,
    T: 'static,
{
    Operation::new(Method::Put, path, action, summary, on(MethodFilter::PUT, handler))
}

/// `POST path`.
pub(super) fn post<H, T>(path: &'static str, action: &'static str, summary: &'static str, handler: H) -> Operation
where
    H: Handler<T, Arc<Api>>,
    T: 'static,
{
    Operation::new(Method::Post, path, action, summary, on(MethodFilter::POST, handler))
}

/// `DELETE path`.
pub(super) fn delete<H, T>(path: &'static str, action: &'static str, summary: &'static str, handler: H) -> Operation
where
    H: Handler<T, Arc<Api>>,
    T: 'static,
{
    Operation::new(Method::Delete, path, action, summary, on(MethodFilter::DELETE, handler))
}

// === impl Operation ===

impl Operation {
    fn new(
        method: Method,
        path: &'static str,
        action: &'static str,
        summary: &'static str,
        handler: MethodRouter<Arc<Api>>,
    ) -> Self {
        Self {
            route: Route { method, path, action, public: false },
            summary,
            description: "",
            named: None,
            query: None,
            body: None,
            examples: Vec::new(),
            answers: Vec::new(),
            problems: Vec::new(),
            id: None,
            tagged: false,
            links: Vec::new(),
            streams: false,
            located: false,
            conditional: false,
            keyed: false,
            handler,
        }
    }

    /// The name in the document: that of the action, unless several operations have that.
    pub(super) fn id(&self) -> String {
        self.id.map_or_else(|| self.route.action.replace('.', "_"), str::to_owned)
    }

    /// Another name in the document than that of the action.
    pub(super) const fn called(mut self, id: &'static str) -> Self {
        self.id = Some(id);
        self
    }

    /// More about it than the summary.
    pub(super) const fn about(mut self, description: &'static str) -> Self {
        self.description = description;
        self
    }

    /// What the part of the path in braces names. Such an operation may find nothing of that name.
    pub(super) fn named<T: JsonSchema>(mut self, description: &'static str) -> Self {
        self.named = Some((description, schema_of::<T>));
        self.problem(404)
    }

    /// The type that the query is read as.
    pub(super) fn query<T: JsonSchema>(mut self) -> Self {
        self.query = Some(schema_of::<T>);
        self
    }

    /// A JSON document.
    pub(super) fn body<T: JsonSchema>(mut self) -> Self {
        let schema: SchemaOf = schema_of::<T>;
        self.body = Some(Body { schema, media_type: "application/json", optional: false, limit: Limit::Document });
        self
    }

    /// A body as it may be sent, in terms of the demo.
    pub(super) fn example(mut self, name: &'static str, json: &'static str) -> Self {
        self.examples.push((name, json));
        self
    }

    /// A form, as HTML has them.
    pub(super) fn form<T: JsonSchema>(mut self) -> Self {
        let (schema, media_type): (SchemaOf, _) = (schema_of::<T>, FORM);
        self.body = Some(Body { schema, media_type, optional: false, limit: Limit::Form });
        self
    }

    /// Fails with a JSON document that is no problem, or, when it got no further than the front door, with one.
    pub(super) fn refuses<T: JsonSchema>(mut self, status: u16, description: &'static str) -> Self {
        let problem: SchemaOf = schema_of::<ProblemBody>;
        let content = vec![("application/json", schema_of::<T> as SchemaOf), ("application/problem+json", problem)];
        self.answers.push(Answer { status, description, content });
        self
    }

    /// A JSON document that may be left out.
    pub(super) fn optional_body<T: JsonSchema>(mut self) -> Self {
        self = self.body::<T>();
        if let Some(body) = &mut self.body {
            body.optional = true;
        }
        self
    }

    /// The body may be as large as a policy set.
    pub(super) const fn large(mut self) -> Self {
        if let Some(body) = &mut self.body {
            body.limit = Limit::Policies;
        }
        self
    }

    /// Succeeds with a JSON document.
    pub(super) fn answers<T: JsonSchema>(mut self, status: u16, description: &'static str) -> Self {
        self.answers.push(Answer { status, description, content: vec![("application/json", schema_of::<T>)] });
        self
    }

    /// The answer before can also be had as a stream of events.
    pub(super) fn streams(mut self, nothing_more: &'static str) -> Self {
        if let Some(answer) = self.answers.last_mut() {
            answer.content.push(("text/event-stream", schema_of::<String>));
        }
        self.streams = true;
        self.answers_nothing(204, nothing_more)
    }

    /// Succeeds without a body.
    pub(super) fn answers_nothing(mut self, status: u16, description: &'static str) -> Self {
        self.answers.push(Answer { status, description, content: Vec::new() });
        self
    }

    /// May also fail with this status. Those that follow from what it takes need not be named.
    pub(super) fn problem(mut self, status: u16) -> Self {
        self.problems.push(status);
        self
    }

    /// Answers with an entity tag.
    pub(super) const fn tagged(mut self) -> Self {
        self.tagged = true;
        self
    }

    /// What it has made is for these operations (by their names in the document): `pointer` leads to its name in the answer.
    pub(super) fn leads_to(mut self, pointer: &'static str, operations: &[&'static str]) -> Self {
        self.links.extend(operations.iter().map(|id| (*id, pointer)));
        self
    }

    /// Says where what it has made is.
    pub(super) const fn located(mut self) -> Self {
        self.located = true;
        self
    }

    /// Takes preconditions on the entity tag.
    pub(super) const fn conditional(mut self) -> Self {
        self.conditional = true;
        self
    }

    /// Takes `Idempotency-Key`.
    pub(super) const fn keyed(mut self) -> Self {
        self.keyed = true;
        self
    }

    /// Anybody may, without authentication.
    pub(super) const fn public(mut self) -> Self {
        self.route.public = true;
        self
    }

    /// How large its body may be; of one that takes none as well, so that none is read to the end.
    pub(super) fn limit(&self) -> Limit {
        self.body.map_or(Limit::Document, |body| body.limit)
    }
}

// === impl Method ===

impl Method {
    /// In the spelling of HTTP.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Put => "PUT",
            Self::Post => "POST",
            Self::Delete => "DELETE",
        }
    }

    /// The operation's method for a request's: `HEAD` is answered as `GET` is.
    pub(super) fn of(method: &axum::http::Method) -> Option<Self> {
        let method = if method == axum::http::Method::HEAD { &axum::http::Method::GET } else { method };
        [Self::Get, Self::Put, Self::Post, Self::Delete].into_iter().find(|m| m.as_str() == method.as_str())
    }
}

pub(super) fn schema_of<T: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.subschema_for::<T>()
}
