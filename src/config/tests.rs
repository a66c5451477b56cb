//! Tests of configuration: places of errors, the environment, key files, the loopback rule, examples, schemas.
//!
//! Long because each key that can be wrong has its line here, in one table a kind of process.

use std::path::{Path, PathBuf};

use super::*;
use crate::wire::SigningKey;

struct Fixture {
    dir: tempfile::TempDir,
}

impl Fixture {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (key, _) = SigningKey::generate().unwrap();
        std::fs::write(dir.path().join("verify-key"), key.verify_key().to_string()).unwrap();
        std::fs::write(dir.path().join("token"), "a.b.c").unwrap();
        Self { dir }
    }

    fn sidecar(&self) -> String {
        format!(
            "control_plane:\n  url: http://127.0.0.1:9181\n  insecure_loopback: true\n  \
             token_file: {0}/token\n  verify_key_file: {0}/verify-key\n\
             scope:\n  identity: spiffe://a.example/sidecar\n  services: [payments, catalog]\n",
            self.dir.path().display()
        )
    }
}

fn env(pairs: &[(&str, &str)]) -> Environment {
    Environment::new(pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())))
}

fn sidecar(text: &str, overrides: &[(&str, &str)]) -> Result<SidecarConfig, ConfigError> {
    RawSidecar::parse(Path::new("sidecar.yaml"), text, &env(overrides))?.validate()
}

fn control(text: &str) -> Result<ControlConfig, ConfigError> {
    RawControl::parse(Path::new("control.yaml"), text, &Environment::default())?.validate()
}

fn message<T: std::fmt::Debug>(result: Result<T, ConfigError>) -> String {
    result.unwrap_err().to_string()
}

#[test]
fn a_minimal_sidecar_file_gets_the_documented_defaults() {
    let fixture = Fixture::new();
    let config = sidecar(&fixture.sidecar(), &[]).unwrap();
    assert_eq!(config.listeners.ext_authz_tcp, Some(Address::loopback(9191)));
    assert_eq!(config.scope.services, ["catalog", "payments"]);
    assert_eq!(config.state.max_staleness, std::time::Duration::from_secs(300));
    assert!(matches!(config.records, Records::Stdout { queue: 65_536 }));
    assert!(matches!(config.control_plane.transport, Transport::LoopbackPlainText));
}

#[test]
fn unknown_keys_and_wrong_types_are_refused_with_line_and_column() {
    let cases = [
        ("scope:\n  identty: x\n", "sidecar.yaml:2:3: scope: unknown field `identty`, expected"),
        (
            "cache:\n  tokens: 1\n  decisions: many\n",
            "sidecar.yaml:3:14: cache.decisions: invalid type: string \"many\"",
        ),
        ("drain:\n  deadline: 30\n", "sidecar.yaml:2:13: drain.deadline: `30` is not a duration"),
        ("drain:\n  deadline: soon\n", "sidecar.yaml:2:13: drain.deadline: `soon` is not a duration such as `10s`"),
        ("listeners:\n  admin: localhost:9193\n", "sidecar.yaml:2:10: listeners.admin: `localhost:9193` is not an IP"),
        (
            "scope:\n  identity: spiffe://A/b\n",
            "sidecar.yaml:2:13: scope.identity: `spiffe://A/b` is not a workload's SPIFFE ID: a trust",
        ),
        ("records: { output: disk }\n", "sidecar.yaml:1:20: records.output: unknown variant `disk`"),
        ("cache:\n  tokens: 1\n  tokens: 2\n", "duplicate"),
        ("cache: [\n", "sidecar.yaml:2:1:"),
        ("control_plane:\n  url: https://me:pw@control:9181\n", "must not hold a user name or a password"),
    ];
    for (text, expected) in cases {
        let got = message(sidecar(text, &[]));
        assert!(got.contains(expected), "{text:?}\n  got      {got}\n  expected {expected}");
    }
}

