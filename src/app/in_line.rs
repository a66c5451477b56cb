//! Binds the reverse proxy.
//!
//! Plane: composition. A port that is taken, or certificates that cannot be used, are errors at start.

use std::net::SocketAddr;

use super::{BuildError, Deps, listen};
use crate::config::SidecarConfig;
use crate::proxy;

/// A reverse proxy whose listener is bound, and where.
pub(super) type InLine = (proxy::Bound, SocketAddr);

/// Binds it, if it is to listen. Reads its certificates.
pub(super) fn bind(config: &SidecarConfig, deps: &Deps) -> Result<Option<InLine>, BuildError> {
    let Some(address) = config.listeners.proxy else { return Ok(None) };
    let (listener, address) = listen::bind(&*deps.binder, &deps.hot, "listeners.proxy", address.0)?;
    Ok(Some((proxy::Bound::new(listener, config.proxy.clone())?, address)))
}
