//! What a process of this machine uses: CPU time and memory, from `/proc`; and how many descriptors this one may have.
//!
//! Plane: composition. Linux only; elsewhere there is nothing to read, and the figures are absent rather than wrong.

use serde::Serialize;

/// Kernel ticks a second of `/proc/PID/stat` (`USER_HZ`, 100 on every Linux that we run on).
const TICKS: f64 = 100.0;

/// A process to be watched.
#[derive(Debug, Clone, Copy)]
pub struct Process(pub u32);

/// What it uses.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Usage {
    /// CPU time so far, user and system, in seconds; the kernel counts in hundredths.
    pub cpu_seconds: f64,
    /// Resident memory, in bytes.
    pub resident_bytes: u64,
    /// The most that it was, in bytes.
    pub peak_bytes: u64,
}

impl Process {
    /// What it uses now; `None` when it cannot be told.
    pub fn usage(self) -> Option<Usage> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0)).ok()?;
        // The name in parentheses may hold anything; what follows it does not.
        let mut fields = stat.rsplit_once(')')?.1.split_ascii_whitespace().skip(11);
        let mut ticks = || fields.next()?.parse::<f64>().ok();
        let cpu_seconds = (ticks()? + ticks()?) / TICKS;
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0)).ok()?;
        let kib = |name: &str| {
            let line = status.lines().find_map(|l| l.strip_prefix(name))?;
            line.split_ascii_whitespace().next()?.parse::<u64>().ok()
        };
        Some(Usage {
            cpu_seconds,
            resident_bytes: kib("VmRSS:")?.saturating_mul(1024),
            peak_bytes: kib("VmHWM:")?.saturating_mul(1024),
        })
    }
}

/// How many files and sockets this process may have open, after asking for as many as it may ask for.
pub fn max_descriptors() -> u64 {
    crate::app::descriptors::raise()
}
