//! What a server process used: processor time and memory, as the kernel accounts for them.
//!
//! Plane: composition; Linux. Processor time is that of every thread in nanoseconds (`/proc/PID/task/*/schedstat`), because
//! a light load is a few ticks of the ten-millisecond clock; where the kernel keeps none, those ticks. Threads that end
//! between two readings are missed.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

/// Linux tells user and system time in hundredths of a second, whatever its own clock does.
const TICKS_A_SECOND: u64 = 100;

/// The processor time that threads had used when it was read.
#[derive(Debug, Clone)]
pub(super) struct Reading {
    threads: HashMap<u32, u64>,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Memory {
    /// Resident now.
    pub(super) resident: u64,
    /// The most that ever was.
    pub(super) peak: u64,
}

/// Reads the processor time of `pid`.
pub(super) fn read(pid: u32) -> Result<Reading, String> {
    let gone = |e: std::io::Error| format!("process {pid}: {e}");
    let mut threads = HashMap::new();
    for entry in std::fs::read_dir(format!("/proc/{pid}/task")).map_err(gone)?.flatten() {
        let Some(thread) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // It may have ended meanwhile.
        if let Some(nanos) = thread_nanos(&entry.path()) {
            threads.insert(thread, nanos);
        }
    }
    if threads.is_empty() { Err(format!("process {pid} has no threads to read")) } else { Ok(Reading { threads }) }
}

/// Reads the memory of `pid`.
pub(super) fn memory(pid: u32) -> Result<Memory, String> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).map_err(|e| format!("process {pid}: {e}"))?;
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let number = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
        number.map_or(0, |n| n * 1024)
    };
    Ok(Memory { resident: kib("VmRSS:"), peak: kib("VmHWM:") })
}

impl Reading {
    /// What was used since `earlier`.
    pub(super) fn since(&self, earlier: &Self) -> Duration {
        let used = |(thread, now): (&u32, &u64)| now.saturating_sub(earlier.threads.get(thread).copied().unwrap_or(0));
        Duration::from_nanos(self.threads.iter().map(used).sum())
    }
}

fn thread_nanos(task: &std::path::Path) -> Option<u64> {
    if let Ok(text) = std::fs::read_to_string(task.join("schedstat"))
        && let Some(nanos) = text.split_whitespace().next().and_then(|n| n.parse().ok())
    {
        return Some(nanos);
    }
    ticks(task.join("stat")).map(|ticks| ticks * (1_000_000_000 / TICKS_A_SECOND))
}

fn ticks(stat: PathBuf) -> Option<u64> {
    let text = std::fs::read_to_string(stat).ok()?;
    // The name may hold anything; fields are counted from behind it.
    let mut fields = text.rsplit(')').next()?.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u64>().ok();
    Some(next()? + next()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_process_uses_is_seen() {
        let pid = std::process::id();
        let before = read(pid).unwrap();
        let ticks_before = ticks(PathBuf::from(format!("/proc/{pid}/stat"))).unwrap();
        let start = std::time::Instant::now();
        let mut n = 0_u64;
        while start.elapsed() < Duration::from_millis(100) {
            n = std::hint::black_box(n + 1);
        }
        let used = read(pid).unwrap().since(&before);
        // Others may have the processor for part of it.
        assert!(used >= Duration::from_millis(5), "{used:?}");
        assert!(ticks(PathBuf::from(format!("/proc/{pid}/stat"))).unwrap() >= ticks_before);
        let memory = memory(pid).unwrap();
        assert!(memory.resident > 1 << 20 && memory.peak >= memory.resident / 2, "{memory:?}");
        assert!(read(u32::MAX).unwrap_err().contains("process 4294967295"));
    }
}
