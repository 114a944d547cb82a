//! The request body as it comes from the connection, before s3s sees it.
//!
//! Counts bytes, bounds aws-chunked chunks (s3s holds each of them whole), and verifies the digests of documents
//! that s3s reads whole. What it finds wrong it leaves in the exchange, because s3s turns every body error into
//! an internal one.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::poll_fn;
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use quarry_object::api::BodyError;
use send_wrapper::SendWrapper;

use crate::checksum::Checks;
use crate::exchange::Exchange;

/// The connection's side of the body: kept by the gateway to drain what nobody read.
pub(crate) struct Source {
    incoming: RefCell<Incoming>,
    /// Something asked for bytes, so a client that waits for "100 Continue" has been told.
    polled: Cell<bool>,
}

impl Source {
    pub(crate) fn new(incoming: Incoming) -> Rc<Self> {
        Rc::new(Self { incoming: RefCell::new(incoming), polled: Cell::new(false) })
    }

    fn poll_data(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, hyper::Error>>> {
        self.polled.set(true);
        let mut incoming = self.incoming.borrow_mut();
        loop {
            match Pin::new(&mut *incoming).poll_frame(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(Err(error))) => return Poll::Ready(Some(Err(error))),
                Poll::Ready(Some(Ok(frame))) => {
                    // HTTP trailers mean nothing in S3.
                    if let Ok(data) = frame.into_data() {
                        return Poll::Ready(Some(Ok(data)));
                    }
                }
            }
        }
    }

    /// Reads and drops the rest, at most `bytes_max`, so that the client gets to read the answer.
    pub(crate) async fn drain(&self, expects_continue: bool, bytes_max: u64) {
        let announced = self.incoming.borrow().size_hint().lower();
        if announced > bytes_max || (expects_continue && !self.polled.get()) {
            return;
        }
        let mut drained = 0;
        while drained <= bytes_max {
            match poll_fn(|cx| self.poll_data(cx)).await {
                Some(Ok(data)) => drained += data.len() as u64,
                Some(Err(_)) | None => return,
            }
        }
    }
}

/// The body that s3s reads.
pub(crate) struct Inbound {
    inner: SendWrapper<Inner>,
}

struct Inner {
    source: Rc<Source>,
    exchange: Rc<Exchange>,
    framing: Option<ChunkScan>,
    checks: Option<Checks>,
}

impl Inbound {
    /// `chunk_bytes_max` is given for a body in aws-chunked framing, `checks` for a document.
    pub(crate) fn new(
        source: Rc<Source>,
        exchange: Rc<Exchange>,
        chunk_bytes_max: Option<u64>,
        checks: Option<Checks>,
    ) -> Self {
        let framing = chunk_bytes_max.map(ChunkScan::new);
        Self { inner: SendWrapper::new(Inner { source, exchange, framing, checks }) }
    }
}

impl Inner {
    fn inspect(&mut self, data: &Bytes) -> Result<(), BodyError> {
        let received = &self.exchange.bytes_in;
        received.set(received.get() + data.len() as u64);
        if let Some(framing) = &mut self.framing {
            framing.feed(data)?;
        }
        if let Some(checks) = &mut self.checks {
            checks.update(data);
        }
        // s3s may stop asking at the announced length, so the end is noticed with the last piece.
        if self.source.incoming.borrow().is_end_stream() { self.finish() } else { Ok(()) }
    }

    fn finish(&mut self) -> Result<(), BodyError> {
        if let Some(framing) = &self.framing {
            framing.finish()?;
        }
        if let Some(checks) = self.checks.take() {
            checks.finish(None)?;
        }
        Ok(())
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        let polled = self.source.poll_data(cx);
        let found = match polled {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(None) => self.finish().map(|()| None),
            Poll::Ready(Some(Ok(data))) => self.inspect(&data).map(|()| Some(data)),
            Poll::Ready(Some(Err(_))) => Err(BodyError::Incomplete),
        };
        match found {
            Ok(data) => Poll::Ready(data.map(Ok)),
            Err(fault) => {
                self.exchange.fault.replace(Some(fault.clone()));
                Poll::Ready(Some(Err(fault)))
            }
        }
    }
}

impl http_body::Body for Inbound {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        self.inner.poll(cx).map(|next| next.map(|data| data.map(Frame::data)))
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.source.incoming.borrow().size_hint()
    }
}

