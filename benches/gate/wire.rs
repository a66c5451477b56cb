//! An HTTP/2 client that costs next to nothing: its frames are written beforehand, and of the answers only frame headers
//! are read. Under a server it stands for the socket, so that what is counted is the server and not a client.
//!
//! One connection, so many checks in flight: the next ones come when all of those are answered. The last answer is kept
//! to be looked at, and every other one must be as long.

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard};
use std::task::{Context, Poll, Waker};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const FRAME_HEADER: usize = 9;
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const ACK: u8 = 1;
const END_HEADERS: u8 = 4;

/// The client's end.
#[derive(Clone)]
pub(crate) struct Client(Arc<Mutex<Connection>>);

/// The server's end.
pub(crate) struct Wire(Arc<Mutex<Connection>>);

/// What a run showed, besides its end.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Seen {
    pub(crate) reads: u64,
    pub(crate) writes: u64,
    pub(crate) bytes: u64,
}

struct Connection {
    /// The messages that are sent in turn, gRPC's prefix included.
    messages: Vec<Vec<u8>>,
    in_flight: usize,
    /// Still to be asked, and asked without an answer.
    left: usize,
    outstanding: usize,
    next_stream: u32,
    to_server: VecDeque<u8>,
    reader: Option<Waker>,
    client: Option<Waker>,
    closed: bool,
    frame: Frame,
    data: Vec<u8>,
    /// The last answer's message, which came in one frame.
    last: Vec<u8>,
    seen: Seen,
}

/// Where in the server's frames we are.
#[derive(Default)]
struct Frame {
    header: [u8; FRAME_HEADER],
    have: usize,
    left: usize,
}

// === impl Client ===

impl Client {
    /// Both ends of a connection on which `messages` are sent in turn.
    pub(crate) fn new(messages: &[Vec<u8>], in_flight: usize) -> (Self, Wire) {
        let mut to_server = VecDeque::new();
        to_server.extend(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
        // No push, and windows that never close.
        let settings = [0, 2, 0, 0, 0, 0, 0, 4, 0x7f, 0xff, 0xff, 0xff];
        to_server.extend(frame(SETTINGS, 0, 0, &settings));
        to_server.extend(frame(WINDOW_UPDATE, 0, 0, &(0x7fff_ffff_u32 - 65_535).to_be_bytes()));
        let prefixed = |message: &Vec<u8>| {
            let mut all = vec![0];
            all.extend_from_slice(&u32::try_from(message.len()).expect("a short message").to_be_bytes());
            all.extend_from_slice(message);
            all
        };
        let connection = Arc::new(Mutex::new(Connection {
            messages: messages.iter().map(prefixed).collect(),
            in_flight,
            left: 0,
            outstanding: 0,
            next_stream: 1,
            to_server,
            reader: None,
            client: None,
            closed: false,
            frame: Frame::default(),
            data: Vec::with_capacity(4096),
            last: Vec::with_capacity(4096),
            seen: Seen::default(),
        }));
        (Self(Arc::clone(&connection)), Wire(connection))
    }

    /// Sends so many checks and waits for their answers.
    pub(crate) async fn run(&self, checks: usize) -> Seen {
        {
            let mut connection = lock(&self.0);
            connection.left = checks;
            connection.seen = Seen::default();
            connection.ask();
        }
        std::future::poll_fn(|cx| {
            let mut connection = lock(&self.0);
            if connection.left == 0 && connection.outstanding == 0 {
                return Poll::Ready(connection.seen);
            }
            connection.client = Some(cx.waker().clone());
            Poll::Pending
        })
        .await
    }

    /// The message of the last answer, without gRPC's prefix.
    pub(crate) fn last_answer(&self) -> Vec<u8> {
        lock(&self.0).last.get(5..).expect("an answer").to_vec()
    }

    /// Ends the connection.
    pub(crate) fn close(&self) {
        let mut connection = lock(&self.0);
        connection.closed = true;
        if let Some(reader) = connection.reader.take() {
            reader.wake();
        }
    }
}

fn lock(connection: &Mutex<Connection>) -> MutexGuard<'_, Connection> {
    connection.lock().expect("nobody panics while it is held")
}

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, a, b, c] = u32::try_from(payload.len()).expect("a short frame").to_be_bytes();
    let mut out = vec![a, b, c, kind, flags];
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
    out
}

