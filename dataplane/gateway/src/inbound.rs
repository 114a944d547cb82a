//! The request body as it comes from the connection.
//!
//! [`Source`] is the connection's side: objects and parts are read from it directly (`body`), past s3s. [`Inbound`] is
//! what s3s reads: documents, which it holds whole. It counts them, bounds what all of them take, and verifies their
//! digests; what it finds wrong it leaves in the exchange, because s3s turns every body error into an internal one.
//!
//! Failure model: a client may send slowly or not at all. The time it is waited for is measured here, only while
//! somebody asks for bytes: a slow device is not the client's fault.

use std::cell::{Cell, RefCell};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::future::{Either, poll_fn, select};
use http_body::{Body as _, Frame, SizeHint};
use hyper::body::Incoming;
use quarry_object::api::BodyError;
use send_wrapper::SendWrapper;

use crate::checksum::Checks;
use crate::deadline::{Alarm, Pace, Timer};
use crate::error::Fault;
use crate::exchange::Exchange;
use crate::options::Limits;

/// The connection's side of the body: kept by the gateway to drain what nobody read.
pub(crate) struct Source {
    incoming: RefCell<Incoming>,
    pace: RefCell<Pace>,
    timer: Timer,
    /// Something asked for bytes, so a client that waits for "100 Continue" has been told.
    polled: Cell<bool>,
    expired: Cell<bool>,
}

impl Source {
    pub(crate) fn new(incoming: Incoming, timer: Timer, limits: &Limits) -> Rc<Self> {
        Rc::new(Self {
            incoming: RefCell::new(incoming),
            pace: RefCell::new(Pace::new(timer.clone(), limits)),
            timer,
            polled: Cell::new(false),
            expired: Cell::new(false),
        })
    }

    /// The next bytes; `None` at the end.
    pub(crate) async fn next(&self) -> Option<Result<Bytes, Fault>> {
        poll_fn(|cx| self.poll_data(cx)).await
    }

    fn poll_data(&self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, Fault>>> {
        self.polled.set(true);
        if self.expired.get() {
            return Poll::Ready(Some(Err(Fault::Timeout)));
        }
        let mut incoming = self.incoming.borrow_mut();
        let mut pace = self.pace.borrow_mut();
        loop {
            let frame = match Pin::new(&mut *incoming).poll_frame(cx) {
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Ready(Some(Err(_))) => {
                    return Poll::Ready(Some(Err(Fault::Body(BodyError::Incomplete))));
                }
                Poll::Ready(Some(Ok(frame))) => frame,
                Poll::Pending if pace.poll_expired(cx).is_pending() => return Poll::Pending,
                Poll::Pending => {
                    self.expired.set(true);
                    return Poll::Ready(Some(Err(Fault::Timeout)));
                }
            };
            // HTTP trailers mean nothing in S3.
            if let Ok(data) = frame.into_data() {
                pace.progress(data.len() as u64);
                return Poll::Ready(Some(Ok(data)));
            }
        }
    }

    /// Whether there is no body, or no byte of it is left.
    pub(crate) fn is_empty(&self) -> bool {
        self.incoming.borrow().is_end_stream()
    }

    /// Whether there is a body that nothing has asked for.
    pub(crate) fn is_untold(&self) -> bool {
        !self.polled.get() && !self.is_empty()
    }

    /// Reads and drops the rest for a while, so that the client gets to read the answer.
    pub(crate) async fn drain(&self, expects_continue: bool, limits: &Limits) {
        let announced = self.incoming.borrow().size_hint().lower();
        let untold = expects_continue && self.is_untold();
        if announced > limits.drain_bytes_max || untold || self.expired.get() {
            return;
        }
        let mut alarm = Alarm::new(self.timer.clone());
        let deadline = self.timer.now() + limits.drain_wait_max;
        let mut drained = 0;
        while drained <= limits.drain_bytes_max {
            let deadline = poll_fn(|cx| alarm.poll_at(cx, deadline));
            match select(std::pin::pin!(self.next()), deadline).await {
                Either::Left((Some(Ok(data)), _)) => drained += data.len() as u64,
                Either::Left((Some(Err(_)) | None, _)) | Either::Right(_) => return,
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
    checks: Option<Checks>,
}

impl Inbound {
    /// `checks` are given for a document.
    pub(crate) fn new(source: Rc<Source>, exchange: Rc<Exchange>, checks: Option<Checks>) -> Self {
        Self { inner: SendWrapper::new(Inner { source, exchange, checks }) }
    }
}

impl Inner {
    fn inspect(&mut self, data: &Bytes) -> Result<(), Fault> {
        self.exchange.count_in(data);
        if !self.exchange.slot.hold(data.len()) {
            return Err(Fault::Overload);
        }
        if let Some(checks) = &mut self.checks {
            checks.update(data);
        }
        // s3s may stop asking at the announced length, so the end is noticed with the last piece.
        if self.source.incoming.borrow().is_end_stream() { self.finish() } else { Ok(()) }
    }

    fn finish(&mut self) -> Result<(), Fault> {
        if let Some(checks) = self.checks.take() {
            checks.finish(None).map_err(Fault::Body)?;
        }
        Ok(())
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Bytes, BodyError>>> {
        let polled = self.source.poll_data(cx);
        let found = match polled {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(None) => self.finish().map(|()| None),
            Poll::Ready(Some(Ok(data))) => self.inspect(&data).map(|()| Some(data)),
            Poll::Ready(Some(Err(fault))) => Err(fault),
        };
        match found {
            Ok(data) => Poll::Ready(data.map(Ok)),
            Err(fault) => Poll::Ready(Some(Err(self.exchange.fail(fault)))),
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
