//! House rules that the compiler does not know: which module may use which, what a pure module must not touch, who
//! writes the state, and what every file says about itself. DESIGN §7 is the source; `RULES` is its table.
//!
//! Reads tokens, not types: comments, strings and `#[cfg(test)]` items do not count, aliases and macros that build
//! paths are not seen through. Every rule is shown a planted violation, so that a blind scanner fails.

#[cfg(test)]
#[path = "tidy/scan.rs"]
mod scan;

#[cfg(test)]
mod rules {
    use std::fs;
    use std::path::Path;

    use super::scan::{State, calls_on_others, module_of, paths, tokens, without_tests};

    const PURE: &[&str] = &["clock", "object", "credential", "policy", "grant", "authz", "wire"];
    const EDGE: &[&str] = &["telemetry", "tls", "svid", "drain", "readiness", "offload"];

    /// Each top-level module and what it may use. `main` and `lib` are the frame.
    const RULES: &[(&str, &[&[&str]])] = &[
        ("clock", &[]),
        ("credential", &[&["clock", "object"]]),
        ("object", &[PURE]),
        ("policy", &[PURE]),
        ("grant", &[PURE]),
        ("authz", &[PURE]),
        ("wire", &[&["clock", "credential", "object"]]),
        ("state", &[PURE]),
        ("cache", &[PURE, &["state"]]),
        ("door", &[PURE, EDGE, &["cache", "state"]]),
        ("ext_authz", &[PURE, EDGE, &["cache", "state", "door"]]),
        ("forward_auth", &[PURE, EDGE, &["cache", "state", "door"]]),
        ("authzen", &[PURE, EDGE, &["cache", "state", "door"]]),
        ("proxy", &[PURE, EDGE, &["cache", "state", "door"]]),
        ("sync", &[PURE, EDGE, &["state"]]),
        ("control", &[PURE, EDGE]),
        ("admin", &[PURE, EDGE, &["cache", "state"]]),
        ("telemetry", &[PURE, &["cache", "state", "readiness"]]),
        ("tls", &[PURE]),
        ("svid", &[PURE, &["tls", "offload"]]),
        ("drain", &[PURE, &["readiness"]]),
        ("readiness", &[PURE]),
        ("offload", &[]),
        ("config", &[PURE, EDGE, &["cache", "authzen", "forward_auth", "proxy", "sync", "control"]]),
        (
            "app",
            &[
                PURE,
                EDGE,
                &[
                    "config",
                    "cache",
                    "state",
                    "door",
                    "ext_authz",
                    "authzen",
                    "forward_auth",
                    "proxy",
                    "sync",
                    "control",
                    "admin",
                ],
            ],
        ),
        ("bench", &[PURE, EDGE, &["app", "sync", "control"]]),
        (
            "cli",
            &[
                PURE,
                EDGE,
                &[
                    "bench",
                    "app",
                    "config",
                    "cache",
                    "state",
                    "door",
                    "ext_authz",
                    "sync",
                    "control",
                    "admin",
                    "testing",
                ],
            ],
        ),
        (
            "testing",
            &[
                PURE,
                EDGE,
                &[
                    "app",
                    "config",
                    "cache",
                    "state",
                    "door",
                    "ext_authz",
                    "authzen",
                    "forward_auth",
                    "proxy",
                    "sync",
                    "control",
                    "admin",
                ],
            ],
        ),
    ];

    /// What needs a runtime or a wire: not in pure modules, and not between a door and the engine.
    const RUNTIME: &[&str] = &[
        "tokio",
        "tokio_stream",
        "tokio_util",
        "tokio_rustls",
        "tonic",
        "tonic_health",
        "hyper",
        "hyper_util",
        "axum",
        "tower",
        "reqwest",
        "sqlx",
        "envoy_types",
        "prometheus",
        "opentelemetry",
        "opentelemetry_otlp",
        "opentelemetry_sdk",
        "socket2",
        "futures_util",
        "turmoil",
    ];
    /// What else a pure module does not touch.
    const IMPURE: &[&str] = &[
        "std::fs",
        "std::net",
        "std::env",
        "std::process",
        "std::thread",
        "std::io",
        "std::os",
        "std::time::SystemTime",
        "std::time::Instant",
        "moka",
        "tracing",
        "rustix",
    ];
    /// File and path that may break the two rules above, and why.
    const EXCEPT: &[(&str, &str)] = &[
        ("wire/mod.rs", "tonic::include_proto"), // types generated at build time
        ("clock.rs", "std::time::SystemTime"),   // the one clock
        ("clock.rs", "rustix::time"),
    ];

    /// The only modules that may write `state::State`; `control` cannot, it may not even name it.
    const STATE_WRITERS: &[&str] = &["sync", "state", "control", "testing", "cli/check"];

    const LONG: usize = 400;

    fn top(file: &str) -> &str {
        file.split(['/', '.']).next().unwrap_or_default()
    }