/// The call's headers as Envoy sends them, in HPACK: on the first stream they enter the dynamic table, and every other
/// one refers to it.
fn header_block(first: bool) -> Vec<u8> {
    // `:method: POST` and `:scheme: http` are in the static table.
    let mut out = vec![0x83, 0x86];
    let literals: [(u8, &str, &str); 6] = [
        (1, "", "portcullis"),
        (4, "", "/envoy.service.auth.v3.Authorization/Check"),
        (31, "", "application/grpc"),
        (0, "te", "trailers"),
        (0, "grpc-timeout", "200m"),
        (0, "x-envoy-internal", "true"),
    ];
    for (i, (index, name, value)) in literals.into_iter().enumerate() {
        if first {
            out.push(0x40 | index);
            for text in [name, value].into_iter().skip(usize::from(index != 0)) {
                out.push(u8::try_from(text.len()).expect("a short text"));
                out.extend_from_slice(text.as_bytes());
            }
        } else {
            // The last to enter is the first of the dynamic table, which begins at 62.
            out.push(0x80 | u8::try_from(62 + literals.len() - 1 - i).expect("a small index"));
        }
    }
    out
}

// === impl Connection ===

impl Connection {
    fn ask(&mut self) {
        while self.left > 0 && self.outstanding < self.in_flight {
            let stream = self.next_stream;
            self.to_server.extend(frame(HEADERS, END_HEADERS, stream, &header_block(stream == 1)));
            let message = &self.messages[stream as usize / 2 % self.messages.len()];
            self.to_server.extend(frame(DATA, END_STREAM, stream, message));
            self.next_stream += 2;
            self.left -= 1;
            self.outstanding += 1;
        }
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    fn take(&mut self, mut bytes: &[u8]) {
        self.seen.bytes += bytes.len() as u64;
        while !bytes.is_empty() {
            if self.frame.have < FRAME_HEADER {
                let n = bytes.len().min(FRAME_HEADER - self.frame.have);
                let (now, rest) = bytes.split_at(n);
                self.frame.header[self.frame.have..self.frame.have + n].copy_from_slice(now);
                self.frame.have += n;
                bytes = rest;
                if self.frame.have == FRAME_HEADER {
                    let [a, b, c, ..] = self.frame.header;
                    self.frame.left = u32::from_be_bytes([0, a, b, c]) as usize;
                }
            }
            let (now, rest) = bytes.split_at(bytes.len().min(self.frame.left));
            if self.frame.header[3] == DATA {
                self.data.extend_from_slice(now);
            }
            self.frame.left -= now.len();
            bytes = rest;
            if self.frame.have == FRAME_HEADER && self.frame.left == 0 {
                self.frame.have = 0;
                self.frame_ended();
            }
        }
    }

    fn frame_ended(&mut self) {
        let [_, _, _, kind, flags, ..] = self.frame.header;
        match kind {
            SETTINGS if flags & ACK == 0 => self.to_server.extend(frame(SETTINGS, ACK, 0, &[])),
            DATA if !self.data.is_empty() => {
                assert!(self.last.is_empty() || self.last.len() == self.data.len(), "an answer of another length");
                std::mem::swap(&mut self.last, &mut self.data);
                self.data.clear();
            }
            HEADERS if flags & END_STREAM != 0 => {
                self.outstanding -= 1;
                if self.outstanding == 0 {
                    if self.left > 0 {
                        self.ask();
                    } else if let Some(client) = self.client.take() {
                        client.wake();
                    }
                }
            }
            DATA | HEADERS | SETTINGS | WINDOW_UPDATE => {}
            other => panic!("a frame of type {other} with flags {flags}"),
        }
    }
}

// === impl Wire ===

impl AsyncRead for Wire {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let mut connection = lock(&self.0);
        if connection.to_server.is_empty() && !connection.closed {
            connection.reader = Some(cx.waker().clone());
            return Poll::Pending;
        }
        connection.seen.reads += 1;
        while buf.remaining() > 0 && !connection.to_server.is_empty() {
            let (front, _) = connection.to_server.as_slices();
            let n = front.len().min(buf.remaining());
            buf.put_slice(&front[..n]);
            connection.to_server.drain(..n);
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Wire {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(self: Pin<&mut Self>, _: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        let mut connection = lock(&self.0);
        connection.seen.writes += 1;
        bufs.iter().for_each(|buf| connection.take(buf));
        Poll::Ready(Ok(bufs.iter().map(|buf| buf.len()).sum()))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

impl tonic::transport::server::Connected for Wire {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}
