//! A SPIFFE agent: the Workload API over a real Unix socket, saying what a test has it say.
//!
//! Feature `testing`. It insists on the security header as the standard does. Every change is told to all open streams; it
//! can be stopped, which ends them, and started again at the same socket.
#![allow(clippy::unwrap_used, missing_debug_implementations, reason = "test support: a broken fixture stops the test")]

use std::collections::HashMap;
use std::path::Path;
use std::pin::Pin;

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{UnixListenerStream, WatchStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::wire::workload_api::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};
use crate::wire::workload_api::{
    JwtBundlesRequest, JwtBundlesResponse, X509BundlesRequest, X509BundlesResponse, X509svidRequest, X509svidResponse,
};

/// Bundles by the SPIFFE ID of the trust domain.
pub type Bundles = HashMap<String, Bytes>;
type Sent<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// An agent: what it holds, and the server that tells it.
#[derive(Default)]
pub struct SpiffeAgent {
    /// JWT bundles.
    pub jwt: watch::Sender<Bundles>,
    /// X.509 bundles.
    pub x509: watch::Sender<Bundles>,
    /// The SVIDs of whoever asks. While there are none it answers as one that knows no such workload.
    pub svids: watch::Sender<Option<X509svidResponse>>,
    server: Option<(CancellationToken, JoinHandle<()>)>,
}

struct Service {
    jwt: watch::Receiver<Bundles>,
    x509: watch::Receiver<Bundles>,
    svids: watch::Receiver<Option<X509svidResponse>>,
    stop: CancellationToken,
}

// === impl SpiffeAgent ===

impl SpiffeAgent {
    /// Serves at this socket. Within a tokio runtime.
    pub fn start(&mut self, socket: &Path) {
        let _left_behind = std::fs::remove_file(socket);
        let incoming = UnixListenerStream::new(UnixListener::bind(socket).unwrap());
        let stop = CancellationToken::new();
        let service = Service {
            jwt: self.jwt.subscribe(),
            x509: self.x509.subscribe(),
            svids: self.svids.subscribe(),
            stop: stop.clone(),
        };
        let ended = stop.clone().cancelled_owned();
        let server = tonic::transport::Server::builder().add_service(SpiffeWorkloadApiServer::new(service));
        let task = tokio::spawn(async move { server.serve_with_incoming_shutdown(incoming, ended).await.unwrap() });
        self.server = Some((stop, task));
    }

    /// Ends every stream, and listens no longer.
    pub async fn stop(&mut self) {
        let (stop, task) = self.server.take().unwrap();
        stop.cancel();
        task.await.unwrap();
    }
}

// === impl Service ===

impl Service {
    fn send<T, M>(&self, from: &watch::Receiver<T>, message: fn(T) -> Result<M, Status>) -> Response<Sent<M>>
    where
        T: Clone + Send + Sync + 'static,
        M: Send + 'static,
    {
        let all = WatchStream::new(from.clone()).map(message);
        Response::new(Box::pin(all.take_until(self.stop.clone().cancelled_owned())))
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for Service {
    type FetchX509SVIDStream = Sent<X509svidResponse>;
    type FetchX509BundlesStream = Sent<X509BundlesResponse>;
    type FetchJWTBundlesStream = Sent<JwtBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        check(&request)?;
        Ok(self.send(&self.svids, |svids| svids.ok_or_else(|| Status::permission_denied("no identity issued"))))
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        check(&request)?;
        Ok(self.send(&self.x509, |bundles| Ok(X509BundlesResponse { crl: Vec::new(), bundles })))
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        check(&request)?;
        Ok(self.send(&self.jwt, |bundles| Ok(JwtBundlesResponse { bundles })))
    }
}

fn check<T>(request: &Request<T>) -> Result<(), Status> {
    match request.metadata().get("workload.spiffe.io") {
        Some(value) if value == "true" => Ok(()),
        _ => Err(Status::invalid_argument("security header missing from request")),
    }
}
