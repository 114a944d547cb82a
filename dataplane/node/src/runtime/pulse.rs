//! The pulse: a side thread that wakes one parked task of every executor every few milliseconds.
//!
//! Why: glommio 0.9 can park for ever with runnable tasks, when the preempt timer fires between its I/O poll and
//! its first task and it takes "preempted" for "idle". A wake from another thread gets it going again. While
//! nothing is in flight the pulse slows down, so that an idle node stays idle. Its second use is a watchdog: how
//! late a core answers is that core's scheduling delay.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    task::{Poll, Waker},
    time::{Duration, Instant},
};

/// Between beats while a core has work in flight.
const BUSY_INTERVAL: Duration = Duration::from_millis(2);
/// Between beats while it has none.
const IDLE_INTERVAL: Duration = Duration::from_millis(50);

/// What the pulse thread and one core share.
#[derive(Default)]
pub(crate) struct CorePulse {
    /// Kept for ever and woken by reference: a waker that is used up by one wake is not there for the next when
    /// glommio parks between the two.
    waker: OnceLock<Waker>,
    /// Beats sent and beats that the core has seen.
    sent: AtomicU64,
    seen: AtomicU64,
    busy: AtomicBool,
    /// Longest time between a beat and its answer since last read, in microseconds.
    delay_us_max: AtomicU64,
}

impl CorePulse {
    /// Tells the pulse whether this core has I/O or requests in flight.
    pub(crate) fn set_busy(&self, busy: bool) {
        self.busy.store(busy, Ordering::Relaxed);
    }

    /// The longest scheduling delay since the last call.
    pub(crate) fn take_delay_max(&self) -> Duration {
        Duration::from_micros(self.delay_us_max.swap(0, Ordering::Relaxed))
    }

    /// The task that is woken; spawn it once on the core. `on_beat` runs at every beat.
    pub(crate) async fn answer(self: Arc<Self>, mut on_beat: impl FnMut()) {
        loop {
            std::future::poll_fn(|cx| {
                // A task keeps one waker for life.
                self.waker.get_or_init(|| cx.waker().clone());
                let sent = self.sent.load(Ordering::Acquire);
                if self.seen.swap(sent, Ordering::AcqRel) == sent { Poll::Pending } else { Poll::Ready(()) }
            })
            .await;
            on_beat();
        }
    }
}

/// Starts the pulse thread over all cores; it ends when `stop` is set.
pub(crate) fn start(
    cores: Vec<Arc<CorePulse>>,
    stop: Arc<AtomicBool>,
) -> std::io::Result<std::thread::JoinHandle<()>> {
    std::thread::Builder::new().name("pulse".into()).spawn(move || {
        let mut sent_at = vec![None::<Instant>; cores.len()];
        while !stop.load(Ordering::Relaxed) {
            let busy = cores.iter().any(|core| core.busy.load(Ordering::Relaxed));
            std::thread::sleep(if busy { BUSY_INTERVAL } else { IDLE_INTERVAL });
            for (core, sent_at) in cores.iter().zip(&mut sent_at) {
                beat(core, sent_at);
            }
        }
    })
}

fn beat(core: &CorePulse, sent_at: &mut Option<Instant>) {
    let answered = core.seen.load(Ordering::Acquire) == core.sent.load(Ordering::Acquire);
    if let Some(at) = *sent_at {
        let delay_us = u64::try_from(at.elapsed().as_micros()).unwrap_or(u64::MAX);
        // An answered beat took at most one interval, which is no delay; only what is still open counts.
        if !answered {
            core.delay_us_max.fetch_max(delay_us, Ordering::Relaxed);
        }
    }
    if answered {
        core.sent.fetch_add(1, Ordering::AcqRel);
        *sent_at = Some(Instant::now());
    }
    if let Some(waker) = core.waker.get() {
        waker.wake_by_ref();
    }
}
