//! A run: every target in turn, round after round, so that what the machine does meanwhile falls on all of them.
//!
//! Plane: composition. The order turns from round to round. Fails before anything is measured when a target cannot be
//! reached or a process cannot be read; what fails later is counted under its name and does not stop the run.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::load::{Client, Pace, Turn};
use super::mix::{Mix, MixError};
use super::prepare::{Needs, Plan};
use super::process::{self, Memory, Reading};
use super::report::{Report, Round};
use super::tally::Tally;
use super::target::{Place, Target};
use crate::clock::{Clock, SystemClock};

/// What a run does.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The servers; the first is what others are compared with.
    pub targets: Vec<Target>,
    /// The pace.
    pub pace: Pace,
    /// Connections to each target.
    pub connections: usize,
    /// Requests at once on each connection.
    pub streams: usize,
    /// Rounds.
    pub rounds: usize,
    /// How long the turn of one target in one round lasts.
    pub duration: Duration,
    /// How long each target is sent requests that do not count, before the first round.
    pub warm_up: Duration,
    /// After so long a request is given up.
    pub timeout: Duration,
    /// Server processes: the name of a target, and a process. A target may have several.
    pub pids: Vec<(String, u32)>,
    /// Threads that generate load.
    pub threads: usize,
    /// How many requests with new tokens may be made when the number of requests is not known before (saturated).
    pub most_requests: u64,
}

/// Where a run is.
#[derive(Debug, Clone, Copy)]
pub struct Step<'a> {
    /// From 1; 0 is the warm-up.
    pub round: usize,
    /// Rounds.
    pub rounds: usize,
    /// Whose turn it is.
    pub target: &'a str,
    /// How long the turn lasts.
    pub lasts: Duration,
}

/// Why there is no result.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The settings contradict themselves.
    #[error("{0}")]
    Settings(String),
    /// The requests.
    #[error(transparent)]
    Mix(#[from] MixError),
    /// A target.
    #[error("target `{name}` at `{place}` cannot be reached: {reason}")]
    Unreachable {
        /// Its name.
        name: String,
        /// Its address.
        place: Place,
        /// Why.
        reason: String,
    },
    /// A process.
    #[error("--pid {name}: {reason}")]
    Process {
        /// The target that it belongs to.
        name: String,
        /// Why.
        reason: String,
    },
    /// Us.
    #[error("{0}")]
    System(String),
}

/// A target under way.
struct Running {
    client: Client,
    pids: Vec<u32>,
    rounds: Vec<Round>,
    total: Tally,
}