#[test]
fn trusted_proxies_are_one_thing_each_and_nobody_by_default() {
    use crate::authz::{ForwardingHeader, ProxyPeer, TrustedProxy};

    let fixture = Fixture::new();
    let with = |proxies: &str| sidecar(&format!("{}trusted_proxies: {proxies}\n", fixture.sidecar()), &[]);
    assert_eq!(sidecar(&fixture.sidecar(), &[]).unwrap().trusted_proxies, []);
    let listed = with("[{spiffe_id: spiffe://a.example/gateway}, {network: 10.0.0.0/8, header: client_cert}]").unwrap();
    let id = crate::credential::SpiffeId::parse("spiffe://a.example/gateway").unwrap();
    let expected = [
        TrustedProxy { peer: ProxyPeer::SpiffeId(id), header: ForwardingHeader::Xfcc },
        TrustedProxy { peer: ProxyPeer::Network("10.0.0.0/8".parse().unwrap()), header: ForwardingHeader::ClientCert },
    ];
    assert_eq!(listed.trusted_proxies, expected);
    let one_of = "`trusted_proxies[0]`: either `spiffe_id` or `network` is needed";
    assert_eq!(message(with("[{}]")), one_of);
    assert_eq!(message(with("[{spiffe_id: spiffe://a.example/g, network: 10.0.0.0/8}]")), one_of);
    for (proxies, expected) in [
        ("[{network: 10.0.0.1/8}]", "`10.0.0.1/8` is not a network: has bits set after its prefix"),
        ("[{network: 0.0.0.0/0}]", "would list every address"),
        ("[{spiffe_id: gateway}]", "`gateway` is not a workload's SPIFFE ID"),
        ("[{name: gateway}]", "unknown field `name`"),
        ("[{network: 10.0.0.0/8, header: both}]", "unknown variant `both`"),
    ] {
        let got = message(with(proxies));
        assert!(got.contains(expected) && got.starts_with("sidecar.yaml:"), "{got}");
    }
}

#[test]
fn only_this_machine_asks_over_http_unless_others_are_listed() {
    use crate::forward_auth::Dialect;

    let fixture = Fixture::new();
    let config = sidecar(&fixture.sidecar(), &[]).unwrap();
    assert_eq!(config.listeners.forward_auth, None);
    let is_trusted = |config: &SidecarConfig, peer: &str| {
        config.forward_auth.trusted_peers.iter().any(|network| network.contains(peer.parse().unwrap()))
    };
    assert!(["127.0.0.1", "127.8.9.1", "::1", "::ffff:127.0.0.1"].iter().all(|peer| is_trusted(&config, peer)));
    assert!(!["10.0.0.1", "::2", "0.0.0.0"].iter().any(|peer| is_trusted(&config, peer)));
    assert_eq!(config.forward_auth.dialects, Dialect::ALL);

    let with = |section: &str| sidecar(&format!("{}forward_auth: {section}\n", fixture.sidecar()), &[]);
    let listed = with("{trusted_peers: [10.1.0.0/16], dialects: [nginx, traefik, nginx]}").unwrap();
    assert!(is_trusted(&listed, "10.1.2.3") && !is_trusted(&listed, "127.0.0.1"));
    assert_eq!(listed.forward_auth.dialects, [Dialect::Nginx, Dialect::Traefik]);
    let nobody = with("{trusted_peers: []}").unwrap();
    assert!(!is_trusted(&nobody, "127.0.0.1"));
    for (section, expected) in [
        ("{dialects: []}", "`forward_auth.dialects`: at least one of"),
        ("{dialects: [haproxy]}", "unknown variant `haproxy`"),
        ("{trusted_peers: [10.0.0.1/8]}", "has bits set after its prefix"),
        ("{trusted_peers: [0.0.0.0/0]}", "would list every address"),
        ("{read_timeout: 0s}", "`forward_auth.read_timeout`: must be longer than zero"),
        ("{idle_timeout: 0s}", "`forward_auth.idle_timeout`: must be longer than zero"),
    ] {
        let got = message(with(section));
        assert!(got.contains(expected), "{section}: {got}");
    }

    // It is listener enough.
    let only =
        [("PORTCULLIS__LISTENERS__EXT_AUTHZ__TCP", "null"), ("PORTCULLIS__LISTENERS__FORWARD_AUTH", "127.0.0.1:9192")];
    let config = sidecar(&fixture.sidecar(), &only).unwrap();
    assert_eq!((config.listeners.ext_authz_tcp, config.listeners.forward_auth), (None, Some(Address::loopback(9192))));
    let none = [("PORTCULLIS__LISTENERS__EXT_AUTHZ__TCP", "null")];
    assert!(message(sidecar(&fixture.sidecar(), &none)).contains("or `listeners.forward_auth`"));
}

