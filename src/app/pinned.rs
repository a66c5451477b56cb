//! Threads to which connections of the ext_authz door are pinned, where the configuration asks for them.
//!
//! Plane: composition. Each is a runtime with one thread. They end when this is dropped: the door has been drained by then,
//! or its time is over.

use std::io;

use tokio::runtime::{Builder, Handle, Runtime};

use crate::cache::coalesce;

/// The runtimes.
#[derive(Debug)]
pub(super) struct Pinned(Vec<Runtime>);

impl Pinned {
    /// Starts so many.
    pub(super) fn start(threads: u16) -> io::Result<Self> {
        let start = |n| {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(1).thread_name(format!("checks-{n}")).on_thread_park(coalesce::before_park);
            builder.enable_all().build()
        };
        Ok(Self((0..threads).map(start).collect::<io::Result<_>>()?))
    }

    /// To hand connections to.
    pub(super) fn handles(&self) -> Vec<Handle> {
        self.0.iter().map(|runtime| runtime.handle().clone()).collect()
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // May be dropped on a runtime, where nothing must be waited for.
        self.0.drain(..).for_each(Runtime::shutdown_background);
    }
}
