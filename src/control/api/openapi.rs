//! The OpenAPI 3.1 document, made of the table of operations and the schemas of the types that handlers read and write.
//!
//! Plane: control. Pure. `docs/openapi.json` is this document, and a test fails when it is not. INVARIANT: every way to
//! fail that follows from what an operation takes is added here, in one place, so that a row cannot forget it.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use axum::http::{HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::operation::{Answer, FORM, Operation, SchemaOf, schema_of};
use super::problem::Body as ProblemBody;
use super::routes;

/// What the statuses of problems mean, by name of the component that describes them.
const PROBLEMS: [(u16, &str, &str); 12] = [
    (400, "Malformed", "The request cannot be read: its JSON, a parameter or a header; `errors` names it."),
    (401, "Unauthenticated", "Who is asking is not known."),
    (403, "Forbidden", "Who is asking may not do that."),
    (404, "NotFound", "There is no such thing."),
    (409, "Conflict", "Well-formed, but not in the state that things are in."),
    (412, "Precondition", "`If-Match` or `If-None-Match` does not hold: the object has changed."),
    (413, "TooLarge", "The body is too large."),
    (415, "MediaType", "The body's media type is not supported."),
    (422, "Invalid", "The document is not a valid one; `errors` says which of its members, and why."),
    (429, "TooMany", "Too many requests of this caller; worth trying again after `Retry-After`."),
    (500, "Internal", "The control plane has failed; its log says more, under the request's id."),
    (503, "Unavailable", "The control plane cannot do that now; worth trying again after `Retry-After`."),
];

const ABOUT: &str = "\
The control plane of Portcullis: who may vouch for workloads, what is protected, who may do what, for how long, and why.

Writes are answered once they are durable, with the position at which they are in the log; with `wait`, also with a \
receipt that says which enforcement points have applied them. Problems are RFC 9457 documents; `errors` points to the \
members of the body that are wrong. Unknown members and parameters are refused. Names in paths are percent-encoded.";

/// The document, pretty-printed with a final newline.
pub fn openapi() -> String {
    let mut text = serde_json::to_string_pretty(&document(&routes::table())).unwrap_or_default();
    text.push('\n');
    text
}

/// `GET /openapi.json`.
pub(super) async fn show() -> Response {
    static TEXT: LazyLock<String> = LazyLock::new(openapi);
    let mut response = TEXT.as_str().into_response();
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

fn document(table: &[Operation]) -> Value {
    let settings = SchemaSettings::draft2020_12().with(|s| s.definitions_path = "/components/schemas".into());
    let mut generator = settings.into_generator();
    let mut paths = Map::new();
    let mut queries = BTreeSet::new();
    for operation in table {
        let described = describe(table, operation, &mut generator, &mut queries);
        let methods = paths.entry(operation.route.path).or_insert_with(|| json!({}));
        if let Value::Object(methods) = methods {
            methods.insert(operation.route.method.as_str().to_ascii_lowercase(), described);
        }
    }
    let problem = schema_of::<ProblemBody>(&mut generator);
    let responses: Map<String, Value> = PROBLEMS
        .iter()
        .map(|(status, name, about)| ((*name).to_owned(), problem_response(*status, about, &problem)))
        .collect();
    let mut schemas = generator.take_definitions(false);
    // Their properties are parameters.
    schemas.retain(|name, _| !queries.contains(name));
    let tags: BTreeSet<&str> = table.iter().map(tag).collect();
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "Portcullis",
            "version": env!("CARGO_PKG_VERSION"),
            "description": ABOUT,
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "security": [{ "bearer": [] }],
        "tags": tags.iter().map(|t| json!({ "name": t })).collect::<Vec<_>>(),
        "paths": paths,
        "components": {
            "schemas": schemas,
            "responses": responses,
            "headers": {
                "RequestId": {
                    "description": "The request's id, as the log has it: the caller's own if it was a tame one.",
                    "schema": { "type": "string" },
                },
                "ETag": {
                    "description": "The version of the object, for `If-Match`.",
                    "schema": { "type": "string" },
                },
                "RetryAfter": {
                    "description": "In how many seconds to try again.",
                    "schema": { "type": "string", "pattern": "^[0-9]+$" },
                },
                "Challenge": {
                    "description": "How to authenticate (RFC 6750).",
                    "schema": { "type": "string" },
                },
            },
            "securitySchemes": {
                "bearer": { "type": "http", "scheme": "bearer", "description": "An operator's token." },
            },
        },
    })
}

