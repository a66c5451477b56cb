//! What people type: one binary, a command for each thing they do.
//!
//! Plane: composition. Commands are clients of the control plane's API, or hand over to `app`. Results go to standard
//! output through one handle, as text of at most 100 columns or as JSON; messages go to standard error. Exit status:
//! 0 is yes, 1 is no (a denial, a refusal, an incomplete receipt), 2 is an error in usage, configuration or reach.
//! Tokens are read from files and never printed unless making them is the command; only `token verify` also takes one as an
//! argument, and its help warns of that.

mod api;
mod apply;
mod args;
mod audit;
mod bench;
mod check;
mod credential;
mod decisions;
mod dev;
mod documents;
mod failure;
mod files;
mod fleet;
mod grant;
mod grant_policy;
mod issuer;
mod operator;
mod operator_policy;
mod output;
mod policy;
mod receipt;
mod review;
mod revoke;
mod schema;
mod serve;
mod service;
mod token;
mod verdict;
mod verify;
mod watch;
mod workload;

#[cfg(test)]
mod tests;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::LazyLock;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use self::failure::{Answer, Outcome};
use self::output::{Format, Out};

/// Enforcement point and control plane for non-human identities.
#[derive(Debug, Parser)]
#[command(
    name = "portcullis",
    version,
    max_term_width = 100,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Example:\n  portcullis dev\n\n\
                  Exit status: 0 yes; 1 no (a denial, a refusal); 2 an error in usage, configuration or reach."
)]
struct Cli {
    /// How results are printed. Default: text; for `token verify`, json.
    #[arg(long, global = true, value_enum, value_name = "FORMAT")]
    output: Option<Format>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Dev(dev::DevArgs),
    Sidecar(serve::SidecarArgs),
    Control(serve::ControlArgs),
    Check(check::CheckArgs),
    #[command(subcommand)]
    Grant(Box<grant::GrantCommand>),
    #[command(subcommand)]
    GrantPolicy(grant_policy::GrantPolicyCommand),
    #[command(subcommand)]
    Review(review::ReviewCommand),
    #[command(subcommand)]
    Revoke(revoke::RevokeCommand),
    #[command(subcommand)]
    Policy(policy::PolicyCommand),
    #[command(subcommand)]
    Issuer(issuer::IssuerCommand),
    #[command(subcommand)]
    Workload(workload::WorkloadCommand),
    #[command(subcommand)]
    Service(service::ServiceCommand),
    Apply(apply::ApplyArgs),
    #[command(subcommand)]
    Operator(operator::OperatorCommand),
    #[command(subcommand)]
    OperatorPolicy(operator_policy::OperatorPolicyCommand),
    #[command(subcommand)]
    Audit(audit::AuditCommand),
    Fleet(fleet::FleetArgs),
    #[command(subcommand)]
    Token(token::TokenCommand),
    #[command(subcommand)]
    Credential(credential::CredentialCommand),
    #[command(subcommand)]
    Decisions(decisions::DecisionsCommand),
    #[command(subcommand)]
    Bench(bench::BenchCommand),
    #[command(subcommand)]
    Config(schema::ConfigCommand),
}

/// Runs the command that `args` ask for, the program's name first. The binary's whole behaviour.
pub fn run(args: impl IntoIterator<Item = OsString>) -> ExitCode {
    let cli = match definition().try_get_matches_from(args).and_then(|m| Cli::from_arg_matches(&m)) {
        Ok(cli) => cli,
        // Help and version are answers; clap knows which stream each goes to.
        Err(e) => {
            let _closed_pipe = e.print();
            return ExitCode::from(u8::try_from(e.exit_code()).unwrap_or(2));
        }
    };
    let format = cli.output.unwrap_or_else(|| cli.command.usual_format());
    let mut out = Out::stdout(format);
    let outcome = cli.command.run(&mut out).and_then(|answer| {
        out.flush()?;
        Ok(answer)
    });
    match outcome {
        Ok(answer) => answer.into(),
        Err(failure) => failure.report(&mut out, &mut std::io::stderr().lock()),
    }
}

impl Command {
    /// How it prints unless it is told.
    fn usual_format(&self) -> Format {
        match self {
            Self::Token(token) if token.is_for_programs() => Format::Json,
            _ => Format::Text,
        }
    }

    fn run(self, out: &mut Out<'_>) -> Outcome {
        match self {
            Self::Dev(args) => args.run(out),
            Self::Sidecar(args) => args.run(out),
            Self::Control(args) => args.run(out),
            Self::Check(args) => args.run(out),
            Self::Grant(command) => command.run(out),
            Self::GrantPolicy(command) => command.run(out),
            Self::Review(command) => command.run(out),
            Self::Revoke(command) => command.run(out),
            Self::Policy(command) => command.run(out),
            Self::Issuer(command) => command.run(out),
            Self::Workload(command) => command.run(out),
            Self::Service(command) => command.run(out),
            Self::Apply(args) => args.run(out),
            Self::Operator(command) => command.run(out),
            Self::OperatorPolicy(command) => command.run(out),
            Self::Audit(command) => command.run(out),
            Self::Fleet(args) => args.run(out),
            Self::Token(command) => command.run(out),
            Self::Credential(command) => command.run(out),
            Self::Decisions(command) => command.run(out),
            Self::Bench(command) => command.run(out),
            Self::Config(command) => command.run(out),
        }
    }
}

/// clap's definition of the whole command line.
fn definition() -> clap::Command {
    static BUILD: LazyLock<String> = LazyLock::new(build_info);
    Cli::command().long_version(BUILD.as_str())
}

fn build_info() -> String {
    let profile = if cfg!(debug_assertions) { "debug" } else { "release" };
    format!(
        "{}\nbuild: {profile}, {} {}\nsync protocol: portcullis.sync.v1\ncedar: {}",
        env!("CARGO_PKG_VERSION"),
        std::env::consts::ARCH,
        std::env::consts::OS,
        cedar_policy::get_sdk_version(),
    )
}

/// Runs a client's future to its end, on this thread.
fn block_on<T>(future: impl Future<Output = Result<T, failure::Failure>>) -> Result<T, failure::Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(future)
}

impl From<Answer> for ExitCode {
    fn from(answer: Answer) -> Self {
        Self::from(match answer {
            Answer::Yes => 0,
            Answer::No => 1,
        })
    }
}