#[test]
fn nobody_asks_authzen_unless_listed_and_names_are_checked() {
    let fixture = Fixture::new();
    assert_eq!(sidecar(&fixture.sidecar(), &[]).unwrap().authzen.callers, []);
    let with = |section: &str| sidecar(&format!("{}authzen: {section}\n", fixture.sidecar()), &[]);
    let config = with("{url: 'https://pdp.example/', callers: [{identity: 'spiffe://a.example/app'}]}").unwrap();
    assert_eq!(config.authzen.url.as_deref(), Some("https://pdp.example"));
    assert_eq!(config.authzen.callers[0].may_assert, [], "it has to bring tokens");
    for (section, expected) in [
        ("{callers: [{may_assert: []}]}", "`authzen.callers[0].identity`: is required"),
        ("{callers: [{identity: '*'}]}", "not a workload's SPIFFE ID"),
        ("{callers: [{identity: 'spiffe://a/b', may_assert: ['*']}]}", "`authzen.callers[0].may_assert[0]`"),
        (
            "{callers: [{identity: 'spiffe://a/b', may_assert: ['spiffe://a/b*']}]}",
            "`authzen.callers[0].may_assert[0]`",
        ),
        (
            "{callers: [{identity: 'spiffe://a/b'}, {identity: 'spiffe://a/b'}]}",
            "`authzen.callers[1].identity`: occurs twice",
        ),
        ("{subject_types: [{type: user, prefix: 'spiffe://a/users'}]}", "`authzen.subject_types[0].prefix`"),
        ("{subject_types: [{type: workload, prefix: 'spiffe://a/users/'}]}", "`workload` has a meaning already"),
        ("{subject_types: [{type: '', prefix: 'spiffe://a/users/'}]}", "`authzen.subject_types[0].type`"),
        ("{resource_types: [{type: todo, resource: 'a/b/c'}]}", "`authzen.resource_types[0].resource`"),
        ("{resource_types: [{type: route, resource: a}]}", "`route` has a meaning already"),
        (
            "{resource_types: [{type: t, resource: a}, {type: t, resource: b}]}",
            "`authzen.resource_types[1].type`: occurs twice",
        ),
        ("{url: 'https://pdp.example/tenant'}", "`authzen.url`: must have no path"),
        ("{max_evaluations: 0}", "`authzen.max_evaluations`: must be between 1 and 1000"),
        ("{trusted_peers: [127.0.0.1]}", "unknown field `trusted_peers`"),
    ] {
        let got = message(with(section));
        assert!(got.contains(expected), "{section}: {got}");
    }
}

#[test]
fn the_environment_overrides_the_file() {
    let fixture = Fixture::new();
    let text = fixture.sidecar();
    let overrides = [
        ("PORTCULLIS__CACHE__TOKENS", "7"),
        ("PORTCULLIS__LISTENERS__EXT_AUTHZ__TCP", "null"),
        ("PORTCULLIS__LISTENERS__EXT_AUTHZ__UNIX", "/tmp/x.sock"),
        ("PORTCULLIS__SCOPE__SERVICES", "[orders]"),
        ("PORTCULLIS__STATE__DIRECTORY", "12"),
        ("PORTCULLIS__DRAIN__DEADLINE", "5m"),
        ("PORTCULLIS_SERVER", "not ours"),
    ];
    let config = sidecar(&text, &overrides).unwrap();
    assert_eq!(config.cache.tokens, 7);
    assert_eq!(config.cache.decisions, 100_000);
    assert_eq!(config.listeners.ext_authz_tcp, None);
    assert_eq!(config.listeners.ext_authz_unix, Some(PathBuf::from("/tmp/x.sock")));
    assert_eq!(config.scope.services, ["orders"]);
    assert_eq!(config.state.directory, PathBuf::from("12"), "a number can be meant as text");
    assert_eq!(config.drain_deadline, std::time::Duration::from_secs(300));
}

#[test]
fn a_bad_variable_is_named() {
    let fixture = Fixture::new();
    let text = fixture.sidecar();
    let unknown = message(sidecar(&text, &[("PORTCULLIS__CACHE__TOKENZ", "7")]));
    assert!(unknown.starts_with("environment variable `PORTCULLIS__CACHE__TOKENZ`:"), "{unknown}");
    assert!(unknown.contains("unknown field `tokenz`"), "{unknown}");
    let wrong = message(sidecar(&text, &[("PORTCULLIS__CACHE__TOKENS", "lots")]));
    assert!(wrong.starts_with("environment variable `PORTCULLIS__CACHE__TOKENS`:"), "{wrong}");
}

