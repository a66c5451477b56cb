//! One HTTP/2 connection: every check that has arrived is answered in its task, and the answers leave in one write.
//!
//! Plane: hot path. A task for each check would cost more than a warm check does, and a write for each answer twice
//! that. INVARIANT: only what is ready at once is run here; a check that has to wait (for its message, for a signature to be
//! verified) goes on in a task of its own and holds nobody up. One that panics ends alone, as it would in a task. When the
//! connection ends, however it does, the checks that have not begun are dropped with it, and their places are free again.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::rt::{Executor, Read, ReadBufCursor, Write};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};

use super::Config;
use super::service::Door;
use crate::drain;

/// For what is under way at the deadline. A check takes less than a millisecond.
const LAST_MOMENT: Duration = Duration::from_millis(500);

/// So many checks are answered before their answers are written: the first shall not wait for all of a long queue.
const BATCH: usize = 64;
/// After so many batches in a row other connections have their turn.
const BATCHES: usize = 8;

/// The streams that hyper has accepted and nobody has polled yet.
#[derive(Clone, Default)]
struct Begun(Arc<Mutex<VecDeque<Stream>>>);

/// Empties the queue at the end. Each stream holds the queue that holds it, so that nothing else would ever drop them.
struct Ended(Begun);

type Stream = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A socket that claims no vectored writes. HTTP/2 then copies an answer behind its headers, and its neighbours behind
/// it, where otherwise each answer's data would be a write of its own.
struct Joined<IO>(TokioIo<IO>);

/// Serves `io` until its peer ends it, or `drain` expires.
pub(super) async fn connection<IO>(io: IO, door: Arc<Door>, drain: drain::Signal)
where
    IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let begun = Begun::default();
    let _ended = Ended(begun.clone());
    let builder = http2_builder(begun.clone(), door.config());
    let number = door.connect();
    let service = service_fn(move |request| door.arrive(number).answer(request));
    let mut connection = pin!(builder.serve_connection(Joined(TokioIo::new(io)), service));
    let result = tokio::select! {
        biased;
        result = poll_fn(|cx| begun.drive(connection.as_mut(), cx)) => result,
        () = drain.expired() => {
            connection.as_mut().graceful_shutdown();
            let ending = poll_fn(|cx| begun.drive(connection.as_mut(), cx));
            tokio::time::timeout(LAST_MOMENT, ending).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection broke");
    }
}

fn http2_builder(begun: Begun, config: &Config) -> http2::Builder<Begun> {
    let mut builder = http2::Builder::new(begun);
    builder
        .timer(TokioTimer::new())
        .auto_date_header(false)
        .max_concurrent_streams(config.max_concurrent_streams)
        .max_local_error_reset_streams(config.max_local_error_reset_streams)
        .max_header_list_size(config.max_http2_header_list_bytes)
        .keep_alive_interval(config.keepalive)
        .keep_alive_timeout(config.keepalive);
    builder
}

// === impl Begun ===

impl Begun {
    fn lock(&self) -> MutexGuard<'_, VecDeque<Stream>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Polls a connection and what has begun on it. After some batches it makes way for other connections.
    fn drive<C>(&self, mut connection: Pin<&mut C>, cx: &mut Context<'_>) -> Poll<C::Output>
    where
        C: Future,
    {
        for _ in 0..BATCHES {
            let polled = connection.as_mut().poll(cx);
            let any = self.run(cx);
            if polled.is_ready() || !any {
                return polled;
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    /// Polls a batch of them once each. Whether there were any.
    fn run(&self, cx: &mut Context<'_>) -> bool {
        for ran in 0..BATCH {
            let Some(mut stream) = self.lock().pop_front() else { return ran > 0 };
            match catch_unwind(AssertUnwindSafe(|| stream.as_mut().poll(cx))) {
                Ok(Poll::Ready(())) => {}
                // It is polled again there, and so waits with the waker of its own task.
                Ok(Poll::Pending) => drop(tokio::spawn(stream)),
                Err(_panic) => tracing::error!("a stream panicked and is reset"),
            }
        }
        true
    }
}

// === impl Ended ===

impl Drop for Ended {
    fn drop(&mut self) {
        let left = std::mem::take(&mut *self.0.lock());
        // Not under the lock: what is dropped may want it.
        drop(left);
    }
}

impl<F> Executor<F> for Begun
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        self.lock().push_back(Box::pin(stream));
    }
}

// === impl Joined ===

impl<IO: AsyncRead + Unpin> Read for Joined<IO> {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: ReadBufCursor<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl<IO: AsyncWrite + Unpin> Write for Joined<IO> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::oneshot;

    use super::*;

    #[tokio::test]
    async fn what_is_ready_is_run_at_once_what_waits_goes_on_by_itself_and_a_panic_ends_alone() {
        let begun = Begun::default();
        let done = Arc::new(AtomicUsize::new(0));
        let counts = |times: usize| {
            for _ in 0..times {
                let done = Arc::clone(&done);
                begun.execute(async move {
                    done.fetch_add(1, Ordering::Relaxed);
                });
            }
        };
        let (tell, told) = oneshot::channel::<()>();
        let (ends, ended) = oneshot::channel();
        counts(1);
        begun.execute(async { panic!("as a bug would") });
        begun.execute(async move {
            told.await.unwrap();
            ends.send(()).unwrap();
        });
        counts(3 * BATCH);

        let mut connection = pin!(std::future::pending::<()>());
        let polled = poll_fn(|cx| Poll::Ready(begun.drive(connection.as_mut(), cx))).await;
        assert!(polled.is_pending());
        assert_eq!(done.load(Ordering::Relaxed), 1 + 3 * BATCH, "more than a batch, in one poll");
        drop(begun);
        tell.send(()).unwrap();
        ended.await.unwrap();
    }

    #[tokio::test]
    async fn what_has_not_begun_when_the_connection_ends_is_dropped() {
        struct Place(Arc<AtomicUsize>);
        impl Drop for Place {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let begun = Begun::default();
        let left = Arc::new(AtomicUsize::new(0));
        for _ in 0..3 * BATCH {
            // As hyper's streams do, each holds the executor.
            let (place, executor) = (Place(Arc::clone(&left)), begun.clone());
            begun.execute(async move {
                drop((place, executor));
            });
        }
        let guard = Ended(begun.clone());
        let mut connection = pin!(std::future::ready(()));
        assert!(poll_fn(|cx| Poll::Ready(begun.drive(connection.as_mut(), cx))).await.is_ready());
        assert_eq!(left.load(Ordering::Relaxed), BATCH);
        drop((guard, begun));
        assert_eq!(left.load(Ordering::Relaxed), 3 * BATCH);
    }

    #[tokio::test]
    async fn a_connection_that_is_never_idle_makes_way() {
        let begun = Begun::default();
        let again = begun.clone();
        let mut connection = pin!(poll_fn(move |_| {
            again.execute(async {});
            Poll::<()>::Pending
        }));
        assert!(poll_fn(|cx| Poll::Ready(begun.drive(connection.as_mut(), cx))).await.is_pending());
    }
}
