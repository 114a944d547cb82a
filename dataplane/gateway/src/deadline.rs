//! How long a client is waited for. Time comes from the caller (`GatewayOptions::clock` and `sleep`).

use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use futures::FutureExt as _;
use futures::future::LocalBoxFuture;

use crate::options::{GatewayOptions, Limits};

/// The clock of the core.
#[derive(Clone)]
pub(crate) struct Timer {
    clock: Rc<dyn Fn() -> Duration>,
    sleep: Rc<dyn Fn(Duration) -> LocalBoxFuture<'static, ()>>,
}

impl Timer {
    pub(crate) fn new(options: &GatewayOptions) -> Self {
        Self { clock: Rc::clone(&options.clock), sleep: Rc::clone(&options.sleep) }
    }

    pub(crate) fn now(&self) -> Duration {
        (self.clock)()
    }
}

/// Wakes at a deadline that may move. A later one costs nothing: the sleep is begun anew when it ends early.
pub(crate) struct Alarm {
    timer: Timer,
    armed: Option<(Duration, LocalBoxFuture<'static, ()>)>,
}

impl Alarm {
    pub(crate) fn new(timer: Timer) -> Self {
        Self { timer, armed: None }
    }

    /// Ready when the clock has reached `deadline`.
    pub(crate) fn poll_at(&mut self, cx: &mut Context<'_>, deadline: Duration) -> Poll<()> {
        loop {
            let now = self.timer.now();
            if now >= deadline {
                self.armed = None;
                return Poll::Ready(());
            }
            self.armed = self.armed.take().filter(|(until, _)| *until <= deadline);
            let (_, sleep) = self.armed.get_or_insert_with(|| (deadline, (self.timer.sleep)(deadline - now)));
            ready!(sleep.poll_unpin(cx));
            self.armed = None;
        }
    }
}

/// Measures the pace of one direction of a connection, only while the client is waited for.
pub(crate) struct Pace {
    alarm: Alarm,
    stall_max: Duration,
    window: Duration,
    window_bytes_min: u64,
    wait: Option<Wait>,
    /// Time waited and bytes moved in the window at hand.
    spent: Duration,
    bytes: u64,
}

#[derive(Clone, Copy)]
struct Wait {
    since: Duration,
    /// From here its time is not in `spent` yet.
    counted: Duration,
}

impl Pace {
    pub(crate) fn new(timer: Timer, limits: &Limits) -> Self {
        Self {
            alarm: Alarm::new(timer),
            stall_max: limits.stall_max,
            window: limits.rate_window,
            window_bytes_min: limits.bytes_per_second_min.saturating_mul(limits.rate_window.as_secs()),
            wait: None,
            spent: Duration::ZERO,
            bytes: 0,
        }
    }

    /// The client has moved so many bytes.
    pub(crate) fn progress(&mut self, bytes: u64) {
        if let Some(wait) = self.wait.take() {
            self.spent += self.alarm.timer.now().saturating_sub(wait.counted);
        }
        self.bytes += bytes;
    }

    /// The client is waited for: ready when that has taken too long.
    pub(crate) fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        loop {
            let wait = *self.wait.get_or_insert_with(|| {
                let now = self.alarm.timer.now();
                Wait { since: now, counted: now }
            });
            let stalled = wait.since + self.stall_max;
            let window_ends = wait.counted + self.window.saturating_sub(self.spent);
            ready!(self.alarm.poll_at(cx, stalled.min(window_ends)));
            if self.alarm.timer.now() >= stalled || self.bytes < self.window_bytes_min {
                return Poll::Ready(());
            }
            (self.spent, self.bytes) = (Duration::ZERO, 0);
            self.wait = Some(Wait { counted: self.alarm.timer.now(), ..wait });
        }
    }
}
