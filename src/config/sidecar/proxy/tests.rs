//! What is refused of `proxy:`, each with its key.

use super::*;
use crate::svid;

const SERVICES: [&str; 2] = ["catalog", "payments"];

const AGENT: &str = "workload_api: {endpoint: 'unix:/run/agent.sock'}\n";

fn validate(yaml: &str) -> Result<Config, ConfigError> {
    let raw: RawProxy = serde_yaml_ng::from_str(yaml).unwrap();
    raw.validate(true, &SERVICES.map(str::to_owned), [100, 65_536, 1 << 20])
}

#[test]
fn what_cannot_be_meant_is_refused_with_its_key() {
    let upstream = |more: &str| format!("upstreams: [{{service: catalog, addresses: ['127.0.0.1:80']{more}}}]\n");
    for (yaml, expected) in [
        ("{}".to_owned(), "`proxy.upstreams`: at least one"),
        ("upstreams: [{addresses: ['a:80']}]".to_owned(), "`proxy.upstreams[0].service`: is required"),
        ("upstreams: [{service: other, addresses: ['a:80']}]".to_owned(), "not one of `scope.services`"),
        ("upstreams: [{service: catalog}]".to_owned(), "`proxy.upstreams[0].addresses`: at least one"),
        (
            "upstreams: [{service: catalog, addresses: [host]}]".to_owned(),
            "`proxy.upstreams[0].addresses[0]`: `host` is not",
        ),
        ("upstreams: [{service: catalog, addresses: ['u@h:80']}]".to_owned(), "addresses[0]`"),
        (upstream(", retries: 9"), "`proxy.upstreams[0].retries`: must be at most 3"),
        (upstream(", max_requests: 0"), "`proxy.upstreams[0].max_requests`: must be at least 1"),
        (upstream(", connect_timeout: 0s"), "`proxy.upstreams[0].connect_timeout`: must be longer"),
        (upstream(", health: {path: x}"), "`proxy.upstreams[0].health.path`: `x` is not a path"),
        (upstream(", health: {interval: 10ms}"), "`proxy.upstreams[0].health.interval`: must be at least 1s"),
        (upstream(", tls: {server_name: a}"), "`proxy.upstreams[0].tls.ca_file`: is required"),
        (upstream(", tls: {ca_file: /nowhere/ca}"), "`proxy.upstreams[0].tls.ca_file`"),
        (upstream("") + "tls: {}", "`proxy.tls.cert_file`: is required"),
        (upstream("") + "tls: {workload_api: true}", "`proxy.tls.workload_api`: needs `proxy.workload_api`"),
        (upstream("") + "workload_api: {}", "`proxy.workload_api.endpoint`: is required"),
        (upstream("") + AGENT, "`proxy.workload_api`: nothing uses it"),
        (
            upstream("") + AGENT + "tls: {workload_api: true, cert_file: /nowhere}",
            "`proxy.tls`: `workload_api` and `cert_file` cannot both be",
        ),
        (
            upstream("") + AGENT + "tls: {workload_api: true, client_ca_file: /nowhere}",
            "`proxy.tls`: `workload_api` and `client_ca_file` cannot both be",
        ),
        (
            upstream(", tls: {workload_api: true, server_name: a, spiffe_ids: ['spiffe://td/a']}") + AGENT,
            "`proxy.upstreams[0].tls`: `workload_api` and `server_name` cannot both be",
        ),
        (
            upstream(", tls: {workload_api: true}") + AGENT,
            "`proxy.upstreams[0].tls.spiffe_ids`: is required with `workload_api`",
        ),
        (
            upstream(", tls: {ca_file: /nowhere, spiffe_ids: ['spiffe://td/a']}"),
            "`proxy.upstreams[0].tls.spiffe_ids`: counts only with `workload_api`",
        ),
        (upstream("") + "upgrades: [h2c]", "`proxy.upgrades[0]`: `h2c` is not"),
        (upstream("") + "max_connections: 0", "`proxy.max_connections`: must be at least 1"),
        (upstream("") + "head_timeout: 0s", "`proxy.head_timeout`: must be longer"),
    ] {
        let error = validate(&yaml).unwrap_err().to_string();
        assert!(error.contains(expected), "{yaml}: {error}");
    }
    let twice = "upstreams: [{service: catalog, addresses: ['a:1']}, {service: catalog, addresses: ['b:1']}]";
    assert!(validate(twice).unwrap_err().to_string().contains("`catalog` has two entries"));
}

#[test]
fn without_a_listener_nothing_is_needed_and_defaults_are_the_proxys_own() {
    let config = RawProxy::default().validate(false, &[], [100, 65_536, 1 << 20]).unwrap();
    assert_eq!(config.limits, Limits::default());
    assert_eq!(config.upgrades, ["websocket"]);
    let config = validate("upstreams: [{service: payments, addresses: ['[::1]:80', 'a.internal:8080']}]").unwrap();
    let upstream = &config.upstreams[0];
    assert_eq!((upstream.protocol, upstream.timeouts, upstream.retries), (Protocol::Http1, Timeouts::default(), 1));
}

#[test]
fn certificates_may_come_from_an_agent_on_this_machine() {
    let yaml = "upstreams: [{service: catalog, addresses: ['a:80'], tls: {workload_api: true, spiffe_ids: ['spiffe://td/a']}}]\n\
        tls: {workload_api: true, require_client_certificate: true}\n\
        workload_api: {endpoint: 'unix:///run/agent.sock', spiffe_id: 'spiffe://td/proxy'}";
    let config = validate(yaml).unwrap();
    let id = |text| crate::credential::SpiffeId::parse(text).unwrap();
    let agent = svid::Settings {
        endpoint: svid::Endpoint::Unix("/run/agent.sock".into()),
        spiffe_id: Some(id("spiffe://td/proxy")),
    };
    let tls = config.listener.tls.unwrap();
    assert_eq!(tls.certificates, ServerCertificates::Svid(agent.clone()));
    assert!(tls.require_client_certificate);
    assert_eq!(config.upstreams[0].tls, Some(UpstreamTls::Svid(agent, vec![id("spiffe://td/a")])));
    for (endpoint, expected) in [
        ("/run/agent.sock", "`unix:/path/to/socket`"),
        ("unix:run/agent.sock", "absolute path"),
        ("unix://host/agent.sock", "absolute path"),
        ("tcp://10.0.0.1:8081", "loopback"),
        ("tcp://localhost:8081", "an IP address and a port"),
    ] {
        let yaml = format!("workload_api: {{endpoint: '{endpoint}'}}");
        let error = serde_yaml_ng::from_str::<RawProxy>(&yaml).unwrap_err().to_string();
        assert!(error.contains(expected), "{endpoint}: {error}");
    }
}
