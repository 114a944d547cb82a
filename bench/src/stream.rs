//! A glommio connection as hyper wants it, done the way the node does it: reads land in hyper's own buffer, writes
//! are vectored. The floor would otherwise be measured with a handicap that the node does not have.
#![allow(
    unsafe_code,
    reason = "hyper hands out uninitialised memory and glommio a raw descriptor; see each block"
)]

use std::{
    io::{self, IoSlice},
    os::fd::{AsRawFd, BorrowedFd},
    pin::Pin,
    task::{Context, Poll},
};

use futures_lite::{AsyncRead, AsyncWrite};
use glommio::net::TcpStream;
use hyper::rt::{Read, ReadBufCursor, Write};
use rustix::{
    io::Errno,
    net::{SendAncillaryBuffer, SendFlags, sendmsg},
};

/// One connection.
#[derive(Debug)]
pub struct FloorStream(TcpStream);

impl FloorStream {
    /// Takes an accepted connection.
    pub fn new(stream: TcpStream) -> Self {
        Self(stream)
    }

    fn inner(self: Pin<&mut Self>) -> Pin<&mut TcpStream> {
        Pin::new(&mut self.get_mut().0)
    }
}

impl Read for FloorStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        mut cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        // SAFETY: glommio passes the slice to recv(2) as pointer and length; nothing reads it before recv has
        // written it, and only what recv reported is marked as filled below.
        let spare = unsafe {
            let spare = cursor.as_mut();
            std::slice::from_raw_parts_mut(spare.as_mut_ptr().cast::<u8>(), spare.len())
        };
        let read = std::task::ready!(self.inner().poll_read(cx, spare))?;
        // SAFETY: recv(2) has initialised exactly these bytes.
        unsafe { cursor.advance(read) };
        Poll::Ready(Ok(()))
    }
}

impl Write for FloorStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.inner().poll_write(cx, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.inner().poll_close(cx)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        // SAFETY: the stream owns the descriptor and is borrowed for the whole call.
        let socket = unsafe { BorrowedFd::borrow_raw(self.0.as_raw_fd()) };
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match sendmsg(socket, slices, &mut SendAncillaryBuffer::default(), flags) {
            Ok(sent) => Poll::Ready(Ok(sent)),
            // A full socket: glommio's own write tries once more and arms the wake-up.
            Err(Errno::AGAIN) => {
                let first = slices.iter().find(|slice| !slice.is_empty()).map_or(&[][..], |slice| slice);
                self.inner().poll_write(cx, first)
            }
            Err(Errno::INTR) => {
                cx.waker().wake_by_ref();
                Poll::Pending
            }
            Err(errno) => Poll::Ready(Err(errno.into())),
        }
    }
}
