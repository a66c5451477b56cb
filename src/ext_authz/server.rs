//! Accepts connections and ends them. Plane: hot path at its edge.
//!
//! While draining, connections are kept and new ones accepted: checks are answered until the last connection is gone
//! or the deadline passes; no GOAWAY before that, for Envoy would only connect again. At the deadline every connection
//! gets a GOAWAY and a moment to finish what is under way. INVARIANT: an accept that fails never ends the door.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::runtime::Handle;
use tokio::task::JoinSet;

use super::Config;
use super::connection::connection;
use super::health::Health;
use super::listener::UnixSocket;
use super::service::Door;
use crate::cache::Gate;
use crate::door::{Accept, Checks, accept};
use crate::drain;
use crate::readiness::Readiness;
use crate::telemetry::Telemetry;

/// Where the door listens: bound already, so that a port that is taken is an error at start.
#[derive(Debug, Default)]
pub struct Listeners {
    /// For Envoy on TCP.
    pub tcp: Option<TcpListener>,
    /// For Envoy on a Unix socket.
    pub unix: Option<UnixSocket>,
    /// The runtimes that connections are handed to, each to the one that has the fewest; none: the one that accepts.
    pub workers: Vec<Handle>,
}

/// Runtimes, and how many connections each has.
struct Workers(Vec<(Handle, Arc<AtomicUsize>)>);

/// A connection of a worker, until it is dropped.
struct Held(Arc<AtomicUsize>);

#[derive(Debug)]
pub(crate) enum Accepted {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// Serves until drained: see the module's documentation. Accepts on the runtime this is called on. With verification
/// threads and limits that no other door shares.
pub async fn serve(
    listeners: Listeners,
    gate: Arc<Gate>,
    telemetry: Arc<Telemetry>,
    readiness: Readiness,
    config: Config,
    drain: drain::Signal,
) -> io::Result<()> {
    let checks = Checks::new(gate, telemetry, &config.checks())?;
    serve_checks(listeners, &checks, readiness, config, drain).await
}

/// The same, with what other doors have too: then of `config` their share does not count.
pub async fn serve_checks(
    listeners: Listeners,
    checks: &Checks,
    readiness: Readiness,
    config: Config,
    drain: drain::Signal,
) -> io::Result<()> {
    if listeners.tcp.is_none() && listeners.unix.is_none() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the ext_authz door has nowhere to listen"));
    }
    let health = Health::new().await;
    let mut background = JoinSet::new();
    background.spawn(health.clone().follow(readiness, drain.clone()));
    let max_connections = config.max_connections;
    let door = Arc::new(Door::new(Arc::clone(checks.desk()), config, health.service()));

    let workers = Workers::new(&listeners.workers);
    let mut connections = JoinSet::new();
    let serve = |stream, connections: &mut JoinSet<()>| {
        if let Err(error) = workers.hand_over(stream, connections, &door, &drain) {
            tracing::warn!(%error, "a connection cannot be handed over");
        }
    };
    accept(&listeners, max_connections, &drain, &mut connections, serve).await;
    drop(listeners);
    while connections.join_next().await.is_some() {}
    Ok(())
}

// === impl Workers ===

impl Workers {
    fn new(handles: &[Handle]) -> Self {
        let here = [Handle::current()];
        let handles = if handles.is_empty() { &here } else { handles };
        Self(handles.iter().map(|handle| (handle.clone(), Arc::default())).collect())
    }

    /// Has the worker with the fewest connections serve one more. Connections live long and are few (Envoy has one for
    /// each of its workers), so that their number is what has to be even, which ports shared by hash would not make it.
    fn hand_over(
        &self,
        accepted: Accepted,
        connections: &mut JoinSet<()>,
        door: &Arc<Door>,
        drain: &drain::Signal,
    ) -> io::Result<()> {
        let fewest = self.0.iter().min_by_key(|(_, connections)| connections.load(Ordering::Relaxed));
        let Some((handle, count)) = fewest else { return Ok(()) };
        let held = Held::one_more(count);
        let (door, drain) = (Arc::clone(door), drain.clone());
        match accepted {
            Accepted::Tcp(stream) => {
                // Answers are small: waiting to fill a segment would only delay them.
                let _ = stream.set_nodelay(true);
                let stream = stream.into_std()?;
                let stream = within(handle, || TcpStream::from_std(stream))?;
                connections.spawn_on(held.during(connection(stream, door, drain)), handle);
            }
            Accepted::Unix(stream) => {
                let stream = stream.into_std()?;
                let stream = within(handle, || UnixStream::from_std(stream))?;
                connections.spawn_on(held.during(connection(stream, door, drain)), handle);
            }
        }
        Ok(())
    }
}

/// A socket belongs to the runtime in whose context it is made.
fn within<T>(handle: &Handle, make: impl FnOnce() -> T) -> T {
    let _context = handle.enter();
    make()
}

// === impl Held ===

impl Held {
    fn one_more(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }

    async fn during(self, connection: impl Future<Output = ()>) {
        connection.await;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Accept for Listeners {
    type Connection = Accepted;

    async fn accept(&self) -> io::Result<Accepted> {
        let tcp = async {
            match &self.tcp {
                Some(listener) => listener.accept().await.map(|(stream, _)| Accepted::Tcp(stream)),
                None => std::future::pending().await,
            }
        };
        let unix = async {
            match &self.unix {
                Some(socket) => socket.listener().accept().await.map(|(stream, _)| Accepted::Unix(stream)),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            accepted = tcp => accepted,
            accepted = unix => accepted,
        }
    }
}
