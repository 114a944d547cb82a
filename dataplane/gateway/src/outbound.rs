//! The response body: counts what is handed over, and turns an object's stream into what s3s sends.
//!
//! Invariant: a stream that fails, panics, or yields more or less than announced ends in an error, which makes
//! hyper close the connection short of the announced Content-Length. Nothing is padded.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::Stream;
use futures::stream::LocalBoxStream;
use http_body::{Body as _, Frame, SizeHint};
use quarry_meter::stage;
use quarry_object::api::ApiError;
use s3s::StdError;
use s3s::stream::{ByteStream, RemainingLength};
use send_wrapper::SendWrapper;

use crate::exchange::Exchange;

/// Why a response body ended early.
#[derive(Debug, thiserror::Error)]
enum ContentError {
    #[error("reading the object failed: {0}")]
    Read(ApiError),
    #[error("the object's content does not have its announced length")]
    Length,
    #[error("the response body panicked")]
    Panic,
}

/// The body of a response.
pub(crate) struct Outbound {
    inner: s3s::Body,
    exchange: Rc<Exchange>,
}

impl Outbound {
    pub(crate) fn new(inner: s3s::Body, exchange: Rc<Exchange>) -> Self {
        // hyper never polls a body that is known to be empty.
        if inner.is_end_stream() || exchange.method == "HEAD" {
            exchange.complete.set(true);
        }
        Self { inner, exchange }
    }
}

impl http_body::Body for Outbound {
    type Data = Bytes;
    type Error = StdError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, StdError>>> {
        let Self { inner, exchange } = &mut *self;
        let poll = || stage::enter(&exchange.stages, || Pin::new(inner).poll_frame(cx));
        let polled = catch_unwind(AssertUnwindSafe(poll));
        let polled = polled.unwrap_or_else(|_| {
            tracing::error!(event = "response_body_panic", request_id = self.exchange.request_id);
            Poll::Ready(Some(Err(Box::new(ContentError::Panic))))
        });
        match &polled {
            Poll::Ready(None) => self.exchange.complete.set(true),
            Poll::Ready(Some(Ok(frame))) => {
                let sent = frame.data_ref().map_or(0, Bytes::len) as u64;
                self.exchange.bytes_out.set(self.exchange.bytes_out.get() + sent);
                if self.inner.is_end_stream() {
                    self.exchange.complete.set(true);
                }
            }
            Poll::Ready(Some(Err(error))) => {
                tracing::warn!(event = "response_body_failed", request_id = self.exchange.request_id, %error);
            }
            Poll::Pending => {}
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        http_body::Body::size_hint(&self.inner)
    }
}

/// The bytes of an object or a range, of a known length.
pub(crate) struct Content {
    stream: SendWrapper<LocalBoxStream<'static, Result<Bytes, ApiError>>>,
    left: u64,
    failed: bool,
}

impl Content {
    pub(crate) fn new(stream: LocalBoxStream<'static, Result<Bytes, ApiError>>, len_bytes: u64) -> Self {
        Self { stream: SendWrapper::new(stream), left: len_bytes, failed: false }
    }

    fn account(&mut self, next: Option<Result<Bytes, ApiError>>) -> Option<Result<Bytes, ContentError>> {
        match next {
            None if self.left == 0 => None,
            None => Some(Err(ContentError::Length)),
            Some(Err(error)) => Some(Err(ContentError::Read(error))),
            Some(Ok(data)) => match self.left.checked_sub(data.len() as u64) {
                Some(left) => {
                    self.left = left;
                    Some(Ok(data))
                }
                None => Some(Err(ContentError::Length)),
            },
        }
    }
}

impl Stream for Content {
    type Item = Result<Bytes, StdError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.failed {
            return Poll::Ready(None);
        }
        let next = std::task::ready!(self.stream.as_mut().poll_next(cx));
        let accounted = self.account(next);
        self.failed = matches!(accounted, Some(Err(_)));
        Poll::Ready(accounted.map(|item| item.map_err(|error| Box::new(error) as StdError)))
    }
}

impl ByteStream for Content {
    fn remaining_length(&self) -> RemainingLength {
        usize::try_from(self.left).map_or_else(|_| RemainingLength::unknown(), RemainingLength::new_exact)
    }
}
