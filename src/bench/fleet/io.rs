//! Connections that count their bytes: what goes over the wire, TLS included.
//!
//! Plane: composition. Adds a counter to the system's dialling and changes nothing else. Counts what the operating system
//! took and gave, without the headers of TCP and IP.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use futures_util::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::sync::{Dial, Dialled, Io, SystemDial};

/// Bytes so far.
#[derive(Debug, Default)]
pub(super) struct Traffic {
    received: AtomicU64,
    sent: AtomicU64,
}

/// Dials as the system does, and counts.
#[derive(Debug)]
pub(super) struct CountingDial(pub(super) Arc<Traffic>);

struct Counted {
    inner: Box<dyn Io>,
    traffic: Arc<Traffic>,
}

impl Traffic {
    pub(super) fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }

    pub(super) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }
}

impl Dial for CountingDial {
    fn dial(&self, host: &str, port: u16) -> BoxFuture<'static, io::Result<Dialled>> {
        let (dialled, traffic) = (SystemDial.dial(host, port), Arc::clone(&self.0));
        Box::pin(async move {
            let Dialled { io, peer } = dialled.await?;
            Ok(Dialled { io: Box::new(Counted { inner: io, traffic }), peer })
        })
    }
}

impl AsyncRead for Counted {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let result = Pin::new(&mut this.inner).poll_read(cx, buf);
        let bytes = buf.filled().len().saturating_sub(before);
        this.traffic.received.fetch_add(bytes as u64, Ordering::Relaxed);
        result
    }
}

impl AsyncWrite for Counted {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        let result = Pin::new(&mut this.inner).poll_write(cx, buf);
        if let Poll::Ready(Ok(bytes)) = &result {
            this.traffic.sent.fetch_add(*bytes as u64, Ordering::Relaxed);
        }
        result
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}
