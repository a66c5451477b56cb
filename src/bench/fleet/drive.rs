//! The course of a measurement: join, rest, revoke, come back, with and without a herd at the door.
//!
//! Plane: composition. The same course for anybody's control plane (`portcullis bench fleet`) and for our own budgets
//! (`cargo bench --bench fleet`), so that both tell the same story. What fails is in the report, not in a panic.

use std::time::Duration;

use super::api::{Api, ApiError};
use super::measure::{Burst, Rounds, bursts, revocations};
use super::report::{Joined, Report, Spread};
use super::{Fleet, FleetError, Identities, Options, Process};

/// What to do.
#[derive(Debug, Clone)]
pub struct Plan {
    /// Revocations one by one; 0 leaves them out.
    pub revocations: usize,
    /// Revocations at once; 0 leaves them out.
    pub burst: usize,
    /// Between two revocations.
    pub pause: Duration,
    /// How long a receipt is waited for.
    pub wait: Duration,
    /// How long the fleet rests, to see what idle streams cost.
    pub rest: Duration,
    /// Whether all come back with what they have, and then without.
    pub reconnect: bool,
    /// How many newcomers keep coming, each with nothing, while revocations are measured once more; 0 leaves it out.
    pub herd: usize,
    /// How long the fleet may take to become current.
    pub limit: Duration,
    /// Name of the issuer whose tokens are revoked.
    pub issuer: String,
}

/// Why there is no report.
#[derive(Debug, thiserror::Error)]
pub enum DriveError {
    /// The fleet cannot start.
    #[error(transparent)]
    Fleet(#[from] FleetError),
    /// The API failed.
    #[error(transparent)]
    Api(#[from] ApiError),
}

/// What is measured, and with what.
#[derive(Debug)]
pub struct Bench {
    /// The fleet.
    pub fleet: Fleet,
    options: Options,
    plan: Plan,
    api: Option<Api>,
    control: Option<Process>,
    report: Report,
}

impl Bench {
    /// Starts the fleet and waits until it is current. Without an `api`, nothing is revoked.
    pub async fn start(
        options: Options,
        identities: &Identities,
        plan: Plan,
        api: Option<Api>,
        control: Option<Process>,
        tell: &dyn Fn(&str),
    ) -> Result<Self, DriveError> {
        tell(&format!("{} sidecars connect", options.sidecars));
        let fleet = Fleet::start(options.clone(), identities)?;
        let report = Report::new(options.sidecars, options.verify_every, fleet.counts());
        let mut bench = Self { fleet, options, plan, api, control, report };
        bench.joined("start", &|_| {}, tell).await;
        Ok(bench)
    }

    /// The whole course. `identities` are for the herd.
    pub async fn run(&mut self, identities: &Identities, tell: &dyn Fn(&str)) -> Result<(), DriveError> {
        self.rest(tell).await;
        if self.plan.revocations > 0 && self.api.is_some() {
            tell(&format!("{} revocations, one at a time", self.plan.revocations));
            self.report.single = self.single(self.plan.wait).await?;
        }
        if self.plan.burst > 0
            && let Some(api) = &self.api
        {
            tell(&format!("{} revocations at once", self.plan.burst));
            let burst = Burst { revocations: self.plan.burst, wait: self.plan.wait };
            self.report.burst = Some(bursts(&self.fleet, api, &self.plan.issuer, burst, self.control).await?);
        }
        if self.plan.reconnect {
            self.joined("resume", &|fleet| fleet.reconnect(false), tell).await;
            self.joined("snapshot", &|fleet| fleet.reconnect(true), tell).await;
        }
        if self.plan.herd > 0 && self.api.is_some() {
            self.report.under_herd = self.under_herd(identities, tell).await?;
        }
        Ok(())
    }

    /// What `cause` costs until all are current again.
    pub async fn joined(&mut self, what: &str, cause: &dyn Fn(&Fleet), tell: &dyn Fn(&str)) {
        let (before, cpu) = (self.fleet.counts(), self.cpu());
        cause(&self.fleet);
        if what != "start" {
            tell(&format!("all come back: {what}"));
            // Until the first has noticed.
            while self.fleet.counts().current == self.fleet.len() && self.fleet.counts().attempts == before.attempts {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
        let took = self.fleet.all_current(self.plan.limit).await;
        let after = self.fleet.counts();
        let cpu_seconds = self.cpu().zip(cpu).map(|(after, before)| after - before);
        if took.is_none() {
            let why = self.fleet.last_failure().unwrap_or_default();
            tell(&format!("only {} of {} are current; the last failure: {why}", after.current, self.fleet.len()));
        }
        self.report.joined.push(Joined {
            what: what.to_owned(),
            all_current_ms: took.map(|t| t.as_secs_f64() * 1000.0),
            attempts: after.attempts - before.attempts,
            turned_away: after.turned_away - before.turned_away,
            cpu_seconds,
        });
    }

    /// The report as it stands.
    pub fn report(&mut self) -> Report {
        self.report.counts = self.fleet.counts();
        self.report.last_failure = self.fleet.last_failure();
        self.report.control = self.control.and_then(Process::usage);
        self.report.fleet = Process(std::process::id()).usage();
        self.report.clone()
    }

    /// The control plane is another process from now on.
    pub const fn restarted(&mut self, control: Option<Process>) {
        self.control = control;
    }

    async fn rest(&mut self, tell: &dyn Fn(&str)) {
        if self.plan.rest.is_zero() {
            return;
        }
        tell("the fleet rests");
        tokio::time::sleep(Duration::from_secs(1)).await;
        let before = self.cpu();
        tokio::time::sleep(self.plan.rest).await;
        self.report.idle = self.control.and_then(Process::usage);
        self.report.idle_cores =
            self.cpu().zip(before).map(|(after, before)| (after - before) / self.plan.rest.as_secs_f64());
    }

    async fn single(&self, wait: Duration) -> Result<Option<Spread>, DriveError> {
        let Some(api) = &self.api else { return Ok(None) };
        let rounds = Rounds { revocations: self.plan.revocations, pause: self.plan.pause, wait, limit: self.plan.wait };
        Ok(Some(revocations(&self.fleet, api, &self.plan.issuer, rounds, self.control).await?))
    }

    async fn under_herd(&self, identities: &Identities, tell: &dyn Fn(&str)) -> Result<Option<Spread>, DriveError> {
        tell(&format!("revocations while {} newcomers keep coming", self.plan.herd));
        let options = Options { sidecars: self.plan.herd, ..self.options.clone() };
        let herd = Fleet::start(options, identities)?;
        let mut ticks = tokio::time::interval(Duration::from_secs(2));
        let stampede = async {
            loop {
                ticks.tick().await;
                herd.reconnect(true);
            }
        };
        // The herd's own receipts are never complete, so they are not waited for.
        tokio::select! {
            never = stampede => never,
            spread = self.single(Duration::from_secs(1)) => spread,
        }
    }

    fn cpu(&self) -> Option<f64> {
        Some(self.control?.usage()?.cpu_seconds)
    }
}
