//! `portcullis dev`: everything in one process on this machine, to try things out.
//!
//! The same compositions as in production, on loopback and in plain text: a control plane on SQLite, one sidecar, a
//! demo issuer whose tokens are kept fresh, a demo upstream, demo objects. Secrets lie in its directory with mode 0600.
//! Starting again on the same directory changes nothing that is there.

mod seed;
mod tell;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::{Args, ValueEnum};
use tokio::net::TcpListener;

use self::seed::Seed;
use self::tell::Running;
use super::failure::{Answer, Failure, Outcome};
use super::output::Out;
use crate::app::{self, Binder, Deps, RunError, SystemBinder, control, process, sidecar, upstream};
use crate::config::{
    Address, HttpUrl, Identity, LogFormat, LogLevel, RawAuthzen, RawCaller, RawControl, RawControlListeners,
    RawControlPlane, RawDrain, RawEnforcementPoint, RawExtAuthz, RawGrants, RawKeys, RawOperators, RawProxy,
    RawRecords, RawScope, RawSidecar, RawSidecarListeners, RawState, RawSync, RawTelemetry, RawTokens, RawUpstream,
    RawWorkloadCallers, RecordOutput, Span,
};
use crate::drain::{self, Signal};
use crate::readiness::Readiness;
use crate::{admin, credential::SpiffeId};

/// Who the sidecar of the demo is.
const SIDECAR: &str = "spiffe://demo.portcullis.local/sidecar";
/// What a sidecar's token is for.
const SYNC_AUDIENCE: &str = "portcullis-control";
/// What the control plane calls itself in the tokens that it issues, whatever its port.
const ISSUER: &str = "http://127.0.0.1:9180";
/// The port of the demo upstream.
const UPSTREAM_PORT: u16 = 9190;
/// The first sync takes milliseconds.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// Nobody's production traffic is at stake.
const DRAIN: Duration = Duration::from_secs(2);

/// Run everything on this machine: control plane, sidecar, demo issuer, demo upstream.
///
/// The sidecar has every door: ext_authz over gRPC for Envoy, forward-auth over HTTP for nginx, Traefik, Caddy and Envoy,
/// AuthZEN for applications that ask directly, and the reverse proxy. What it prints says where, with commands to paste.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  portcullis dev\n  portcullis dev --only upstream")]
pub(super) struct DevArgs {
    /// Directory for state, keys and tokens.
    #[arg(long, value_name = "DIR", default_value = ".portcullis-dev")]
    data_dir: PathBuf,
    /// Add this to every port.
    #[arg(long, value_name = "N", default_value_t = 0)]
    port_offset: u16,
    /// Take any free ports instead of the documented ones.
    #[arg(long, conflicts_with = "port_offset")]
    free_ports: bool,
    /// Run only one part.
    #[arg(long, value_enum, value_name = "PART")]
    only: Option<Part>,
    /// The least severe level that is logged, to standard error.
    #[arg(long, value_name = "LEVEL", default_value = "warn", value_parser = level)]
    log_level: LogLevel,
}

/// A part that can run by itself.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Part {
    /// The demo upstream.
    Upstream,
}

fn level(text: &str) -> Result<LogLevel, String> {
    serde_yaml_ng::from_str(text).map_err(|_unknown| "expected error, warn, info, debug or trace".to_owned())
}

