//! Tests of `context.mcp`: what is read of it, what is refused in a policy, and that equal keys are equal answers.
//!
//! The last is differential: generated policies and messages, evaluated with what is read and with everything.
//! Pure, like the module; a failure prints the policy text.

use proptest::prelude::*;
use serde_json::json;

use super::super::{CompiledPolicies, Facts, Names, Outcome, PrincipalEntity, Reads, ResourceEntity, validate};
use super::*;
use crate::object;

fn arguments() -> BTreeMap<String, ArgumentType> {
    [("amount", ArgumentType::Long), ("force", ArgumentType::Boolean), ("repo", ArgumentType::String)]
        .map(|(name, kind)| (name.to_owned(), kind))
        .into()
}

fn compile(text: &str) -> CompiledPolicies {
    let set = object::PolicySet::new(text.to_owned(), "test".to_owned(), vec![]).with_arguments(arguments());
    CompiledPolicies::compile(&set).unwrap_or_else(|e| panic!("{text}: {e}"))
}

fn reads(condition: &str) -> McpReads {
    compile(&format!(r#"@id("p") permit(principal, action, resource) when {{ {condition} }};"#)).reads().mcp
}

fn workload() -> PrincipalEntity {
    let document = json!({"id": "spiffe://a/w", "kind": "agent", "owner": "team", "environment": "production"});
    PrincipalEntity::new(&serde_json::from_value(document).unwrap()).unwrap()
}

fn call<'a>(tool: Option<&'a str>, arguments: Vec<(&'a str, McpValue<'a>)>) -> McpFacts<'a> {
    let method = Some(Cow::Borrowed(if tool.is_some() { "tools/call" } else { "tools/list" }));
    let tool = tool.map(Cow::Borrowed);
    McpFacts { method, tool, arguments, ..McpFacts::new("desk", McpMessage::Request, Some("2025-11-25")) }
}

fn ask(policies: &CompiledPolicies, mcp: Option<&McpFacts<'_>>) -> Outcome {
    let resource = ResourceEntity::new("desk", "desk/mcp").unwrap();
    let facts = Facts { method: "POST", path: "/mcp", host: "h", transaction: None, asked: None, mcp };
    policies.evaluate(&workload(), "write", &resource, facts, None)
}

fn key(mcp: &McpFacts<'_>, reads: McpReads) -> Vec<(u8, Vec<u8>)> {
    let mut key = Vec::new();
    mcp.encode(reads, 13, &mut |tag, bytes: &[u8]| key.push((tag, bytes.to_vec())));
    key
}

