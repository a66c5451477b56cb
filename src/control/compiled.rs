//! What is compiled of a document that everybody asks for and that changes seldom: once for each revision of it.
//!
//! Plane: control. Compiling takes long: it is done off the runtime's threads, once however many ask meanwhile, and no
//! lock that blocks a thread is held. INVARIANT: what was compiled of an older revision never stands in for a newer one.
//! What does not compile is remembered as well; what that means is for the caller, and is never an allow.

use std::sync::{Arc, Mutex, PoisonError};

use crate::offload::offload;
use crate::wire::Revision;

/// The last of it.
#[derive(Debug)]
pub(super) struct Compiled<T> {
    last: Mutex<Option<(Revision, Option<Arc<T>>)>>,
    /// Held by who compiles.
    turn: tokio::sync::Mutex<()>,
}

// === impl Compiled ===

impl<T> Default for Compiled<T> {
    fn default() -> Self {
        Self { last: Mutex::default(), turn: tokio::sync::Mutex::default() }
    }
}

impl<T: Send + Sync + 'static> Compiled<T> {
    /// What became of this revision, if that is known.
    pub(super) fn known(&self, revision: Revision) -> Option<Option<Arc<T>>> {
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().filter(|(of, _)| *of == revision).map(|(_, compiled)| compiled.clone())
    }

    /// What becomes of this revision. Waits for whoever compiles it already.
    pub(super) async fn of(
        &self,
        revision: Revision,
        compile: impl FnOnce() -> Option<T> + Send + 'static,
    ) -> Option<Arc<T>> {
        let _turn = self.turn.lock().await;
        if let Some(known) = self.known(revision) {
            return known;
        }
        // What was not finished is tried again by whoever asks next.
        let compiled = offload(compile).await.ok()?.map(Arc::new);
        self.keep(revision, compiled)
    }

    /// The same, in place: for who cannot wait, and has seldom to, because others asked before.
    pub(super) fn of_now(&self, revision: Revision, compile: impl FnOnce() -> Option<T>) -> Option<Arc<T>> {
        self.known(revision).unwrap_or_else(|| self.keep(revision, compile().map(Arc::new)))
    }

    fn keep(&self, revision: Revision, compiled: Option<Arc<T>>) -> Option<Arc<T>> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref().is_none_or(|(of, _)| *of < revision) {
            *last = Some((revision, compiled.clone()));
        }
        compiled
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::*;

    /// While one set is compiled, the runtime's only thread for tasks answers others, and nobody compiles it again.
    #[tokio::test(flavor = "multi_thread", worker_threads = 1)]
    async fn it_is_compiled_once_and_holds_nobody_else_up() {
        let cache = Arc::new(Compiled::<u64>::default());
        let count = Arc::new(AtomicUsize::new(0));
        let (go, wait) = std::sync::mpsc::channel::<()>();
        let wait = Arc::new(Mutex::new(wait));
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let (cache, count, wait) = (Arc::clone(&cache), Arc::clone(&count), Arc::clone(&wait));
                tokio::spawn(async move {
                    let compile = move || {
                        count.fetch_add(1, Ordering::SeqCst);
                        wait.lock().unwrap().recv_timeout(Duration::from_secs(10)).unwrap();
                        Some(7)
                    };
                    cache.of(Revision(3), compile).await
                })
            })
            .collect();
        // Spawned last on the same thread: it runs although the others are not done.
        tokio::spawn(async {}).await.unwrap();
        assert_eq!(cache.known(Revision(3)), None, "asking does not wait either");
        go.send(()).unwrap();
        for task in tasks {
            assert_eq!(task.await.unwrap().as_deref(), Some(&7));
        }
        assert_eq!(count.load(Ordering::SeqCst), 1);
        assert_eq!(cache.of_now(Revision(2), || Some(1)).as_deref(), Some(&1));
        assert_eq!(cache.known(Revision(3)).flatten().as_deref(), Some(&7), "an older one does not replace it");
        assert_eq!(cache.of_now(Revision(4), || None), None);
        assert_eq!(cache.known(Revision(4)), Some(None));
    }
}