/// Follows aws-chunked framing (`hex-size[;extension] CRLF data CRLF ... 0 CRLF trailers`) without holding any of it.
struct ChunkScan {
    state: ScanState,
    chunk_bytes_max: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum ScanState {
    /// In the hexadecimal size.
    Size { value: u64, digits: u8 },
    /// Between the size and the end of its line.
    Extension { value: u64 },
    /// In the data and the CRLF after it.
    Data { left: u64 },
    /// After the last chunk.
    Trailer,
}

/// s3s reads so many digits of a size.
const SIZE_DIGITS_MAX: u8 = 8;

impl ChunkScan {
    fn new(chunk_bytes_max: u64) -> Self {
        Self { state: ScanState::Size { value: 0, digits: 0 }, chunk_bytes_max }
    }

    fn feed(&mut self, mut bytes: &[u8]) -> Result<(), BodyError> {
        while let Some((&first, rest)) = bytes.split_first() {
            match self.state {
                ScanState::Trailer => return Ok(()),
                ScanState::Data { left } => {
                    let take = usize::try_from(left).map_or(bytes.len(), |left| left.min(bytes.len()));
                    bytes = &bytes[take..];
                    let left = left - take as u64;
                    self.state = if left == 0 {
                        ScanState::Size { value: 0, digits: 0 }
                    } else {
                        ScanState::Data { left }
                    };
                }
                ScanState::Extension { value } => {
                    bytes = rest;
                    if first == b'\n' {
                        // The two bytes after the data are its CRLF, which s3s verifies.
                        self.state =
                            if value == 0 { ScanState::Trailer } else { ScanState::Data { left: value + 2 } };
                    }
                }
                ScanState::Size { value, digits } => {
                    bytes = rest;
                    self.state = self.size_digit(first, value, digits)?;
                }
            }
        }
        Ok(())
    }

    fn size_digit(&self, byte: u8, value: u64, digits: u8) -> Result<ScanState, BodyError> {
        let malformed = |problem: String| Err(BodyError::Malformed { problem });
        match (byte, char::from(byte).to_digit(16)) {
            (_, Some(digit)) if digits < SIZE_DIGITS_MAX => {
                Ok(ScanState::Size { value: value * 16 + u64::from(digit), digits: digits + 1 })
            }
            (b';' | b'\r', _) if digits > 0 && value <= self.chunk_bytes_max => {
                Ok(ScanState::Extension { value })
            }
            (b';' | b'\r', _) if digits > 0 => malformed(format!(
                "an aws-chunked chunk of {value} bytes is over the limit of {}",
                self.chunk_bytes_max
            )),
            _ => malformed("the size of an aws-chunked chunk is not valid".to_owned()),
        }
    }

    fn finish(&self) -> Result<(), BodyError> {
        if self.state == ScanState::Trailer { Ok(()) } else { Err(BodyError::Incomplete) }
    }
}

#[cfg(test)]
mod tests {
    use super::{BodyError, ChunkScan};

    fn scan(body: &str, step: usize) -> Result<(), BodyError> {
        let mut scan = ChunkScan::new(16);
        for piece in body.as_bytes().chunks(step) {
            scan.feed(piece)?;
        }
        scan.finish()
    }

    #[test]
    fn follows_framing_at_every_split() {
        let body = "a;chunk-signature=00\r\n0123456789\r\n10\r\n0123456789abcdef\r\n0\r\nx-amz-a:b\r\n\r\n";
        for step in 1..=body.len() {
            assert_eq!(scan(body, step), Ok(()), "step {step}");
        }
    }

    #[test]
    fn refuses_large_chunks_bad_sizes_and_early_ends() {
        assert!(matches!(scan("11\r\n", 1), Err(BodyError::Malformed { .. })));
        assert!(matches!(scan("000000001\r\n", 1), Err(BodyError::Malformed { .. })));
        assert!(matches!(scan("\r\n", 1), Err(BodyError::Malformed { .. })));
        assert!(matches!(scan("xyz\r\n", 1), Err(BodyError::Malformed { .. })));
        assert_eq!(scan("5\r\nabcde\r\n", 3), Err(BodyError::Incomplete));
        assert_eq!(scan("5\r\nab", 3), Err(BodyError::Incomplete));
    }
}