/// Which part of the API it belongs to.
fn tag(operation: &Operation) -> &str {
    operation.route.action.split('.').next().unwrap_or_default()
}

fn describe(
    table: &[Operation],
    operation: &Operation,
    generator: &mut SchemaGenerator,
    queries: &mut BTreeSet<String>,
) -> Value {
    let mut parameters = Vec::new();
    if let Some((description, schema)) = operation.named {
        parameters.push(json!({
            "name": placeholder(operation.route.path),
            "in": "path",
            "required": true,
            "description": description,
            "schema": schema(generator),
        }));
    }
    if let Some(query) = operation.query {
        parameters.extend(query_parameters(query, generator, queries));
    }
    parameters.extend(header_parameters(operation));
    let answers = operation.answers.iter().map(|a| (a.status.to_string(), answer(table, operation, a, generator)));
    let mut responses: Map<String, Value> = answers.collect();
    for status in problems(operation) {
        let name = PROBLEMS.iter().find(|(s, ..)| *s == status).map_or("Internal", |(_, name, _)| *name);
        responses.insert(status.to_string(), json!({ "$ref": format!("#/components/responses/{name}") }));
    }
    let mut described = json!({
        "operationId": operation.id(),
        "summary": operation.summary,
        "tags": [tag(operation)],
        "x-portcullis-action": operation.route.action,
        "responses": responses,
    });
    let mut put = |name: &str, value: Value| {
        if let Value::Object(members) = &mut described {
            members.insert(name.to_owned(), value);
        }
    };
    if !operation.description.is_empty() {
        put("description", operation.description.into());
    }
    if !parameters.is_empty() {
        put("parameters", parameters.into());
    }
    if operation.route.public {
        put("security", json!([]));
    }
    if let Some(body) = operation.body {
        let mut media = Map::from_iter([("schema".to_owned(), Value::from((body.schema)(generator)))]);
        if !operation.examples.is_empty() {
            let parsed = |json| serde_json::from_str::<Value>(json).unwrap_or_default();
            let examples = operation.examples.iter().map(|(name, json)| (*name, json!({ "value": parsed(*json) })));
            let examples = examples.map(|(name, value)| (name.to_owned(), value)).collect();
            media.insert("examples".to_owned(), Value::Object(examples));
        }
        let content = json!({ body.media_type: media });
        put("requestBody", json!({ "required": !body.optional, "content": content }));
    }
    described
}

/// The name of the part in braces.
fn placeholder(path: &str) -> &str {
    path.split_once('{').and_then(|(_, rest)| rest.split_once('}')).map_or("", |(name, _)| name)
}

/// The statuses with which it can fail.
fn problems(operation: &Operation) -> BTreeSet<u16> {
    let mut statuses: BTreeSet<u16> = operation.problems.iter().copied().collect();
    statuses.extend([500, 503]);
    if !operation.route.public {
        statuses.extend([401, 403, 429]);
    }
    if operation.named.is_some() || operation.query.is_some() {
        statuses.insert(400);
    }
    if operation.body.is_some_and(|body| body.media_type != FORM) {
        statuses.extend([400, 413, 415, 422]);
    }
    if operation.conditional {
        statuses.extend([400, 412]);
    }
    if operation.keyed {
        statuses.extend([400, 409, 422]);
    }
    // What is described as an answer is described.
    statuses.retain(|status| operation.answers.iter().all(|answer| answer.status != *status));
    statuses
}

/// The properties of the query's type, each a parameter.
fn query_parameters(query: SchemaOf, generator: &mut SchemaGenerator, queries: &mut BTreeSet<String>) -> Vec<Value> {
    let reference = query(generator);
    let name = reference.get("$ref").and_then(Value::as_str).and_then(|r| r.rsplit('/').next()).unwrap_or_default();
    queries.insert(name.to_owned());
    let Some(schema) = generator.definitions().get(name) else { return Vec::new() };
    let required: BTreeSet<&str> =
        schema.get("required").and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect();
    let properties = schema.get("properties").and_then(Value::as_object);
    let parameter = |(name, schema): (&String, &Value)| {
        let mut schema = schema.clone();
        let description = schema.as_object_mut().and_then(|s| s.remove("description")).unwrap_or_default();
        json!({
            "name": name,
            "in": "query",
            "required": required.contains(name.as_str()),
            "description": description,
            "schema": not_null(schema),
        })
    };
    properties.into_iter().flatten().map(parameter).collect()
}