#[test]
fn only_attributes_that_are_read_are_given_and_keyed() {
    let tool = McpReads::of("tool");
    assert_eq!(reads("true"), McpReads::NONE);
    assert_eq!(reads("context has mcp"), McpReads::PRESENCE);
    assert_eq!(reads(r#"context has mcp && context.mcp has tool && context.mcp.tool == "a""#), tool);
    assert_eq!(reads(r#"context has mcp.tool && context.mcp.tool == "a""#), tool);
    assert_eq!(reads("context has mcp && context.mcp.arguments has amount"), McpReads::of("arguments"));
    assert_eq!(
        reads(r#"context has mcp && context.mcp.message == "end" && context.mcp has tool"#),
        tool.union(McpReads::of("message"))
    );
    assert_eq!(reads("context has mcp && context.mcp == context.mcp"), McpReads::ALL, "opaque use reads everything");
    assert_eq!(reads("context == context"), McpReads::ALL);
    assert_eq!(McpReads::of("something"), McpReads::ALL);

    let asked = call(Some("refund"), vec![("amount", McpValue::Long(7))]);
    assert_eq!(key(&asked, McpReads::NONE), []);
    assert_eq!(key(&asked, McpReads::PRESENCE), []);
    assert_eq!(key(&asked, tool), [(17, b"refund".to_vec())]);
    let amount = [(20, b"amount".to_vec()), (22, 7_i64.to_le_bytes().to_vec())];
    assert_eq!(key(&asked, McpReads::of("arguments")), amount);
    assert_eq!(key(&call(None, vec![]), tool), [], "an absent tool is not an empty one");
}

#[test]
fn a_policy_about_arguments_is_checked_against_their_types() {
    let judged = |condition: &str| {
        let text = format!(r#"@id("p") permit(principal, action, resource) when {{ {condition} }};"#);
        validate(&text, Names { actions: &[], arguments: &arguments() })
    };
    let guarded = "context has mcp && context.mcp.arguments has amount && context.mcp.arguments.amount";
    assert!(judged(&format!("{guarded} < 100")).is_ok());
    for bad in [
        &*format!(r#"{guarded} == "100""#),
        "context has mcp && context.mcp.arguments.amount < 100",
        "context has mcp && context.mcp.arguments has amout",
        r#"context.mcp.tool == "refund""#,
        r#"context has mcp && context.mcp.tool == "refund""#,
    ] {
        // Presence of what no schema has is an error of strict validation, or can never be true.
        let report = judged(bad);
        let never = bad.ends_with("amout");
        assert!(report.is_err() || never, "{bad}");
        if never && report.is_ok() {
            let policies = compile(&format!(r#"@id("p") permit(principal, action, resource) when {{ {bad} }};"#));
            assert_eq!(ask(&policies, Some(&call(Some("refund"), vec![]))), Outcome::NoMatch);
        }
    }
}

#[test]
fn rules_about_tools_and_arguments_decide() {
    let policies = compile(
        r#"
        @id("handshake") permit(principal, action, resource)
            when { context has mcp.method && ["initialize", "tools/list"].contains(context.mcp.method) };
        @id("small") permit(principal, action, resource)
            when { context has mcp.tool && context.mcp.tool == "refund"
                   && context.mcp.arguments has amount && context.mcp.arguments.amount <= 100 };
        @id("forced") forbid(principal, action, resource)
            when { context has mcp && context.mcp.arguments has force && context.mcp.arguments.force };
        "#,
    );
    let refund = |amount: i64, force: bool| {
        let arguments = vec![("amount", McpValue::Long(amount)), ("force", McpValue::Boolean(force))];
        ask(&policies, Some(&call(Some("refund"), arguments)))
    };
    assert!(matches!(refund(100, false), Outcome::Allow(_)));
    assert_eq!(refund(101, false), Outcome::NoMatch);
    assert!(matches!(refund(1, true), Outcome::Forbid(_)));
    assert_eq!(ask(&policies, Some(&call(Some("refund"), vec![]))), Outcome::NoMatch);
    assert!(matches!(ask(&policies, Some(&call(None, vec![]))), Outcome::Allow(_)));
    assert_eq!(ask(&policies, None), Outcome::NoMatch, "no message where the route has none");
    // A value of another type than the policies were checked with fails to evaluate, and so denies.
    let wrong = call(Some("refund"), vec![("amount", McpValue::Text("1".into()))]);
    assert!(matches!(ask(&policies, Some(&wrong)), Outcome::Error(_)));
}

fn any_facts() -> impl Strategy<Value = McpFacts<'static>> {
    let pick = |values: &'static [&'static str]| prop::option::of(prop::sample::select(values));
    let kind = prop::sample::select(vec![McpMessage::Request, McpMessage::Notification, McpMessage::Listing]);
    let amount = prop::option::of(prop::sample::select(vec![0_i64, 100, 101]));
    (
        kind,
        pick(&["tools/call", "ping"]),
        pick(&["a", "b", ""]),
        pick(&["file:///a"]),
        amount,
        prop::option::of(any::<bool>()),
    )
        .prop_map(|(kind, method, tool, resource, amount, force)| {
            let amount = amount.map(|amount| ("amount", McpValue::Long(amount)));
            let force = force.map(|force| ("force", McpValue::Boolean(force)));
            McpFacts {
                method: method.map(Cow::Borrowed),
                tool: tool.map(Cow::Borrowed),
                resource: resource.map(Cow::Borrowed),
                arguments: amount.into_iter().chain(force).collect(),
                ..McpFacts::new("desk", kind, None)
            }
        })
}

fn any_policies() -> impl Strategy<Value = String> {
    let conditions = prop::sample::select(vec![
        r#"context has mcp"#,
        r#"context has mcp.tool && context.mcp.tool == "a""#,
        r#"context has mcp.tool && context.mcp.tool like "*""#,
        r#"context has mcp.method && context.mcp.method == "ping""#,
        r#"context has mcp && context.mcp.message == "listing""#,
        r#"context has mcp.resource"#,
        r#"context has mcp && context.mcp.arguments has amount && context.mcp.arguments.amount > 99"#,
        r#"context has mcp && context.mcp.arguments has force && context.mcp.arguments.force"#,
        r#"context has mcp && context.mcp == context.mcp"#,
    ]);
    let policy = (prop::sample::select(vec!["permit", "forbid"]), conditions);
    prop::collection::vec(policy, 1..4).prop_map(|policies| {
        policies.iter().enumerate().fold(String::new(), |mut text, (i, (effect, condition))| {
            let _ = writeln!(text, "@id(\"p{i}\") {effect}(principal, action, resource) when {{ {condition} }};");
            text
        })
    })
}

proptest! {
    #[test]
    fn equal_keys_are_equal_answers(text in any_policies(), messages in prop::collection::vec(any_facts(), 2..6)) {
        let policies = compile(&text);
        let Reads { mcp: reads, .. } = policies.reads();
        // Everything is read as soon as some policy looks at the whole; that one never decides.
        let all = compile(&format!(
            "{text}@id(\"all\") permit(principal == Workload::\"spiffe://a/w\", action, resource) \
             when {{ context has mcp && context.mcp == context.mcp && false }};"
        ));
        prop_assert_eq!(all.reads().mcp, McpReads::ALL);
        let told: Vec<_> = messages.iter().map(|m| (key(m, reads), ask(&policies, Some(m)))).collect();
        for (message, (_, outcome)) in messages.iter().zip(&told) {
            prop_assert_eq!(outcome, &ask(&all, Some(message)), "{:?} {}", message, text);
        }
        for (a, of_a) in &told {
            for (b, of_b) in &told {
                prop_assert!(a != b || of_a == of_b, "told apart: {:?} {}", a, text);
            }
        }
    }
}
