//! How long a task waits for its turn on a core, by task queue, and what the core's thread takes of a CPU.

use std::{cell::Cell, rc::Rc, sync::Arc, time::Instant};

use event_listener::Event;
use rustix::time::{ClockId, clock_gettime};

use super::{Queues, spawner};
use crate::metrics::{CoreGauges, QUEUES};

/// Beats of the pulse between probes: some 30 a second on a busy core, which nobody notices.
const PROBE_BEATS: u32 = 16;

/// One task per queue, which does nothing but say when it runs.
pub(super) struct Probes {
    gauges: Arc<CoreGauges>,
    probes: [Rc<Probe>; QUEUES.len()],
    beats: Cell<u32>,
}

#[derive(Default)]
struct Probe {
    woken: Event,
    asked: Cell<Option<Instant>>,
}

impl Probes {
    pub(super) fn start(gauges: &Arc<CoreGauges>, queues: Queues) -> Self {
        let tasks = [queues.client, queues.device, queues.background];
        let probes = std::array::from_fn(|index| {
            let probe = Rc::new(Probe::default());
            let (answering, gauges) = (Rc::clone(&probe), Arc::clone(gauges));
            spawner(tasks[index])(Box::pin(async move {
                loop {
                    let listener = answering.woken.listen();
                    match answering.asked.take() {
                        Some(asked) => gauges.queue_delays[index].observe(asked.elapsed()),
                        None => listener.await,
                    }
                }
            }));
            probe
        });
        Self { gauges: Arc::clone(gauges), probes, beats: Cell::new(0) }
    }

    /// The pulse was answered.
    pub(super) fn on_beat(&self) {
        let beats = self.beats.get().wrapping_add(1);
        self.beats.set(beats);
        if !beats.is_multiple_of(PROBE_BEATS) {
            return;
        }
        let used = clock_gettime(ClockId::ThreadCPUTime);
        let (s, ns) = (u64::try_from(used.tv_sec), u64::try_from(used.tv_nsec));
        self.gauges.cpu_ns.set(s.unwrap_or_default() * 1_000_000_000 + ns.unwrap_or_default());
        for probe in &self.probes {
            // One that still waits is left to wait: its delay is the longer one.
            if probe.asked.get().is_none() {
                probe.asked.set(Some(Instant::now()));
                probe.woken.notify(1);
            }
        }
    }
}