/// Runs it. `progress` is told of every turn as it starts.
pub fn run(mix: &Mix, settings: &Settings, progress: impl Fn(Step<'_>)) -> Result<Report, RunError> {
    settings.check()?;
    let system = |e: std::io::Error| RunError::System(e.to_string());
    let runtime = match settings.threads {
        1 => tokio::runtime::Builder::new_current_thread().enable_all().build(),
        n => tokio::runtime::Builder::new_multi_thread().worker_threads(n).enable_all().build(),
    };
    runtime.map_err(system)?.block_on(async {
        let plan = Arc::new(Plan::new(mix, settings.needs())?);
        let mut all = Vec::new();
        for target in &settings.targets {
            all.push(Running::start(target, &plan, settings).await?);
        }
        for (target, running) in settings.targets.iter().zip(&mut all) {
            if !settings.warm_up.is_zero() {
                let lasts = settings.warm_up;
                progress(Step { round: 0, rounds: settings.rounds, target: &target.name, lasts });
                let turn = Turn { pace: settings.pace, lasts, timeout: settings.timeout };
                running.client.take(turn).await.map_err(|e| RunError::System(e.to_string()))?;
            }
        }
        let started = Instant::now();
        for round in 1..=settings.rounds {
            for n in 0..all.len() {
                let at = (n + round - 1) % all.len();
                let (Some(target), Some(running)) = (settings.targets.get(at), all.get_mut(at)) else { continue };
                let lasts = settings.duration;
                progress(Step { round, rounds: settings.rounds, target: &target.name, lasts });
                running.turn(settings, &target.name).await?;
            }
        }
        let took = started.elapsed();
        let measured = all.into_iter().map(|running| (running.total, running.rounds)).collect();
        Ok(Report::new(&plan, settings, SystemClock::new().now().wall, took, measured))
    })
}

// === impl Running ===

impl Running {
    async fn start(target: &Target, plan: &Arc<Plan>, settings: &Settings) -> Result<Self, RunError> {
        let client = Client::connect(target, plan, (settings.connections, settings.streams)).await;
        let client = client.map_err(|reason| RunError::Unreachable {
            name: target.name.clone(),
            place: target.place.clone(),
            reason,
        })?;
        let pids: Vec<u32> = settings.pids.iter().filter(|(name, _)| *name == target.name).map(|(_, n)| *n).collect();
        let total = Tally::new().map_err(|e| RunError::System(e.to_string()))?;
        let running = Self { client, pids, rounds: Vec::new(), total };
        running.readings(&target.name)?;
        Ok(running)
    }

    async fn turn(&mut self, settings: &Settings, name: &str) -> Result<(), RunError> {
        let own = || process::read(std::process::id()).map_err(RunError::System);
        let (before, own_before) = (self.readings(name)?, own()?);
        let turn = Turn { pace: settings.pace, lasts: settings.duration, timeout: settings.timeout };
        let tally = self.client.take(turn).await.map_err(|e| RunError::System(e.to_string()))?;
        let own_used = own()?.since(&own_before);
        let after = self.readings(name)?;
        let used = after.iter().zip(&before).map(|(after, before)| after.since(before)).sum();
        let memory = self.pids.iter().map(|pid| process::memory(*pid));
        let memory = memory.collect::<Result<Vec<Memory>, _>>();
        let memory = memory.map_err(|reason| RunError::Process { name: name.to_owned(), reason })?;
        let used = (!self.pids.is_empty()).then_some((used, memory));
        self.rounds.push(Round::new(&tally, used, own_used));
        self.total.add(&tally);
        Ok(())
    }

    fn readings(&self, name: &str) -> Result<Vec<Reading>, RunError> {
        let each = self.pids.iter().map(|pid| process::read(*pid));
        each.collect::<Result<_, _>>().map_err(|reason| RunError::Process { name: name.to_owned(), reason })
    }
}

// === impl Settings ===

impl Settings {
    fn check(&self) -> Result<(), RunError> {
        let wrong = |text: String| Err(RunError::Settings(text));
        if self.targets.is_empty() {
            return wrong("at least one target is needed".to_owned());
        }
        for (n, target) in self.targets.iter().enumerate() {
            if self.targets.iter().take(n).any(|earlier| earlier.name == target.name) {
                return wrong(format!("two targets are called `{}`", target.name));
            }
        }
        for (name, _) in &self.pids {
            if !self.targets.iter().any(|target| target.name == *name) {
                return wrong(format!("--pid `{name}`: there is no target of that name"));
            }
        }
        if let Pace::Rate(rate) = self.pace
            && !(rate.is_finite() && (0.01..=1_000_000.0).contains(&rate))
        {
            return wrong(format!("a rate of `{rate}`: from 0.01 to 1000000 requests a second are possible"));
        }
        for (name, value, most) in [
            ("connections", self.connections, 10_000),
            ("streams", self.streams, 10_000),
            ("rounds", self.rounds, 10_000),
            ("threads", self.threads, 256),
            ("connections times streams", self.connections.saturating_mul(self.streams), 100_000),
        ] {
            if !(1..=most).contains(&value) {
                return wrong(format!("`{value}` {name}: from 1 to {most} are possible"));
            }
        }
        let hour = Duration::from_secs(3600);
        for (name, value, least) in [
            ("duration", self.duration, Duration::from_millis(1)),
            ("warm-up", self.warm_up, Duration::ZERO),
            ("timeout", self.timeout, Duration::from_millis(1)),
        ] {
            if value < least || value > hour {
                return wrong(format!("a {name} of `{}`: at most 1h is possible", humantime::format_duration(value)));
            }
        }
        Ok(())
    }

    fn needs(&self) -> Needs {
        let rounds = u32::try_from(self.rounds).unwrap_or(u32::MAX);
        let turns = self.warm_up.saturating_add(self.duration.saturating_mul(rounds));
        let requests = match self.pace {
            Pace::Rate(rate) => (rate * turns.as_secs_f64()).ceil() as u64 + 1 + u64::from(rounds),
            Pace::Saturate => self.most_requests,
        };
        let targets = u32::try_from(self.targets.len()).unwrap_or(u32::MAX);
        Needs {
            check: self.targets.iter().any(|t| !matches!(t.place, Place::Http(_))),
            http: self.targets.iter().any(|t| matches!(t.place, Place::Http(_))),
            requests,
            lasts: turns.saturating_add(self.timeout).saturating_mul(targets),
            now: SystemClock::new().now().wall,
        }
    }
}
