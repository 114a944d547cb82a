//! The pulse: a side thread that wakes one parked task of every executor every few milliseconds.
//!
//! Why: glommio 0.9 can park for ever with runnable tasks, when the preempt timer fires between its I/O poll and
//! its first task and it takes "preempted" for "idle". A wake from another thread gets it going again. While
//! nothing is in flight the pulse slows down, so that an idle node stays idle. Its second use is a watchdog: how
//! late a core answers is that core's scheduling delay.
//!
//! The same may happen before an executor's very first task has run, when nobody can have a waker: [`Beginning`] tells
//! whether it has, and one that has not is given up for another.

use std::{
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering},
    },
    task::{Poll, Waker},
    time::{Duration, Instant},
};

use quarry_meter::{Histogram, Reading};

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
    /// Of the executor's first task: woken until the task above has run once.
    first: OnceLock<Waker>,
    /// Beats sent and beats that the core has seen.
    sent: AtomicU64,
    seen: AtomicU64,
    busy: AtomicBool,
    /// Longest time between a beat and its answer since last read, in microseconds.
    delay_us_max: AtomicU64,
    /// When the newest beat was sent, in nanoseconds since `started`.
    sent_ns: AtomicU64,
    started: OnceLock<Instant>,
    /// From a beat to its answer; written by the core.
    delays: Histogram,
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

    /// From beats to their answers, all of them.
    pub(crate) fn delays(&self) -> Reading {
        self.delays.read()
    }

    fn now_ns(&self) -> u64 {
        u64::try_from(self.started.get_or_init(Instant::now).elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Await this first of all on a core: from then on the pulse can wake it.
    pub(crate) async fn begin(&self) {
        std::future::poll_fn(|cx| {
            self.first.get_or_init(|| cx.waker().clone());
            Poll::Ready(())
        })
        .await;
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
            let delay_ns = self.now_ns().saturating_sub(self.sent_ns.load(Ordering::Relaxed));
            self.delays.observe(Duration::from_nanos(delay_ns));
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
        core.sent_ns.store(core.now_ns(), Ordering::Relaxed);
        core.sent.fetch_add(1, Ordering::AcqRel);
        *sent_at = Some(Instant::now());
    }
    if let Some(waker) = core.waker.get().or_else(|| core.first.get()) {
        waker.wake_by_ref();
    }
}

/// Whether an executor has run its first task, or was given up before.
#[derive(Default)]
pub(crate) struct Beginning(AtomicU8);

const WAITING: u8 = 0;
const BEGUN: u8 = 1;
const GIVEN_UP: u8 = 2;

impl Beginning {
    /// Called by the first task; `false`: another executor does this one's work, end.
    pub(crate) fn begin(&self) -> bool {
        self.0.compare_exchange(WAITING, BEGUN, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    /// Waits for the first task; `false`: it did not run within `patience`, and never will.
    pub(crate) fn wait(&self, patience: Duration) -> bool {
        let started = Instant::now();
        while self.0.load(Ordering::Acquire) == WAITING {
            if started.elapsed() > patience {
                return self
                    .0
                    .compare_exchange(WAITING, GIVEN_UP, Ordering::AcqRel, Ordering::Acquire)
                    .is_err();
            }
            std::thread::sleep(Duration::from_micros(200));
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_given_up_does_not_begin() {
        let beginning = Beginning::default();
        assert!(!beginning.wait(Duration::ZERO));
        assert!(!beginning.begin());
    }

    #[test]
    fn what_has_begun_is_not_given_up() {
        let beginning = Beginning::default();
        assert!(beginning.begin());
        assert!(beginning.wait(Duration::ZERO));
    }

    /// Before the task that answers has run, a beat wakes the first task; after that, the answering one.
    #[test]
    fn a_beat_reaches_a_core_that_has_only_begun() {
        let pulse = Arc::new(CorePulse::default());
        let woken = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&woken));
        let begun = std::pin::pin!(pulse.begin()).poll(&mut std::task::Context::from_waker(&waker));
        assert!(begun.is_ready());
        let mut sent_at = None;
        beat(&pulse, &mut sent_at);
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        let answering = Arc::new(Woken::default());
        let waker = Waker::from(Arc::clone(&answering));
        let mut answer = std::pin::pin!(Arc::clone(&pulse).answer(|| ()));
        assert!(answer.as_mut().poll(&mut std::task::Context::from_waker(&waker)).is_pending());
        beat(&pulse, &mut sent_at);
        assert_eq!((woken.0.load(Ordering::Relaxed), answering.0.load(Ordering::Relaxed)), (1, 1));
    }

    #[derive(Default)]
    struct Woken(AtomicU64);

    impl std::task::Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
}
