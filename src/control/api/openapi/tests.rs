//! The table of operations against itself, its document, and the one that is checked in.

use super::*;

#[test]
fn the_checked_in_document_is_what_the_table_says() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/openapi.json");
    if std::env::var_os("RENEW").is_some() {
        std::fs::write(path, openapi()).unwrap();
    }
    let checked_in = std::fs::read_to_string(path).unwrap_or_default();
    let renew = "RENEW=1 cargo test --lib openapi (or: portcullis config openapi > docs/openapi.json)";
    assert!(checked_in == openapi(), "docs/openapi.json is not what the table of operations says; renew it: {renew}");
}

#[test]
fn every_operation_has_an_id_of_its_own_and_an_action() {
    let table = routes::table();
    let mut ids = BTreeSet::new();
    for operation in &table {
        let at = format!("{} {}", operation.route.method.as_str(), operation.route.path);
        assert!(ids.insert(operation.id()), "{at}: the id is taken");
        let named = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        assert!(operation.route.action.split('.').count() == 2, "{at}");
        assert!(operation.route.action.split('.').all(named), "{at}");
        assert!(!operation.answers.is_empty(), "{at}: no way to succeed");
        assert_eq!(operation.named.is_some(), operation.route.path.contains('{'), "{at}");
        for (id, _) in &operation.links {
            assert!(table.iter().any(|o| o.id() == *id), "{at}: there is no `{id}`");
        }
        for (name, json) in &operation.examples {
            assert!(serde_json::from_str::<Value>(json).is_ok_and(|value| value.is_object()), "{at}: `{name}`");
        }
        for status in &operation.problems {
            assert!(PROBLEMS.iter().any(|(s, ..)| s == status), "{at}: {status} is not described");
        }
    }
}

#[test]
fn every_reference_leads_somewhere_and_everything_is_described() {
    let document = document(&routes::table());
    let mut references = Vec::new();
    collect(&document, &mut references);
    assert!(references.len() > 100);
    for reference in references {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        assert!(schema.get("description").is_some(), "`{name}` is not described");
    }
    assert_eq!(document["paths"]["/openapi.json"]["get"]["security"], json!([]));
}

fn collect(value: &Value, into: &mut Vec<String>) {
    match value {
        Value::Object(members) => members.iter().for_each(|(name, value)| match value {
            Value::String(target) if name == "$ref" => into.push(target.clone()),
            other => collect(other, into),
        }),
        Value::Array(items) => items.iter().for_each(|item| collect(item, into)),
        _ => {}
    }
}
