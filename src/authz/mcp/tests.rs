//! Tests of reading messages: tables of what is refused, and that no parser finds another method or name in what is not.
//!
//! The corpus that doors share is `tests/decisions/mcp.yaml`; here is what takes bytes that are no text, and properties.
//! Pure, like the module; a failure prints the body.

mod carriage;
mod headers;

use proptest::prelude::*;
use serde_json::{Value, json};
use smallvec::SmallVec;

use super::*;
use crate::authz::{Door, Header, Peer};
use crate::object::McpRoute;
use crate::policy::McpValue;

const LEGACY: &[(&str, &str)] = &[("content-type", "application/json"), ("mcp-protocol-version", "2025-11-25")];

fn terms() -> McpTerms {
    let route: McpRoute = serde_json::from_value(json!({
        "arguments": {
            "amount": {"type": "long", "at": "/order/amount"}, "repo": {"type": "string"},
            "force": {"type": "boolean"}, "key": {"type": "string", "at": "/kelvin"},
        },
    }))
    .unwrap();
    McpTerms::compile("desk", &route).unwrap()
}

fn request<'a>(method: &'a str, headers: &'a [(&'a str, &'a str)], body: Option<&'a [u8]>) -> Request<'a> {
    let headers: SmallVec<_> =
        headers.iter().map(|(name, value)| Header { name: name.as_bytes(), value: value.as_bytes() }).collect();
    Request {
        door: Door::ExtAuthz,
        method,
        path: "/mcp",
        host: "h",
        scheme: "https",
        headers,
        partial_body: false,
        body,
        peer: Peer::default(),
    }
}

