//! Binding listeners: passed in, so that a test or a supervisor can bring its own.
//!
//! Plane: composition. A port that is taken, or an address that is not ours, is an error at start that names the
//! configuration key; nothing is half bound.

use std::fmt;
use std::io;
use std::net::{SocketAddr, TcpListener};

use tokio::runtime::Handle;

use super::BuildError;

/// How many connections may wait to be accepted: a fleet that reconnects comes all at once.
const BACKLOG: i32 = 4096;

/// Binds listeners.
pub trait Binder: fmt::Debug + Send + Sync + 'static {
    /// Binds a TCP listener.
    fn tcp(&self, address: SocketAddr) -> io::Result<TcpListener>;
}

/// Binds on this machine.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemBinder;

impl Binder for SystemBinder {
    fn tcp(&self, address: SocketAddr) -> io::Result<TcpListener> {
        let socket = socket2::Socket::new(
            socket2::Domain::for_address(address),
            socket2::Type::STREAM,
            Some(socket2::Protocol::TCP),
        )?;
        // A restart must not wait for connections of its predecessor to be forgotten.
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(true)?;
        }
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket.into())
    }
}

/// Binds `address` for `key`, on the runtime that is to accept.
pub(super) fn bind(
    binder: &dyn Binder,
    runtime: &Handle,
    key: &'static str,
    address: SocketAddr,
) -> Result<(tokio::net::TcpListener, SocketAddr), BuildError> {
    let listener = binder.tcp(address).and_then(|listener| {
        listener.set_nonblocking(true)?;
        let bound = listener.local_addr()?;
        let _context = runtime.enter();
        Ok((tokio::net::TcpListener::from_std(listener)?, bound))
    });
    listener.map_err(|source| BuildError::Listen { key, address: address.to_string(), source })
}

/// What to try.
pub(super) fn hint(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::AddrInUse => "\n  another process has it: stop that one, or choose another port",
        io::ErrorKind::PermissionDenied => "\n  ports below 1024 and some directories need a privilege",
        io::ErrorKind::AddrNotAvailable => "\n  this machine has no such address",
        _ => "",
    }
}