    /// Everything that is wrong with one file of `src/`.
    fn violations(file: &str, text: &str) -> Vec<String> {
        let mut found = header(file, text);
        let is_test = file.ends_with("tests.rs") || file.contains("/tests/");
        let top = top(file);
        if is_test || matches!(top, "lib" | "main") {
            return found;
        }
        let Some((_, may_use)) = RULES.iter().find(|(module, _)| *module == top) else {
            found.push(format!("{file}: module `{top}` has no rule in tests/tidy.rs"));
            return found;
        };
        let tokens = without_tests(&tokens(text));
        for path in paths(&tokens) {
            let joined = path.join("::");
            if let Some(used) = module_of(file, &path) {
                if used != top && !may_use.iter().any(|set| set.contains(&used)) {
                    found.push(format!("{file}: `{top}` must not use `{used}` (`{joined}`)"));
                }
                continue;
            }
            let within = |prefix: &&&str| joined == **prefix || joined.starts_with(&format!("{prefix}::"));
            let pure = PURE.contains(&top);
            let synchronous = pure || matches!(top, "state" | "cache");
            let barred =
                (synchronous && RUNTIME.iter().any(|p| within(&p))) || (pure && IMPURE.iter().any(|p| within(&p)));
            if barred && !EXCEPT.iter().any(|(f, p)| *f == file && within(&p)) {
                found.push(format!("{file}: `{top}` must not reach for `{joined}`"));
            }
        }
        if !STATE_WRITERS.iter().any(|writer| file.starts_with(writer)) {
            for method in calls_on_others(&tokens, &State::WRITES) {
                found.push(format!("{file}: only `sync` writes the state (`.{method}(…)`)"));
            }
        }
        found
    }

    fn header(file: &str, text: &str) -> Vec<String> {
        let header: Vec<&str> = text.lines().take_while(|line| line.starts_with("//!")).collect();
        let lines = text.lines().count();
        let mut found = Vec::new();
        let wanted = if file.ends_with("tests.rs") || file.contains("/tests/") || file == "main.rs" { 1 } else { 3 };
        if header.len() < wanted {
            found.push(format!(
                "{file}: opens with `//!`, at least {wanted} lines: what, plane, invariants, which way it fails"
            ));
        }
        if lines > LONG && !header.join(" ").contains("Long because") {
            found.push(format!("{file}: {lines} lines, and the header has no `Long because …`"));
        }
        found
    }

