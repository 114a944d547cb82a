//! What one core counts, and what it shows of itself.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use quarry_meter::{Counter, Histogram, page::Page};

use super::{
    families::{
        BUFFERS, BUFFERS_FREE, CONNECTIONS, CORE_CPU, EPOCHS, IN_FLIGHT, PRIMARIES, QUEUE, REPLICAS,
        SCHEDULING, SCHEDULING_MAX, UNCOMMITTED,
    },
    requests::Requests,
};
use crate::{host::ReplicaTotals, runtime::pulse::CorePulse};

/// Task queues, in the order of their counters.
pub(crate) const QUEUES: [&str; 3] = ["client", "device", "background"];

/// One core's numbers; the core is the only writer, but of `connections`.
#[derive(Default)]
pub(crate) struct CoreGauges {
    pub(crate) connections: AtomicU64,
    pub(crate) buffers_free: AtomicU64,
    pub(crate) buffers: AtomicU64,
    pub(crate) device_io_in_flight: AtomicU64,
    pub(crate) cpu_ns: Counter,
    pub(crate) queue_delays: [Histogram; QUEUES.len()],
    pub(super) requests: Requests,
    replicas: Counter,
    primaries: Counter,
    uncommitted: Counter,
    epoch_changes: Counter,
}

impl CoreGauges {
    /// The replicas of this core, as of now.
    pub(crate) fn set_replicas(&self, totals: &ReplicaTotals) {
        self.replicas.set(totals.replicas);
        self.primaries.set(totals.primaries);
        self.uncommitted.set(totals.uncommitted_entries);
        self.epoch_changes.set(totals.epoch_changes);
    }
}

/// A core as the page shows it.
pub(super) struct CoreSource {
    pub(super) core: String,
    pub(super) gauges: Arc<CoreGauges>,
    pub(super) pulse: Arc<CorePulse>,
}

impl CoreSource {
    #[allow(clippy::cast_precision_loss, reason = "Prometheus knows no other numbers")]
    fn collect(&self, page: &mut Page) {
        let (gauges, labels) = (&self.gauges, [("core", &*self.core)]);
        let shown = |value: &AtomicU64| value.load(Ordering::Relaxed);
        for (family, value) in [
            (&CONNECTIONS, shown(&gauges.connections)),
            (&BUFFERS, shown(&gauges.buffers)),
            (&BUFFERS_FREE, shown(&gauges.buffers_free)),
            (&IN_FLIGHT, shown(&gauges.device_io_in_flight)),
            (&PRIMARIES, gauges.primaries.get()),
            (&REPLICAS, gauges.replicas.get()),
        ] {
            page.count(family, &labels, value);
        }
        page.value(&CORE_CPU, &labels, gauges.cpu_ns.get() as f64 / 1e9);
        page.histogram(&SCHEDULING, &labels, &self.pulse.delays());
        page.value(&SCHEDULING_MAX, &labels, self.pulse.take_delay_max().as_secs_f64());
        for (queue, delays) in QUEUES.into_iter().zip(&gauges.queue_delays) {
            page.histogram(&QUEUE, &[("core", &self.core), ("queue", queue)], &delays.read());
        }
    }
}

/// Puts all cores on the page.
pub(super) fn collect(cores: &[CoreSource], page: &mut Page) {
    cores.iter().for_each(|core| core.collect(page));
    let sum = |of: fn(&CoreGauges) -> &Counter| cores.iter().map(|core| of(&core.gauges).get()).sum();
    page.count(&UNCOMMITTED, &[], sum(|core| &core.uncommitted));
    page.count(&EPOCHS, &[], sum(|core| &core.epoch_changes));
}
