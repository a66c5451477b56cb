//! How a command ends: yes, no, or an error; and how that becomes an exit status and a message.
//!
//! Plane: composition. 0 is yes, 1 is no (the server understood and refused), 2 is everything that kept us from an
//! answer. INVARIANT: what is not understood ends as 2, never as 0.

use std::io::{self, Write};
use std::process::ExitCode;

use serde_json::Value;

use super::output::Out;
use crate::config::ConfigError;

/// What a command found out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Answer {
    /// Exit status 0.
    Yes,
    /// Exit status 1.
    No,
}

/// What a command comes to.
pub(super) type Outcome = Result<Answer, Failure>;

/// Why there is no answer.
#[derive(Debug)]
pub(super) enum Failure {
    /// Exit status 2: usage, configuration, reach.
    Error(String),
    /// Exit status 1: the control plane understood and refused.
    Refused {
        /// For people.
        message: String,
        /// The problem document.
        problem: Value,
    },
    /// Whoever read the output has gone away.
    Closed,
}

// === impl Failure ===

impl Failure {
    /// An error with this message.
    pub(super) fn error(message: impl Into<String>) -> Self {
        Self::Error(message.into())
    }

    /// Writes the message; returns the exit status.
    pub(super) fn report(self, out: &mut Out<'_>, err: &mut dyn Write) -> ExitCode {
        // Nobody is left to tell when standard error is closed too.
        match self {
            Self::Error(message) => {
                let _ = writeln!(err, "error: {message}");
                ExitCode::from(2)
            }
            Self::Refused { message, problem } => {
                if out.is_json() {
                    let _ = out.json(&problem).and_then(|()| Ok(out.flush()?));
                }
                let _ = writeln!(err, "refused: {message}");
                ExitCode::from(1)
            }
            Self::Closed => ExitCode::SUCCESS,
        }
    }
}

impl From<io::Error> for Failure {
    fn from(e: io::Error) -> Self {
        if e.kind() == io::ErrorKind::BrokenPipe { Self::Closed } else { Self::Error(e.to_string()) }
    }
}

impl From<ConfigError> for Failure {
    fn from(e: ConfigError) -> Self {
        Self::Error(e.to_string())
    }
}