#[test]
fn a_required_value_may_come_from_the_environment_alone() {
    let fixture = Fixture::new();
    let text = fixture.sidecar().replace("  url: http://127.0.0.1:9181\n", "");
    assert_eq!(message(sidecar(&text, &[])), "`control_plane.url`: is required");
    sidecar(&text, &[("PORTCULLIS__CONTROL_PLANE__URL", "http://127.0.0.1:1")]).unwrap();
    assert_eq!(message(sidecar("", &[])), "`control_plane.url`: is required", "an empty file is an empty document");
}

#[test]
fn plain_text_is_for_loopback_and_only_when_asked_for() {
    let fixture = Fixture::new();
    let text = fixture.sidecar();
    let remote = message(sidecar(&text.replace("127.0.0.1", "10.0.0.1"), &[]));
    assert!(remote.starts_with("`control_plane.url`: `http://10.0.0.1:9181/` is plain text"), "{remote}");
    let name = message(sidecar(&text.replace("127.0.0.1", "localhost"), &[]));
    assert!(name.starts_with("`control_plane.url`:"), "who answers for a name can change: {name}");
    let unasked = message(sidecar(&text.replace("insecure_loopback: true", "insecure_loopback: false"), &[]));
    assert!(unasked.starts_with("`control_plane.insecure_loopback`:"), "{unasked}");

    assert!(message(control("")).starts_with("`insecure_loopback`:"));
    control("insecure_loopback: true").unwrap();
    let api = message(control("insecure_loopback: true\nlisteners: { api: '0.0.0.0:9180' }"));
    assert!(api.starts_with("`listeners.api`: `0.0.0.0:9180` is not a loopback address"), "{api}");
    let sync = message(control("insecure_loopback: true\nlisteners: { sync: '[::]:9181' }"));
    assert!(sync.starts_with("`listeners.sync`:"), "{sync}");
}

#[test]
fn an_unusable_key_file_names_the_key_and_the_file() {
    let fixture = Fixture::new();
    let text = fixture.sidecar();
    let missing = message(sidecar(&text.replace("/verify-key", "/nowhere"), &[]));
    assert!(missing.starts_with("`control_plane.verify_key_file`: cannot use `"), "{missing}");
    assert!(missing.contains("/nowhere`: No such file"), "{missing}");
    let not_a_key = message(sidecar(&text.replace("/verify-key", "/token"), &[]));
    assert!(not_a_key.ends_with("it is not a base64 Ed25519 public key"), "{not_a_key}");
    std::fs::write(fixture.dir.path().join("token"), "").unwrap();
    let empty = message(sidecar(&text, &[]));
    assert!(empty.starts_with("`control_plane.token_file`:") && empty.ends_with("it is empty"), "{empty}");
    let tls = message(control("tls: { cert_file: /nowhere/cert.pem, key_file: /nowhere/key.pem }"));
    assert!(tls.starts_with("`tls.cert_file`: cannot use `/nowhere/cert.pem`"), "{tls}");
}

#[test]
fn a_sidecar_needs_exactly_one_credential_and_a_scope() {
    let fixture = Fixture::new();
    let text = fixture.sidecar();
    let line = text.lines().find(|l| l.contains("token_file")).unwrap();
    let none = message(sidecar(&text.replace(line, ""), &[]));
    assert!(none.starts_with("`control_plane.token_file`: is required"), "{none}");
    let both = message(sidecar(&text, &[("PORTCULLIS__CONTROL_PLANE__CLIENT_CERT_FILE", "/x")]));
    assert!(both.contains("not both"), "{both}");
    let empty = message(sidecar(&text, &[("PORTCULLIS__SCOPE__SERVICES", "[]")]));
    assert_eq!(empty, "`scope.services`: at least one service is needed");
    let route = message(sidecar(&text, &[("PORTCULLIS__SCOPE__SERVICES", "[payments/refunds]")]));
    assert_eq!(route, "`scope.services[0]`: `payments/refunds` is not the name of a service");
    let deaf = message(sidecar(&text, &[("PORTCULLIS__LISTENERS__EXT_AUTHZ__TCP", "null")]));
    assert!(deaf.starts_with("`listeners.ext_authz`:"), "{deaf}");
    let many = message(sidecar(&text, &[("PORTCULLIS__LISTENERS__EXT_AUTHZ__PINNED_THREADS", "257")]));
    assert_eq!(many, "`listeners.ext_authz.pinned_threads`: must be at most 256");
}

