//! The benchmark tool: a load generator for any ext_authz server, and estates to measure Portcullis with.
//!
//! Plane: composition; a client of servers, part of none. It must cost less than what it measures, and it must not hide
//! what it could not do: a request counts from when it was meant to be sent, and one without an answer counts too.

mod compare;
mod expect;
pub mod fleet;
pub mod generate;
mod grpc;
mod html;
mod http1;
mod load;
mod mix;
mod pace;
mod plot;
mod prepare;
mod process;
mod report;
mod run;
mod tally;
mod target;

#[cfg(test)]
mod tests;

pub use self::compare::{Comparison, Ratio};
pub use self::expect::Expect;
pub use self::html::html;
pub use self::load::Pace;
pub use self::mix::{Mix, MixError, Shares, Single};
pub use self::plot::{Plot, micros};
pub use self::report::{Latency, QUANTILES, Report, Round, TargetReport};
pub use self::run::{RunError, Settings, Step, run};
pub use self::target::{Place, Target};
