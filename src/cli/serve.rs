//! `portcullis sidecar` and `portcullis control`: read the configuration, then hand over to `app`.
//!
//! Plane: composition. `--check` stops after validation. A configuration that is wrong in any way ends the command
//! with status 2 before anything listens.

use std::path::PathBuf;

use super::failure::{Answer, Failure, Outcome};
use super::output::Out;
use crate::app::process;
use crate::config::{ControlConfig, Environment, SidecarConfig};

/// Run the enforcement point: answers Envoy's ext_authz checks, and those of Traefik, Caddy and nginx over HTTP.
///
/// Doors, each by a key of the configuration: ext_authz over gRPC (`listeners.ext_authz`), forward-auth over HTTP
/// (`listeners.forward_auth`), AuthZEN for applications that ask directly (`authzen`, on the same listener), and the reverse
/// proxy, which forwards what is allowed by itself (`listeners.proxy`). All of them decide alike.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  portcullis sidecar --config sidecar.yaml --check && portcullis sidecar --config sidecar.yaml"
)]
pub(super) struct SidecarArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Only check the configuration.
    #[arg(long)]
    check: bool,
}

/// Run the control plane: REST for operators, sync for sidecars.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  portcullis control --config control.yaml")]
pub(super) struct ControlArgs {
    /// The configuration file.
    #[arg(long, value_name = "FILE")]
    config: PathBuf,
    /// Only check the configuration.
    #[arg(long)]
    check: bool,
}

impl SidecarArgs {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        let config = SidecarConfig::load(&self.config, &Environment::of_process())?;
        if self.check {
            return valid(out, &self.config);
        }
        process::sidecar(config).map_err(|e| Failure::error(e.to_string()))?;
        Ok(Answer::Yes)
    }
}

impl ControlArgs {
    pub(super) fn run(self, out: &mut Out<'_>) -> Outcome {
        let config = ControlConfig::load(&self.config, &Environment::of_process())?;
        if self.check {
            return valid(out, &self.config);
        }
        process::control(config).map_err(|e| Failure::error(e.to_string()))?;
        Ok(Answer::Yes)
    }
}

fn valid(out: &mut Out<'_>, path: &std::path::Path) -> Outcome {
    if out.is_json() {
        out.json(&serde_json::json!({ "valid": true }))?;
    } else {
        out.line(format!("`{}` is valid", path.display()))?;
    }
    Ok(Answer::Yes)
}