#[test]
fn sync_times_and_enforcement_points_are_checked() {
    let with = |sync: &str| message(control(&format!("insecure_loopback: true\nsync: {{ {sync} }}")));
    assert!(with("lease: 2s").starts_with("`sync.lease`: must be longer than `sync.bookmark_interval`"));
    assert!(with("max_staleness: 5s").starts_with("`sync.max_staleness`:"));
    assert!(with("bookmark_interval: 0s").starts_with("`sync.bookmark_interval`:"));
    let twice =
        "enforcement_points: [{identity: 'spiffe://a/b', services: [x]}, {identity: 'spiffe://a/b', services: [y]}]";
    assert_eq!(with(twice), "`sync.enforcement_points[1].identity`: `spiffe://a/b` occurs twice");
    let none = "enforcement_points: [{identity: 'spiffe://a/b', services: []}]";
    assert_eq!(with(none), "`sync.enforcement_points[0].services`: at least one service is needed");
    let unknown = "enforcement_points: [{identity: 'spiffe://a/b', servces: []}]";
    assert!(with(unknown).contains("unknown field `servces`"));
}

#[test]
fn where_keys_may_come_from_is_checked_and_errors_have_a_place() {
    let keys = |text: &str| control(&format!("insecure_loopback: true\nkeys:\n  {text}\n"));
    let config = keys("allowed_hosts: [idp.example, '*.example.org']\n  allowed_networks: [127.0.0.0/8]").unwrap().keys;
    assert_eq!((config.allowed.hosts.len(), config.allowed.networks.len()), (2, 1));
    assert!(control("insecure_loopback: true").unwrap().keys.allowed.hosts.is_empty(), "nothing by default");
    for (text, expected) in [
        (
            "allowed_hosts: [a.example, 'https://b.example']",
            "control.yaml:3:30: keys.allowed_hosts[1]: `https://b.example` is not a host",
        ),
        ("allowed_hosts: ['*']", "keys.allowed_hosts[0]: `*` is not a host"),
        (
            "allowed_networks: [10.0.0.0/8, 10.0.0.1/8]",
            "control.yaml:3:34: keys.allowed_networks[1]: `10.0.0.1/8` is not a network: has bits set after its prefix",
        ),
        (
            "allowed_networks: [localhost]",
            "`localhost` is not a network: expected an address and a prefix length, as in `10.0.0.0/8`",
        ),
        ("refresh_interval: 0s", "`keys.refresh_interval`:"),
        ("timeout: 2m", "`keys.timeout`: must not be longer"),
        ("max_bytes: 12", "`keys.max_bytes`:"),
        ("directory: keys", "`keys.directory`: must be an absolute path"),
        ("ca_file: /nowhere/ca.pem", "`keys.ca_file`: cannot use `/nowhere/ca.pem`"),
        ("hosts: []", "unknown field `hosts`"),
    ] {
        let got = message(keys(text));
        assert!(got.contains(expected), "{text:?}\n  got      {got}\n  expected {expected}");
    }
}

#[test]
fn token_reviews_are_for_trusted_issuers_over_https_only() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "content").unwrap();
    let file = file.display();
    let with = |entries: &str| {
        let text = format!("insecure_loopback: true\nsync:\n  trust: [a, b]\n  token_review: [{entries}]\n");
        control(&text.replace("FILES", &format!("ca_file: {file}, token_file: {file}")))
    };
    assert!(with("").unwrap().sync.token_review.is_empty());
    let good = with("{issuer: b, url: 'https://api.example/cluster', FILES}").unwrap().sync.token_review;
    assert_eq!((good[0].issuer.as_str(), good[0].url.as_str()), ("b", "https://api.example/cluster"));
    for (entries, expected) in [
        ("{issuer: c, url: 'https://api', FILES}", "`sync.token_review[0].issuer`: `c` is not in `sync.trust`"),
        (
            "{issuer: a, url: 'https://api', FILES}, {issuer: a, url: 'https://b', FILES}",
            "`sync.token_review[1].issuer`: `a` occurs twice",
        ),
        ("{issuer: a, url: 'http://127.0.0.1', FILES}", "`sync.token_review[0].url`: `http://127.0.0.1/` is not https"),
        ("{issuer: a, url: 'https://api/?x=y', FILES}", "`sync.token_review[0].url`: must not have a query"),
        ("{issuer: a, url: api, FILES}", "sync.token_review[0].url: `api` is not an http"),
        ("{issuer: a, url: 'https://api', token_file: /x}", "missing field `ca_file`"),
        (
            "{issuer: a, url: 'https://api', ca_file: /nowhere, token_file: /x}",
            "`sync.token_review[0].ca_file`: cannot use `/nowhere`",
        ),
        ("{issuer: a, url: 'https://api', FILES, insecure: true}", "unknown field `insecure`"),
    ] {
        let got = message(with(entries));
        assert!(got.contains(expected), "{entries:?}\n  got      {got}\n  expected {expected}");
    }
}

