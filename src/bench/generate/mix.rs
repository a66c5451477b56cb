//! Tokens by what they may do, and the request mix that uses them and knows the right answers.
//!
//! Plane: composition. The mix has requests for a bounded number of services, those with most tokens; a request's expected
//! answer follows from the estate, not from asking a server.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::Path;

use super::GenerateError;
use super::estate::{AUDIENCE, Estate, ISSUER, service, workload};
use super::output::write;
use crate::app::files;

/// The most services that the mix has requests for.
const MIX_SERVICES: usize = 16;

/// What the mix may ask of one service.
#[derive(Debug, Default)]
struct Pools {
    /// Tokens of those that may read it.
    read: Vec<String>,
    /// Tokens of those with a grant on its refunds.
    grant: Vec<String>,
    /// Who may read it.
    readers: Vec<String>,
}

/// Writes tokens of `count` workloads, by what they may do, and the mix that uses them. Returns how many there are.
pub(super) fn tokens_and_mix(estate: &Estate, count: u64, out: &Path) -> Result<u64, GenerateError> {
    let directory = out.join("tokens");
    files::private_directory(&directory).map_err(|source| GenerateError::Io { path: directory.clone(), source })?;
    let mut pools: BTreeMap<u64, Pools> = BTreeMap::new();
    let count = count.clamp(1, estate.size().workloads);
    for n in 0..count {
        let subject = workload(estate.workload_of(n));
        let token = estate.token(&subject, AUDIENCE)?;
        if n < estate.size().grants {
            pools.entry(estate.service_of(n)).or_default().grant.push(token.clone());
        }
        let pool = pools.entry(estate.readable_by(estate.workload_of(n))).or_default();
        pool.read.push(token);
        pool.readers.push(subject);
    }
    let mut chosen: Vec<(u64, Pools)> = pools.into_iter().collect();
    chosen.sort_by_key(|(s, pools)| (std::cmp::Reverse(pools.read.len() + pools.grant.len()), *s));
    chosen.truncate(MIX_SERVICES);
    chosen.sort_by_key(|(s, _)| *s);
    let mut mix = MIX_HEAD.to_owned();
    let shares = |of: fn(&Pools) -> usize| chosen.iter().map(|(_, p)| of(p)).sum::<usize>().max(1) as f64;
    let (reads, grants) = (shares(|p| p.read.len()), shares(|p| p.grant.len()));
    for (s, pools) in &chosen {
        let name = service(*s);
        for (kind, tokens) in [("read", &pools.read), ("grant", &pools.grant)] {
            if !tokens.is_empty() {
                let file = directory.join(format!("{kind}-{name}.txt"));
                write(&file, &format!("{}\n", tokens.join("\n")), true)?;
            }
        }
        let (read, grant) = (pools.read.len() as f64 / reads, pools.grant.len() as f64 / grants);
        if !pools.read.is_empty() {
            let readers = serde_json::to_string(&pools.readers.iter().take(100).collect::<Vec<_>>());
            let readers = readers.map_err(|e| GenerateError::Rule(e.to_string()))?;
            let _infallible = write!(
                mix,
                "
  - name: read-{name}
    weight: {:.4}
    paths: [/{name}/items/1, /{name}/items/2, /{name}/items/3]
    token: {{ file: tokens/read-{name}.txt }}
    expect: allow
  - name: denied-{name}
    weight: {:.4}
    method: DELETE
    paths: [/{name}/items/1]
    token: {{ file: tokens/read-{name}.txt }}
    expect: deny
  - name: never-seen-{name}
    weight: {:.4}
    paths: [/{name}/items/1]
    token:
      mint:
        key_file: issuer.key
        kid: {ISSUER}
        audience: {AUDIENCE}
        subjects: {readers}
    expect: allow
",
                70.0 * read,
                9.0 * read,
                read,
            );
        }
        if !pools.grant.is_empty() {
            let _infallible = write!(
                mix,
                "
  - name: grant-{name}
    weight: {:.4}
    method: POST
    paths: [/{name}/refunds/7]
    token: {{ file: tokens/grant-{name}.txt }}
    expect: allow
",
                20.0 * grant,
            );
        }
    }
    write(&out.join("mix.yaml"), &mix, false)?;
    Ok(count)
}

const MIX_HEAD: &str = "\
# portcullis bench run --mix mix.yaml --target portcullis=grpc://127.0.0.1:9191
#
# 70 % reads by a standing policy, 20 % writes by a grant, 9 % denials, 1 % reads with a token that nobody has seen;
# --never-seen and --denied change the shares. Paths of files are relative to this one.

# What Envoy sends along for an ordinary request.
headers:
  accept: application/json
  accept-encoding: gzip, br
  accept-language: en
  cache-control: no-cache
  content-type: application/json
  user-agent: storefront/1.7 (linux)
  x-b3-traceid: 80f198ee56343ba864fe8b2a57d3eff7
  x-b3-spanid: e457b5a2e4d86bd1
  x-envoy-attempt-count: \"1\"
  x-envoy-internal: \"true\"
  x-forwarded-for: 10.1.2.3
  x-forwarded-proto: https
  x-tenant: acme

requests:
";
