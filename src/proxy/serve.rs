//! Accepts connections and ends them, and keeps what runs beside them.
//!
//! Plane: hot path at its edge. While draining, new connections are still accepted, because a load balancer learns late;
//! each is served what it asks and closed. At the deadline everything is closed. INVARIANT: an accept that fails never ends
//! the door; what cannot be used of the certificates is an error at start.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::task::TaskTracker;

use super::certificates::Svids;
use super::config::{Config, Limits, ServerCertificates, ServerTls};
use super::connection::connection;
use super::live::Live;
use super::message::{Reader, Rooms};
use super::reload::Watched;
use super::service::Proxy;
use super::upstream::Upstream;
use crate::door::{Checks, accept};
use crate::drain;
use crate::svid::Source;
use crate::tls::TlsError;

/// How often certificates are looked at.
const RELOAD: Duration = Duration::from_secs(1);

/// A proxy that is bound, with everything that it needs to serve.
#[derive(Debug)]
pub struct Bound {
    listener: TcpListener,
    upstreams: Vec<(String, Arc<Upstream>)>,
    tls: Arc<ArcSwapOption<ServerConfig>>,
    svids: Svids,
    config: Config,
}

/// Why a proxy cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its own certificate, or what clients' must chain to.
    #[error("`listeners.proxy.tls`: {0}")]
    Listener(TlsError),
    /// What an upstream's certificate must chain to, or what it is shown.
    #[error("`proxy.upstreams`: `{service}`: {error}")]
    Upstream {
        /// Of this service.
        service: String,
        /// What.
        error: TlsError,
    },
}

// === impl Bound ===

impl Bound {
    /// Reads the certificates. Blocks on the disk.
    pub fn new(listener: TcpListener, config: Config) -> Result<Self, StartError> {
        let mut svids = Svids::default();
        let tls = config.listener.tls.as_ref().map(|tls| svids.server_config(&tls.certificates));
        let tls = tls.transpose().map_err(StartError::Listener)?;
        let upstream = |config: &super::UpstreamConfig| {
            let service = config.service.clone();
            match Upstream::new(config.clone(), &mut svids) {
                Ok(upstream) => Ok((service, upstream)),
                Err(error) => Err(StartError::Upstream { service, error }),
            }
        };
        let upstreams = config.upstreams.iter().map(upstream).collect::<Result<_, _>>()?;
        Ok(Self { listener, upstreams, tls: Arc::new(ArcSwapOption::new(tls)), svids, config })
    }

    /// The SVIDs without which it serves or forwards nothing where they are used.
    pub fn svids(&self) -> Vec<Arc<Source>> {
        self.svids.all().to_vec()
    }
}

/// Serves until drained: see the module's documentation.
pub async fn serve(bound: Bound, checks: Checks, drain: drain::Signal) -> io::Result<()> {
    let Bound { listener, upstreams, tls, svids, config } = bound;
    let live = Live::new(checks.clone(), config.limits.live_interval);
    let mut background = JoinSet::new();
    background.spawn(Arc::clone(&live).watch());
    for (_, upstream) in &upstreams {
        background.spawn(Arc::clone(upstream).tend());
    }
    svids.all().iter().for_each(|source| drop(background.spawn(Arc::clone(source).run())));
    if let Some(ServerTls { certificates: files @ ServerCertificates::Files(_), .. }) = &config.listener.tls {
        background.spawn(reload(files.clone(), Arc::clone(&tls)));
    }
    let max_connections = config.limits.max_connections;
    let tunnels = TaskTracker::new();
    let drained = drain.clone();
    let Limits { max_read_bytes, max_kept_bytes, head_timeout, .. } = config.limits;
    let reader = Reader { rooms: Rooms::new(max_kept_bytes), max_bytes: max_read_bytes, within: head_timeout };
    let proxy = Arc::new(Proxy { checks, live, upstreams, config, reader, drain, tunnels: tunnels.clone() });

    let mut connections = JoinSet::new();
    let serve = |(stream, from): (TcpStream, SocketAddr), connections: &mut JoinSet<()>| {
        connections.spawn(connection(stream, from, tls.load_full(), Arc::clone(&proxy)));
    };
    accept(&listener, max_connections, &drained, &mut connections, serve).await;
    drop(listener);
    connections.shutdown().await;
    // These end by themselves at the deadline. Until then they are still decided on again.
    tunnels.close();
    tunnels.wait().await;
    background.shutdown().await;
    Ok(())
}

/// Follows the files of the listener.
async fn reload(certificates: ServerCertificates, tls: Arc<ArcSwapOption<ServerConfig>>) {
    let mut watched = Watched::new(certificates.paths());
    let mut tick = tokio::time::interval(RELOAD);
    loop {
        tick.tick().await;
        let (certificates, tls) = (certificates.clone(), Arc::clone(&tls));
        watched
            .reload(move || {
                tls.store(Some(Svids::default().server_config(&certificates)?));
                Ok(())
            })
            .await;
    }
}