    fn sources() -> Vec<(String, String)> {
        fn walk(dir: &Path, root: &Path, out: &mut Vec<(String, String)>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    walk(&path, root, out);
                } else if path.extension().is_some_and(|e| e == "rs") {
                    let name = path.strip_prefix(root).unwrap().to_str().unwrap().replace('\\', "/");
                    out.push((name, fs::read_to_string(&path).unwrap()));
                }
            }
        }
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
        let mut out = Vec::new();
        walk(&root, &root, &mut out);
        out.sort();
        out
    }

    #[test]
    fn the_source_keeps_the_rules() {
        let sources = sources();
        assert!(sources.len() > 40, "only {} files found", sources.len());
        let found: Vec<String> = sources.iter().flat_map(|(file, text)| violations(file, text)).collect();
        assert!(found.is_empty(), "{} violations:\n{}", found.len(), found.join("\n"));
    }

    #[test]
    fn the_code_map_is_complete() {
        let sources = sources();
        let lib = &sources.iter().find(|(file, _)| file == "lib.rs").unwrap().1;
        for (file, _) in &sources {
            let module = top(file);
            let mapped = matches!(module, "lib" | "main") || lib.contains(&format!("[`{module}`]"));
            assert!(mapped, "`{module}` is not in the code map of src/lib.rs");
        }
        for (module, _) in RULES {
            assert!(sources.iter().any(|(file, _)| top(file) == *module), "the rule for `{module}` has no module");
        }
    }

    #[test]
    fn planted_violations_are_found() {
        for (file, code, expected) in [
            ("authz/x.rs", "use crate::state::State;", "`authz` must not use `state`"),
            ("authz/x.rs", "use crate::{clock::Now, cache};", "`authz` must not use `cache`"),
            ("authz/x/y.rs", "fn f() { super::super::super::sync::run() }", "`authz` must not use `sync`"),
            ("authz/mod.rs", "use super::control::index;", "`authz` must not use `control`"),
            ("credential/x.rs", "use crate::authz::Reason;", "`credential` must not use `authz`"),
            ("control/api.rs", "fn f(s: &crate::state::State) {}", "`control` must not use `state`"),
            ("control/api.rs", "use crate::ext_authz::Door;", "`control` must not use `ext_authz`"),
            ("sync/client.rs", "use crate::control::index::Index;", "`sync` must not use `control`"),
            ("ext_authz/x.rs", "use crate::sync;", "`ext_authz` must not use `sync`"),
            ("ext_authz/x.rs", "pub(crate) use crate::app as a;", "`ext_authz` must not use `app`"),
            ("policy/x.rs", "use tokio;", "`policy` must not reach for `tokio`"),
            ("policy/x.rs", "use tokio::sync::{mpsc, watch};", "`policy` must not reach for `tokio::sync::mpsc`"),
            ("policy/x.rs", "use std::{fmt, fs::File};", "`policy` must not reach for `std::fs::File`"),
            ("grant/x.rs", "fn f() { let _ = std::fs::read(\"x\"); }", "`grant` must not reach for `std::fs::read`"),
            ("grant/x.rs", "fn f() { ::std::env::var(NAME); }", "`grant` must not reach for `std::env::var`"),
            ("grant/x.rs", "use std::time::{Duration, Instant};", "must not reach for `std::time::Instant`"),
            ("wire/sign.rs", "use tonic::Status;", "`wire` must not reach for `tonic::Status`"),
            ("wire/sign.rs", "tonic::include_proto!(\"x\");", "`wire` must not reach for `tonic::include_proto`"),
            (
                "object/x.rs",
                "fn f(c: char) { if c == '\"' { hyper::body::f() } }",
                "must not reach for `hyper::body::f`",
            ),
            ("object/x.rs", "fn f<'a>(c: &'a str) { axum::serve(c, r#\"\"#) }", "must not reach for `axum::serve`"),
            (
                "cache/gate.rs",
                "async fn f() { tokio::task::yield_now().await }",
                "`cache` must not reach for `tokio::task",
            ),
            ("app/mod.rs", "fn f(s: &S) { s.state.publish(x); }", "only `sync` writes the state (`.publish(…)`)"),
            ("admin/mod.rs", "fn f(g: &Gate) { g.state().renew(l); }", "only `sync` writes the state (`.renew(…)`)"),
            (
                "ext_authz/x.rs",
                "fn f(g: &G) { State::restore(g, a, b); }",
                "only `sync` writes the state (`.restore(…)`)",
            ),
            ("novel/mod.rs", "", "module `novel` has no rule"),
        ] {
            let text = format!("//! One.\n//! Two.\n//! Three.\n\n{code}\n");
            let found = violations(file, &text);
            assert!(found.len() == 1 || code.contains('{'), "`{code}` in {file}: {found:?}");
            assert!(found.iter().any(|v| v.contains(expected)), "`{code}` in {file}: {found:?}, wanted: {expected}");
        }
        let shapes = [
            ("authz/x.rs", "//! One.\n//! Two.\n".to_owned(), "at least 3 lines"),
            ("authz/x.rs", "use std::fmt;\n".to_owned(), "at least 3 lines"),
            ("authz/x/tests.rs", "use std::fmt;\n".to_owned(), "at least 1 lines"),
            ("authz/x.rs", format!("//! One.\n//! Two.\n//! Three.\n{}", "\n".repeat(LONG)), "Long because"),
        ];
        for (file, text, expected) in shapes {
            let found = violations(file, &text);
            assert!(found.len() == 1 && found[0].contains(expected), "{file}: {found:?}, wanted: {expected}");
        }
    }

    #[test]
    fn what_only_looks_like_a_violation_is_not_one() {
        for (file, code) in [
            ("authz/x.rs", "// use crate::state::State;\n/* tokio::spawn /* nested */ std::fs::read */"),
            ("authz/x.rs", "/// See [`crate::state::State`] and `tokio::spawn`.\nfn f() {}"),
            (
                "authz/x.rs",
                "const A: &str = \"use tokio::spawn; \\\" crate::sync\"; const B: &str = r##\"std::fs::\"#\"##;",
            ),
            ("authz/x.rs", "#[cfg(test)]\nmod tests { use tokio::test; fn f() { std::fs::read(x) } }\nfn g() {}"),
            ("authz/x.rs", "#[cfg(test)]\nuse crate::testing::{a, b};\nfn g() {}"),
            ("authz/x/tests.rs", "use crate::state::State; use tokio::test;"),
            (
                "authz/x.rs",
                "use self::state::X; use super::engine; mod state; fn f() { state::go(); local.tokio.run(); }",
            ),
            ("ext_authz/x.rs", "use crate::{cache::Gate, authz::{Decision, Permit}}; use tonic::Status;"),
            ("sync/apply.rs", "fn f(s: &State) { s.publish(x); s.renew(y); }"),
            ("cli/apply.rs", "fn f(&self) { self.publish(x) }"),
            ("cli/check/offline.rs", "fn f(s: &State) { s.restore(x, y) }"),
            ("clock.rs", "use std::time::{Duration, SystemTime}; fn f() { rustix::time::clock_gettime(x); }"),
            ("wire/mod.rs", "pub mod proto { tonic::include_proto!(\"x\"); }"),
            ("main.rs", "use portcullis::cli; fn main() { std::process::exit(1) }"),
        ] {
            let text = format!("//! One.\n//! Two.\n//! Three.\n\n{code}\n");
            assert_eq!(violations(file, &text), Vec::<String>::new(), "`{code}` in {file}");
        }
    }
}
