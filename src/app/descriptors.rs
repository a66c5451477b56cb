//! How many files and sockets a process may have open.
//!
//! Plane: composition. Many systems start processes with a soft limit of 1,024 and a hard one far above it; a control
//! plane needs a descriptor for each sidecar. Raising the soft limit takes no privilege. Where it fails, the process runs
//! with what it has: it then accepts fewer connections and serves those as always.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Raises the soft limit to the hard one. Tells the limit in force.
pub fn raise() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum || setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).is_err() {
        return current.unwrap_or(u64::MAX);
    }
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}
