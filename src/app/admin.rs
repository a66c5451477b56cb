//! The listeners of admin, for both processes: the whole of it, and what of it probes and scrapes from outside may see.
//!
//! Plane: composition, on the support runtime. INVARIANT: `probes` changes nothing and tells of no request, so that it may
//! listen where the orchestrator reaches it; the rest stays where the configuration says, loopback unless told.

use std::net::SocketAddr;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::{BuildError, Deps, listen};
use crate::admin;
use crate::config::Address;

/// Both, bound.
#[derive(Debug)]
pub(super) struct Admin {
    listener: TcpListener,
    pub(super) address: SocketAddr,
    probes: Option<(TcpListener, SocketAddr)>,
}

impl Admin {
    /// Binds `listeners.admin` and `listeners.probes`.
    pub(super) fn bind(deps: &Deps, admin: Address, probes: Option<Address>) -> Result<Self, BuildError> {
        let bind = |key, address: Address| listen::bind(&*deps.binder, &deps.support, key, address.0);
        let (listener, address) = bind("listeners.admin", admin)?;
        Ok(Self { listener, address, probes: probes.map(|probes| bind("listeners.probes", probes)).transpose()? })
    }

    /// Where probes are answered, if anywhere.
    pub(super) fn probes(&self) -> Option<SocketAddr> {
        self.probes.as_ref().map(|(_, address)| *address)
    }

    /// Serves `router` at the one and what of `common` may be seen at the other, until `stop`.
    pub(super) async fn serve(self, router: axum::Router, common: admin::Common, stop: CancellationToken) {
        let main = admin::serve(self.listener, router, stop.clone().cancelled_owned());
        let probes = async {
            match self.probes {
                Some((listener, _)) => {
                    admin::serve(listener, admin::probes_router(common), stop.cancelled_owned()).await
                }
                None => Ok(()),
            }
        };
        let (main, probes) = tokio::join!(main, probes);
        for (listener, ended) in [("listeners.admin", main), ("listeners.probes", probes)] {
            if let Err(error) = ended {
                tracing::error!(%error, listener, "admin has failed");
            }
        }
    }
}