#[test]
fn checked_in_schemas_are_current() {
    for (file, schema) in [("sidecar", schema::sidecar()), ("control", schema::control())] {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("docs/config/{file}.schema.json"));
        let checked_in = std::fs::read_to_string(&path).unwrap_or_default();
        if checked_in != schema && std::env::var_os("PORTCULLIS_UPDATE_SCHEMAS").is_some() {
            std::fs::write(&path, &schema).unwrap();
            continue;
        }
        assert!(
            checked_in == schema,
            "docs/config/{file}.schema.json is not what the types say; regenerate it with:\n  \
             portcullis config schema {file} > docs/config/{file}.schema.json\n\
             or run this test with PORTCULLIS_UPDATE_SCHEMAS=1"
        );
    }
}

#[test]
fn the_documented_examples_load_and_show_every_default() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/config");
    // Key files are the reader's own; everything else must be right, so only they are replaced.
    let fixture = Fixture::new();
    let ours = |name: &str| fixture.dir.path().join(name).display().to_string();
    let read = |name: &str| std::fs::read_to_string(root.join(name)).unwrap();
    let (verify_key, any) = (ours("verify-key"), ours("token"));
    let files = env(&[
        ("PORTCULLIS__CONTROL_PLANE__CA_FILE", &any),
        ("PORTCULLIS__CONTROL_PLANE__TOKEN_FILE", &any),
        ("PORTCULLIS__CONTROL_PLANE__VERIFY_KEY_FILE", &verify_key),
    ]);
    let raw = RawSidecar::parse(Path::new("sidecar.yaml"), &read("sidecar.yaml"), &files).unwrap();
    shows_every_key(&raw, &read("sidecar.yaml"));
    raw.validate().unwrap();
    let mcp = RawSidecar::parse(Path::new("sidecar.yaml"), &read("../mcp/sidecar.yaml"), &files).unwrap();
    let mcp = mcp.validate().unwrap();
    assert_eq!((mcp.listeners.proxy.is_some(), &*mcp.proxy.upstreams[0].service), (true, "desk"));
    let review = format!("[{{issuer: cluster-a, url: 'https://kubernetes', ca_file: {any}, token_file: {any}}}]");
    let files = env(&[
        ("PORTCULLIS__SYNC__TOKEN_REVIEW", &review),
        ("PORTCULLIS__TLS__CERT_FILE", &any),
        ("PORTCULLIS__TLS__KEY_FILE", &any),
        ("PORTCULLIS__TLS__CLIENT_CA_FILE", &any),
        ("PORTCULLIS__KEYS__CA_FILE", &any),
    ]);
    let raw = RawControl::parse(Path::new("control.yaml"), &read("control.yaml"), &files).unwrap();
    shows_every_key(&raw, &read("control.yaml"));
    raw.validate().unwrap();
}