/// What a message is, its method, what it names, and its arguments.
type Seen = (McpMessage, String, String, Vec<(String, McpValue<'static>)>);

/// The code of a refusal.
fn code(refusal: &str) -> String {
    refusal.split(':').next().unwrap_or_default().to_owned()
}

fn facts(headers: &[(&str, &str)], body: &[u8]) -> Result<Seen, String> {
    let terms = terms();
    let request = request("POST", headers, Some(body));
    let facts = read(&request, &terms).map_err(|(reason, detail)| format!("{reason}: {detail}"))?;
    let owned = |value: &McpValue<'_>| match value {
        McpValue::Text(text) => McpValue::Text(text.clone().into_owned().into()),
        McpValue::Long(long) => McpValue::Long(*long),
        McpValue::Boolean(boolean) => McpValue::Boolean(*boolean),
    };
    let target = facts.tool.as_deref().or(facts.prompt.as_deref()).or(facts.resource.as_deref());
    Ok((
        facts.message,
        facts.method.as_deref().unwrap_or_default().to_owned(),
        target.unwrap_or_default().to_owned(),
        facts.arguments.iter().map(|(name, value)| ((*name).to_owned(), owned(value))).collect(),
    ))
}

fn legacy(body: &str) -> Result<Seen, String> {
    facts(LEGACY, body.as_bytes())
}

#[test]
fn what_a_message_is_and_names() {
    use McpMessage::{Notification, Request, Response};
    for (body, message, method, target) in [
        (r#"{"jsonrpc":"2.0","id":1,"method":"tools/list"}"#, Request, "tools/list", ""),
        (r#"{"jsonrpc":"2.0","id":"a","method":"tools/call","params":{"name":"x"}}"#, Request, "tools/call", "x"),
        (r#"{"params":{"name":"x"},"method":"tools/call","id":99999999999999999999,"jsonrpc":"2.0"}"#, Request, "", ""),
        (
            r#"{"params":{"name":"x"},"method":"tools/call","id":9007199254740993,"jsonrpc":"2.0"}"#,
            Request,
            "tools/call",
            "x",
        ),
        (r#"{"jsonrpc":"2.0","method":"tools/call","params":{"name":"x"}}"#, Notification, "tools/call", "x"),
        (r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#, Notification, "notifications/initialized", ""),
        (r#"{"jsonrpc":"2.0","id":1,"result":{"name":"x"}}"#, Response, "", ""),
        (r#"{"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"m"}}"#, Response, "", ""),
        (r#"{"jsonrpc":"2.0","error":{"code":-1,"message":"m"}}"#, Response, "", ""),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"prompts/get","params":{"name":"p","arguments":{"repo":7}}}"#,
            Request,
            "prompts/get",
            "p",
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"file:///a"}}"#,
            Request,
            "resources/read",
            "file:///a",
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"completion/complete","params":{"ref":{"type":"ref/prompt","name":"p"}}}"#,
            Request,
            "completion/complete",
            "p",
        ),
        (
            r#"{"jsonrpc":"2.0","id":1,"method":"completion/complete","params":{"ref":{"type":"ref/resource","uri":"a:b"}}}"#,
            Request,
            "completion/complete",
            "a:b",
        ),
        (
            "{\"jsonrpc\":\"2.0\",\"id\":1,\"m\\u0065thod\":\"tools\\/call\",\"params\":{\"n\\u0061me\":\"\\u0078\"}}",
            Request,
            "tools/call",
            "x",
        ),
    ] {
        match legacy(body) {
            // An id beyond every integer is no integer to this parser.
            Err(_) => assert!(method.is_empty() && message == Request, "{body}"),
            Ok(read) => assert_eq!((read.0, &*read.1, &*read.2), (message, method, target), "{body}"),
        }
    }
}

#[test]
fn arguments_are_found_where_the_route_has_them() {
    let call = |arguments: &str| {
        legacy(&format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"x","arguments":{arguments}}}}}"#
        ))
        .map(|read| read.3)
    };
    let long = |value| ("amount".to_owned(), McpValue::Long(value));
    assert_eq!(call("{}"), Ok(vec![]));
    assert_eq!(call("null"), Ok(vec![]));
    assert_eq!(call(r#"{"order":null,"repo":null}"#), Ok(vec![]), "null is as good as absent");
    assert_eq!(call(r#"{"order":{"amount":-7,"x":[{"amount":"no"}]}}"#), Ok(vec![long(-7)]));
    assert_eq!(call(r#"{"amount":1,"x":{"order":{"amount":2}}}"#), Ok(vec![]), "elsewhere it is another argument");
    assert_eq!(
        call(r#"{"force":true,"repo":"a\nb","order":{"amount":9007199254740991}}"#),
        Ok(vec![
            ("force".to_owned(), McpValue::Boolean(true)),
            ("repo".to_owned(), McpValue::Text("a\nb".into())),
            long(9_007_199_254_740_991),
        ])
    );
    for bad in [
        r#"{"order":{"amount":1.0}}"#,
        r#"{"order":{"amount":1e2}}"#,
        r#"{"order":{"amount":"1"}}"#,
        r#"{"order":{"amount":9007199254740992}}"#,
        r#"{"order":{"amount":18446744073709551615}}"#,
        r#"{"order":{"amount":[1]}}"#,
        r#"{"order":[{"amount":1}]}"#,
        r#"{"order":"amount"}"#,
        r#"{"Order":{"amount":1}}"#,
        r#"{"order":{"Amount":1}}"#,
        r#"{"order":{"amount":1,"AMOUNT":1000}}"#,
        r#"{"force":"true"}"#,
        r#"{"force":1}"#,
        r#"{"repo":1}"#,
        r#"{"\u212aelvin":"Go takes the Kelvin sign for a k"}"#,
        r#"["amount"]"#,
        r#""amount""#,
        "7",
        "true",
    ] {
        assert!(call(bad).is_err_and(|e| e.starts_with("input.malformed")), "{bad}: {:?}", call(bad));
    }
}

#[test]
fn what_parsers_could_read_differently_is_refused() {
    let deep = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"x","a":{}1{}}}}}"#,
        "[".repeat(40),
        "]".repeat(40)
    );
    let wide: Vec<String> = (0..1100).map(|n| format!(r#""k{n}":1"#)).collect();
    let wide = format!(r#"{{"jsonrpc":"2.0","id":1,"method":"ping","params":{{{}}}}}"#, wide.join(","));
    let large =
        format!(r#"{{"jsonrpc":"2.0","id":1,"method":"ping","params":{{"a":"{}"}}}}"#, "a".repeat(MAX_MCP_BODY));
    let call = |members: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call",{members}}}"#);
    let mut bodies: Vec<Vec<u8>> = [
        deep,
        wide,
        large,
        // Duplicates and variants.
        call(r#""params":{"name":"a","name":"b"}"#),
        call(r#""params":{"name":"a","n\u0061me":"b"}"#),
        call(r#""params":{"name":"a","Name":"b"}"#),
        call(r#""params":{"name":"a","URI":"b"}"#),
        call(r#""params":{"name":"a","Arguments":{}}"#),
        call(r#""params":{"name":"a"},"Params":{"name":"b"}"#),
        call("\"params\":{\"name\":\"a\"},\"param\u{17f}\":{\"name\":\"b\"}"),
        call(r#""params":{"name":"a","arguments":{"x":[{"y":1,"y":2}]}}"#),
        call(r#""params":{"name":"a"},"method":"ping""#),
        call(r#""METHOD":"ping","params":{"name":"a"}"#),
        call(r#""params":{"name":"a"},"extra":1"#),
        // Not what they have to be.
        call(r#""params":["a"]"#),
        call(r#""params":"name""#),
        call(r#""params":null"#),
        call(r#""params":{}"#),
        call(r#""params":{"name":7}"#),
        call(r#""params":{"name":""}"#),
        call(r#""params":{"name":"a\u0000b"}"#),
        call(r#""params":{"name":"\ud800"}"#),
        call(&format!(r#""params":{{"name":"{}"}}"#, "a".repeat(300))),
        call(r#""params":{"name":"a"},"result":{}"#),
        call(r#""params":{"name":"a"}"#) + "{}",
        call(r#""params":{"name":"a"}"#) + "\u{0}",
        format!("\u{feff}{}", call(r#""params":{"name":"a"}"#)),
        format!("[{}]", call(r#""params":{"name":"a"}"#)),
        "[]".to_owned(),
        "null".to_owned(),
        "{}".to_owned(),
        "x".to_owned(),
        r#"{"jsonrpc":"2.0","id":1}"#.to_owned(),
        r#"{"jsonrpc":"2.0","id":1,"params":{"name":"a"}}"#.to_owned(),
        r#"{"jsonrpc":"2.0","id":1,"result":{},"params":{"name":"a"}}"#.to_owned(),
        r#"{"jsonrpc":"2.0","id":1,"result":{},"error":{}}"#.to_owned(),
        r#"{"jsonrpc":"2.0","result":{}}"#.to_owned(),
        r#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#.to_owned(),
        r#"{"jsonrpc":2.0,"id":1,"method":"ping"}"#.to_owned(),
        r#"{"id":1,"method":"ping"}"#.to_owned(),
        r#"{"jsonrpc":"2.0","id":null,"method":"ping"}"#.to_owned(),
        r#"{"jsonrpc":"2.0","id":1.5,"method":"ping"}"#.to_owned(),
        r#"{"jsonrpc":"2.0","id":[1],"method":"ping"}"#.to_owned(),
        r#"{"jsonrpc":"2.0","id":1,"method":7}"#.to_owned(),
        r#"{"jsonrpc":"2.0","id":1,"method":""}"#.to_owned(),
        r#"{"jsonrpc":"2.0","id":1,"method":"Tools/Call","params":{"name":"a"}}"#.to_owned(),
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call ","params":{"name":"a"}}"#.to_owned(),
        r#"{"jsonrpc":"2.0","id":1,"method":"resources/read","params":{"uri":"file:///a/../b"}}"#.to_owned(),
        r#"{"jsonrpc":"2.0","id":1,"method":"completion/complete","params":{"ref":{"type":"x","name":"p"}}}"#
            .to_owned(),
        r#"{"jsonrpc":"2.0","id":1,"method":"completion/complete","params":{"ref":{"type":"ref/prompt","Name":"p"}}}"#
            .to_owned(),
    ]
    .into_iter()
    .map(String::into_bytes)
    .collect();
    bodies.push(b"{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"tools/call\",\"params\":{\"name\":\"\xff\"}}".to_vec());
    bodies.push("{\"jsonrpc\":\"2.0\"}".encode_utf16().flat_map(u16::to_le_bytes).collect());
    for body in bodies {
        let read = facts(LEGACY, &body);
        assert!(read.as_ref().is_err_and(|e| e.starts_with("input.malformed")), "{}: {read:?}", body.escape_ascii());
    }
}

#[test]
fn errors_tell_nothing_of_the_client() {
    for body in [
        r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":"hunter2"}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"ping","params":{"_meta":"hunter2"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"ping","hunter2":1}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"ping" hunter2"#,
        r#"hunter2"#,
    ] {
        let wrong = legacy(body).unwrap_err();
        assert!(!wrong.contains("hunter2"), "{wrong}");
    }
}

#[test]
fn a_get_or_delete_has_no_message() {
    let terms = terms();
    let kind = |method: &str, headers: &[(&str, &str)], body: Option<&[u8]>| {
        read(&request(method, headers, body), &terms).map(|facts| facts.message).map_err(|(reason, _)| reason)
    };
    let version = [("MCP_Protocol-Version", " 2025-06-18 ")];
    assert_eq!(kind("GET", &version, None), Ok(McpMessage::Stream));
    assert_eq!(kind("DELETE", &version, Some(b"")), Ok(McpMessage::End));
    assert_eq!(kind("GET", &[], None), Err(Reason::InputMalformed));
    assert_eq!(kind("GET", &[("mcp-protocol-version", "2024-11-05")], None), Err(Reason::InputMalformed));
    assert_eq!(kind("GET", &[("mcp-protocol-version", "2026-07-28")], None), Err(Reason::InputMalformed));
    assert_eq!(kind("DELETE", &[("mcp-protocol-version", "2026-07-28")], None), Err(Reason::InputMalformed));
    assert_eq!(kind("GET", &version, Some(b"{}")), Err(Reason::InputMalformed));
    assert_eq!(kind("PUT", &version, None), Err(Reason::InputMalformed));
    let named = [version[0], ("mcp-name", "x")];
    assert_eq!(kind("GET", &named, None), Err(Reason::InputHeaderMismatch));
    let twice = [version[0], ("mcp-session-id", "a"), ("Mcp-Session-Id", "a")];
    assert_eq!(kind("GET", &twice, None), Err(Reason::InputDuplicateHeader));
    assert_eq!(kind("POST", LEGACY, None), Err(Reason::InputBodyTruncated));
    let empty = [LEGACY[0], LEGACY[1], ("content-length", "0")];
    assert_eq!(kind("POST", &empty, None), Err(Reason::InputMalformed));
}

#[test]
fn a_body_that_is_not_plain_json_is_not_read() {
    let body = br#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
    let read = |headers: &[(&str, &str)]| {
        let version = ("mcp-protocol-version", "2025-11-25");
        facts(&[&[version], headers].concat(), body).map(|_| ()).map_err(|e| code(&e))
    };
    for good in [
        &[("content-type", "application/json")][..],
        &[("Content-Type", "Application/JSON; charset=\"UTF-8\"")],
        &[("content-type", "application/json"), ("content-encoding", "identity")],
    ] {
        assert_eq!(read(good), Ok(()), "{good:?}");
    }
    for bad in [
        &[][..],
        &[("content-type", "text/plain")],
        &[("content-type", "application/json; charset=utf-16")],
        &[("content-type", "application/json; charset=utf-8; charset=utf-7")],
        &[("content-type", "application/json, text/plain")],
        &[("content-type", "application/json; boundary=x")],
        &[("content-type", "application/json"), ("content-encoding", "deflate")],
    ] {
        assert_eq!(read(bad), Err("input.malformed".to_owned()), "{bad:?}");
    }
}

/// JSON that is a message, nearly one, or nothing of the kind; members in any order, some twice, some in another case.
fn any_body() -> impl Strategy<Value = String> {
    let text = prop::sample::select(vec![
        r#""tools/call""#,
        r#""tools\/call""#,
        r#""prompts/get""#,
        r#""a""#,
        r#""\u0061""#,
        r#""é""#,
        r#""2.0""#,
        "7",
        "1.5",
        "null",
        "{}",
        r#"["a"]"#,
        r#"{"name":"b"}"#,
        r#"{"name":"a","name":"b"}"#,
    ]);
    let inner =
        prop::sample::select(vec![r#""name""#, r#""n\u0061me""#, r#""Name""#, r#""uri""#, r#""arguments""#, r#""x""#]);
    let params = prop::collection::vec((inner, text.clone()), 0..4)
        .prop_map(|members| members.iter().map(|(k, v)| format!("{k}:{v}")).collect::<Vec<_>>().join(","))
        .prop_map(|members| format!("{{{members}}}"));
    let member = prop_oneof![
        4 => Just(r#""jsonrpc":"2.0""#.to_owned()),
        4 => Just(r#""method":"tools/call""#.to_owned()),
        4 => Just(r#""id":1"#.to_owned()),
        6 => params.prop_map(|params| format!(r#""params":{params}"#)),
        1 => (prop::sample::select(vec!["\"method\"", "\"Method\"", "\"m\\u0065thod\"", "\"params\"", "\"x\""]), text)
            .prop_map(|(k, v)| format!("{k}:{v}")),
    ];
    prop::collection::vec(member, 3..6).prop_map(|members| format!("{{{}}}", members.join(",")))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn every_parser_finds_the_same_in_what_is_accepted(body in any_body(), cut in 0..400_usize, byte in any::<u8>()) {
        let mut bytes = body.into_bytes();
        // Most of them as they are, some with a byte changed.
        if let Some(at) = bytes.get_mut(cut) {
            *at = byte;
        }
        if let Ok((_, method, target, _)) = facts(LEGACY, &bytes) {
            let value: Value = serde_json::from_slice(&bytes).unwrap();
            prop_assert_eq!(value["method"].as_str().unwrap_or_default(), &method);
            if matches!(&*method, "tools/call" | "prompts/get") {
                prop_assert_eq!(value["params"]["name"].as_str(), Some(&*target));
            }
            // The first of two members and the last of them are the same, because there are no two; and a parser that
            // does not look at case finds no other.
            let text = String::from_utf8(bytes).unwrap();
            let folded: Value = serde_json::from_str(&text.to_lowercase()).unwrap();
            prop_assert_eq!(folded["params"]["name"].as_str().map(str::to_owned), value["params"]["name"].as_str().map(str::to_lowercase));
        }
    }

    #[test]
    fn any_bytes_are_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let _ = facts(LEGACY, &bytes);
        let _ = filter_tools(&bytes, |_| vec![]);
        let _ = EventFilter::default().push(&bytes, |_| vec![]);
    }
}
