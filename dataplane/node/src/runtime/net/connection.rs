//! A connection to another node on a socket of this core: handshake, whole frames in, whole frames out.

use std::{
    cell::RefCell,
    future::poll_fn,
    io::{self, IoSlice},
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use futures_lite::AsyncRead;
use quarry_object::transport::Class;

use super::{
    frame::{Frame, FrameError, HEADER_BYTES, Seal},
    handshake::{
        ANSWER_BYTES, Dialler, HELLO_BYTES, HandshakeError, Identity, Listener, PROOF_BYTES, Session,
        WELCOME_BYTES, welcomed,
    },
    key::ClusterKey,
};
use crate::{credentials::random, runtime::fd::HyperStream};

/// Read ahead for headers and short messages; longer bodies are read into their own memory.
const READ_AHEAD_BYTES: usize = 32 << 10;
/// Frames written at once.
pub(super) const BATCH_FRAMES: usize = 16;
/// Bytes written at once, about.
pub(super) const BATCH_BYTES: usize = 1 << 20;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectionError {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    Handshake(#[from] HandshakeError),
    #[error(transparent)]
    Frame(#[from] FrameError),
    #[error("the other node has been silent for too long")]
    Silent,
    #[error("not connected in time")]
    TimedOut,
}

/// A socket that one task reads and another one writes.
struct Socket {
    stream: RefCell<HyperStream>,
    ahead: RefCell<Ahead>,
}

/// Bytes that were read and not used yet.
struct Ahead {
    bytes: Vec<u8>,
    start: usize,
    end: usize,
}

impl Socket {
    fn new(stream: HyperStream) -> Self {
        let ahead = Ahead { bytes: vec![0; READ_AHEAD_BYTES], start: 0, end: 0 };
        Self { stream: RefCell::new(stream), ahead: RefCell::new(ahead) }
    }

    fn poll_read(&self, cx: &mut Context<'_>, into: &mut [u8]) -> Poll<io::Result<usize>> {
        match Pin::new(&mut *self.stream.borrow_mut()).poll_read(cx, into) {
            Poll::Ready(Ok(0)) => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            other => other,
        }
    }

    async fn read_exact(&self, into: &mut [u8]) -> io::Result<()> {
        let mut done = 0;
        while done < into.len() {
            done += poll_fn(|cx| {
                let ahead = &mut *self.ahead.borrow_mut();
                if ahead.start == ahead.end {
                    if into.len() - done >= READ_AHEAD_BYTES {
                        return self.poll_read(cx, &mut into[done..]);
                    }
                    match self.poll_read(cx, &mut ahead.bytes) {
                        Poll::Ready(Ok(read)) => (ahead.start, ahead.end) = (0, read),
                        Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                        Poll::Pending => return Poll::Pending,
                    }
                }
                let count = (into.len() - done).min(ahead.end - ahead.start);
                into[done..done + count].copy_from_slice(&ahead.bytes[ahead.start..ahead.start + count]);
                ahead.start += count;
                Poll::Ready(Ok(count))
            })
            .await?;
        }
        Ok(())
    }

    async fn read_array<const N: usize>(&self) -> io::Result<[u8; N]> {
        let mut bytes = [0; N];
        self.read_exact(&mut bytes).await?;
        Ok(bytes)
    }

    async fn write_all(&self, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut left = parts;
        IoSlice::advance_slices(&mut left, 0);
        while !left.is_empty() {
            let written = poll_fn(|cx| {
                use hyper::rt::Write as _;
                Pin::new(&mut *self.stream.borrow_mut()).poll_write_vectored(cx, left)
            })
            .await?;
            if written == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            IoSlice::advance_slices(&mut left, written);
        }
        Ok(())
    }

    async fn write(&self, bytes: &[u8]) -> io::Result<()> {
        self.write_all(&mut [IoSlice::new(bytes)]).await
    }
}

/// See the module. One task reads, one writes.
pub(crate) struct Connection {
    socket: Socket,
    session: Session,
    sending: RefCell<Seal>,
    receiving: RefCell<Seal>,
}

impl Connection {
    fn new(socket: Socket, session: Session) -> Self {
        let sending = RefCell::new(Seal::new(session.class, &session.send_key));
        let receiving = RefCell::new(Seal::new(session.class, &session.receive_key));
        Self { socket, session, sending, receiving }
    }

    /// The handshake of the end that connected.
    pub(crate) async fn dial(
        stream: HyperStream,
        me: Identity,
        key: &ClusterKey,
        (target, class): (quarry_clustermap::NodeId, Class),
    ) -> Result<Self, ConnectionError> {
        let socket = Socket::new(stream);
        let (dialler, hello) = Dialler::start(me, key, target, class, random()?);
        socket.write(&hello).await?;
        let (proof, session) = dialler.answered(&socket.read_array::<ANSWER_BYTES>().await?)?;
        socket.write(&proof).await?;
        welcomed(&socket.read_array::<WELCOME_BYTES>().await?)?;
        Ok(Self::new(socket, session))
    }

    /// The handshake of the end that listens.
    pub(crate) async fn accept(
        stream: HyperStream,
        me: Identity,
        key: &ClusterKey,
        is_current: impl FnOnce(quarry_clustermap::NodeId, quarry_clustermap::Incarnation) -> bool,
    ) -> Result<Self, ConnectionError> {
        let socket = Socket::new(stream);
        let hello = socket.read_array::<HELLO_BYTES>().await?;
        let (answer, listener) = Listener::answer(me, key, random()?, &hello, is_current);
        socket.write(&answer).await?;
        let (welcome, session) = listener?.proved(&socket.read_array::<PROOF_BYTES>().await?);
        socket.write(&welcome).await?;
        Ok(Self::new(socket, session?))
    }

    /// What the handshake agreed on.
    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// The next frame. Not to be dropped half way if another one is to be read.
    pub(crate) async fn read(&self) -> Result<Frame, ConnectionError> {
        let header = self.socket.read_array::<HEADER_BYTES>().await?;
        let header = self.receiving.borrow().check_header(header)?;
        let mut body = vec![0; header.body_len()];
        self.socket.read_exact(&mut body).await?;
        Ok(self.receiving.borrow_mut().open(header, Bytes::from(body))?)
    }

    /// Writes frames, in order, at most [`BATCH_FRAMES`].
    pub(crate) async fn write(&self, frames: &[Frame]) -> Result<(), ConnectionError> {
        let headers: Vec<_> = {
            let mut seal = self.sending.borrow_mut();
            frames.iter().map(|frame| seal.header(frame)).collect()
        };
        let mut parts = Vec::with_capacity(3 * frames.len());
        for (header, frame) in headers.iter().zip(frames) {
            let slices: [&[u8]; 3] = [header, &frame.parcel.message, &frame.parcel.bulk];
            parts.extend(slices.into_iter().filter(|slice| !slice.is_empty()).map(IoSlice::new));
        }
        Ok(self.socket.write_all(&mut parts).await?)
    }
}