#[test]
fn who_may_call_is_said_whole_or_refused_by_name() {
    let with = |text: &str| control(&format!("insecure_loopback: true\noperators: {text}\n"));
    let provider = |more: &str| format!("{{providers: [{{name: corp, issuer: 'https://idp', audience: us{more}}}]}}");
    let callers = with(&provider("")).unwrap().operators.callers;
    assert_eq!((callers.providers.len(), callers.workloads.is_none(), callers.calls.is_some()), (1, true, true));
    assert_eq!(callers.providers[0].name_claim, "sub");
    let twice =
        "{providers: [{name: a, issuer: 'https://a', audience: x}, {name: b, issuer: 'https://a', audience: y}]}";
    for (text, wrong) in [
        (provider("").replace("https://idp", "http://idp"), "`operators.providers[0].issuer`: `http://idp`"),
        (provider("").replace("us", "''"), "`operators.providers[0].audience`"),
        (provider("").replace("corp", "Not A Name"), "`operators.providers[0].name`"),
        (provider(", max_lifetime: 2d"), "`operators.providers[0].max_lifetime`"),
        (provider(", name_claim: ''"), "`operators.providers[0].name_claim`"),
        (provider(", token_type: txntoken+jwt"), "`operators.providers[0].token_type`"),
        (twice.to_owned(), "`operators.providers[1].issuer`: `https://a` occurs twice"),
        ("{certificates: {ca_file: /nowhere, operators: []}}".to_owned(), "`operators.certificates`"),
        ("{workloads: {audience: ''}}".to_owned(), "`operators.workloads.audience`"),
        ("{limits: {calls_burst: 0}}".to_owned(), "`operators.limits.calls_burst`"),
    ] {
        assert!(message(with(&text)).contains(wrong), "{wrong}: {}", message(with(&text)));
    }
}

/// Every key of the raw type occurs in the example, perhaps commented out.
fn shows_every_key(raw: &impl serde::Serialize, example: &str) {
    fn keys(value: &serde_json::Value, into: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(map) => {
                for (key, inner) in map {
                    into.push(key.clone());
                    keys(inner, into);
                }
            }
            serde_json::Value::Array(items) => items.iter().for_each(|i| keys(i, into)),
            _ => {}
        }
    }
    let mut all = Vec::new();
    keys(&serde_json::to_value(raw).unwrap(), &mut all);
    assert!(all.len() > 10);
    for key in all {
        let shown =
            example.lines().any(|l| l.trim_start().trim_start_matches(['#', '-', ' ']).starts_with(&format!("{key}:")));
        assert!(shown, "the example does not show `{key}`");
    }
}

#[test]
fn the_key_of_nonces_is_long_and_random_looking_base64() {
    let fixture = Fixture::new();
    let path = fixture.dir.path().join("nonce-key");
    let text = format!("{}proof:\n  nonce_key_file: {}\n", fixture.sidecar(), path.display());
    assert!(message(sidecar(&text, &[])).contains("`proof.nonce_key_file`"), "the file is missing");
    for bad in ["", "c2hvcnQ=", "not base64 !"] {
        std::fs::write(&path, bad).unwrap();
        let why = message(sidecar(&text, &[]));
        assert!(why.contains("proof.nonce_key_file") && !why.contains("c2hvcnQ"), "{why}");
    }
    std::fs::write(&path, "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=\n").unwrap();
    let config = sidecar(&text, &[]).unwrap();
    assert!(config.nonces.is_some());
    assert!(!format!("{config:?}").contains("MDEyMzQ1"));
    assert_eq!(message(sidecar(&text, &[("PORTCULLIS__CACHE__PROOFS", "0")])), "`cache.proofs`: must be at least 1");
}

#[test]
fn a_control_plane_that_issues_tokens_says_who_it_is_and_rotates_no_faster_than_keys_become_known() {
    let with = |tokens: &str| control(&format!("insecure_loopback: true\ntokens: {tokens}\n"));
    let config = with("{issuer: 'https://control.example'}").unwrap().tokens.unwrap();
    assert_eq!(config.keys.name, "portcullis");
    assert_eq!(config.keys.max_staleness, std::time::Duration::from_secs(300), "that of `sync`");
    assert!(control("insecure_loopback: true\n").unwrap().tokens.is_none());
    for (tokens, key) in [
        ("{issuer: control}", "tokens.issuer"),
        ("{issuer: 'https://control.example/'}", "tokens.issuer"),
        ("{issuer: 'https://control.example?a'}", "tokens.issuer"),
        ("{issuer: 'https://control.example', name: A}", "tokens.name"),
        ("{issuer: 'https://control.example', key_set_cache: 0s}", "tokens.key_set_cache"),
        ("{issuer: 'https://control.example', rotate_every: 14m}", "tokens.rotate_every"),
        ("{issuer: 'https://control.example', per_minute: 0}", "tokens.per_minute"),
        ("{issuer: 'https://control.example', audiences: ['']}", "tokens.audiences"),
        ("{name: x}", "issuer"),
    ] {
        let why = message(with(tokens));
        assert!(why.contains(key), "{tokens}: {why}");
    }
}
