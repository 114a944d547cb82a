//! The two places where the node touches raw memory or raw descriptors for glommio and hyper.
//!
//! Kept apart so that everything else in the crate stays free of `unsafe`.
#![allow(
    unsafe_code,
    reason = "glommio takes raw descriptors, hyper hands out uninitialised memory; see each block"
)]

use std::{
    io::{self, IoSlice},
    os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, RawFd},
    pin::Pin,
    task::{Context, Poll},
};

use futures_lite::{AsyncRead, AsyncWrite};
use glommio::{io::BufferedFile, net::TcpStream};
use hyper::rt::ReadBufCursor;

/// A TCP connection as hyper wants it: reads go straight into hyper's buffer, writes are vectored.
///
/// Measured before (runtime-facts): a copy on the read side and one write per buffer cost 1.7x on GET.
pub(crate) struct HyperStream(TcpStream);

impl HyperStream {
    pub(crate) fn new(stream: TcpStream) -> Self {
        Self(stream)
    }
}

impl AsyncRead for HyperStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_read(cx, buffer)
    }
}

impl hyper::rt::Read for HyperStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // SAFETY: needed because hyper's buffer is uninitialised and glommio takes `&mut [u8]`. glommio's
        // `poll_read` only passes pointer and length to recv(2), which writes and never reads; no reference to
        // uninitialised bytes is read by us, and exactly the bytes that recv reported are marked as filled.
        let buffer = unsafe {
            let spare = cursor.as_mut();
            std::slice::from_raw_parts_mut(spare.as_mut_ptr().cast::<u8>(), spare.len())
        };
        let read = match Pin::new(&mut self.0).poll_read(cx, buffer) {
            Poll::Ready(Ok(read)) => read,
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => return Poll::Pending,
        };
        // SAFETY: recv(2) initialised the first `read` bytes of the cursor's spare memory.
        unsafe { cursor.advance(read) };
        Poll::Ready(Ok(()))
    }
}

impl hyper::rt::Write for HyperStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_close(cx)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // SAFETY: needed because glommio's stream offers only a raw descriptor. The stream owns it and is
        // borrowed for the whole call, so it stays open.
        let socket = unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) };
        let flags = rustix::net::SendFlags::DONTWAIT | rustix::net::SendFlags::NOSIGNAL;
        match rustix::net::sendmsg(socket, slices, &mut rustix::net::SendAncillaryBuffer::default(), flags) {
            Ok(sent) => Poll::Ready(Ok(sent)),
            // The socket buffer is full: glommio's own write tries once more and arms the wake-up.
            Err(rustix::io::Errno::AGAIN) => {
                let first = slices.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| &slice[..]);
                Pin::new(&mut self.0).poll_write(cx, first)
            }
            Err(rustix::io::Errno::INTR) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Err(errno) => Poll::Ready(Err(errno.into())),
        }
    }
}

/// Waits for completions of our own ring: a plain ring read of its eventfd wakes a sleeping executor.
pub(crate) struct CompletionEvents(BufferedFile);

impl CompletionEvents {
    /// Duplicates the descriptor of a ring's eventfd, which must be open.
    pub(crate) fn new(event_fd: RawFd) -> io::Result<Self> {
        // SAFETY: needed because the ring and glommio both deal in raw descriptors. The caller's ring is alive, so
        // the descriptor is open while it is duplicated; `into_raw_fd` gives up our ownership of the duplicate, so the
        // file is its only owner and closes it once.
        unsafe {
            let duplicate = BorrowedFd::borrow_raw(event_fd).try_clone_to_owned()?;
            Ok(Self(BufferedFile::from_raw_fd(duplicate.into_raw_fd())))
        }
    }

    /// Returns when at least one completion was posted since the last call.
    pub(crate) async fn wait(&self) -> io::Result<()> {
        self.0.read_at(0, 8).await.map(|_| ()).map_err(|error| io::Error::other(error.to_string()))
    }
}
