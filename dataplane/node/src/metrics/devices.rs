//! Devices of this node: what each core asked of them, their space and their stores.

use std::sync::Arc;

use quarry_meter::page::Page;
use quarry_storage::{device::DeviceMeter, store::SharedStats};

use super::{
    families::{
        CAPACITY, CHECKPOINT_BYTES, CHECKPOINTS, DEVICE_BYTES, DEVICE_ERRORS, DEVICE_SECONDS, FREE,
        JOURNAL_BATCHES, JOURNAL_BYTES, JOURNAL_FLUSHES, JOURNAL_QUEUE, JOURNAL_RECORDS, QUARANTINED, USED,
    },
    requests::sum,
};
use crate::host::DeviceSpace;

/// A device whose store is open.
pub(super) struct DeviceSource {
    pub(super) device: String,
    pub(super) stats: SharedStats,
    pub(super) space: Arc<DeviceSpace>,
}

impl DeviceSource {
    pub(super) fn collect(&self, page: &mut Page) {
        let labels = [("device", &*self.device)];
        let stats = self.stats.load();
        let (capacity, free) = (self.space.capacity_bytes(), self.space.free_bytes());
        for (family, value) in [
            (&CAPACITY, capacity),
            (&FREE, free),
            (&USED, capacity.saturating_sub(free)),
            (&QUARANTINED, self.space.quarantined_bytes()),
            (&JOURNAL_QUEUE, stats.queued_bytes),
            (&JOURNAL_FLUSHES, stats.flushes),
            (&JOURNAL_BATCHES, stats.batches),
            (&JOURNAL_RECORDS, stats.records),
            (&JOURNAL_BYTES, stats.journal_bytes),
            (&CHECKPOINTS, stats.checkpoints),
            (&CHECKPOINT_BYTES, stats.checkpoint_bytes),
        ] {
            page.count(family, &labels, value);
        }
    }
}

/// Puts a device's operations on the page, those of all cores together.
pub(super) fn collect_operations(device: &str, meters: &[Arc<DeviceMeter>], page: &mut Page) {
    let of_cores: Vec<_> = meters.iter().map(|meter| meter.operations()).collect();
    for at in 0..of_cores.first().map_or(0, |operations| operations.len()) {
        let operation = of_cores[0][at].0.to_string();
        let labels = [("device", device), ("operation", &*operation)];
        let meters = || of_cores.iter().map(|operations| operations[at].1);
        page.histogram(&DEVICE_SECONDS, &labels, &sum(meters().map(|meter| meter.took.read())));
        page.count(&DEVICE_BYTES, &labels, meters().map(|meter| meter.bytes.get()).sum());
        page.count(&DEVICE_ERRORS, &labels, meters().map(|meter| meter.errors.get()).sum());
    }
}