impl DevArgs {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        let runtimes = process::Runtimes::start()?;
        runtimes.run(async |hot, support| {
            let telemetry =
                RawTelemetry { log_level: self.log_level, log_format: LogFormat::Text, otlp_endpoint: None };
            let logging = app::log(&telemetry.clone().validate(), "portcullis-dev").map_err(|e| failed(&e))?;
            process::log_panics();
            match self.only {
                Some(Part::Upstream) => self.upstream(out).await,
                None => self.everything(out, Deps::system(&logging, hot, support), telemetry).await,
            }
        })
    }

    /// The demo's own port, as the flags have it.
    fn address(&self, port: u16) -> Result<Address, Failure> {
        if self.free_ports {
            return Ok(Address::loopback(0));
        }
        let moved = port.checked_add(self.port_offset);
        moved.map(Address::loopback).ok_or_else(|| Failure::error("--port-offset is too large"))
    }

    async fn upstream(&self, out: &mut Out<'_>) -> Outcome {
        let listener = self.bind_upstream()?;
        let address = listener.local_addr()?;
        if out.is_json() {
            out.json(&serde_json::json!({ "upstream": format!("http://{address}") }))?;
        } else {
            out.line(format!("demo upstream on http://{address}; stop with Ctrl-C"))?;
        }
        out.flush()?;
        let (drain, signal) = drain::channel();
        let work = serve_upstream(listener, signal);
        process::until_told(work, &drain, &Readiness::new(), DRAIN).await.map_err(|e| failed(&e))?;
        Ok(Answer::Yes)
    }

    fn bind_upstream(&self) -> Result<TcpListener, Failure> {
        let address = self.address(UPSTREAM_PORT)?;
        let listener = SystemBinder.tcp(address.0).and_then(|listener| {
            listener.set_nonblocking(true)?;
            TcpListener::from_std(listener)
        });
        listener.map_err(|e| Failure::error(format!("demo upstream: cannot listen on `{address}`: {e}{TAKEN}")))
    }

    async fn everything(&self, out: &mut Out<'_>, deps: Deps, telemetry: RawTelemetry) -> Outcome {
        let directory = &self.data_dir;
        app::files::private_directory(directory)
            .map_err(|e| Failure::error(format!("`{}`: {e}", directory.display())))?;
        let directory = &std::fs::canonicalize(directory)?;
        let upstream = self.bind_upstream()?;
        let upstream_at = upstream.local_addr()?;

        let config = self.control(directory, telemetry.clone())?.validate()?;
        let control = control::build(config, &deps).await.map_err(|e| not_built(&e))?;
        let (control_ready, addresses) =
            (control.readiness().clone(), (control.api(), control.sync(), control.admin()));
        let (api, sync, control_admin) = addresses;
        let (drain, signal) = drain::channel();
        let control = tokio::spawn(control.run(signal.clone()));
        wait_until(&control_ready).await?;

        let seed = Seed::plant(directory, &format!("http://{api}"), &directory.join("control")).await?;
        let raw = self.sidecar(directory, telemetry, (api, sync, upstream_at))?;
        let sidecar = sidecar::build(raw.validate()?, &deps).map_err(|e| not_built(&e))?;
        let readiness = sidecar.readiness().clone();
        let running = Running {
            directory: directory.clone(),
            api,
            sync,
            control_admin,
            sidecar_admin: sidecar.admin(),
            ext_authz: sidecar.ext_authz_tcp(),
            ext_authz_unix: sidecar.ext_authz_unix().map(Path::to_path_buf),
            forward_auth: sidecar.forward_auth(),
            proxy: sidecar.proxy(),
            upstream: upstream_at,
        };
        let sidecar = sidecar.run(signal.clone());
        let fresh = tokio::spawn(seed.keep_fresh(signal.clone()));
        let work = async {
            tokio::try_join!(
                async {
                    control.await.map_err(|e| RunError::Ended { server: "control plane", reason: e.to_string() })?
                },
                sidecar,
                serve_upstream(upstream, signal),
                announce(out, &running, &readiness),
            )
            .map(|_all| ())
        };
        let ended = process::until_told(work, &drain, &readiness, DRAIN).await;
        fresh.abort();
        ended.map_err(|e| failed(&e))?;
        Ok(Answer::Yes)
    }

    fn control(&self, directory: &Path, telemetry: RawTelemetry) -> Result<RawControl, Failure> {
        let point = RawEnforcementPoint { identity: Identity(sidecar_identity()?), services: services() };
        Ok(RawControl {
            listeners: RawControlListeners {
                api: self.address(9180)?,
                sync: self.address(9181)?,
                admin: self.address(9182)?,
                probes: None,
            },
            data_directory: directory.join("control"),
            tls: None,
            insecure_loopback: true,
            sync: RawSync {
                audience: SYNC_AUDIENCE.to_owned(),
                trust: vec![seed::ISSUER.to_owned()],
                enforcement_points: vec![point],
                ..RawSync::default()
            },
            keys: RawKeys::default(),
            grants: RawGrants::default(),
            operators: RawOperators {
                workloads: Some(RawWorkloadCallers { audience: seed::AUDIENCE.to_owned(), trust: Vec::new() }),
                ..RawOperators::default()
            },
            tokens: Some(RawTokens::new(ISSUER)),
            telemetry,
        })
    }

    fn authzen(&self) -> Result<RawAuthzen, Failure> {
        let forward_auth = self.address(9192)?;
        // With free ports it is not known yet where it will be.
        let url = (!self.free_ports).then(|| format!("http://{forward_auth}").parse()).transpose();
        Ok(RawAuthzen { url: url.map_err(Failure::error)?, callers: vec![asker()], ..RawAuthzen::default() })
    }

    fn sidecar(
        &self,
        directory: &Path,
        telemetry: RawTelemetry,
        (api, sync, upstream): (SocketAddr, SocketAddr, SocketAddr),
    ) -> Result<RawSidecar, Failure> {
        let url = |text: String| text.parse::<HttpUrl>().map_err(Failure::error);
        let socket = directory.join("ext_authz.sock");
        Ok(RawSidecar {
            listeners: RawSidecarListeners {
                ext_authz: RawExtAuthz {
                    tcp: Some(self.address(9191)?),
                    // A socket's path is short, whatever the directory's is.
                    unix: Some(socket).filter(|p| p.as_os_str().len() <= 90),
                    ..RawExtAuthz::default()
                },
                forward_auth: Some(self.address(9192)?),
                proxy: Some(self.address(9194)?),
                admin: self.address(9193)?,
                probes: None,
            },
            authzen: self.authzen()?,
            control_plane: RawControlPlane {
                url: Some(url(format!("http://{sync}"))?),
                insecure_loopback: true,
                token_file: Some(directory.join("sidecar.jwt")),
                verify_key_file: Some(directory.join("control").join("verify-key")),
                grant_request_url: Some(url(format!("http://{api}/v1/grant-requests"))?),
                ..RawControlPlane::default()
            },
            proxy: RawProxy {
                upstreams: services().into_iter().map(|s| to(s, upstream)).collect(),
                ..RawProxy::default()
            },
            scope: RawScope { identity: Some(Identity(sidecar_identity()?)), services: services() },
            state: RawState { directory: directory.join("sidecar"), ..RawState::default() },
            records: RawRecords {
                output: RecordOutput::File,
                file: Some(directory.join("decisions.jsonl")),
                ..RawRecords::default()
            },
            telemetry,
            drain: RawDrain { deadline: Span(DRAIN) },
            ..RawSidecar::default()
        })
    }
}

