//! Work that would hold up a runtime's threads: compiling, gathering, writing to disk.
//!
//! Plane: cross-cutting. Not for the request path. On a runtime with one thread, which only tests and simulations
//! have, the work is done in place: there time stands still meanwhile, and a run can be repeated exactly.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Taking in so many bytes takes longer than others should wait for.
const LONG: usize = 64 << 10;

/// The work panicked, or the runtime is ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the work was not finished")]
pub struct Unfinished;

/// Does `work` off the runtime's threads. Within a tokio runtime.
pub async fn offload<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Unfinished> {
    if !has_other_threads() {
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(|_panicked| Unfinished)
}

/// Does `work` here, and lets the thread's other tasks go elsewhere first if it takes in more than a few bytes. Within a tokio
/// runtime.
pub fn in_place<T>(bytes: usize, work: impl FnOnce() -> T) -> T {
    if bytes < LONG || !has_other_threads() { work() } else { tokio::task::block_in_place(work) }
}

/// Whether work may be done off the runtime's threads. Within a tokio runtime.
pub fn has_other_threads() -> bool {
    Handle::current().runtime_flavor() != RuntimeFlavor::CurrentThread
}
