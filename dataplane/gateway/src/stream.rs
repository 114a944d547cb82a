//! The byte stream under hyper, watched: a client that does not send a head, stays idle, or does not read is let go.
//!
//! Waiting for a head ends as if the client had closed: hyper then closes without an answer. A response that is not
//! read ends in an I/O error, which drops everything the request holds. Bodies are watched where they are read
//! (`inbound`), because only there is known whether the server is waiting for them.

use std::cell::{Cell, RefCell};
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use hyper::rt::ReadBufCursor;

use crate::deadline::{Alarm, Pace, Timer};
use crate::load::Load;
use crate::options::{Client, Limits};

/// ```text
/// Idle --first byte--> Head --its end--> Busy --end of the response--> Idle
/// any --the stream is dropped--> Gone
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Phase {
    /// No byte of a request has come.
    Idle { until: Duration },
    /// A head has begun.
    Head { until: Duration },
    /// A request is being answered.
    Busy,
    /// The stream is no more.
    Gone,
}

/// What the layers that see a connection share of it.
pub(crate) struct ConnectionState {
    pub(crate) client: Client,
    timer: Timer,
    limits: Limits,
    load: Rc<Load>,
    phase: Cell<Phase>,
    /// Of the load's list of idle connections.
    ticket: Cell<Option<u64>>,
    closing: Cell<bool>,
    reader: RefCell<Option<Waker>>,
}

impl ConnectionState {
    /// A new connection, on which nothing was sent yet.
    pub(crate) fn begin(timer: Timer, limits: Limits, load: Rc<Load>, client: Client) -> Rc<Self> {
        let until = timer.now() + limits.head_wait_max;
        let state = Rc::new(Self {
            client,
            timer,
            limits,
            load,
            phase: Cell::new(Phase::Idle { until }),
            ticket: Cell::new(None),
            closing: Cell::new(false),
            reader: RefCell::new(None),
        });
        state.ticket.set(Some(state.load.enter_idle(&state)));
        state
    }

    /// A request has arrived.
    pub(crate) fn request_begins(&self) {
        self.leave_idle();
        self.phase.set(Phase::Busy);
    }

    /// Its response has been handed over.
    pub(crate) fn request_ends(self: &Rc<Self>) {
        if self.phase.get() == Phase::Gone {
            return;
        }
        self.leave_idle();
        self.phase.set(Phase::Idle { until: self.timer.now() + self.limits.idle_wait_max });
        self.ticket.set(Some(self.load.enter_idle(self)));
    }

    /// Closes the connection if it is still idle when it next looks.
    pub(crate) fn close(&self) {
        self.closing.set(true);
        self.ticket.set(None);
        if let Some(reader) = self.reader.take() {
            reader.wake();
        }
    }

    fn leave_idle(&self) {
        if let Some(ticket) = self.ticket.take() {
            self.load.leave_idle(ticket);
        }
    }

    fn received(&self) {
        if let Phase::Idle { .. } = self.phase.get() {
            self.leave_idle();
            self.phase.set(Phase::Head { until: self.timer.now() + self.limits.head_wait_max });
        }
    }

    /// Nothing has come: ready when nothing is waited for any longer.
    fn poll_given_up(&self, cx: &mut Context<'_>, alarm: &mut Alarm) -> Poll<()> {
        match self.phase.get() {
            Phase::Busy | Phase::Gone => Poll::Pending,
            Phase::Head { until } => alarm.poll_at(cx, until),
            Phase::Idle { .. } if self.closing.get() => Poll::Ready(()),
            Phase::Idle { until } => {
                self.reader.replace(Some(cx.waker().clone()));
                alarm.poll_at(cx, until)
            }
        }
    }
}

/// A stream that is watched.
pub(crate) struct Watched<I> {
    io: I,
    state: Rc<ConnectionState>,
    reading: Alarm,
    writing: Pace,
}

impl<I> Watched<I> {
    pub(crate) fn new(io: I, state: Rc<ConnectionState>) -> Self {
        let reading = Alarm::new(state.timer.clone());
        let writing = Pace::new(state.timer.clone(), &state.limits);
        Self { io, state, reading, writing }
    }

    fn written<T>(
        &mut self,
        cx: &mut Context<'_>,
        polled: Poll<io::Result<T>>,
        bytes: fn(&T) -> usize,
    ) -> Poll<io::Result<T>> {
        match &polled {
            Poll::Ready(Ok(written)) => self.writing.progress(bytes(written) as u64),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                if self.writing.poll_expired(cx).is_ready() {
                    return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                }
            }
        }
        polled
    }
}

impl<I> Drop for Watched<I> {
    fn drop(&mut self) {
        self.state.leave_idle();
        self.state.phase.set(Phase::Gone);
    }
}

impl<I: hyper::rt::Read + Unpin> hyper::rt::Read for Watched<I> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        cursor: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        let watched = &mut *self;
        let polled = Pin::new(&mut watched.io).poll_read(cx, cursor);
        if polled.is_ready() {
            watched.state.received();
        } else if watched.state.poll_given_up(cx, &mut watched.reading).is_ready() {
            // No bytes: the end of the stream.
            return Poll::Ready(Ok(()));
        }
        polled
    }
}

impl<I: hyper::rt::Write + Unpin> hyper::rt::Write for Watched<I> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write(cx, data);
        self.written(cx, polled, |written| *written)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_flush(cx);
        self.written(cx, polled, |()| 0)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let polled = Pin::new(&mut self.io).poll_shutdown(cx);
        self.written(cx, polled, |()| 0)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.io).poll_write_vectored(cx, slices);
        self.written(cx, polled, |written| *written)
    }
}
