//! What a scrape of a running sidecar and of its control plane is answered with: every metric of the design.
//!
//! A metric that is made but not wired up shows here: after one check and one revocation, what they count has moved.

use std::time::Duration;

use super::running::{DOMAIN, Server, Site};

const SIDECAR: [&str; 14] = [
    "build_info",
    "cache_entries",
    "cache_evictions_total",
    "cache_hits_total",
    "cache_misses_total",
    "check_duration_seconds",
    "checks_total",
    "decision_records_dropped_total",
    "lease_remaining_seconds",
    "revocation_apply_seconds",
    "snapshot_age_seconds",
    "snapshot_revision",
    "verification_shed_total",
    "verification_waiting",
];

const CONTROL: [&str; 4] = ["build_info", "key_fetches_total", "sync_fanout_seconds", "sync_streams"];

/// Which of these metrics a scrape lacks.
fn missing<'a>(names: &[&'a str], scrape: &str) -> Vec<&'a str> {
    let has = |name: &str| scrape.lines().any(|line| line.starts_with(&format!("# TYPE portcullis_{name} ")));
    names.iter().filter(|name| !has(name)).copied().collect()
}

/// The value of a series that exists.
fn value(series: &str, scrape: &str) -> f64 {
    let line = scrape.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("`{series}` in {scrape}")).parse().unwrap()
}

/// Scrapes until a series is above zero: a count may follow what it counts by a moment.
async fn scrape_with(server: &Server, series: &str) -> String {
    let mut look = tokio::time::interval(Duration::from_millis(10));
    let moved = async {
        loop {
            look.tick().await;
            let scrape = server.metrics().await;
            if value(series, &scrape) > 0.0 {
                return scrape;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), moved).await.unwrap_or_else(|_| panic!("`{series}` stays zero"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_scrape_has_every_metric_of_the_design() {
    let site = Site::open().await;
    let sidecar = site.sidecar().await;
    let storefront = site.token("storefront", "portcullis-demo");
    assert_eq!(sidecar.check("GET", "/catalog/1", &storefront).await.status, 200);
    let revoke = ["revoke", "workload", &format!("{DOMAIN}/agent"), "--wait", "10s"];
    assert_eq!(site.must("alice", &revoke).await["receipt"]["complete"], true);

    let scrape = scrape_with(&sidecar.server, "portcullis_revocation_apply_seconds_count").await;
    assert_eq!(missing(&SIDECAR, &scrape), [""; 0], "{scrape}");
    let check = "cached=\"false\",decision=\"allow\",door=\"ext_authz\",reason=\"allow.policy\"";
    for (series, expected) in [
        (format!("portcullis_checks_total{{{check}}}"), 1.0),
        ("portcullis_check_duration_seconds_count{door=\"ext_authz\"}".to_owned(), 1.0),
        ("portcullis_cache_misses_total{cache=\"tokens\"}".to_owned(), 1.0),
        ("portcullis_cache_misses_total{cache=\"decisions\"}".to_owned(), 1.0),
        ("portcullis_cache_hits_total{cache=\"tokens\"}".to_owned(), 0.0),
        ("portcullis_decision_records_dropped_total".to_owned(), 0.0),
        ("portcullis_verification_waiting{credential=\"proof\"}".to_owned(), 0.0),
        ("portcullis_verification_shed_total{credential=\"token\"}".to_owned(), 0.0),
    ] {
        assert_eq!(value(&series, &scrape), expected, "{series}");
    }
    for series in ["portcullis_snapshot_revision", "portcullis_lease_remaining_seconds"] {
        assert!(value(series, &scrape) > 0.0, "{series}");
    }

    scrape_with(&site.control, "portcullis_sync_fanout_seconds_count").await;
    let scrape = scrape_with(&site.control, "portcullis_sync_streams").await;
    assert_eq!(missing(&CONTROL, &scrape), [""; 0], "{scrape}");
    assert_eq!(value("portcullis_sync_streams", &scrape), 1.0);
    sidecar.server.stop().await;
    site.control.stop().await;
}