/// In a query there is no null: what may be left out is left out.
fn not_null(mut schema: Value) -> Value {
    let is_null = |s: &Value| s.get("type").is_some_and(|t| t == "null");
    if let Some(choices) = schema.get("anyOf").and_then(Value::as_array)
        && let [one, other] = choices.as_slice()
        && is_null(other)
    {
        return one.clone();
    }
    if let Some(kind) = schema.get_mut("type")
        && let Some([one, other]) = kind.as_array().map(Vec::as_slice)
        && other == "null"
    {
        *kind = one.clone();
    }
    schema
}

fn header_parameters(operation: &Operation) -> Vec<Value> {
    let parameter = |name: &str, description: &str, schema: Value| json!({ "name": name, "in": "header", "required": false, "description": description, "schema": schema });
    let mut parameters = Vec::new();
    if operation.conditional {
        let tags = "Only if the object is this version: entity tags, or `*` for any.";
        parameters.push(parameter("If-Match", tags, json!({ "type": "string" })));
        let absent = "Only if there is no such object.";
        parameters.push(parameter("If-None-Match", absent, json!({ "const": "*" })));
    }
    if operation.streams {
        let about = "The `id` of the last event that was seen; the stream goes on after it.";
        parameters.push(parameter("Last-Event-ID", about, json!({ "type": "string" })));
    }
    if operation.keyed {
        let about = "Sent again with the same key, path and body within a day, the request does nothing more and is answered \
                     as before, with `Idempotency-Replayed: true`. With another path or body the key is refused. Best a \
                     new UUID.";
        let schema = json!({ "type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!-~]+$" });
        parameters.push(parameter("Idempotency-Key", about, schema));
    }
    parameters
}

fn answer(table: &[Operation], operation: &Operation, answer: &Answer, generator: &mut SchemaGenerator) -> Value {
    let mut headers = json!({ "x-request-id": { "$ref": "#/components/headers/RequestId" } });
    if let Value::Object(headers) = &mut headers {
        if operation.tagged {
            headers.insert("ETag".to_owned(), json!({ "$ref": "#/components/headers/ETag" }));
        }
        if answer.status == 201 && operation.located {
            let about = json!({ "description": "Where it is.", "schema": { "type": "string" } });
            headers.insert("Location".to_owned(), about);
        }
    }
    let content: Map<String, Value> =
        answer.content.iter().map(|(kind, s)| ((*kind).to_owned(), json!({ "schema": s(generator) }))).collect();
    let mut described = json!({ "description": answer.description, "headers": headers });
    if let Value::Object(members) = &mut described
        && !content.is_empty()
    {
        members.insert("content".to_owned(), content.into());
        let links = links(table, operation);
        if !links.is_empty() {
            members.insert("links".to_owned(), links.into());
        }
    }
    described
}

/// What can be done with what it has made.
fn links(table: &[Operation], operation: &Operation) -> Map<String, Value> {
    let link = |(id, pointer): &(&str, &str)| {
        let target = table.iter().find(|o| o.id() == *id)?;
        let mut link = json!({
            "operationId": id,
            "parameters": { placeholder(target.route.path): format!("$response.body#{pointer}") },
        });
        if let (Value::Object(members), true) = (&mut link, matches!(*id, "grant_approve" | "grant_deny")) {
            // A vote carries the digest of what was asked for.
            members.insert("requestBody".to_owned(), json!({ "digest": "$response.body#/object/digest" }));
        }
        Some(((*id).to_owned(), link))
    };
    operation.links.iter().filter_map(link).collect()
}

fn problem_response(status: u16, about: &str, problem: &schemars::Schema) -> Value {
    let mut headers = json!({ "x-request-id": { "$ref": "#/components/headers/RequestId" } });
    let more = match StatusCode::from_u16(status) {
        Ok(StatusCode::UNAUTHORIZED) => Some(("WWW-Authenticate", "Challenge")),
        Ok(StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) => Some(("Retry-After", "RetryAfter")),
        _ => None,
    };
    if let (Value::Object(headers), Some((name, component))) = (&mut headers, more) {
        headers.insert(name.to_owned(), json!({ "$ref": format!("#/components/headers/{component}") }));
    }
    json!({
        "description": about,
        "headers": headers,
        "content": { "application/problem+json": { "schema": problem } },
    })
}

#[cfg(test)]
mod tests;