/// The demo's pipeline may ask about the other workloads of the demo without a token of theirs.
fn asker() -> RawCaller {
    let others = ["storefront", "agent"];
    RawCaller {
        identity: SpiffeId::parse(&seed::id("ci")).ok().map(Identity),
        may_assert: others.map(seed::id).to_vec(),
    }
}

const TAKEN: &str = "\n  another process has it? --port-offset N moves every port, --free-ports takes free ones";

fn sidecar_identity() -> Result<SpiffeId, Failure> {
    SpiffeId::parse(SIDECAR).map_err(|e| Failure::error(e.to_string()))
}

fn services() -> Vec<String> {
    ["catalog", "payments"].map(str::to_owned).to_vec()
}

/// Requests for a service go to the demo upstream.
fn to(service: String, upstream: SocketAddr) -> RawUpstream {
    RawUpstream { service: Some(service), addresses: vec![upstream.to_string()], ..RawUpstream::default() }
}

fn failed(e: &dyn std::error::Error) -> Failure {
    Failure::error(e.to_string())
}

fn not_built(e: &app::BuildError) -> Failure {
    match e {
        app::BuildError::Listen { .. } => Failure::error(format!("{e}\n  --port-offset N moves every port")),
        other => Failure::error(other.to_string()),
    }
}

async fn serve_upstream(listener: TcpListener, signal: Signal) -> Result<(), RunError> {
    let served = admin::serve(listener, upstream::router(), async move { signal.draining().await });
    served.await.map_err(|e| RunError::Ended { server: "demo upstream", reason: e.to_string() })
}

async fn wait_until(readiness: &Readiness) -> Result<(), Failure> {
    let mut ready = readiness.watch();
    let waited = tokio::time::timeout(READY_WITHIN, ready.wait_for(|ready| *ready)).await;
    if matches!(waited, Ok(Ok(_))) {
        return Ok(());
    }
    Err(Failure::error(format!(
        "not ready within {READY_WITHIN:?}: waiting for {}",
        readiness.waiting_for().join(", ")
    )))
}

/// Says what runs where, once the sidecar answers checks.
async fn announce(out: &mut Out<'_>, running: &Running, readiness: &Readiness) -> Result<(), RunError> {
    let told = match wait_until(readiness).await {
        Ok(()) => running.tell(out),
        Err(failure) => Err(failure),
    };
    match told {
        // Who started it may have closed its output; it runs all the same.
        Ok(()) | Err(Failure::Closed) => Ok(()),
        Err(Failure::Error(reason) | Failure::Refused { message: reason, .. }) => {
            Err(RunError::Ended { server: "portcullis dev", reason })
        }
    }
}
