//! Tests of what headers say and messages do not: version 2026-07-28, whose clients repeat themselves, and the older ones.
//!
//! Pure, like the module. Each header is left out, changed and doubled in turn.

use serde_json::json;

use super::{LEGACY, code, facts};

/// A message, and headers that say what it says, as a client of 2026-07-28 sends them.
fn modern(method: &str, name: Option<&str>) -> (String, Vec<(&'static str, String)>) {
    use base64::Engine as _;
    let mut params = json!({"_meta": {"io.modelcontextprotocol/protocolVersion": "2026-07-28"}});
    let mut headers = vec![
        ("content-type", "application/json".to_owned()),
        ("mcp-protocol-version", "2026-07-28".to_owned()),
        ("mcp-method", method.to_owned()),
    ];
    if let Some(name) = name {
        params[if method == "resources/read" { "uri" } else { "name" }] = json!(name);
        let plain =
            name.bytes().all(|b| (b' '..=b'~').contains(&b)) && name.trim() == name && !name.starts_with("=?base64?");
        let encoded = || format!("=?base64?{}?=", base64::engine::general_purpose::STANDARD.encode(name));
        headers.push(("mcp-name", if plain { name.to_owned() } else { encoded() }));
    }
    (json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string(), headers)
}

fn modern_reason(body: &str, headers: &[(&'static str, String)]) -> String {
    let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, &**value)).collect();
    match facts(&headers, body.as_bytes()) {
        Ok((_, method, target, _)) => format!("{method} {target}"),
        Err(e) => e.split(':').next().unwrap_or_default().to_owned(),
    }
}

#[test]
fn headers_of_the_newest_version_repeat_the_message() {
    for (method, name) in [
        ("tools/call", Some("get_weather")),
        ("tools/call", Some("Hello, 世界")),
        ("tools/call", Some(" padded ")),
        ("tools/call", Some("=?base64?literal?=")),
        ("prompts/get", Some("p")),
        ("resources/read", Some("file:///a/b.json")),
        ("tools/list", None),
        ("server/discover", None),
        ("subscriptions/listen", None),
    ] {
        let (body, headers) = modern(method, name);
        assert_eq!(modern_reason(&body, &headers), format!("{method} {}", name.unwrap_or_default()));
        for left_out in 1..headers.len() {
            let mut fewer = headers.clone();
            let (gone, _) = fewer.remove(left_out);
            let reason = if gone == "mcp-protocol-version" { "input.malformed" } else { "input.header_mismatch" };
            assert_eq!(modern_reason(&body, &fewer), reason, "{method} without {gone}");
        }
        for changed in 2..headers.len() {
            for value in ["other", "", "=?base64?b3RoZXI=?=", "=?base64?!?=", "=?BASE64?b3RoZXI=?="] {
                let mut changed_headers = headers.clone();
                value.clone_into(&mut changed_headers[changed].1);
                assert_eq!(modern_reason(&body, &changed_headers), "input.header_mismatch", "{method} {value}");
            }
            let mut twice = headers.clone();
            twice.push(twice[changed].clone());
            assert_eq!(modern_reason(&body, &twice), "input.duplicate_header", "{method}");
        }
    }
    let (body, headers) = modern("tools/call", Some("x"));
    let other = body.replace("2026-07-28", "2025-11-25");
    assert_eq!(modern_reason(&other, &headers), "input.header_mismatch", "the version in the message is another");
    let none = body.replace("io.modelcontextprotocol/protocolVersion", "other");
    assert_eq!(modern_reason(&none, &headers), "input.header_mismatch", "the version in the message is missing");
    let response = r#"{"jsonrpc":"2.0","id":1,"result":{}}"#;
    assert_eq!(modern_reason(response, &headers[..2]), "input.malformed", "clients have no responses");
    let notification = r#"{"jsonrpc":"2.0","method":"notifications/x"}"#;
    assert_eq!(modern_reason(notification, &headers[..2]), "notifications/x ");
    let task = r#"{"jsonrpc":"2.0","id":1,"method":"tasks/get","params":{"taskId":"t","_meta":{"io.modelcontextprotocol/protocolVersion":"2026-07-28"}}}"#;
    let of_task = |name: &str| {
        let more = [("mcp-method", "tasks/get".to_owned()), ("mcp-name", name.to_owned())];
        modern_reason(task, &[&headers[..2], &more].concat())
    };
    assert_eq!((of_task("t"), of_task("u")), ("tasks/get ".to_owned(), "input.header_mismatch".to_owned()));
}

#[test]
fn a_header_that_is_not_needed_still_has_to_be_true() {
    let body = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"x"}}"#;
    let with = |more: &[(&str, &str)]| facts(&[LEGACY, more].concat(), body.as_bytes()).map_err(|e| code(&e));
    assert!(with(&[("mcp-method", "tools/call"), ("mcp-name", "x")]).is_ok());
    for bad in [("mcp-method", "ping"), ("mcp-name", "y"), ("Mcp_Name", "y")] {
        assert_eq!(with(&[bad]).unwrap_err(), "input.header_mismatch");
    }
    // The first message of a session may come without a version; nothing else may.
    let bare = &LEGACY[..1];
    let first = r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-11-25"}}"#;
    assert!(facts(bare, first.as_bytes()).is_ok());
    assert!(facts(bare, body.as_bytes()).is_err());
    let unknown = [LEGACY[0], ("mcp-protocol-version", "2025-03-26")];
    assert!(facts(&unknown, first.as_bytes()).is_err());
}

#[test]
fn the_name_in_the_header_is_the_one_that_the_method_is_about() {
    let said = |method: &str, name: &str| {
        let params =
            json!({"name": "a", "uri": "file:///b", "taskId": "c", "ref": {"type": "ref/prompt", "name": "p"}});
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params}).to_string();
        facts(&[LEGACY, &[("mcp-name", name)]].concat(), body.as_bytes()).map(|_| ()).map_err(|e| code(&e))
    };
    for (method, right) in [
        ("tools/call", "a"),
        ("prompts/get", "a"),
        ("resources/read", "file:///b"),
        ("resources/subscribe", "file:///b"),
        ("tasks/get", "c"),
        ("tasks/cancel", "c"),
        ("ping", ""),
        ("tools/list", ""),
        ("completion/complete", ""),
    ] {
        for name in ["a", "file:///b", "c", "p"] {
            let expected = if name == right { Ok(()) } else { Err("input.header_mismatch".to_owned()) };
            assert_eq!(said(method, name), expected, "{method} {name}");
        }
    }
}
