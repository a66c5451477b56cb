//! What runs where, and what to try: addresses and commands to paste.
//!
//! Plane: composition. Writes only to the command's own output. Shows where tokens are kept, never a token itself.
//! Everything it prints can be pasted as it stands.

use std::net::SocketAddr;
use std::path::PathBuf;

use serde_json::json;

use super::super::failure::Failure;
use super::super::output::Out;

/// What `dev` runs.
#[derive(Debug)]
pub(super) struct Running {
    pub(super) directory: PathBuf,
    pub(super) api: SocketAddr,
    pub(super) sync: SocketAddr,
    pub(super) control_admin: SocketAddr,
    pub(super) sidecar_admin: SocketAddr,
    pub(super) ext_authz: Option<SocketAddr>,
    pub(super) ext_authz_unix: Option<PathBuf>,
    pub(super) forward_auth: Option<SocketAddr>,
    pub(super) proxy: Option<SocketAddr>,
    pub(super) upstream: SocketAddr,
}

impl Running {
    pub(super) fn tell(&self, out: &mut Out<'_>) -> Result<(), Failure> {
        if out.is_json() {
            out.json(&json!({
                "directory": self.directory,
                "api": format!("http://{}", self.api),
                "sync": format!("http://{}", self.sync),
                "control_admin": format!("http://{}", self.control_admin),
                "sidecar_admin": format!("http://{}", self.sidecar_admin),
                "ext_authz": self.ext_authz.map(|a| a.to_string()),
                "ext_authz_unix": self.ext_authz_unix,
                "forward_auth": self.forward_auth.map(|a| format!("http://{a}")),
                "authzen": self.forward_auth.map(|a| format!("http://{a}/access/v1")),
                "proxy": self.proxy.map(|a| format!("http://{a}")),
                "upstream": format!("http://{}", self.upstream),
            }))?;
        } else {
            out.text(&self.text())?;
        }
        out.flush()?;
        Ok(())
    }

    fn text(&self) -> String {
        let d = self.directory.display();
        let tcp = self.ext_authz.map(|a| a.to_string()).unwrap_or_default();
        let unix = self.ext_authz_unix.as_ref().map(|p| format!("\n                        unix:{}", p.display()));
        let unix = unix.unwrap_or_default();
        let forward_auth = self.forward_auth.map(|a| format!("http://{a}")).unwrap_or_default();
        let proxy = self.proxy.map(|a| format!("http://{a}")).unwrap_or_default();
        let (api, sync, upstream) = (self.api, self.sync, self.upstream);
        let (sidecar_admin, control_admin) = (self.sidecar_admin, self.control_admin);
        let storefront = super::seed::id("storefront");
        format!(
            r#"Portcullis is running; Ctrl-C stops it. Everything is in {d}

  control plane, REST   http://{api}
  control plane, sync   http://{sync}
  control plane, admin  http://{control_admin}/metrics
  sidecar, ext_authz    {tcp}{unix}
  sidecar, forward-auth {forward_auth}
  sidecar, AuthZEN      {forward_auth}/access/v1
  sidecar, proxy        {proxy}
  sidecar, admin        http://{sidecar_admin}/metrics
  demo upstream         http://{upstream}
  decision records      {d}/decisions.jsonl

To try, in another terminal:

  cd {d}
  export PORTCULLIS_SERVER=http://{api} PORTCULLIS_ADMIN=http://{sidecar_admin}

  # standing permission: the storefront reads the catalog
  portcullis check --path /catalog/1 --token-file storefront.jwt --explain

  # refunds are just-in-time: a denial that can be submitted as a request
  portcullis check --method POST --path /refunds/7 --token-file storefront.jwt --output json > denial.json
  portcullis grant request --from-denial denial.json --token-file alice.token
  portcullis grant approve ID --token-file bob.token
  portcullis check --method POST --path /refunds/7 --token-file storefront.jwt
  # a token for that service alone, five minutes at most, that dies with the grant (docs/tokens.md)
  portcullis credential exchange --subject-token-file storefront.jwt --audience payments --write short.jwt
  portcullis check --method POST --path /refunds/7 --token-file short.jwt
  portcullis grant revoke ID --wait --token-file bob.token

  portcullis fleet --token-file alice.token
  portcullis decisions tail --file decisions.jsonl --follow

  # as a proxy asks over HTTP (docs/forward-auth.md)
  curl -i -H "authorization: Bearer $(cat storefront.jwt)" {forward_auth}/envoy/catalog/1

  # as an application asks that wants to know beforehand, by AuthZEN (docs/authzen.md)
  curl -s {forward_auth}/access/v1/evaluation -H "authorization: Bearer $(cat ci.jwt)" \
    -H 'content-type: application/json' -d '{{
      "subject": {{ "type": "workload", "id": "{storefront}" }},
      "action": {{ "name": "read" }}, "resource": {{ "type": "service", "id": "catalog" }} }}'

  # through the reverse proxy, to the demo upstream (docs/reverse-proxy.md)
  curl -i -H "authorization: Bearer $(cat storefront.jwt)" {proxy}/catalog/1

  # with Envoy in front (envoy/sidecar-grpc-tcp.yaml)
  curl -i -H "authorization: Bearer $(cat storefront.jwt)" http://127.0.0.1:10000/catalog/1
"#
        )
    }
}
